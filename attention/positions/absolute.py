"""A place written as a vector, to be added to a token's.

    code[p, 2i]     = sin(p w_i)
    code[p, 2i + 1] = cos(p w_i),    w_i = base^(-2i / d_model)

or a table with one row for each place, which learns.

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
    """The sinusoidal code of each position: d_model / 2 clock hands.

    Args:
        positions: where the tokens stand; integers or not, of any shape.
        d_model: numbers in a code; even.
        base: the hands turn by 1, base^(-2 / d_model), base^(-4 / d_model) ...
            radians from one position to the next.

    Returns:
        Codes (*n, d_model): at 2i the sine of hand i, at 2i + 1 its cosine.
        float64 where positions are, else float32; the angles are computed in
        float64.

    Raises:
        TypeError, ValueError: positions is no tensor of real numbers, d_model
            is not even, or base not above 0.

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
    hands = frequencies("d_model", d_model, base).to(positions.device)
    angles = positions.double()[..., None] * hands  # (*n, d_model / 2)
    codes = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return codes if positions.dtype == torch.float64 else codes.float()


# --8<-- [end:sinusoidal]


def frequencies(name: str, size: int, base: float | int) -> Tensor:
    """Radians that each of size / 2 hands turns a position, in float64."""
    check_even(**{name: size})
    pairs = torch.arange(0, size, 2, dtype=torch.float64, device="cpu")
    speeds: Tensor = check_number("base", base) ** -(pairs / size)
    return speeds


# --8<-- [start:LearnedPositions]
class LearnedPositions(nn.Module):
    """A table with one vector for each position, added to the tokens.

    Args:
        n_positions: rows of the table: how far it knows the way.
        d_model: numbers a token comes with.

    Raises:
        TypeError, ValueError: a size is no integer, or below 1; in forward, x
            is not (L, d_model) or (B, L, d_model) of the table's dtype, or a
            token stands before the table's first row or past its last.

    Example:
        >>> import torch
        >>> from attention import LearnedPositions
        >>> places = LearnedPositions(n_positions=8, d_model=3)
        >>> x = torch.zeros(2, 3)
        >>> torch.equal(places(x, offset=5), places.table.weight[5:7])
        True
    """

    def __init__(self, n_positions: int, d_model: int) -> None:
        super().__init__()
        check_sizes(n_positions=n_positions, d_model=d_model)
        self.table = nn.Embedding(n_positions, d_model)

    def forward(
        self, x: Float[Tensor, "*batch L d_model"], *, offset: Offset = 0
    ) -> Float[Tensor, "*batch L d_model"]:
        """Each token, and the row of its position.

        Args:
            x: tokens (L, d_model) or (B, L, d_model).
            offset: the position of the first token, an int or, with a batch,
                integers (B,).

        Returns:
            The sums, of the shape of x.
        """
        check_sequence("x", x, self.table.weight, "d_model")
        start = check_start("offset", offset, x)
        rows = positions(start, x.shape[-2], x.device)
        # Compiled code cannot look; there torch.nn.Embedding raises.
        if not torch.compiler.is_compiling():
            last = self.table.num_embeddings - 1
            outside = rows[(rows < 0) | (rows > last)]
            if outside.numel():
                rule = f"be from 0 to {last}, the table's rows"
                raise argument_error("positions", rule, int(outside[0]))
        out: Tensor = x + self.table(rows)
        return out


# --8<-- [end:LearnedPositions]
