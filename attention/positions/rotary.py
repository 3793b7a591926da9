"""Rotary position embedding (RoPE): scores depend on relative positions.

    q_p = R(p) query,  k_r = R(r) key,   q_p . k_r = query . R(r - p) key

R(p) rotates pair i of the components by p w_i radians, with the frequencies
w_i = base^(-2i / R), where R components of a head are rotated.

Source: Su et al., "RoFormer" (2021), sections 3.2 and 3.4.
"""

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
RopeScaling: TypeAlias = Callable[[Tensor], tuple[Tensor, float]]


def rotate(
    x: Float[Tensor, "*batch L D"],
    cos: Float[Tensor, "..."],
    sin: Float[Tensor, "..."],
    *,
    pairing: Pairing,
) -> Float[Tensor, "*batch L D"]:
    """Rotate pairs: (a, b) becomes (a cos - b sin, a sin + b cos).

    Args:
        x: vectors (..., L, D).
        cos: cosines, broadcast to (..., L, R / 2), of any floating dtype. The
            first R <= D components are rotated, the others stay.
        sin: sines, of the shape of cos.
        pairing: which components form a pair. "interleaved": 0 and 1, 2 and 3
            ...; "half": i and i + R / 2.

    Returns:
        The rotated vectors in the shape and dtype of x, computed in float32 or
        wider.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: the shapes do not fit, or the pairing is unknown.

    Source:
        Su et al. (2021), equation (34), interleaved. GPT-NeoX and Hugging
        Face's Llama pair halves.

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
    head = upcast(x[..., :R])
    if pairing == "interleaved":
        a, b = head.unflatten(-1, (-1, 2)).unbind(-1)  # (..., L, R / 2)
    else:
        a, b = head.chunk(2, dim=-1)  # (..., L, R / 2)
    a, b = a * cos - b * sin, a * sin + b * cos
    if pairing == "interleaved":
        rotated = torch.stack([a, b], dim=-1).flatten(-2)  # (..., L, R)
    else:
        rotated = torch.cat([a, b], dim=-1)  # (..., L, R)
    return torch.cat([rotated.to(x.dtype), x[..., R:]], dim=-1)


def pairing_permutation(
    head_dim: int, rotary_dim: int | None = None
) -> Int[Tensor, "head_dim"]:
    """Permutation of a head's components from interleaved pairs to halves.

    With p this permutation, rotate(x[..., p], pairing="half") is
    rotate(x, pairing="interleaved")[..., p]. To convert a model, permute the
    rows of the query and key weights, head by head. p.argsort() is the
    inverse.

    Args:
        head_dim: components of a head.
        rotary_dim: the first rotary_dim are rotated; even. None is all.

    Returns:
        p: 0, 2, 4 ... then 1, 3, 5 ...; components not rotated stay.

    Raises:
        TypeError, ValueError: a size is not an integer, or is below 1;
            rotary_dim is odd, or above head_dim.

    Example:
        >>> from attention import pairing_permutation
        >>> pairing_permutation(8, rotary_dim=6)
        tensor([0, 2, 4, 1, 3, 5, 6, 7])
    """
    R = _rotary_dim(head_dim, rotary_dim)
    pairs = torch.arange(R).unflatten(0, (-1, 2))  # (R / 2, 2)
    return torch.cat([pairs.T.flatten(), torch.arange(R, head_dim)])


# --8<-- [start:RotaryEmbedding]
class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by angles proportional to their positions.

    The state_dict is empty, and half() leaves the frequencies in float64.

    Args:
        head_dim: components of a head.
        pairing: which components form a pair, as in `rotate`. There is no
            default: weights trained with one pairing are wrong with the other.
        base: pair i has frequency base^(-2i / rotary_dim).
        rotary_dim: the first rotary_dim components are rotated; even. None is
            all, less is partial rotary.
        scaling: a RoPE scaling rule, which takes the frequencies
            (rotary_dim / 2,) and returns new ones and an attention factor,
            such as rope_scaling_linear(2).

    Attributes:
        frequencies: radians per position of each pair, float64.
        attention_factor: multiplies every cosine and sine.

    Raises:
        TypeError, ValueError: a size is not an integer or out of range, the
            pairing is unknown, or base is not above 0; in forward, x is not
            (L, D) or (B, H, L, D), or offset does not fit.

    Source:
        Su et al. (2021), section 3.2.2; partial rotation, Wang and
        Komatsuzaki, "GPT-J-6B" (2021), and GPT-NeoX.

    Example:
        >>> import torch
        >>> from attention import RotaryEmbedding
        >>> rotary = RotaryEmbedding(4, pairing="interleaved")
        >>> q, k = torch.ones(1, 4), torch.ones(1, 4)
        >>> score = rotary(q, offset=1) @ rotary(k, offset=3).T
        >>> later = rotary(q, offset=101) @ rotary(k, offset=103).T
        >>> torch.allclose(score, later, atol=1e-5)
        True
    """

    def __init__(
        self,
        head_dim: int,
        *,
        pairing: Pairing,
        base: float | int = 10000.0,
        rotary_dim: int | None = None,
        scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        rotary_dim = _rotary_dim(head_dim, rotary_dim)
        self.head_dim, self.pairing = head_dim, check_pairing(pairing)
        self.frequencies = frequencies("rotary_dim", rotary_dim, base)
        self.attention_factor = 1.0
        if scaling is not None:
            scaled = _scaled(scaling, self.frequencies)
            self.frequencies, self.attention_factor = scaled

    def forward(
        self, x: Float[Tensor, "*batch L D"], *, offset: Offset = 0
    ) -> Float[Tensor, "*batch L D"]:
        """Rotate each vector by its position.

        Args:
            x: queries or keys (L, D) or (B, H, L, D).
            offset: position of the first one, an int or, for a batch,
                integers (B,).

        Returns:
            The rotated vectors, in the shape and dtype of x.
        """
        check_floating("x", x)
        D = self.head_dim
        if x.dim() not in (2, 4) or x.shape[-1] != D:
            rule = f"be (L, {D}) or (B, H, L, {D}), where head_dim={D}"
            raise argument_error("x", rule, tuple(x.shape))
        start = check_start("offset", offset, x)
        index = positions(start, x.shape[-2], x.device)  # (L,) or (B, L)
        inv_freq = self.frequencies.to(x.device)
        angles = index.double()[..., None] * inv_freq  # (L or B, L, R / 2)
        if angles.dim() == 3:
            angles = angles[:, None]  # (B, 1, L, R / 2)
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (
            (self.attention_factor * f(angles)).to(dtype)
            for f in (torch.cos, torch.sin)
        )
        return rotate(x, cos, sin, pairing=self.pairing)


# --8<-- [end:RotaryEmbedding]


def check_pairing(pairing: Pairing) -> Pairing:
    """Raise unless the pairing is a known one; return it."""
    if pairing not in ("interleaved", "half"):
        raise argument_error(
            "pairing", "be 'interleaved' or 'half'", repr(pairing)
        )
    return pairing


def _rotary_dim(head_dim: int, rotary_dim: int | None) -> int:
    """How many components of a head are rotated, checked."""
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


def _scaled(scaling: object, old: Tensor) -> tuple[Tensor, float]:
    """The result of a RoPE scaling rule, checked."""
    if not callable(scaling):
        got = type_name(scaling)
        raise argument_error("scaling", "be a function", got, TypeError)
    made = scaling(old)
    fits = isinstance(made, tuple) and len(made) == 2
    if not fits or not isinstance(made[0], Tensor):
        rule = "return new frequencies and a factor"
        raise argument_error("scaling", rule, type_name(made), TypeError)
    new, factor = made
    if new.shape != old.shape or not new.is_floating_point():
        rule = f"return frequencies {tuple(old.shape)}"
        got = f"{new.dtype} {tuple(new.shape)}"
        raise argument_error("scaling", rule, got)
    return new, check_number("scaling's factor", factor)


def _fits(shape: torch.Size, full: torch.Size) -> bool:
    """Whether a shape broadcasts to a full one."""
    tail = full[len(full) - len(shape) :]
    return len(shape) <= len(full) and all(
        m in (1, n) for m, n in zip(shape, tail, strict=True)
    )
