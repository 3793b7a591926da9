"""Attention: scores -> modify -> mask -> softmax -> weighted sum.

    scores  = scale * query key^T                        (B, H, L, S)
    scores  = score_mod(scores, b, h, q_idx, kv_idx)
    scores  = scores where the mask allows, else -inf
    weights = softmax(scores)                            each row sums to 1
    out     = weights value                              (B, H, L, Dv)

`reference` computes this as it is written. `attention` checks its arguments
once and hands them to a kernel: `reference`, or another way to compute the
same.

Sources: Vaswani et al., "Attention is all you need" (2017), section 3.2.1,
equation (1): our L and S are their n, our D their d_k, our Dv their d_v. Heads
that share keys and values: Ainslie et al., "GQA" (2023), section 2.2. The mods
are those of Dong et al., "Flex Attention" (2024), and
torch.nn.attention.flex_attention.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from attention.kernels import find
from attention.masking import (
    AttentionSpec,
    Mask,
    Offset,
    ScoreMod,
    attention_spec,
    clear_keys,
    clear_queries,
)
from attention.softmax import logsumexp, softmax, upcast
from attention.validation import check_scale, check_tensors


def reference(
    query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
) -> tuple[Tensor, Tensor | None]:
    """The formula as it is written: the kernel that others are tested against.

    Args:
        query: (B, H, L, D).
        key: (B, H_kv, S, D).
        value: (B, H_kv, S, Dv).
        spec: what else the call asks for, checked.

    Returns:
        The output (B, H, L, Dv) in query's dtype and, with spec.return_lse,
        the log-sum-exp (B, H, L) in float32 or wider, else None.
    """
    scores, mask = final_scores(query, key, spec)
    value = repeat_kv(value, query.shape[1])  # (B, H, S, Dv)
    if mask is not None:
        value = clear_keys(mask, value)
    weights = softmax(scores)  # (B, H, L, S)
    out = weights @ upcast(value)  # (B, H, L, Dv)
    lse = logsumexp(scores) if spec.return_lse else None
    return out.to(query.dtype), lse


def final_scores(
    query: Tensor, key: Tensor, spec: AttentionSpec
) -> tuple[Tensor, Tensor | None]:
    """The scores (B, H, L, S) that the softmax gets, and the mask."""
    key = repeat_kv(key, query.shape[1])  # (B, H, S, D)
    mask = spec.mask_tensor(query, key)  # (B, H, L, S), each 1 or full
    if mask is not None:
        query, key = clear_queries(mask, query), clear_keys(mask, key)
    scores = upcast(query) @ upcast(key).mT * spec.scale
    scores = spec.modified(scores, query, key)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores, mask


def repeat_kv(x: Tensor, n_heads: int) -> Tensor:
    """Give query head h its key-value head, h // (H / H_kv)."""
    if x.shape[1] == n_heads:  # a cache need not be copied
        return x
    return x.repeat_interleave(n_heads // x.shape[1], dim=1)


def attention_scores(
    query: Float[Tensor, "*batch L D"],
    key: Float[Tensor, "*kv_batch S D"],
    *,
    scale: float | int | None = None,
) -> Float[Tensor, "*batch L S"]:
    """Scaled dot product of every query with every key.

        scores[i, j] = scale * sum_d query[i, d] * key[j, d]

    Arguments and errors are those of `attention`.

    Returns:
        Scores (L, S) or (B, H, L, S), in float32 or wider.

    Example:
        >>> import torch
        >>> from attention import attention_scores
        >>> journey = torch.tensor([[0.55, 0.87, 0.66]])
        >>> your = torch.tensor([[0.43, 0.15, 0.89]])
        >>> attention_scores(journey, your, scale=1.0)
        tensor([[0.9544]])
    """
    check_tensors(query=query, key=key)
    spec = AttentionSpec(scale=check_scale(scale, query.shape[-1]))
    with no_autocast(query.device.type):
        scores, _ = final_scores(as_4d(query), as_4d(key), spec)
    return scores.reshape(*query.shape[:-1], key.shape[-2])


def attention_weights(
    query: Float[Tensor, "*batch L D"],
    key: Float[Tensor, "*kv_batch S D"],
    *,
    mask: Mask | None = None,
    score_mod: ScoreMod | None = None,
    query_offset: Offset | None = None,
    key_offset: Offset | None = None,
    scale: float | int | None = None,
) -> Float[Tensor, "*batch L S"]:
    """The weights that `attention` averages the values with.

    Arguments and errors are those of `attention`.

    Returns:
        Weights (L, S) or (B, H, L, S), in float32 or wider. Each row sums to
        1, except that a query that may attend to nothing has a row of zeros.

    Example:
        >>> import torch
        >>> from attention import attention_weights
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> causal = torch.tensor([[True, False], [True, True]])
        >>> attention_weights(x, x, mask=causal, scale=1.0)
        tensor([[1.0000, 0.0000],
                [0.2689, 0.7311]])
    """
    check_tensors(query=query, key=key)
    spec = attention_spec(
        query, key, mask, score_mod, query_offset, key_offset, scale
    )
    with no_autocast(query.device.type):
        scores, _ = final_scores(as_4d(query), as_4d(key), spec)
        weights = softmax(scores)
    return weights.reshape(*query.shape[:-1], key.shape[-2])


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = ...,
    score_mod: ScoreMod | None = ...,
    query_offset: Offset | None = ...,
    key_offset: Offset | None = ...,
    scale: float | int | None = ...,
    kernel: str = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...
@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = ...,
    score_mod: ScoreMod | None = ...,
    query_offset: Offset | None = ...,
    key_offset: Offset | None = ...,
    scale: float | int | None = ...,
    kernel: str = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def attention(
    query: Float[Tensor, "*batch L D"],
    key: Float[Tensor, "*kv_batch S D"],
    value: Float[Tensor, "*kv_batch S Dv"],
    *,
    mask: Mask | None = None,
    score_mod: ScoreMod | None = None,
    query_offset: Offset | None = None,
    key_offset: Offset | None = None,
    scale: float | int | None = None,
    kernel: str = "reference",
    return_lse: bool = False,
) -> (
    Float[Tensor, "*batch L Dv"]
    | tuple[Float[Tensor, "*batch L Dv"], Float[Tensor, "*batch L"]]
):
    """Average of the values, weighted by how well each key matches the query.

        out = softmax(mask(score_mod(scale * query key^T))) value

    The tensors are all (L, D) or all (B, H, L, D) and share dtype and device;
    nothing is broadcast. The package's own kernels compute float16 and
    bfloat16 in float32 and round once; autocast changes nothing.

    Args:
        query: (L, D) or (B, H, L, D).
        key: (S, D) or (B, H_kv, S, D), where H_kv divides H: query head h
            reads key-value head h // (H / H_kv).
        value: (S, Dv) or (B, H_kv, S, Dv).
        mask: True where a query may attend to a key. A Boolean tensor (L, S)
            or, each dimension 1 or full, (B, H, L, S); or a mask mod, a
            function mask_mod(b, h, q_idx, kv_idx) of four scalar tensors that
            returns one Boolean; or a BlockMask, of which only mask_mod is used
            (compiled FlexAttention trusts its blocks too).
        score_mod: a function score_mod(score, b, h, q_idx, kv_idx) that
            returns the new score, called before the mask with scaled scores in
            float32 or wider. It is evaluated at hidden pairs too, so its
            derivatives must be finite there.
        query_offset: position of the first query, for mods: an int or, for
            (B, H, L, D), an integer tensor (B,). None is 0 where L = S; where
            L and S differ, a mod needs both offsets.
        key_offset: position of the first key, as query_offset.
        scale: a finite number above 0; None is 1 / sqrt(D).
        kernel: "reference", the formula as it is written; "sdpa",
            F.scaled_dot_product_attention; "flex", FlexAttention; "tiled",
            which holds no more scores than a tile has; or "triton", the same
            on a GPU. `attention.kernels.KERNELS` says what each cannot do.
        return_lse: return the log-sum-exp of each query's scores as well.

    Returns:
        The output (L, Dv) or (B, H, L, Dv) in the dtype of query; with
        return_lse also the natural log-sum-exp (L,) or (B, H, L) in float32 or
        wider. Both are differentiable, by the reference kernel twice. A query
        that may attend to nothing gets zeros and -inf, and zero gradients. A
        key that no query may attend to has no influence, even if it or its
        value is NaN.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, dtypes or devices do not fit together, scale is out
            of range, an offset is missing, or no kernel has that name.
        NotImplementedError: the kernel cannot do what the call needs.

    Source:
        Vaswani et al. (2017), section 3.2.1, equation (1). The order (scale,
        score_mod, mask, softmax) is FlexAttention's. Zeros for a query that
        may attend to nothing are ours, and FlexAttention's.

    Example:
        >>> import torch
        >>> from attention import attention
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> attention(x, x, x, scale=1.0)
        tensor([[0.7311, 0.2689],
                [0.2689, 0.7311]])
    """
    check_tensors(query=query, key=key, value=value)
    spec = attention_spec(
        query,
        key,
        mask,
        score_mod,
        query_offset,
        key_offset,
        scale,
        return_lse,
    )
    run = find(kernel, query, key, value, spec)
    # Autocast would round to 16 bits what is promised in float32.
    with no_autocast(query.device.type):
        out, lse = run(as_4d(query), as_4d(key), as_4d(value), spec)
    if query.dim() == 2:
        out, lse = out[0, 0], lse[0, 0] if return_lse else None
    return (out, lse) if return_lse else out


def no_autocast(device: str) -> AbstractContextManager[Any]:
    """A context in which autocast is off."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def as_4d(x: Tensor) -> Tensor:
    """(L, D) as (1, 1, L, D)."""
    return x if x.dim() == 4 else x[None, None]
