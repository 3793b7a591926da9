"""The backward pass of attention, as chapter 7 derives it.

    weights      = softmax(scale * query key^T)          (B, H, L, S)
    grad_value   = weights^T grad_out                    (B, H, S, Dv)
    grad_weights = grad_out value^T                      (B, H, L, S)
    delta        = row sums of grad_out * out            (B, H, L, 1)
    grad_scores  = weights * (grad_weights - delta)      (B, H, L, S)
    grad_query   = scale * grad_scores key               (B, H, L, D)
    grad_key     = scale * grad_scores^T query           (B, H, S, D)

Source: Dao et al., "FlashAttention" (2022), appendix B.2: our L and S are
their N, our weights their P, our delta their D.
"""

from jaxtyping import Float
from torch import Tensor

from attention.functional import (
    as_4d,
    attention_weights,
    no_autocast,
    repeat_kv,
)
from attention.masking import Mask, Offset, clear_keys, clear_queries
from attention.softmax import upcast
from attention.validation import check_gradient, check_scale, check_tensors


# --8<-- [start:attention_backward]
def attention_backward(
    query: Float[Tensor, "*batch L D"],
    key: Float[Tensor, "*kv_batch S D"],
    value: Float[Tensor, "*kv_batch S Dv"],
    grad_out: Float[Tensor, "*batch L Dv"],
    *,
    mask: Mask | None = None,
    query_offset: Offset | None = None,
    key_offset: Offset | None = None,
    scale: float | int | None = None,
) -> tuple[
    Float[Tensor, "*batch L D"],
    Float[Tensor, "*kv_batch S D"],
    Float[Tensor, "*kv_batch S Dv"],
]:
    """Gradients of query, key and value, from the gradient of the output.

    The other arguments and the errors are those of `attention`.

    Args:
        query: (L, D) or (B, H, L, D).
        key: (S, D) or (B, H_kv, S, D).
        value: (S, Dv) or (B, H_kv, S, Dv).
        grad_out: how much the loss changes with each number of the output,
            (L, Dv) or (B, H, L, Dv).
        mask: as in `attention`.
        query_offset: as in `attention`.
        key_offset: as in `attention`.
        scale: as in `attention`.

    Returns:
        How much the loss changes with each number of query, key and value, in
        their shapes and dtype; differentiable again. What a query may not see
        gets nothing from it, and a query that may see nothing gets zeros.

    Raises:
        TypeError, ValueError: as `attention`; or grad_out has not the shape,
            dtype and device of the output.

    Source:
        Dao et al. (2022), appendix B.2. Where heads share a key, its gradient
        is the sum of theirs.

    Example:
        >>> import torch
        >>> from attention import attention_backward
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> grad_out = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> _, _, grad_value = attention_backward(x, x, x, grad_out, scale=1)
        >>> grad_value  # the weights of the first query
        tensor([[0.7311, 0.0000],
                [0.2689, 0.0000]])
    """
    check_tensors(query=query, key=key, value=value)
    check_gradient(grad_out, query, value)
    with no_autocast(query.device.type):
        weights = attention_weights(
            query,
            key,
            mask=mask,
            query_offset=query_offset,
            key_offset=key_offset,
            scale=scale,
        )
        weights = as_4d(weights)  # (B, H, L, S)
        scale = check_scale(scale, query.shape[-1])
        q, grad = upcast(as_4d(query)), upcast(as_4d(grad_out))
        k, v = upcast(as_4d(key)), upcast(as_4d(value))
        k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
        # What takes no part is cleared, as in `attention`: 0 * NaN is NaN.
        used = weights != 0
        q, grad = clear_queries(used, q), clear_queries(used, grad)
        k, v = clear_keys(used, k), clear_keys(used, v)

        out = weights @ v  # (B, H, L, Dv)
        grad_value = weights.mT @ grad  # (B, H, S, Dv)
        grad_weights = grad @ v.mT  # (B, H, L, S)
        delta = (grad * out).sum(-1, keepdim=True)  # (B, H, L, 1)
        grad_scores = weights * (grad_weights - delta)  # (B, H, L, S)
        grad_query = scale * grad_scores @ k  # (B, H, L, D)
        grad_key = scale * grad_scores.mT @ q  # (B, H, S, D)
    return (
        grad_query.reshape(query.shape).to(query.dtype),
        _sum_shared(grad_key, key),
        _sum_shared(grad_value, value),
    )


# --8<-- [end:attention_backward]


def _sum_shared(grad: Tensor, like: Tensor) -> Tensor:
    """Sum the gradients of the query heads that read one key-value head."""
    grouped: Tensor = grad.unflatten(1, (as_4d(like).shape[1], -1))
    return grouped.sum(2).reshape(like.shape).to(like.dtype)
