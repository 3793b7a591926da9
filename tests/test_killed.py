"""Each known mistake fails a case of the conformance matrix."""

import functools
import json

import pytest
import torch.nn as nn
from torch.nn.attention.flex_attention import and_masks

from attention import (
    MultiHeadAttention,
    RotaryEmbedding,
    alibi,
    attention,
    causal,
    padding,
    sliding_window,
    softcap,
)
from attention.diagnosis.mistakes import MISTAKES, textbook_attention
from tests import conformance
from tests.words import WordCase, word_cases

SHOWN = json.loads(conformance.FILE.read_text())["killed"]


@functools.cache
def cases() -> list[WordCase]:
    return list(word_cases())


def package(
    query,
    key,
    value,
    *,
    mask=None,
    causal_=False,
    window=None,
    lengths=None,
    scale=None,
    softcap_=None,
    alibi_=False,
    rotary=None,
    dropout=0.0,
    query_offset=0,
    return_lse=False,
    n_heads=None,
):
    """The options of the textbook as calls of the package's attention and layers."""
    if n_heads or dropout:
        return layer(query, key, value, n_heads, dropout, causal_)
    if rotary:
        turn = RotaryEmbedding(query.shape[-1], pairing=rotary)
        query, key = turn(query, offset=query_offset), turn(key)
    mods = [causal] if causal_ else []
    mods += [sliding_window(window)] if window else []
    mods += [padding(lengths)] if lengths is not None else []
    if mask is None and mods:
        mask = and_masks(*mods)
    scores = [softcap(softcap_)] if softcap_ else []
    scores += [alibi(query.shape[1])] if alibi_ else []

    def score_mod(score, *where):
        for mod in scores:
            score = mod(score, *where)
        return score

    at = {"query_offset": query_offset, "key_offset": 0} if mods or scores else {}
    return attention(
        query,
        key,
        value,
        mask=mask,
        score_mod=score_mod if scores else None,
        scale=scale,
        return_lse=return_lse,
        **at,
    )


def layer(query, key, value, n_heads, dropout, is_causal):
    """A MultiHeadAttention that projects nothing."""
    if query.dim() == 4:  # dropout of weights: one head a row of the batch, as wide as a value
        size = value.shape[-1]
        wide = [nn.functional.pad(x, (0, size - x.shape[-1])) for x in (query, key)]
        wide[0] = wide[0] * (size / query.shape[-1]) ** 0.5  # a layer divides by its own width
        tokens = [x.flatten(0, 1) for x in (*wide, value)]
        out = plain(size, 1, dropout)(*tokens)
        return out.unflatten(0, query.shape[:2])
    return plain(query.shape[-1], n_heads, dropout)(
        query, key, value, mask=causal if is_causal else None
    )


def plain(d_model, n_heads, dropout):
    made = MultiHeadAttention(d_model, n_heads, dropout=dropout).double()
    for projection in (made.query, made.key, made.value, made.out):
        nn.init.eye_(projection.weight)
    return made


def in_words(query, key, value, *, causal=False, softcap=None, alibi=False, **words):
    return package(query, key, value, causal_=causal, softcap_=softcap, alibi_=alibi, **words)


@pytest.mark.parametrize("attend", [textbook_attention, in_words], ids=["textbook", "package"])
def test_correct_attention_passes_every_case(attend):
    for case in cases():
        assert case.failure(attend) is None, case.name


@pytest.mark.parametrize("name", MISTAKES)
def test_the_case_that_the_page_names_fails_for_this_mistake(name):
    (case,) = (case for case in cases() if case.name == SHOWN[name])
    assert case.failure(MISTAKES[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MISTAKES)
def test_no_earlier_case_fails_for_this_mistake(name):
    first = next(case.name for case in cases() if case.failure(MISTAKES[name]))
    assert first == SHOWN[name]


def test_the_page_lists_each_mistake():
    """At least forty, and all of them."""
    assert SHOWN.keys() == MISTAKES.keys() and len(SHOWN) >= 40


def test_an_exception_is_a_failure():
    def raises(*args, **words):
        raise RuntimeError("no")

    assert all(case.failure(raises) == "raised RuntimeError: no" for case in cases())
