"""The arithmetic under which the pages are recorded and judged.

The same wheel of torch adds in another order on a processor of another make, so a version pins no
last digit. These settings do: MKL, ATen and oneDNN then take the same path on every x86-64
processor with AVX2, in one thread, bit for bit. They are read when torch is first used, so `use`
comes before torch is imported. Elsewhere, and in what a reader takes away, nothing is set.
"""

import functools
import os
import platform
import re
import sys
from pathlib import Path

from .ledger import torch_version

PINNED, OWN, ALL = "pinned", "own", "all"
ARITHMETICS = {
    PINNED: {
        "MKL_CBWR": "COMPATIBLE",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
    },
    # The machine's own, and on it what other machines may have: no vector instructions, two
    # threads (which wait for each other asleep, for the machine may be busy).
    OWN: {"OMP_NUM_THREADS": "1"},
    "scalar": {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    "threads": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"},
}
# torch caches compiled graphs on disk under a key that lacks the instruction set: under another
# arithmetic it returns code that computes other numbers.
for settings in ARITHMETICS.values():
    settings["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
SETTINGS = {name for settings in ARITHMETICS.values() for name in settings}


def use(name: str = PINNED) -> None:
    """Choose an arithmetic for this process and those that it starts; before torch is imported.

    Where the pinned one cannot be had, the machine's own is taken.
    """
    wanted = ARITHMETICS[OWN if name == PINNED and not _can_pin() else name]
    if "torch" in sys.modules and not _in_force(wanted):
        raise RuntimeError("torch is imported already: its arithmetic can no longer be chosen")
    for setting in SETTINGS:
        os.environ.pop(setting, None)
    os.environ.update(wanted)


def is_pinned(root: Path) -> bool:
    """Whether what is computed here is the same, to the bit, on every machine that can pin it."""
    return _can_pin() and _in_force(ARITHMETICS[PINNED]) and torch_version() == _pinned_torch(root)


def describe(root: Path) -> str:
    """The arithmetic in force, for a reader."""
    if is_pinned(root):
        return "pinned arithmetic"
    return f"arithmetic of this machine ({platform.machine()})"


def _in_force(settings: dict[str, str]) -> bool:
    return {s: os.environ[s] for s in SETTINGS & os.environ.keys()} == settings


@functools.cache
def _can_pin() -> bool:
    """On x86-64 with AVX2, on Linux; there are no newer wheels of torch for Macs of that kind."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return re.search(r"^flags\s*:.*\bavx2\b", Path("/proc/cpuinfo").read_text(), re.M) is not None


def _pinned_torch(root: Path) -> str:
    pins = root / "constraints.txt"
    found = re.search(r"^torch==([\w.]+)", pins.read_text("utf-8"), re.M) if pins.exists() else None
    return found[1] if found else torch_version()
