"""No digit that is shown may hang on the arithmetic: the value must not stand on a knife-edge.

A number rounds to the digits that are shown. Where it stands as near to the boundary between two
roundings as the error of its arithmetic, a processor that adds in another order shows another
digit. Such a number asks for one digit fewer, or for another example.
"""

import ast
import math
import struct
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from .compare import number_texts

# What a few operations may be off by, in parts of the largest number of a tensor. Operations on 16
# bits add in float32 and round once, so that nearly always the same numbers come.
ERRORS = {"float32": 2.0**-20, "float64": 2.0**-46}


class Held(NamedTuple):
    """A number of a value, and by how much another arithmetic may give another."""

    value: float
    error: float | None


def knife_edges(text: str, value: Any) -> list[str]:
    """What is wrong with the numbers that `text` shows of `value`; nothing where they differ."""
    shown = number_texts(text)
    held = list(_numbers(value))
    if len(shown) != len(held):
        return []  # the text shows something else beside the value, or a part of it
    return [
        f"{digits} stands on a knife-edge: of {number.value:.9g}, another processor may show "
        "another last digit; show one digit fewer, or choose another example"
        for digits, number in zip(shown, held, strict=True)
        if _on_edge(digits, number)
    ]


class Listen(ast.NodeTransformer):
    """Code whose f-strings and calls of `print` tell, by the name `HEARD`, what they show.

    So a number is judged that a snippet prints, and whose value its output does not hold.
    """

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        if node.conversion == -1:
            spec = node.format_spec or ast.Constant("")
            node.value = ast.Call(ast.Name(HEARD, ast.Load()), [node.value, spec], [])
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            node.args = [
                arg
                if isinstance(arg, ast.Starred)
                else ast.Call(ast.Name(HEARD, ast.Load()), [arg], [])
                for arg in node.args
            ]
        return node


HEARD = "__heard__"


def listener(edges: list[str]) -> Callable[..., Any]:
    """What `HEARD` names: gives its value back, and adds what is wrong with it to `edges`."""

    def heard(value: Any, spec: str = "") -> Any:
        if isinstance(value, (float, list, tuple)) or hasattr(value, "dtype"):
            try:
                text = format(value, spec)
            except Exception:  # the snippet raises it too
                return value
            percent = spec.endswith("%")
            edges.extend(knife_edges(text, 100 * value if percent else value))
        return value

    return heard


def _on_edge(digits: str, number: Held) -> bool:
    mantissa, _, exponent = digits.replace("\N{MINUS SIGN}", "-").lower().partition("e")
    if number.error is None or not math.isfinite(number.value):
        return False
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    shown = float(Decimal(mantissa).scaleb(int(exponent or 0)))
    off = abs(number.value - shown)
    return off > 0 and abs(off - unit / 2) <= number.error + 1e-12 * unit


def _numbers(value: Any) -> Iterator[Held]:
    """The numbers of a tensor, of nested sequences, of a number, in their order."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        flat = value.detach().flatten().tolist() if hasattr(value, "detach") else value.ravel()
        part = ERRORS.get(str(value.dtype).removeprefix("torch."))
        finite = [abs(x) for x in flat if part and math.isfinite(x)]
        error = part * max(finite, default=0.0) if part else None
        yield from (Held(x, error) for x in flat)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float):
        part = ERRORS["float32" if _is_single(value) else "float64"]
        yield Held(value, part * abs(value))
    elif isinstance(value, int):
        yield Held(value, None)


def _is_single(value: float) -> bool:
    """Whether a float may have come from a tensor of float32."""
    try:
        return bool(struct.unpack("f", struct.pack("f", value))[0] == value)
    except OverflowError:
        return False
