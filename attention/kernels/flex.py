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

from attention.masking import AttentionSpec, clear_keys, clear_queries
from attention.masks import shift
from attention.softmax import upcast


# --8<-- [start:flex]
def flex(
    query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
) -> tuple[Tensor, Tensor | None]:
    """What `reference` computes, by FlexAttention.

    A BlockMask made for these sizes is used as it is, at offsets 0: compiled,
    its blocks are believed, so it must have been made from its own mod, for as
    many rows and heads as the mod looks at. From any other mask one is made,
    at each call.
    """
    if 0 in (*query.shape, key.shape[-2]):  # FlexAttention takes no less
        lse = upcast(query.new_full(query.shape[:3], -math.inf))
        return query.new_zeros(*query.shape[:3], value.shape[-1]), lse
    block_mask = None
    mask = spec.mask_tensor(query, key)
    if mask is not None:
        query = clear_queries(mask, query)
        key, value = clear_keys(mask, key), clear_keys(mask, value)
        block_mask = as_block_mask(query, key, spec)
    score_mod = spec.score_mod
    if score_mod is not None:
        score_mod = shift(score_mod, spec.query_offset, spec.key_offset)
    if not torch.is_grad_enabled():  # it looks at the tensors, not the mode
        query, key, value = query.detach(), key.detach(), value.detach()
    out, aux = flex_attention(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=spec.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=spec.return_lse),
    )
    if not torch.compiler.is_compiling():  # hooks cannot be traced
        for x in (out, aux.lse):
            if x is not None and x.requires_grad:
                x.register_hook(_only_once)
    return out, aux.lse


# --8<-- [end:flex]


def _only_once(grad: Tensor) -> None:
    """Raise for second derivatives, which FlexAttention would drop."""
    if torch.is_grad_enabled():  # create_graph=True
        raise NotImplementedError(
            "kernel='flex' cannot do second derivatives; reference can"
        )


def as_block_mask(
    query: Tensor, key: Tensor, spec: AttentionSpec
) -> BlockMask:
    """The mask as a BlockMask, in which positions count from 0."""
    (B, H, L, _), S, mask = query.shape, key.shape[-2], spec.mask
    starts = spec.query_offset, spec.key_offset
    if spec.block_mask is not None:
        *rows, n_queries, n_keys = spec.block_mask.shape
        fits = (n_queries, n_keys) == (L, S) and rows in (
            [B, H],
            [B, 1],
            [1, H],
            [1, 1],
        )
        if fits and all(type(x) is int and x == 0 for x in starts):
            return spec.block_mask
    if isinstance(mask, Tensor):
        full = mask.expand(B, H, L, S)

        def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return full[b, h, q_idx, kv_idx]
    else:
        assert mask is not None
        mod = shift(mask, *starts)
    return create_block_mask(mod, B, H, L, S, device=query.device)
