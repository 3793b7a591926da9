"""Biases: by hand, against loops and autograd, what holds, errors.

Sizes are prime and differ, so that swapped indices fail.
"""

import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from attention import (
    T5Bias,
    alibi,
    alibi_slopes,
    attention,
    attention_weights,
    causal,
    shift,
    softcap,
    t5_buckets,
)

B, H, L, S, D, DV = 2, 3, 5, 7, 11, 13
SMALL = {"n_buckets": 8, "max_distance": 6}  # one way 0 to 3 exactly; both ways 0 and 1


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tensors(length=L, source=S, **options):
    options = {"dtype": torch.float64} | options
    return (
        torch.randn(B, H, length, D, **options),
        torch.randn(B, H, source, D, **options),
        torch.randn(B, H, source, DV, **options),
    )


def bucket_by_count(relative, n_buckets, max_distance, bidirectional):
    """The formula without a logarithm: which powers has the distance reached?"""
    n = n_buckets // 2 if bidirectional else n_buckets
    first = n if bidirectional and relative > 0 else 0
    distance = abs(relative) if bidirectional else max(-relative, 0)
    exact = n // 2
    if distance < exact:
        return first + distance
    wide = n - exact
    grown = Fraction(distance, exact) ** wide
    return first + exact + sum(grown >= Fraction(max_distance, exact) ** i for i in range(1, wide))


def slopes_by_authors_rule(n):
    """The lists of the powers of two, as exponents: those of the one below, then from between."""
    below = 2 ** math.floor(math.log2(n))
    own = [Fraction(8 * h, below) for h in range(1, below + 1)]
    finer = [Fraction(8 * h, 2 * below) for h in range(1, 2 * below + 1)]
    return [2.0 ** float(-e) for e in (own + finer[0::2])[:n]]


def table_of(module):
    return module.table.weight.tolist()


def t5(**options):
    return T5Bias(H, **SMALL, **options).double()


BOTH_WAYS, ONE_WAY = t5(), t5(bidirectional=False)
SLOPES = [2 ** (-8 / 2), 2 ** (-8), 2 ** (-8 / 4)]  # of three heads

# Each mod beside what it makes of a score in Python's own numbers.
CASES = {
    "T5": (
        BOTH_WAYS,
        lambda s, b, h, i, j: s + table_of(BOTH_WAYS)[bucket_by_count(j - i, 8, 6, True)][h],
    ),
    "T5 one way": (
        ONE_WAY,
        lambda s, b, h, i, j: s + table_of(ONE_WAY)[bucket_by_count(j - i, 8, 6, False)][h],
    ),
    "ALiBi": (alibi(3), lambda s, b, h, i, j: s - SLOPES[h] * abs(i - j)),
    "softcap": (softcap(0.5), lambda s, b, h, i, j: 0.5 * math.tanh(s / 0.5)),
}
EVERY = pytest.mark.parametrize(("mod", "by_number"), CASES.values(), ids=CASES)


# --- by hand ------------------------------------------------------------------


def test_t5_buckets_of_the_paper_end_a_root_of_two_farther_each():
    ends = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]  # the nearest of each
    nearest = -torch.tensor(ends)
    assert t5_buckets(nearest).tolist() == list(range(16))
    assert t5_buckets(nearest[9:] + 1).tolist() == list(range(8, 15))
    assert t5_buckets(torch.tensor([1, 7, 8, 91, 10**6])).tolist() == [17, 23, 24, 31, 31]


def test_t5_buckets_of_six_words():
    before = -torch.arange(6)
    one_way = {"n_buckets": 4, "max_distance": 4, "bidirectional": False}
    assert t5_buckets(before, **one_way).tolist() == [0, 1, 2, 3, 3, 3]  # 2 sqrt(2) is below 3
    assert t5_buckets(-before, **one_way).tolist() == [0] * 6
    assert t5_buckets(before, n_buckets=8, max_distance=8).tolist() == [0, 1, 2, 2, 3, 3]
    assert t5_buckets(-before, n_buckets=8, max_distance=8).tolist() == [0, 5, 6, 6, 7, 7]


