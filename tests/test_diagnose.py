"""Each wrong attention is recognised by what it does, and a right one is left alone."""

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
    steps,
)
from attention.diagnosis.diagnose import diagnose
from attention.diagnosis.mistakes import WRONG, Wrong, right
from attention.diagnosis.probes import PROBES, WORDS, Call, Case
from snippets import page

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True, scope="module")
def _once():
    """What one or two known mistakes do in a probe is computed once, and not once a diagnosis."""
    known, behaviour = {}, Case.behaviour

    def remembered(case: Case, faults: tuple[Wrong, ...]) -> Any:
        call = case.call
        key = (case.probe.name, case.form, call.n_tensors, repr(call.fixed), faults)
        if key not in known:
            known[key] = behaviour(case, faults)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Case, "behaviour", remembered)
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


# --- the wrong ones ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_attention_is_named_and_no_other(name: str) -> None:
    found = diagnose(WRONG[name], dtype=torch.float16)
    assert (found.faults, found.instead, found.agrees) == ((name,), (), False)


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
        for n, name in enumerate(WRONG)
    ],
)
def test_a_function_of_matrices_is_known_as_far_as_it_goes(name: str) -> None:
    def matrices(query: Tensor, key: Tensor, value: Tensor, **words: Any) -> Any:
        if query.dim() != 2:
            raise ValueError("matrices, please")
        return WRONG[name](query, key, value, **words)

    found = diagnose(matrices, dtype=torch.float16)
    if name in MATRICES:
        assert found.agrees
    else:
        first = SAME_IN_MATRICES.get(name, name)
        assert found.faults == (first,)
        assert {name} <= {first, *(way[0] for way in found.instead)}
        assert len(found.instead) == (first in SAME_IN_MATRICES.values())


@pytest.mark.parametrize("n", [4, pytest.param(12, marks=pytest.mark.exhaustive)])
def test_two_mistakes_are_named_together_unless_one_hides_the_other(n: int) -> None:
    draw, named = random.Random(3), 0
    for _ in range(n):
        pair = draw.sample(list(WRONG), 2)
        wrongs = tuple(WRONG[name] for name in pair)
        found = diagnose(partial(right, wrongs=wrongs))
        named += set(found.faults) == set(pair)
        # whatever is named, it is enough to do the same in every probe
        if found.faults:
            call = Call(partial(right, wrongs=wrongs), {})
            cases = [Case(p, call) for p in PROBES if not call.cannot(p)]
            faults = tuple(WRONG[name] for name in found.faults)
            tried = [case for case in cases if isinstance(case.found, dict)]
            assert all(case.shows(faults) for case in tried if case.probe.name in found.probes)
    assert named >= 0.8 * n


def test_nothing_is_named_that_does_not_do_the_same() -> None:
    def silent(query, key, value):
        return torch.zeros_like(value.sum(-2, keepdim=True).expand(*query.shape[:-1], -1))

    found = diagnose(silent)
    assert not found.agrees and found.faults == found.instead == ()
    assert "as none of the known mistakes does" in str(found)
    assert "First, in the probe “plain”: out differs in every row, by up to" in str(found)


# --- the right ones ------------------------------------------------------------------------------


def test_the_steps_do_what_the_package_does_in_every_probe() -> None:
    found = diagnose(package)
    assert found.agrees, found
    assert set(found.untried) == {"16 bits", "dropout"}


def test_the_steps_agree_with_themselves_in_every_probe() -> None:
    found = diagnose(right, dtype=torch.bfloat16)
    assert found.agrees and not found.untried


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_a_fixed_word_holds_in_every_probe(pairing: Any) -> None:
    found = diagnose(lambda q, k, v: package(q, k, v, rotary=pairing), rotary=pairing)
    assert found.agrees and f"rotary ({pairing})" in found.probes
    other = diagnose(lambda q, k, v: package(q, k, v, rotary=pairing))
    assert not other.agrees
    crossed = {"half": "interleaved", "interleaved": "half"}[pairing]
    found = diagnose(lambda q, k, v: package(q, k, v, rotary=pairing), rotary=crossed)
    assert found.faults == ("pairs the numbers the other way",)


def test_a_textbook_function_agrees_until_something_is_hidden_from_all() -> None:
    assert diagnose(plain).agrees
    assert diagnose(lambda q, k, v: textbook(q, k, v, causal=True), causal=True).agrees
    assert diagnose(textbook).faults == (
        "gives NaN to a query that sees nothing",
        "multiplies hidden values by 0, which leaves NaN",
    )


def test_what_sdpa_does_otherwise_is_named() -> None:
    def by_sdpa(query, key, value, *, mask=None, is_causal=False, scale=None, query_offset=0):
        return sdpa(
            query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=True
        )

    found = diagnose(by_sdpa)
    assert found.faults == (
        "lines up the first query with the first key",
        "multiplies hidden values by 0, which leaves NaN",
    )
    assert diagnose(sdpa).agrees  # a builtin: three tensors
    # Where a function has nothing but causal, the two are the same.
    alone = diagnose(lambda q, k, v, query_offset=0: sdpa(q, k, v, is_causal=True), causal=True)
    assert alone.faults == ("lines up the first query with the first key",)
    assert alone.instead == (("ignores query_offset",),)


def test_sdpa_drops_weights_as_it_should() -> None:
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

    assert ("takes the softmax along dim=1",) in diagnose(wrong).instead


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
    assert found.faults == faults and found.agrees == (not faults)


