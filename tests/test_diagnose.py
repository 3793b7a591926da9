"""Each known mistake is recognised by its results, and correct attention agrees."""

import importlib
import inspect
import random
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import and_masks

from attention import (
    RotaryEmbedding,
    alibi,
    attention,
    causal,
    padding,
    sliding_window,
    softcap,
)
from attention.diagnosis import textbook as textbook_module
from attention.diagnosis.diagnose import diagnose
from attention.diagnosis.mistakes import MISTAKES, Mistake, textbook_attention
from attention.diagnosis.probes import OPTIONS, PROBES, Call, Case
from snippets import page

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True, scope="module")
def _once():
    """What one or two known mistakes do in a probe is computed once, and not once a diagnosis."""
    known, result_with = {}, Case.result_with

    def cached(case: Case, mistakes: tuple[Mistake, ...]) -> Any:
        call = case.call
        key = (case.probe.name, case.form, call.n_tensors, repr(call.fixed), mistakes)
        if key not in known:
            known[key] = result_with(case, mistakes)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Case, "result_with", cached)
        yield


TRIANGLE = torch.ones(6, 6, dtype=torch.bool).tril()
sdpa = F.scaled_dot_product_attention


def package(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: bool = False,
    rotary: Any = None,
    query_offset: int | None = None,
    return_lse: bool = False,
) -> Any:
    """The words as arguments of the package's own `attention`."""
    offset = query_offset or 0
    if rotary:
        turn = RotaryEmbedding(query.shape[-1], pairing=rotary)
        query, key = turn(query, offset=offset), turn(key)
    full = None if mask is None else mask.expand(*query.shape[:-1], key.shape[-2])
    masks = {
        "mask": lambda b, h, q, k: full[b, h, q - offset, k] if query.dim() == 4 else full[q, k],
        "causal": attention_masks.causal,
        "window": window and attention_masks.sliding_window(window),
        "lengths": lengths is not None and attention_masks.padding(lengths),
    }
    asked = {"mask": mask is not None, "causal": causal, "window": window}
    asked["lengths"] = lengths is not None
    mods = [masks[word] for word, there in asked.items() if there]
    biases = [attention_masks.softcap(softcap)] if softcap else []
    biases += [attention_masks.alibi(query.shape[-3])] if alibi and query.dim() == 4 else []
    biases += [attention_masks.alibi(1)] if alibi and query.dim() == 2 else []

    def score_mod(score: Tensor, *where: Tensor) -> Tensor:
        for bias in biases:
            score = bias(score, *where)
        return score

    offsets = {"query_offset": offset, "key_offset": 0} if mods or biases else {}
    return attention(
        query,
        key,
        value,
        mask=and_masks(*mods) if mods else None,
        score_mod=score_mod if biases else None,
        scale=scale,
        return_lse=return_lse,
        **offsets,
    )


attention_masks = SimpleNamespace(
    causal=causal, sliding_window=sliding_window, padding=padding, softcap=softcap, alibi=alibi
)


def textbook(query, key, value, mask=None, causal=False):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
        scores = scores.masked_fill(future, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1) @ value


def plain(query, key, value):
    return textbook(query, key, value)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_named_and_no_other(name: str) -> None:
    found = diagnose(MISTAKES[name], dtype=torch.float16)
    assert (found.mistakes, found.alternatives, found.agrees) == ((name,), (), False)


MATRICES = {  # with one head and no batch these are right
    "divides by √d_model, not by √head_dim",
    "divides by √(key.shape[1])",
    "takes the softmax along dim=1",
    "gives every head the keys of the first",
    "gives neighbouring heads different key heads",
    "cuts the heads by view, without a transpose",
    "joins the heads without a transpose",
    "averages over the heads",
    "gives the heads their slopes in reverse",
    "spaces the slopes evenly where H is no power of 2",
    "puts the slopes in order where H is no power of 2",
    "hides padded queries instead of padded keys",
    "hides padded queries as well as padded keys",
    "keeps one key of the padding",
    "expects the padding before the tokens",
    "ignores lengths",
    "turns before it cuts the heads",
}
SAME_IN_MATRICES = {
    # dim=0 of (L, S) is the queries
    "takes the softmax along dim=0": "takes the softmax over the queries, dim=-2",
}


