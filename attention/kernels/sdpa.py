"""PyTorch's fused kernel, F.scaled_dot_product_attention, in our signature.

Source: torch.nn.functional.scaled_dot_product_attention, whose is_causal is
aligned at the first query and the first key.
"""

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad, scaled_dot_product_attention

from attention.masking import Mask, Offset, as_tensor, blind, unseen
from attention.masks import causal


# --8<-- [start:sdpa]
def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None,
    score_mod: None,
    query_offset: Offset,
    key_offset: Offset,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, None]:
    """What `reference` computes, fused: no scores are kept, but for a mask.

    `causal` itself costs no mask where the first query and the first key stand
    at one position, or where the first query sees all keys; every other mask
    is written out, (B, H, L, S).
    """
    L, S, Dv = query.shape[-2], key.shape[-2], value.shape[-1]
    is_causal = False
    mod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    at = (query_offset, key_offset)
    if mod is causal and not any(isinstance(x, Tensor) for x in at):
        ahead = at[0] - at[1]  # query i sees the keys up to i + ahead
        if ahead == 0:
            mask, is_causal = None, True
            key, value = key[:, :, :L], value[:, :, :L]  # the rest is unseen
        elif ahead >= S - 1:
            mask = None
    if mask is not None:
        mask = as_tensor(mask, query, key, at)
        hidden = unseen(mask, key.shape[1])
        query = query.masked_fill(blind(mask), 0)
        key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
    # The fused path wants D = Dv; zeros change neither scores nor output.
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
        scale=scale,
        # Where it is traced it wants a bool, which bool() does not give.
        enable_gqa=True if query.shape[1] != key.shape[1] else False,  # noqa: SIM210
    )
    return out if out.shape[-1] == Dv else out[..., :Dv], None


# --8<-- [end:sdpa]
