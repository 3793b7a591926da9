"""Softmax and log-sum-exp: by hand, against torch and loops, what holds, errors."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from attention import logsumexp, softmax, softmax_naive

INF = math.inf
# The scores of "journey" with the six tokens, and the notebook's weights for them.
SCORES = [0.9544, 1.4950, 1.4754, 0.8434, 0.7070, 1.0865]
WEIGHTS = [0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581]


def random_scores(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    return 3 * torch.randn(shape, dtype=dtype)


def softmax_by_loop(row):
    """Weights and log-sum-exp of a list, in Python's own float64."""
    total = math.fsum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row], math.log(total)


# --- by hand ----------------------------------------------------------------


@pytest.mark.parametrize("f", [softmax, softmax_naive])
def test_a_score_larger_by_log_3_gets_three_times_the_weight(f):
    weights = f(torch.tensor([0.0, math.log(3)], dtype=torch.float64))
    torch.testing.assert_close(weights.tolist(), [0.25, 0.75])


def test_logsumexp_of_n_equal_scores_is_log_n_above_them():
    torch.testing.assert_close(
        logsumexp(torch.full((7,), 2.0, dtype=torch.float64)).item(), 2 + math.log(7)
    )


@pytest.mark.parametrize("f", [softmax, softmax_naive])
def test_the_weights_of_journey_are_the_notebooks(f):
    weights = f(torch.tensor(SCORES))
    assert [round(w, 4) for w in weights.tolist()] == WEIGHTS


# --- against torch, and against loops -----------------------------------------


@pytest.mark.parametrize("dim", [-3, -2, -1, 0, 1, 2])
def test_every_dim_agrees_with_torch_and_with_the_naive_formula(dim):
    x = random_scores(2, 3, 5)
    torch.testing.assert_close(softmax(x, dim), torch.softmax(x, dim))
    torch.testing.assert_close(softmax_naive(x, dim), torch.softmax(x, dim))
    torch.testing.assert_close(logsumexp(x, dim), torch.logsumexp(x, dim))


def test_a_plain_loop_gives_the_same():
    x = random_scores(5, 7)
    expected = [softmax_by_loop(row) for row in x.tolist()]
    torch.testing.assert_close(softmax(x).tolist(), [w for w, _ in expected])
    torch.testing.assert_close(logsumexp(x).tolist(), [lse for _, lse in expected])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    x = random_scores(5, 7, dtype=dtype)
    # assert_close knows each dtype's rounding: 1e-3 in float16, 1.6e-2 in bfloat16
    torch.testing.assert_close(softmax(x), torch.softmax(x, -1))
    torch.testing.assert_close(softmax_naive(x), torch.softmax(x, -1))
    torch.testing.assert_close(logsumexp(x), torch.logsumexp(x, -1))


def test_more_entries_than_float16_can_count_do_not_overflow():
    x = torch.zeros(100_000, dtype=torch.float16)  # float16 ends at 65504
    assert torch.equal(softmax(x), torch.full_like(x, 1e-5))
    assert torch.equal(logsumexp(x), torch.tensor(math.log(1e5), dtype=x.dtype))
    assert torch.logsumexp(x, -1).isinf()


# --- what holds ---------------------------------------------------------------


def test_weights_are_positive_and_sum_to_one():
    weights = softmax(random_scores(5, 7))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, dtype=torch.float64))


def test_adding_a_constant_changes_no_weight_and_adds_to_the_logsumexp():
    x = random_scores(5, 7)
    torch.testing.assert_close(softmax(x + 100), softmax(x))
    torch.testing.assert_close(logsumexp(x + 100), logsumexp(x) + 100)


def test_weights_are_the_exponential_of_score_minus_logsumexp():
    x = random_scores(5, 7)
    torch.testing.assert_close(softmax(x), (x - logsumexp(x)[:, None]).exp())


