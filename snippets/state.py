"""What a page may touch outside its own namespace, and what becomes of it.

A page starts fresh and leaves nothing behind; what it prints is caught, and so are the errors that
Python would only mention.
"""

import contextlib
import gc
import io
import os
import random
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

MISSING = object()
WATCHED = ("builtins", "math", "torch", "torch.nn.functional", "attention")


@contextlib.contextmanager
def fresh_state(leaks: list[str]) -> Iterator[None]:
    """What a page changes outside its namespace starts fresh and does not outlive the page.

    Randomness starts from a seed that nobody knows, so that an unseeded page cannot pass twice.
    Names that the page changed in other modules are put back and named in `leaks`.
    """
    python = random.getstate()
    with contextlib.ExitStack() as stack:
        stack.callback(random.setstate, python)
        stack.callback(os.chdir, os.getcwd())
        stack.callback(sys.path.__setitem__, slice(None), list(sys.path))
        stack.callback(_restore, os.environ, dict(os.environ))
        random.seed()
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
            stack.callback(numpy.set_printoptions, **numpy.get_printoptions())
            stack.callback(numpy.seterr, **numpy.geterr())
            numpy.random.seed()
        if torch := sys.modules.get("torch"):
            stack.callback(torch.set_rng_state, torch.get_rng_state())
            stack.callback(torch.set_default_device, None)
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            stack.callback(torch.set_float32_matmul_precision, "highest")
            stack.callback(torch.use_deterministic_algorithms, False)
            stack.callback(torch.autograd.set_detect_anomaly, False)
            stack.callback(torch.set_printoptions, profile="default")
            torch.seed()
        stack.callback(_put_back, _snapshot(), leaks)
        yield


def _restore(mapping: Any, was: dict[str, str]) -> None:
    if dict(mapping) != was:
        mapping.clear()
        mapping.update(was)


def _snapshot() -> dict[str, dict[str, Any]]:
    loaded = [name for name in sys.modules if name in WATCHED or name.startswith("attention.")]
    return {name: dict(vars(sys.modules[name])) for name in loaded}


def _put_back(was: dict[str, dict[str, Any]], leaks: list[str]) -> None:
    for module, names in was.items():
        now = vars(sys.modules[module])
        for name, value in names.items():
            if now.get(name, MISSING) is not value and not name.startswith("_"):
                now[name] = value
                leaks.append(f"{module}.{name}")
        if module == "builtins":
            for name in now.keys() - names.keys() - {"_"}:
                del now[name]
                leaks.append(f"builtins.{name}")


@contextlib.contextmanager
def capture() -> Iterator[io.StringIO]:
    """What is printed, to either stream, as a notebook shows it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed
        if sys.stdout is not printed:
            raise RuntimeError("the snippet put something else in the place of sys.stdout")


@contextlib.contextmanager
def no_loose_ends() -> Iterator[None]:
    """Errors that Python would only mention (in a thread, in a destructor) count as raised."""
    seen: list[BaseException | None] = []
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda what: seen.append(what.exc_value)
    threading.excepthook = lambda what: seen.append(what.exc_value)
    try:
        yield
        gc.collect(0)
    finally:
        sys.unraisablehook, threading.excepthook = hooks
    for error in seen:
        if error is not None:
            raise error


@contextlib.contextmanager
def as_main(module: types.ModuleType) -> Iterator[None]:
    was = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = was
