"""From scores to shares: the softmax and its companion, the log-sum-exp.

The package's one convention about nothing: a slice that is all -inf, or has
no entries, belongs to a query that may attend to nothing. Its weights are
zeros and its log-sum-exp is -inf, and every derivative of both is zero.
torch.softmax gives NaN there, forward and backward, and torch.logsumexp gives
NaN backward.
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
    """Softmax as its formula is written, which overflows for large scores.

        softmax(x)_i = exp(x_i) / sum_j exp(x_j)

    In float32, exp overflows above 88.7 (in float16 above 11.1), and inf / inf
    is NaN; a slice all of whose entries underflow is 0 / 0, NaN too. Use
    `softmax`.

    Args:
        x: scores of any shape but (), floating-point.
        dim: the dimension that the weights share out.

    Returns:
        Weights of the shape and dtype of x. Where nothing overflows they are
        positive and sum to 1 along dim.

    Raises:
        TypeError, ValueError: as `softmax`.

    Source:
        Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and
        softmax functions" (2021), section 1, equation (1.2).

    Example:
        >>> import torch
        >>> from attention import softmax_naive
        >>> softmax_naive(torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.0900, 0.2447, 0.6652])
        >>> softmax_naive(torch.tensor([1.0, 2.0, 300.0]))
        tensor([0., 0., nan])
    """
    check_dim(x, dim)
    exponentials = torch.exp(x)
    return exponentials / exponentials.sum(dim, keepdim=True)


# --8<-- [end:softmax_naive]


# --8<-- [start:softmax]
def softmax(
    x: Float[Tensor, "*shape"], dim: int = -1
) -> Float[Tensor, "*shape"]:
    """Softmax that cannot overflow: positive weights that sum to 1.

        softmax(x)_i = exp(x_i - m) / sum_j exp(x_j - m),    m = max_j x_j

    Args:
        x: scores of any shape but (), floating-point. -inf gets weight 0.
        dim: the dimension that the weights share out.

    Returns:
        Weights of the shape and dtype of x, computed in float32 or wider. They
        sum to 1 along dim, except that a slice all -inf, or empty, has none:
        zeros, with zero gradients of every order (torch.softmax gives NaN).

    Raises:
        TypeError: x is no floating-point tensor.
        ValueError: x has no dimensions, or dim is none of them (torch raises
            IndexError there).

    Source:
        As for `softmax_naive`, shifted by the maximum. The zeros for a slice
        all -inf are ours.

    Example:
        >>> import torch
        >>> from attention import softmax
        >>> softmax(torch.tensor([1.0, 2.0, 300.0]))
        tensor([0., 0., 1.])
        >>> softmax(torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]]))
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

    The weights follow from it, softmax(x)_i = exp(x_i - logsumexp(x)), and
    they are its gradient.

    Args:
        x: scores of any shape but (), floating-point.
        dim: the dimension to sum over.

    Returns:
        A tensor of the dtype of x without the dimension dim, computed in
        float32 or wider: at least the largest of n entries, at most log n
        above it. A slice all -inf, or empty, gives -inf, with zero gradients
        of every order (torch.logsumexp gives NaN gradients).

    Raises:
        TypeError, ValueError: as `softmax`.

    Source:
        As for `softmax_naive`, equation (1.1), shifted by the maximum.

    Example:
        >>> import torch
        >>> from attention import logsumexp
        >>> logsumexp(torch.tensor([[300.0, 300.0], [-torch.inf, -torch.inf]]))
        tensor([300.6931,     -inf])
    """
    check_dim(x, dim)
    scores = upcast(x)
    shift = _shift(scores, dim)
    total = torch.exp(scores - shift).sum(dim, keepdim=True)
    nothing = total == 0
    # log(1) stands in for log(0), whose derivative is infinite.
    result = shift + torch.log(total.masked_fill(nothing, 1))
    return result.masked_fill(nothing, -math.inf).squeeze(dim).to(x.dtype)


# --8<-- [end:logsumexp]


# --8<-- [start:online_softmax]
def online_softmax(
    x: Float[Tensor, "*batch S"], block_size: int
) -> Float[Tensor, "*batch S"]:
    """Softmax over the last dimension that reads its scores block by block.

    One pass finds the maximum and the denominator together: where a block
    brings a larger score, the sum so far is scaled down to the new maximum.

        m' = max(m, max_j x_j)
        l' = exp(m - m') l + sum_j exp(x_j - m')

    Args:
        x: scores (..., S), floating-point. -inf gets weight 0.
        block_size: scores in a block, at least 1.

    Returns:
        What `softmax` gives, whatever the block size.

    Raises:
        TypeError, ValueError: as `softmax`, or block_size is no integer or
            below 1.

    Source:
        Milakov and Gimelshein, "Online normalizer calculation for softmax"
        (2018), section 3, algorithm 3, with blocks for their single scores.

    Example:
        >>> import torch
        >>> from attention import online_softmax
        >>> online_softmax(torch.tensor([1.0, 2.0, 300.0]), block_size=2)
        tensor([0., 0., 1.])
    """
    check_dim(x, -1)
    check_sizes(block_size=block_size)
    scores = upcast(x)
    largest = scores.new_full(
        (*x.shape[:-1], 1), torch.finfo(scores.dtype).min
    )
    total = torch.zeros_like(largest)
    for block in scores.split(block_size, dim=-1) if x.shape[-1] else ():
        highest = torch.maximum(largest, block.detach().amax(-1, keepdim=True))
        shrink = torch.exp(largest - highest)
        total = shrink * total + torch.exp(block - highest).sum(-1, True)
        largest = highest
    exponentials = torch.exp(scores - largest)
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

    The order of the parts does not matter, nor in what groups they are merged.

    Args:
        outs: the outputs of the parts, (n, ..., Dv).
        lses: the log-sum-exps of their scores, (n, ...). A part that saw no
            key has -inf, and zeros for its output.

    Returns:
        The output (..., Dv) in the dtype of outs, and the log-sum-exp (...) in
        that of lses. Both are differentiable. Where no part saw a key: zeros
        and -inf.

    Raises:
        TypeError: outs or lses is no floating-point tensor.
        ValueError: outs is not of the shape of lses with one more dimension.

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
    """Each slice's largest entry; 0 where that is infinite: inf - inf is NaN.

    It is detached. Softmax and log-sum-exp are the same for every shift, so
    their derivatives with respect to it are zero, and leaving it out is exact.
    """
    if x.shape[dim] == 0:
        return torch.zeros_like(x.sum(dim, keepdim=True))
    largest = x.detach().amax(dim, keepdim=True)
    return largest.masked_fill(largest.isinf(), 0)


def upcast(x: Tensor) -> Tensor:
    """X in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
