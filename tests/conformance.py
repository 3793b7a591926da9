"""The conformance matrix: every kernel against one plain formula, case by case.

    python -m tests.conformance

runs it whole and writes benchmarks/conformance.json, from which docs/conformance.md is made;
tests/test_conformance.py runs a sixth of it, or with `pytest -m ""` all of it, and holds the file
against the table. A kernel joins by its name in attention.kernels.KERNELS.

What a mask or a bias means is written down here a second time, as index arithmetic on whole
tensors, and so is attention itself, in float64: nothing of the package is used for what is
expected. Every size of a shape is another prime where it can be, so that swapped axes fail.
"""

import functools
import json
import math
import os
import platform
import sys
import unittest.mock
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.attention.flex_attention as flex_attention
from torch import Tensor
from torch.nn.attention.flex_attention import and_masks, create_block_mask, or_masks

from attention import (
    T5Bias,
    alibi,
    attention,
    causal,
    document,
    first_tokens,
    padding,
    prefix_lm,
    shift,
    sliding_window,
    softcap,
)
from attention.kernels import KERNELS

FILE = Path(__file__).parents[1] / "benchmarks" / "conformance.json"
INF = math.inf


class Shape(NamedTuple):
    """Sizes of query (B, H, L, D), key (B, H_kv, S, D) and value (B, H_kv, S, Dv)."""

    B: int
    H: int
    H_kv: int
    L: int
    S: int
    D: int
    Dv: int
    flat: bool = False  # (L, D), (S, D) and (S, Dv) instead


class At(NamedTuple):
    """Where the pairs of a case stand, and how large it is: what a mask is made from."""

    shape: Shape
    query: Any  # the offsets: int or (B,)
    key: Any


# --- the axes ------------------------------------------------------------------------------------

SHAPES = {
    "L = S": Shape(2, 3, 3, 7, 7, 5, 5),
    "L < S": Shape(2, 3, 3, 5, 11, 7, 7),
    "L > S": Shape(2, 3, 3, 11, 5, 7, 7),
    "L = 1": Shape(2, 3, 3, 1, 7, 5, 5),
    "S = 1": Shape(2, 3, 3, 5, 1, 7, 7),
    "no tile divides": Shape(1, 2, 2, 131, 137, 3, 3),
    "grouped heads": Shape(2, 6, 2, 5, 7, 11, 11),
    "one key head": Shape(3, 5, 1, 7, 7, 2, 2),
    "Dv < D": Shape(2, 3, 3, 5, 5, 11, 7),
    "Dv > D": Shape(2, 4, 2, 5, 7, 3, 11),
    "two dimensions": Shape(1, 1, 1, 5, 7, 3, 11, flat=True),
    "all of size 1": Shape(1, 1, 1, 1, 1, 1, 1),
}


@dataclass(frozen=True)
class Masking:
    """A mask for the package, and what it means: allowed(b, h, q, k) of whole tensors.

    A mask that is a tensor counts from 0, whatever the offsets.
    """

    make: Callable[[At], Any]
    allowed: Callable[..., Tensor]
    words: Callable[[At], dict[str, Any]] | None = None
    is_tensor: bool = False


