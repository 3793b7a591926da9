"""One head with weights that learn: three projections, then attention.

    query = x W_query^T,  key = x W_key^T,  value = x W_value^T
    out = attention(query, key, value)

The weights are those of nn.Linear, (head_dim, d_model), and multiply from the
right, transposed.

Source: Vaswani et al., "Attention is all you need" (2017), section 3.2.2, with
one head and no output projection.
"""

from jaxtyping import Float
from torch import Tensor, nn

from attention.functional import attention
from attention.masking import MaskMod
from attention.masks import causal
from attention.validation import check_sequence, check_sizes


# --8<-- [start:SelfAttention]
class SelfAttention(nn.Module):
    """One sequence attends to itself, with a single head.

    Args:
        d_model: numbers a token comes with.
        head_dim: numbers of a query, of a key and of a value.
        bias: add a learned vector to each of the three.

    Raises:
        TypeError, ValueError: a size is not an integer, or is below 1; in
            forward, x is not a floating-point tensor of the layer's dtype, or
            is not (L, d_model) or (B, L, d_model).

    Example:
        >>> import torch
        >>> from attention import SelfAttention
        >>> layer = SelfAttention(d_model=3, head_dim=2)
        >>> layer(torch.ones(6, 3)).shape
        torch.Size([6, 2])
    """

    mask: MaskMod | None = None

    def __init__(
        self, d_model: int, head_dim: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, head_dim=head_dim)
        self.query = nn.Linear(d_model, head_dim, bias=bias)
        self.key = nn.Linear(d_model, head_dim, bias=bias)
        self.value = nn.Linear(d_model, head_dim, bias=bias)

    def forward(
        self, x: Float[Tensor, "*batch L d_model"]
    ) -> Float[Tensor, "*batch L head_dim"]:
        """Context vectors (L, head_dim) or (B, L, head_dim) of the tokens."""
        check_sequence("x", x, self.query.weight, "d_model")
        query, key, value = self.query(x), self.key(x), self.value(x)
        if x.dim() == 2:
            return attention(query, key, value, mask=self.mask)
        heads = [t[:, None] for t in (query, key, value)]  # (B, 1, L, D)
        return attention(*heads, mask=self.mask)[:, 0]  # (B, L, D)


# --8<-- [end:SelfAttention]


# --8<-- [start:CausalSelfAttention]
class CausalSelfAttention(SelfAttention):
    """As `SelfAttention`, and no token sees a later one.

    The mask is a function of positions, so that nothing of a length is stored.

    Example:
        >>> import torch
        >>> from attention import CausalSelfAttention
        >>> layer = CausalSelfAttention(d_model=3, head_dim=2)
        >>> x = torch.ones(6, 3)
        >>> torch.allclose(layer(x)[0], layer.value(x[0]))
        True
    """

    mask = staticmethod(causal)


# --8<-- [end:CausalSelfAttention]
