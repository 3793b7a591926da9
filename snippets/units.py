"""What does each statement of a page read, bind and change?

The names come from the bytecode. What changed in place, and whose random numbers were drawn, is
seen when the statement runs: a tensor's version counter knows of `opt.step()`, syntax does not.
"""

import ast
import ctypes
import dis
import inspect
import random
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NOW = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
LOADS = {"LOAD_NAME", "LOAD_GLOBAL"}
STORES = {"STORE_NAME", "STORE_GLOBAL"}  # in a function, it is seen when that is called
SIMPLE = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
SEEDS = {"manual_seed": "torch", "seed": "random"}  # what sets which state afresh


@dataclass(eq=False)
class Unit:
    """A statement of a page's outermost level, as it is written there."""

    source: str  # whole lines, with the comments above it
    nodes: list[ast.stmt]
    gap: int = 0  # empty lines above it
    reads: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)  # read in a function, so when that is called
    binds: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)  # in place, as seen when it ran
    opaque: bool = False  # it did something, and nobody saw what

    @property
    def is_import(self) -> bool:
        return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in self.nodes)

    @property
    def is_bare_call(self) -> bool:
        """A call for its own sake, other than one that prints."""
        last = self.nodes[-1]
        call = last.value if isinstance(last, ast.Expr) else None
        return isinstance(call, ast.Call) and ast.unparse(call.func) != "print"

    @property
    def is_value(self) -> bool:
        return isinstance(self.nodes[-1], ast.Expr)

    def settles(self, name: str) -> bool:
        """Whether nothing earlier matters to `name` but what this statement reads."""
        surely = all(isinstance(node, SIMPLE) for node in self.nodes) or name.startswith("<")
        return surely and name in self.binds


def units(source: str) -> list[Unit]:
    """The statements of `source`; those that share a line are one."""
    found: list[Unit] = []
    lines, done = source.split("\n"), 0
    for node in ast.parse(source).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        end = node.end_lineno or node.lineno
        if found and first <= done:
            found[-1].nodes.append(node)
            found[-1].source += "".join("\n" + line for line in lines[done:end])
        else:
            own = lines[done:end]
            gap = next(i for i, line in enumerate(own) if line.strip())
            found.append(Unit("\n".join(own[gap:]), [node], gap))
        done = end
    if found and "".join(lines[done:]).strip():
        found[-1].source += "\n" + "\n".join(lines[done:]).rstrip()  # a comment at the end
    for unit in found:
        _read_names(unit)
    return found


def _read_names(unit: Unit) -> None:
    module = ast.Module(unit.nodes, type_ignores=[])
    _walk(compile(module, "<unit>", "exec"), unit, now=True, top=True)
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            state = SEEDS.get(node.func.attr)
            if state and ast.unparse(node.func.value).endswith(("torch", "random")):
                where = "numpy" if "np" in ast.unparse(node.func) else state
                unit.binds.add(f"<{where}>")


def _walk(code: types.CodeType, unit: Unit, *, now: bool, top: bool) -> None:
    local = set[str]()  # of a class body
    for step in dis.get_instructions(code):
        name = step.argval
        if step.opname in LOADS and name not in local:
            if not (top and name in unit.binds):
                (unit.reads if now else unit.later).add(name)
        elif step.opname in STORES and top:
            unit.binds.add(name)
        elif step.opname in STORES:
            local.add(name)
        elif inspect.iscode(name):
            body = not name.co_flags & inspect.CO_OPTIMIZED  # of a class
            _walk(name, unit, now=now and (body or name.co_name in NOW), top=False)


class Watch:
    """Sees what each statement changes in a namespace, from one look to the next."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.seen = self._look()

    def changes(self) -> set[str]:
        """The names, and random states, that are not as they were at the last look."""
        before, self.seen = self.seen, self._look()
        every = before.keys() | self.seen.keys()
        return {name for name in every if self.seen.get(name) != before.get(name)}

    def _look(self) -> dict[str, Any]:
        seen = {
            name: (id(value), fingerprint(value))
            for name, value in self.namespace.items()
            if not name.startswith("__")
        }
        return seen | {f"<{name}>": state for name, state in random_states()}


def random_states() -> Iterator[tuple[str, Any]]:
    """The states that random numbers are drawn from, of the libraries that are loaded."""
    yield "random", hash(random.getstate())
    if numpy := sys.modules.get("numpy"):
        state = numpy.random.get_state()
        yield "numpy", (hash(state[1].tobytes()), *state[2:])
    if torch := sys.modules.get("torch"):
        yield "torch", _bytes(torch.get_rng_state())


def _bytes(state: Any) -> bytes:
    return ctypes.string_at(state.data_ptr(), state.numel())


def fingerprint(value: Any) -> Any:
    """What a change in place would change, as far as it is cheap to see."""
    return _fingerprint(value, [2000], set())


def _fingerprint(value: Any, budget: list[int], inside: set[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or id(value) in inside or isinstance(value, _PLAIN):
        return id(value)
    if torch := sys.modules.get("torch"):
        if isinstance(value, torch.Tensor) and not value.is_inference():
            grad = value.grad if value.is_leaf else None
            ours = (id(value), value._version, value.requires_grad)
            return ours if grad is None else (*ours, id(grad), grad._version)
        if isinstance(value, torch.Generator):
            return _bytes(value.get_state())
    if hasattr(value, "tobytes"):
        return id(value), hash(value.tobytes())
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(value)
    elif not hasattr(value, "__dict__"):
        return id(value)
    parts += [part for item in getattr(value, "__dict__", {}).items() for part in item]
    inside = inside | {id(value)}
    return id(value), tuple(_fingerprint(part, budget, inside) for part in parts)


_PLAIN = (
    *(str, bytes, int, float, complex, range, type, types.ModuleType, types.FunctionType),
    *(types.BuiltinFunctionType, types.MethodType, types.GeneratorType, type(None)),
)
