"""Additive attention: a small network scores each pair of query and key.

    scores[i, j] = v . tanh(W_query query[i] + W_key key[j])
    weights      = softmax(scores), masked as everywhere
    out          = weights value

Source: Bahdanau, Cho and Bengio, "Neural machine translation by jointly
learning to align and translate" (2015), section 3.1 and appendix A.1.2: our
query is their s_{i-1}, our key and value their h_j, our W_query, W_key and v
their W_a, U_a and v_a.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention.masking import (
    Mask,
    Offset,
    attention_spec,
    clear_keys,
    clear_queries,
)
from attention.softmax import softmax, upcast
from attention.validation import (
    argument_error,
    check_floating,
    check_sequence,
    check_sizes,
)


# --8<-- [start:AdditiveAttention]
class AdditiveAttention(nn.Module):
    """Attention whose score is learned: query and key need not be alike.

    It holds d_hidden numbers for each pair, (B, L, S, d_hidden), where a dot
    product holds one.

    Args:
        d_query: numbers of a query.
        d_key: numbers of a key.
        d_hidden: numbers of the layer between them and the score.

    Raises:
        TypeError, ValueError: a size is not an integer, or is below 1; in
            forward and weights, tensors do not fit together, or as `attention`
            about mask and offsets.

    Example:
        >>> import torch
        >>> from attention import AdditiveAttention
        >>> layer = AdditiveAttention(d_query=3, d_key=5, d_hidden=7)
        >>> keys, values = torch.ones(6, 5), torch.ones(6, 2)
        >>> layer(torch.ones(4, 3), keys, values).shape
        torch.Size([4, 2])
    """

    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        check_sizes(d_query=d_query, d_key=d_key, d_hidden=d_hidden)
        self.query = nn.Linear(d_query, d_hidden, bias=False)
        self.key = nn.Linear(d_key, d_hidden, bias=False)
        self.score = nn.Linear(d_hidden, 1, bias=False)

    def forward(
        self,
        query: Float[Tensor, "*batch L d_query"],
        key: Float[Tensor, "*batch S d_key"],
        value: Float[Tensor, "*batch S Dv"],
        *,
        mask: Mask | None = None,
        query_offset: Offset | None = None,
        key_offset: Offset | None = None,
    ) -> Float[Tensor, "*batch L Dv"]:
        """The values, averaged with `weights`.

        Args:
            query: (L, d_query) or (B, L, d_query).
            key: (S, d_key) or (B, S, d_key).
            value: (S, Dv) or (B, S, Dv), of any width Dv.
            mask: as in `attention`, where H is 1.
            query_offset: as in `attention`.
            key_offset: as in `attention`.

        Returns:
            (L, Dv) or (B, L, Dv); zeros for a query that may see nothing.
        """
        offsets = {"query_offset": query_offset, "key_offset": key_offset}
        weights = self.weights(query, key, mask=mask, **offsets)
        check_floating("value", value)
        if value.shape[:-1] != key.shape[:-1]:
            rule = f"have one row for each row of key {tuple(key.shape)}"
            raise argument_error("value", rule, tuple(value.shape))
        cast = torch.is_autocast_enabled(value.device.type)
        if value.dtype != query.dtype and not cast:
            rule = f"share the dtype of query, {query.dtype}"
            raise argument_error("value", rule, value.dtype)
        hidden = ~weights.any(-2)[..., None]  # (B, S, 1); 0 * NaN is NaN
        with torch.autocast(value.device.type, enabled=False):
            out = weights @ upcast(value.masked_fill(hidden, 0))
        return out.to(value.dtype)  # (B, L, Dv)

    def weights(
        self,
        query: Float[Tensor, "*batch L d_query"],
        key: Float[Tensor, "*batch S d_key"],
        *,
        mask: Mask | None = None,
        query_offset: Offset | None = None,
        key_offset: Offset | None = None,
    ) -> Float[Tensor, "*batch L S"]:
        """Share of each key, (L, S) or (B, L, S), in float32 or wider."""
        check_sequence("query", query, self.query.weight, "d_query")
        check_sequence("key", key, self.key.weight, "d_key")
        if query.shape[:-2] != key.shape[:-2]:
            got = f"{tuple(query.shape)} and {tuple(key.shape)}"
            raise argument_error(
                "query and key", "have the same batch size B", got
            )
        # (B, 1, L, d_query) and (B, 1, S, d_key): one head, as masks want it
        q, k = (
            x[:, None] if x.dim() == 3 else x[None, None] for x in (query, key)
        )
        spec = attention_spec(
            query if query.dim() == 2 else q,
            key if key.dim() == 2 else k,
            mask,
            None,
            query_offset,
            key_offset,
            None,
        )
        seen = spec.mask_tensor(q, k)  # (B, 1, L, S)
        if seen is not None:
            q, k = clear_queries(seen, q), clear_keys(seen, k)
        pairs = self.query(q)[..., :, None, :] + self.key(k)[..., None, :, :]
        scores = self.score(torch.tanh(pairs))[..., 0]  # (B, 1, L, S)
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        weights = softmax(upcast(scores))
        return weights.reshape(*query.shape[:-1], key.shape[-2])


# --8<-- [end:AdditiveAttention]
