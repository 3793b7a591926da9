"""Which tiles of the scores a mask leaves, asked of ranges instead of pairs.

A mask mod compares positions. Give it a range, from a first place to a last,
where it expects a position, and each comparison has two answers: does it hold
for some of these places, and does it hold for every one? So a mod is asked
about thousands of tiles at once, and does not notice. A table is looked up at
each place of a range, and gives a range. What a mod cannot say of ranges, it
is asked pair by pair.

Sources: ranges as numbers, Moore, "Interval Analysis" (1966); tiles of which
all pairs, some or none count, Dong et al., "Flex Attention" (2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import avg_pool2d, pad

from attention.kernels.at_once import at_once
from attention.masking import Indices, Mask, MaskMod, over_pairs

UNIT = 64  # queries and keys of the smallest tile


# --8<-- [start:Range]
@dataclass(frozen=True, eq=False)
class Range:
    """Places from first to last, both included: one of them is meant."""

    first: Tensor
    last: Tensor

    def __neg__(self) -> Range:
        return Range(-self.last, -self.first)

    def __add__(self, other: object) -> Range:
        x = _range(other)
        return Range(self.first + x.first, self.last + x.last)

    def __sub__(self, other: object) -> Range:
        return self + -_range(other)

    def __rsub__(self, other: object) -> Range:
        return -self + other

    def __lt__(self, other: object) -> Verdict:
        x = _range(other)
        return Verdict(self.first < x.last, self.last < x.first)

    def __le__(self, other: object) -> Verdict:
        x = _range(other)
        return Verdict(self.first <= x.last, self.last <= x.first)

    def __gt__(self, other: object) -> Verdict:
        return _range(other) < self

    def __ge__(self, other: object) -> Verdict:
        return _range(other) <= self

    def __eq__(self, other: object) -> Verdict:  # type: ignore[override]
        return (self <= other) & (self >= other)

    def __ne__(self, other: object) -> Verdict:  # type: ignore[override]
        return ~(self == other)

    __radd__ = __add__
    __hash__ = None  # type: ignore[assignment]

    def clamp(self, *bounds: Any, **named: Any) -> Range:
        """What becomes of the ends, as of all between."""
        return Range(*(x.clamp(*bounds, **named) for x in self))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.first, self.last))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any, kwargs: Any = None
    ) -> Range | Verdict:
        """What a table holds at these places: PyTorch asks here."""
        if func is not Tensor.__getitem__:
            raise TypeError("a range can be compared, and little else")
        table, index = args
        *rest, places = index if isinstance(index, tuple) else (index,)
        width = int((places.last - places.first).max()) + 1
        if width > 4 * UNIT:
            raise TypeError("too many places to look at")
        steps = torch.arange(width, device=places.first.device)
        each = torch.minimum(
            places.first[..., None] + steps, places.last[..., None]
        )
        found = table[(*rest, each)]
        if found.dtype == torch.bool:
            return Verdict(found.any(-1), found.all(-1))
        return Range(found.amin(-1), found.amax(-1))


# --8<-- [end:Range]


# --8<-- [start:Verdict]
@dataclass(frozen=True, eq=False)
class Verdict:
    """Does it hold for some pair of a tile, and for every pair?

    It may err to one side: some may be True where no pair is, and every be
    False where each pair is.
    """

    some: Tensor
    every: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.some, self.every))

    def __invert__(self) -> Verdict:
        return Verdict(~self.every, ~self.some)

    def __and__(self, other: object) -> Verdict:
        x = _verdict(other)
        return Verdict(self.some & x.some, self.every & x.every)

    def __or__(self, other: object) -> Verdict:
        x = _verdict(other)
        return Verdict(self.some | x.some, self.every | x.every)

    def __eq__(self, other: object) -> Verdict:  # type: ignore[override]
        x = _verdict(other)
        return (self & x) | (~self & ~x)

    def __ne__(self, other: object) -> Verdict:  # type: ignore[override]
        return ~(self == other)

    def __bool__(self) -> bool:
        raise TypeError("a verdict on many pairs is neither true nor false")

    __rand__, __ror__ = __and__, __or__
    __hash__ = None  # type: ignore[assignment]


# --8<-- [end:Verdict]


def _range(x: object) -> Range:
    return x if isinstance(x, Range) else Range(_single(x), _single(x))


def _verdict(x: object) -> Verdict:
    x = x if isinstance(x, Verdict) else Verdict(_single(x), _single(x))
    if x.some.dtype != torch.bool:
        raise TypeError("a verdict is Boolean")
    return x


def _single(x: object) -> Tensor:
    x = torch.as_tensor(x)
    if x.dim() > 0:  # it would be taken for a dimension of tiles
        raise TypeError("a range is compared with single numbers")
    return x


class Tile(NamedTuple):
    """Keys first to last - 1, and whether the mask hides any pair of them."""

    first: int
    last: int
    masked: bool


class Strip(NamedTuple):
    """Queries first to last - 1, and the tiles of keys that they must meet."""

    first: int
    last: int
    tiles: list[Tile]


class Plan(NamedTuple):
    """The strips, and whether to ask the mask about all pairs at once."""

    strips: list[Strip]
    at_once: bool


# --8<-- [start:plan]
def plan(
    mask: Mask | None, where: Indices, max_queries: int, max_keys: int
) -> Plan:
    """Strips of queries, each with the tiles of keys that some of them see.

    Args:
        mask: as a kernel gets it, of these rows; a tensor is (B, H, L, S).
        where: rows, heads and places. A tile stays if any of them needs it.
        max_queries: of a strip, a multiple of UNIT. Strips are narrower where
            that saves work, as with a window.
        max_keys: of a tile, a multiple of UNIT.
    """
    L, S = where[2].shape[-1], where[3].shape[-1]
    if mask is None:
        starts = range(0, S, max_keys)
        tiles = [Tile(j, min(j + max_keys, S), False) for j in starts]
        starts = range(0, L, max_queries)
        strips = [Strip(i, min(i + max_queries, L), tiles) for i in starts]
        return Plan(strips, True)
    some, every, at_once = verdicts(mask, where)

    def work(n: int) -> int:
        """Units to compute; one of keys costs half of one of queries more."""
        return (2 * n + 1) * int(_rows(some, n, False).any(1).sum())

    widths = [n for n in (4, 2, 1) if n * UNIT <= max_queries]
    strips = _join(some, every, min(widths, key=work), max_keys, L, S)
    return Plan(strips, at_once)


# --8<-- [end:plan]


def _rows(units: Tensor, n: int, fill: bool) -> Tensor:
    """(units of queries, units of keys) as (strips, n, units of keys)."""
    rest = (0, 0, 0, -len(units) % n)
    rows: Tensor = pad(units, rest, value=fill).unflatten(0, (-1, n))
    return rows


def _join(
    some: Tensor, every: Tensor, n: int, max_keys: int, L: int, S: int
) -> list[Strip]:
    """Join n units of queries to a strip, and neighbouring keys to a tile."""
    seen = _rows(some, n, False).any(1)
    whole = _rows(every, n, True).all(1)
    strips = []
    for i, row in enumerate((seen.int() + (seen & whole).int()).tolist()):
        tiles: list[Tile] = []
        units = list(enumerate(row))  # of kind 0 hidden, 1 partly, 2 visible
        for visible, span in itertools.groupby(units, lambda u: u[1] > 0):
            run = list(span)
            if visible and len(run) * UNIT <= max_keys:
                tiles += _cut(run, max_keys, S)
            elif visible:  # where nothing is hidden no mask is needed
                for _, part in itertools.groupby(run, lambda u: u[1]):
                    tiles += _cut(list(part), max_keys, S)
        strips.append(Strip(i * n * UNIT, min((i + 1) * n * UNIT, L), tiles))
    return strips


def _cut(units: list[tuple[int, int]], max_keys: int, S: int) -> list[Tile]:
    first, last = units[0][0] * UNIT, min((units[-1][0] + 1) * UNIT, S)
    masked = any(kind == 1 for _, kind in units)
    starts = range(first, last, max_keys)
    return [Tile(j, min(j + max_keys, last), masked) for j in starts]


# --8<-- [start:verdicts]
def verdicts(mask: Mask, where: Indices) -> tuple[Tensor, Tensor, bool]:
    """Of each unit of queries and keys: is some pair, is every pair visible?

    Returns:
        Both answers, (units of queries, units of keys), for all rows and heads
        together; and whether the mod may be asked about all pairs at once.
    """
    if isinstance(mask, Tensor):
        return *_of_pairs(mask.split(UNIT, dim=2)), False
    b, h, q_idx, kv_idx = where
    mod = mask_mod(mask)
    q, k = _units(q_idx, -1), _units(kv_idx, -2)
    try:
        places: Any = (q, k)  # where a mod expects tensors
        verdict = _verdict(mod(ANY, ANY, *places))
        size = torch.broadcast_shapes(q.first.shape, k.first.shape)
        some, every = (x.expand(size) for x in verdict)
        by_number = True  # a range has no more
    except Exception:  # a mod may do with a row or a place whatever it likes
        first = (x.flatten()[0] for x in where)
        by_number = at_once(mod, *first)
        try:
            some, every = _for_each(mod, b, h, q, k)
        except Exception:
            some, every = _of_pairs(
                over_pairs(mod, b, h, x, kv_idx, at_once=by_number)
                for x in q_idx.split(UNIT, dim=-1)
            )
    return (
        some.flatten(0, -3).any(0) if some.dim() > 2 else some,
        every.flatten(0, -3).all(0) if every.dim() > 2 else every,
        by_number,
    )


# --8<-- [end:verdicts]


class Anyone:
    """Any row and any head: a mod that asks which one gets an error."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("which row or head it is, is not known")

    def __bool__(self) -> bool:
        raise TypeError("which row or head it is, is not known")

    __hash__ = None  # type: ignore[assignment]

    def new_ones(self, *size: Any, **how: Any) -> Tensor:
        """What torch's and_masks wants of a row: a place to begin."""
        return torch.ones(*size, **how)

    def new_zeros(self, *size: Any, **how: Any) -> Tensor:
        """The same for or_masks."""
        return torch.zeros(*size, **how)


