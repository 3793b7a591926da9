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

from attention.captured import tensors_in

aten = torch.ops.aten
ALSO = {
    aten._to_copy.default,
    aten.detach.default,
    aten.floor_divide.default,
    aten.new_ones.default,  # these two begin torch's and_masks and or_masks
    aten.new_zeros.default,
}


# --8<-- [start:at_once]
def at_once(mod: Callable[..., Tensor], *pair: Tensor) -> bool:
    """Whether a mod computes number by number.

    Args:
        mod: a mask mod or a score mod; it is run twice.
        pair: its arguments for one pair, each ().
    """
    if torch._C._are_functorch_transforms_active():
        return False
    try:
        with torch.no_grad():
            out = mod(*pair)
        with torch.no_grad(), Operations() as seen:
            after = mod(*(x.view(1, 1, 1, 1) for x in pair))
    except Exception:  # it minds the shape
        return False
    return seen.by_number and out.dim() == 0 and after.dim() == 4


# --8<-- [end:at_once]


# --8<-- [start:Operations]
class Operations(TorchDispatchMode):
    """Sees whether what becomes of (1, 1, 1, 1) is made number by number."""

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
    of_pairs = [x.shape == (1, 1, 1, 1) for x in tensors]
    if not any(of_pairs):  # of what the mod captures alone
        return not func._schema.is_mutable
    if func is aten.index.Tensor:  # table[i, j], a number of each
        table, indices = args
        return len(indices) == table.dim() and all(of_pairs[1:])
    # Beside a tensor, the wider type of a single number would not count.
    beside, dtype = (
        reduce(torch.promote_types, [x.dtype for x in xs])
        for xs in ([x for x in tensors if x.dim()], tensors)
    )
    return (
        (torch.Tag.pointwise in func.tags or func in ALSO)
        and torch.Tag.nondeterministic_seeded not in func.tags
        and not func._schema.is_mutable
        and all(x.dim() == 0 or x.shape == (1, 1, 1, 1) for x in tensors)
        and (beside == dtype or not beside.is_floating_point)
    )
