"""What this machine can run.

A test of what is missing here is skipped, and says why. In CI, where the environment variable CI is
set, it runs and fails, so that the gate does not become weaker in silence.
"""

import importlib
import os
import shutil
import sys

import pytest

from attention import kernels

CI = bool(os.environ.get("CI"))
COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


TRITON = installed("triton") or (CI and sys.platform == "linux")

# The kernels of the package that run here; what a test says of the table itself, it says of all.
KERNELS = [name for name in kernels.KERNELS if name != "triton" or TRITON]


def can(capability: str) -> list[str]:
    """Those of KERNELS that have a capability."""
    return [name for name in KERNELS if capability not in kernels.KERNELS[name].unsupported]


NO_TRITON = "there is no package triton here (on Linux: pip install triton)"
needs_triton = pytest.mark.skipif(not TRITON, reason=NO_TRITON)
needs_compiler = pytest.mark.skipif(
    not (shutil.which(COMPILER) or CI),
    reason=f"torch.compile for a CPU needs a C++ compiler: no {COMPILER} here (CXX names another)",
)
