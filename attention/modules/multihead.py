"""Many heads: several attentions side by side, each in its own subspace.

    heads = query W_query^T, ... split into (B, H, L, D), D = d_model / H
    out   = concat_h(attention(head h)) W_out^T

Dropout on the weights is a matter of this module, and of training; the
formula in `attention.functional` has none.

Sources: Vaswani et al., "Attention is all you need" (2017), section 3.2.2: our
H is their h. Heads that share keys and values: Ainslie et al., "GQA" (2023),
section 2.2; with one key-value head, Shazeer, "Fast Transformer Decoding"
(2019).
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from attention.functional import attention, attention_weights, repeat_kv
from attention.masking import Mask, Offset, ScoreMod, check_offset, clear_keys
from attention.positions.rotary import RotaryEmbedding
from attention.validation import (
    argument_error,
    check_divides,
    check_sequence,
    check_tensors,
    type_name,
)


# --8<-- [start:MultiHeadAttention]
class MultiHeadAttention(nn.Module):
    """Attention in n_heads subspaces at once, mixed by a last projection.

    Query head h has rows h D to (h + 1) D of query.weight, and columns h D to
    (h + 1) D of out.weight, where D = d_model / n_heads.

    Args:
        d_model: numbers a token comes with and leaves with, of all heads
            together.
        n_heads: heads of the queries; must divide d_model.
        n_kv_heads: heads of keys and values; must divide n_heads. None means
            n_heads; fewer share each among n_heads / n_kv_heads query heads.
        bias: add a learned vector after each of the four projections.
        dropout: in training, the probability with which each weight is set to
            0; the others are divided by 1 - dropout. From 0 to below 1.
        rotary: turns queries and keys by their positions, head by head; made
            with head_dim = d_model / n_heads. None turns nothing.

    Raises:
        TypeError, ValueError: a size is not an integer, is below 1 or is not
            divisible as it must be, dropout is out of range, or rotary is made
            for another head_dim; in forward, what `attention` raises, and
            unless query and key are both (L, d_model), (S, d_model) or
            (B, L, d_model), (B, S, d_model).

    Example:
        >>> import torch
        >>> from attention import MultiHeadAttention, causal
        >>> layer = MultiHeadAttention(d_model=8, n_heads=2)
        >>> x = torch.ones(1, 6, 8)
        >>> layer(x, mask=causal).shape
        torch.Size([1, 6, 8])
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        bias: bool = False,
        dropout: float | int = 0.0,
        rotary: RotaryEmbedding | None = None,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        check_divides(d_model=d_model, n_heads=n_heads)
        check_divides(n_heads=n_heads, n_kv_heads=n_kv_heads)
        if isinstance(dropout, bool) or not isinstance(dropout, (float, int)):
            raise argument_error(
                "dropout", "be a number", repr(dropout), TypeError
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be from 0 to below 1")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.head_dim = d_model // n_heads
        self.dropout = dropout
        self.rotary = rotary
        if rotary is not None:
            _check_rotary(rotary, self.head_dim)
        d_kv = n_kv_heads * self.head_dim
        self.query = nn.Linear(d_model, d_model, bias=bias)
        self.key = nn.Linear(d_model, d_kv, bias=bias)
        self.value = nn.Linear(d_model, d_kv, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        query: Float[Tensor, "*batch L d_model"],
        key: Float[Tensor, "*batch S d_model"] | None = None,
        value: Float[Tensor, "*batch S d_model"] | None = None,
        *,
        mask: Mask | None = None,
        score_mod: ScoreMod | None = None,
        query_offset: Offset | None = None,
        key_offset: Offset | None = None,
    ) -> Float[Tensor, "*batch L d_model"]:
        """What each token of query takes from those of key and value.

        Args:
            query: (L, d_model) or (B, L, d_model).
            key: (S, d_model) or (B, S, d_model); None is query.
            value: of the shape of key; None is key.
            mask: as in `attention`, over (B, H, L, S). A token that it hides
                from every query must still be finite in training: the
                gradient of key.weight multiplies it by zero.
            score_mod: as in `attention`.
            query_offset: as in `attention`; rotary has a use for it too, and
                needs both offsets where L and S differ.
            key_offset: as in `attention`.

        Returns:
            (L, d_model) or (B, L, d_model).
        """
        key = query if key is None else key
        value = key if value is None else value
        tokens = {"query": query, "key": key, "value": value}
        for name, x in tokens.items():
            check_sequence(name, x, self.query.weight, "d_model")
        if len({x.dim() for x in tokens.values()}) > 1:
            got = {name: tuple(x.shape) for name, x in tokens.items()}
            raise argument_error(
                "query, key, value", "all have a batch, or none", got
            )
        q = self._split(self.query(query))  # (B, H, L, D)
        k, v = self._split(self.key(key)), self._split(self.value(value))
        if self.rotary is not None:
            query_offset = check_offset(
                "query_offset", query_offset, q, k, True
            )
            key_offset = check_offset("key_offset", key_offset, q, k, True)
            q = self.rotary(q, offset=query_offset)
            k = self.rotary(k, offset=key_offset)
        options: dict[str, Any] = {
            "mask": mask,
            "score_mod": score_mod,
            "query_offset": query_offset,
            "key_offset": key_offset,
        }
        if self.training and self.dropout:
            check_tensors(query=q, key=k, value=v)
            weights = attention_weights(q, k, **options)  # (B, H, L, S)
            v = clear_keys(weights != 0, repeat_kv(v, self.n_heads))
            heads: Tensor = dropout(weights, self.dropout).to(v.dtype) @ v
        else:
            heads = attention(q, k, v, **options)  # (B, H, L, D)
        merged = heads.transpose(1, 2).flatten(2)  # (B, L, d_model)
        out: Tensor = self.out(merged if query.dim() == 3 else merged[0])
        return out

    def _split(self, x: Tensor) -> Tensor:
        """Cut each token's numbers into heads, and put the heads first."""
        x = x if x.dim() == 3 else x[None]  # (B, L, H * D)
        split: Tensor = x.unflatten(-1, (-1, self.head_dim))  # (B, L, H, D)
        return split.transpose(1, 2)  # (B, H, L, D)


# --8<-- [end:MultiHeadAttention]


def _check_rotary(rotary: object, head_dim: int) -> None:
    """Raise unless rotary turns heads of this size."""
    rule = f"be a RotaryEmbedding of head_dim={head_dim}"
    if not isinstance(rotary, RotaryEmbedding):
        raise argument_error("rotary", rule, type_name(rotary), TypeError)
    if rotary.head_dim != head_dim:
        raise argument_error("rotary", rule, rotary.head_dim)
