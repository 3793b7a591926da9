"""What the kernels, and the modules beside them, promise at the edges that no other test visits.

Each fault that is known and not mended is a test too, marked to fail. What is expected is counted
in plain loops in float64.
"""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.attention.flex_attention as flex_attention
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from attention import (
    LearnedPositions,
    MultiHeadAttention,
    RotaryEmbedding,
    T5Bias,
    alibi_slopes,
    attention,
    causal,
    document,
    first_tokens,
    kernels,
    padding,
    rope_scaling_linear,
    rope_scaling_llama3,
    rope_scaling_ntk,
    rope_scaling_yarn,
    rotate,
    shift,
    sinusoidal,
    sliding_window,
    softcap,
)
from attention.kernels import find
from attention.masking import AttentionSpec
from tests.machine import KERNELS, can

INF, NAN = math.inf, math.nan
B, H, H_KV, L, S, D, DV = 2, 4, 2, 3, 6, 5, 7
AT_0 = {"query_offset": 0, "key_offset": 0}
WITH_LSE, WITH_MODS = can("return_lse"), can("score_mod")
ANY_MASK, IN_ONE_GRAPH = can("masks with gaps"), can("torch.compile in one graph")


def tensors(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    sizes = (B, H, L, D), (B, H_KV, S, D), (B, H_KV, S, DV)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes]


def in_loops(query, key, value, allowed, score=lambda s, b, h, i, j: s, scale=None):
    """Output and log-sum-exp, pair by pair."""
    n_b, n_h, n_q, d = query.shape
    n_kv, n_k, dv = value.shape[1:]
    scale = d**-0.5 if scale is None else scale
    out = torch.zeros(n_b, n_h, n_q, dv, dtype=torch.float64)
    lse = torch.full((n_b, n_h, n_q), -INF, dtype=torch.float64)
    for b in range(n_b):
        for h in range(n_h):
            group = h * n_kv // n_h
            for i in range(n_q):
                keys = [j for j in range(n_k) if allowed(b, h, i, j)]
                if not keys:
                    continue
                q, ks = query[b, h, i].tolist(), key[b, group].tolist()
                scores = [
                    score(scale * sum(x * y for x, y in zip(q, ks[j], strict=True)), b, h, i, j)
                    for j in keys
                ]
                top = max(scores)
                powers = [math.exp(s - top) for s in scores]
                total = sum(powers)
                lse[b, h, i] = top + math.log(total)
                for j, power in zip(keys, powers, strict=True):
                    out[b, h, i] += power / total * value[b, group, j].double()
    return out, lse


