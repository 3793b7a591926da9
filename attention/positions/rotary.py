"""Rotary positions: queries and keys turned, so that scores see differences.

    q_p = R(p) query,  k_r = R(r) key,   q_p . k_r = query . R(r - p) key

R(p) turns pair i of the numbers by p w_i radians, w_i = base^(-2i / R), where
R numbers of a head are turned. A model can be run past the length it was
trained on by turning more slowly: the rules at the end change the w_i.

Sources: Su et al., "RoFormer" (2021), sections 3.2 and 3.4. The rules: Chen et
al., "Extending context window of large language models via positional
interpolation" (2023), equation (4); Peng et al., "YaRN" (2023), section 3,
whose released code we follow where it differs from the paper; Grattafiori et
al., "The Llama 3 herd of models" (2024) and its released code.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention.masking import Offset, positions
from attention.positions.absolute import frequencies
from attention.softmax import upcast
from attention.validation import (
    argument_error,
    check_even,
    check_floating,
    check_number,
    check_sizes,
    check_start,
    shapes,
    type_name,
)

Pairing: TypeAlias = Literal["interleaved", "half"]
# frequencies -> (new frequencies, factor of every cosine and sine)
Stretch: TypeAlias = Callable[[Tensor], tuple[Tensor, float]]


# --8<-- [start:rotate]
def rotate(
    x: Float[Tensor, "*batch L D"],
    cos: Float[Tensor, "..."],
    sin: Float[Tensor, "..."],
    *,
    pairing: Pairing,
) -> Float[Tensor, "*batch L D"]:
    """Turn pairs of numbers: (a, b) becomes (a cos - b sin, a sin + b cos).

    Args:
        x: vectors (..., L, D).
        cos: cosines (L, R / 2) or what broadcasts to (..., L, R / 2), of any
            floating dtype, where R <= D: the first R numbers of a vector are
            turned and the others pass.
        sin: sines, of the shape of cos.
        pairing: which numbers make a pair. "interleaved": 0 and 1, 2 and 3
            ...; "half": i and i + R / 2.

    Returns:
        The turned vectors in the shape and dtype of x, computed in float32 or
        wider.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes do not fit, or pairing is another word.

    Source:
        Su et al. (2021), equation (34), pairs neighbours. Halves are paired by
        GPT-NeoX and Hugging Face's Llama.

    Example:
        >>> import torch
        >>> from attention import rotate
        >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> cos, sin = torch.zeros(1, 2), torch.ones(1, 2)  # a quarter turn
        >>> rotate(x, cos, sin, pairing="interleaved")
        tensor([[-2.,  1., -4.,  3.]])
        >>> rotate(x, cos, sin, pairing="half")
        tensor([[-3., -4.,  1.,  2.]])
    """
    for name, t in (("x", x), ("cos", cos), ("sin", sin)):
        check_floating(name, t)
    check_pairing(pairing)
    if x.dim() == 0:
        raise argument_error("x", "have at least one dimension", "shape ()")
    R = 2 * cos.shape[-1] if cos.dim() else 0
    if cos.shape != sin.shape or not 0 < R <= x.shape[-1]:
        rule = "share one shape (..., L, R / 2), R from 2 to D"
        raise argument_error(
            "cos and sin", rule, shapes({"cos": cos, "sin": sin})
        )
    if not _fits(cos.shape[:-1], x.shape[:-1]):
        rule = f"broadcast to x, {tuple(x.shape)}, but for its last dimension"
        raise argument_error("cos and sin", rule, tuple(cos.shape))
    wide = upcast(x[..., :R])
    if pairing == "interleaved":
        a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)  # (..., L, R / 2)
    else:
        a, b = wide.chunk(2, dim=-1)
    a, b = a * cos - b * sin, a * sin + b * cos
    if pairing == "interleaved":
        turned = torch.stack([a, b], dim=-1).flatten(-2)  # (..., L, R)
    else:
        turned = torch.cat([a, b], dim=-1)
    return torch.cat([turned.to(x.dtype), x[..., R:]], dim=-1)


# --8<-- [end:rotate]


# --8<-- [start:pairing_permutation]
def pairing_permutation(
    head_dim: int, rotary_dim: int | None = None
) -> Int[Tensor, "head_dim"]:
    """Order of a head's numbers that takes neighbours to halves.

    With p this order, rotate(x[..., p], pairing="half") is
    rotate(x, pairing="interleaved")[..., p]. Scores do not care for the order
    of the numbers, so a model whose query and key weights have their rows put
    into this order, head by head, does with halves what it did with
    neighbours. p.argsort() leads back.

    Args:
        head_dim: numbers in a head.
        rotary_dim: how many of them are turned, the first; even. None is all.

    Returns:
        p: 0, 2, 4 ... and then 1, 3, 5 ..., the numbers not turned staying.

    Raises:
        TypeError, ValueError: a size is no integer, or below 1; rotary_dim is
            not even, or above head_dim.

    Example:
        >>> from attention import pairing_permutation
        >>> pairing_permutation(8, rotary_dim=6)
        tensor([0, 2, 4, 1, 3, 5, 6, 7])
    """
    R = _rotary_dim(head_dim, rotary_dim)
    pairs = torch.arange(R).unflatten(0, (-1, 2))  # (R / 2, 2)
    return torch.cat([pairs.T.flatten(), torch.arange(R, head_dim)])


# --8<-- [end:pairing_permutation]


# --8<-- [start:RotaryEmbedding]
class RotaryEmbedding(nn.Module):
    """Turns queries and keys by an angle that grows with their position.

    Nothing is learned and nothing stored: a state_dict is empty, and half() or
    to(torch.bfloat16) leave the frequencies in float64.

    Args:
        head_dim: numbers in a head.
        pairing: which numbers make a pair, as in `rotate`. It has no default:
            weights trained with one pairing are wrong with the other.
        base: pair i turns by base^(-2i / rotary_dim) radians a position.
        rotary_dim: how many numbers of a head are turned, the first; even.
            None is all.
        stretch: a rule that takes the frequencies (rotary_dim / 2,) and
            returns new ones and an attention factor, such as
            stretch_linear(2). None changes nothing.

    Attributes:
        frequencies: radians that each pair turns a position, float64.
        attention_factor: what every cosine and sine is multiplied by.

    Raises:
        TypeError, ValueError: a size is no integer or out of range, pairing is
            another word, or base is not above 0; in forward, x is not (L, D)
            or (B, H, L, D), or offset does not fit.

    Source:
        Su et al. (2021), section 3.2.2; partial rotation, Wang and
        Komatsuzaki, "GPT-J-6B" (2021), and GPT-NeoX.

    Example:
        >>> import torch
        >>> from attention import RotaryEmbedding
        >>> turn = RotaryEmbedding(4, pairing="interleaved")
        >>> q, k = torch.ones(1, 4), torch.ones(1, 4)
        >>> near = turn(q, offset=1) @ turn(k, offset=3).T
        >>> far = turn(q, offset=101) @ turn(k, offset=103).T
        >>> torch.allclose(near, far, atol=1e-5)
        True
    """

    def __init__(
        self,
        head_dim: int,
        *,
        pairing: Pairing,
        base: float | int = 10000.0,
        rotary_dim: int | None = None,
        stretch: Stretch | None = None,
    ) -> None:
        super().__init__()
        rotary_dim = _rotary_dim(head_dim, rotary_dim)
        self.head_dim, self.pairing = head_dim, check_pairing(pairing)
        self.frequencies = frequencies("rotary_dim", rotary_dim, base)
        self.attention_factor = 1.0
        if stretch is not None:
            made = _stretched(stretch, self.frequencies)
            self.frequencies, self.attention_factor = made

    def forward(
        self, x: Float[Tensor, "*batch L D"], *, offset: Offset = 0
    ) -> Float[Tensor, "*batch L D"]:
        """The vectors, each turned by its position.

        Args:
            x: queries or keys (L, D) or (B, H, L, D).
            offset: the position of the first, an int or, with a batch,
                integers (B,).

        Returns:
            The turned vectors, in the shape and dtype of x.
        """
        check_floating("x", x)
        D = self.head_dim
        if x.dim() not in (2, 4) or x.shape[-1] != D:
            rule = f"be (L, {D}) or (B, H, L, {D}), where head_dim={D}"
            raise argument_error("x", rule, tuple(x.shape))
        start = check_start("offset", offset, x)
        where = positions(start, x.shape[-2], x.device)  # (L,) or (B, L)
        hands = self.frequencies.to(x.device)
        angles = where.double()[..., None] * hands  # (L, R / 2), (B, L, R / 2)
        if angles.dim() == 3:
            angles = angles[:, None]  # (B, 1, L, R / 2)
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (
            (self.attention_factor * f(angles)).to(dtype)
            for f in (torch.cos, torch.sin)
        )
        return rotate(x, cos, sin, pairing=self.pairing)


# --8<-- [end:RotaryEmbedding]


# --8<-- [start:stretch_linear]
def stretch_linear(factor: float | int) -> Stretch:
    """Positional interpolation: every pair turns `factor` times more slowly.

    Args:
        factor: how many times longer the text may be; above 0.

    Returns:
        The rule, frequencies -> (frequencies / factor, 1.0).

    Source:
        Chen et al. (2023), equation (4).

    Example:
        >>> import torch
        >>> from attention import stretch_linear
        >>> stretch_linear(4)(torch.tensor([1.0, 0.1]))
        (tensor([0.2500, 0.0250]), 1.0)
    """
    factor = check_number("factor", factor)
    return lambda frequencies: (frequencies / factor, 1.0)


# --8<-- [end:stretch_linear]


# --8<-- [start:stretch_ntk]
def stretch_ntk(factor: float | int) -> Stretch:
    """NTK-aware: the slower a pair, the more it is slowed, up to `factor`.

    The same as base * factor^(R / (R - 2)) in place of base: pair i of n turns
    factor^(i / (n - 1)) times more slowly, so that pair 0 turns as ever.

    Args:
        factor: how many times longer the text may be; above 0.

    Returns:
        The rule, frequencies -> (new frequencies, 1.0). It needs two
        frequencies or more.

    Source:
        Peng et al. (2023), section 3.1; first written of by bloc97 in 2023.

    Example:
        >>> import torch
        >>> from attention import stretch_ntk
        >>> stretch_ntk(4)(torch.tensor([1.0, 0.1, 0.01]))
        (tensor([1.0000, 0.0500, 0.0025]), 1.0)
    """
    factor = check_number("factor", factor)

    def rule(frequencies: Tensor) -> tuple[Tensor, float]:
        return frequencies * factor ** -_spread(frequencies), 1.0

    return rule


# --8<-- [end:stretch_ntk]


# --8<-- [start:stretch_yarn]
def stretch_yarn(
    factor: float | int,
    original_length: int,
    *,
    beta_fast: float | int = 32.0,
    beta_slow: float | int = 1.0,
    truncate: bool = True,
    attention_factor: float | int | None = None,
) -> Stretch:
    """YaRN: slow pairs turn `factor` times more slowly, fast pairs as ever.

    A pair is fast where it turns beta_fast times or more within the length
    that the model was trained on, and slow where beta_slow times or fewer.
    Between the two the share that is slowed grows evenly with the pair's
    number, as in the authors' code (in their paper it grows with the number of
    turns). The constants are found by trying, not derived.

    Args:
        factor: how many times longer the text may be; above 0.
        original_length: positions that the model was trained on.
        beta_fast: turns from which on a pair stays as it is.
        beta_slow: turns up to which a pair is slowed in full.
        truncate: let the share grow from a whole pair to a whole pair, rounded
            outwards, as the authors do; gpt-oss does not.
        attention_factor: multiplies every cosine and sine, and so a score by
            its square. None is 0.1 ln(factor) + 1, or 1 where factor < 1.

    Returns:
        The rule, frequencies -> (new frequencies, attention_factor). It needs
        two falling frequencies or more.

    Source:
        Peng et al. (2023), sections 3.2 to 3.4, and their released code.

    Example:
        >>> import torch
        >>> from attention import stretch_yarn
        >>> stretch_yarn(4, 1024)(torch.tensor([1.0, 0.1, 0.01]))
        (tensor([1.0000, 0.0750, 0.0050]), 1.138629436111989)
    """
    factor = check_number("factor", factor)
    check_sizes(original_length=original_length)
    beta_slow = check_number("beta_slow", beta_slow)
    beta_fast = check_number("beta_fast", beta_fast, above=beta_slow)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(max(factor, 1)) + 1
    amplitude = check_number("attention_factor", attention_factor)

    def rule(frequencies: Tensor) -> tuple[Tensor, float]:
        n = len(frequencies)
        index = _spread(frequencies) * (n - 1)  # 0, 1, ... n - 1
        # Pair i turns length w_0 / (2 pi) e^(-fall i) times.
        fall = math.log(frequencies[0] / frequencies[-1]) / (n - 1)
        most = math.log(original_length * frequencies[0] / (2 * math.pi))
        low = (most - math.log(beta_fast)) / fall
        high = (most - math.log(beta_slow)) / fall
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * n - 1)
        slowed = (index - low) / max(high - low, 0.001)
        slowed = slowed.clamp(0, 1)
        slow = frequencies / factor
        return slowed * slow + (1 - slowed) * frequencies, amplitude

    return rule


# --8<-- [end:stretch_yarn]


# --8<-- [start:stretch_llama3]
def stretch_llama3(
    factor: float | int,
    original_length: int,
    *,
    low_freq_factor: float | int = 1.0,
    high_freq_factor: float | int = 4.0,
) -> Stretch:
    """Llama 3's rule: as YaRN, with the share growing with the turns.

    The constants are found by trying, not derived.

    Args:
        factor: how many times longer the text may be; above 0.
        original_length: positions that the model was trained on.
        low_freq_factor: turns up to which a pair is slowed in full.
        high_freq_factor: turns from which on a pair stays as it is.

    Returns:
        The rule, frequencies -> (new frequencies, 1.0).

    Source:
        Grattafiori et al. (2024) name no rule beyond the base; it is that of
        the code released with Llama 3.1.

    Example:
        >>> import torch
        >>> from attention import stretch_llama3
        >>> stretch_llama3(8, 64)(torch.tensor([1.0, 0.25, 0.04]))
        (tensor([1.0000, 0.1440, 0.0050]), 1.0)
    """
    factor = check_number("factor", factor)
    check_sizes(original_length=original_length)
    low = check_number("low_freq_factor", low_freq_factor)
    high = check_number("high_freq_factor", high_freq_factor, above=low)

    def rule(frequencies: Tensor) -> tuple[Tensor, float]:
        turns = original_length * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * frequencies + (1 - kept) * frequencies / factor, 1.0

    return rule


# --8<-- [end:stretch_llama3]


def check_pairing(pairing: Pairing) -> Pairing:
    """Raise unless pairing is one of the two words; return it."""
    if pairing not in ("interleaved", "half"):
        raise argument_error(
            "pairing", "be 'interleaved' or 'half'", repr(pairing)
        )
    return pairing


def _rotary_dim(head_dim: int, rotary_dim: int | None) -> int:
    """How many numbers of a head are turned, once that is checked."""
    check_sizes(head_dim=head_dim)
    if rotary_dim is None:
        check_even(head_dim=head_dim)
        return head_dim
    check_even(rotary_dim=rotary_dim)
    if rotary_dim > head_dim:
        raise ValueError(
            f"rotary_dim={rotary_dim} must be at most head_dim={head_dim}"
        )
    return rotary_dim


def _stretched(stretch: object, old: Tensor) -> tuple[Tensor, float]:
    """What a rule makes of the frequencies, once that is checked."""
    if not callable(stretch):
        raise argument_error(
            "stretch", "be a function", type_name(stretch), TypeError
        )
    made = stretch(old)
    fits = isinstance(made, tuple) and len(made) == 2
    if not fits or not isinstance(made[0], Tensor):
        rule = "return new frequencies and a factor"
        raise argument_error("stretch", rule, type_name(made), TypeError)
    if made[0].shape != old.shape or not made[0].is_floating_point():
        rule = f"return frequencies {tuple(old.shape)}"
        raise argument_error(
            "stretch", rule, f"{made[0].dtype} {tuple(made[0].shape)}"
        )
    return made[0], check_number("stretch's factor", made[1])


def _spread(frequencies: Tensor) -> Tensor:
    """Numbers from 0 to 1, one for each pair."""
    n = len(frequencies)
    if n < 2:
        raise argument_error(
            "frequencies", "be two or more to be stretched so", n
        )
    device = frequencies.device
    index = torch.arange(n, dtype=frequencies.dtype, device=device)
    return index / (n - 1)


def _fits(shape: torch.Size, full: torch.Size) -> bool:
    """Whether a shape broadcasts to a full one."""
    tail = full[len(full) - len(shape) :]
    return len(shape) <= len(full) and all(
        m in (1, n) for m, n in zip(shape, tail, strict=True)
    )
