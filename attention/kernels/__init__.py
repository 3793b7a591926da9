"""The kernels: ways to compute one formula, and what each of them cannot.

`attention` looks here for the kernel that it is asked for, refuses what that
kernel cannot do, and imports it on first use. All kernels have the signature
of `attention.functional.reference`.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from attention.masking import AttentionSpec

# query, key, value, spec -> output, log-sum-exp or None
Run: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, AttentionSpec], tuple[Tensor, Any]
]

# What a call can ask of a kernel beyond the output itself.
CAPABILITIES = (
    "tensors on a CPU",
    "masks with gaps",
    "score_mod",
    "heads wider than 128",
    "return_lse",
    "gradients on a CPU",
    "gradients of what a score_mod captures",
    "second derivatives",
    "torch.vmap",
    "torch.compile in one graph",
)


@dataclass(frozen=True)
class Kernel:
    """Where a kernel is found, and why it cannot do what it cannot.

    Attributes:
        module: the module of the kernel, imported on first use.
        function: its name there.
        unsupported: for each of CAPABILITIES that it lacks, why.
    """

    module: str
    function: str
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Run:
        """The kernel itself."""
        try:
            _import(self.module)
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise ModuleNotFoundError(
                "kernel='triton' needs the package triton, for Linux: "
                "pip install triton"
            ) from error
        run: Run = getattr(sys.modules[self.module], self.function)
        return run


def _import(module: str) -> None:
    importlib.import_module(module)


# torch.compile traces no import; what is imported when it traces stays so. To
# mark that, torch.compiler.assume_constant_result does just this, but first it
# imports torch._dynamo, which takes nearly as long as torch itself.
_import._dynamo_marked_constant = True  # type: ignore[attr-defined]


KERNELS = {
    "reference": Kernel("attention.functional", "reference"),
    "sdpa": Kernel(
        "attention.kernels.sdpa",
        "sdpa",
        {
            "score_mod": "it can only add to scores, not change them",
            "return_lse": "PyTorch keeps its log-sum-exp to itself",
            "gradients of what a score_mod captures": "it takes no score_mod",
            "second derivatives": "PyTorch has no derivative of its backward",
        },
    ),
    "flex": Kernel(
        "attention.kernels.flex",
        "flex",
        {
            "gradients on a CPU": "FlexAttention has no backward there",
            "second derivatives": "FlexAttention has no derivative of its own",
            "torch.vmap": "FlexAttention has no vmap rule",
        },
    ),
    "tiled": Kernel(
        "attention.kernels.tiled",
        "tiled",
        {
            "gradients of what a score_mod captures": (
                "its backward pass returns none"
            ),
            "second derivatives": "its backward pass has no derivative",
            "torch.vmap": "it has no vmap rule",
            "torch.compile in one graph": "its plan is made as it runs",
        },
    ),
    "triton": Kernel(
        "attention.kernels.triton",
        "triton_tiled",
        {
            "tensors on a CPU": "it is for a GPU, or for TRITON_INTERPRET=1",
            "masks with gaps": "the keys of a query must stand side by side",
            "score_mod": "it knows masks alone",
            "heads wider than 128": "accumulators exceed on-chip memory",
            "gradients of what a score_mod captures": "it takes no score_mod",
            "second derivatives": "its backward pass has no derivative",
            "torch.vmap": "it has no vmap rule",
            "torch.compile in one graph": "mask bounds are found as it runs",
        },
    ),
}


def find(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: AttentionSpec,
) -> Run:
    """The kernel of that name, unless it lacks what the call needs.

    Raises:
        ValueError: there is no kernel of that name.
        NotImplementedError: the kernel cannot do what the call needs. Second
            derivatives are refused later, in the backward pass.
    """
    if name not in KERNELS:
        known = ", ".join(KERNELS)
        raise ValueError(f"kernel={name!r} must be one of {known}")
    device = query.device.type
    learns = torch.is_grad_enabled() and any(
        x.requires_grad for x in (query, key, value)
    )
    needs = {
        "tensors on a CPU": device == "cpu" and not interpreted(),
        "score_mod": spec.score_mod is not None,
        "return_lse": spec.return_lse,
        "gradients on a CPU": learns and device == "cpu",
    }
    needed = [capability for capability, need in needs.items() if need]
    for capability in needed:
        if capability in KERNELS[name].unsupported:
            rest = [x for x in needed if x != capability]
            raise unsupported_error(name, capability, *rest)
    return KERNELS[name].load()


def unsupported_error(name: str, *needed: str) -> NotImplementedError:
    """The error of a kernel that lacks the first of what is needed."""
    able = [n for n, k in KERNELS.items() if not {*needed} & {*k.unsupported}]
    return NotImplementedError(
        f"kernel={name!r} cannot do {needed[0]}: "
        f"{KERNELS[name].unsupported[needed[0]]}; {listed(able)} can"
    )


def interpreted() -> bool:
    """Whether Triton runs in Python: then tensors on a CPU will do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def listed(names: list[str]) -> str:
    """Names in a sentence: a, b and c."""
    *some, last = names
    return f"{', '.join(some)} and {last}" if some else last