def test_a_module_is_called_by_its_forward() -> None:
    class Attend(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return textbook(query, key, value)

    assert diagnose(Attend()).agrees


def test_two_tensors_are_what_asks_and_what_is_asked() -> None:
    assert diagnose(lambda asking, asked: textbook(asking, asked, asked)).agrees


def test_who_needs_a_word_is_always_given_it() -> None:
    found = diagnose(lambda query, key, value, mask: attention(query, key, value, mask=mask))
    assert found.agrees and found.probes["mask"] == found.probes["plain"] == ""


# --- what is no attention ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda q, k, v: 1 / 0, "“plain”: it raises ZeroDivisionError: division by zero"),
        (lambda q, k, v: None, "“plain”: it returns NoneType"),
        (lambda q, k, v: plain(q, k, v).double(), "“plain”: out is torch.float64, not"),
        (lambda q, k, v: plain(q, k, v)[..., :1], "“plain”: out has another shape, (2, 12, 6, 1)"),
        (lambda q, k, v: plain(q.mul_(2), k, v), "“plain”: it changes what it is given"),
        (lambda q, k, v, return_lse=False: plain(q, k, v), "“log-sum-exp”: it returns Tensor"),
    ],
)
def test_an_odd_answer_is_said_to_be_one(fn, words: str) -> None:
    found = diagnose(fn)
    assert not found.agrees and not found.faults
    assert words in " ".join(str(found).split())


def test_an_error_in_one_probe_does_not_hide_a_fault_in_others() -> None:
    def attend(query, key, value, scale=None):
        if scale is not None:
            raise NotImplementedError("no scale yet")
        return torch.softmax(query @ key.mT, dim=-1) @ value

    found = diagnose(attend)
    assert found.faults == ("does not scale the scores",)
    assert "“scale” it raises NotImplementedError: no scale yet" in str(found).replace("\n", " ")


def test_what_a_function_cannot_do_is_not_held_against_it() -> None:
    found = diagnose(plain)
    assert "RuntimeError" in found.untried["shared key heads"]
    assert found.untried["window"] == "no word window"
    said = str(found).replace("\n", " ")
    assert said.startswith("It agrees with attention in all that was tried. Agrees in: plain")
    assert "Not tried: shared key heads (it raises RuntimeError" in said
    assert "what has the words scale, causal" in said


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"fn must be a function, got torch.float32"):
        diagnose(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'casual' is no word of diagnose: mask, causal"):
        diagnose(plain, casual=True)
    with pytest.raises(ValueError, match="fn must take query, key, value, and words, got"):
        diagnose(lambda q, k, v, temperature: None)
    with pytest.raises(ValueError, match="fn must take query, key, value, and words, got nothing"):
        diagnose(lambda: None)


def test_it_leaves_no_trace() -> None:
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    diagnose(WRONG["drops and does not scale up"])
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads
    with torch.no_grad():
        assert diagnose(plain).probes["gradients"] == ""


# --- what it says --------------------------------------------------------------------------------


def test_a_sentence_leads_to_its_chapter() -> None:
    assert str(diagnose(WRONG["scales twice"])).startswith(
        "It scales twice. Read “Why divide by √d_k”, foundations/scaling."
    )
    for title, name in {wrong.chapter for wrong in WRONG.values()}:
        heading = (DOCS / f"{name}.md").read_text(encoding="utf-8").splitlines()[0]
        assert heading == f"# {title}"


def test_the_words_are_those_that_are_told_of() -> None:
    told = inspect.getdoc(steps)
    assert told is not None
    assert re.findall(r"^    (\w+)  ", told, re.MULTILINE) == list(WORDS)


@pytest.mark.parametrize("name", ["scales twice", "swaps keys and values"])
def test_lines_fit_a_page(name: str) -> None:
    for found in (diagnose(WRONG[name]), diagnose(plain)):
        assert max(map(len, str(found).splitlines())) <= 70


# --- the probes are all needed -------------------------------------------------------------------

NEEDED = {
    "large scores": "does not subtract the maximum",
    "gradients": "lets no gradient through the weights",
    "16 bits": "computes in 16 bits",
    "shared key heads": "gives neighbouring heads different key heads",
    "NaN in hidden keys": "multiplies hidden values by 0, which leaves NaN",
    "gradients of blind queries": "mends NaN in the output, and not in the gradient",
    "masked large scores": "masks after the softmax and renormalises",
    "lengths": "hides padded queries instead of padded keys",
    "dropout": "renormalises after dropout",
    "scale": "ignores scale",
}


@pytest.mark.parametrize(("probe", "fault"), NEEDED.items())
def test_without_its_probe_a_fault_is_not_known(monkeypatch, probe: str, fault: str) -> None:
    fewer = [x for x in PROBES if x.name != probe]
    assert len(fewer) == len(PROBES) - 1
    module = importlib.import_module("attention.diagnosis.diagnose")  # `attention` has the function
    monkeypatch.setattr(module, "PROBES", fewer)
    if probe == "large scores":  # there are large scores in two probes of words as well
        found = diagnose(lambda q, k, v: WRONG[fault](q, k, v))
    else:
        found = diagnose(WRONG[fault], dtype=torch.float16)
    assert found.agrees or found.instead or found.faults != (fault,)


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
    assert diagnose(known[name], **words).faults == faults
