"""Every mod of the package, unchanged, in torch's FlexAttention: eager, and compiled for a CPU."""

import collections.abc
import inspect
import math
import typing

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex

import attention as package
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
from tests.machine import needs_compiler

B, H, H_KV, L, S, D, DV = 2, 6, 3, 7, 13, 11, 5
START = 4  # where the queries of a block begin, and
KEYS = 2  # its keys
LENGTHS = torch.tensor([9, 0])
IDS = torch.tensor([3, 3, 3, 1, 1, 3, 8, 8, 8, 8, 8, 1, 1, 1, 1])
BY_ROW = torch.stack([IDS, IDS.flip(0)])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def _eagerly(monkeypatch):
    # The switch runs FlexAttention as it is written, in place of compiling it first; on a CPU it
    # has no backward.
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def bias_of_t5(**how):
    made = T5Bias(H, n_buckets=8, max_distance=12, **how)
    return made.requires_grad_(False)


def composed(*mods):
    """Score mods one after the other."""

    def score_mod(score, b, h, q_idx, kv_idx):
        for mod in mods:
            score = mod(score, b, h, q_idx, kv_idx)
        return score

    return score_mod


# The public name that a mod shows, and the mod.
MASKS = {
    "causal": causal,
    "sliding_window": sliding_window(3),
    "first_tokens": first_tokens(4),
    "prefix_lm": prefix_lm(5),
    "document": document(IDS),
    "document by row": document(BY_ROW),
    "padding": padding(LENGTHS),
    "shift": shift(causal, 2, -1),
    "shift by row": shift(sliding_window(3), torch.tensor([0, 3]), torch.tensor([1, 0])),
    "sinks": flex.and_masks(causal, flex.or_masks(sliding_window(3), first_tokens(2))),
    "packed": flex.and_masks(causal, document(BY_ROW), padding(torch.tensor([11, 15]))),
    "prefixes": flex.or_masks(causal, padding(LENGTHS)),
}
SCORES = {
    "alibi": alibi(H),
    "T5Bias": bias_of_t5(),
    "T5Bias, what is before": bias_of_t5(bidirectional=False),
    "softcap": softcap(0.5),
    "shift a score mod": shift(bias_of_t5(), 5, 1),
    "composed": composed(softcap(2.0), alibi(H), bias_of_t5()),
}
EVERY_MASK = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
EVERY_SCORE = pytest.mark.parametrize("score_mod", SCORES.values(), ids=SCORES)


def tensors(length=S, source=S, dtype=torch.float64):
    return (
        torch.randn(B, H, length, D, dtype=dtype),
        torch.randn(B, H_KV, source, D, dtype=dtype),
        torch.randn(B, H_KV, source, DV, dtype=dtype),
    )


def block_mask(mask, q, k):
    return flex.create_block_mask(mask, B, H, q.shape[2], k.shape[2], device="cpu")


def by_flex(q, k, v, mask=None, score_mod=None, **how):
    """Output and log-sum-exp of eager FlexAttention."""
    made = None if mask is None else block_mask(mask, q, k)
    how |= {"score_mod": score_mod, "block_mask": made, "enable_gqa": True}
    out, aux = flex.flex_attention(q, k, v, **how, return_aux=flex.AuxRequest(lse=True))
    return out, aux.lse


def compare(found, expected):
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


# --- eager --------------------------------------------------------------------


@EVERY_MASK
@pytest.mark.usefixtures("_eagerly")
def test_a_mask_mod_hides_the_same_in_flex_attention(mask):
    q, k, v = tensors()
    out = attention(q, k, v, mask=mask, return_lse=True)
    compare(by_flex(q, k, v, mask), out)
    assert not torch.allclose(attention(q, k, v), out[0])


