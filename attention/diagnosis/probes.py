"""Probes: small inputs in which different mistakes give different numbers.

A probe names the options that it needs and what it measures: the output, the
gradients, or statistics of dropout. A case is a probe made for one function:
tensors of the shapes that the function accepts, the right result and the
function's.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from attention.diagnosis.mistakes import Mistake, textbook_attention
from attention.diagnosis.textbook import TextbookAttention, as_heads
from attention.validation import argument_error

# What is measured: tensors by name, or the exception that was raised.
Result: TypeAlias = dict[str, Tensor] | Exception
Attend: TypeAlias = Callable[..., Any]

OPTIONS = {x.name: x.default for x in fields(TextbookAttention)}
ALIASES = {
    "is_causal": "causal",
    "attn_mask": "mask",
    "dropout_p": "dropout",
    "num_heads": "n_heads",
}
FORMS, JOINED = ["(B, H, L, D)", "(L, D)", "(B, L, D)"], "(B, L, H * D)"
# The sizes differ, so that swapped axes show; L is the book's six tokens.
B, H, H_KV, L, S, D, DV = 2, 12, 3, 6, 11, 10, 7


@dataclass(frozen=True)
class Probe:
    """Inputs that tell mistakes apart.

    Args:
        name: its name in a diagnosis.
        options: passed to the function, which must accept them all.
        keys: S.
        kv_heads: H_kv.
        width: Dv.
        times: factor of queries and keys.
        measure: a key of MEASURES, below.
        form: "(L, D)" or another shape; "" is the one the function accepts.
        optional: an exception means that the function does not support this.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    keys: int = L
    kv_heads: int = H
    width: int = D
    times: float | int = 1.0
    measure: str = "out"
    form: str = ""
    optional: bool = False


OFFSET = {"query_offset": 3}
PROBES = [
    Probe("plain"),
    Probe("matrices", form="(L, D)", optional=True),
    Probe("more keys than queries", keys=S, width=DV, optional=True),
    Probe("shared key heads", kv_heads=H_KV, optional=True),
    Probe("large scores", times=10),
    Probe("gradients", measure="gradients"),
    Probe("16 bits", {"dtype": None}, times=200),
    Probe("scale", {"scale": 0.3}),
    Probe("causal", {"causal": True}),
    Probe("causal from an offset", {"causal": True, **OFFSET}, keys=S),
    Probe("window", {"window": 3}),
    Probe("window from an offset", {"window": 3, **OFFSET}, keys=S),
    Probe("mask", {"mask": "some"}),
    Probe("mask for each head", {"mask": "each"}, optional=True),
    Probe("masked large scores", {"mask": "no best"}, times=30),
    Probe("NaN in masked keys", {"mask": "columns"}),
    Probe("masked queries", {"mask": "rows"}),
    Probe("gradients of masked queries", {"mask": "rows"}, measure="NaN"),
    Probe("lengths", {"lengths": "some"}),
    Probe("softcap", {"softcap": 2.0}, times=3),
    Probe("softcap and causal", {"softcap": 2.0, "causal": True}, times=3),
    Probe("softcap and mask", {"softcap": 2.0, "mask": "some"}, times=3),
    Probe("ALiBi", {"alibi": True}),
    Probe("ALiBi from an offset", {"alibi": True, **OFFSET}, keys=S),
    *(
        Probe(
            f"rotary ({pairing}){where}", {"rotary": pairing, **more}, keys=n
        )
        for pairing in ("half", "interleaved")
        for where, more, n in (("", {}, L), (" from an offset", OFFSET, S))
    ),
    Probe("dropout", {"dropout": 0.25}, width=2 * L, measure="dropout"),
    Probe("log-sum-exp", {"return_lse": True}, times=10),
    Probe("log-sum-exp and mask", {"return_lse": True, "mask": "some"}),
]


class UnexpectedOutput(Exception):  # noqa: N818 - nothing failed
    """The function returned something that no attention returns."""


