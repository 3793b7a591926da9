"""Score mods: relative position biases, and logit soft-capping.

    T5      score + table[bucket(k - q), h]
    ALiBi   score - slope[h] |q - k|
    softcap cap tanh(score / cap)

Sources: Raffel et al., "Exploring the limits of transfer learning with a
unified text-to-text transformer" (2020), section 2.1, and its released code;
Press et al., "Train short, test long" (2022), section 3, and its released
code; Gemma Team, "Gemma 2" (2024), section 2.
"""

import math

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from attention.masking import ScoreMod, elementwise
from attention.validation import (
    argument_error,
    check_integers,
    check_number,
    check_sizes,
)


# --8<-- [start:t5_buckets]
def t5_buckets(
    relative_position: Integer[Tensor, "*n"],
    *,
    n_buckets: int = 32,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Int[Tensor, "*n"]:
    """T5's bucket of each relative position: exact, then logarithmic.

    With n buckets for a direction, of which e = n // 2 are exact:

        bucket(d) = d                                       where d < e
        bucket(d) = e + (n - e) ln(d / e) / ln(max / e)     rounded down

    Args:
        relative_position: kv_idx - q_idx, integers of any shape.
        n_buckets: number of buckets, at least 2, or 4 if bidirectional.
        max_distance: larger distances share the last bucket; above e.
        bidirectional: keys after the query have the second half of the
            buckets; if False, they share the bucket of distance 0.

    Returns:
        Buckets from 0 to n_buckets - 1, int64.

    Raises:
        TypeError, ValueError: relative_position is not a tensor of integers,
            or a size is out of range.

    Source:
        Raffel et al. (2020), section 2.1; the formula is that of their code,
        in float32, on which the ends of the buckets depend.

    Example:
        >>> import torch
        >>> from attention import t5_buckets
        >>> t5_buckets(torch.tensor([0, -1, -7, -8, -16, -1000, 1]))
        tensor([ 0,  1,  7,  8, 10, 15, 17])
    """
    check_integers("relative_position", relative_position)
    n = _buckets_a_side(n_buckets, max_distance, bidirectional)
    exact = n // 2
    if bidirectional:
        first = n * (relative_position > 0)
        distance = relative_position.abs()
    else:
        first = torch.zeros_like(relative_position)
        distance = (-relative_position).clamp(min=0)
    # The logarithm of a distance with an exact bucket may be -inf.
    far = distance.clamp(min=exact).float()
    steps = (far / exact).log() / math.log(max_distance / exact) * (n - exact)
    wide = (exact + steps.long()).clamp(max=n - 1)
    return first + torch.where(distance < exact, distance, wide)


# --8<-- [end:t5_buckets]


# --8<-- [start:T5Bias]
class T5Bias(nn.Module):
    """T5's relative position bias: a learned score mod.

    T5 shares one among all its layers, and has scale=1.0.

    Args:
        n_heads: heads of the queries.
        n_buckets, max_distance, bidirectional: as in `t5_buckets`.

    Raises:
        TypeError, ValueError: a size is not an integer, or is out of range.

    Example:
        >>> import torch
        >>> from attention import T5Bias, attention_weights
        >>> bias = T5Bias(n_heads=1)
        >>> _ = bias.table.weight.data.zero_()
        >>> bias.table.weight.data[1] = 1.0  # the previous key
        >>> x = torch.zeros(3, 2)
        >>> attention_weights(x, x, score_mod=bias)[2].detach()
        tensor([0.2119, 0.5761, 0.2119])
    """

    elementwise = True

    def __init__(
        self,
        n_heads: int,
        *,
        n_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(n_heads=n_heads)
        _buckets_a_side(n_buckets, max_distance, bidirectional)
        self.n_buckets, self.max_distance = n_buckets, max_distance
        self.bidirectional = bidirectional
        self.table = nn.Embedding(n_buckets, n_heads)

    def forward(
        self,
        score: Float[Tensor, "*#n"],
        b: Integer[Tensor, "*#n"],
        h: Integer[Tensor, "*#n"],
        q_idx: Integer[Tensor, "*#n"],
        kv_idx: Integer[Tensor, "*#n"],
    ) -> Float[Tensor, "*#n"]:
        """Add to the score the bias of its head and bucket."""
        bucket = t5_buckets(
            kv_idx - q_idx,
            n_buckets=self.n_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        return score + self.table.weight[bucket, h].to(score.dtype)


# --8<-- [end:T5Bias]


# --8<-- [start:alibi_slopes]
def alibi_slopes(n_heads: int) -> Float[Tensor, "n_heads"]:
    """ALiBi's slopes: a geometric sequence from 2^(-8 / n) to 2^-8.

    Where n_heads is not a power of 2, the slopes of the next lower power come
    first, then every other slope of the next higher power.

    Args:
        n_heads: heads of the queries.

    Returns:
        Slopes (n_heads,), float32, above 0.

    Raises:
        TypeError, ValueError: n_heads is not an integer, or is below 1.

    Source:
        Press et al. (2022), section 3, and their released code. Bloom and MPT
        have the same slopes in the same order.

    Example:
        >>> from attention import alibi_slopes
        >>> alibi_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
        >>> alibi_slopes(3)
        tensor([0.0625, 0.0039, 0.2500])
    """
    check_sizes(n_heads=n_heads)
    power = 1 << (n_heads.bit_length() - 1)  # at most n_heads
    steps = torch.arange(1, 2 * power + 1, dtype=torch.float32, device="cpu")
    slopes = 2.0 ** (-4 / power * steps)  # of twice as many heads
    return torch.cat([slopes[1::2], slopes[0::2]])[:n_heads]


# --8<-- [end:alibi_slopes]


# --8<-- [start:alibi]
def alibi(n_heads: int) -> ScoreMod:
    """ALiBi: attention with linear biases, as a score mod.

    Args:
        n_heads: heads of the queries.

    Returns:
        The score mod, score - slope[h] |q_idx - kv_idx|. The paper, which is
        causal, has slope[h] (kv_idx - q_idx).

    Raises:
        TypeError, ValueError: n_heads is not an integer, or is below 1.

    Source:
        Press et al. (2022), section 3.

    Example:
        >>> import torch
        >>> from attention import alibi, attention_weights
        >>> x = torch.zeros(1, 2, 3, 4)
        >>> attention_weights(x, x, score_mod=alibi(2))[0, 0, 2]
        tensor([0.3127, 0.3329, 0.3544])
    """
    slopes = alibi_slopes(n_heads)
    return elementwise(
        lambda score, b, h, q_idx, kv_idx: (
            score - slopes.to(score)[h] * (q_idx - kv_idx).abs()
        )
    )


# --8<-- [end:alibi]


def softcap(cap: float | int) -> ScoreMod:
    """Logit soft-capping: keeps scores between -cap and cap.

    Args:
        cap: a finite number above 0.

    Returns:
        The score mod, cap tanh(score / cap).

    Raises:
        TypeError, ValueError: cap is not a finite number above 0.

    Source:
        Gemma Team (2024), section 2, "logit soft-capping".

    Example:
        >>> import torch
        >>> from attention import softcap
        >>> softcap(5)(torch.tensor([1.0, 100.0]), 0, 0, 0, 0)
        tensor([0.9869, 5.0000])
    """
    cap = check_number("cap", cap)
    return elementwise(
        lambda score, b, h, q_idx, kv_idx: cap * (score / cap).tanh()
    )


def _buckets_a_side(
    n_buckets: int, max_distance: int, bidirectional: bool
) -> int:
    """Number of buckets for one direction; checks the sizes."""
    check_sizes(4 if bidirectional else 2, n_buckets=n_buckets)
    check_sizes(max_distance=max_distance)
    n = n_buckets // 2 if bidirectional else n_buckets
    if bidirectional and n_buckets % 2:
        raise ValueError(f"n_buckets={n_buckets} must be even")
    if max_distance <= n // 2:
        rule = f"be above {n // 2}, the distances with a bucket of their own"
        raise argument_error("max_distance", rule, max_distance)
    return n
