"""What is imported, and when. One fresh process answers all the questions.

In that process Triton cannot be imported until the questions about it, and then does not run in
Python.
"""

import ast
import functools
import graphlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import attention
from tests.machine import TRITON, needs_triton

QUESTIONS = """
import json, os, sys

answers = {}

def ask(question):
    def answer(f):
        try:
            answers[question] = f()
        except Exception as error:
            answers[question] = f"{type(error).__name__}: {error}"
    return answer

def by_triton():
    return attention(x, x, x, kernel="triton")

sys.modules["triton"] = None
import torch
from attention import attention, causal

answers["imported"] = [name for name in sys.modules if name.startswith(("attention", "torch._"))]
x = torch.randn(3, 4)

@ask("attention without triton")
def _():
    return list(attention(x, x, x).shape)

ask("no triton")(by_triton)
os.environ["TRITON_INTERPRET"] = "1"
ask("no triton to run in Python")(by_triton)
os.environ["TRITON_INTERPRET"] = "0"

@ask("compiled before it is imported")
def _():
    def run(x):
        return attention(x, x, x, mask=causal, kernel="sdpa")
    before = "attention.kernels.sdpa" in sys.modules
    out = torch.compile(run, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(out, attention(x, x, x, mask=causal))
    return [before, "attention.kernels.sdpa" in sys.modules]
"""

OF_TRITON = """
del sys.modules["triton"]
import triton
ask("a CPU")(by_triton)
os.environ["TRITON_INTERPRET"] = "1"
ask("too late")(by_triton)
os.environ["TRITON_INTERPRET"] = "0"

from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from attention.kernels.triton import triton_tiled
from attention.masking import AttentionSpec

class Nowhere:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

launched = []

def compile_only(self, *args, grid, warmup, **kwargs):
    self.nargs = dict(zip(self.arg_names, args))
    config = self.prune_configs(kwargs)[-2:][0]
    code = self.fn.warmup(*args, grid=grid, **kwargs, **config.all_kwargs())
    products = "wgmma" if "wgmma.mma_async" in code.asm["ptx"] else "fma"
    rounded = "tf32" in code.asm["ptx"]
    launched.append([self.base_fn.__name__, str(args[0][0].dtype), products, rounded])

triton.runtime.driver.set_active(Nowhere())
Autotuner.run = compile_only

@ask("launched")
def _():
    for dtype, H, n, D in ((torch.bfloat16, 4, 70, 64), (torch.float32, 1, 1, 5)):
        shapes = (2, H, n, D), (2, max(1, H // 2), n, D), (2, max(1, H // 2), n, D)
        given = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        spec = AttentionSpec(mask=causal, scale=0.3, return_lse=True)
        out, lse = triton_tiled(*given, spec)
        (out.sum() + lse.sum()).backward()
    return launched
"""


@functools.cache  # 10 s, of which Triton's compiler takes 5, for six kernels
def answers():
    code = QUESTIONS + (OF_TRITON if TRITON else "") + "print(json.dumps(answers))"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    folder = Path(attention.__file__).parents[1]
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=env, cwd=folder, check=True
    )
    return json.loads(ran.stdout)


def test_the_package_imports_no_compiler():
    """torch._dynamo takes nearly as long to import as torch itself."""
    assert "attention.functional" in answers()["imported"]
    assert "torch._dynamo" not in answers()["imported"]


@pytest.mark.parametrize("module", ["sdpa", "flex", "tiled", "triton"])
def test_a_kernel_is_imported_when_it_is_asked_for(module):
    assert f"attention.kernels.{module}" not in answers()["imported"]


PACKAGE = Path(attention.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported_by(module):
    """Modules of the package that a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from {node.module, *(f"{node.module}.{x.name}" for x in node.names)} & {*MODULES}
        elif isinstance(node, ast.Import):
            yield from {x.name for x in node.names} & {*MODULES}


def test_imports_point_one_way():
    graph = {module: {*imported_by(module)} - {"attention"} for module in MODULES}
    assert graph["attention.functional"] >= {"attention.kernels", "attention.masking"}
    [*graphlib.TopologicalSorter(graph).static_order()]  # raises CycleError


@pytest.mark.parametrize("room", ["diagnosis", "modules", "pictures", "positions", "tasks"])
def test_nothing_but_what_is_built_on_it_imports_a_room(room):
    above = {"diagnosis": [], "modules": [], "pictures": [], "tasks": []}
    above["positions"] = ["attention.modules", "attention.diagnosis"]
    own = f"attention.{room}"
    users = {
        module
        for module in MODULES
        for name in imported_by(module)
        if name.startswith(own) and not module.startswith((own, *above[room]))
    }
    assert users <= {"attention"}


def test_torch_compile_takes_a_kernel_that_is_not_imported_yet_in_one_graph():
    assert answers()["compiled before it is imported"] == [False, True]


def test_the_package_needs_no_triton_and_says_where_it_would():
    assert answers()["attention without triton"] == [3, 4]
    assert "cannot do tensors on a CPU" in answers()["no triton"]
    assert answers()["no triton to run in Python"] == (
        "ModuleNotFoundError: kernel='triton' needs the package triton, for Linux: "
        "pip install triton"
    )


@needs_triton
def test_a_cpu_is_refused_where_triton_does_not_run_in_python():
    assert "kernel='triton' cannot do tensors on a CPU: it is for a GPU" in answers()["a CPU"]
    assert answers()["a CPU"].endswith("reference, sdpa, flex and tiled can")


@needs_triton
def test_an_interpreter_that_is_asked_for_too_late_says_so():
    assert "comes too late" in answers()["too late"]


@needs_triton
def test_what_is_launched_compiles_for_a_gpu_and_rounds_no_float32_to_tf32():
    """As it is called, on a GPU that is not there: every step but the last."""
    assert answers()["launched"] == [
        [kernel, f"torch.{dtype}", products, False]
        for dtype, products in (("bfloat16", "wgmma"), ("float32", "fma"))
        for kernel in ("forward", "backward_query", "backward_key")
    ]
