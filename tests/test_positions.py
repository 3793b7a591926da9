"""Absolute positions: by hand, against a loop, the linear map, tables, errors.

Sizes are prime or twice a prime and differ, so that swapped axes fail.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from attention import LearnedPositions, sinusoidal

B, L, D_MODEL, N = 3, 5, 14, 11
CLOSE = {"rtol": 0, "atol": 1e-11}  # float64, angles up to some 1000 radians
CLOSE32 = {"rtol": 0, "atol": 1e-6}  # numbers up to 1, rounded to float32 once


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def by_loop(positions, d_model, base):
    """The formula in Python's own numbers, one number at a time."""
    code = []
    for position in positions:
        for i in range(d_model // 2):
            angle = position / base ** (2 * i / d_model)
            code += [math.sin(angle), math.cos(angle)]
    return torch.tensor(code, dtype=torch.float64).view(len(positions), d_model)


def step(k, d_model, base):
    """M_k, filled entry by entry, with code(p + k) = M_k code(p)."""
    M = torch.zeros(d_model, d_model, dtype=torch.float64)
    for i in range(0, d_model, 2):
        angle = k / base ** (i / d_model)
        M[i, i] = M[i + 1, i + 1] = math.cos(angle)
        M[i, i + 1], M[i + 1, i] = math.sin(angle), -math.sin(angle)
    return M


# Sinusoids


def test_codes_by_hand():
    codes = sinusoidal(torch.tensor([0, 1, 3]), 4, base=100.0)  # speeds 1 and 0.1
    expected = torch.tensor(
        [
            [0.0, 1.0, 0.0, 1.0],
            [0.841471, 0.540302, 0.099833, 0.995004],
            [0.141120, -0.989992, 0.295520, 0.955336],
        ]
    )
    torch.testing.assert_close(codes, expected, **CLOSE32)


def test_the_base_is_ten_thousand_unless_said():
    positions = torch.arange(L)
    assert torch.equal(sinusoidal(positions, 6), sinusoidal(positions, 6, base=10000))
    assert not torch.equal(sinusoidal(positions, 6), sinusoidal(positions, 6, base=1000))


def test_the_longest_wavelength_of_512_components_is_60611_positions():
    """The paper says 10000 times 2 pi; its formula ends one pair earlier, at 9647."""
    around = 2 * math.pi * 10000 ** (510 / 512)
    assert round(around) == 60611
    code = sinusoidal(torch.tensor([around, around / 4], dtype=torch.float64), 512)
    torch.testing.assert_close(code[:, -2:], torch.eye(2).flip(0).double(), **CLOSE)


@pytest.mark.parametrize("base", [0.5, 1, 3, 100.0, 10000.0, 1e6])
@pytest.mark.parametrize("d_model", [2, 4, 14, 62])
def test_codes_agree_with_a_loop(d_model, base):
    positions = [0.0, 1.0, -1.0, 2.5, 7.0, 700.0, *(100 * torch.randn(N).double()).tolist()]
    x = torch.tensor(positions, dtype=torch.float64)
    expected = by_loop(positions, d_model, base)
    # base 0.5 has frequencies up to 2, so angles stay below 1500.
    torch.testing.assert_close(sinusoidal(x, d_model, base=base), expected, **CLOSE)


@pytest.mark.parametrize("shape", [(), (0,), (L,), (B, L), (B, 1, L)])
def test_positions_of_any_shape_keep_it(shape):
    positions = torch.randint(0, 1000, shape)
    codes = sinusoidal(positions, D_MODEL)
    assert codes.shape == (*shape, D_MODEL)
    flat = by_loop(positions.flatten().tolist(), D_MODEL, 10000.0).view(*shape, D_MODEL)
    torch.testing.assert_close(codes, flat.float(), **CLOSE32)


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32],
)
def test_codes_are_float32_whatever_the_type_of_positions(dtype):
    codes = sinusoidal(torch.arange(7).to(dtype), D_MODEL)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, by_loop(range(7), D_MODEL, 1e4).float(), **CLOSE32)


def test_positions_in_float64_give_codes_in_float64():
    codes = sinusoidal(torch.arange(7).double(), D_MODEL)
    torch.testing.assert_close(codes, by_loop(range(7), D_MODEL, 1e4), **CLOSE)