@pytest.mark.parametrize(
    "name",
    [  # those that are something else in a matrix, and some that are not
        name
        if name in (*MATRICES, *SAME_IN_MATRICES) or n % 9 == 0
        else pytest.param(name, marks=pytest.mark.exhaustive)
        for n, name in enumerate(MISTAKES)
    ],
)
def test_a_function_of_matrices_is_diagnosed_where_matrices_can_show(name: str) -> None:
    def matrices(query: Tensor, key: Tensor, value: Tensor, **words: Any) -> Any:
        if query.dim() != 2:
            raise ValueError("matrices, please")
        return MISTAKES[name](query, key, value, **words)

    found = diagnose(matrices, dtype=torch.float16)
    if name in MATRICES:
        assert found.agrees
    else:
        first = SAME_IN_MATRICES.get(name, name)
        assert found.mistakes == (first,)
        assert {name} <= {first, *(way[0] for way in found.alternatives)}
        assert len(found.alternatives) == (first in SAME_IN_MATRICES.values())


@pytest.mark.parametrize("n", [4, pytest.param(12, marks=pytest.mark.exhaustive)])
def test_two_mistakes_are_named_together_unless_one_hides_the_other(n: int) -> None:
    draw, named = random.Random(3), 0
    for _ in range(n):
        pair = draw.sample(list(MISTAKES), 2)
        mistakes = tuple(MISTAKES[name] for name in pair)
        found = diagnose(partial(textbook_attention, mistakes=mistakes))
        named += set(found.mistakes) == set(pair)
        # whatever is named, it is enough to do the same in every probe
        if found.mistakes:
            call = Call(partial(textbook_attention, mistakes=mistakes), {})
            cases = [Case(p, call) for p in PROBES if not call.unsupported(p)]
            faults = tuple(MISTAKES[name] for name in found.mistakes)
            tried = [case for case in cases if isinstance(case.result, dict)]
            assert all(
                case.explained_by(faults) for case in tried if case.probe.name in found.probes
            )
    assert named >= 0.8 * n


def test_an_unknown_mistake_is_not_named() -> None:
    def silent(query, key, value):
        return torch.zeros_like(value.sum(-2, keepdim=True).expand(*query.shape[:-1], -1))

    found = diagnose(silent)
    assert not found.agrees and found.mistakes == found.alternatives == ()
    assert "as none of the known mistakes does" in str(found)
    assert "First, in the probe “plain”: out differs in every row, by up to" in str(found)


# --- correct attention ---------------------------------------------------------------------------


def test_the_textbook_agrees_with_the_package_in_every_probe() -> None:
    found = diagnose(package)
    assert found.agrees, found
    assert set(found.untried) == {"16 bits", "dropout"}


def test_the_textbook_agrees_with_itself_in_every_probe() -> None:
    found = diagnose(textbook_attention, dtype=torch.bfloat16)
    assert found.agrees and not found.untried


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_a_fixed_option_holds_in_every_probe(pairing: Any) -> None:
    found = diagnose(lambda q, k, v: package(q, k, v, rotary=pairing), rotary=pairing)
    assert found.agrees and f"rotary ({pairing})" in found.probes
    other = diagnose(lambda q, k, v: package(q, k, v, rotary=pairing))
    assert not other.agrees
    crossed = {"half": "interleaved", "interleaved": "half"}[pairing]
    found = diagnose(lambda q, k, v: package(q, k, v, rotary=pairing), rotary=crossed)
    assert found.mistakes == ("pairs the numbers the other way",)


def test_a_textbook_function_agrees_until_a_row_is_fully_masked() -> None:
    assert diagnose(plain).agrees
    assert diagnose(lambda q, k, v: textbook(q, k, v, causal=True), causal=True).agrees
    assert diagnose(textbook).mistakes == (
        "gives NaN to a query that sees nothing",
        "multiplies hidden values by 0, which leaves NaN",
    )


def test_the_differences_of_sdpa_are_named() -> None:
    def by_sdpa(query, key, value, *, mask=None, is_causal=False, scale=None, query_offset=0):
        return sdpa(
            query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=True
        )

    found = diagnose(by_sdpa)
    assert found.mistakes == (
        "lines up the first query with the first key",
        "multiplies hidden values by 0, which leaves NaN",
    )
    assert diagnose(sdpa).agrees  # a builtin: three tensors
    # Where a function has nothing but causal, the two are the same.
    alone = diagnose(lambda q, k, v, query_offset=0: sdpa(q, k, v, is_causal=True), causal=True)
    assert alone.mistakes == ("lines up the first query with the first key",)
    assert alone.alternatives == (("ignores query_offset",),)


