"""PyTorch's FlexAttention in our signature: any mod, fused when compiled.

As it stands it writes all scores out, of which PyTorch warns, and is good for
trying a mod; inside torch.compile it becomes one kernel that skips the blocks
which a mask rules out.

Source: Dong et al., "Flex Attention" (2024), and
torch.nn.attention.flex_attention.
"""

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)

from attention.masking import (
    Mask,
    Offset,
    ScoreMod,
    as_tensor,
    blind,
    unseen,
)
from attention.masks import shift
from attention.softmax import widen


# --8<-- [start:flex]
def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None,
    score_mod: ScoreMod | None,
    query_offset: Offset,
    key_offset: Offset,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `reference` computes, by FlexAttention.

    A BlockMask made for these sizes is used as it is, at offsets 0: compiled,
    its blocks are believed, so it must have been made from its own mod, for as
    many rows and heads as the mod looks at. From any other mask one is made,
    at each call.
    """
    if 0 in (*query.shape, key.shape[-2]):  # it takes no less
        lse = widen(query.new_full(query.shape[:3], -math.inf))
        return query.new_zeros(*query.shape[:3], value.shape[-1]), lse
    offsets = (query_offset, key_offset)
    block_mask = None
    if mask is not None:
        allowed = as_tensor(mask, query, key, offsets)
        hidden = unseen(allowed, key.shape[1])
        query = query.masked_fill(blind(allowed), 0)
        key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
        block_mask = _block_mask(mask, query, key, offsets)
    if score_mod is not None:
        score_mod = shift(score_mod, *offsets)
    if not torch.is_grad_enabled():  # it asks the tensors, not the mode
        query, key, value = query.detach(), key.detach(), value.detach()
    out, aux = flex_attention(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=return_lse),
    )
    if not torch.compiler.is_compiling():  # it traces no hook
        for x in (out, aux.lse):
            if x is not None and x.requires_grad:
                x.register_hook(_only_once)
    return out, aux.lse


# --8<-- [end:flex]


def _only_once(grad: Tensor) -> None:
    """Raise where the gradient shall have a gradient: it would be dropped."""
    if torch.is_grad_enabled():  # as create_graph=True has it
        raise NotImplementedError(
            "kernel='flex' cannot do second derivatives; reference can"
        )


def _block_mask(
    mask: Mask, query: Tensor, key: Tensor, offsets: tuple[Offset, Offset]
) -> BlockMask:
    """The mask as FlexAttention takes it: in blocks, counted from 0."""
    B, H, L, _ = query.shape
    S = key.shape[-2]
    if isinstance(mask, Tensor):
        full = mask.expand(B, H, L, S)

        def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return full[b, h, q_idx, kv_idx]

        return create_block_mask(mod, B, H, L, S, device=query.device)
    if isinstance(mask, BlockMask):
        *rows, n_queries, n_keys = mask.shape
        fits = (n_queries, n_keys) == (L, S) and rows in (
            [B, H],
            [B, 1],
            [1, H],
            [1, 1],
        )
        if fits and all(type(x) is int and x == 0 for x in offsets):
            return mask
        mask = mask.mask_mod
    moved = shift(mask, *offsets)
    return create_block_mask(moved, B, H, L, S, device=query.device)
