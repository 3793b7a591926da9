"""Probes: small inputs in which different mistakes give different numbers.

A probe says which words it needs, and what is looked at: the output, the
gradients, or what dropout did. For a function it becomes a case, with tensors
of the shapes that the function takes, with what is right and with what the
function gives.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from attention.diagnosis.mistakes import Wrong, right
from attention.diagnosis.textbook import Steps, as_heads
from attention.validation import argument_error

# What an attention gives: tensors by name, or the error that it raises.
Found: TypeAlias = dict[str, Tensor] | Exception
Attend: TypeAlias = Callable[..., Any]

WORDS = {word.name: word.default for word in fields(Steps)}
ALIASES = {
    "is_causal": "causal",
    "attn_mask": "mask",
    "dropout_p": "dropout",
    "num_heads": "n_heads",
}
FORMS, JOINED = ["(B, H, L, D)", "(L, D)", "(B, L, D)"], "(B, L, H * D)"
# Every size is another; sentences are as long as the book's six tokens.
B, H, H_KV, L, S, D, DV = 2, 12, 3, 6, 11, 10, 7


@dataclass(frozen=True)
class Probe:
    """Inputs that tell mistakes apart.

    Args:
        name: what it is called in a diagnosis.
        words: given to the function, which must take them all.
        keys: S.
        kv_heads: H_kv.
        width: Dv.
        times: what queries and keys are multiplied by.
        look: which of the functions below looks at the result.
        form: "(L, D)" or another; "" is the one that the function takes.
        optional: an error means that the function does not go so far.
    """

    name: str
    words: dict[str, Any] = field(default_factory=dict)
    keys: int = L
    kv_heads: int = H
    width: int = D
    times: float | int = 1.0
    look: str = "out"
    form: str = ""
    optional: bool = False


OFFSET = {"query_offset": 3}
PROBES = [
    Probe("plain"),
    Probe("matrices", form="(L, D)", optional=True),
    Probe("more keys than queries", keys=S, width=DV, optional=True),
    Probe("shared key heads", kv_heads=H_KV, optional=True),
    Probe("large scores", times=10),
    Probe("gradients", look="gradients"),
    Probe("16 bits", {"dtype": None}, times=200),
    Probe("scale", {"scale": 0.3}),
    Probe("causal", {"causal": True}),
    Probe("causal from an offset", {"causal": True, **OFFSET}, keys=S),
    Probe("window", {"window": 3}),
    Probe("window from an offset", {"window": 3, **OFFSET}, keys=S),
    Probe("mask", {"mask": "some"}),
    Probe("mask for each head", {"mask": "each"}, optional=True),
    Probe("masked large scores", {"mask": "no best"}, times=30),
    Probe("NaN in hidden keys", {"mask": "columns"}),
    Probe("blind queries", {"mask": "rows"}),
    Probe("gradients of blind queries", {"mask": "rows"}, look="NaN"),
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
    Probe("dropout", {"dropout": 0.25}, width=2 * L, look="dropout"),
    Probe("log-sum-exp", {"return_lse": True}, times=10),
    Probe("log-sum-exp and mask", {"return_lse": True, "mask": "some"}),
]


class Odd(Exception):  # noqa: N818 - the answer is odd, nothing failed
    """A function answered, and not as an attention does."""


class Call:
    """A function, and how it is to be called."""

    def __init__(self, fn: Attend, fixed: dict[str, Any]) -> None:
        self.fn, self.fixed = fn, fixed
        self.n_tensors, self.names, self.needed = _parameters(fn)
        forms = [JOINED] if "n_heads" in self.names else FORMS
        tried = {form: Case(PROBES[0], self, form) for form in forms}
        taken = [f for f in forms if isinstance(tried[f].found, dict)]
        fitting = [f for f in taken if "shape" not in tried[f].difference()]
        self.form = (fitting + taken + forms)[0]

    def cannot(self, probe: Probe) -> str:
        """Why a probe cannot be tried: a word; "" if it can be."""
        words, fixed = probe.words, self.fixed
        for word, value in words.items():
            if word not in self.names and word not in fixed:
                ask = "pass dtype=torch.float16"
                return ask if word == "dtype" else f"no word {word}"
            if (
                word in fixed
                and word != "dtype"
                and str(fixed[word]) != str(value)
            ):
                return f"{word} is {fixed[word]!r}"
        wide = (probe.keys, probe.width) != (L, D)
        shared, each = probe.kv_heads != H, words.get("mask") == "each"
        if self.n_tensors < 3 and (wide or words.get("mask") == "columns"):
            return "its keys are its values"
        if probe.keys != L and "query_offset" not in words:
            for word in {"causal", "window", "alibi", "rotary", "mask"}:
                if fixed.get(word):
                    return f"with {word}, and no query_offset"
        no_heads = (shared or each) and self.form in ("(L, D)", "(B, L, D)")
        no_batch = "lengths" in words and self.form == "(L, D)"
        if no_heads or no_batch:
            return f"it takes {self.form}"
        return ""

    def __call__(self, *tensors: Tensor, **words: Any) -> Any:
        """The function's answer, if it is what an attention gives."""
        wanted = {**{word: WORDS[word] for word in self.needed}, **words}
        given = {n: wanted[w] for w, n in self.names.items() if w in wanted}
        inputs = [*tensors[: self.n_tensors], *given.values()]
        copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        more = dict(zip(given, copies[self.n_tensors :], strict=True))
        out = self.fn(*copies[: self.n_tensors], **more)
        for x, y in zip(inputs, copies, strict=True):
            if isinstance(x, Tensor) and not alike(x, y):
                raise Odd("it changes what it is given")
        parts = out if words.get("return_lse") else (out,)
        tuples = isinstance(parts, tuple)
        if not tuples or not all(isinstance(x, Tensor) for x in parts):
            raise Odd(f"it returns {type(out).__name__}")
        return out