class Call:
    """A function and how to call it: parameters and shapes of its tensors."""

    def __init__(self, fn: Attend, fixed: dict[str, Any]) -> None:
        self.fn, self.fixed = fn, fixed
        self.n_tensors, self.names, self.needed = _parameters(fn)
        forms = [JOINED] if "n_heads" in self.names else FORMS
        tried = {form: Case(PROBES[0], self, form) for form in forms}
        taken = [f for f in forms if isinstance(tried[f].result, dict)]
        fitting = [f for f in taken if "shape" not in tried[f].difference()]
        self.form = (fitting + taken + forms)[0]

    def unsupported(self, probe: Probe) -> str:
        """Why the function cannot be tried on a probe; "" if it can."""
        options, fixed = probe.options, self.fixed
        for option, value in options.items():
            if option not in self.names and option not in fixed:
                hint = "pass dtype=torch.float16"
                return hint if option == "dtype" else f"no option {option}"
            if (
                option in fixed
                and option != "dtype"
                and str(fixed[option]) != str(value)
            ):
                return f"{option} is {fixed[option]!r}"
        wide = (probe.keys, probe.width) != (L, D)
        shared, each = probe.kv_heads != H, options.get("mask") == "each"
        if self.n_tensors < 3 and (wide or options.get("mask") == "columns"):
            return "its keys are its values"
        if probe.keys != L and "query_offset" not in options:
            for option in {"causal", "window", "alibi", "rotary", "mask"}:
                if fixed.get(option):
                    return f"with {option}, and no query_offset"
        no_heads = (shared or each) and self.form in ("(L, D)", "(B, L, D)")
        no_batch = "lengths" in options and self.form == "(L, D)"
        if no_heads or no_batch:
            return f"it takes {self.form}"
        return ""

    def __call__(self, *tensors: Tensor, **options: Any) -> Any:
        """The function's output, if it is one that attention can have."""
        wanted = {**{x: OPTIONS[x] for x in self.needed}, **options}
        given = {n: wanted[w] for w, n in self.names.items() if w in wanted}
        inputs = [*tensors[: self.n_tensors], *given.values()]
        copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        more = dict(zip(given, copies[self.n_tensors :], strict=True))
        out = self.fn(*copies[: self.n_tensors], **more)
        for x, y in zip(inputs, copies, strict=True):
            if isinstance(x, Tensor) and not alike(x, y):
                raise UnexpectedOutput("it changes its inputs")
        parts = out if options.get("return_lse") else (out,)
        tuples = isinstance(parts, tuple)
        if not tuples or not all(isinstance(x, Tensor) for x in parts):
            raise UnexpectedOutput(f"it returns {type(out).__name__}")
        return out


