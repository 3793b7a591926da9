"""What a page may touch outside its own namespace, and what becomes of it.

A page starts fresh and leaves nothing behind; what it prints is caught, and so are the errors that
Python would only mention.
"""

import contextlib
import decimal
import gc
import io
import logging
import os
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

MISSING = object()
WATCHED = ("builtins", "math", "torch", "torch.nn.functional", "attention")  # and classes of torch


@contextlib.contextmanager
def fresh_state(leaks: list[str]) -> Iterator[None]:
    """What a page changes outside its namespace starts fresh and does not outlive the page.

    Randomness starts from a seed that nobody knows, so that an unseeded page cannot pass twice.
    Names that the page changed in other modules are put back and named in `leaks`.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())
        stack.callback(sys.path.__setitem__, slice(None), list(sys.path))
        stack.callback(sys.setrecursionlimit, sys.getrecursionlimit())
        stack.callback(_restore, os.environ, dict(os.environ))
        stack.enter_context(decimal.localcontext())
        root = logging.getLogger()
        stack.callback(root.handlers.__setitem__, slice(None), list(root.handlers))
        stack.callback(root.setLevel, root.level)
        stack.callback(logging.disable, root.manager.disable)
        stack.callback(random.setstate, random.getstate())
        random.seed()
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
            stack.callback(numpy.set_printoptions, **numpy.get_printoptions())
            stack.callback(numpy.seterr, **numpy.geterr())
            numpy.random.seed()
        if torch := sys.modules.get("torch"):
            stack.callback(torch.set_rng_state, torch.get_rng_state())
            stack.callback(torch.set_printoptions, profile="default")
            stack.callback(torch.set_default_device, None)
            for setter, getter in (
                (torch.set_default_dtype, torch.get_default_dtype),
                (torch.set_grad_enabled, torch.is_grad_enabled),
                (torch.set_num_threads, torch.get_num_threads),
                (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision),
                (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled),
                (torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled),
            ):
                stack.callback(_reset, setter, getter, getter())
            torch.seed()
        stack.callback(_put_back, _snapshot(), dict(sys.modules), leaks)
        yield


def _reset(setter: Callable[[Any], Any], getter: Callable[[], Any], was: Any) -> None:
    if getter() != was:  # some setters import half of torch
        setter(was)


def _restore(mapping: Any, was: dict[str, str]) -> None:
    if dict(mapping) != was:
        mapping.clear()
        mapping.update(was)


def _snapshot() -> list[tuple[Any, dict[str, Any]]]:
    """The modules and classes whose names no page may change, with these names."""
    owners = [
        module
        for name, module in sys.modules.items()
        if name in WATCHED or name.startswith("attention.")
    ]
    if torch := sys.modules.get("torch"):
        owners += [torch.Tensor, torch.nn.Module]
    return [(owner, dict(vars(owner))) for owner in owners]


def _put_back(
    was: list[tuple[Any, dict[str, Any]]], modules: dict[str, Any], leaks: list[str]
) -> None:
    for name, module in modules.items():
        if sys.modules.get(name) is not module:
            sys.modules[name] = module
            leaks.append(f"sys.modules[{name!r}]")
    for name in [name for name, module in sys.modules.items() if module is None]:
        if name not in modules:
            del sys.modules[name]
    for owner, names in was:
        new = isinstance(owner, type) or owner.__name__ in ("builtins", "math")
        for name in list(names.keys() | vars(owner).keys() if new else names):
            now, value = vars(owner).get(name, MISSING), names.get(name, MISSING)
            torchs_own = str(getattr(now, "__module__", "")).startswith("torch")
            if now is value or torchs_own or _private(name):
                continue
            leaks.append(f"{owner.__name__}.{name}")
            if value is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _private(name: str) -> bool:
    return name.startswith("_") and name not in ("__import__", "__build_class__")


@contextlib.contextmanager
def capture(printed: io.StringIO) -> Iterator[io.StringIO]:
    """What is printed, to either stream, as a notebook shows it; `printed` begins empty."""
    printed.seek(0)
    printed.truncate()
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
    threading.excepthook = lambda what: (
        None if what.exc_type is SystemExit else seen.append(what.exc_value)
    )
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