def test_the_dropout_of_sdpa_agrees() -> None:
    def dropping(query, key, value, dropout_p=0.0):
        return sdpa(query, key, value, dropout_p=dropout_p)

    assert diagnose(dropping).probes["dropout"] == ""


# --- functions of other forms --------------------------------------------------------------------


def test_a_function_of_batches_of_matrices_is_tried_as_one() -> None:
    def batches(q, k, v):
        return torch.softmax(q.bmm(k.transpose(1, 2)) / q.shape[2] ** 0.5, dim=2).bmm(v)

    found = diagnose(batches)
    assert found.agrees and found.untried["shared key heads"] == "it takes (B, L, D)"

    def wrong(q, k, v):
        return torch.softmax(q.bmm(k.transpose(1, 2)) / q.shape[2] ** 0.5, dim=1).bmm(v)

    assert ("takes the softmax along dim=1",) in diagnose(wrong).alternatives


def split(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


@pytest.mark.parametrize(
    ("cut", "join", "faults"),
    [
        (split, lambda out: out.transpose(1, 2).flatten(2), ()),
        (split, lambda out: out.reshape(2, 6, -1), ("joins the heads without a transpose",)),
        (
            lambda x, n: x.view(2, n, 6, -1),
            lambda out: out.transpose(1, 2).flatten(2),
            ("cuts the heads by view, without a transpose",),
        ),
        (
            lambda x, n: x.view(2, n, 6, -1),
            lambda out: out.reshape(2, 6, -1),
            (
                "cuts the heads by view, without a transpose",
                "joins the heads without a transpose",
            ),
        ),
    ],
)
def test_a_function_that_cuts_the_heads_itself_is_of_one_tensor(cut, join, faults) -> None:
    def attend(x, num_heads):
        q = cut(x, num_heads)
        return join(attention(q, q, q, mask=causal))

    found = diagnose(attend, causal=True)
    assert found.mistakes == faults and found.agrees == (not faults)


def test_a_module_is_called_by_its_forward() -> None:
    class Attend(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return textbook(query, key, value)

    assert diagnose(Attend()).agrees


def test_two_tensors_are_query_and_key() -> None:
    assert diagnose(lambda query, key: textbook(query, key, key)).agrees


def test_a_required_option_is_always_passed() -> None:
    found = diagnose(lambda query, key, value, mask: attention(query, key, value, mask=mask))
    assert found.agrees and found.probes["mask"] == found.probes["plain"] == ""


# --- not an attention ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda q, k, v: 1 / 0, "“plain”: it raises ZeroDivisionError: division by zero"),
        (lambda q, k, v: None, "“plain”: it returns NoneType"),
        (lambda q, k, v: plain(q, k, v).double(), "“plain”: out is torch.float64, not"),
        (lambda q, k, v: plain(q, k, v)[..., :1], "“plain”: out has another shape, (2, 12, 6, 1)"),
        (lambda q, k, v: plain(q.mul_(2), k, v), "“plain”: it changes its inputs"),
        (lambda q, k, v, return_lse=False: plain(q, k, v), "“log-sum-exp”: it returns Tensor"),
    ],
)
def test_an_unexpected_output_is_named(fn, words: str) -> None:
    found = diagnose(fn)
    assert not found.agrees and not found.mistakes
    assert words in " ".join(str(found).split())


def test_an_error_in_one_probe_does_not_hide_a_fault_in_others() -> None:
    def attend(query, key, value, scale=None):
        if scale is not None:
            raise NotImplementedError("no scale yet")
        return torch.softmax(query @ key.mT, dim=-1) @ value

    found = diagnose(attend)
    assert found.mistakes == ("does not scale the scores",)
    assert "“scale” it raises NotImplementedError: no scale yet" in str(found).replace("\n", " ")


def test_an_unsupported_option_is_not_a_mistake() -> None:
    found = diagnose(plain)
    assert "RuntimeError" in found.untried["shared key heads"]
    assert found.untried["window"] == "no option window"
    said = str(found).replace("\n", " ")
    assert said.startswith("It agrees with attention in all that was tried. Agrees in: plain")
    assert "Not tried: shared key heads (it raises RuntimeError" in said
    assert "the options scale, causal" in said


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"fn must be a function, got torch.float32"):
        diagnose(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"option must be one of mask, causal, .*, got 'casual'"):
        diagnose(plain, casual=True)
    with pytest.raises(ValueError, match="fn must take query, key, value and options, got"):
        diagnose(lambda q, k, v, temperature: None)
    with pytest.raises(ValueError, match="fn must take query, key, value and options, got nothing"):
        diagnose(lambda: None)