def test_two_buckets_are_here_and_elsewhere():
    relative = torch.tensor([0, -1, -100])
    assert t5_buckets(relative, n_buckets=2, max_distance=2, bidirectional=False).tolist() == [
        0,
        1,
        1,
    ]


def test_alibi_has_the_published_slopes_of_eight_heads():
    assert alibi_slopes(8).tolist() == [1 / 2**h for h in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    torch.testing.assert_close(alibi_slopes(16)[:2], torch.tensor([2**-0.5, 2**-1]))


def test_alibi_has_the_published_slopes_of_twelve_heads():
    fill = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    expected = torch.tensor([1 / 2**h for h in range(1, 9)] + fill)
    torch.testing.assert_close(alibi_slopes(12), expected)


def test_a_slope_of_ln_2_halves_the_weight_with_each_position():
    # Equal scores: of the first head of two, e^(-1/16) for each position.
    x = torch.zeros(1, 2, 3, 1, dtype=torch.float64)
    weights = attention_weights(x, x, mask=causal, score_mod=alibi(2))[0, 0, 2]
    share = math.exp(-1 / 16)
    expected = torch.tensor([share**2, share, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weights, expected / (1 + share + share**2))


def test_softcap_by_hand():
    s = torch.tensor([0.0, 2 * math.log(3) / 2, -1e9, math.inf])  # tanh(ln 3 / 2) is a half
    got = softcap(2)(s, 0, 0, 0, 0)
    torch.testing.assert_close(got, torch.tensor([0.0, 1.0, -2.0, 2.0]))


# --- against loops --------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_buckets", "max_distance", "bidirectional"),
    [
        (32, 128, True),
        (32, 128, False),
        (8, 6, True),
        (8, 6, False),
        (7, 11, False),
        (2, 2, False),
        (3, 2, False),
        (4, 2, True),
        (4, 1000, True),
        (64, 33, False),
        (10, 3, True),
    ],
)
def test_t5_buckets_count_powers(n_buckets, max_distance, bidirectional):
    relative = list(range(-300, 301))
    got = t5_buckets(
        torch.tensor(relative),
        n_buckets=n_buckets,
        max_distance=max_distance,
        bidirectional=bidirectional,
    )
    sizes = (n_buckets, max_distance, bidirectional)
    assert got.tolist() == [bucket_by_count(r, *sizes) for r in relative]


@given(st.integers(2, 80), st.integers(1, 300), st.booleans())
@settings(max_examples=60, deadline=None)
def test_t5_buckets_never_fall_with_distance_and_reach_the_last(n_buckets, extra, bidirectional):
    n_buckets = 2 * max(n_buckets // 2, 2) if bidirectional else n_buckets
    n = n_buckets // 2 if bidirectional else n_buckets
    most = n // 2 + extra
    sizes = {"n_buckets": n_buckets, "max_distance": most, "bidirectional": bidirectional}
    before = t5_buckets(-torch.arange(3 * most), **sizes)
    assert before.dtype == torch.int64
    assert (before.diff() >= 0).all()
    assert before[: n // 2].tolist() == list(range(n // 2))
    assert (before[most:] == n - 1).all()
    after = t5_buckets(torch.arange(1, 3 * most), **sizes)
    assert torch.equal(after, before[1:] + n if bidirectional else torch.zeros_like(after))


@pytest.mark.parametrize("n_heads", range(1, 72))
def test_alibi_slopes_follow_the_authors_rule(n_heads):
    slopes = alibi_slopes(n_heads)
    assert slopes.dtype == torch.float32
    torch.testing.assert_close(slopes, torch.tensor(slopes_by_authors_rule(n_heads)))
    assert len(set(slopes.tolist())) == n_heads


@EVERY
def test_a_mod_is_its_formula_for_each_pair_wherever_the_block_stands(mod, by_number):
    q, k, _ = tensors()
    offsets = torch.tensor([4, 9]), torch.tensor([6, 0])
    got = attention_weights(q, k, score_mod=mod, query_offset=offsets[0], key_offset=offsets[1])
    scores = (q @ k.mT / D**0.5).tolist()
    final = torch.zeros(B, H, L, S, dtype=torch.float64)
    for b, h, i, j in itertools.product(range(B), range(H), range(L), range(S)):
        at = i + int(offsets[0][b]), j + int(offsets[1][b])
        final[b, h, i, j] = by_number(scores[b][h][i][j], b, h, *at)
    torch.testing.assert_close(got, final.softmax(-1), rtol=0, atol=1e-12)


@EVERY
def test_scalars_broadcasting_and_vmap_say_the_same(mod, by_number):
    scores = torch.randn(B, H, L, S, dtype=torch.float64)
    indices = [torch.arange(n) for n in scores.shape]
    expected = torch.tensor(
        [
            by_number(scores[pair].item(), *pair)
            for pair in itertools.product(*map(range, scores.shape))
        ],
        dtype=torch.float64,
    ).view(scores.shape)

    scalars = [mod(scores[pair], *map(torch.tensor, pair)) for pair in _pairs(scores.shape)]
    assert all(x.shape == () and x.dtype == torch.float64 for x in scalars)
    one_by_one = torch.stack(scalars).view(scores.shape)
    grid = torch.meshgrid(*indices, indexing="ij")
    open_grid = [x.view([-1 if i == d else 1 for i in range(4)]) for d, x in enumerate(indices)]
    mapped = mod
    for dim in (3, 2, 1, 0):
        in_dims = tuple(0 if i == dim else None for i in range(4))
        mapped = torch.vmap(mapped, in_dims=(0, *in_dims))
    for got in (
        one_by_one,
        mod(scores, *grid),
        mod(scores, *open_grid),
        mapped(scores, *indices),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def _pairs(shape):
    return itertools.product(*map(range, shape))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mod_keeps_the_dtype_of_the_scores(mod, by_number, dtype):
    q, k, v = tensors(dtype=dtype)
    at = {"query_offset": 0, "key_offset": 0}
    assert attention_weights(q, k, score_mod=mod, **at).dtype == dtype
    assert attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), score_mod=mod, **at).dtype == (
        torch.bfloat16
    )


# --- what holds -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T5", "T5 one way", "ALiBi"])
def test_a_bias_depends_on_relative_positions_only(name):
    mod, _ = CASES[name]
    q, k, v = tensors()
    here = attention(q, k, v, score_mod=mod, query_offset=2, key_offset=0)
    moved = attention(q, k, v, score_mod=mod, query_offset=1002, key_offset=1000)
    other = attention(q, k, v, score_mod=mod, query_offset=3, key_offset=0)
    torch.testing.assert_close(here, moved, rtol=0, atol=1e-12)
    assert not torch.allclose(here, other)


@EVERY
def test_the_last_query_alone_gets_what_it_got_among_all(mod, by_number):
    q, k, v = tensors(S, S)
    whole = attention(q, k, v, mask=causal, score_mod=mod)
    at = {"query_offset": S - 1, "key_offset": 0}
    last = attention(q[:, :, -1:], k, v, mask=causal, score_mod=mod, **at)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=0, atol=1e-12)
    blocks = shift(mod, S - 1, 0)
    at = {"query_offset": 0, "key_offset": 0}
    last = attention(q[:, :, -1:], k, v, mask=shift(causal, S - 1, 0), score_mod=blocks, **at)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=0, atol=1e-12)