def test_angles_are_not_rounded_to_float32():
    """At position 10^7 a float32 angle may be off by half a radian."""
    far = 10**7 + 1
    exact = by_loop([far], D_MODEL, 10000.0).float()
    # 1e7 radians in float64 are off by some 1e-9.
    torch.testing.assert_close(sinusoidal(torch.tensor([far]), D_MODEL), exact, **CLOSE32)


def test_no_two_of_the_first_positions_share_a_code():
    codes = sinusoidal(torch.arange(4096), 64)
    assert codes.unique(dim=0).shape == (4096, 64)


def test_a_step_is_one_linear_map_at_every_position():
    for _ in range(50):
        d_model = 2 * int(torch.randint(1, 32, ()))
        base, k = float(2 + 1e4 * torch.rand(())), float(300 * torch.randn(()))
        p = 300 * torch.randn(N, dtype=torch.float64)
        moved = sinusoidal(p, d_model, base=base) @ step(k, d_model, base).T
        torch.testing.assert_close(moved, sinusoidal(p + k, d_model, base=base), **CLOSE)


def test_the_dot_product_of_two_codes_is_a_sum_of_cosines_of_their_difference():
    p, q = 300 * torch.randn(2, 50, dtype=torch.float64)
    dots = (sinusoidal(p, D_MODEL) * sinusoidal(q, D_MODEL)).sum(-1)
    for a, b, dot in zip(p.tolist(), q.tolist(), dots.tolist(), strict=True):
        angles = [(a - b) / 10000 ** (2 * i / D_MODEL) for i in range(D_MODEL // 2)]
        assert dot == pytest.approx(math.fsum(map(math.cos, angles)), abs=1e-11)


def test_all_codes_have_the_same_length():
    codes = sinusoidal(300 * torch.randn(50, dtype=torch.float64), D_MODEL)
    torch.testing.assert_close(
        codes.norm(dim=-1), torch.full((50,), math.sqrt(D_MODEL / 2)).double(), rtol=1e-7, atol=0
    )


def test_codes_are_differentiable_in_the_position():
    positions = torch.randn(L, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda p: sinusoidal(p, 6, base=50), positions)


def test_positions_are_not_changed():
    positions = torch.arange(5.0)
    sinusoidal(positions, 4)
    assert torch.equal(positions, torch.arange(5.0))


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ((3, 4), {}, TypeError, "positions must be a tensor of real numbers, got int"),
        (([0, 1], 4), {}, TypeError, "positions must be a tensor of real numbers, got list"),
        (
            (torch.tensor([True]), 4),
            {},
            TypeError,
            "positions must be a tensor of real numbers, got torch.bool",
        ),
        (
            (torch.tensor([1j]), 4),
            {},
            TypeError,
            "positions must be a tensor of real numbers, got torch.complex64",
        ),
        ((torch.arange(3), 5), {}, ValueError, "d_model=5 must be even"),
        ((torch.arange(3), 1), {}, ValueError, "d_model=1 must be at least 2"),
        ((torch.arange(3), 0), {}, ValueError, "d_model=0 must be at least 2"),
        ((torch.arange(3), -2), {}, ValueError, "d_model=-2 must be at least 2"),
        ((torch.arange(3), 4.0), {}, TypeError, "d_model must be an integer, got 4.0"),
        ((torch.arange(3), True), {}, TypeError, "d_model must be an integer, got True"),
        ((torch.arange(3), 4), {"base": 0}, ValueError, "base=0 must be finite and above 0"),
        ((torch.arange(3), 4), {"base": -3.0}, ValueError, "base=-3.0 must be finite and above 0"),
        ((torch.arange(3), 4), {"base": math.inf}, ValueError, "base=inf must be finite"),
        ((torch.arange(3), 4), {"base": math.nan}, ValueError, "base=nan must be finite"),
        ((torch.arange(3), 4), {"base": "7"}, TypeError, "base must be a number, got str"),
        ((torch.arange(3), 4), {"base": True}, TypeError, "base must be a number, got bool"),
    ],
)
def test_sinusoidal_names_a_bad_argument(args, options, error, match):
    with pytest.raises(error, match=match):
        sinusoidal(*args, **options)