def ids(at: At) -> Tensor:
    """Documents of some tokens each, and in row 1 other ones."""
    place = torch.arange(160)
    return torch.stack([(place + row) // (3 + row) for row in range(at.shape.B)])


def in_documents(b: Tensor, h: Tensor, q: Tensor, k: Tensor, at: At) -> Tensor:
    return (q + b) // (3 + b) == (k + b) // (3 + b)


def real(at: At) -> Tensor:
    """Lengths: half of the keys, and in the last row none, where there is another row."""
    lengths = torch.full((at.shape.B,), 1 + at.shape.S // 2)
    lengths[1:] = 0
    return lengths + torch.as_tensor(at.key)


def is_real(b: Tensor, h: Tensor, q: Tensor, k: Tensor, at: At) -> Tensor:
    start = torch.as_tensor(at.key).reshape(-1, 1, 1, 1)
    return k < start + torch.where(b == 0, 1 + at.shape.S // 2, 0)


def some(at: At, form: str) -> Tensor:
    """A Boolean tensor of one of the forms that broadcast, with a blind query and a hidden key."""
    shape, sizes = at.shape, dict(zip("BHLS", (*at.shape[:2], *at.shape[3:5]), strict=True))
    generator = torch.Generator().manual_seed(len(form) + shape.L + 7 * shape.S)
    dims = [sizes[n] if n in form else 1 for n in "BHLS"]
    mask = torch.rand(dims, generator=generator) < 0.6
    mask[:, :, -1], mask[..., 0] = False, False
    return mask[0, 0].expand(shape.L, shape.S) if form == "LS" or shape.flat else mask


def tensor(form: str) -> Masking:
    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor, at: At) -> Tensor:
        return some(at, form)

    def words(at: At) -> dict[str, Any]:
        return {"mask": some(at, form)}

    return Masking(lambda at: some(at, form), allowed, words, is_tensor=True)


MASKS = {
    "none": Masking(lambda at: None, lambda b, h, q, k, at: q == q, lambda at: {}, True),
    "causal": Masking(
        lambda at: causal, lambda b, h, q, k, at: k <= q, lambda at: {"causal": True}
    ),
    "sliding_window": Masking(
        lambda at: sliding_window(3),
        lambda b, h, q, k, at: (q - 3 < k) & (k <= q),
        lambda at: {"window": 3},
    ),
    "first_tokens": Masking(lambda at: first_tokens(2), lambda b, h, q, k, at: k <= 1),
    "prefix_lm": Masking(lambda at: prefix_lm(3), lambda b, h, q, k, at: (k <= 2) | (k <= q)),
    "document": Masking(lambda at: document(ids(at)), in_documents),
    "padding": Masking(lambda at: padding(real(at)), is_real, lambda at: {"lengths": real(at)}),
    "shift of causal": Masking(
        lambda at: shift(causal, 2, 1), lambda b, h, q, k, at: k + 1 <= q + 2
    ),
    "shift back: blind queries": Masking(
        lambda at: shift(causal, -3, 0), lambda b, h, q, k, at: k <= q - 3
    ),
    "causal and padding": Masking(
        lambda at: and_masks(causal, padding(real(at))),
        lambda b, h, q, k, at: (k <= q) & is_real(b, h, q, k, at),
        lambda at: {"causal": True, "lengths": real(at)},
    ),
    "causal and document": Masking(
        lambda at: and_masks(causal, document(ids(at))),
        lambda b, h, q, k, at: (k <= q) & in_documents(b, h, q, k, at),
    ),
    "causal and (window or first)": Masking(
        lambda at: and_masks(causal, or_masks(sliding_window(2), first_tokens(1))),
        lambda b, h, q, k, at: (k <= q) & ((k == 0) | (k > q - 2)),
    ),
    "a mod of heads": Masking(
        lambda at: lambda b, h, q, k: q % 3 != h % 2 + (k > q),
        lambda b, h, q, k, at: torch.remainder(q, 3) != torch.remainder(h, 2) + (k > q).long(),
    ),
    "BlockMask of causal": Masking(
        lambda at: create_block_mask(causal, *at.shape[:2], *at.shape[3:5], device="cpu"),
        lambda b, h, q, k, at: k <= q,
        lambda at: {"causal": True},
    ),
    "tensor (L, S)": tensor("LS"),
    "tensor (B, 1, L, S)": tensor("BLS"),
    "tensor (1, H, 1, S)": tensor("HS"),
    "tensor (B, H, L, S)": tensor("BHLS"),
}


@functools.cache
def has_gaps(case: "Case") -> bool:
    """Whether some query sees keys that do not stand side by side, pair by pair."""
    at = case.at
    B, H, _, L, S = at.shape[:5]
    b, h = torch.arange(B)[:, None, None, None], torch.arange(H)[:, None, None]
    q = torch.as_tensor(at.query).reshape(-1, 1, 1, 1) + torch.arange(L)[:, None]
    k = torch.as_tensor(at.key).reshape(-1, 1, 1, 1) + torch.arange(S)
    allowed = MASKS[case.mask].allowed(b, h, q, k, at).expand(B, H, L, S).int()
    begins = allowed.diff(dim=-1, prepend=torch.zeros(B, H, L, 1, dtype=torch.int)) > 0
    return bool((begins.sum(-1) > 1).any())


@dataclass(frozen=True)
class Scoring:
    """A score mod for the package, what it means, and the table that it captures, if any."""

    make: Callable[[At, Tensor], Any]
    score: Callable[..., Tensor]
    words: dict[str, Any] | None = None
    learns: bool = False


N_BUCKETS = 8


def slopes(n_heads: int) -> Tensor:
    """The published slopes for the head counts of SHAPES, as powers of two."""
    exponents = {
        1: [8],
        2: [4, 8],
        3: [4, 8, 2],
        4: [2, 4, 6, 8],
        5: [2, 4, 6, 8, 1],
        6: [2, 4, 6, 8, 1, 3],
    }
    return torch.tensor([2.0**-e for e in exponents[n_heads]], dtype=torch.float64)


def bucket(q: Tensor, k: Tensor) -> Tensor:
    """T5's buckets of 8, both ways, to distance 16: 0, 1, then from 2, and from 6 (2 sqrt 8)."""
    distance = (k - q).abs()
    near = sum((distance >= bound).long() for bound in (1, 2, 6))
    return near + 4 * (k > q)


def t5(at: At, table: Tensor) -> T5Bias:
    bias = T5Bias(at.shape.H, n_buckets=N_BUCKETS, max_distance=16)
    del bias.table.weight
    bias.table.weight = table  # type: ignore[assignment]  # the case's own leaf
    return bias


SCORES = {
    "none": Scoring(lambda at, table: None, lambda s, h, q, k, table: s, {}),
    "softcap": Scoring(
        lambda at, table: softcap(0.7),
        lambda s, h, q, k, table: 0.7 * torch.tanh(s / 0.7),
        {"softcap": 0.7},
    ),
    "alibi": Scoring(
        lambda at, table: alibi(at.shape.H),
        lambda s, h, q, k, table: s - slopes(s.shape[1])[h] * (k - q).abs(),
        {"alibi": True},
    ),
    "softcap, then alibi": Scoring(
        lambda at, table: lambda s, *where: alibi(at.shape.H)(softcap(0.7)(s, *where), *where),
        lambda s, h, q, k, table: 0.7 * torch.tanh(s / 0.7) - slopes(s.shape[1])[h] * (k - q).abs(),
        {"softcap": 0.7, "alibi": True},
    ),
    "T5Bias": Scoring(
        t5, lambda s, h, q, k, table: s + table.double()[bucket(q, k), h], learns=True
    ),
    "a captured table": Scoring(
        lambda at, table: lambda s, b, h, q, k: s * (1 + table[b, h].to(s.dtype)) + table[b, 0],
        lambda s, h, q, k, table: s * (1 + table.double()[_b(s), h]) + table.double()[_b(s), 0],
        learns=True,
    ),
}


def _b(s: Tensor) -> Tensor:
    return torch.arange(len(s))[:, None, None, None]


# What a result may differ by, of 1 and the result itself. Inputs are rounded to the dtype before the
# formula sees them, so this is the kernel's own rounding: with 16 bits, of the output alone, which
# is half of the dtype's epsilon, except in FlexAttention, which multiplies in 16 bits.
DTYPES = {
    torch.float64: 1e-11,
    torch.float32: 3e-5,
    torch.float16: 6e-4,
    torch.bfloat16: 5e-3,
}
ROUNDS = {"flex": 20, "triton": 5}
OFFSETS = ("none", "ints", "one a row")


# --- a case --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One point of the matrix."""

    mask: str
    score: str
    shape: str
    dtype: torch.dtype
    offsets: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.mask} | {self.score} | {self.shape} | {dtype} | offsets: {self.offsets}"

    @property
    def at(self) -> At:
        shape = SHAPES[self.shape]
        rows = torch.arange(shape.B)
        query, key = {"none": (0, 0), "ints": (4, 1), "one a row": (3 + 2 * rows, 1 + rows)}[
            self.offsets
        ]
        return At(shape, query, key)


def cases() -> Iterator[Case]:
    """Masks x scores x shapes, with dtypes and offsets that go round beside them.

    Seven cases of twelve are in float64, and the shapes begin elsewhere for each mask and score, so
    that every value of one axis meets every value of each other one.
    """
    dtypes = (*DTYPES, torch.float64, torch.float32, torch.float64)
    for (m, mask), (s, score) in product(enumerate(MASKS), enumerate(SCORES)):
        for i, shape in enumerate(SHAPES):
            dtype = dtypes[(i + 3 * m + 5 * s) % len(dtypes)]
            offsets = OFFSETS[(i + m + s) % len(OFFSETS)]
            if SHAPES[shape].flat and offsets == "one a row":
                offsets = "ints"
            yield Case(mask, score, shape, dtype, offsets)


def square() -> list[Case]:
    """A sixth of the cases, as a Latin square: each mask meets each shape, with one score each.

    The scores go round so that every value of one axis still meets every value of each other one.
    """
    scores = [*SCORES]
    chosen = {
        (mask, scores[(m + i + i // 6 + 4 * (m // 6)) % len(scores)], shape)
        for (m, mask), (i, shape) in product(enumerate(MASKS), enumerate(SHAPES))
    }
    return [case for case in cases() if (case.mask, case.score, case.shape) in chosen]


@dataclass
class Result:
    """What a kernel or the formula gives: values, log-sum-exp, and gradients by name."""

    out: Tensor
    lse: Tensor | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)


@functools.cache
def inputs(case: Case) -> dict[str, Tensor]:
    """Query, key and value, the table that a score mod captures, and directions to ask along."""
    generator = torch.Generator().manual_seed(3)
    B, H, H_kv, L, S, D, Dv, _ = SHAPES[case.shape]
    sizes = {
        "query": (B, H, L, D),
        "key": (B, H_kv, S, D),
        "value": (B, H_kv, S, Dv),
        "table": (N_BUCKETS, H) if case.score == "T5Bias" else (B, H),
        "to_out": (B, H, L, Dv),
        "to_lse": (B, H, L),
    }
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in sizes.items()}
    return {n: x.to(case.dtype) for n, x in made.items()}


NAMES = ("query", "key", "value", "table")


def formula(
    given: dict[str, Tensor],
    allowed: Callable[..., Tensor],
    score: Callable[..., Tensor],
    query_offset: Any = 0,
    key_offset: Any = 0,
    scale: float | None = None,
) -> Result:
    """Attention written down in float64, and its derivatives by autograd."""
    given = {n: x.detach().double().clone() for n, x in given.items()}
    query, key, value, table = (given[n].requires_grad_() for n in NAMES)
    (B, H, L, D), (_, H_kv, S, _) = query.shape, key.shape
    b, h = torch.arange(B)[:, None, None, None], torch.arange(H)[:, None, None]
    q = torch.as_tensor(query_offset).reshape(-1, 1, 1, 1) + torch.arange(L)[:, None]
    k = torch.as_tensor(key_offset).reshape(-1, 1, 1, 1) + torch.arange(S)
    group = torch.tensor([head * H_kv // H for head in range(H)])
    scale = D**-0.5 if scale is None else scale
    scores = torch.einsum("bhld,bhsd->bhls", query, key[:, group]) * scale
    scores = score(scores, h, q, k, table)
    may = allowed(b, h, q, k).expand(B, H, L, S)
    top = scores.detach().masked_fill(~may, -INF).amax(-1, keepdim=True)
    sees = may.any(-1, keepdim=True)
    top = torch.where(sees, top, 0)
    powers = torch.where(may, (torch.where(may, scores, 0) - top).exp(), 0)
    total = torch.where(sees, powers.sum(-1, keepdim=True), 1)
    out = torch.einsum("bhls,bhsv->bhlv", powers / total, value[:, group])
    lse = (total.log() + top)[..., 0]
    asked = (out * given["to_out"]).sum() + (lse * given["to_lse"] * sees[..., 0]).sum()
    found = torch.autograd.grad(asked, (query, key, value, table), allow_unused=True)
    gradients = {
        n: torch.zeros_like(given[n]) if g is None else g for n, g in zip(NAMES, found, strict=True)
    }
    lse = torch.where(sees[..., 0], lse, -INF)
    return Result(out.detach(), lse.detach(), gradients)


@functools.cache
def expected(case: Case, with_lse: bool = True) -> Result:
    """What the formula gives; without the log-sum-exp, gradients are those of the output alone."""
    at = case.at
    given = inputs(case)
    if not with_lse:
        given = given | {"to_lse": torch.zeros_like(given["to_lse"])}
    return formula(
        given,
        functools.partial(MASKS[case.mask].allowed, at=at),
        SCORES[case.score].score,
        at.query,
        at.key,
    )


# --- a run ---------------------------------------------------------------------------------------

ASPECTS = ("values", "log-sum-exp", "gradients", "gradients of what is captured")
Kernel = Callable[..., Any]


# Where FlexAttention is asked for the gradient of a table, it must trace the case first, for half
# a second each; so it is asked at these shapes alone.
TRACED = ("grouped heads", "two dimensions")


def refusals(kernel: str, case: Case) -> dict[str, str | None]:
    """For each aspect that applies, the capability that the kernel lacks for it, or None."""
    lacks = KERNELS[kernel].unsupported
    needs = {
        "values": [],
        "log-sum-exp": ["return_lse"],
        "gradients": ["gradients on a CPU"],
        "gradients of what is captured": ["gradients of what a score_mod captures"],
    }
    scored = ["score_mod"] if case.score != "none" else []
    if has_gaps(case):
        scored.append("masks with gaps")
    return {
        aspect: next((c for c in scored + needs[aspect] if c in lacks), None)
        for aspect in ASPECTS
        if aspect != ASPECTS[3]
        or (SCORES[case.score].learns and (kernel != "flex" or case.shape in TRACED))
    }


def run(case: Case, kernel: str, *, lse: bool, gradients: bool, captured: bool) -> Result:
    """The kernel's answer to a case, in the dimensions of the case's shape."""
    given = {n: x.clone() for n, x in inputs(case).items()}
    if SHAPES[case.shape].flat:
        given.update({n: given[n][0, 0] for n in ("query", "key", "value", "to_out", "to_lse")})
    leaves = ["query", "key", "value"] if gradients else []
    leaves += ["table"] if captured else []
    # PyTorch's switch for trying a mod without tracing it. Without the trace it would drop the
    # gradient of a table in silence: there it stays off.
    switch = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    with unittest.mock.patch.object(flex_attention, switch, not captured):
        return _run(case, kernel, given, leaves, lse)


def _run(case: Case, kernel: str, given: dict[str, Tensor], leaves: list[str], lse: bool) -> Result:
    for name in leaves:
        given[name].requires_grad_()
    at, mask = case.at, MASKS[case.mask]
    score_mod = SCORES[case.score].make(at, given["table"])
    placed = score_mod is not None or not mask.is_tensor
    answer = attention(
        given["query"],
        given["key"],
        given["value"],
        mask=mask.make(at),
        score_mod=score_mod,
        query_offset=at.query if placed else None,
        key_offset=at.key if placed else None,
        kernel=kernel,
        return_lse=lse,
    )
    out, log = answer if lse else (answer, None)
    result = Result(out.detach(), None if log is None else log.detach())
    if leaves:
        asked = (out * given["to_out"]).sum()
        if log is not None:
            asked = asked + (log.masked_fill(log == -INF, 0) * given["to_lse"]).sum()
        found = torch.autograd.grad(asked, [given[n] for n in leaves], allow_unused=True)
        result.gradients = {
            n: torch.zeros_like(given[n]) if g is None else g
            for n, g in zip(leaves, found, strict=True)
        }
    return result


def differs(name: str, got: Tensor | None, want: Tensor, tolerance: float) -> str | None:
    """What is wrong with a result, in words, or None."""
    if got is None:
        return f"{name} is missing"
    if got.numel() != want.numel():
        return f"{name} has shape {tuple(got.shape)}"
    got, want = got.double().reshape(-1), want.reshape(-1)
    if not torch.equal(got.isneginf(), want.isneginf()):
        return f"{name} is -inf elsewhere"
    got, want = got.masked_fill(got.isneginf(), 0), want.masked_fill(want.isneginf(), 0)
    off = (got - want).abs() / (1 + want.abs())
    if not bool((off <= tolerance).all()):
        return f"{name} is off by {off.max().item():.2g}, allowed {tolerance:.2g}"
    return None


def check(case: Case, kernel: str) -> dict[str, str]:
    """Run a case and say of each aspect "passed" or "refused", or what went wrong."""
    why, want = refusals(kernel, case), expected(case)
    tolerance = DTYPES[case.dtype] * (ROUNDS.get(kernel, 1) if case.dtype.itemsize == 2 else 1)
    verdict = {}
    able = {
        "lse": why["log-sum-exp"] is None,
        "gradients": why["gradients"] is None,
        "captured": why.get(ASPECTS[3], "not asked") is None,
    }
    for aspect, capability in why.items():
        if capability is None:
            continue
        word = {"log-sum-exp": "lse", "gradients": "gradients"}.get(aspect)
        ask = {"lse": False, "gradients": False, "captured": aspect == ASPECTS[3]}
        try:
            run(case, kernel, **(ask if word is None else ask | {word: True}))
            verdict[aspect] = f"not refused: {capability}"
        except NotImplementedError as error:
            named = repr(kernel) in str(error) and capability in str(error)
            scored = aspect == ASPECTS[3] and "score_mod" in str(error)
            verdict[aspect] = "refused" if named or scored else f"refused as: {error}"
    if why["values"] is not None:
        return verdict
    got = run(case, kernel, **able)
    found = {"values": differs("out", got.out, want.out, tolerance)}
    if got.out.dtype != case.dtype:
        found["values"] = f"out is {got.out.dtype}"
    if able["lse"] and want.lse is not None:
        found["log-sum-exp"] = differs("lse", got.lse, want.lse, min(tolerance, 5e-2))
    # What the log-sum-exp adds to the gradients is expected only where it was returned.
    goal = expected(case, able["lse"]).gradients
    wide = tolerance * (20 if case.dtype in (torch.float16, torch.bfloat16) else 10)
    for name, gradient in got.gradients.items():
        aspect = ASPECTS[3] if name == "table" else "gradients"
        new = differs(f"the gradient of {name}", gradient, goal[name], wide)
        found[aspect] = found.get(aspect) or new
    return verdict | {aspect: wrong or "passed" for aspect, wrong in found.items()}


def killed() -> dict[str, str | None]:
    """For each known mistake the first case of tests.words that it fails."""
    from attention.diagnosis.mistakes import MISTAKES
    from tests.words import word_cases

    known = list(word_cases())
    return {
        name: next((case.name for case in known if case.failure(mistake)), None)
        for name, mistake in MISTAKES.items()
    }


def matrix() -> dict[str, Any]:
    """Run everything; counts by kernel, by aspect and by mask."""
    counts: dict[str, Any] = {}
    for kernel in KERNELS:
        by_mask = {mask: Counter[str]() for mask in MASKS}
        by_aspect = {aspect: Counter[str]() for aspect in ASPECTS}
        for case in cases():
            for aspect, verdict in check(case, kernel).items():
                if verdict not in ("passed", "refused"):
                    raise AssertionError(f"{kernel}: {case}: {verdict}")
                by_aspect[aspect][verdict] += 1
                by_mask[case.mask][verdict] += 1
        counts[kernel] = {"aspects": by_aspect, "masks": by_mask}
        print(kernel, {a: dict(c) for a, c in by_aspect.items()}, file=sys.stderr)
    return {
        "command": "python -m tests.conformance",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cases": len(list(cases())),
        "shapes": {n: [*s[:7]] for n, s in SHAPES.items()},
        "scores": list(SCORES),
        "dtypes": [str(d).removeprefix("torch.") for d in DTYPES],
        "offsets": list(OFFSETS),
        "kernels": counts,
        "killed": killed(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(matrix(), indent=1) + "\n")