def test_causal_alibi_is_a_bias_of_the_key_alone():
    q, k, v = tensors(S, S)
    slopes = alibi_slopes(H).double()

    def from_the_key(score, b, h, q_idx, kv_idx):
        return score + slopes[h] * kv_idx

    expected = attention(q, k, v, mask=causal, score_mod=from_the_key)
    got = attention(q, k, v, mask=causal, score_mod=alibi(H))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    both_ways = attention(q, k, v, score_mod=alibi(H))
    assert not torch.allclose(both_ways, attention(q, k, v, score_mod=from_the_key))


def test_the_mean_distance_of_a_slope_is_that_of_a_geometric_distribution():
    n = 4000
    x = torch.zeros(1, 8, n, 1, dtype=torch.float64)
    at = {"query_offset": n - 1, "key_offset": 0}
    weights = attention_weights(x[:, :, -1:], x, mask=causal, score_mod=alibi(8), **at)
    mean = weights[0, :, 0] @ (n - 1 - torch.arange(n, dtype=torch.float64))
    # What is cut off beyond 4000 positions at the flattest slope, 1/256, is below 1e-5.
    torch.testing.assert_close(mean, 1 / torch.expm1(alibi_slopes(8).double()), rtol=1e-4, atol=0)


def test_softcap_is_odd_bounded_and_never_steeper_than_one():
    s = torch.linspace(-40, 40, 801, dtype=torch.float64, requires_grad=True)
    capped = softcap(7)(s, 0, 0, 0, 0)
    (slope,) = torch.autograd.grad(capped.sum(), s)
    assert (capped.abs() < 7).all() and (capped.diff() > 0).all()
    torch.testing.assert_close(capped, -capped.flip(0))
    torch.testing.assert_close(slope, 1 - (capped / 7) ** 2)
    assert slope.max() == 1 and (slope > 0).all()


