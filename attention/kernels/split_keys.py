"""Few queries against many keys: the keys in parts, all at once, merged.

Where one query meets a long cache there is one row of scores, and nothing to
share out but the keys. Each part gives an output and a log-sum-exp, and
`merge` makes the whole of them.

Source: Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context
inference" (2023), which our parts and heads follow: a part is one more head.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attention.functional import attention
from attention.masking import Mask, MaskMod, Offset, ScoreMod
from attention.softmax import merge
from attention.validation import check_how, check_sizes, check_tensors


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
        n_parts: parts of the keys, at least 1. All have as many keys but the
            last, which has the rest; more parts than keys are no use.
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
    how = check_how(
        query, key, mask, score_mod, query_offset, key_offset, scale
    )
    q, k, v = (
        x if x.dim() == 4 else x[None, None] for x in (query, key, value)
    )
    (_, H, _, _), (_, H_kv, S, _) = q.shape, k.shape
    size = -(-S // n_parts)  # keys of a part
    n, group = S // size if size else 1, H // H_kv
    whole = n * size

    # A part is one more head: (B, H_kv, n size, D) as (B, H_kv n, size, D),
    # and each head of queries asks its n heads of keys.
    asks = q.unflatten(1, (H_kv, 1, group)).expand(-1, -1, n, -1, -1, -1)
    parts = [x[:, :, :whole].unflatten(2, (n, size)) for x in (k, v)]
    out, lse = attention(
        asks.flatten(1, 3),  # (B, H_kv n g, L, D)
        *(x.flatten(1, 2) for x in parts),
        **_of_parts(how, H_kv, group, n, size),
        kernel=kernel,
        return_lse=True,
    )
    outs, lses = (
        x.unflatten(1, (H_kv, n, group)).movedim(2, 0).flatten(2, 3)
        for x in (out, lse)
    )  # (n, B, H, L, ...)
    if whole < S:
        last = [x[:, :, whole:] for x in (k, v)]
        out, lse = attention(
            q,
            *last,
            **_of_rest(how, whole),
            kernel=kernel,
            return_lse=True,
        )
        outs, lses = torch.cat([outs, out[None]]), torch.cat([lses, lse[None]])
    merged, _ = merge(outs, lses)
    return merged.reshape(*query.shape[:-1], value.shape[-1])


# --8<-- [end:split_keys]


def _of_parts(
    how: dict[str, Any], H_kv: int, group: int, n: int, size: int
) -> dict[str, Any]:
    """The rest of the arguments, for heads that are parts of the keys."""

    def in_parts(mod: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of_part(*args: Tensor) -> Tensor:
            *score, b, h, q_idx, kv_idx = args
            part = h // group % n
            head = h // (group * n) * group + h % group
            return mod(*score, b, head, q_idx, kv_idx + part * size)

        return of_part

    mask = how["mask"]
    if isinstance(mask, Tensor):
        whole = -1 if mask.shape[3] > 1 else n * size
        mask = mask.expand(-1, H_kv * group, -1, whole)
        mask = mask[..., : n * size].unflatten(3, (n, size))
        mask = mask.unflatten(1, (H_kv, group)).permute(0, 1, 4, 2, 3, 5)
        return _with_offsets({**how, "mask": mask.flatten(1, 3)})
    mods = {"mask": _mod(mask), "score_mod": how["score_mod"]}
    mods = {name: mod and in_parts(mod) for name, mod in mods.items()}
    return _with_offsets({**how, **mods})


def _of_rest(how: dict[str, Any], whole: int) -> dict[str, Any]:
    """The rest of the arguments, for the keys from `whole` on."""
    mask = how["mask"]
    if isinstance(mask, Tensor):
        mask = mask if mask.shape[3] == 1 else mask[..., whole:]
    start = how["key_offset"] + whole
    return _with_offsets({**how, "mask": _mod(mask), "key_offset": start})


def _mod(mask: Mask | None) -> Tensor | MaskMod | None:
    return mask.mask_mod if isinstance(mask, BlockMask) else mask


def _with_offsets(how: dict[str, Any]) -> dict[str, Any]:
    """Without the offsets, where nothing has a use for them."""
    if callable(how["mask"]) or how["score_mod"] is not None:
        return how
    return {k: x for k, x in how.items() if not k.endswith("offset")}
