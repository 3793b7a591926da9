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

from attention.checks import check_dim


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
    scores = widen(x)
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
    scores = widen(x)
    shift = _shift(scores, dim)
    total = torch.exp(scores - shift).sum(dim, keepdim=True)
    nothing = total == 0
    # log(1) stands in for log(0), whose derivative is infinite.
    result = shift + torch.log(total.masked_fill(nothing, 1))
    return result.masked_fill(nothing, -math.inf).squeeze(dim).to(x.dtype)


# --8<-- [end:logsumexp]


def _shift(x: Tensor, dim: int) -> Tensor:
    """Each slice's largest entry; 0 where that is infinite: inf - inf is NaN.

    It is detached. Softmax and log-sum-exp are the same for every shift, so
    their derivatives with respect to it are zero, and leaving it out is exact.
    """
    if x.shape[dim] == 0:
        return torch.zeros_like(x.sum(dim, keepdim=True))
    largest = x.detach().amax(dim, keepdim=True)
    return largest.masked_fill(largest.isinf(), 0)


def widen(x: Tensor) -> Tensor:
    """The same numbers in float32, or float64 where they are that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