ANY: Any = Anyone()


def mask_mod(mask: Any) -> MaskMod:
    """The mod of a mask that is no tensor."""
    mod: MaskMod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    return mod


def _units(index: Tensor, dim: int) -> Range:
    """Each unit of places as a range, along one of the last two dimensions."""
    first = index[..., ::UNIT]
    last = torch.minimum(first + (UNIT - 1), index[..., -1:])
    return Range(first.unsqueeze(dim), last.unsqueeze(dim))


def _for_each(
    mod: MaskMod, b: Tensor, h: Tensor, q: Range, k: Range
) -> tuple[Tensor, Tensor]:
    """The verdicts for each row and head, (B, H, units, units)."""
    ends = (q.first, q.last, k.first, k.last)
    size = (q.first.shape[-2], k.first.shape[-1])

    def ask(b: Tensor, h: Tensor, *ends: Tensor) -> tuple[Tensor, Tensor]:
        places: Any = (Range(*ends[:2]), Range(*ends[2:]))
        some, every = _verdict(mod(b, h, *places))
        return some.expand(size), every.expand(size)

    by_row = [0 if x.dim() == 3 else None for x in ends]
    ask_heads = torch.vmap(ask, in_dims=(None, 0, None, None, None, None))
    ask_rows = torch.vmap(ask_heads, in_dims=(0, None, *by_row))
    found: tuple[Tensor, Tensor] = ask_rows(b, h, *ends)
    return found


