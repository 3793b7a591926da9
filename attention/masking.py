"""Mods: masks and biases as small functions of a pair of positions.

A mask mod says of each pair whether the query may attend to the key, a score
mod gives the pair a new score. Their signatures are FlexAttention's, so that
the same function runs there.

Source: Dong et al., "Flex Attention" (2024), section 3, and
torch.nn.attention.flex_attention.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Integer
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attention.validation import wrong

# (b, h, q_idx, kv_idx) -> may this query attend to this key?
MaskMod: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# (score, b, h, q_idx, kv_idx) -> score
ScoreMod: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor], Tensor
]
Mask: TypeAlias = Bool[Tensor, "..."] | MaskMod | BlockMask
Offset: TypeAlias = int | Integer[Tensor, "B"]
# Rows b, (B,); heads h, (H,); places q_idx, (L,) or (B, L), and kv_idx.
Where: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


def as_tensor(
    mask: Mask, query: Tensor, key: Tensor, offsets: tuple[Offset, Offset]
) -> Tensor:
    """The mask as a Boolean tensor, each dimension 1 or that of (B, H, L, S).

    Of a BlockMask its mask_mod counts. The tensors are (B, H, L, D) and
    (B, H, S, D), the offsets the positions of the first query and key.
    """
    if isinstance(mask, Tensor):
        return mask
    mod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    return for_each_pair(mod, query, key, offsets)


def unseen(mask: Tensor, n_heads: int) -> Tensor:
    """Keys (B, n_heads, S, 1) that no query may see; queries share heads.

    They are cleared before the products, for 0 * NaN is NaN.
    """
    seen = mask.any(-2)  # (B, H, S)
    if seen.shape[1] not in (1, n_heads):
        seen = seen.unflatten(1, (n_heads, -1)).any(2)
    return ~seen[..., None]


def blind(mask: Tensor) -> Tensor:
    """Queries (B, H, L, 1) that may see no key.

    They are cleared too: they would reach the gradients of the keys.
    """
    return ~mask.any(-1, keepdim=True)


def for_each_pair(
    mod: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    offsets: tuple[Offset, Offset],
    *scores: Tensor,
) -> Tensor:
    """What a mod returns for each pair, (B, H, L, S): vmaps, as in Flex."""
    shape = (*query.shape[:-1], key.shape[-2])
    if 0 in shape:  # no pair, and vmap refuses to map over none
        return scores[0] if scores else query.new_zeros(shape).bool()
    b, h = (torch.arange(n, device=query.device) for n in shape[:2])
    q_idx, kv_idx = (
        positions(offset, n, query.device)
        for offset, n in zip(offsets, shape[2:], strict=True)
    )
    return over_pairs(mod, b, h, q_idx, kv_idx, *scores)


def over_pairs(
    mod: Callable[..., Tensor],
    b: Tensor,
    h: Tensor,
    q_idx: Tensor,
    kv_idx: Tensor,
    *scores: Tensor,
    at_once: bool = False,
) -> Tensor:
    """What a mod returns for rows b, heads h and places q_idx and kv_idx.

    The places are (L,) and (S,) or, where rows differ, (B, L) and (B, S). A
    mod that may be asked `at_once` gets tensors that broadcast to all pairs.
    """
    shape = (len(b), len(h), q_idx.shape[-1], kv_idx.shape[-1])
    if at_once:
        b, h = b.view(-1, 1, 1, 1), h.view(1, -1, 1, 1)
        q_idx, kv_idx = (x.view(-1, 1, x.shape[-1]) for x in (q_idx, kv_idx))
        out = mod(*scores, b, h, q_idx[..., None], kv_idx[:, :, None])
        return _checked(out.expand(shape), shape, *scores)
    by_row = [0 if index.dim() == 2 else None for index in (q_idx, kv_idx)]

    # vmap asks for a name, and a module that is a mod has none.
    def of_a_pair(*args: Tensor) -> Tensor:
        return mod(*args)

    each: Callable[..., Tensor] = of_a_pair
    for dims in (
        [None, None, None, 0],
        [None, None, 0, None],
        [None, 0, None, None],
        [0, None, *by_row],
    ):
        each = torch.vmap(each, in_dims=(*[0 for _ in scores], *dims))
    out = each(*scores, b, h, q_idx, kv_idx)
    return _checked(out, shape, *scores)


def _checked(out: Tensor, shape: tuple[int, ...], *scores: Tensor) -> Tensor:
    dtype = scores[0].dtype if scores else torch.bool
    if out.shape != shape or out.dtype != dtype:
        name = "score_mod" if scores else "mask"
        rule = f"return one {dtype} for each pair, together {shape}"
        raise wrong(name, rule, f"{out.dtype} {tuple(out.shape)}", TypeError)
    return out


def positions(offset: Offset, n: int, device: torch.device) -> Tensor:
    """Where n tokens stand, (n,), or (B, n) with an offset for each row."""
    index = torch.arange(n, device=device)
    return index + (offset[:, None] if isinstance(offset, Tensor) else offset)
