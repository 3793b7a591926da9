"""Cases for functions that take options instead of mods: textbook attention and its mistakes.

The options are those of attention.diagnosis.textbook. Cases of the matrix that options can express
come first, in float64; then cases of modules, and of numbers that are large, NaN or of 16 bits. The
expected results come from conformance.formula, as in the matrix.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests import conformance
from tests.conformance import Result, differs, formula

INF = math.inf


@dataclass(frozen=True)
class WordCase:
    """A case: tensors, options, and the expected result."""

    name: str
    given: dict[str, Tensor]
    words: dict[str, Any]
    want: Result
    tolerance: float = 1e-9
    gradients: bool = True
    look: Callable[[Tensor], str | None] | None = None  # instead of `want`

    def failure(self, attend: Callable[..., Any]) -> str | None:
        """How a function fails this case, or None."""
        given = {n: x.detach().clone() for n, x in self.given.items()}
        leaves = [given[n].requires_grad_(self.gradients) for n in ("query", "key", "value")]
        torch.manual_seed(0)
        try:
            answer = attend(*leaves, **self.words)
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"
        out, lse = answer if self.words.get("return_lse") else (answer, None)
        if self.look is not None:
            return self.look(out.detach())
        found = differs("out", out.detach(), self.want.out, self.tolerance)
        if lse is not None and self.want.lse is not None:
            found = found or differs("lse", lse.detach(), self.want.lse, self.tolerance)
        if found or not self.gradients:
            return found
        if not out.requires_grad:
            return "there is no gradient"
        asked = (out * given["to_out"]).sum()
        if lse is not None:
            asked = asked + (lse.masked_fill(lse == -INF, 0) * given["to_lse"]).sum()
        gradients = torch.autograd.grad(asked, leaves, allow_unused=True)
        for name, gradient in zip(("query", "key", "value"), gradients, strict=True):
            got = torch.zeros_like(given[name]) if gradient is None else gradient
            what = f"the gradient of {name}"
            found = found or differs(what, got, self.want.gradients[name], 10 * self.tolerance)
        return found


def word_cases() -> Iterator[WordCase]:
    """All cases."""
    yield from of_the_matrix()
    yield from of_numbers()
    yield from of_heads()
    yield from of_turns()
    yield of_dropout()


def of_the_matrix() -> Iterator[WordCase]:
    seen = set()
    for case in conformance.cases():
        mask, score = conformance.MASKS[case.mask], conformance.SCORES[case.score]
        at = case.at
        if mask.words is None or score.words is None or case.offsets == "one a row":
            continue
        if conformance.SHAPES[case.shape].flat or case.shape == "no tile divides":
            continue
        exact = conformance.Case(case.mask, case.score, case.shape, torch.float64, case.offsets)
        if exact in seen:
            continue
        seen.add(exact)
        given = conformance.inputs(exact)
        words = mask.words(at) | score.words | {"return_lse": True}
        if "lengths" in words:
            words["lengths"] = words["lengths"] - at.key  # keys count from 0
        if at.query != at.key:
            words["query_offset"] = at.query - at.key
        yield WordCase(str(exact), given, words, conformance.expected(exact))


def draw(B: int, H: int, H_kv: int, L: int, S: int, D: int, Dv: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    sizes = {
        "query": (B, H, L, D),
        "key": (B, H_kv, S, D),
        "value": (B, H_kv, S, Dv),
        "table": (B, H),
        "to_out": (B, H, L, Dv),
        "to_lse": (B, H, L),
    }
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in sizes.items()}


def without_lse(given: dict[str, Tensor], *how: Any, **more: Any) -> Result:
    """What the formula gives where the log-sum-exp is not asked for."""
    return formula(given | {"to_lse": torch.zeros_like(given["to_lse"])}, *how, **more)


def every(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k == k


def before(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def as_is(s: Tensor, h: Tensor, q: Tensor, k: Tensor, table: Tensor) -> Tensor:
    return s


def of_numbers() -> Iterator[WordCase]:
    given = draw(2, 3, 3, 5, 7, 11, 13)
    yield WordCase("scale", given, {"scale": 0.3}, without_lse(given, every, as_is, scale=0.3))
    for times in (30.0, 400.0):  # where powers of e underflow, and where they overflow
        big = given | {"query": times * given["query"]}
        for name, words, rule in (
            ("", {}, every),
            (", causal", {"causal": True}, before),
        ):
            yield WordCase(
                f"scores times {times:.0f}{name}",
                big,
                words | {"return_lse": True},
                formula(big, rule, as_is),
                gradients=False,
            )
    half = {n: (8 * x if n in ("query", "key") else x).bfloat16() for n, x in given.items()}
    yield WordCase(
        "16 bits", half, {}, formula(half, every, as_is), tolerance=5e-3, gradients=False
    )
    hidden = torch.ones(5, 7, dtype=torch.bool)
    hidden[:, 3] = False
    clean = {n: x.clone() for n, x in given.items()}
    want = formula(clean, lambda b, h, q, k: k != 3, as_is)
    junk = {n: x.clone() for n, x in given.items()}
    junk["key"][:, :, 3], junk["value"][:, :, 3] = math.nan, math.nan
    yield WordCase("NaN in a hidden key", junk, {"mask": hidden}, want, gradients=False)
    wide = draw(2, 3, 3, 7, 7, 4, 4)
    capped = without_lse(wide, before, lambda s, h, q, k, t: 3 * torch.tanh(s / 3), scale=2.0)
    words = {"softcap": 3.0, "scale": 2.0, "causal": True}
    yield WordCase("softcap, causal, large", wide, words, capped)


def of_heads() -> Iterator[WordCase]:
    """Tokens of H * D numbers, which the function is to cut into heads and join again."""
    for H in (2, 3):
        given = draw(2, H, H, 7, 7, 5, 5)
        want = without_lse(given, before, as_is)
        joined = {n: x.transpose(1, 2).flatten(2) for n, x in given.items() if x.dim() == 4}
        whole = Result(
            want.out.transpose(1, 2).flatten(2),
            None,
            {n: g.transpose(1, 2).flatten(2) for n, g in want.gradients.items() if g.dim() == 4},
        )
        words = {"n_heads": H, "causal": True}
        yield WordCase(f"{H} heads of one tensor", given | joined, words, whole)


def turned(x: Tensor, first: int, pairing: str) -> Tensor:
    """Pairs of numbers as complex ones, times e^(i p w)."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if pairing == "interleaved" else x.split(half, -1)
    speeds = torch.tensor([10000 ** (-i / half) for i in range(half)], dtype=torch.float64)
    angles = torch.arange(first, first + x.shape[-2], dtype=torch.float64)[:, None] * speeds
    z = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
    parts = [z.real, z.imag]
    return torch.stack(parts, -1).flatten(-2) if pairing == "interleaved" else torch.cat(parts, -1)