def test_a_hidden_key_stays_hidden_under_a_softcap():
    q, k, _ = tensors(S, S)
    weights = attention_weights(q, k, mask=causal, score_mod=softcap(0.1))
    assert (weights.triu(diagonal=1) == 0).all()


# --- the table's gradient -----------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [True, False])
def test_each_row_of_the_table_collects_from_its_pairs(bidirectional):
    q, k, v = tensors(S, S)
    grad = torch.randn(B, H, S, DV, dtype=torch.float64)
    module = t5(bidirectional=bidirectional)
    out = attention(q, k, v, mask=causal, score_mod=module)
    (got,) = torch.autograd.grad(out, module.table.weight, grad)

    weights = attention_weights(q, k, mask=causal, score_mod=module).detach()
    grad_weights = grad @ v.mT
    average = (weights * grad_weights).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - average)
    expected = torch.zeros(8, H, dtype=torch.float64)
    for b, h, i, j in _pairs((B, H, S, S)):
        row = bucket_by_count(j - i, 8, 6, bidirectional)
        expected[row, h] += grad_scores[b, h, i, j]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    # A constant on all scores of a query has no effect.
    torch.testing.assert_close(got.sum(0), torch.zeros(H).double(), rtol=0, atol=1e-12)


def test_a_row_that_no_pair_reads_gets_no_gradient():
    q, k, v = tensors(S, S)
    module = t5()
    attention(q, k, v, score_mod=module).square().sum().backward()
    unread = (module.table.weight.grad == 0).all(1)
    assert unread.tolist() == [False] * 4 + [True] + [False] * 3  # zero positions after the query
    module.zero_grad()
    attention(q, k, v, mask=causal, score_mod=module).square().sum().backward()
    assert (module.table.weight.grad == 0).all(1).tolist() == [False] * 4 + [True] * 4


def test_the_table_has_first_and_second_derivatives():
    q, k, v = (x[:1, :, :4, :2] for x in tensors(S, S))
    module = t5()

    def f(table, q):
        mod = functional_mod(module, table)
        return attention(q, k, v, mask=causal, score_mod=mod)

    inputs = module.table.weight.detach().clone().requires_grad_(), q.requires_grad_()
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


def functional_mod(module, table):
    def mod(score, b, h, q_idx, kv_idx):
        return functional_call(module, {"table.weight": table}, (score, b, h, q_idx, kv_idx))

    return mod


@EVERY
def test_scores_have_first_and_second_derivatives(mod, by_number):
    q, k, v = (x[:1, :, :3, :2].requires_grad_() for x in tensors(S, S))

    def f(q, k):
        return attention(q, k, v.detach(), mask=causal, score_mod=mod)

    assert gradcheck(f, (q, k))
    assert gradgradcheck(f, (q, k))


def test_a_softcap_of_an_infinite_score_has_no_nan_in_its_gradient():
    s = torch.tensor([math.inf, -math.inf, 1e30, 0.0], requires_grad=True)
    softcap(5)(s, 0, 0, 0, 0).sum().backward()
    assert s.grad.tolist() == [0.0, 0.0, 0.0, 1.0]


# --- modules and transforms -----------------------------------------------------------


