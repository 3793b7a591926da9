"""Checks of arguments: TypeError or ValueError with name, rule and value.

Nothing is cast or broadcast here. A check that returns something returns the
argument in the form that the caller needs.
"""

import math
import sys

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def type_name(x: object) -> str:
    """A tensor's dtype, or the name of another object's type."""
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def argument_error(
    name: str, rule: str, got: object, error: type[Exception] = ValueError
) -> Exception:
    """An exception that says "NAME must RULE, got GOT"."""
    return error(f"{name} must {rule}, got {got}")


def shapes(tensors: dict[str, Tensor]) -> str:
    """Names and shapes of tensors, for an error."""
    return ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())


def check_floating(name: str, x: object) -> None:
    """Raise unless x is a tensor of one of the dtypes in FLOATS."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        rule = "be a tensor of float16, bfloat16, float32 or float64"
        raise argument_error(name, rule, type_name(x), TypeError)


def check_integers(name: str, x: object) -> None:
    """Raise unless x is a tensor of one of the dtypes in INTEGERS."""
    if not isinstance(x, Tensor) or x.dtype not in INTEGERS:
        rule = "be a tensor of int32 or int64"
        raise argument_error(name, rule, type_name(x), TypeError)


def check_dim(x: Tensor, dim: int) -> None:
    """Raise unless x is a floating-point tensor and dim is one of its dims."""
    check_floating("x", x)
    if x.dim() == 0:
        raise argument_error("x", "have at least one dimension", "shape ()")
    if not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"dim={dim!r} must be an integer from {-x.dim()} to {x.dim() - 1} "
            f"for x of shape {tuple(x.shape)}"
        )


def check_parts(outs: Tensor, lses: Tensor) -> None:
    """Raise unless outs (n, ..., Dv) and lses (n, ...) fit together."""
    for name, x in (("outs", outs), ("lses", lses)):
        check_floating(name, x)
    if lses.dim() == 0 or outs.shape[:-1] != lses.shape:
        rule = "be (n, ..., Dv), where lses is (n, ...)"
        got = shapes({"outs": outs, "lses": lses})
        raise argument_error("outs", rule, got)


def check_tensors(**tensors: Tensor) -> None:
    """Raise unless query, key and, where given, value fit together."""
    for name, x in tensors.items():
        check_floating(name, x)
    query, key, *rest = tensors.values()
    names = ", ".join(tensors)
    dims = {x.dim() for x in tensors.values()}
    if dims not in ({2}, {4}):
        rule = "all be (L, D) or all (B, H, L, D)"
        raise argument_error(names, rule, shapes(tensors))
    for x in (key, *rest):
        if x.dtype != query.dtype or x.device != query.device:
            what = "dtype" if x.dtype != query.dtype else "device"
            got = [getattr(x, what) for x in tensors.values()]
            raise argument_error(names, f"share one {what}", got)
    if query.shape[-1] != key.shape[-1] or query.shape[-1] == 0:
        rule = "have the same head size D, at least 1"
        raise argument_error("query and key", rule, shapes(tensors))
    if rest and rest[0].shape[:-1] != key.shape[:-1]:
        rule = "have one row for each row of key"
        raise argument_error("value", rule, shapes(tensors))
    if dims == {2}:
        return
    H, H_kv = query.shape[1], key.shape[1]
    if query.shape[0] != key.shape[0]:
        rule = "have the same batch size B"
        raise argument_error("query and key", rule, shapes(tensors))
    if H_kv == 0 or H % H_kv:
        rule = f"be a multiple of those of key, H_kv={H_kv}"
        raise argument_error(
            f"the heads of query, H={H},", rule, shapes(tensors)
        )


def check_gradient(grad_out: Tensor, query: Tensor, value: Tensor) -> None:
    """Raise unless grad_out has the output's shape, dtype and device."""
    check_floating("grad_out", grad_out)
    shape = (*query.shape[:-1], value.shape[-1])
    if grad_out.shape != shape:
        rule = f"have the output's shape {shape}"
        raise argument_error("grad_out", rule, tuple(grad_out.shape))
    for what in ("dtype", "device"):
        if getattr(grad_out, what) != getattr(query, what):
            rule = f"share the {what} of query, {getattr(query, what)}"
            raise argument_error("grad_out", rule, getattr(grad_out, what))


def check_start(name: str, offset: object, x: Tensor) -> int | Tensor:
    """Raise unless offset is an int or, for a batch x, integers (B,)."""
    if type(offset) is int:
        return offset
    if not isinstance(offset, Tensor) or offset.dtype not in INTEGERS:
        rule = "be an int or a tensor of int32 or int64"
        raise argument_error(name, rule, type_name(offset), TypeError)
    if x.dim() == 2 or offset.shape != x.shape[:1]:
        got = f"{tuple(offset.shape)} for {tuple(x.shape)}"
        rule = "be an int or, for a batch, a tensor (B,)"
        raise argument_error(name, rule, got)
    if offset.device != x.device:
        raise argument_error(name, f"be on {x.device}", offset.device)
    return offset


def check_scale(scale: object, head_size: int) -> float:
    """Raise unless scale is a finite number above 0; None is 1 / sqrt(D)."""
    if scale is None:
        return 1 / math.sqrt(head_size)
    return check_number("scale", scale, "be a number or None")


def check_number(
    name: str, x: object, rule: str = "be a number", above: float = 0
) -> float:
    """Raise unless x is a finite number above another."""
    if isinstance(x, bool) or not isinstance(x, (float, int)):
        raise argument_error(name, rule, type_name(x), TypeError)
    if not above < x <= sys.float_info.max:
        raise ValueError(f"{name}={x} must be finite and above {above}")
    return float(x)


def check_sizes(least: int = 1, /, **sizes: object) -> None:
    """Raise unless each size is an integer and at least the least."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise argument_error(name, "be an integer", repr(size), TypeError)
        if size < least:
            raise ValueError(f"{name}={size} must be at least {least}")


def check_divides(**sizes: int) -> None:
    """Raise unless the second of two sizes divides the first."""
    check_sizes(**sizes)
    (name, size), (divisor, parts) = sizes.items()
    if size % parts:
        raise ValueError(
            f"{name}={size} must be divisible by {divisor}={parts}"
        )


def check_even(**sizes: int) -> None:
    """Raise unless each size is an even number, at least 2."""
    check_sizes(2, **sizes)
    for name, size in sizes.items():
        if size % 2:
            raise ValueError(f"{name}={size} must be even")


def check_sequence(name: str, x: Tensor, weight: Tensor, size: str) -> None:
    """Raise unless x is (L, in) or (B, L, in) for a weight (out, in).

    x must share the weight's dtype, unless autocast is on. `size` is the
    layer's name for `in`.
    """
    check_floating(name, x)
    width = weight.shape[1]
    if x.dim() not in (2, 3) or x.shape[-1] != width:
        rule = f"be (L, {width}) or (B, L, {width}), where {size}={width}"
        raise argument_error(name, rule, tuple(x.shape))
    cast = torch.is_autocast_enabled(x.device.type)
    if x.dtype != weight.dtype and not cast:
        raise argument_error(
            name, f"share the layer's dtype {weight.dtype}", x.dtype
        )