def of_turns() -> Iterator[WordCase]:
    given = draw(2, 3, 3, 5, 7, 6, 6)
    for pairing in ("interleaved", "half"):
        there = given | {
            "query": turned(given["query"], 2, pairing),
            "key": turned(given["key"], 0, pairing),
        }
        want = formula(there, before, as_is, query_offset=2)
        words = {"rotary": pairing, "query_offset": 2, "causal": True}
        # The gradients of what was turned are not those of what is turned.
        yield WordCase(f"rotary, {pairing}", given, words, want, gradients=False)


def of_dropout() -> WordCase:
    """Values that are a unit matrix show each weight: 0, or itself over 1 - p.

    A last column of ones shows their sum, which is that of the weights that were kept.
    """
    given = draw(3, 4, 4, 16, 32, 5, 33)
    unit = torch.cat([torch.eye(32), torch.ones(32, 1)], dim=1).double()
    given["value"] = unit.expand(3, 4, 32, 33).clone()
    weights, p = formula(given, every, as_is).out[..., :32], 0.25

    def look(out: Tensor) -> str | None:
        if out.shape != given["to_out"].shape:
            return f"shape {tuple(out.shape)}"
        out, total = out[..., :32], out[..., 32]
        if not torch.allclose(out.sum(-1), total):
            return "what is dropped is no weight"
        dropped = out == 0
        kept = torch.where(dropped, 0, out * (1 - p) - weights).abs().max()
        if kept > 1e-9:
            return f"a kept weight is off by {kept.item():.2g}"
        share = dropped.double().mean().item()
        return None if abs(share - p) < 0.03 else f"drops {share:.2f} of the weights"

    return WordCase("dropout", given, {"dropout": p}, Result(weights), look=look)