class Case:
    """A probe made for a function, with the expected and the actual result."""

    def __init__(self, probe: Probe, call: Call, form: str = "") -> None:
        self.probe, self.call = probe, call
        self.form = form or probe.form or call.form
        mask = probe.options.get("mask")
        rng = torch.Generator().manual_seed(len(probe.name))
        kv_shape = (B, probe.kv_heads, probe.keys)
        query = torch.randn(B, H, L, D, generator=rng) * probe.times
        key = torch.randn(*kv_shape, D, generator=rng) * probe.times
        value = torch.randn(*kv_shape, probe.width, generator=rng)
        if probe.measure == "dropout":  # the output is then the weights, twice
            value = torch.eye(L).repeat(1, 2)  # (L, 2 L)
            value = value.expand(*kv_shape, -1)  # (B, H, L, 2 L)
        if call.n_tensors < 3:
            value = key = query if call.n_tensors == 1 else key
        allowed = torch.rand(B, H, L, probe.keys, generator=rng) < 0.6
        allowed = allowed | torch.eye(L, probe.keys, dtype=torch.bool)
        if mask == "no best":  # the best key is masked, unless its own
            scores = query @ key.mT  # (B, H, L, S)
            allowed = (scores < scores.amax(-1, True)) | torch.eye(L).bool()
        elif mask == "columns":
            allowed[..., 0], allowed[..., [2, 5]] = True, False
            key[:, :, [2, 5]], value[:, :, [2, 5]] = torch.nan, torch.nan
        elif mask == "rows":
            allowed[:, :, [1, 4]] = False
        made = {"lengths": torch.tensor([4, 5])}
        made["mask"] = allowed if mask == "each" else allowed[0, 0]  # (L, S)
        made = {name: x for name, x in made.items() if name in probe.options}
        self.options = {**probe.options, **call.fixed, **made}
        dtype = self.options.pop("dtype", torch.float32)
        dtype = dtype if "dtype" in probe.options else torch.float32
        if self.form == JOINED:
            self.options["n_heads"] = H
        self.tensors = [
            _in_form(x.to(dtype), self.form) for x in (query, key, value)
        ]
        self.tolerance = max(1e-4, 4 * torch.finfo(dtype).eps)
        self.known: dict[tuple[Mistake, ...], Result] = {}
        self.expected: Result = self.result_with(())
        self.result: Result = self.run(call)

    def run(self, attend: Attend) -> Result:
        """The probe's measurement of an attention."""
        try:
            with warnings.catch_warnings(), torch.random.fork_rng([]):
                warnings.simplefilter("ignore")
                with torch.enable_grad():
                    return MEASURES[self.probe.measure](self, attend)
        except Exception as error:
            return error

    def result_with(self, mistakes: tuple[Mistake, ...]) -> Result:
        """The result of textbook attention with these mistakes."""
        if mistakes not in self.known:
            attend = partial(textbook_attention, mistakes=mistakes)
            self.known[mistakes] = self.run(attend)
        return self.known[mistakes]

    def explained_by(self, mistakes: tuple[Mistake, ...]) -> bool:
        """Whether attention with these mistakes has the function's result."""
        return self.same(self.result_with(mistakes), self.result)

    def reveals(self, mistakes: tuple[Mistake, ...]) -> bool:
        """Whether these mistakes change the result."""
        return not self.same(self.result_with(mistakes), self.expected)

    def same(self, a: Result, b: Result) -> bool:
        """True if both results match; an exception matches nothing."""
        if isinstance(a, Exception) or isinstance(b, Exception):
            return False
        return a.keys() == b.keys() and all(
            alike(a[name], b[name], self.tolerance) for name in a
        )

    def difference(self) -> str:
        """How the function differs from attention here; "" if it does not."""
        if isinstance(self.expected, Exception):
            raise self.expected
        if isinstance(self.result, UnexpectedOutput):
            return str(self.result)
        if isinstance(self.result, Exception):
            message = str(self.result).partition("\n")[0][:90]
            return f"it raises {type(self.result).__name__}: {message}"
        for name, x in self.result.items():
            expected = self.expected.get(name)
            if expected is None or not alike(expected, x, self.tolerance):
                return difference(name, expected, x, self.tolerance)
        return ""


def _parameters(fn: Attend) -> tuple[int, dict[str, str], set[str]]:
    """Number of tensors, parameter of each option, and required options."""
    fn = fn.forward if isinstance(fn, nn.Module) else fn
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin: assume three tensors
        return 3, {}, set()
    tensors, names, needed = list[str](), dict[str, str](), set[str]()
    for x in parameters:
        option = ALIASES.get(x.name, x.name)
        if x.kind is x.VAR_KEYWORD:
            names |= {name: name for name in OPTIONS if name != "n_heads"}
        elif x.kind is x.VAR_POSITIONAL:
            tensors += ["query", "key", "value"]
        elif option in OPTIONS:
            names[option] = x.name
            needed |= {option} if x.default is x.empty else set()
        elif x.default is x.empty:
            tensors.append(x.name)
    if not 1 <= len(tensors) <= 3:
        rule = "take query, key, value and options"
        raise argument_error("fn", rule, ", ".join(tensors) or "nothing")
    return len(tensors), names, needed


def _in_form(x: Tensor, form: str) -> Tensor:
    """A tensor (B, H, L, D) in the shape that a function accepts."""
    if form == JOINED:
        return x.transpose(1, 2).flatten(2)  # (B, L, H * D)
    return {"(L, D)": x[0, 0], "(B, L, D)": x[:, 0]}.get(form, x)


