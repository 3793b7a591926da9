"""What a mod captures: tensors that it reads, and that nobody handed to it.

An autograd.Function differentiates its arguments. A bias table that a score
mod brings along is none of them and would get no gradient, without any error.
So a kernel with a backward pass of its own runs the mod once, on one pair, and
sees what it reads.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

NAMED = "kernel='tiled' cannot {}; reference can"
UNFOUND = "find what a score_mod captures and learns"


# --8<-- [start:Reads]
class Reads(TorchFunctionMode):
    """Collects the tensors that are read here and were not made here."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self.known = {id(x): x for x in given}  # kept: no id comes twice

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the function, and note what goes in and comes out."""
        out = func(*args, **(kwargs or {}))
        for x in tensors_in((args, kwargs)):
            if id(x) not in self.known:
                self.found[id(x)] = x
        self.known |= {id(x): x for x in tensors_in(out)}
        return out


# --8<-- [end:Reads]


# --8<-- [start:captured]
def captured(mod: Callable[..., Tensor], *pair: Tensor) -> list[Tensor]:
    """The tensors that learn and that a mod reads, each once.

    Args:
        mod: a mask mod or a score mod; it is run once.
        pair: its arguments for one pair, each ().

    Raises:
        NotImplementedError: what it returns learns, and nobody can see from
            what; or torch.func maps over what it reads, or differentiates.
    """
    with torch.enable_grad(), Reads(*pair) as reads:
        after = mod(*pair)
    if any(is_functorch_wrapped_tensor(x) for x in reads.found.values()):
        lacks = "let torch.func transform what a mod captures"
        raise NotImplementedError(NAMED.format(lacks))
    learns = [x for x in reads.found.values() if x.requires_grad]
    if isinstance(after, Tensor) and after.requires_grad and not learns:
        raise NotImplementedError(NAMED.format(UNFOUND))
    return learns


# --8<-- [end:captured]


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for item in x:
            yield from tensors_in(item)
    elif isinstance(x, dict):
        yield from tensors_in([*x.values()])
