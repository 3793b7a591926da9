"""Softmax and log-sum-exp of scores.

The package's one convention: a slice that is all -inf, or empty, belongs to a
fully masked query. Its weights are zeros and its log-sum-exp is -inf, and all
their derivatives are zero. For -inf, torch.softmax gives NaN, forward and
backward, and torch.logsumexp gives NaN backward.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attention.validation import check_dim, check_parts, check_sizes


# --8<-- [start:softmax_naive]
def softmax_naive(
    x: Float[Tensor, "*shape"], dim: int = -1
) -> Float[Tensor, "*shape"]:
    """Softmax by its formula, which gives NaN where exp overflows.

        softmax(x)_i = exp(x_i) / sum_j exp(x_j)

    Args:
        x: scores of any shape but (), floating-point.
        dim: the dimension along which weights sum to 1.

    Returns:
        Weights of the shape and dtype of x.

    Raises:
        TypeError, ValueError: as `softmax`.

    Source:
        Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and
        softmax functions" (2021), section 1, equation (1.2).
    """
    check_dim(x, dim)
    exponentials = torch.exp(x)
    return exponentials / exponentials.sum(dim, keepdim=True)


# --8<-- [end:softmax_naive]


# --8<-- [start:softmax]
def softmax(
    x: Float[Tensor, "*shape"], dim: int = -1
) -> Float[Tensor, "*shape"]:
    """Softmax that does not overflow for finite scores.

        softmax(x)_i = exp(x_i - m) / sum_j exp(x_j - m),    m = max_j x_j

    Args:
        x: scores of any shape but (), floating-point. -inf gets weight 0.
        dim: the dimension along which weights sum to 1.

    Returns:
        Weights of the shape and dtype of x, computed in float32 or wider. They
        sum to 1 along dim; a slice all -inf, or empty, gets zeros.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: x has no dimensions, or dim is not one of them.

    Source:
        As for `softmax_naive`, shifted by the maximum. The zeros are ours.

    Example:
        >>> import torch
        >>> from attention import softmax
        >>> softmax(torch.tensor([[300.0, 300.0], [-torch.inf, -torch.inf]]))
        tensor([[0.5000, 0.5000],
                [0.0000, 0.0000]])
    """
    check_dim(x, dim)
    scores = upcast(x)
    exponentials = torch.exp(scores - _shift(scores, dim))
    total = exponentials.sum(dim, keepdim=True)
    return (exponentials / total.masked_fill(total == 0, 1)).to(x.dtype)


# --8<-- [end:softmax]


# --8<-- [start:logsumexp]
def logsumexp(
    x: Float[Tensor, "*shape"], dim: int = -1
) -> Float[Tensor, "..."]:
    """Natural logarithm of the softmax's denominator, without overflow.

        logsumexp(x) = m + log sum_j exp(x_j - m),    m = max_j x_j

    softmax(x)_i = exp(x_i - logsumexp(x)) is its gradient.

    Args:
        x: scores of any shape but (), floating-point.
        dim: the dimension to sum over.

    Returns:
        A tensor of the dtype of x without the dimension dim, computed in
        float32 or wider. A slice all -inf, or empty, gives -inf.

    Raises:
        TypeError, ValueError: as `softmax`.

    Source:
        As for `softmax_naive`, equation (1.1), shifted by the maximum.
    """
    check_dim(x, dim)
    scores = upcast(x)
    shift = _shift(scores, dim)
    total = torch.exp(scores - shift).sum(dim, keepdim=True)
    empty = total == 0
    # log(1) replaces log(0), whose derivative is infinite.
    result = shift + torch.log(total.masked_fill(empty, 1))
    return result.masked_fill(empty, -math.inf).squeeze(dim).to(x.dtype)


# --8<-- [end:logsumexp]


# --8<-- [start:online_softmax]
def online_softmax(
    x: Float[Tensor, "*batch S"], block_size: int
) -> Float[Tensor, "*batch S"]:
    """Softmax over the last dimension, with its scores read in blocks.

    One pass updates the maximum m and the denominator l by each block x:

        m' = max(m, max_j x_j)
        l' = exp(m - m') l + sum_j exp(x_j - m')

    Args:
        x: scores (..., S), floating-point. -inf gets weight 0.
        block_size: scores in a block, at least 1.

    Returns:
        The same weights as `softmax`, whatever the block size.

    Raises:
        TypeError, ValueError: as `softmax`, or block_size is not an integer,
            or is below 1.

    Source:
        Milakov and Gimelshein, "Online normalizer calculation for softmax"
        (2018), section 3, algorithm 3, with blocks for their single scores.
    """
    check_dim(x, -1)
    check_sizes(block_size=block_size)
    scores = upcast(x)
    m = scores.new_full((*x.shape[:-1], 1), torch.finfo(scores.dtype).min)
    total = torch.zeros_like(m)  # (..., 1), the paper's l or d
    for block in scores.split(block_size, dim=-1) if x.shape[-1] else ():
        m_new = torch.maximum(m, block.detach().amax(-1, keepdim=True))
        total = torch.exp(m - m_new) * total
        total = total + torch.exp(block - m_new).sum(-1, keepdim=True)
        m = m_new
    exponentials = torch.exp(scores - m)
    return (exponentials / total.masked_fill(total == 0, 1)).to(x.dtype)


# --8<-- [end:online_softmax]


# --8<-- [start:merge]
def merge(
    outs: Float[Tensor, "n *batch Dv"], lses: Float[Tensor, "n *batch"]
) -> tuple[Float[Tensor, "*batch Dv"], Float[Tensor, "*batch"]]:
    """Attention over all keys, from attention over n parts of them.

        share = softmax(lses), over the parts
        out   = sum_i share_i outs_i
        lse   = logsumexp(lses)

    Args:
        outs: outputs of the parts, (n, ..., Dv).
        lses: log-sum-exps of their scores, (n, ...). A part whose keys are all
            masked has -inf, and zeros for its output.

    Returns:
        The output (..., Dv) in the dtype of outs, and the log-sum-exp (...) in
        the dtype of lses, both differentiable.

    Raises:
        TypeError: outs or lses is not a floating-point tensor.
        ValueError: outs is not (n, ..., Dv) where lses is (n, ...).

    Source:
        Dao, "FlashAttention-2" (2023), section 3.1.1; Ye et al., "FlashInfer"
        (2025), section 2.2, equations (1) and (2).

    Example:
        >>> import torch
        >>> from attention import attention, merge
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> parts = [attention(x, k, k, return_lse=True) for k in x.split(1)]
        >>> outs, lses = map(torch.stack, zip(*parts))
        >>> torch.allclose(merge(outs, lses)[0], attention(x, x, x))
        True
    """
    check_parts(outs, lses)
    share = softmax(lses, dim=0)  # (n, ...)
    out = (share[..., None] * upcast(outs)).sum(0)
    return out.to(outs.dtype), logsumexp(lses, dim=0)


# --8<-- [end:merge]


def _shift(x: Tensor, dim: int) -> Tensor:
    """Each slice's maximum; 0 where that is infinite, as inf - inf is NaN.

    Softmax and log-sum-exp do not depend on the shift, so detaching is exact.
    """
    if x.shape[dim] == 0:
        return torch.zeros_like(x.sum(dim, keepdim=True))
    largest = x.detach().amax(dim, keepdim=True)
    return largest.masked_fill(largest.isinf(), 0)


def upcast(x: Tensor) -> Tensor:
    """Cast to float32, unless x is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