class Case:
    """A probe, made for a function, and what the function does in it."""

    def __init__(self, probe: Probe, call: Call, form: str = "") -> None:
        self.probe, self.call = probe, call
        self.form = form or probe.form or call.form
        mask = probe.words.get("mask")
        numbers = torch.Generator().manual_seed(len(probe.name))
        keys = (B, probe.kv_heads, probe.keys)
        query = torch.randn(B, H, L, D, generator=numbers) * probe.times
        key = torch.randn(*keys, D, generator=numbers) * probe.times
        value = torch.randn(*keys, probe.width, generator=numbers)
        if probe.look == "dropout":  # the output is then the weights, twice
            value = torch.eye(L).repeat(1, 2).expand(*keys, -1)
        if call.n_tensors < 3:
            value = key = query if call.n_tensors == 1 else key
        seen = torch.rand(B, H, L, probe.keys, generator=numbers) < 0.6
        seen = seen | torch.eye(L, probe.keys, dtype=torch.bool)
        if mask == "no best":  # the best key is hidden, unless its own
            scores = query @ key.mT
            seen = (scores < scores.amax(-1, True)) | torch.eye(L).bool()
        elif mask == "columns":
            seen[..., 0], seen[..., [2, 5]] = True, False
            key[:, :, [2, 5]], value[:, :, [2, 5]] = torch.nan, torch.nan
        elif mask == "rows":
            seen[:, :, [1, 4]] = False
        made = {"lengths": torch.tensor([4, 5])}
        made["mask"] = seen if mask == "each" else seen[0, 0]
        made = {word: x for word, x in made.items() if word in probe.words}
        self.words = {**probe.words, **call.fixed, **made}
        dtype = self.words.pop("dtype", torch.float32)
        dtype = dtype if "dtype" in probe.words else torch.float32
        if self.form == JOINED:
            self.words["n_heads"] = H
        self.tensors = [
            _in_form(x.to(dtype), self.form) for x in (query, key, value)
        ]
        self.tolerance = max(1e-4, 4 * torch.finfo(dtype).eps)
        self.known: dict[tuple[Wrong, ...], Found] = {}
        self.expected: Found = self.behaviour(())
        self.found: Found = self.run(call)

    def run(self, attend: Attend) -> Found:
        """What an attention does here, looked at as the probe wants it."""
        try:
            with warnings.catch_warnings(), torch.random.fork_rng([]):
                warnings.simplefilter("ignore")
                with torch.enable_grad():
                    return LOOKS[self.probe.look](self, attend)
        except Exception as error:
            return error

    def behaviour(self, faults: tuple[Wrong, ...]) -> Found:
        """What attention with these faults does here."""
        if faults not in self.known:
            self.known[faults] = self.run(partial(right, wrongs=faults))
        return self.known[faults]

    def shows(self, faults: tuple[Wrong, ...]) -> bool:
        """Whether attention with these faults does what the function does."""
        return self.same(self.behaviour(faults), self.found)

    def changes(self, faults: tuple[Wrong, ...]) -> bool:
        """Whether these faults can be seen here."""
        return not self.same(self.behaviour(faults), self.expected)

    def same(self, a: Found, b: Found) -> bool:
        """Whether two found the same; who raises an error found nothing."""
        if isinstance(a, Exception) or isinstance(b, Exception):
            return False
        return a.keys() == b.keys() and all(
            alike(a[name], b[name], self.tolerance) for name in a
        )

    def difference(self) -> str:
        """How the function differs from attention here; "" if it does not."""
        if isinstance(self.expected, Exception):
            raise self.expected
        if isinstance(self.found, Odd):
            return str(self.found)
        if isinstance(self.found, Exception):
            said = str(self.found).partition("\n")[0][:90]
            return f"it raises {type(self.found).__name__}: {said}"
        for name, x in self.found.items():
            right = self.expected.get(name)
            if right is None or not alike(right, x, self.tolerance):
                return difference(name, right, x, self.tolerance)
        return ""