def test_a_table_travels_with_its_module():
    module = t5()
    other = t5()
    other.load_state_dict(module.state_dict())
    assert list(module.state_dict()) == ["table.weight"]
    assert module.table.weight.shape == (8, H)
    q, k, v = tensors(S, S)
    outs = [attention(q, k, v, score_mod=m) for m in (module, other, copy.deepcopy(module))]
    assert all(torch.equal(outs[0], out) for out in outs)


def test_torch_compile_takes_all_of_them_and_follows_lengths_that_change():
    def every(score, *where):
        for mod, _ in CASES.values():
            score = mod(score, *where)
        return score

    def f(q, k, v):
        return attention(q, k, v, mask=causal, score_mod=every)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    with torch.no_grad():
        for n in (5, 7, 11):
            inputs = tensors(n, n)
            torch.testing.assert_close(compiled(*inputs), f(*inputs))


def test_more_heads_than_slopes_raise():
    q, k, v = tensors(S, S)
    for mod in (alibi(2), T5Bias(2).double()):
        with pytest.raises(IndexError, match="out of bounds"):
            attention(q, k, v, score_mod=mod)


# --- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"n_buckets": 2}, ValueError, "^n_buckets=2 must be at least 4$"),
        (
            {"n_buckets": 1, "bidirectional": False},
            ValueError,
            "^n_buckets=1 must be at least 2$",
        ),
        ({"n_buckets": 7}, ValueError, "^n_buckets=7 must be even$"),
        ({"n_buckets": 8.0}, TypeError, r"^n_buckets must be an integer, got 8\.0$"),
        ({"n_buckets": True}, TypeError, "^n_buckets must be an integer, got True$"),
        ({"max_distance": 0}, ValueError, "^max_distance=0 must be at least 1$"),
        ({"max_distance": "9"}, TypeError, "^max_distance must be an integer, got '9'$"),
        ({"max_distance": 8}, ValueError, "^max_distance must be above 8, .* got 8$"),
        (
            {"max_distance": 16, "bidirectional": False},
            ValueError,
            "^max_distance must be above 16, .* got 16$",
        ),
    ],
)
def test_wrong_sizes_of_buckets_are_named(sizes, error, message):
    with pytest.raises(error, match=message):
        t5_buckets(torch.arange(3), **sizes)
    with pytest.raises(error, match=message):
        T5Bias(2, **sizes)


@pytest.mark.parametrize(
    ("relative", "came"),
    [
        (-3, "int"),
        ([-3], "list"),
        (torch.tensor(-3.0), "torch.float32"),
        (torch.tensor(True), "torch.bool"),
        (torch.tensor(3, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_relative_positions_must_be_whole_and_signed(relative, came):
    with pytest.raises(TypeError, match=f"^relative_position must be .* got {came}$"):
        t5_buckets(relative)


@pytest.mark.parametrize("make", [T5Bias, alibi, alibi_slopes])
@pytest.mark.parametrize(
    ("n_heads", "error", "message"),
    [
        (0, ValueError, "^n_heads=0 must be at least 1$"),
        (-3, ValueError, "^n_heads=-3 must be at least 1$"),
        (2.0, TypeError, r"^n_heads must be an integer, got 2\.0$"),
        (True, TypeError, "^n_heads must be an integer, got True$"),
        ("8", TypeError, "^n_heads must be an integer, got '8'$"),
    ],
)
def test_wrong_numbers_of_heads_are_named(make, n_heads, error, message):
    with pytest.raises(error, match=message):
        make(n_heads)


@pytest.mark.parametrize(
    ("cap", "error", "message"),
    [
        (0, ValueError, "^cap=0 must be finite and above 0$"),
        (-50.0, ValueError, r"^cap=-50\.0 must be finite and above 0$"),
        (math.inf, ValueError, "^cap=inf must be finite"),
        (math.nan, ValueError, "^cap=nan must be finite"),
        ("50", TypeError, "^cap must be a number, got str$"),
        (True, TypeError, "^cap must be a number, got bool$"),
        (torch.tensor(50.0), TypeError, "^cap must be a number, got torch.float32$"),
    ],
)
def test_wrong_caps_are_named(cap, error, message):
    with pytest.raises(error, match=message):
        softcap(cap)
