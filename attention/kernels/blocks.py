"""Which blocks of the scores a mask leaves, and which run of keys a query.

A mask mod is called with blocks of BLOCK queries by BLOCK keys as intervals;
what intervals cannot express is evaluated pair by pair. Blocks without a
visible pair are skipped, and blocks without a hidden pair need no mask.

Source: blocks of which all pairs, some or none count, Dong et al., "Flex
Attention" (2024).
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from attention.kernels.intervals import Interval, as_booleans
from attention.masking import Indices, MaskMod, evaluate_mod

BLOCK = 64  # queries and keys of the smallest block


class Tile(NamedTuple):
    """Keys first to last - 1, and whether the mask hides any pair of them."""

    first: int
    last: int
    masked: bool


class QueryBlock(NamedTuple):
    """Queries first to last - 1, and the tiles of keys that they attend to."""

    first: int
    last: int
    tiles: list[Tile]


def plan(
    mask: Tensor | MaskMod | None,
    indices: Indices,
    max_queries: int,
    max_keys: int,
) -> list[QueryBlock]:
    """Blocks of queries, each with the tiles of keys that some of them see.

    Args:
        mask: a mask mod, a tensor (B, H, L, S), or None.
        indices: batch entries, heads and positions. A tile stays if any batch
            entry and head needs it.
        max_queries: of a block, a multiple of BLOCK. Blocks have fewer queries
            where that saves work, as with a window.
        max_keys: of a tile, a multiple of BLOCK.
    """
    L, S = indices[2].shape[-1], indices[3].shape[-1]
    if mask is None:
        starts = range(0, S, max_keys)
        tiles = [Tile(j, min(j + max_keys, S), False) for j in starts]
        starts = range(0, L, max_queries)
        return [QueryBlock(i, min(i + max_queries, L), tiles) for i in starts]
    some, every = verdicts(mask, indices)

    def kinds(n: int) -> Tensor:
        """0 skipped, 1 masked, 2 whole, for n blocks of queries together."""
        rest = (0, 0, 0, -len(some) % n)
        seen: Tensor = pad(some, rest).unflatten(0, (-1, n)).any(1)
        whole: Tensor = pad(every, rest, value=True)
        whole = whole.unflatten(0, (-1, n)).all(1)
        return seen.int() + (seen & whole).int()

    def work(n: int) -> int:
        """Blocks to compute; one of keys costs half of one of queries more."""
        return (2 * n + 1) * int((kinds(n) > 0).sum())

    n = min((n for n in (4, 2, 1) if n * BLOCK <= max_queries), key=work)
    size = n * BLOCK
    return [
        QueryBlock(i * size, min((i + 1) * size, L), _tiles(row, max_keys, S))
        for i, row in enumerate(kinds(n).tolist())
    ]


def _tiles(kinds: list[int], max_keys: int, S: int) -> list[Tile]:
    """Tiles of neighbouring blocks; masked and whole ones if both fit in."""
    tiles: list[Tile] = []
    groups = itertools.groupby(enumerate(kinds), lambda block: block[1] > 0)
    for visible, group in groups:
        blocks = list(group)
        parts = [blocks]
        if len(blocks) * BLOCK > max_keys:
            by_kind = itertools.groupby(blocks, lambda block: block[1])
            parts = [list(part) for _, part in by_kind]
        for part in parts if visible else []:
            last = min((part[-1][0] + 1) * BLOCK, S)
            masked = any(kind == 1 for _, kind in part)
            for j in range(part[0][0] * BLOCK, last, max_keys):
                tiles.append(Tile(j, min(j + max_keys, last), masked))
    return tiles


def verdicts(
    mask: Tensor | MaskMod, indices: Indices
) -> tuple[Tensor, Tensor]:
    """Of each block: is some pair visible, and is every pair visible?

    Returns:
        Both (blocks of queries, blocks of keys): some in any batch entry and
        head, every in all of them.
    """
    if not isinstance(mask, Tensor):
        try:
            return _by_intervals(mask, indices)
        except (TypeError, AttributeError, RuntimeError):  # the last by vmap
            pass  # what the mod itself raises, it raises again below
    some, hidden = list[Tensor](), list[Tensor]()
    for i in range(0, indices[2].shape[-1], BLOCK):
        pairs = visible(mask, indices, slice(i, i + BLOCK), slice(None))
        size = (pairs.shape[2], BLOCK)
        for x, found in ((pairs, some), (~pairs, hidden)):
            blocks = max_pool2d(x.float(), size, ceil_mode=True)
            found.append(blocks.amax((0, 1)) > 0)  # (1, blocks of keys)
    return torch.cat(some), ~torch.cat(hidden)


def _by_intervals(mod: MaskMod, indices: Indices) -> tuple[Tensor, Tensor]:
    """The verdicts of the mod itself, called with intervals of positions."""
    b, h, *positions = indices
    lows = [x[..., ::BLOCK] for x in positions]
    highs = [
        torch.minimum(low + (BLOCK - 1), x[..., -1:])
        for low, x in zip(lows, positions, strict=True)
    ]
    size = (lows[0].shape[-1], lows[1].shape[-1])

    def of_a_head(
        b: Tensor, h: Tensor, q0: Tensor, q1: Tensor, k0: Tensor, k1: Tensor
    ) -> tuple[Tensor, Tensor]:
        q: Any = Interval(q0[:, None], q1[:, None])
        found = as_booleans(mod(b, h, q, Interval(k0, k1)))  # type: ignore[arg-type]
        return found.high.expand(size), found.low.expand(size)

    ends = (lows[0], highs[0], lows[1], highs[1])
    by_row = [0 if x.dim() == 2 else None for x in ends]
    of_a_row = torch.vmap(of_a_head, in_dims=(None, 0, None, None, None, None))
    of_all = torch.vmap(of_a_row, in_dims=(0, None, *by_row))
    some, every = of_all(b, h, *ends)  # (B, H, blocks, blocks)
    return some.flatten(0, 1).any(0), every.flatten(0, 1).all(0)


def visible(
    mask: Tensor | MaskMod, indices: Indices, queries: slice, keys: slice
) -> Tensor:
    """The mask of some queries and keys; B and H are 1 where all are alike."""
    b, h, q_idx, kv_idx = indices
    if isinstance(mask, Tensor):
        pairs = mask[:, :, queries, keys]
    else:
        at = (b, h, q_idx[..., queries], kv_idx[..., keys])
        pairs = evaluate_mod(mask, at)
    return once(pairs, 0, 1)


def once(x: Tensor, *dims: int) -> Tensor:
    """Of an expanded dimension, one entry."""
    for dim in dims:
        x = x.narrow(dim, 0, 1) if x.stride(dim) == 0 else x
    return x


def runs(
    mask: Tensor | MaskMod | None, indices: Indices
) -> tuple[Tensor, Tensor] | None:
    """The keys that each query sees, if they stand side by side.

    Returns:
        The first key and the one after the last, both (B, H, L) of int32,
        expanded where batch entries or heads are alike, and equal where a
        query sees none. None if some query sees keys with a gap.
    """
    b, h, q_idx, kv_idx = indices
    L, S = q_idx.shape[-1], kv_idx.shape[-1]
    full = (len(b), len(h), L)
    if mask is None:
        first = b.new_zeros(full, dtype=torch.int32)
        return first, first + S
    if isinstance(mask, Tensor):
        mask = mask.expand(*full, S)
    some, every = verdicts(mask, indices)
    j = torch.arange(some.shape[1], device=b.device, dtype=torch.int32) * BLOCK
    ends = (j + BLOCK).clamp(max=S)
    first = torch.where(every, j, S).amin(1)  # (blocks of queries,)
    last = torch.where(every, ends, 0).amax(1)
    count = torch.where(every, ends - j, 0).sum(1, dtype=torch.int32)
    first, last, count = (x.view(-1, 1, 1, 1) for x in (first, last, count))
    rows, columns = (some & ~every).nonzero(as_tuple=True)
    if len(rows):
        pairs = _pairs(mask, indices, rows, columns)
        keys = j[columns].view(-1, 1, 1, 1, 1) + torch.arange(
            BLOCK, device=b.device, dtype=torch.int32
        )
        pairs = pairs & (keys < S)
        firsts = torch.where(pairs, keys, S).amin(-1)  # (n, B, H, BLOCK)
        lasts = torch.where(pairs, keys + 1, 0).amax(-1)
        counts = pairs.sum(-1, dtype=torch.int32)
        shape = (len(some), *firsts.shape[1:])
        index = rows.view(-1, 1, 1, 1).expand_as(firsts)
        first = first.expand(shape).scatter_reduce(0, index, firsts, "amin")
        last = last.expand(shape).scatter_reduce(0, index, lasts, "amax")
        count = count.expand(shape).scatter_add(0, index, counts)
    if bool((count != (last - first).clamp(min=0)).any()):
        return None
    first, last = (
        x.expand(*x.shape[:3], BLOCK).movedim(0, 2).flatten(2)[..., :L]
        for x in (torch.minimum(first, last), last)
    )  # (B or 1, H or 1, L)
    return first.expand(full), last.expand(full)


def _pairs(
    mask: Tensor | MaskMod, indices: Indices, rows: Tensor, columns: Tensor
) -> Tensor:
    """The pairs of n blocks, (n, B or 1, H or 1, BLOCK, BLOCK)."""
    b, h, q_idx, kv_idx = indices
    if isinstance(mask, Tensor):
        mask = once(mask, 0, 1)
        whole = (0, -mask.shape[3] % BLOCK, 0, -mask.shape[2] % BLOCK)
        blocks: Tensor = pad(mask, whole).unflatten(3, (-1, BLOCK))
        blocks = blocks.unflatten(2, (-1, BLOCK))
        return blocks[:, :, rows, :, columns]  # (n, B, H, BLOCK, BLOCK)
    mod = mask

    def blocks_of(index: Tensor, which: Tensor) -> Tensor:
        steps = torch.arange(BLOCK, device=index.device)
        places = which[:, None] * BLOCK + steps  # (n, BLOCK)
        places = places.clamp(max=index.shape[-1] - 1)
        return index[..., places].movedim(-2, 0)  # (n, [B,] BLOCK)

    def of_a_block(q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return evaluate_mod(mod, (b, h, q_idx, kv_idx))

    each = torch.vmap(of_a_block)
    pairs = each(blocks_of(q_idx, rows), blocks_of(kv_idx, columns))
    return once(pairs, 1, 2)
