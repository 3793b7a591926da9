"""Masks and mods, and what a call of `attention` asks for.

A mask mod says of each pair of positions whether the query may attend to the
key; a score mod gives the pair a new score. Both have FlexAttention's
signatures, so that the same function runs there.

Source: Dong et al., "Flex Attention" (2024), section 3, and
torch.nn.attention.flex_attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Integer
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attention.validation import (
    argument_error,
    check_scale,
    check_start,
    type_name,
)

# (b, h, q_idx, kv_idx) -> may this query attend to this key?
MaskMod: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# (score, b, h, q_idx, kv_idx) -> score
ScoreMod: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor], Tensor
]
Mod = TypeVar("Mod", bound=Callable[..., Tensor])
Mask: TypeAlias = Bool[Tensor, "..."] | MaskMod | BlockMask
Offset: TypeAlias = int | Integer[Tensor, "B"]
# b (B,), h (H,), q_idx (L,) or (B, L), kv_idx (S,) or (B, S)
Indices: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class AttentionSpec:
    """What a call asks for beside query, key and value; kernels get this.

    Attributes:
        mask: a Boolean tensor with four dimensions, each 1 or that of
            (B, H, L, S); or a mask mod; None hides nothing.
        score_mod: called with scaled scores, before the mask.
        query_offset: position of the first query, an int or (B,).
        key_offset: position of the first key.
        scale: factor of the dot products.
        return_lse: whether the log-sum-exp is asked for.
        block_mask: the BlockMask whose mask_mod is `mask`, if there is one.
    """

    mask: Tensor | MaskMod | None = None
    score_mod: ScoreMod | None = None
    query_offset: Offset = 0
    key_offset: Offset = 0
    scale: float = 1.0
    return_lse: bool = False
    block_mask: BlockMask | None = None

    def indices(self, query: Tensor, key: Tensor) -> Indices:
        """Batch rows, heads and positions that mods are called with."""
        B, H, L, _ = query.shape
        return (
            torch.arange(B, device=query.device),
            torch.arange(H, device=query.device),
            positions(self.query_offset, L, query.device),
            positions(self.key_offset, key.shape[-2], query.device),
        )

    def mask_tensor(self, query: Tensor, key: Tensor) -> Tensor | None:
        """The mask as a tensor, each dimension 1 or that of (B, H, L, S)."""
        if self.mask is None or isinstance(self.mask, Tensor):
            return self.mask
        return evaluate_mod(self.mask, self.indices(query, key))

    def modified(self, scores: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The scores (B, H, L, S) after score_mod."""
        if self.score_mod is None:
            return scores
        return evaluate_mod(self.score_mod, self.indices(query, key), scores)


def attention_spec(
    query: Tensor,
    key: Tensor,
    mask: object,
    score_mod: object,
    query_offset: object,
    key_offset: object,
    scale: object,
    return_lse: bool = False,
) -> AttentionSpec:
    """The arguments of `attention` beside its tensors, checked.

    Raises:
        TypeError, ValueError: as `attention`.
    """
    if score_mod is not None and not callable(score_mod):
        got = type_name(score_mod)
        raise argument_error("score_mod", "be a function", got, TypeError)
    block_mask = mask if isinstance(mask, BlockMask) else None
    if block_mask is not None:
        mask = block_mask.mask_mod
    if isinstance(mask, Tensor):
        mask = check_mask(mask, query, key)
    elif mask is not None and not callable(mask):
        rule = "be a Boolean tensor, a mask mod or a BlockMask"
        raise argument_error("mask", rule, type_name(mask), TypeError)
    has_mod = callable(mask) or score_mod is not None
    return AttentionSpec(
        mask,
        score_mod,
        check_offset("query_offset", query_offset, query, key, has_mod),
        check_offset("key_offset", key_offset, query, key, has_mod),
        check_scale(scale, query.shape[-1]),
        return_lse,
        block_mask,
    )