def alike(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors have equal entries, NaN at the same indices."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype == torch.bool:
        return torch.equal(a, b)
    close = torch.isclose(a, b, tolerance, tolerance, equal_nan=True)
    return bool(close.all())


def difference(
    name: str, expected: Tensor | None, got: Tensor, tolerance: float
) -> str:
    """A sentence that says how a tensor differs from the expected one."""
    if expected is None or got.shape != expected.shape:
        return f"{name} has another shape, {tuple(got.shape)}"
    if got.dtype != expected.dtype:
        return f"{name} is {got.dtype}, not {expected.dtype}"
    if got.dtype == torch.bool:
        return f"“{name}” is {bool(got)}, not {bool(expected)}"
    error = (got - expected).abs().nan_to_num(torch.inf)  # (..., L, Dv)
    error = error.masked_fill(got.isnan() & expected.isnan(), 0)
    by_row = error.movedim(-2, 0) if error.dim() > 1 else error[:, None]
    rows = by_row.flatten(1).amax(1) > tolerance  # (L,)
    at = [int(n) for n in torch.unravel_index(error.argmax(), error.shape)]
    some = ", ".join(str(n) for n in range(len(rows)) if rows[n])
    s = "s" if rows.sum() > 1 else ""
    where = "every row" if rows.all() else f"row{s} {some} of {len(rows)}"
    most = f"by up to {error.max():.2g}, at {at}"
    if got.isnan().any():
        most = f"{got.isnan().sum()} of its {got.numel()} numbers being NaN"
    return f"{name} differs in {where}, {most}"


def _out(case: Case, attend: Attend) -> Result:
    out = attend(*case.tensors, **case.options)
    if case.options.get("return_lse"):
        return {"out": out[0], "the log-sum-exp": out[1]}
    return {"out": out}


def _gradients(case: Case, attend: Attend) -> dict[str, Tensor]:
    n = case.call.n_tensors
    leaves = [x.clone().requires_grad_() for x in case.tensors[:n]]
    out = attend(*[*leaves, leaves[-1], leaves[-1]][:3], **case.options)
    upstream = torch.arange(out.numel()).cos().view(out.shape).to(out)
    out = out + 0 * leaves[0].sum()  # even where nothing has a gradient
    gradients = torch.autograd.grad(
        out, leaves, upstream, allow_unused=True, materialize_grads=True
    )
    names = [f"the gradient of {x}" for x in ("query", "key", "value")]
    return dict(zip(names, gradients, strict=False))


def _nan(case: Case, attend: Attend) -> Result:
    parts = [x.flatten() for x in _gradients(case, attend).values()]
    return {"a gradient is NaN": torch.cat(parts).isnan().any()}


def _dropout(case: Case, attend: Attend) -> Result:
    """Dropout statistics that do not depend on the random numbers."""
    p, n_heads = case.options["dropout"], case.options.get("n_heads")
    fixed = "dropout" in case.call.fixed  # fn cannot be called without it
    without: Any = (textbook_attention if fixed else attend)(
        *case.tensors, **{**case.options, "dropout": 0.0}
    )
    torch.manual_seed(0)
    out = attend(*case.tensors, **case.options)
    if out.shape != without.shape:
        return {"out": out}
    (w, _), (a, b) = (
        as_heads(x, n_heads).split(L, dim=-1) for x in (without, out)
    )  # each (B, H, L, L): value is the identity, twice
    kept, share = (a != 0) & (w > 0), 1 - (a != 0).sum() / (w > 0).sum()
    answers = {
        "some weights are dropped": share > 0,
        "more than half are dropped": share > 0.5,
        "kept weights are divided by 1 - p": alike(a[kept], w[kept] / (1 - p)),
        "kept weights stay as they are": alike(a[kept], w[kept]),
        "rows sum to 1": alike(a.sum(-1), w.sum(-1)),
        "all values lose the same weights": alike(a, b),
    }
    return {name: torch.tensor(bool(x)) for name, x in answers.items()}


MEASURES = {
    "out": _out,
    "gradients": _gradients,
    "NaN": _nan,
    "dropout": _dropout,
}
