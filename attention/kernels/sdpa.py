"""PyTorch's fused kernel, F.scaled_dot_product_attention, in our signature.

Source: torch.nn.functional.scaled_dot_product_attention, whose is_causal is
aligned at the first query and the first key.
"""

from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attention.masking import AttentionSpec, clear_keys, clear_queries
from attention.masks import causal


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
) -> tuple[Tensor, None]:
    """What `reference` computes, fused: no scores are kept, but for a mask.

    `causal` itself costs no mask where the first query and the first key stand
    at one position, or where the first query sees all keys; every other mask
    becomes a tensor, (B, H, L, S), expanded where that costs nothing.
    """
    L, S, Dv = query.shape[-2], key.shape[-2], value.shape[-1]
    needs_mask, is_causal = spec.mask is not None, False
    starts = spec.query_offset, spec.key_offset
    if spec.mask is causal and not any(isinstance(x, Tensor) for x in starts):
        diagonal = starts[0] - starts[1]  # query i sees keys to i + diagonal
        if diagonal == 0:
            needs_mask, is_causal = False, True
            key, value = key[:, :, :L], value[:, :, :L]  # the rest is hidden
        elif diagonal >= S - 1:
            needs_mask = False
    mask = spec.mask_tensor(query, key) if needs_mask else None
    if mask is not None:
        query = clear_queries(mask, query)
        key, value = clear_keys(mask, key), clear_keys(mask, value)
    # The fused path needs D = Dv; zeros change neither scores nor output.
    if query.shape[-1] != Dv:
        size = max(query.shape[-1], Dv)
        query, key, value = (
            pad(x, (0, size - x.shape[-1])) for x in (query, key, value)
        )
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=spec.scale,
        # Where it is traced it wants a bool, which bool() does not give.
        enable_gqa=True if query.shape[1] != key.shape[1] else False,  # noqa: SIM210
    )
    return out if out.shape[-1] == Dv else out[..., :Dv], None