def test_random_state_and_threads_are_restored() -> None:
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    diagnose(MISTAKES["drops and does not scale up"])
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads
    with torch.no_grad():
        assert diagnose(plain).probes["gradients"] == ""


# --- what it says --------------------------------------------------------------------------------


def test_a_sentence_leads_to_its_chapter() -> None:
    assert str(diagnose(MISTAKES["scales twice"])).startswith(
        "It scales twice. Read “Why divide by √d_k”, foundations/scaling."
    )
    for title, name in {mistake.chapter for mistake in MISTAKES.values()}:
        heading = (DOCS / f"{name}.md").read_text(encoding="utf-8").splitlines()[0]
        assert heading == f"# {title}"


def test_the_docstring_lists_every_option() -> None:
    told = inspect.getdoc(textbook_module)
    assert told is not None
    assert re.findall(r"^    (\w+)  ", told, re.MULTILINE) == list(OPTIONS)


@pytest.mark.parametrize("name", ["scales twice", "swaps keys and values"])
def test_lines_fit_a_page(name: str) -> None:
    for found in (diagnose(MISTAKES[name]), diagnose(plain)):
        assert max(map(len, str(found).splitlines())) <= 70


# --- the probes are all needed -------------------------------------------------------------------

NEEDED = {
    "large scores": "does not subtract the maximum",
    "gradients": "lets no gradient through the weights",
    "16 bits": "computes in 16 bits",
    "shared key heads": "gives neighbouring heads different key heads",
    "NaN in masked keys": "multiplies hidden values by 0, which leaves NaN",
    "gradients of masked queries": "mends NaN in the output, and not in the gradient",
    "masked large scores": "masks after the softmax and renormalises",
    "lengths": "hides padded queries instead of padded keys",
    "dropout": "renormalises after dropout",
    "scale": "ignores scale",
}


@pytest.mark.parametrize(("probe", "fault"), NEEDED.items())
def test_without_its_probe_a_mistake_is_not_found(monkeypatch, probe: str, fault: str) -> None:
    fewer = [x for x in PROBES if x.name != probe]
    assert len(fewer) == len(PROBES) - 1
    module = importlib.import_module("attention.diagnosis.diagnose")  # `attention` has the function
    monkeypatch.setattr(module, "PROBES", fewer)
    if probe == "large scores":  # there are large scores in two probes of words as well
        found = diagnose(lambda q, k, v: MISTAKES[fault](q, k, v))
    else:
        found = diagnose(MISTAKES[fault], dtype=torch.float16)
    assert found.agrees or found.alternatives or found.mistakes != (fault,)


# --- the book's own exercises --------------------------------------------------------------------


def exercise(name: str, definition: str) -> dict[str, Any]:
    """The functions of the last block of a page that has this definition."""
    blocks = [
        x.fence.source
        for x in page.parse(DOCS / f"{name}.md").snippets
        if definition in x.fence.source
    ]
    known: dict[str, Any] = {"torch": torch, "math": __import__("math"), "nn": nn}
    known |= {"attention": attention, "causal": causal, "split": split}
    for part in blocks[-1].split("\n\n\n"):
        if part.startswith("def "):
            exec(part, known)
    return known


@pytest.mark.parametrize(
    ("chapter", "name", "words", "faults"),
    [
        ("foundations/scaling", "attend", {}, ("divides by √(key.shape[1])",)),
        (
            "foundations/causal",
            "attend",
            {"causal": True},
            ("hides each query's own key except the first's",),
        ),
        (
            "foundations/heads",
            "glued",
            {"causal": True},
            ("joins the heads without a transpose",),
        ),
        (
            "foundations/heads",
            "sliced",
            {"causal": True},
            (
                "cuts the heads by view, without a transpose",
                "joins the heads without a transpose",
            ),
        ),
    ],
)
def test_an_exercise_gets_the_diagnosis_of_its_solution(chapter, name, words, faults) -> None:
    known = exercise(chapter, f"def {name}(")
    assert diagnose(known[name], **words).mistakes == faults