@pytest.fixture
def untraced(monkeypatch):
    """FlexAttention runs without a trace, for speed."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture(autouse=True)
def _anew():
    """torch.compile forgets what other tests have compiled."""
    torch._dynamo.reset()


# --- the same as loops ---------------------------------------------------------------------------


STARTS = [*range(-L - 1, S + 1), -(10**9), 10**6, 10**9]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("untraced")
def test_causal_is_the_loop_at_every_offset_also_before_the_keys_and_far_behind(kernel):
    given = [x[:1, :2] for x in tensors()]
    with_lse = kernel in WITH_LSE
    for start in STARTS:
        want = in_loops(*given, lambda b, h, i, j, start=start: j <= i + start)
        for first in (0, 10**9):  # only the difference counts
            at = {"query_offset": start + first, "key_offset": first}
            got = attention(*given, mask=causal, kernel=kernel, return_lse=with_lse, **at)
            got = got if with_lse else (got, want[1])
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("untraced")
def test_each_row_may_begin_elsewhere_also_before_its_keys(kernel):
    given = tensors()
    for mask, size, dtype in ((sliding_window(2), 2, torch.int32), (causal, INF, torch.int64)):
        q, k = torch.tensor([-1, 10**9], dtype=dtype), torch.tensor([0, 10**9 - 2], dtype=dtype)
        out = attention(*given, mask=mask, query_offset=q, key_offset=k, kernel=kernel)
        want, _ = in_loops(
            *given,
            lambda b, h, i, j, n=size, q=q, k=k: 0 <= i + int(q[b]) - j - int(k[b]) < n,
        )
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(B, H, L, 1), (1, 1, L, 1), (B, 1, 1, S), (1, H, 1, 1), (B, 1, 1, 1), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("kernel", ANY_MASK)
@pytest.mark.usefixtures("untraced")
def test_each_dimension_of_a_mask_may_be_1_the_last_too(kernel, shape):
    given = tensors()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(shape, generator=generator) < 0.6
        full = mask.expand(B, H, L, S)
        want, _ = in_loops(*given, lambda b, h, i, j, full=full: bool(full[b, h, i, j]))
        out = attention(*given, mask=mask, kernel=kernel)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["mod", "tensor"])
@pytest.mark.parametrize("kernel", ANY_MASK)
@pytest.mark.usefixtures("untraced")
def test_junk_is_cleared_group_by_group_where_heads_have_masks_of_their_own(kernel, form):
    query, key, value = tensors()
    # Keys 0 and 1 are seen by nobody in group 0, key 5 by nobody in group 1; each head differs.
    sees = torch.tensor(
        [
            [0, 0, 1, 0, 1, 1],
            [0, 0, 0, 1, 1, 0],
            [1, 0, 1, 0, 1, 0],
            [0, 1, 1, 1, 0, 0],
        ]
    ).bool()
    mask = sees[None, :, None] if form == "tensor" else lambda b, h, q, k: sees[h, k]
    want, _ = in_loops(query, key, value, lambda b, h, i, j: bool(sees[h, j]))
    dirty = [key.clone(), value.clone()]
    for x in dirty:
        x[:, 0, :2], x[:, 1, 5:] = NAN, INF
    at = {} if form == "tensor" else AT_0
    grad = "gradients on a CPU" not in kernels.KERNELS[kernel].unsupported
    given = [x.requires_grad_(grad) for x in (query, *dirty)]
    out = attention(*given, mask=mask, kernel=kernel, **at)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    if grad:
        gradients = torch.autograd.grad(out.square().sum(), given)
        assert all(g.isfinite().all() for g in gradients)
        assert not gradients[1][:, 0, :2].any() and not gradients[2][:, 1, 5:].any()
        assert gradients[1][:, 1, :2].all() and gradients[2][:, 0, 5:].all()


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("untraced")
def test_heads_of_one_number(kernel, sizes):
    query, key, value = tensors()
    query, key, value = query[..., : sizes[0]], key[..., : sizes[0]], value[..., : sizes[1]]
    want, _ = in_loops(query, key, value, lambda b, h, i, j: j < 2, scale=3)
    out = attention(query, key, value, mask=first_tokens(2), **AT_0, scale=3, kernel=kernel)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", ["L", "S", "B", "H"])
@pytest.mark.parametrize("kernel", WITH_LSE)
def test_nothing_has_a_log_sum_exp_of_its_shape_and_dtype(kernel, size):
    n = {"B": B, "H": H, "L": L, "S": S} | {size: 0}
    query = torch.zeros(n["B"], n["H"], n["L"], D, dtype=torch.float16)
    key = torch.zeros(n["B"], H_KV, n["S"], D, dtype=torch.float16)
    out, lse = attention(query, key, key, kernel=kernel, return_lse=True)
    assert out.shape == query.shape and out.dtype == torch.float16 and not out.any()
    assert lse.shape == query.shape[:3] and lse.dtype == torch.float32
    assert (lse == -INF).all()


@pytest.mark.parametrize("kernel", WITH_LSE)
def test_values_without_numbers_leave_the_log_sum_exp_as_it_is(kernel):
    query, key, value = tensors()
    value = value[..., :0]
    _, want = in_loops(query, key, value, lambda b, h, i, j: True)
    out, lse = attention(query, key, value, kernel=kernel, return_lse=True)
    assert out.shape == (B, H, L, 0)
    torch.testing.assert_close(lse, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", WITH_MODS)
@pytest.mark.usefixtures("untraced")
def test_what_a_score_mod_says_of_hidden_pairs_does_not_matter_not_even_nan(kernel):
    given = tensors()
    for junk in (NAN, INF, -INF):

        def mod(s, b, h, q, k, junk=junk):
            return torch.where(q >= k, s + h, junk)

        out, lse = attention(
            *given,
            mask=causal,
            score_mod=mod,
            query_offset=1,
            key_offset=0,
            kernel=kernel,
            return_lse=True,
        )
        score = in_loops(*given, lambda b, h, i, j: j <= i + 1, lambda s, b, h, i, j: s + h)
        torch.testing.assert_close((out, lse), score, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", WITH_MODS)
@pytest.mark.usefixtures("untraced")
def test_a_score_mod_that_hides_all_from_a_query_leaves_it_nothing(kernel):
    given = tensors()

    def mod(s, b, h, q, k):
        return torch.where(q == 1, -INF, s)

    got = attention(*given, score_mod=mod, **AT_0, kernel=kernel, return_lse=True)
    torch.testing.assert_close(got, in_loops(*given, lambda b, h, i, j: i != 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("untraced")
def test_scores_beyond_float16_are_finite(kernel):
    query = torch.full((1, 1, 4, 64), 60.0, dtype=torch.float16)  # products of 230400
    key = query * torch.tensor([1, 0.5, 0.9, 0.99], dtype=torch.float16)[:, None]
    value = torch.arange(1.0, 5, dtype=torch.float16)[:, None].expand(1, 1, 4, 64)
    out = attention(query, key, value, scale=1, kernel=kernel)
    assert (out == 1).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("untraced")
def test_autocast_rounds_nothing(kernel):
    given = tensors(dtype=torch.float32)
    want, _ = in_loops(*given, lambda b, h, i, j: j <= i + 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*given, mask=causal, query_offset=3, key_offset=0, kernel=kernel)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", ANY_MASK)
@pytest.mark.usefixtures("untraced")
def test_arguments_are_left_as_they_were(kernel):
    given, kept = tensors(), tensors()
    mask = torch.rand(1, H, L, S) < 0.5
    mask[:, :, 0], mask[..., 0] = False, False
    before = mask.clone()
    attention(*given, mask=mask, kernel=kernel)
    assert torch.equal(mask, before)
    assert all(torch.equal(x, y) for x, y in zip(given, kept, strict=True))


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_where_nothing_learns_nothing_is_refused_and_nothing_is_recorded(kernel):
    given = [x.requires_grad_() for x in tensors()]
    bias = T5Bias(H).double()
    how = {"score_mod": bias, **AT_0} if kernel in WITH_MODS else {}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not attention(*given, kernel=kernel, **how).requires_grad


def test_flex_refuses_gradients_of_any_of_the_three_and_under_func_grad():
    given = tensors()
    for i in range(3):
        some = [x.clone().requires_grad_(i == j) for j, x in enumerate(given)]
        with pytest.raises(NotImplementedError, match="gradients on a CPU"):
            attention(*some, kernel="flex")
    with pytest.raises(NotImplementedError, match="gradients on a CPU"):
        torch.func.grad(lambda q: attention(q, *given[1:], kernel="flex").sum())(given[0])
    one = [x[:, 0] for x in given]
    with pytest.raises(NotImplementedError, match="gradients on a CPU"):
        torch.vmap(torch.func.grad(lambda q, k, v: attention(q, k, v, kernel="flex").sum()))(*one)


def test_flex_refuses_gradients_on_a_cpu_alone():
    there = torch.zeros(1, 1, 2, 2, device="meta", requires_grad=True)
    found = find("flex", there, there, there, AttentionSpec())
    assert found is kernels.KERNELS["flex"].load()


def test_a_refusal_names_nobody_who_would_refuse_too():
    given = [x.requires_grad_() for x in tensors()]
    with pytest.raises(NotImplementedError) as caught:
        attention(*given, return_lse=True, kernel="sdpa")
    assert "flex" not in str(caught.value).rpartition(";")[2]


@pytest.mark.parametrize(
    "mask", [None, causal, sliding_window(2)], ids=["none", "causal", "window"]
)
@pytest.mark.parametrize("start", [0, 2, -1])
def test_derivatives_of_sdpa_match_finite_differences(mask, start):
    given = [x[:1].requires_grad_() for x in tensors()]
    at = {} if mask is None else {"query_offset": start, "key_offset": 0}
    assert torch.autograd.gradcheck(lambda *x: attention(*x, mask=mask, kernel="sdpa", **at), given)


@pytest.mark.parametrize("kernel", [n for n in KERNELS if n != "reference"])
def test_forward_derivatives_are_given_by_the_reference_and_raise_elsewhere(kernel):
    query, key, value = tensors()
    ones = torch.ones_like(query)
    _, slope = torch.func.jvp(lambda q: attention(q, key, value), (query,), (ones,))
    step = 1e-5
    ends = [attention(query + s * step, key, value) for s in (1, -1)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=0, atol=1e-8)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda q: attention(q, key, value, kernel=kernel), (query,), (ones,))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("kernel", can("torch.vmap"))
def test_vmap_over_rows_is_a_batch(kernel):
    given = tensors()
    at = {"mask": causal, "query_offset": 2, "key_offset": 0, "kernel": kernel}
    rows = torch.vmap(lambda q, k, v: attention(q[None], k[None], v[None], **at)[0])(*given)
    want, _ = in_loops(*given, lambda b, h, i, j: j <= i + 2)
    torch.testing.assert_close(rows, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [n for n in KERNELS if n not in can("torch.vmap")])
def test_any_other_kernel_under_vmap_raises(kernel):
    given = tensors()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.vmap(lambda q, k, v: attention(q[None], k[None], v[None], kernel=kernel))(*given)


# --- BlockMasks ----------------------------------------------------------------------------------


def of_heads(b, h, q, k):
    return (q + k + h + b) % 3 > 0


@pytest.mark.parametrize(
    "heads", [(B, H), (None, None), (B, None), (None, H), (3, 5), (2, 2)], ids=str
)
@pytest.mark.parametrize("lengths", [(L, S), (S, L), (300, 300)], ids=str)
@pytest.mark.parametrize("kernel", ANY_MASK)
@pytest.mark.usefixtures("untraced")
def test_a_block_mask_of_any_sizes_is_its_mod(kernel, heads, lengths):
    given = tensors()
    mask = create_block_mask(of_heads, *heads, *lengths, device="cpu")
    for q in (0, 1, torch.zeros(B, dtype=torch.int32)):
        out = attention(*given, mask=mask, query_offset=q, key_offset=0, kernel=kernel)
        at = int(q != 0) if isinstance(q, int) else 0
        want, _ = in_loops(*given, lambda b, h, i, j, at=at: (i + at + j + h + b) % 3 > 0)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


def test_a_block_mask_without_a_batch_is_its_mod_too():
    given = tensors()
    one = torch.ones(1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    mask = BlockMask.from_kv_blocks(*one, seq_lengths=(L, S), mask_mod=causal)
    want = attention(*given, mask=mask, **AT_0)
    torch.testing.assert_close(attention(*given, mask=mask, **AT_0, kernel="flex"), want)


@pytest.mark.parametrize("heads", [(B, H), (None, None), (B, None), (None, H)], ids=str)
@pytest.mark.usefixtures("untraced")
def test_flex_takes_a_block_mask_of_its_sizes_as_it_is_and_makes_any_other(heads, monkeypatch):
    made = []

    def make(*args, **how):
        made.append(args)
        return create_block_mask(*args, **how)

    monkeypatch.setattr("attention.kernels.flex.create_block_mask", make)
    mask = create_block_mask(causal, *heads, L, S, device="cpu")
    others = create_block_mask(causal, 1, 3, L, S, device="cpu"), causal
    attention(*tensors(), mask=mask, **AT_0, kernel="flex")
    assert not made
    for n, (other, start) in enumerate([(mask, 1), *((x, 0) for x in others)], start=1):
        attention(*tensors(), mask=other, query_offset=start, key_offset=0, kernel="flex")
        assert len(made) == n


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_slice_of_a_block_mask_which_has_lost_its_mod_raises(kernel):
    mask = create_block_mask(causal, B, H, 256, S, device="cpu")[:, :, :1]
    query, key, value = tensors()
    with pytest.raises(RuntimeError, match="sliced BlockMask"):
        attention(query, key, value, mask=mask, **AT_0, kernel=kernel)


# --- compiled ------------------------------------------------------------------------------------

IDS = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 2, 2]])
MASKS = {
    "causal": causal,
    "document": document(IDS),
    "padding": padding(torch.tensor([4, 6])),
    "shift": shift(causal, -1, 0),
    "BlockMask of other sizes": create_block_mask(causal, 1, 1, S, S, device="cpu"),
}


# Tracing FlexAttention takes 2 s a graph.
@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(mask, id=name, marks=[] if name == "document" else pytest.mark.exhaustive)
        for name, mask in MASKS.items()
    ],
)
@pytest.mark.parametrize("kernel", IN_ONE_GRAPH)
# Tracing FlexAttention's index into an offset, PyTorch says this of its own code.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_in_one_graph_every_mask_is_what_it_was(kernel, mask):
    given, starts = tensors(dtype=torch.float32), torch.tensor([3, 1])

    def run(query, key, value, start):
        at = {"query_offset": start, "key_offset": 0, "kernel": kernel}
        return attention(query, key, value, mask=mask, **at)

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given, starts), run(*given, starts))


# Heads, keys, and where the queries begin. All change at once, and so a second graph is for all.
SIZES = [(4, 6, 3), (6, 5, 2)]
SPECIAL = [(8, 4, 4), (2, 6, 0), (4, 3, -2), (6, 6, 0)]  # two heads: one for each key head


@pytest.mark.parametrize(
    "sizes", [SIZES, pytest.param(SIZES + SPECIAL, marks=pytest.mark.exhaustive)], ids=len
)
@pytest.mark.parametrize("kernel", IN_ONE_GRAPH)
def test_compiled_code_follows_heads_lengths_and_offsets_that_change(kernel, sizes):
    def run(query, key, value, start):
        at = {"query_offset": start, "key_offset": 0, "kernel": kernel}
        return attention(query, key, value, mask=causal, **at)

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for heads, n, start in sizes:
        query, key, value = tensors(dtype=torch.float32)
        given = query.repeat(1, 2, 1, 1)[:, :heads], key[:, :, :n], value[:, :, :n]
        want, _ = in_loops(*given, lambda b, h, i, j, start=start: j <= i + start)
        out = compiled(*given, start)
        torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5)


# --- positions at the edges ----------------------------------------------------------------------


def turned(x, start, pairing, factor=1.0):
    """(L, D), each pair turned by its angle, in a loop in float64."""
    n, d = x.shape
    out = torch.empty(n, d, dtype=torch.float64)
    for row in range(n):
        for i in range(d // 2):
            angle = (start + row) * 10000 ** (-2 * i / d)
            c, s = factor * math.cos(angle), factor * math.sin(angle)
            one, two = (2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + d // 2)
            a, b = float(x[row, one]), float(x[row, two])
            out[row, one], out[row, two] = a * c - b * s, a * s + b * c
    return out


@pytest.mark.parametrize("start", [10**6, 10**9, -(10**9)])
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_rotary_is_exact_far_out_on_both_sides(pairing, start):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = RotaryEmbedding(8, pairing=pairing)
    torch.testing.assert_close(turn(x, offset=start), turned(x, start, pairing), rtol=0, atol=1e-6)
    rows = torch.stack([x, x])[:, None]
    offsets = torch.tensor([start, 0], dtype=torch.int32)
    torch.testing.assert_close(
        turn(rows, offset=offsets)[0, 0], turned(x, start, pairing), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_rotate_has_first_and_second_derivatives_in_all_three(pairing):
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def run(x, angles):
        return rotate(x, angles.cos(), angles.sin(), pairing=pairing)

    assert torch.autograd.gradcheck(run, (x, angles))
    assert torch.autograd.gradgradcheck(run, (x, angles))


def test_rotate_of_mixed_dtypes_gives_that_of_x():
    x, cos, sin = torch.ones(3, 4), torch.zeros(3, 2), torch.ones(3, 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        out = rotate(x.to(dtype), cos.double(), sin.bfloat16(), pairing="half")
        assert out.dtype == dtype and out.tolist() == [[-1.0, -1.0, 1.0, 1.0]] * 3


def test_vmap_over_rotary_offsets_is_a_batch():
    turn, x = RotaryEmbedding(8, pairing="half"), torch.randn(2, 3, 4, 8)
    starts = torch.tensor([1, 7])
    rows = torch.vmap(lambda x, o: turn(x[None], offset=o[None])[0])(x, starts)
    torch.testing.assert_close(rows, turn(x, offset=starts))


RULES = {
    "linear": rope_scaling_linear(4),
    "ntk": rope_scaling_ntk(4),
    "yarn": rope_scaling_yarn(4, 1024),
    "llama3": rope_scaling_llama3(4, 1024),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_module_with_rope_scaling_may_be_copied_pickled_and_stays_in_float64(rule):
    layer = MultiHeadAttention(16, 2, rotary=RotaryEmbedding(8, pairing="half", scaling=rule))
    x = torch.randn(3, 16)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    assert not any("rotary" in name for name in layer.state_dict())
    half = copy.deepcopy(layer).half()
    assert torch.equal(half.rotary.frequencies, layer.rotary.frequencies)
    assert half.rotary.frequencies.dtype == torch.float64


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["rotary", "table", "layer"])
def test_positions_may_be_exported(name, strict):
    class Module(torch.nn.Module):
        def __init__(self, inner, **how):
            super().__init__()
            self.inner, self.how = inner, how

        def forward(self, x):
            return self.inner(x, **self.how)

    turn = RotaryEmbedding(8, pairing="half")
    module, x = {
        "rotary": (Module(turn, offset=3), torch.randn(2, 3, 4, 8)),
        "table": (Module(LearnedPositions(8, 8), offset=2), torch.randn(2, 4, 8)),
        "layer": (
            Module(
                MultiHeadAttention(16, 2, rotary=turn), mask=causal, query_offset=2, key_offset=2
            ),
            torch.randn(2, 5, 16),
        ),
    }[name]
    exported = torch.export.export(module, (x,), strict=strict).module()
    torch.testing.assert_close(exported(x), module(x))


def test_codes_are_exact_at_a_billion():
    codes = sinusoidal(torch.tensor([10**9]), 4)[0]
    want = [f(10.0**n) for n in (9, 7) for f in (math.sin, math.cos)]
    torch.testing.assert_close(codes.double(), torch.tensor(want).double(), rtol=0, atol=1e-6)


def test_a_kernel_has_a_name():
    for name in (None, 3, "Reference", "flex ", b"sdpa", True):
        with pytest.raises(ValueError, match="must be one of reference, sdpa, flex"):
            attention(*tensors(), kernel=name)


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(lambda f: (f[:1], 1.0), id="too few"),
        pytest.param(lambda f: (f[None], 1.0), id="another shape"),
        pytest.param(lambda f: (f, NAN), id="NaN factor"),
        pytest.param(lambda f: (f, 0.0), id="factor 0"),
        pytest.param(lambda f: (f, None), id="no factor"),
        pytest.param(lambda f: f.tolist(), id="no tensor"),
    ],
)
def test_what_a_rule_returns_is_checked(rule):
    with pytest.raises((TypeError, ValueError), match="scaling"):
        RotaryEmbedding(8, pairing="half", scaling=rule)


def test_a_rule_is_a_function():
    with pytest.raises(TypeError, match="scaling must be a function"):
        RotaryEmbedding(8, pairing="half", scaling="linear")


@pytest.mark.parametrize("what", ["rotary", "layer"])
def test_a_module_made_on_no_device_works_once_it_is_moved(what):
    with torch.device("meta"):
        made = RotaryEmbedding(8, pairing="half")
        if what == "layer":
            made = MultiHeadAttention(16, 2, rotary=made)
    made = made.to_empty(device="cpu")
    made(torch.ones(3, 8) if what == "rotary" else torch.ones(3, 16))


@pytest.mark.parametrize(
    "rule", [rope_scaling_ntk(4), rope_scaling_yarn(4, 1024)], ids=["ntk", "yarn"]
)
def test_a_rule_takes_frequencies_on_another_device_than_the_default(rule):
    frequencies = torch.tensor([1.0, 0.1, 0.01])
    with torch.device("meta"):
        assert rule(frequencies)[0].device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_slopes_are_float32_whatever_the_default(dtype):
    want = alibi_slopes(12)
    torch.set_default_dtype(dtype)
    try:
        got = alibi_slopes(12)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_rotate_names_an_x_without_dimensions():
    with pytest.raises(ValueError, match="x must"):
        rotate(torch.tensor(1.0), torch.ones(2), torch.ones(2), pairing="half")


def test_a_layer_takes_no_other_module_for_rotary():
    with pytest.raises((TypeError, ValueError), match="be a RotaryEmbedding"):
        MultiHeadAttention(16, 2, rotary=MultiHeadAttention(16, 2))


@pytest.mark.parametrize("make", [softcap, rope_scaling_linear])
def test_a_number_beyond_every_float_is_named(make):
    with pytest.raises(ValueError, match="must be finite"):
        make(10**400)


@pytest.mark.parametrize("kernel", [n for n in WITH_MODS if n != "flex"])  # which casts
@pytest.mark.parametrize("returns", ["int", "bool", "float32"])
def test_a_score_mod_must_keep_the_dtype(kernel, returns):
    mod = {
        "int": lambda s, b, h, q, k: q,
        "bool": lambda s, b, h, q, k: s > 0,
        "float32": lambda s, b, h, q, k: s.float(),
    }[returns]
    with pytest.raises(TypeError, match="score_mod must return"):
        attention(*tensors(), score_mod=mod, **AT_0, kernel=kernel)


@pytest.mark.parametrize("kernel", [n for n in ANY_MASK if n != "flex"])  # which raises
def test_a_mask_may_capture_what_learns_elsewhere(kernel):
    slopes = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    given = tensors()
    out = attention(*given, mask=lambda b, h, q, k: slopes[h] * (q - k) >= 0, **AT_0, kernel=kernel)
    want, _ = in_loops(*given, lambda b, h, i, j: (-1) ** h * (i - j) >= 0)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