def _of_pairs(strips: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The verdicts on masks (B, H, UNIT or less, S), pair by pair."""
    some, every = [], []
    for mask in strips:  # one at a time: as numbers they are large
        shares = avg_pool2d(
            once(mask).float(), (mask.shape[2], UNIT), ceil_mode=True
        )
        some.append(shares.amax((0, 1)) > 0)
        every.append(shares.amin((0, 1)) == 1)
    return torch.cat(some), torch.cat(every)


def once(x: Tensor) -> Tensor:
    """(B, H, ...), of size 1 where all rows or heads are one expanded."""
    x = x[:1] if x.stride(0) == 0 else x
    return x[:, :1] if x.stride(1) == 0 else x


class Hidden(NamedTuple):
    """What a mask hides of a tile. B and H are 1 where all are alike."""

    cap: Tensor  # (B, H, n, w), of scores: -inf where hidden, else inf
    keys: Tensor | None  # (B, H_kv, w, 1), hidden from all queries
    queries: Tensor | None  # (B, H, n, 1), from which all keys are hidden

    def of_heads(self, heads: slice, kv_heads: slice) -> Hidden:
        """The same of some heads."""

        def part(x: Any, these: slice) -> Any:
            return x if x is None or x.shape[1] == 1 else x[:, these]

        return Hidden(
            part(self.cap, heads),
            part(self.keys, kv_heads),
            part(self.queries, heads),
        )


def hidden(
    mask: Mask | None,
    where: Indices,
    at_once: bool,
    strip: Strip,
    tile: Tile,
    n_kv_heads: int,
    dtype: torch.dtype,
) -> Hidden | None:
    """What the mask hides of a tile; None if nothing."""
    if mask is None or not tile.masked:
        return None
    b, h, q_idx, kv_idx = where
    q = q_idx[..., strip.first : strip.last]
    k = kv_idx[..., tile.first : tile.last]
    if isinstance(mask, Tensor):
        may = mask[:, :, strip.first : strip.last, tile.first : tile.last]
    else:
        mod = mask_mod(mask)
        may = over_pairs(mod, b, h, q, k, at_once=at_once)
    # Numbers, for comparing them is many times faster than filling by a mask.
    cap = once(may).to(dtype).sub_(0.5).mul_(torch.inf)
    seen = cap.amax(-2)[..., None]  # (B, H, w, 1)
    if seen.shape[1] not in (1, n_kv_heads):
        seen = seen.unflatten(1, (n_kv_heads, -1)).amax(2)
    gone = seen < 0, cap.amax(-1, keepdim=True) < 0
    return Hidden(cap, *(x if bool(x.any()) else None for x in gone))