def test_the_weights_are_the_gradient_of_the_logsumexp():
    x = random_scores(5, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(logsumexp(x).sum(), x)
    torch.testing.assert_close(gradient, softmax(x))


@pytest.mark.parametrize("size", [1e4, -1e4, 3e38])
def test_no_finite_score_overflows_though_the_naive_formula_does(size):
    x = torch.tensor([size, size, -INF])
    assert softmax_naive(x).isnan().any()
    assert softmax(x).tolist() == [0.5, 0.5, 0.0]
    torch.testing.assert_close(logsumexp(x), torch.tensor(size + math.log(2)))


# --- nothing to attend to -----------------------------------------------------


def nothing(rows=3):
    """Scores of which the first row is all -inf, and the second partly."""
    x = random_scores(rows, 5)
    x[0] = -INF
    x[1, 2:] = -INF
    return x.requires_grad_()


def test_a_slice_all_minus_infinity_gets_zeros_where_torch_gives_nan():
    x = nothing()
    assert softmax(x)[0].tolist() == [0.0] * 5
    assert logsumexp(x)[0].item() == -INF
    assert torch.softmax(x, -1)[0].isnan().all()
    torch.testing.assert_close(softmax(x)[1:], torch.softmax(x, -1)[1:])
    torch.testing.assert_close(logsumexp(x), torch.logsumexp(x, -1))


@pytest.mark.parametrize("f", [softmax, logsumexp])
def test_a_slice_all_minus_infinity_has_zero_derivatives_of_both_orders(f):
    x = nothing()
    out = f(x)
    upstream = torch.randn_like(out).requires_grad_()
    (first,) = torch.autograd.grad(out, x, upstream, create_graph=True)
    assert first[0].tolist() == [0.0] * 5
    second = torch.autograd.grad(first, (x, upstream), torch.randn_like(first))
    for gradient in (first, *second):
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()
        assert (gradient[1:] != 0).any()


def test_torch_gives_nan_gradients_there_as_the_docstrings_say():
    for f in (torch.softmax, torch.logsumexp):
        x = nothing()
        (gradient,) = torch.autograd.grad(f(x, -1).sum(), x)
        assert gradient[0].isnan().all()


@pytest.mark.parametrize("f", [softmax, logsumexp])
def test_derivatives_of_both_orders_match_finite_differences(f):
    hidden = nothing().isinf()

    def masked(x):
        out = f(x.masked_fill(hidden, -INF))
        return out.masked_fill(out.isinf(), 0)  # finite differences of -inf are NaN

    x = random_scores(3, 5).requires_grad_()
    assert gradcheck(masked, x)
    assert gradgradcheck(masked, x)


def test_an_empty_dim_gives_no_weights_and_minus_infinity():
    x = torch.zeros(2, 0, requires_grad=True)
    assert softmax(x).shape == (2, 0)
    assert logsumexp(x).tolist() == [-INF, -INF]
    assert torch.autograd.grad(logsumexp(x).sum(), x)[0].shape == (2, 0)
    assert softmax(x, 0).shape == (2, 0)
    assert logsumexp(x, 0).shape == (0,)


def test_an_infinite_score_has_an_infinite_logsumexp_as_in_torch():
    assert logsumexp(torch.tensor([INF, 0.0])).item() == INF
    assert softmax(torch.tensor([INF, 0.0])).isnan().any()


# --- errors -------------------------------------------------------------------

EVERY = pytest.mark.parametrize("f", [softmax, softmax_naive, logsumexp])


@EVERY
@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.tensor([1, 2]), "torch.int64"),
        (torch.tensor([True]), "torch.bool"),
        (torch.ones(2, dtype=torch.complex64), "torch.complex64"),
        ([1.0, 2.0], "list"),
    ],
)
def test_only_floating_point_tensors_are_taken(f, x, got):
    with pytest.raises(TypeError, match=f"^x must be a tensor of float16.*got {got}$"):
        f(x)


@EVERY
@pytest.mark.parametrize("dim", [2, -3, None, 0.0])
def test_dim_must_be_a_dimension_of_x(f, dim):
    message = rf"^dim={dim} must be an integer from -2 to 1 for x of shape \(2, 3\)$"
    with pytest.raises(ValueError, match=message):
        f(torch.zeros(2, 3), dim)


@EVERY
def test_a_number_alone_has_nothing_to_share(f):
    with pytest.raises(ValueError, match=r"^x must have at least one dimension.*\(\)$"):
        f(torch.tensor(1.0))
