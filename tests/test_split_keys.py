"""Parts of the keys, merged: the online softmax, `merge`, and `split_keys`."""

import itertools
import math
import sys

import pytest
import torch

from attention import (
    T5Bias,
    alibi,
    attention,
    causal,
    document,
    merge,
    online_softmax,
    sliding_window,
    split_keys,
)
from attention.functional import reference

INF = math.inf
B, H, H_KV, L, S, D, DV = 2, 6, 3, 2, 23, 5, 7


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (B, H, L, D), (B, H_KV, S, D), (B, H_KV, S, DV)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes]


# --- online softmax ------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 2, 5, 23, 99])
def test_blocks_of_any_size_give_the_softmax(block_size):
    torch.manual_seed(0)
    x = (30 * torch.randn(3, 4, S, dtype=torch.float64)).requires_grad_()
    weights = online_softmax(x, block_size)
    torch.testing.assert_close(weights, torch.softmax(x, -1), rtol=0, atol=1e-15)
    upstream = torch.randn_like(weights)
    ours, theirs = (torch.autograd.grad(w, x, upstream) for w in (weights, torch.softmax(x, -1)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_scores_of_minus_infinity_in_whole_blocks_give_no_nan():
    x = torch.tensor([[-INF, -INF, 1.0, 2.0], [1.0, 2.0, -INF, -INF], [-INF] * 4])
    weights = online_softmax(x, 2)
    torch.testing.assert_close(weights[:2], torch.softmax(x[:2], -1))
    assert not weights[2].any()
    assert online_softmax(torch.zeros(3, 0), 2).shape == (3, 0)


def test_far_scores_do_not_overflow_and_halves_are_computed_in_float32():
    x = torch.tensor([1e4, 3e4, -6e4, 3e4], dtype=torch.float16)
    assert online_softmax(x, 1).tolist() == [0, 0.5, 0, 0.5]
    assert online_softmax(x, 1).dtype == torch.float16


@pytest.mark.parametrize(
    ("x", "block_size", "error", "says"),
    [
        (torch.zeros(3), 0, ValueError, "block_size=0 must be at least 1"),
        (torch.zeros(3), 1.5, TypeError, "block_size must be an integer, got 1.5"),
        (torch.tensor(1.0), 1, ValueError, "x must have at least one dimension"),
        (torch.zeros(3).long(), 1, TypeError, "x must be a tensor of float16"),
    ],
)
def test_a_bad_block_is_refused(x, block_size, error, says):
    with pytest.raises(error, match=says):
        online_softmax(x, block_size)


# --- merge ---------------------------------------------------------------------------------------


def parts(cuts, given):
    query, key, value = given
    edges = [0, *cuts, S]
    pairs = [
        attention(query, key[:, :, a:b], value[:, :, a:b], return_lse=True)
        for a, b in itertools.pairwise(edges)
    ]
    return [torch.stack(x) for x in zip(*pairs, strict=True)]


@pytest.mark.parametrize("cuts", [(), (1,), (4, 4, 20), (0, 23), (3, 9, 11, 22)])
def test_parts_merge_into_the_whole_with_its_log_sum_exp(cuts):
    given = tensors()
    out, lse = merge(*parts(cuts, given))
    want = attention(*given, return_lse=True)
    torch.testing.assert_close((out, lse), want, rtol=0, atol=1e-14)


def test_neither_order_nor_grouping_matters():
    outs, lses = parts((4, 9, 15), tensors())
    whole = merge(outs, lses)
    for order in itertools.permutations(range(4)):
        torch.testing.assert_close(merge(outs[[*order]], lses[[*order]]), whole)
        for cut in (1, 2, 3):
            groups = [order[:cut], order[cut:]]
            pairs = [merge(outs[[*g]], lses[[*g]]) for g in groups]
            again = merge(*(torch.stack(x) for x in zip(*pairs, strict=True)))
            torch.testing.assert_close(again, whole)


def test_a_part_that_saw_nothing_takes_no_part_and_none_gives_none():
    outs, lses = parts((9,), tensors())
    empty = torch.zeros_like(outs[:1]), torch.full_like(lses[:1], -INF)
    with_empty = merge(torch.cat([empty[0], outs]), torch.cat([empty[1], lses]))
    torch.testing.assert_close(with_empty, merge(outs, lses))
    out, lse = merge(*(x.expand(3, *x.shape[1:]) for x in empty))
    assert not out.any() and (lse == -INF).all()


def test_gradients_pass_through_a_merge():
    given = [x.requires_grad_() for x in tensors()]
    merged, want = merge(*parts((4, 9), given)), attention(*given, return_lse=True)
    grads = [
        torch.autograd.grad(out.sin().sum() + lse.square().sum(), given)
        for out, lse in (merged, want)
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-13)


def test_merge_rounds_once():
    """Halves are averaged in float32, and the log-sum-exp keeps its dtype."""
    outs = torch.tensor([[1.0], [1 + 2**-7]], dtype=torch.bfloat16)
    out, lse = merge(outs, torch.zeros(2))
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    assert lse.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("outs", "lses", "error", "says"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(3, 2), ValueError, r"outs must be \(n, ..., Dv\)"),
        (torch.zeros(2), torch.zeros(2), ValueError, r"outs \(2,\), lses \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2).long(), TypeError, "lses must be a tensor of float16"),
        ([1.0], torch.zeros(2), TypeError, "outs must be a tensor of float16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(outs, lses, error, says):
    with pytest.raises(error, match=says):
        merge(outs, lses)


# --- split_keys ----------------------------------------------------------------------------------

BIAS = T5Bias(H).double().requires_grad_(False)
GENERATOR = torch.Generator().manual_seed(1)


def some(*shape):
    return torch.rand(shape, generator=GENERATOR) < 0.4


HOW = {
    "plain": {},
    "causal": {"mask": causal, "query_offset": S - L, "key_offset": 0},
    "offsets by row": {
        "mask": sliding_window(9),
        "query_offset": torch.tensor([3, 20]),
        "key_offset": torch.tensor([1, 2]),
    },
    "documents": {"mask": document(torch.arange(40) // 6), "query_offset": 20, "key_offset": 0},
    "mod of heads": {
        "mask": lambda b, h, q, k: (h + k + b) % 3 > 0,
        "query_offset": 0,
        "key_offset": 4,
    },
    "tensor": {"mask": some(B, H, L, S)},
    "tensor for all": {"mask": some(1, 1, 1, S)},
    "tensor of queries": {"mask": some(B, 1, L, 1)},
    "two dimensions": {"mask": some(L, S)},
    "ALiBi": {"score_mod": alibi(H), "query_offset": S - L, "key_offset": 0},
    "T5": {"score_mod": BIAS, "mask": causal, "query_offset": S - L, "key_offset": 0},
    "scale": {"scale": 0.3},
}


@pytest.mark.parametrize("kernel", ["reference", "tiled"])
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_any_number_of_parts_gives_attention(kernel, how):
    given = tensors()
    want = attention(*given, **how)
    for n_parts in (1, 2, 3, 5, 22, 23, 40):
        out = split_keys(*given, n_parts, kernel=kernel, **how)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-13)


def test_two_dimensions_are_enough():
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(split_keys(x, x, x, 4, mask=causal), attention(x, x, x, mask=causal))


def test_where_the_parts_are_even_no_key_is_copied(monkeypatch):
    query, key, value = (x[:1] for x in tensors())
    seen = []

    def watch(q, k, v, spec):
        seen.append((k.untyped_storage().data_ptr(), v.untyped_storage().data_ptr()))
        return reference(q, k, v, spec)

    monkeypatch.setattr(sys.modules["attention.functional"], "reference", watch)
    key, value = key[:, :, :20].contiguous(), value[:, :, :20].contiguous()
    split_keys(query, key, value, 4)
    assert seen == [(key.data_ptr(), value.data_ptr())]


def test_no_keys_give_zeros():
    query, key, value = tensors()
    out = split_keys(query, key[:, :, :0], value[:, :, :0], 3)
    assert out.shape == (B, H, L, DV) and not out.any()


def test_gradients_are_those_of_attention():
    given = [x.requires_grad_() for x in tensors()]
    grads = [
        torch.autograd.grad(out.sin().sum(), given)
        for out in (split_keys(*given, 4), attention(*given))
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-13)


def test_what_attention_refuses_is_refused():
    given = tensors()
    with pytest.raises(ValueError, match="n_parts=0 must be at least 1"):
        split_keys(*given, 0)
    with pytest.raises(ValueError, match="query_offset is missing"):
        split_keys(*given, 2, mask=causal)
    with pytest.raises(NotImplementedError, match="kernel='sdpa' cannot do return_lse"):
        split_keys(*given, 2, kernel="sdpa")
