"""Which run of keys each query sees, where a mask leaves it no more than one.

Causal masks, windows, prefixes, padding and packed documents have this in
common: the keys that a query sees stand side by side. Two numbers say which.
A mod is solved for them: give it all keys at once where it expects one, and
each comparison leaves a run to each query. So two numbers a query stand for a
mask of L x S pairs, which is never made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attention.masking import Mask, Offset, positions

NO_END = torch.iinfo(torch.int32).max


# --8<-- [start:Keys]
@dataclass(frozen=True, eq=False)
class Keys:
    """One number for each key, and what a query adds to it.

    Attributes:
        of_key: (..., S).
        of_query: a number, or (..., L).
        order: 1 where of_key never falls from key to key, -1 where it never
            rises, 0 where nobody knows.
    """

    of_key: Tensor
    of_query: Tensor | int = 0
    order: int = 0

    def __neg__(self) -> Keys:
        return Keys(-self.of_key, -self.of_query, -self.order)

    def __add__(self, x: object) -> Keys:
        return Keys(self.of_key, self.of_query + _single(x), self.order)

    def __sub__(self, x: object) -> Keys:
        return self + -_single(x)

    def __rsub__(self, x: object) -> Keys:
        return -self + x

    def __lt__(self, x: object) -> Run:
        if self.order < 0:
            return -self > -_single(x)
        return Run(None, self._before(x))

    def __le__(self, x: object) -> Run:
        if self.order < 0:
            return -self >= -_single(x)
        return Run(None, self._before(x, with_it=True))

    def __gt__(self, x: object) -> Run:
        if self.order < 0:
            return -self < -_single(x)
        return Run(self._before(x, with_it=True), None)

    def __ge__(self, x: object) -> Run:
        if self.order < 0:
            return -self <= -_single(x)
        return Run(self._before(x), None)

    def __eq__(self, x: object) -> Run:  # type: ignore[override]
        """The keys with that number, if they stand side by side."""
        of_key, place = self.of_key.sort(stable=True)
        keys = Keys(of_key, self.of_query, 1)
        start, stop = keys._before(x), keys._before(x, with_it=True)
        n = stop - start
        place = place.expand(*n.shape[:-1], -1)
        first = place.gather(-1, start.clamp(max=place.shape[-1] - 1))
        last = place.gather(-1, (stop - 1).clamp(min=0))
        if bool(((n > 0) & (last - first + 1 != n)).any()):
            raise TypeError("keys with one number stand apart")
        return Run(first, first + n)

    __radd__ = __add__
    __hash__ = None  # type: ignore[assignment]

    def clamp(self, *bounds: Any, **named: Any) -> Keys:
        """What becomes of each number; it keeps their order."""
        return Keys(self._alone().clamp(*bounds, **named), order=self.order)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any, kwargs: Any = None
    ) -> Keys:
        """What a table holds at these keys: PyTorch asks here."""
        if func is not Tensor.__getitem__:
            raise TypeError("keys can be compared, and little else")
        table, index = args
        *rest, keys = index if isinstance(index, tuple) else (index,)
        return Keys(table[(*rest, keys._alone())])

    def _alone(self) -> Tensor:
        if isinstance(self.of_query, Tensor) or self.of_query:
            raise TypeError("what a query adds can only be compared")
        return self.of_key

    def _before(self, x: object, with_it: bool = False) -> Tensor:
        """How many keys come before the number x, or before and with it."""
        if self.order == 0:
            raise TypeError("whether these numbers grow is not known")
        x = torch.as_tensor(_single(x) - self.of_query)
        x = x.expand(torch.broadcast_shapes(x.shape, (1, 1, 1)))
        rows = torch.broadcast_shapes(x.shape[:-1], self.of_key.shape[:-1])
        of_key, x = (
            y.expand(*rows, -1).contiguous() for y in (self.of_key, x)
        )
        return torch.searchsorted(of_key, x, right=with_it)


# --8<-- [end:Keys]


# --8<-- [start:Run]
@dataclass(frozen=True, eq=False)
class Run:
    """For each query, the keys first to last - 1; none where last <= first.

    Attributes:
        first: (..., L), or None: the run begins with the first of all keys.
        last: (..., L), or None: it ends with the last of all.
    """

    first: Tensor | None
    last: Tensor | None

    def __and__(self, other: object) -> Run:
        x = _run(other)
        first = _both(torch.maximum, self.first, x.first)
        return Run(first, _both(torch.minimum, self.last, x.last))

    def __or__(self, other: object) -> Run:
        x = _run(other)
        if self.first is not None or x.first is not None:
            raise TypeError("between two runs there may be a gap")
        if self.last is None or x.last is None:
            return Run(None, None)
        return Run(None, torch.maximum(self.last, x.last))

    def __eq__(self, other: object) -> bool:
        raise TypeError("a run of keys is compared with nothing")

    def __bool__(self) -> bool:
        raise TypeError("a run of keys is neither true nor false")

    __rand__, __ror__ = __and__, __or__
    __hash__ = None  # type: ignore[assignment]


# --8<-- [end:Run]


def _single(x: object) -> Tensor:
    """A number, or one of each query."""
    if not isinstance(x, (Tensor, int, float)):
        raise TypeError("keys are compared with numbers")
    x = torch.as_tensor(x)
    if x.dim() not in (0, 3):  # rows, heads, queries
        raise TypeError("keys are compared with single numbers")
    return x


def _both(of_two: Any, x: Tensor | None, y: Tensor | None) -> Tensor | None:
    if x is None or y is None:
        return y if x is None else x
    found: Tensor = of_two(x, y)
    return found


def _run(x: Any) -> Run:
    """What a mod says of keys, or of queries alone, as runs."""
    if isinstance(x, Run):
        return x
    if isinstance(x, Keys) and x.of_key.dtype == torch.bool:
        return Keys(x.of_key.int()) == 1
    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return Run(None, torch.where(_single(x), NO_END, 0))
    raise TypeError("a mask is made of comparisons")


# --8<-- [start:runs]
def runs(
    mask: Mask | None,
    query: Tensor,
    key: Tensor,
    query_offset: Offset,
    key_offset: Offset,
) -> tuple[Tensor, Tensor]:
    """The first key that each query sees, and the one after the last.

    Args:
        mask: as a kernel gets it.
        query: (B, H, L, D).
        key: (B, H_kv, S, D).
        query_offset: where the first query stands.
        key_offset: where the first key stands.

    Returns:
        Both (B, H, L), of int32, expanded where rows or heads are alike. They
        are equal where a query sees none.

    Raises:
        TypeError: some query may see keys that do not stand side by side, or
            nobody can tell.
    """
    (B, H, L, _), S, device = query.shape, key.shape[2], query.device
    run = Run(None, None)
    if isinstance(mask, Tensor):
        raise TypeError("a tensor can hold any pairs")
    if mask is not None:
        mod: Any = mask.mask_mod if isinstance(mask, BlockMask) else mask
        b, h = (torch.arange(n, device=device) for n in (B, H))
        q_idx, kv_idx = (
            positions(offset, n, device).view(-1, 1, n)
            for offset, n in ((query_offset, L), (key_offset, S))
        )
        keys = Keys(kv_idx, order=1)
        run = _run(mod(b.view(-1, 1, 1), h.view(1, -1, 1), q_idx, keys))
    none = torch.zeros((), dtype=torch.int64, device=device)
    first = none if run.first is None else run.first
    last = none + S if run.last is None else run.last.clamp(max=S)
    last = torch.maximum(first, last)
    return first.int().expand(B, H, L), last.int().expand(B, H, L)


# --8<-- [end:runs]