def check_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Raise unless the mask is Boolean and fits; return it as (B, H, L, S)."""
    if mask.dtype != torch.bool:
        rule = "be Boolean, True where a query may attend"
        hint = (
            "for a float mask of 0 and -inf pass mask > -inf, for a bias to "
            "be added a score_mod, for integers 0 and 1 mask != 0"
        )
        raise argument_error("mask", rule, f"{mask.dtype}: {hint}", TypeError)
    if mask.device != query.device:
        raise argument_error("mask", f"be on {query.device}", mask.device)
    full = (*query.shape[:-1], key.shape[-2])
    rule, fits = f"be (L, S) = {full[-2:]}", mask.shape == full[-2:]
    if query.dim() == 4:
        rule += f" or, each dimension 1 or full, (B, H, L, S) = {full}"
    if query.dim() == mask.dim() == 4:
        fits = all(m in (1, n) for m, n in zip(mask.shape, full, strict=True))
    if not fits:
        raise argument_error("mask", rule, tuple(mask.shape))
    return mask if mask.dim() == 4 else mask[None, None]


def check_offset(
    name: str, offset: object, query: Tensor, key: Tensor, needed: bool
) -> Offset:
    """Raise unless the offset is there where it is needed; None is 0."""
    L, S = query.shape[-2], key.shape[-2]
    if offset is not None:
        return check_start(name, offset, query)
    if needed and L != S:
        raise ValueError(
            f"{name} is missing: where L={L} and S={S} differ, query_offset "
            "and key_offset must be given, the positions of the first query "
            "and the first key"
        )
    return 0


def positions(offset: Offset, n: int, device: torch.device) -> Tensor:
    """Positions of n tokens: (n,), or (B, n) with an offset for each row."""
    index = torch.arange(n, device=device)
    return index + (offset[:, None] if isinstance(offset, Tensor) else offset)


def elementwise(mod: Mod) -> Mod:
    """State that a mod broadcasts: it may get tensors of all pairs at once."""
    mod.elementwise = True  # type: ignore[attr-defined]
    return mod


def evaluate_mod(
    mod: Callable[..., Tensor], indices: Indices, *scores: Tensor
) -> Tensor:
    """Call a mod for every pair, by torch.vmap as FlexAttention does.

    A mod that is marked `elementwise` is called once, with broadcast tensors.

    Args:
        mod: a mask mod or, with scores (B, H, L, S), a score mod.
        indices: rows b, heads h and positions q_idx and kv_idx.
        *scores: the scores (B, H, L, S) that a score mod changes.

    Returns:
        Booleans or new scores, (B, H, L, S).

    Raises:
        TypeError: the mod returns another dtype, or more than one number.
    """
    b, h, q_idx, kv_idx = indices
    shape = (len(b), len(h), q_idx.shape[-1], kv_idx.shape[-1])
    if 0 in shape:  # no pair, and vmap refuses to map over none
        return scores[0] if scores else b.new_zeros(shape, dtype=torch.bool)
    if getattr(mod, "elementwise", False):
        rows, heads = b.view(-1, 1, 1, 1), h.view(-1, 1, 1)
        q_idx = q_idx.view(-1, 1, shape[2], 1)  # (B or 1, 1, L, 1)
        kv_idx = kv_idx.view(-1, 1, 1, shape[3])  # (B or 1, 1, 1, S)
        out = mod(*scores, rows, heads, q_idx, kv_idx).expand(shape)
    else:

        def each(
            *args: Tensor,
        ) -> Tensor:  # vmap reads its name
            return mod(*args)

        by_row = [0 if x.dim() == 2 else None for x in (q_idx, kv_idx)]
        for dims in (
            [None, None, None, 0],
            [None, None, 0, None],
            [None, 0, None, None],
            [0, None, *by_row],
        ):
            each = torch.vmap(each, in_dims=(*[0 for _ in scores], *dims))
        out = each(*scores, *indices)
    dtype = scores[0].dtype if scores else torch.bool
    if out.shape != shape or out.dtype != dtype:
        name = "score_mod" if scores else "mask"
        rule = f"return one {dtype} for each pair, together {shape}"
        got = f"{out.dtype} {tuple(out.shape)}"
        raise argument_error(name, rule, got, TypeError)
    return out


def clear_queries(mask: Tensor, query: Tensor) -> Tensor:
    """Zero the queries (B, H, L, D) that may attend to no key.

    Their scores are -inf, but they would reach the gradients of the keys.
    """
    return query.masked_fill(~mask.any(-1, keepdim=True), 0)


def clear_keys(mask: Tensor, x: Tensor) -> Tensor:
    """Zero the keys or values (B, H_kv, S, D) that no query may attend to.

    Their weights are 0, but 0 * NaN is NaN.
    """
    seen = mask.any(-2)  # (B, H, S), each 1 or full
    if seen.shape[1] not in (1, x.shape[1]):
        seen = seen.unflatten(1, (x.shape[1], -1)).any(2)  # (B, H_kv, S)
    return x.masked_fill(~seen[..., None], 0)
