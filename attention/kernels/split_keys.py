"""Few queries against many keys: the keys in parts, all at once, merged.

Where one query meets a long cache there is one row of scores, and nothing to
share out but the keys. Each part gives an output and a log-sum-exp, and
`merge` makes the whole of them.

Source: Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context
inference" (2023), which our parts and heads follow: a part is one more head.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from attention.functional import as_4d, no_autocast
from attention.kernels import find
from attention.masking import (
    AttentionSpec,
    Mask,
    Offset,
    ScoreMod,
    attention_spec,
)
from attention.softmax import merge
from attention.validation import check_sizes, check_tensors


# --8<-- [start:split_keys]
def split_keys(
    query: Float[Tensor, "*batch L D"],
    key: Float[Tensor, "*kv_batch S D"],
    value: Float[Tensor, "*kv_batch S Dv"],
    n_parts: int,
    *,
    mask: Mask | None = None,
    score_mod: ScoreMod | None = None,
    query_offset: Offset | None = None,
    key_offset: Offset | None = None,
    scale: float | int | None = None,
    kernel: str = "reference",
) -> Float[Tensor, "*batch L Dv"]:
    """What `attention` computes, by parts of the keys side by side.

    Args:
        query: (L, D) or (B, H, L, D). L is 1 where a model writes.
        key: (S, D) or (B, H_kv, S, D). It is not copied where n_parts divides
            S and it is contiguous.
        value: (S, Dv) or (B, H_kv, S, Dv), as key.
        n_parts: parts of the keys at most, at least 1. Each has S / n_parts
            keys, rounded up, and the last has the rest.
        mask: as in `attention`, and so are the others.
        score_mod: as in `attention`.
        query_offset: as in `attention`.
        key_offset: as in `attention`.
        scale: as in `attention`.
        kernel: computes the parts; it must give a log-sum-exp.

    Returns:
        The output of `attention`, (L, Dv) or (B, H, L, Dv).

    Raises:
        TypeError, ValueError, NotImplementedError: as `attention`; or n_parts
            is no integer, or below 1.

    Source:
        Dao et al., "Flash-Decoding for long-context inference" (2023).

    Example:
        >>> import torch
        >>> from attention import attention, split_keys
        >>> query, key = torch.rand(1, 4), torch.rand(9, 4)
        >>> out = split_keys(query, key, key, n_parts=3)
        >>> torch.allclose(out, attention(query, key, key))
        True
    """
    check_sizes(n_parts=n_parts)
    check_tensors(query=query, key=key, value=value)
    spec = attention_spec(
        query, key, mask, score_mod, query_offset, key_offset, scale, True
    )
    run = find(kernel, query, key, value, spec)
    q, k, v = as_4d(query), as_4d(key), as_4d(value)
    (_, H, _, _), (_, H_kv, S, _) = q.shape, k.shape
    size = -(-S // n_parts)  # keys of a part
    n, group = S // size if size else 1, H // H_kv
    whole = n * size

    # A part is one more head: (B, H_kv, n size, D) as (B, H_kv n, size, D),
    # and each query head is repeated for its n parts.
    q_parts = q.unflatten(1, (H_kv, 1, group)).expand(-1, -1, n, -1, -1, -1)
    k_parts, v_parts = (
        x[:, :, :whole].unflatten(2, (n, size)).flatten(1, 2) for x in (k, v)
    )
    with no_autocast(query.device.type):
        out, lse = run(
            q_parts.flatten(1, 3),  # (B, H_kv n g, L, D)
            k_parts,
            v_parts,
            _spec_of_parts(spec, H_kv, group, n, size),
        )
        outs, lses = (
            x.unflatten(1, (H_kv, n, group)).movedim(2, 0).flatten(2, 3)
            for x in (out, lse)
        )  # (n, B, H, L, ...)
        if whole < S:
            k_rest, v_rest = k[:, :, whole:], v[:, :, whole:]
            out, lse = run(q, k_rest, v_rest, _spec_of_rest(spec, whole))
            outs = torch.cat([outs, out[None]])
            lses = torch.cat([lses, lse[None]])
    merged, _ = merge(outs, lses)
    return merged.reshape(*query.shape[:-1], value.shape[-1])


# --8<-- [end:split_keys]


def _spec_of_parts(
    spec: AttentionSpec, H_kv: int, group: int, n: int, size: int
) -> AttentionSpec:
    """The same call, for heads that are parts of the keys."""

    def in_parts(mod: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of_part(*args: Tensor) -> Tensor:
            *score, b, h, q_idx, kv_idx = args
            part = h // group % n
            head = h // (group * n) * group + h % group
            return mod(*score, b, head, q_idx, kv_idx + part * size)

        return of_part

    mask, score_mod = spec.mask, spec.score_mod
    if isinstance(mask, Tensor):
        whole = -1 if mask.shape[3] > 1 else n * size
        mask = mask.expand(-1, H_kv * group, -1, whole)
        mask = mask[..., : n * size].unflatten(3, (n, size))
        mask = mask.unflatten(1, (H_kv, group)).permute(0, 1, 4, 2, 3, 5)
        mask = mask.flatten(1, 3)  # (B, H_kv n g, L, size)
    elif mask is not None:
        mask = in_parts(mask)
    score_mod = score_mod and in_parts(score_mod)
    return replace(spec, mask=mask, score_mod=score_mod, block_mask=None)


def _spec_of_rest(spec: AttentionSpec, whole: int) -> AttentionSpec:
    """The same call, for the keys from `whole` on."""
    mask = spec.mask
    if isinstance(mask, Tensor) and mask.shape[3] > 1:
        mask = mask[..., whole:]
    start = spec.key_offset + whole
    return replace(spec, mask=mask, key_offset=start, block_mask=None)
