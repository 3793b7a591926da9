"""Intervals: what a mask mod says of a whole block of pairs at once.

The mod runs unchanged. It gets intervals where it expects positions, and its
comparisons are overloaded to return intervals of Booleans, False < True:
`low` tells whether the mod holds for every pair of the block, `high` whether
it may hold for some. An interval can be wider than the truth, never narrower.
What an interval cannot express raises TypeError or AttributeError.

Source: Moore, "Interval Analysis" (1966).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDEST = 256  # positions of an interval that are looked up in a table


@dataclass(frozen=True, eq=False)
class Interval:
    """All values from low to high, both included."""

    low: Tensor
    high: Tensor

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __add__(self, other: object) -> Interval:
        x = as_interval(other)
        return Interval(self.low + x.low, self.high + x.high)

    def __sub__(self, other: object) -> Interval:
        return self + -as_interval(other)

    def __rsub__(self, other: object) -> Interval:
        return -self + other

    def __lt__(self, other: object) -> Interval:
        x = as_interval(other)
        return Interval(self.high < x.low, self.low < x.high)

    def __le__(self, other: object) -> Interval:
        x = as_interval(other)
        return Interval(self.high <= x.low, self.low <= x.high)

    def __gt__(self, other: object) -> Interval:
        return as_interval(other) < self

    def __ge__(self, other: object) -> Interval:
        return as_interval(other) <= self

    def __eq__(self, other: object) -> Interval:  # type: ignore[override]
        return (self <= other) & (self >= other)

    def __ne__(self, other: object) -> Interval:  # type: ignore[override]
        return ~(self == other)

    def __and__(self, other: object) -> Interval:
        x, y = as_booleans(self), as_booleans(other)
        return Interval(x.low & y.low, x.high & y.high)

    def __or__(self, other: object) -> Interval:
        return ~(~self & ~as_booleans(other))

    def __invert__(self) -> Interval:
        x = as_booleans(self)
        return Interval(~x.high, ~x.low)

    def __bool__(self) -> bool:
        raise TypeError("an interval is neither true nor false")

    __radd__, __rand__, __ror__ = __add__, __and__, __or__
    __hash__ = None  # type: ignore[assignment]

    def clamp(self, *bounds: Any, **named: Any) -> Interval:
        """Clamping keeps the order, so the ends stay the ends."""
        ends = (x.clamp(*bounds, **named) for x in (self.low, self.high))
        return Interval(*ends)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any, kwargs: Any = None
    ) -> Interval:
        """table[..., interval]: the smallest and the largest entry there."""
        if func is not Tensor.__getitem__:
            raise TypeError(f"{func.__name__} of an interval is not known")
        table, index = args
        *rest, x = index if isinstance(index, tuple) else (index,)
        if len(rest) + 1 != table.dim() or not isinstance(x, Interval):
            raise TypeError("only the last index of a table is an interval")
        width = int((x.high - x.low).max()) + 1
        if width > WIDEST:
            raise TypeError("too many positions to look up")
        steps = torch.arange(width, device=x.low.device)
        each = torch.minimum(x.low[..., None] + steps, x.high[..., None])
        found = table[(*rest, each)]  # (..., width)
        return Interval(found.amin(-1), found.amax(-1))


def as_interval(x: object) -> Interval:
    """A number as the interval that holds nothing else."""
    if isinstance(x, Interval):
        return x
    x = torch.as_tensor(x)
    if x.dim() > 0:  # it would be taken for a dimension of blocks
        raise TypeError("an interval is compared with single numbers")
    return Interval(x, x)


def as_booleans(x: object) -> Interval:
    """An interval of Booleans."""
    x = as_interval(x)
    if x.low.dtype != torch.bool:
        raise TypeError("only Booleans can be combined")
    return x