@EVERY_SCORE
@pytest.mark.usefixtures("_eagerly")
def test_a_score_mod_gives_the_same_scores_in_flex_attention(score_mod):
    q, k, v = tensors()
    out = attention(q, k, v, score_mod=score_mod, return_lse=True)
    compare(by_flex(q, k, v, score_mod=score_mod), out)
    assert not torch.allclose(attention(q, k, v), out[0])


@EVERY_MASK
@EVERY_SCORE
@pytest.mark.usefixtures("_eagerly")
def test_every_mask_goes_with_every_score_mod(mask, score_mod):
    q, k, v = tensors()
    how = {"mask": mask, "score_mod": score_mod, "scale": 0.7}
    compare(by_flex(q, k, v, **how), attention(q, k, v, **how, return_lse=True))


@EVERY_MASK
@pytest.mark.usefixtures("_eagerly")
def test_what_an_offset_says_to_attention_shift_says_to_flex_attention(mask):
    q, k, v = tensors(L)
    score_mod = SCORES["composed"]
    for start, keys in ((START, KEYS), (torch.tensor([START, 0]), torch.tensor([0, KEYS]))):
        expected = attention(
            q,
            k,
            v,
            mask=mask,
            score_mod=score_mod,
            query_offset=start,
            key_offset=keys,
            return_lse=True,
        )
        moved = (shift(mask, start, keys), shift(score_mod, start, keys))
        compare(by_flex(q, k, v, *moved), expected)


# --- compiled -----------------------------------------------------------------

ALL_MASKS = flex.and_masks(
    flex.or_masks(sliding_window(9), first_tokens(3), shift(prefix_lm(2), 1, 1)),
    causal,
    document(torch.arange(150).expand(2, 150) // torch.tensor([[40], [60]])),
    padding(torch.tensor([150, 131])),
)
ALL_SCORES = composed(softcap(2.0), alibi(H), bias_of_t5(), shift(alibi(H), 3, 0))


# 17 s: the first compilation for a CPU tries what the C++ compiler supports, and a kernel takes the
# compiler 6 s. Both are cached on disk. torch's cache of graphs is off, for its key lacks the
# instruction set: under another ATEN_CPU_CAPABILITY it returns code that computes other numbers.
@needs_compiler
@pytest.mark.parametrize(
    ("mask", "score_mod"),
    [
        pytest.param(ALL_MASKS, ALL_SCORES, id="all"),
        pytest.param(ALL_MASKS, None, id="masks", marks=pytest.mark.exhaustive),
        pytest.param(causal, ALL_SCORES, id="scores", marks=pytest.mark.exhaustive),
    ],
)
def test_compiled_flex_attention_gives_the_same(mask, score_mod):
    length = 150  # more than one block of 128, and no multiple
    q, k, v = tensors(length, length, torch.float32)
    run = torch.compile(flex.flex_attention, fullgraph=True, options={"fx_graph_cache": False})
    # On a CPU it has no log-sum-exp.
    out = run(q, k, v, score_mod=score_mod, block_mask=block_mask(mask, q, k), enable_gqa=True)
    expected = attention(q, k, v, mask=mask, score_mod=score_mod)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


# --- none is forgotten ------------------------------------------------------------

PAIR = ["b", "h", "q_idx", "kv_idx"]


def is_mod(x):
    """Whether a public object is a mod, or makes mods."""
    call = x.forward if isinstance(x, type) and issubclass(x, nn.Module) else x
    if not callable(call):
        return False
    signature = inspect.signature(call)
    if list(signature.parameters)[-4:] == PAIR:
        return True
    made = signature.return_annotation
    is_function = typing.get_origin(made) is collections.abc.Callable
    return is_function and typing.get_args(made)[-1] is Tensor


def test_every_public_mod_is_run_above():
    mods = {name for name in package.__all__ if is_mod(getattr(package, name))}
    assert {"causal", "padding", "T5Bias", "alibi", "shift"} <= mods  # the test itself sees them
    assert mods <= {*MASKS, *SCORES}
    assert math.prod(map(len, (MASKS, SCORES))) >= 72
