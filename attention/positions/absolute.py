"""Absolute positions: a vector for each position, added to the token's.

    code[p, 2i]     = sin(p w_i)
    code[p, 2i + 1] = cos(p w_i),    w_i = base^(-2i / d_model)

or a learned table with one row for each position.

Sources: Vaswani et al., "Attention is all you need" (2017), section 3.5; for a
table, Gehring et al., "Convolutional sequence to sequence learning" (2017),
section 3.1.
"""

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from attention.masking import Offset, positions
from attention.validation import (
    argument_error,
    check_even,
    check_number,
    check_sequence,
    check_sizes,
    check_start,
    type_name,
)


# --8<-- [start:sinusoidal]
def sinusoidal(
    positions: Num[Tensor, "*n"], d_model: int, *, base: float | int = 10000.0
) -> Float[Tensor, "*n d_model"]:
    """Sinusoidal position embedding: sines and cosines of d_model / 2 angles.

    Args:
        positions: real numbers, of any shape.
        d_model: size of an embedding; even.
        base: the frequencies are 1, base^(-2 / d_model), base^(-4 / d_model)
            ... radians per position.

    Returns:
        Embeddings (*n, d_model): at 2i the sine of angle i, at 2i + 1 its
        cosine. float64 where positions are, else float32; the angles are
        computed in float64.

    Raises:
        TypeError, ValueError: positions is not a tensor of real numbers,
            d_model is odd, or base is not above 0.

    Source:
        Vaswani et al. (2017), section 3.5; our p is their pos.

    Example:
        >>> import torch
        >>> from attention import sinusoidal
        >>> sinusoidal(torch.arange(3), d_model=4, base=100)
        tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
                [ 0.8415,  0.5403,  0.0998,  0.9950],
                [ 0.9093, -0.4161,  0.1987,  0.9801]])
    """
    is_tensor = isinstance(positions, Tensor)
    if (
        not is_tensor
        or positions.is_complex()
        or positions.dtype == torch.bool
    ):
        rule = "be a tensor of real numbers"
        raise argument_error(
            "positions", rule, type_name(positions), TypeError
        )
    inv_freq = frequencies("d_model", d_model, base).to(positions.device)
    angles = positions.double()[..., None] * inv_freq  # (*n, d_model / 2)
    codes = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return codes if positions.dtype == torch.float64 else codes.float()


# --8<-- [end:sinusoidal]


def frequencies(name: str, size: int, base: float | int) -> Tensor:
    """Radians per position of size / 2 angles, base^(-2i / size), float64."""
    check_even(**{name: size})
    pairs = torch.arange(0, size, 2, dtype=torch.float64, device="cpu")
    inv_freq: Tensor = check_number("base", base) ** -(pairs / size)
    return inv_freq


# --8<-- [start:LearnedPositions]
class LearnedPositions(nn.Module):
    """Learned position embedding, added to the tokens.

    Args:
        n_positions: rows of the table: the longest sequence.
        d_model: size of a token's vector.

    Raises:
        TypeError, ValueError: a size is not an integer, or is below 1; in
            forward, x is not (L, d_model) or (B, L, d_model) of the table's
            dtype, or a position is not a row of the table.

    Example:
        >>> import torch
        >>> from attention import LearnedPositions
        >>> embedding = LearnedPositions(n_positions=8, d_model=3)
        >>> x = torch.zeros(2, 3)
        >>> torch.equal(embedding(x, offset=5), embedding.table.weight[5:7])
        True
    """

    def __init__(self, n_positions: int, d_model: int) -> None:
        super().__init__()
        check_sizes(n_positions=n_positions, d_model=d_model)
        self.table = nn.Embedding(n_positions, d_model)

    def forward(
        self, x: Float[Tensor, "*batch L d_model"], *, offset: Offset = 0
    ) -> Float[Tensor, "*batch L d_model"]:
        """Add to each token the row of its position.

        Args:
            x: tokens (L, d_model) or (B, L, d_model).
            offset: position of the first token, an int or, for a batch,
                integers (B,).

        Returns:
            The sums, of the shape of x.
        """
        check_sequence("x", x, self.table.weight, "d_model")
        start = check_start("offset", offset, x)
        rows = positions(start, x.shape[-2], x.device)
        # Compiled code cannot read values; there torch.nn.Embedding raises.
        if not torch.compiler.is_compiling():
            last = self.table.num_embeddings - 1
            outside = rows[(rows < 0) | (rows > last)]
            if outside.numel():
                rule = f"be from 0 to {last}, the table's rows"
                raise argument_error("positions", rule, int(outside[0]))
        out: Tensor = x + self.table(rows)
        return out


# --8<-- [end:LearnedPositions]
