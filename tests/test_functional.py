"""Attention: by hand, against loops and torch, what holds, errors.

Sizes are prime and differ, so that swapped axes fail; H alone is a multiple of H_kv.
"""

import itertools
import math
import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention import flex_attention as flex

from attention import attention, attention_scores, attention_weights
from attention.kernels import KERNELS, Kernel
from attention.masking import AttentionSpec

INF = math.inf
B, H_KV, H, L, S, D, DV = 2, 3, 6, 5, 7, 11, 13
TOKENS = ["Your", "journey", "starts", "with", "one", "step"]
INPUTS = torch.tensor(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tensors(length=L, source=S, *, heads=H, kv_heads=H_KV, **options):
    """A random query, key and value in float64, if options say nothing else."""
    options = {"dtype": torch.float64} | options
    return (
        torch.randn(B, heads, length, D, **options),
        torch.randn(B, kv_heads, source, D, **options),
        torch.randn(B, kv_heads, source, DV, **options),
    )


def by_loop(query, key, value, *, allowed=None, score_mod=None, scale=None):
    """The formula in Python's own numbers, a pair at a time: output and log-sum-exp."""
    n_batch, n_heads, n_queries, _ = query.shape
    group = n_heads // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.zeros(n_batch, n_heads, n_queries, value.shape[-1], dtype=torch.float64)
    lse = torch.full((n_batch, n_heads, n_queries), -INF, dtype=torch.float64)
    q, k, v = query.tolist(), key.tolist(), value.tolist()
    for b in range(n_batch):
        for h in range(n_heads):
            keys, values = k[b][h // group], v[b][h // group]
            for i in range(n_queries):
                visible = []
                for j in range(len(keys)):
                    if allowed is None or allowed(b, h, i, j):
                        products = zip(q[b][h][i], keys[j], strict=True)
                        score = scale * math.fsum(x * y for x, y in products)
                        if score_mod is not None:
                            score = score_mod(score, b, h, i, j)
                        visible.append((math.exp(score), j))
                total = math.fsum(share for share, _ in visible)
                if visible:
                    lse[b, h, i] = math.log(total)
                for share, j in visible:
                    for d in range(value.shape[-1]):
                        out[b, h, i, d] += share / total * values[j][d]
    return out, lse


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def odd(b, h, q_idx, kv_idx):
    """Depends on all four indices; hides all keys from some queries."""
    return (q_idx + 2 * kv_idx + b + h) % 3 == 0


def alibi(score, b, h, q_idx, kv_idx):
    return score - 0.5 * (h + 1) * abs(q_idx - kv_idx) + 0.1 * b


def some_mask(*shape):
    """A random mask in which the first query of every head sees nothing."""
    mask = torch.rand(shape) < 0.5
    mask[..., 0, :] = False
    return mask


# --- by hand ------------------------------------------------------------------


def test_a_query_that_scores_log_3_above_zero_takes_three_quarters():
    query = torch.tensor([[math.log(3), 0.0]])
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # scores log 3 and 0
    value = torch.tensor([[4.0], [8.0]])
    out, lse = attention(query, key, value, scale=1, return_lse=True)
    torch.testing.assert_close(out, torch.tensor([[5.0]]))  # 3/4 of 4 and 1/4 of 8
    torch.testing.assert_close(lse, torch.tensor([math.log(4)]))


def test_without_a_scale_the_scores_are_divided_by_the_root_of_the_head_size():
    ones = torch.ones(1, 9)
    assert attention_scores(ones, ones).item() == 3  # 9 / sqrt(9)
    assert attention_scores(ones, ones, scale=1).item() == 9


def test_the_context_vectors_of_the_six_tokens_are_the_notebooks():
    weights = attention_weights(INPUTS[1:2], INPUTS, scale=1.0)
    out = attention(INPUTS, INPUTS, INPUTS, scale=1.0)
    expected = [0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581]
    assert [round(w, 4) for w in weights[0].tolist()] == expected
    assert [round(x, 4) for x in out[1].tolist()] == [0.4419, 0.6515, 0.5683]


def test_causal_weights_of_equal_scores_are_the_mean_of_the_past():
    zeros = torch.zeros(3, 2)
    weights = attention_weights(zeros, zeros, mask=causal)
    expected = [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]
    torch.testing.assert_close(weights, torch.tensor(expected))


# --- against loops --------------------------------------------------------------


@pytest.mark.parametrize("score_mod", [None, alibi])
@pytest.mark.parametrize("mask", [None, causal, odd])
def test_a_plain_loop_gives_the_same_with_every_mod(mask, score_mod):
    q, k, v = tensors(S, S)
    out, lse = attention(q, k, v, mask=mask, score_mod=score_mod, return_lse=True)
    expected = by_loop(q, k, v, allowed=mask, score_mod=score_mod)
    torch.testing.assert_close((out, lse), expected)


@pytest.mark.parametrize(
    "shape",
    [(L, S), (B, H, L, S), (1, 1, L, S), (B, 1, 1, S), (1, H, L, 1), (1, 1, 1, 1)],
)
def test_a_plain_loop_gives_the_same_with_masks_of_every_shape(shape):
    q, k, v = tensors()
    mask = torch.rand(shape) < 0.5
    full = mask.expand(B, H, L, S)
    out, lse = attention(q, k, v, mask=mask, scale=0.3, return_lse=True)
    expected = by_loop(q, k, v, allowed=lambda b, h, i, j: full[b, h, i, j], scale=0.3)
    torch.testing.assert_close((out, lse), expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(length=st.integers(0, 4), source=st.integers(0, 4), kv_heads=st.sampled_from([1, 2]))
def test_a_plain_loop_gives_the_same_for_any_lengths(length, source, kv_heads):
    q, k, v = tensors(length, source, heads=2, kv_heads=kv_heads)
    mask = torch.rand(length, source) < 0.5
    out, lse = attention(q, k, v, mask=mask, return_lse=True)
    expected = by_loop(q, k, v, allowed=lambda b, h, i, j: mask[i, j])
    torch.testing.assert_close((out, lse), expected)


@pytest.mark.parametrize(
    ("query_offset", "key_offset"),
    [(4, 0), (9, 2), (-1, -3), (torch.tensor([4, 6]), torch.tensor([0, 1]))],
)
def test_offsets_move_the_positions_that_mods_see(query_offset, key_offset):
    q, k, v = tensors()
    starts = [torch.as_tensor(o).expand(B).tolist() for o in (query_offset, key_offset)]

    def moved(mod):
        return lambda *a: mod(*a[:-2], a[-2] + starts[0][a[-4]], a[-1] + starts[1][a[-4]])

    out, lse = attention(
        q,
        k,
        v,
        mask=causal,
        score_mod=alibi,
        query_offset=query_offset,
        key_offset=key_offset,
        return_lse=True,
    )
    expected = by_loop(q, k, v, allowed=moved(causal), score_mod=moved(alibi))
    torch.testing.assert_close((out, lse), expected)


# --- against torch ----------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_sdpa_gives_the_same_for_every_number_of_key_heads(kv_heads):
    q, k, v = tensors(kv_heads=kv_heads)
    mask = some_mask(B, H, L, S)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(attention(q, k, v, mask=mask), expected)


def test_sdpa_gives_the_same_gradients():
    inputs = tensors(kv_heads=H, requires_grad=True)
    mask = some_mask(B, 1, L, S)
    upstream = torch.randn(B, H, L, DV, dtype=torch.float64)
    ours = attention(*inputs, mask=mask)
    theirs = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
    )


@pytest.mark.parametrize("score_mod", [None, alibi])
@pytest.mark.parametrize("mask", [None, causal, odd])
def test_eager_flex_attention_gives_the_same_with_every_mod(mask, score_mod, monkeypatch):
    # The switch runs FlexAttention eagerly, in place of compiling it first.
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    q, k, v = tensors(S, S)
    made = mask and flex.create_block_mask(mask, B, H, S, S, device="cpu")
    expected, aux = flex.flex_attention(
        q,
        k,
        v,
        score_mod,
        made,
        enable_gqa=True,
        return_aux=flex.AuxRequest(lse=True),
    )
    for given_mask in (mask, made):  # a mod, and the block mask made from it
        out, lse = attention(q, k, v, mask=given_mask, score_mod=score_mod, return_lse=True)
        torch.testing.assert_close((out, lse), (expected, aux.lse))


def test_masks_that_torch_combines_run_here():
    q, k, v = tensors(S, S)
    both = flex.and_masks(causal, flex.or_masks(odd, flex.noop_mask))
    torch.testing.assert_close(attention(q, k, v, mask=both), attention(q, k, v, mask=causal))


# --- what holds ---------------------------------------------------------------


def test_scores_weights_and_output_are_one_computation():
    q, k, v = tensors(kv_heads=H)
    mask = some_mask(L, S)
    scores = attention_scores(q, k).masked_fill(~mask, -INF)
    weights = attention_weights(q, k, mask=mask)
    torch.testing.assert_close(weights, torch.softmax(scores, -1).nan_to_num(0))
    torch.testing.assert_close(attention(q, k, v, mask=mask), weights @ v)


def test_two_dimensions_are_one_batch_row_and_one_head():
    q, k, v = (x[0, 0] for x in tensors())
    mods = {"mask": odd, "score_mod": alibi, "query_offset": 2, "key_offset": 1}
    lifted = [x[None, None] for x in (q, k, v)]
    out, lse = attention(q, k, v, **mods, return_lse=True)
    out4, lse4 = attention(*lifted, **mods, return_lse=True)
    assert torch.equal(out, out4[0, 0])
    assert torch.equal(lse, lse4[0, 0])
    assert torch.equal(
        attention_weights(q, k, **mods), attention_weights(*lifted[:2], **mods)[0, 0]
    )
    assert torch.equal(attention_scores(q, k), attention_scores(*lifted[:2])[0, 0])


def test_permuting_the_keys_with_their_values_changes_nothing():
    q, k, v = tensors()
    order = torch.randperm(S)
    torch.testing.assert_close(attention(q, k[:, :, order], v[:, :, order]), attention(q, k, v))


def test_score_mod_comes_after_the_scale_and_before_the_mask():
    q, k, v = tensors()
    softcap = 0.7
    out = attention(
        q,
        k,
        v,
        mask=causal,
        score_mod=lambda score, b, h, i, j: softcap * torch.tanh(score / softcap),
        query_offset=S - L,
        key_offset=0,
    )
    expected = by_loop(
        q,
        k,
        v,
        allowed=lambda b, h, i, j: i + S - L >= j,
        score_mod=lambda score, b, h, i, j: softcap * math.tanh(score / softcap),
    )[0]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("mod", [causal, odd, None])
def test_a_key_and_its_value_have_influence_if_and_only_if_allowed(mod):
    q, k, v = tensors(S, S)
    mask = allowed = some_mask(B, H, S, S)
    if mod is not None:
        pairs = itertools.product(range(B), range(H), range(S), range(S))
        mask, allowed = mod, torch.tensor([mod(*p) for p in pairs]).view(B, H, S, S)
    out, lse = attention(q, k, v, mask=mask, return_lse=True)
    for j in range(S):
        moved_k, moved_v = k.clone(), v.clone()
        moved_k[:, :, j] += 1
        moved_v[:, :, j] += 1
        # The log-sum-exp shows a key's influence also where it is the only one.
        _, new_lse = attention(q, moved_k, v, mask=mask, return_lse=True)
        new_out = attention(q, k, moved_v, mask=mask)
        assert torch.equal(new_lse != lse, allowed[..., j])
        assert torch.equal((new_out != out).all(-1), allowed[..., j])
        assert torch.equal((new_out != out).any(-1), allowed[..., j])


def test_a_mod_may_index_what_it_captures():
    table = torch.randn(B, H, L, S, dtype=torch.float64)
    documents = torch.randint(0, 2, (B, S))
    q, k, v = tensors()
    out = attention(
        q,
        k,
        v,
        mask=lambda b, h, i, j: documents[b, i] == documents[b, j],
        score_mod=lambda score, b, h, i, j: score + table[b, h, i, j] + table[b][h][i][j],
        query_offset=0,
        key_offset=0,
    )
    expected, _ = by_loop(
        q,
        k,
        v,
        allowed=lambda b, h, i, j: bool(documents[b, i] == documents[b, j]),
        score_mod=lambda score, b, h, i, j: score + 2 * table[b, h, i, j].item(),
    )
    torch.testing.assert_close(out, expected)


# --- derivatives ----------------------------------------------------------------


def test_derivatives_of_both_orders_match_finite_differences():
    q = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, 1, 5, 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 1, 5, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    mask = some_mask(1, 2, 3, 5)
    mask[..., 4] = False  # a key that nobody sees

    def f(q, k, v, bias):
        out, lse = attention(
            q,
            k,
            v,
            mask=mask,
            score_mod=lambda score, b, h, i, j: score + bias[h] * score * (i - j),
            query_offset=0,
            key_offset=0,
            return_lse=True,
        )
        return out, lse.masked_fill(lse.isinf(), 0)  # differences of -inf are NaN

    assert all(x.requires_grad for x in f(q, k, v, bias))  # else gradcheck passes them over
    assert gradcheck(f, (q, k, v, bias))
    assert gradgradcheck(f, (q, k, v, bias))


def test_the_logsumexp_grows_along_the_mean_of_the_keys():
    q, k, v = tensors(kv_heads=H, requires_grad=True)
    _, lse = attention(q, k, v, scale=0.7, return_lse=True)
    (gradient,) = torch.autograd.grad(lse.sum(), q)
    torch.testing.assert_close(gradient, 0.7 * attention(q, k, k, scale=0.7))


def test_what_a_score_mod_captures_gets_its_gradient():
    q, k, v = tensors(S, S)
    by_distance = torch.randn(H, 2 * S - 1, dtype=torch.float64, requires_grad=True)

    def relative(score, b, h, i, j):
        return score + by_distance[h, i - j + S - 1]

    upstream = torch.randn(B, H, S, DV, dtype=torch.float64)
    out = attention(q, k, v, mask=causal, score_mod=relative)
    (ours,) = torch.autograd.grad(out, by_distance, upstream)
    i, j = torch.arange(S)[:, None], torch.arange(S)
    added = by_distance[:, i - j + S - 1].masked_fill(i < j, -INF)
    expected = F.scaled_dot_product_attention(
        q, k, v, attn_mask=added[None].expand(B, -1, -1, -1), enable_gqa=True
    )
    (theirs,) = torch.autograd.grad(expected, by_distance, upstream)
    torch.testing.assert_close(ours, theirs)
    assert (ours[:, : S - 1] == 0).all()  # distances into the future
    assert (ours[:, S - 1 :] != 0).all()


# --- nothing to see, and not to be seen -------------------------------------------


def test_a_query_that_sees_nothing_gets_zeros_and_gives_zero_gradients():
    inputs = tensors(requires_grad=True)
    mask = some_mask(L, S)
    out, lse = attention(*inputs, mask=mask, return_lse=True)
    assert (out[:, :, 0] == 0).all()
    assert (lse[:, :, 0] == -INF).all()
    assert (attention_weights(*inputs[:2], mask=mask)[:, :, 0] == 0).all()
    gradients = torch.autograd.grad(out.sum() + lse.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, :, 0] == 0).all()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mask": causal, "query_offset": 0, "key_offset": 0},
        {"score_mod": alibi, "query_offset": 0, "key_offset": 0},
        {"mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)},
    ],
)
def test_no_queries_give_nothing_and_no_keys_give_zeros(how):
    out, lse = attention(*tensors(0, S), **how, return_lse=True)
    assert (out.shape, lse.shape) == ((B, H, 0, DV), (B, H, 0))
    inputs = tensors(L, 0, requires_grad=True)
    out, lse = attention(*inputs, **how, return_lse=True)
    assert torch.equal(out, torch.zeros(B, H, L, DV, dtype=torch.float64))
    assert torch.equal(lse, torch.full((B, H, L), -INF, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(out.sum() + lse.sum(), inputs[:1])
    assert (gradient == 0).all()


@pytest.mark.parametrize("junk", [math.nan, INF, -INF])
@pytest.mark.parametrize("as_mod", [False, True])
def test_junk_in_a_key_that_nobody_sees_has_no_influence(junk, as_mod):
    q, k, v = tensors()
    hidden = [1, S - 1]
    visible = [j for j in range(S) if j not in hidden]
    k[:, :, hidden], v[:, :, hidden] = junk, junk
    mask = torch.ones(L, S, dtype=torch.bool)
    mask[:, hidden] = False
    inputs = [x.requires_grad_() for x in (q, k, v)]
    how = {"mask": mask}
    if as_mod:
        how = {
            "mask": lambda b, h, i, j: mask[i, j],
            "query_offset": 0,
            "key_offset": 0,
        }
    out, lse = attention(*inputs, **how, return_lse=True)
    expected = attention(q, k[:, :, visible], v[:, :, visible], return_lse=True)
    torch.testing.assert_close((out, lse), expected)
    torch.testing.assert_close(
        attention_weights(q, k, **how)[..., visible],
        attention_weights(q, k[:, :, visible]),
    )
    ours = torch.autograd.grad(out.square().sum() + lse.sum(), inputs)
    theirs = torch.autograd.grad(expected[0].square().sum() + expected[1].sum(), inputs)
    torch.testing.assert_close(ours, theirs)
    assert (ours[1][:, :, hidden] == 0).all()
    assert (ours[2][:, :, hidden] == 0).all()


def test_junk_hidden_from_one_query_head_stays_out_of_that_head():
    q, k, v = tensors()
    k[:, 0, 3], v[:, 0, 3] = math.nan, math.nan
    mask = torch.ones(1, H, 1, S, dtype=torch.bool)
    mask[:, 0, :, 3] = False  # of the two heads that read key head 0, the first
    out = attention(q, k, v, mask=mask)
    assert out[:, 0].isfinite().all()
    assert out[:, 1].isnan().all()
    assert out[:, 2:].isfinite().all()


def test_junk_in_a_query_that_sees_nothing_reaches_no_gradient():
    q, k, v = tensors()
    q[:, :, 0] = math.nan
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, lse = attention(*inputs, mask=some_mask(L, S), return_lse=True)
    assert out.isfinite().all()
    gradients = torch.autograd.grad(out.sum() + lse.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)


# --- precision --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    inputs = tensors(dtype=dtype)
    wide = [x.float() for x in inputs]
    out, lse = attention(*inputs, return_lse=True)
    expected, expected_lse = attention(*wide, return_lse=True)
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(lse, expected_lse)
    assert torch.equal(attention_weights(*inputs[:2]), attention_weights(*wide[:2]))
    assert torch.equal(attention_scores(*inputs[:2]), attention_scores(*wide[:2]))


def test_scores_beyond_the_range_of_float16_are_finite():
    inputs = [300 * x for x in tensors(dtype=torch.float16)]
    assert attention_scores(*inputs[:2], scale=1).abs().max() > 65504
    assert attention(*inputs, scale=1).isfinite().all()


def test_autocast_changes_nothing():
    inputs = tensors(dtype=torch.float32)
    expected = attention(*inputs, return_lse=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = attention(*inputs, return_lse=True)
        weights = attention_weights(*inputs[:2])
        scores = attention_scores(*inputs[:2])
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])
    assert weights.dtype == scores.dtype == torch.float32
    assert torch.equal(weights, attention_weights(*inputs[:2]))
    assert torch.equal(scores, attention_scores(*inputs[:2]))


# --- kernels and transforms ----------------------------------------------------------------------


def test_a_kernel_is_imported_on_first_use_and_gets_checked_arguments(monkeypatch):
    calls = []

    def kernel(query, key, value, spec):
        calls.append((query.shape, key.shape, value.shape, spec))
        return query.new_zeros(1, 1, L, DV), query.new_ones(1, 1, L)

    monkeypatch.setitem(KERNELS, "recorder", Kernel("recorder", "kernel"))
    monkeypatch.setitem(sys.modules, "recorder", types.SimpleNamespace(kernel=kernel))
    q, k, v = (x[0, 0] for x in tensors())
    mask = some_mask(L, S)
    out, lse = attention(q, k, v, mask=mask, kernel="recorder", return_lse=True)
    assert (out.shape, lse.shape) == ((L, DV), (L,))
    ((q_shape, k_shape, v_shape, spec),) = calls
    assert (q_shape, k_shape) == ((1, 1, L, D), (1, 1, S, D))
    assert v_shape == (1, 1, S, DV)
    assert torch.equal(spec.mask, mask[None, None])
    assert replace(spec, mask=None) == AttentionSpec(scale=D**-0.5, return_lse=True)
    with pytest.raises(ValueError, match="scale"):
        attention(q, k, v, kernel="recorder", scale=-1)
    assert len(calls) == 1


def test_offsets_that_no_mod_reads_change_nothing():
    q, k, v = tensors()
    out = attention(q, k, v, query_offset=3, key_offset=torch.arange(B))
    assert torch.equal(out, attention(q, k, v))
    assert torch.equal(attention(q, k, v, mask=MASK, query_offset=3), attention(q, k, v, mask=MASK))


def test_vmap_over_batch_and_heads_gives_what_four_dimensions_do():
    inputs = tensors(kv_heads=H)
    how = {"mask": causal, "query_offset": S - L, "key_offset": 0}
    one = torch.vmap(torch.vmap(lambda q, k, v: attention(q, k, v, **how)))
    torch.testing.assert_close(one(*inputs), attention(*inputs, **how))


# --- errors -------------------------------------------------------------------------

Q, K, V = tensors()
MASK = torch.ones(L, S, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, "^query must be a tensor of float16.* got list$"),
        ({"key": K.long()}, TypeError, "^key must be .* got torch.int64$"),
        ({"value": V.bool()}, TypeError, "^value must be .* got torch.bool$"),
        (
            {"query": Q[0]},
            ValueError,
            r"must all be \(L, D\) or all \(B, H, L, D\), got query \(6, 5, 11\), key",
        ),
        (
            {"query": Q[0, 0]},
            ValueError,
            r"must all be .* got query \(5, 11\), key \(2",
        ),
        ({"query": Q.float()}, ValueError, "must share one dtype, got .*32, .*64"),
        ({"value": V.to("meta")}, ValueError, "must share one device, got .*meta"),
        (
            {"query": Q[..., :-1]},
            ValueError,
            r"same head size D.* query \(2, 6, 5, 10\)",
        ),
        (
            {"query": Q[..., :0], "key": K[..., :0]},
            ValueError,
            r"same head size D, at least 1, got query \(2, 6, 5, 0\)",
        ),
        (
            {"value": V[:, :, 1:]},
            ValueError,
            r"^value must have one row for each row of key.* value \(2, 3, 6, 13\)$",
        ),
        ({"value": V[:, :1]}, ValueError, r"one row for each.* value \(2, 1, 7, 13\)"),
        ({"value": V[:1]}, ValueError, r"one row for each.* value \(1, 3, 7, 13\)"),
        ({"query": Q[:1]}, ValueError, r"same batch size B, got query \(1, 6, 5, 11\)"),
        ({"query": Q[:, :4]}, ValueError, "H=4, must be a multiple of .* H_kv=3, got"),
        (
            {"key": K[:, :0], "value": V[:, :0]},
            ValueError,
            "H=6, must be a multiple of .* H_kv=0, got",
        ),
        ({"scale": 0}, ValueError, "^scale=0 must be finite and above 0$"),
        ({"scale": -0.5}, ValueError, "^scale=-0.5 must be finite"),
        ({"scale": INF}, ValueError, "^scale=inf must be finite"),
        ({"scale": math.nan}, ValueError, "^scale=nan must be finite"),
        ({"scale": True}, TypeError, "^scale must be a number or None, got bool$"),
        (
            {"scale": torch.tensor(1.0)},
            TypeError,
            "^scale must be .* got torch.float32",
        ),
        (
            {"mask": torch.zeros(L, S)},
            TypeError,
            "^mask must be Boolean.* got torch.float32: .* mask > -inf, .*score_mod",
        ),
        ({"mask": MASK.int()}, TypeError, "^mask must be Boolean.*int32.*mask != 0$"),
        ({"mask": "causal"}, TypeError, "^mask must be a Boolean tensor, .* got str$"),
        ({"mask": MASK.to("meta")}, ValueError, "^mask must be on cpu, got meta$"),
        (
            {"mask": MASK[None]},
            ValueError,
            r"^mask must be \(L, S\) = \(5, 7\) or, each dimension 1 or full, "
            r"\(B, H, L, S\) = \(2, 6, 5, 7\), got \(1, 5, 7\)$",
        ),
        ({"mask": MASK.T}, ValueError, r"^mask must be \(L, S\) = .* got \(7, 5\)$"),
        ({"mask": MASK[:1]}, ValueError, r"^mask must be .* got \(1, 7\)$"),
        (
            {"mask": MASK.expand(B, H_KV, L, S)},
            ValueError,
            r"^mask must be .* got \(2, 3, 5, 7\)$",
        ),
        ({"score_mod": 3}, TypeError, "^score_mod must be a function, got int$"),
        (
            {"mask": causal},
            ValueError,
            "^query_offset is missing: where L=5 and S=7 differ, query_offset and key_offset must",
        ),
        ({"score_mod": alibi, "query_offset": 0}, ValueError, "^key_offset is missing"),
        (
            {"mask": causal, "query_offset": 1.0, "key_offset": 0},
            TypeError,
            "^query_offset must be an int or a tensor of int32 or int64, got float$",
        ),
        (
            {"mask": causal, "query_offset": 0, "key_offset": True},
            TypeError,
            "^key_offset must be .* got bool$",
        ),
        (
            {"mask": causal, "query_offset": torch.zeros(B), "key_offset": 0},
            TypeError,
            "^query_offset must be .* got torch.float32$",
        ),
        (
            {"mask": causal, "query_offset": torch.tensor(0), "key_offset": 0},
            ValueError,
            r"^query_offset must be .* \(B,\), got \(\) for \(2, 6, 5, 11\)$",
        ),
        (
            {
                "mask": causal,
                "query_offset": torch.zeros(B, dtype=torch.int64, device="meta"),
                "key_offset": 0,
            },
            ValueError,
            "^query_offset must be on cpu, got meta$",
        ),
        (
            {"kernel": "flash"},
            ValueError,
            f"^kernel='flash' must be one of {', '.join(KERNELS)}$",
        ),
    ],
)
def test_bad_input_is_named_with_what_came(changed, error, message):
    with pytest.raises(error, match=message):
        attention(**({"query": Q, "key": K, "value": V} | changed))
    # The weights and scores take the same words and check them in the same way.
    for f, words in (
        (attention_scores, {"query", "key", "scale"}),
        (attention_weights, {"query", "key", "scale", "mask", "score_mod"}),
    ):
        if changed.keys() <= words:
            with pytest.raises(error, match=message):
                f(**({"query": Q, "key": K} | changed))


def test_two_dimensions_take_masks_of_two_and_whole_offsets():
    q, k, v = Q[0, 0], K[0, 0], V[0, 0]
    message = r"^mask must be \(L, S\) = \(5, 7\), got \(1, 1, 5, 7\)$"
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, mask=MASK[None, None])
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^query_offset must be an int or.*got \(1,\)"):
        attention(q, k, v, mask=causal, query_offset=one, key_offset=0)


def test_a_mod_must_return_one_value_of_the_right_dtype_for_each_pair():
    where = {"query_offset": 0, "key_offset": 0}
    with pytest.raises(TypeError, match=r"^mask must return one torch.bool.*got .*int64"):
        attention(Q, K, V, mask=lambda b, h, i, j: i - j, **where)
    with pytest.raises(TypeError, match=r"^mask must return one.*\(2, 6, 5, 7, 5, 7\)$"):
        attention(Q, K, V, mask=lambda b, h, i, j: MASK, **where)
    with pytest.raises(TypeError, match=r"^score_mod must return one .*64.*float32"):
        attention(Q, K, V, score_mod=lambda s, b, h, i, j: s.float(), **where)
