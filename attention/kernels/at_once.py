"""Whether a mod may be asked of all pairs at once, by broadcasting.

A mod is written for one pair. vmap makes it one for many, whatever it does,
and is slow. Where it only computes number by number, as with +, abs and a
look in a table, it can be given tensors instead, and gives the same. Whether
it does is seen by running it on one pair and looking at its operations.

Source: torch.Tag.pointwise, by which PyTorch marks such operations.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attention.kernels.captured import tensors_in

aten = torch.ops.aten
ALSO = {
    aten._to_copy.default,
    aten.detach.default,
    aten.floor_divide.default,
    aten.new_ones.default,  # these two begin torch's and_masks and or_masks
    aten.new_zeros.default,
}
SIX = (1, 1, 2, 3)  # rows, heads, queries and keys of the six


# --8<-- [start:at_once]
def at_once(mod: Callable[..., Tensor], *pair: Tensor) -> bool:
    """Whether a mod computes number by number.

    It is asked about one pair, and about the same pair six times over.

    Args:
        mod: a mask mod or a score mod.
        pair: its arguments for one pair, each (). A score should not be 0.
    """
    *score, b, h, q_idx, kv_idx = pair
    try:
        with torch.no_grad(), Operations() as seen:
            many = mod(
                *(x.expand(SIX) for x in score),
                *(x.view(1, 1, 1, 1) for x in (b, h)),
                q_idx.expand(1, 1, SIX[2], 1),
                kv_idx.expand(1, 1, 1, SIX[3]),
            )
        with torch.no_grad():
            one = mod(*pair)
        same = one.dim() == 0 and torch.equal(
            many.expand(SIX), one.expand(SIX)
        )
    except Exception:  # it minds the shape
        return False
    return seen.by_number and same


# --8<-- [end:at_once]


# --8<-- [start:Operations]
class Operations(TorchDispatchMode):
    """Sees whether what becomes of six pairs is made number by number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_number = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at the operation, and run it."""
        self.by_number &= _by_number(func, args, kwargs)
        return func(*args, **(kwargs or {}))


# --8<-- [end:Operations]


def _by_number(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    tensors = [*tensors_in((args, kwargs))]
    if not any(map(_of_six, tensors)):  # of what the mod captures alone
        return True
    if func is aten.index.Tensor:  # table[i, j], a number of each
        table, indices = args
        return len(tensors) == 1 + len(indices) == 1 + table.dim() and all(
            map(_of_six, tensors[1:])
        )
    # Beside a tensor, the wider type of a single number would not count.
    beside, dtype = (
        reduce(torch.promote_types, [x.dtype for x in xs])
        for xs in ([x for x in tensors if x.dim()], tensors)
    )
    return (
        (torch.Tag.pointwise in func.tags or func in ALSO)
        and not func._schema.is_mutable
        and all(x.dim() == 0 or _of_six(x) for x in tensors)
        and (beside == dtype or not beside.is_floating_point)
    )


def _of_six(x: Tensor) -> bool:
    """Whether it may stem from the six pairs: it broadcasts to them."""
    return x.dim() == 4 and all(
        m in (1, n) for m, n in zip(x.shape, SIX, strict=True)
    )
