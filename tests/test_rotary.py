"""Rotary positions: by hand, what holds, pairings, the rules, precision, in a layer, errors.

Every dimension is another prime or twice one, so that swapped axes fail. What is computed in
float64 may be off by a few roundings of angles up to 1e3: 1e-11.
"""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn.attention.flex_attention import create_block_mask

from attention import (
    MultiHeadAttention,
    RotaryEmbedding,
    attention,
    causal,
    padding,
    pairing_permutation,
    rope_scaling_linear,
    rope_scaling_llama3,
    rope_scaling_ntk,
    rope_scaling_yarn,
    rotate,
)

B, H, H_KV, L, S, D = 2, 6, 3, 5, 7, 22
PAIRINGS = ("interleaved", "half")
EXACT = {"rtol": 0, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def partners(pairing, R):
    """Which numbers are turned together, written out."""
    if pairing == "interleaved":
        return [(2 * i, 2 * i + 1) for i in range(R // 2)]
    return [(i, i + R // 2) for i in range(R // 2)]


def by_loops(vector, position, pairing, R, base=10000.0, speeds=None):
    """One vector turned with nothing but math and a loop."""
    out = list(vector)
    for i, (a, b) in enumerate(partners(pairing, R)):
        angle = position * (base ** (-2 * i / R) if speeds is None else speeds[i])
        out[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
        out[b] = vector[a] * math.sin(angle) + vector[b] * math.cos(angle)
    return out


def table(x, start, pairing, R, **how):
    """Rows (L, D) turned, the first standing at start."""
    rows = [by_loops(row, start + p, pairing, R, **how) for p, row in enumerate(x.tolist())]
    return torch.tensor(rows, dtype=torch.float64)


# --- by hand ------------------------------------------------------------------


def test_a_quarter_turn_takes_the_first_of_a_pair_to_the_second():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
    cos, sin = torch.zeros(1, 3), torch.ones(1, 3)
    neighbours = rotate(x, cos, sin, pairing="interleaved")
    assert neighbours.tolist() == [[-2, 1, -4, 3, -6, 5, 7]]
    assert rotate(x, cos, sin, pairing="half").tolist() == [[-4, -5, -6, 1, 2, 3, 7]]


def test_each_pair_has_its_own_angle():
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    cos, sin = torch.tensor([[0.0, -1.0]]), torch.tensor([[1.0, 0.0]])  # a quarter, a half
    assert rotate(x, cos, sin, pairing="interleaved").tolist() == [[0, 1, 0, -1]]
    assert rotate(x, cos, sin, pairing="half").tolist() == [[0, 0, 1, -1]]


def test_the_second_pair_of_four_numbers_turns_by_a_hundredth_of_a_radian():
    f = RotaryEmbedding(4, pairing="interleaved")
    torch.testing.assert_close(f.frequencies, torch.tensor([1.0, 0.01], dtype=torch.float64))
    out = f(torch.tensor([[9.0, 9, 9, 9], [1, 0, 1, 0], [0, 1, 0, 1]]))
    expected = [
        [9.0, 9, 9, 9],
        [math.cos(1), math.sin(1), math.cos(0.01), math.sin(0.01)],
        [-math.sin(2), math.cos(2), -math.sin(0.02), math.cos(0.02)],
    ]
    torch.testing.assert_close(out, torch.tensor(expected))


def test_the_order_from_neighbours_to_halves_is_evens_then_odds():
    assert pairing_permutation(6).tolist() == [0, 2, 4, 1, 3, 5]
    assert pairing_permutation(7, rotary_dim=4).tolist() == [0, 2, 1, 3, 4, 5, 6]
    assert pairing_permutation(2).tolist() == [0, 1]
    assert pairing_permutation(6).dtype == torch.int64


# --- what holds ---------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.sampled_from([None, 1, 2, 3]), st.sampled_from([1, 5]), st.integers(1, 7)),
    pairs=st.integers(1, 11),
    rest=st.sampled_from([0, 1, 4, 7]),
    pairing=st.sampled_from(PAIRINGS),
    base=st.sampled_from([10000.0, 500000, 2.5, 1]),
    start=st.integers(-50, 900),
    seed=st.integers(0, 1000),
)
def test_rotation_agrees_with_a_loop_over_pairs(shape, pairs, rest, pairing, base, start, seed):
    torch.manual_seed(seed)
    batch, heads, length = shape
    R, size = 2 * pairs, 2 * pairs + rest
    f = RotaryEmbedding(size, pairing=pairing, base=base, rotary_dim=R)
    x = random_(length, size) if batch is None else random_(batch, heads, length, size)
    out = f(x, offset=start)
    assert out.shape == x.shape and out.dtype == x.dtype
    rows, found = x.reshape(-1, length, size), out.reshape(-1, length, size)
    for row, turned in zip(rows, found, strict=True):
        expected = table(row, start, pairing, R, base=base).reshape(length, size)
        torch.testing.assert_close(turned, expected, **EXACT)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("rotary_dim", [None, 6, 22])
@pytest.mark.parametrize("scaling", [None, rope_scaling_linear(3), rope_scaling_yarn(4, 64)])
def test_scores_depend_on_distances_only(pairing, rotary_dim, scaling):
    f = RotaryEmbedding(D, pairing=pairing, rotary_dim=rotary_dim, scaling=scaling)
    q, k = random_(B, H, L, D), random_(B, H, S, D)
    here = f(q, offset=2) @ f(k).mT
    for shift in (1, 13, -7, 900):
        there = f(q, offset=2 + shift) @ f(k, offset=shift).mT
        torch.testing.assert_close(there, here, **EXACT)
    assert not torch.allclose(f(q, offset=3) @ f(k).mT, here, atol=0.1)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_turns_are_orthogonal_and_add_up(pairing):
    f, eye = RotaryEmbedding(D, pairing=pairing), torch.eye(D, dtype=torch.float64)

    def matrix(p):  # rows are the turned unit vectors: the transpose of R_p
        return torch.cat([f(row[None], offset=p) for row in eye]).T

    for a, b in [(1, 2), (5, -3), (40, 700)]:
        torch.testing.assert_close(matrix(a).T @ matrix(a), eye, **EXACT)
        torch.testing.assert_close(matrix(a).T @ matrix(b), matrix(b - a), **EXACT)
        torch.testing.assert_close(matrix(a) @ matrix(b), matrix(a + b), **EXACT)
    assert torch.equal(matrix(0), eye)
    torch.testing.assert_close(torch.linalg.det(matrix(3)).item(), 1.0)


def test_lengths_are_kept_and_position_0_is_left_alone():
    x = random_(B, H, L, D)
    for pairing in PAIRINGS:
        out = RotaryEmbedding(D, pairing=pairing)(x)
        assert torch.equal(out[:, :, 0], x[:, :, 0])
        assert not torch.allclose(out[:, :, 1], x[:, :, 1])
        torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1), **EXACT)


def test_a_score_is_a_sum_of_cosines_in_the_distance():
    f, q, k = RotaryEmbedding(6, pairing="half"), random_(1, 6), random_(1, 6)
    for distance in (-3, 0, 4, 100):
        expected = 0.0
        for i, (a, b) in enumerate(partners("half", 6)):
            qi, ki = complex(q[0, a], q[0, b]), complex(k[0, a], k[0, b])
            phase = math.atan2(ki.imag, ki.real) - math.atan2(qi.imag, qi.real)
            expected += abs(qi) * abs(ki) * math.cos(phase + distance * 10000 ** (-2 * i / 6))
        score = (f(q, offset=200) @ f(k, offset=200 + distance).T).item()
        assert score == pytest.approx(expected, abs=1e-11)


def test_components_beyond_rotary_dim_are_unchanged():
    f = RotaryEmbedding(D, pairing="half", rotary_dim=6)
    x = random_(B, H, L, D)
    out = f(x, offset=9)
    assert torch.equal(out[..., 6:], x[..., 6:])
    alone = RotaryEmbedding(6, pairing="half")
    assert torch.equal(f.frequencies, alone.frequencies)  # of 6 numbers, not of 22
    assert torch.equal(out[..., :6], alone(x[..., :6].contiguous(), offset=9))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_each_row_of_a_batch_may_begin_elsewhere(dtype, pairing):
    f, x = RotaryEmbedding(D, pairing=pairing), random_(3, H, L, D)
    starts = [4, 0, 611]
    out = f(x, offset=torch.tensor(starts, dtype=dtype))
    for row, start, turned in zip(x, starts, out, strict=True):
        torch.testing.assert_close(turned[None], f(row[None], offset=start), **EXACT)


def test_an_offset_of_rows_is_not_taken_for_one_of_positions():
    f, x = RotaryEmbedding(D, pairing="half"), random_(5, 5, 5, D)  # B = H = L
    out = f(x, offset=torch.arange(5) * 10)
    for b in range(5):
        torch.testing.assert_close(out[b], f(x[b : b + 1], offset=10 * b)[0], **EXACT)


def test_a_text_in_pieces_is_turned_as_the_whole():
    f, x = RotaryEmbedding(D, pairing="interleaved"), random_(B, H, 11, D)
    pieces = [f(x[:, :, a:b], offset=a) for a, b in [(0, 4), (4, 5), (5, 11)]]
    assert torch.equal(torch.cat(pieces, dim=2), f(x))


def test_an_empty_sequence_stays_empty():
    f = RotaryEmbedding(4, pairing="half")
    assert f(torch.zeros(0, 4)).shape == (0, 4)
    assert f(torch.zeros(B, H, 0, 4), offset=torch.tensor([3, 5])).shape == (B, H, 0, 4)


def test_cos_and_sin_may_have_a_batch_and_heads_of_their_own():
    x, angles = random_(B, H, L, D), random_(B, H, L, 5)
    out = rotate(x, angles.cos(), angles.sin(), pairing="half")
    shared = rotate(x, angles[:, :1].cos(), angles[:, :1].sin(), pairing="half")
    for b in range(B):
        for h in range(H):
            one, first = angles[b, h], angles[b, 0]
            expected = rotate(x[b, h], one.cos(), one.sin(), pairing="half")
            torch.testing.assert_close(out[b, h], expected)
            expected = rotate(x[b, h], first.cos(), first.sin(), pairing="half")
            torch.testing.assert_close(shared[b, h], expected)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_argument_is_not_changed_and_gradients_turn_back(pairing):
    f, x = RotaryEmbedding(6, pairing=pairing), random_(L, 6).requires_grad_()
    before = x.detach().clone()
    out = f(x, offset=3)
    upstream = random_(L, 6)
    (grad,) = torch.autograd.grad(out, x, upstream)
    assert torch.equal(x.detach(), before)
    # The transpose of a turn is the turn back.
    back = torch.cat([f(upstream[p, None], offset=-3 - p) for p in range(L)])
    torch.testing.assert_close(grad, back, **EXACT)
    assert gradcheck(lambda x: f(x, offset=3), (x,))


def test_torch_compile_follows_lengths_and_offsets_that_change():
    f = RotaryEmbedding(6, pairing="interleaved")
    compiled = torch.compile(lambda x, offset: f(x, offset=offset), backend="eager", fullgraph=True)
    for n, offset in ((5, 0), (7, 3), (2, 40)):
        x = random_(2, 3, n, 6)
        torch.testing.assert_close(compiled(x, offset), f(x, offset=offset), **EXACT)
        starts = torch.tensor([offset, 5])
        torch.testing.assert_close(compiled(x, starts), f(x, offset=starts), **EXACT)


# --- the two pairings -----------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    pairs=st.integers(1, 11),
    rest=st.integers(0, 5),
    start=st.integers(0, 99),
    partial=st.booleans(),
)
def test_the_permutation_takes_one_pairing_to_the_other(pairs, rest, start, partial):
    size, R = 2 * pairs + rest * partial, 2 * pairs
    x = random_(L, size)
    order = pairing_permutation(size, R if partial else None)
    assert sorted(order.tolist()) == list(range(size))
    neighbours, halves = (
        RotaryEmbedding(size, pairing=pairing, rotary_dim=R) for pairing in PAIRINGS
    )
    turned = neighbours(x, offset=start)
    assert torch.equal(halves(x[:, order], offset=start), turned[:, order])
    assert torch.equal(halves(x[:, order], offset=start)[:, order.argsort()], turned)


def test_mixed_pairings_lose_the_distance_and_even_a_word_and_itself_change():
    neighbours, halves = (RotaryEmbedding(D, pairing=pairing) for pairing in PAIRINGS)
    q, k = random_(L, D), random_(L, D)
    here = neighbours(q) @ halves(k).T
    there = neighbours(q, offset=9) @ halves(k, offset=9).T
    assert (here - there).abs().max() > 0.1
    torch.testing.assert_close((neighbours(q, offset=9) @ neighbours(k, offset=9).T), q_k(q, k))
    assert (there - q_k(q, k)).diagonal().abs().max() > 0.1


def q_k(q, k):
    f = RotaryEmbedding(D, pairing="interleaved")
    return f(q) @ f(k).T


@pytest.mark.parametrize("n_kv_heads", [None, 3, 1])
def test_a_layer_moves_to_the_other_pairing_by_the_rows_of_queries_and_keys(n_kv_heads):
    size = 10
    layers = [
        MultiHeadAttention(
            H * size,
            H,
            n_kv_heads=n_kv_heads,
            bias=True,
            rotary=RotaryEmbedding(size, pairing=pairing, rotary_dim=6),
        ).double()
        for pairing in PAIRINGS
    ]
    neighbours, halves = layers
    halves.load_state_dict(neighbours.state_dict())
    x = random_(B, S, H * size)
    assert not torch.allclose(halves(x), neighbours(x), atol=1e-4)
    order = pairing_permutation(size, 6)
    with torch.no_grad():
        for part in (halves.query, halves.key):
            for parameter in (part.weight, part.bias):
                heads = parameter.unflatten(0, (-1, size))
                parameter.copy_(heads[:, order].flatten(0, 1))
    torch.testing.assert_close(halves(x), neighbours(x), **EXACT)


# --- the rules, against formulas written from the papers -----------------------------


def linear_speed(i, R, base, s, N):  # Chen et al. (2023), equation (4): positions over s
    return (1 / s) * base ** (-2 * i / R)


def ntk_speed(i, R, base, s, N):  # Peng et al. (2023), section 3.1: another base
    return (base * s ** (R / (R - 2))) ** (-2 * i / R)


def yarn_speed(i, R, base, s, N, fast=32.0, slow=1.0):  # the ramp of the released code
    def pair_of(turns):  # N b^(-2 i / R) / (2 pi) = turns, solved for i
        return R / 2 * math.log(N / (2 * math.pi * turns), base)

    low, high = max(math.floor(pair_of(fast)), 0), min(math.ceil(pair_of(slow)), R - 1)
    width = high - low if high != low else 0.001
    share = min(max((i - low) / width, 0.0), 1.0)
    speed = base ** (-2 * i / R)
    return share * speed / s + (1 - share) * speed


def parts_speed(i, R, base, s, N, low=1.0, high=4.0):  # Meta's code: by wavelengths
    speed = base ** (-2 * i / R)
    wavelength = 2 * math.pi / speed
    if wavelength < N / high:
        return speed
    if wavelength > N / low:
        return speed / s
    smooth = (N / wavelength - low) / (high - low)
    return (1 - smooth) * speed / s + smooth * speed


RULES = {
    "linear": (lambda s, N: rope_scaling_linear(s), linear_speed),
    "ntk": (lambda s, N: rope_scaling_ntk(s), ntk_speed),
    "yarn": (rope_scaling_yarn, yarn_speed),
    "yarn, other betas": (
        lambda s, N: rope_scaling_yarn(s, N, beta_fast=11.0, beta_slow=2),
        lambda *how: yarn_speed(*how, fast=11.0, slow=2.0),
    ),
    "llama3": (rope_scaling_llama3, parts_speed),
    "the paper's YaRN": (
        lambda s, N: rope_scaling_llama3(s, N, high_freq_factor=32),
        lambda *how: parts_speed(*how, high=32.0),
    ),
    "llama3, other factors": (
        lambda s, N: rope_scaling_llama3(s, N, low_freq_factor=0.5, high_freq_factor=3),
        lambda *how: parts_speed(*how, low=0.5, high=3.0),
    ),
}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(RULES)),
    pairs=st.integers(2, 67),
    base=st.sampled_from([10000.0, 500000.0, 1000000, 77.0]),
    factor=st.sampled_from([1, 2, 4.0, 8, 32, 1.7]),
    length=st.sampled_from([512, 2048, 8192, 131]),
)
def test_a_rule_follows_its_formula(name, pairs, base, factor, length):
    make, formula = RULES[name]
    R = 2 * pairs
    f = RotaryEmbedding(
        R + 3, pairing="half", base=base, rotary_dim=R, scaling=make(factor, length)
    )
    expected = [formula(i, R, base, factor, length) for i in range(pairs)]
    expected = torch.tensor(expected, dtype=torch.float64)
    assert f.frequencies.dtype == torch.float64
    torch.testing.assert_close(f.frequencies, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("length", [7, 40, 131, 4096, 10**6])
@pytest.mark.parametrize("pairs", [2, 5, 64])
def test_yarns_ramp_ends_where_the_pairs_end(length, pairs):
    """Short texts: no pair is fast. Long ones: none is slow."""
    before = RotaryEmbedding(2 * pairs, pairing="half").frequencies
    after, _ = rope_scaling_yarn(8, length)(before)
    expected = [yarn_speed(i, 2 * pairs, 10000.0, 8, length) for i in range(pairs)]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(after, expected, rtol=1e-11, atol=0)
    assert ((before / 8 - 1e-12 <= after) & (after <= before + 1e-12)).all()


@pytest.mark.parametrize("name", RULES)
def test_rotation_uses_the_scaled_frequencies(name):
    make, formula = RULES[name]
    f = RotaryEmbedding(22, pairing="half", scaling=make(4, 512))
    x = random_(L, 22)
    speeds = [formula(i, 22, 10000.0, 4, 512) for i in range(11)]
    expected = f.attention_factor * table(x, 70, "half", 22, speeds=speeds)
    torch.testing.assert_close(f(x, offset=70), expected, **EXACT)


def test_linear_interpolation_is_the_same_at_positions_divided():
    plain, slow = RotaryEmbedding(D, pairing="half"), None
    slow = RotaryEmbedding(D, pairing="half", scaling=rope_scaling_linear(4))
    x = random_(1, D)
    for p in (4, 8, 400):
        torch.testing.assert_close(slow(x, offset=p), plain(x, offset=p // 4), **EXACT)


def test_ntk_keeps_the_first_frequency_and_divides_the_last():
    before = RotaryEmbedding(128, pairing="half").frequencies
    after, factor = rope_scaling_ntk(8)(before)
    torch.testing.assert_close(after[0], before[0], **EXACT)
    torch.testing.assert_close(after[-1], before[-1] / 8)
    assert factor == 1.0
    assert ((after / before).diff() < 0).all()


def test_yarn_and_llama3_keep_high_frequencies_and_divide_low_ones():
    before = RotaryEmbedding(128, pairing="half").frequencies
    turns = 4096 * before / (2 * math.pi)
    for rule, fast in ((rope_scaling_yarn(8, 4096), 33), (rope_scaling_llama3(8, 4096), 4)):
        after, _ = rule(before)
        assert torch.equal(after[turns > fast], before[turns > fast])
        torch.testing.assert_close(after[turns < 0.9], before[turns < 0.9] / 8)
        assert ((after / before).diff() <= 1e-15).all()
    # Numbers worked out by hand: pairs 20 and 46 bound the ramp, so 12 of 26 steps at pair 32.
    yarn, _ = rope_scaling_yarn(8, 4096)(before)
    assert (yarn[32] / before[32]).item() == pytest.approx(1 - 12 / 26 * 7 / 8)


def test_of_llamas_released_constants_pair_29_is_the_first_to_be_slowed():
    """Base 500000, head of 128, factor 8, trained on 8192: solved with pencil and logarithms."""
    before = RotaryEmbedding(128, pairing="half", base=500000.0).frequencies
    after, factor = rope_scaling_llama3(8, 8192)(before)
    first = 64 * math.log(8192 / (4 * 2 * math.pi)) / math.log(500000)  # turns 4 times: 28.2
    last = 64 * math.log(8192 / (2 * math.pi)) / math.log(500000)  # once: 34.98
    assert (math.ceil(first), math.floor(last)) == (29, 34)
    ratio = after / before
    assert (ratio[:29] == 1).all() and ratio[29] < 1
    assert ratio[34] > 0.125
    torch.testing.assert_close(ratio[35:], torch.full((29,), 0.125, dtype=torch.float64))
    assert factor == 1.0


@pytest.mark.parametrize("name", RULES)
def test_a_factor_of_1_changes_nothing(name):
    before = RotaryEmbedding(D, pairing="half").frequencies
    after, factor = RULES[name][0](1, 100)(before)
    torch.testing.assert_close(after, before, **EXACT)
    assert factor == 1.0


def test_yarn_makes_scores_larger_by_the_square_of_its_factor():
    f = RotaryEmbedding(D, pairing="half", scaling=rope_scaling_yarn(8, 4096))
    assert f.attention_factor == pytest.approx(0.1 * math.log(8) + 1)
    g = RotaryEmbedding(D, pairing="half", scaling=rope_scaling_yarn(8, 4096, attention_factor=1))
    assert g.attention_factor == 1.0
    q, k = random_(L, D), random_(L, D)
    larger = (0.1 * math.log(8) + 1) ** 2
    torch.testing.assert_close(f(q) @ f(k).T, larger * (g(q) @ g(k).T), **EXACT)
    assert rope_scaling_yarn(0.5, 4096)(g.frequencies)[1] == 1.0


def test_components_beyond_rotary_dim_are_not_scaled():
    f = RotaryEmbedding(9, pairing="half", rotary_dim=4, scaling=rope_scaling_yarn(8, 512))
    x = random_(L, 9)
    assert torch.equal(f(x)[:, 4:], x[:, 4:])
    torch.testing.assert_close(f(x)[0, :4], f.attention_factor * x[0, :4])


def test_a_rule_of_ones_own_may_be_given():
    f = RotaryEmbedding(4, pairing="half", scaling=lambda w: (w.flip(0), 3.0))
    assert f.frequencies.tolist() == pytest.approx([0.01, 1.0])
    assert f.attention_factor == 3.0


def test_a_rule_does_not_change_its_argument():
    before = RotaryEmbedding(D, pairing="half").frequencies
    kept = before.clone()
    for make, _ in RULES.values():
        make(4, 512)(before)
    assert torch.equal(before, kept)


# --- precision -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_angles_are_exact_at_position_a_million(dtype):
    """Only the numbers are rounded: float64 keeps 1e-9 of angles up to 1e6, others their own."""
    f = RotaryEmbedding(D, pairing="interleaved")
    x = torch.randn(L, D).to(dtype)
    out = f(x, offset=1_000_000)
    assert out.dtype == dtype
    expected = table(x.double(), 1_000_000, "interleaved", D)
    step = {torch.float64: 1e-9}.get(dtype, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=step)
    # The same with the angles in float32 is off by more than that.
    speeds = f.frequencies.float()
    narrow = (torch.arange(L)[:, None] + 1e6) * speeds
    wrong = rotate(x.double(), narrow.double().cos(), narrow.double().sin(), pairing="interleaved")
    assert (wrong - expected).abs().max() > 1e-3


def test_bfloat16_distinguishes_neighbours_at_position_4001():
    f = RotaryEmbedding(2, pairing="half")
    q = torch.ones(1, 2, dtype=torch.bfloat16)
    score = f(q, offset=4001).float() @ f(q, offset=4002).float().T
    assert score.item() == pytest.approx(2 * math.cos(1), abs=0.02)


MOVES = {
    "half": lambda f: f.half(),
    "bfloat16": lambda f: f.to(torch.bfloat16),
    "float": lambda f: f.float(),
    "deep copy": copy.deepcopy,
    "pickle": lambda f: pickle.loads(pickle.dumps(f)),
    "there and back": lambda f: f.to(torch.bfloat16).double(),
    "in a layer": lambda f: MultiHeadAttention(2 * D, 2, rotary=f).to(torch.bfloat16).rotary,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moving_a_module_does_not_round_its_frequencies(move):
    f = RotaryEmbedding(D, pairing="half", scaling=rope_scaling_yarn(4, 512))
    expected, factor = f.frequencies.clone(), f.attention_factor
    moved = move(f)
    assert moved.frequencies.dtype == torch.float64
    assert torch.equal(moved.frequencies, expected)
    assert moved.attention_factor == factor
    x = random_(L, D)
    assert torch.equal(moved(x, offset=10**6), f(x, offset=10**6))


def test_nothing_is_learned_or_stored():
    f = RotaryEmbedding(D, pairing="half")
    assert list(f.parameters()) == list(f.buffers()) == [] and not f.state_dict()
    plain = MultiHeadAttention(2 * D, 2)
    turned = MultiHeadAttention(2 * D, 2, rotary=f)
    turned.load_state_dict(plain.state_dict(), strict=True)
    file = io.BytesIO()
    torch.save(turned, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(L, 2 * D)
    assert torch.equal(again(x), turned(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_rotated_in_float32_and_rounded_once(dtype):
    x = torch.randn(B, H, L, D).to(dtype)
    f = RotaryEmbedding(D, pairing="interleaved")
    assert torch.equal(f(x, offset=77), f(x.float(), offset=77).to(dtype))


# --- in a layer ------------------------------------------------------------------


def layer_(n_kv_heads=H_KV, *, rotary=True, dropout=0.0, **how):
    f = RotaryEmbedding(D, pairing="half", **how) if rotary else None
    layer = MultiHeadAttention(H * D, H, n_kv_heads=n_kv_heads, dropout=dropout, rotary=f)
    return layer.double()


@pytest.mark.parametrize("n_kv_heads", [None, 3, 1])
@pytest.mark.parametrize("dropout", [0.0, 1e-12])  # so rare that none happens here
def test_queries_and_keys_are_rotated_per_head_and_values_are_not(n_kv_heads, dropout):
    layer = layer_(n_kv_heads, dropout=dropout)
    query, key, value = random_(B, L, H * D), random_(B, S, H * D), random_(B, S, H * D)
    q, k, v = (
        part(x).unflatten(-1, (-1, D)).transpose(1, 2)
        for part, x in ((layer.query, query), (layer.key, key), (layer.value, value))
    )
    q, k = (
        torch.stack([torch.stack([table(h, start, "half", D) for h in row]) for row in x])
        for x, start in ((q, 3), (k, 11))
    )
    expected = layer.out(attention(q, k, v).transpose(1, 2).flatten(2))
    out = layer(query, key, value, query_offset=3, key_offset=11)
    torch.testing.assert_close(out, expected, **EXACT)
    one = layer(query[0], key[0], value[0], query_offset=3, key_offset=11)
    torch.testing.assert_close(one, expected[0], **EXACT)


HOWS = {
    "nothing": {},
    "a tensor": {"mask": torch.ones(L, L, dtype=torch.bool).tril()},
    "causal": {"mask": causal},
    "block mask": {"mask": create_block_mask(causal, B, H, L, L, device="cpu")},
    "score_mod": {"score_mod": lambda score, b, h, q, k: score - 0.1 * (q - k).abs()},
}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
@pytest.mark.parametrize("training", [False, True])
def test_the_same_shift_of_both_offsets_changes_nothing(how, training):
    layer, x = layer_(dropout=1e-12).train(training), random_(B, L, H * D)
    here = layer(x, **how)
    for shift in (7, torch.tensor([5, 800])):
        there = layer(x, query_offset=shift, key_offset=shift, **how)
        torch.testing.assert_close(there, here, **EXACT)
    elsewhere = layer(x, query_offset=7, key_offset=0, **how)
    assert (elsewhere - here).abs().max() > 1e-3


def test_a_shift_of_one_row_of_a_batch_moves_that_row():
    layer, x = layer_(), random_(B, L, H * D)
    here = layer(x)
    out = layer(x, query_offset=torch.tensor([0, 4]), key_offset=0)
    torch.testing.assert_close(out[0], here[0], **EXACT)
    assert (out[1] - here[1]).abs().max() > 1e-3


def test_padding_in_front_changes_nothing_where_it_is_hidden():
    layer, x = layer_(), random_(1, L, H * D)
    padded = torch.cat([random_(1, 4, H * D), x], dim=1)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    mask[:, :4] = False
    torch.testing.assert_close(layer(padded, mask=mask)[:, 4:], layer(x, mask=causal), **EXACT)


def test_padding_behind_changes_nothing():
    layer, x = layer_(), random_(2, S, H * D)
    out = layer(x, mask=padding(torch.tensor([S, 3])))
    torch.testing.assert_close(out[1, :3], layer(x[1, :3]), **EXACT)


def test_one_token_at_a_time_gives_what_all_at_once_does():
    layer, x = layer_(), random_(B, S, H * D)
    whole = layer(x, mask=causal)
    for p in range(S):
        how = {"query_offset": p, "key_offset": 0}
        newest = layer(x[:, p : p + 1], x[:, : p + 1], mask=causal, **how)
        torch.testing.assert_close(newest[:, 0], whole[:, p], **EXACT)


def test_order_matters_with_rotary_and_not_without():
    x = random_(B, L, H * D)
    plain, turned = layer_(rotary=False), layer_()
    torch.testing.assert_close(plain(x.flip(1)).flip(1), plain(x), **EXACT)
    assert (turned(x.flip(1)).flip(1) - turned(x)).abs().max() > 1e-3


def test_a_key_bias_cancels_without_rotary_and_counts_with_it():
    for rotary in (False, True):
        layer = layer_(rotary=rotary)
        layer.key.bias = torch.nn.Parameter(random_(H_KV * D))
        x = random_(B, L, H * D)
        with_bias = layer(x)
        layer.key.bias = None
        assert ((layer(x) - with_bias).abs().max() > 1e-3) == rotary


def test_a_layer_may_be_compiled():
    layer = layer_()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x, how = random_(B, 5, H * D), {"mask": causal, "query_offset": 3, "key_offset": 3}
    torch.testing.assert_close(compiled(x, **how), layer(x, **how), **EXACT)


# --- errors ------------------------------------------------------------------------

X, C = torch.zeros(3, 4), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": X.long()}, TypeError, "^x must be a tensor of float16.* got torch.int64$"),
        ({"cos": C.bool()}, TypeError, "^cos must be .* got torch.bool$"),
        ({"sin": [1.0]}, TypeError, "^sin must be .* got list$"),
        (
            {"pairing": "halves"},
            ValueError,
            "^pairing must be 'interleaved' or 'half', got 'halves'$",
        ),
        ({"pairing": None}, ValueError, "^pairing must be .* got None$"),
        (
            {"sin": C[:2]},
            ValueError,
            r"^cos and sin must share one shape .*\(3, 2\), sin \(2, 2\)$",
        ),
        (
            {"cos": torch.ones(3, 3), "sin": torch.ones(3, 3)},
            ValueError,
            r"^cos and sin must share one shape \(..., L, R / 2\), R from 2 to D, got cos \(3, 3\)",
        ),
        ({"cos": torch.ones(3, 0), "sin": torch.ones(3, 0)}, ValueError, "^cos and sin must share"),
        ({"cos": torch.ones(()), "sin": torch.ones(())}, ValueError, "^cos and sin must share"),
        (
            {"cos": C[:2], "sin": C[:2]},
            ValueError,
            r"^cos and sin must broadcast to x, \(3, 4\), .* got \(2, 2\)$",
        ),
        (
            {"cos": C[None].expand(5, 3, 2), "sin": C[None].expand(5, 3, 2)},
            ValueError,
            r"^cos and sin must broadcast to x, .* got \(5, 3, 2\)$",
        ),
    ],
)
def test_rotate_names_a_bad_argument(changed, error, message):
    with pytest.raises(error, match=message):
        rotate(**({"x": X, "cos": C, "sin": C, "pairing": "half"} | changed))


def test_a_pairing_must_be_named():
    with pytest.raises(TypeError, match="pairing"):
        RotaryEmbedding(4)
    with pytest.raises(TypeError, match="pairing"):
        rotate(X, C, C)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"head_dim": 3}, ValueError, "=3 must be even$"),
        ({"head_dim": 0}, ValueError, "^head_dim=0 must be at least 1$"),
        ({"head_dim": 4.0}, TypeError, "^head_dim must be an integer, got 4.0$"),
        ({"head_dim": True}, TypeError, "^head_dim must be an integer, got True$"),
        ({"rotary_dim": 3}, ValueError, "^rotary_dim=3 must be even$"),
        ({"rotary_dim": 0}, ValueError, "^rotary_dim=0 must be at least 2$"),
        ({"rotary_dim": -2}, ValueError, "^rotary_dim=-2 must be at least 2$"),
        ({"rotary_dim": 6}, ValueError, "^rotary_dim=6 must be at most head_dim=4$"),
        ({"rotary_dim": "2"}, TypeError, "^rotary_dim must be an integer, got '2'$"),
        ({"base": 0}, ValueError, "^base=0 must be finite and above 0$"),
        ({"base": -10.0}, ValueError, "^base=-10.0 must be"),
        ({"base": math.inf}, ValueError, "^base=inf must be finite"),
        ({"base": math.nan}, ValueError, "^base=nan must be finite"),
        ({"base": "10000"}, TypeError, "^base must be a number, got str$"),
        ({"pairing": "neox"}, ValueError, "^pairing must be 'interleaved' or 'half', got 'neox'$"),
    ],
)
def test_a_module_names_a_bad_argument(changed, error, message):
    with pytest.raises(error, match=message):
        RotaryEmbedding(**({"head_dim": 4, "pairing": "half"} | changed))


@pytest.mark.parametrize("sizes", [(3, None), (4, 3), (4, 6), (0, None), (2.0, None)])
def test_the_permutation_takes_the_sizes_that_a_module_takes(sizes):
    with pytest.raises((TypeError, ValueError), match=r"^(head_dim|rotary_dim)"):
        pairing_permutation(*sizes)


@pytest.mark.parametrize(
    ("x", "offset", "error", "message"),
    [
        (
            torch.zeros(3, 5),
            0,
            ValueError,
            r"^x must be \(L, 4\) or \(B, H, L, 4\), where head_dim=4, got \(3, 5\)$",
        ),
        (torch.zeros(2, 3, 4), 0, ValueError, r"^x must be .* got \(2, 3, 4\)$"),
        (torch.zeros(4), 0, ValueError, r"^x must be .* got \(4,\)$"),
        (torch.zeros(3, 4).int(), 0, TypeError, "^x must be a tensor of .* got torch.int32$"),
        ([[0.0] * 4], 0, TypeError, "^x must be .* got list$"),
        (X, 1.5, TypeError, "^offset must be an int or a tensor of int32 or int64, got float$"),
        (X, None, TypeError, "^offset must be .* got NoneType$"),
        (X, True, TypeError, "^offset must be .* got bool$"),
        (X, torch.tensor([1]), ValueError, r"^offset must be an int or.* \(1,\) for \(3, 4\)$"),
        (X[None, None], torch.tensor([1.0]), TypeError, "^offset must be .* got torch.float32$"),
        (X[None, None], torch.tensor([1, 2]), ValueError, r"^offset must be .* got \(2,\) for"),
        (X[None, None], torch.tensor(3), ValueError, r"^offset must be .* got \(\) for"),
    ],
)
def test_forward_names_a_bad_argument(x, offset, error, message):
    with pytest.raises(error, match=message):
        RotaryEmbedding(4, pairing="half")(x, offset=offset)


MAKERS = {
    "linear": rope_scaling_linear,
    "ntk": rope_scaling_ntk,
    "yarn": lambda factor: rope_scaling_yarn(factor, 512),
    "llama3": lambda factor: rope_scaling_llama3(factor, 512),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("factor", "error", "message"),
    [
        (0, ValueError, "^factor=0 must be finite and above 0$"),
        (-2.0, ValueError, "^factor=-2.0 must be"),
        (math.nan, ValueError, "^factor=nan must be"),
        (math.inf, ValueError, "^factor=inf must be"),
        ("2", TypeError, "^factor must be a number, got str$"),
        (True, TypeError, "^factor must be a number, got bool$"),
    ],
)
def test_a_factor_is_a_number_above_0(make, factor, error, message):
    with pytest.raises(error, match=message):
        make(factor)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rope_scaling_yarn(2, 0), ValueError, "^original_length=0 must be at least 1$"),
        (
            lambda: rope_scaling_llama3(2, 8.0),
            TypeError,
            "^original_length must be an integer, got 8.0$",
        ),
        (
            lambda: rope_scaling_yarn(2, 8, beta_fast=1, beta_slow=1),
            ValueError,
            "^beta_fast=1 must be finite and above 1",
        ),
        (lambda: rope_scaling_yarn(2, 8, beta_slow=0), ValueError, "^beta_slow=0 must be"),
        (lambda: rope_scaling_yarn(2, 8, beta_fast="x"), TypeError, "^beta_fast must be a number"),
        (
            lambda: rope_scaling_yarn(2, 8, attention_factor=0),
            ValueError,
            "^attention_factor=0 must be finite and above 0$",
        ),
        (
            lambda: rope_scaling_llama3(2, 8, low_freq_factor=4, high_freq_factor=4),
            ValueError,
            "^high_freq_factor=4 must be finite and above 4",
        ),
        (
            lambda: rope_scaling_llama3(2, 8, low_freq_factor=-1),
            ValueError,
            "^low_freq_factor=-1 must be",
        ),
    ],
)
def test_the_other_arguments_of_a_rule_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "rule", [rope_scaling_ntk(2), rope_scaling_yarn(2, 512)], ids=["ntk", "yarn"]
)
def test_ntk_and_yarn_need_two_frequencies(rule):
    with pytest.raises(ValueError, match=r"^frequencies must be two or more .* got 1$"):
        RotaryEmbedding(2, pairing="half", scaling=rule)


def test_two_lengths_without_offsets_are_refused():
    layer, q, k = layer_(), random_(B, L, H * D), random_(B, S, H * D)
    with pytest.raises(ValueError, match=r"^query_offset is missing: where L=5 and S=7 differ"):
        layer(q, k)
    with pytest.raises(ValueError, match=r"^key_offset is missing"):
        layer(q, k, query_offset=0)
    with pytest.raises(ValueError, match=r"^query_offset is missing"):
        layer(q, k, mask=torch.ones(L, S, dtype=torch.bool))
    assert layer(q, k, query_offset=2, key_offset=0).shape == q.shape


def test_without_rotary_and_mods_an_offset_changes_nothing():
    layer, x = layer_(rotary=False), random_(B, L, H * D)
    assert torch.equal(layer(x, query_offset=3), layer(x))


@pytest.mark.parametrize(
    ("rotary", "came"),
    [(RotaryEmbedding(D + 2, pairing="half"), "24"), ("half", "str"), (True, "bool")],
)
def test_a_layer_takes_a_module_made_for_its_heads(rotary, came):
    with pytest.raises((TypeError, ValueError), match=f"^rotary must be a Rotary.*22, got {came}$"):
        MultiHeadAttention(H * D, H, rotary=rotary)