def _parameters(fn: Attend) -> tuple[int, dict[str, str], set[str]]:
    """How many tensors, the parameter for each word, and the words needed."""
    fn = fn.forward if isinstance(fn, nn.Module) else fn
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin: it takes three tensors
        return 3, {}, set()
    tensors, names, needed = list[str](), dict[str, str](), set[str]()
    for x in parameters:
        word = ALIASES.get(x.name, x.name)
        if x.kind is x.VAR_KEYWORD:
            names |= {word: word for word in WORDS if word != "n_heads"}
        elif x.kind is x.VAR_POSITIONAL:
            tensors += ["query", "key", "value"]
        elif word in WORDS:
            names[word] = x.name
            needed |= {word} if x.default is x.empty else set()
        elif x.default is x.empty:
            tensors.append(x.name)
    if not 1 <= len(tensors) <= 3:
        rule = "take query, key, value, and words"
        raise argument_error("fn", rule, ", ".join(tensors) or "nothing")
    return len(tensors), names, needed


def _in_form(x: Tensor, form: str) -> Tensor:
    """Heads (B, H, L, D) in another form."""
    if form == JOINED:
        return x.transpose(1, 2).flatten(2)
    return {"(L, D)": x[0, 0], "(B, L, D)": x[:, 0]}.get(form, x)


def alike(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors hold the same numbers, NaN in the same places."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype == torch.bool:
        return torch.equal(a, b)
    close = torch.isclose(a, b, tolerance, tolerance, equal_nan=True)
    return bool(close.all())


def difference(
    name: str, right: Tensor | None, got: Tensor, tolerance: float
) -> str:
    """In words, how a tensor differs from the right one."""
    if right is None or got.shape != right.shape:
        return f"{name} has another shape, {tuple(got.shape)}"
    if got.dtype != right.dtype:
        return f"{name} is {got.dtype}, not {right.dtype}"
    if got.dtype == torch.bool:
        return f"“{name}” is {bool(got)}, not {bool(right)}"
    far = (got - right).abs().nan_to_num(torch.inf)
    far = far.masked_fill(got.isnan() & right.isnan(), 0)
    by_row = far.movedim(-2, 0) if far.dim() > 1 else far[:, None]
    rows = by_row.flatten(1).amax(1) > tolerance
    at = [int(n) for n in torch.unravel_index(far.argmax(), far.shape)]
    some = ", ".join(str(n) for n in range(len(rows)) if rows[n])
    s = "s" if rows.sum() > 1 else ""
    where = "every row" if rows.all() else f"row{s} {some} of {len(rows)}"
    most = f"by up to {far.max():.2g}, at {at}"
    if got.isnan().any():
        most = f"{got.isnan().sum()} of its {got.numel()} numbers being NaN"
    return f"{name} differs in {where}, {most}"


def _out(case: Case, attend: Attend) -> Found:
    out = attend(*case.tensors, **case.words)
    if case.words.get("return_lse"):
        return {"out": out[0], "the log-sum-exp": out[1]}
    return {"out": out}


def _gradients(case: Case, attend: Attend) -> dict[str, Tensor]:
    n = case.call.n_tensors
    leaves = [x.clone().requires_grad_() for x in case.tensors[:n]]
    out = attend(*[*leaves, leaves[-1], leaves[-1]][:3], **case.words)
    upstream = torch.arange(out.numel()).cos().view(out.shape).to(out)
    out = out + 0 * leaves[0].sum()  # even where nothing has a gradient
    gradients = torch.autograd.grad(
        out, leaves, upstream, allow_unused=True, materialize_grads=True
    )
    names = [f"the gradient of {x}" for x in ("query", "key", "value")]
    return dict(zip(names, gradients, strict=False))


def _nan(case: Case, attend: Attend) -> Found:
    parts = [x.flatten() for x in _gradients(case, attend).values()]
    return {"a gradient is NaN": torch.cat(parts).isnan().any()}


def _dropout(case: Case, attend: Attend) -> Found:
    """What became of the weights, for nobody draws as another does."""
    p, n_heads = case.words["dropout"], case.words.get("n_heads")
    always = "dropout" in case.call.fixed  # then ask what is right instead
    whole: Any = (right if always else attend)(
        *case.tensors, **{**case.words, "dropout": 0.0}
    )
    torch.manual_seed(0)
    out = attend(*case.tensors, **case.words)
    if out.shape != whole.shape:
        return {"out": out}
    (w, _), (a, b) = (
        as_heads(x, n_heads).split(L, dim=-1) for x in (whole, out)
    )
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


LOOKS = {
    "out": _out,
    "gradients": _gradients,
    "NaN": _nan,
    "dropout": _dropout,
}