def test_the_base_is_given_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        sinusoidal(torch.arange(3), 4, 100.0)


# Tables


def table(n=N, dtype=torch.float64):
    return LearnedPositions(n, D_MODEL).to(dtype)


def tokens(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def test_rows_by_hand():
    learned = LearnedPositions(3, 2)
    with torch.no_grad():
        learned.table.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    x = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    assert learned(x).tolist() == [[11.0, 22.0], [33.0, 44.0]]
    assert learned(x, offset=1).tolist() == [[13.0, 24.0], [35.0, 46.0]]


@pytest.mark.parametrize("offset", [0, 1, N - L])
@pytest.mark.parametrize("batch", [(), (1,), (B,)])
def test_each_token_gets_the_row_of_its_position(batch, offset):
    learned, x = table(), tokens(*batch, L, D_MODEL)
    expected = x.clone().view(-1, L, D_MODEL)
    for b in range(len(expected)):
        for i in range(L):
            expected[b, i] += learned.table.weight[offset + i]
    assert torch.equal(learned(x, offset=offset), expected.view(x.shape))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_each_text_of_a_batch_may_start_elsewhere(dtype):
    learned, x = table(), tokens(B, L, D_MODEL)
    starts = [0, N - L, 2]
    out = learned(x, offset=torch.tensor(starts, dtype=dtype))
    for b, start in enumerate(starts):
        assert torch.equal(out[b], learned(x[b], offset=start))


def test_one_token_at_a_time_gives_what_the_whole_text_does():
    learned, x = table(), tokens(B, L, D_MODEL)
    parts = [learned(x[:, i : i + 1], offset=i) for i in range(L)]
    assert torch.equal(torch.cat(parts, dim=1), learned(x))


def test_without_the_offset_a_later_token_stands_at_the_start():
    learned, x = table(), tokens(L, D_MODEL)
    assert torch.equal(learned(x[3:4]), x[3:4] + learned.table.weight[:1])
    assert not torch.allclose(learned(x[3:4]), learned(x)[3:4])


def test_a_text_may_be_as_long_as_the_table_and_no_longer():
    learned = table()
    assert learned(tokens(N, D_MODEL)).shape == (N, D_MODEL)
    assert learned(tokens(1, D_MODEL), offset=N - 1).shape == (1, D_MODEL)
    with pytest.raises(ValueError, match=f"from 0 to {N - 1}, the table's rows, got {N}$"):
        learned(tokens(N + 1, D_MODEL))


def test_an_empty_text_is_empty():
    assert table()(tokens(0, D_MODEL)).shape == (0, D_MODEL)
    assert table()(tokens(B, 0, D_MODEL)).shape == (B, 0, D_MODEL)


@pytest.mark.parametrize(
    ("shape", "offset", "first"),
    [
        ((1, D_MODEL), N, N),
        ((1, D_MODEL), N + 7, N + 7),
        ((L, D_MODEL), N - L + 1, N),
        ((L, D_MODEL), N - 1, N),  # one row is left, which a slice would add to every token
        ((B, L, D_MODEL), N - L + 1, N),
        ((L, D_MODEL), -1, -1),  # -1 would be the last row
        ((B, L, D_MODEL), -N, -N),
        ((B, L, D_MODEL), torch.tensor([0, 1, N - 2]), N),  # one text of three
        ((B, L, D_MODEL), torch.tensor([0, -3, 0]), -3),
    ],
)
def test_a_position_outside_the_table_raises(shape, offset, first):
    match = f"positions must be from 0 to {N - 1}, the table's rows, got {first}$"
    with pytest.raises(ValueError, match=match):
        table()(tokens(*shape), offset=offset)


def test_rows_learn_only_from_texts_that_reach_them():
    learned = table()
    lengths = torch.tensor([3, 5, 2, 6])
    real = torch.arange(6) < lengths[:, None]
    learned(tokens(4, 6, D_MODEL))[real].sum().backward()
    counts = torch.tensor([4, 4, 3, 2, 2, 1, 0, 0, 0, 0, 0], dtype=torch.float64)
    assert torch.equal(learned.table.weight.grad, counts[:, None].expand(N, D_MODEL))


def test_gradients_reach_tokens_and_rows():
    learned, x = table(7), tokens(2, 3, D_MODEL).requires_grad_()
    rows = learned.table.weight.detach().requires_grad_()

    def run(x, rows):
        return functional_call(learned, {"table.weight": rows}, (x,), {"offset": 2}).square()

    assert gradcheck(run, (x, rows))


def test_the_table_is_all_that_is_learned_and_saved():
    learned = table()
    assert isinstance(learned.table, nn.Embedding)
    assert [(n, tuple(p.shape)) for n, p in learned.named_parameters()] == [
        ("table.weight", (N, D_MODEL))
    ]
    other = table()
    other.load_state_dict(copy.deepcopy(learned.state_dict()))
    x = tokens(L, D_MODEL)
    assert torch.equal(other(x), learned(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sum_has_the_dtype_of_the_table(dtype):
    out = table(dtype=dtype)(tokens(L, D_MODEL, dtype=dtype))
    assert out.dtype == dtype


def test_the_tokens_are_left_as_they_were():
    x = tokens(L, D_MODEL)
    before = x.clone()
    table()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        ([[0.0]], {}, TypeError, "x must be a tensor of float16"),
        (torch.zeros(L, D_MODEL).long(), {}, TypeError, "x must be a tensor of float16"),
        (torch.zeros(D_MODEL), {}, ValueError, r"x must be \(L, 14\) or \(B, L, 14\).*got \(14,\)"),
        (torch.zeros(1, B, L, D_MODEL), {}, ValueError, r"x must be \(L, 14\)"),
        (torch.zeros(L, 13), {}, ValueError, r"where d_model=14, got \(5, 13\)"),
        (torch.zeros(L, D_MODEL), {}, ValueError, "share the layer's dtype torch.float64"),
        ("tokens", {"offset": 1.0}, TypeError, "offset must be an int or a tensor.*got float"),
        ("tokens", {"offset": True}, TypeError, "offset must be an int or a tensor.*got bool"),
        ("tokens", {"offset": None}, TypeError, "offset must be an int or a tensor.*got NoneType"),
        ("tokens", {"offset": torch.zeros(B)}, TypeError, "offset must be an int.*got torch.float"),
        (
            "tokens",
            {"offset": torch.zeros(B + 1).long()},
            ValueError,
            r"offset must be an int or, for a batch, a tensor \(B,\), got \(4,\)",
        ),
        (
            "no batch",
            {"offset": torch.zeros(1).long()},
            ValueError,
            r"for a batch, a tensor \(B,\), got \(1,\) for \(5, 14\)",
        ),
    ],
)
def test_forward_of_a_table_names_a_bad_argument(x, options, error, match):
    if isinstance(x, str):
        x = tokens(B, L, D_MODEL) if x == "tokens" else tokens(L, D_MODEL)
    with pytest.raises(error, match=match):
        table()(x, **options)


@pytest.mark.parametrize(
    ("sizes", "error", "match"),
    [
        ((0, 4), ValueError, "n_positions=0 must be at least 1"),
        ((4, 0), ValueError, "d_model=0 must be at least 1"),
        ((4.0, 4), TypeError, "n_positions must be an integer, got 4.0"),
        ((4, "4"), TypeError, "d_model must be an integer, got '4'"),
        ((True, 4), TypeError, "n_positions must be an integer, got True"),
    ],
)
def test_a_table_names_a_bad_size(sizes, error, match):
    with pytest.raises(error, match=match):
        LearnedPositions(*sizes)


def test_the_offset_is_given_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        table()(tokens(L, D_MODEL), 1)


@pytest.mark.parametrize("offset", [-1, N - L + 1])
def test_compiled_code_gives_the_same_and_no_row_that_is_not_there(offset):
    torch.compiler.reset()
    learned, x = table(), tokens(L, D_MODEL)
    compiled = torch.compile(learned, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, offset=2), learned(x, offset=2))
    with pytest.raises(IndexError, match="index out of range"):
        compiled(x, offset=offset)
