"""Intervals hold every value that occurs, and express nothing that they cannot hold."""

import itertools

import pytest
import torch

from attention.kernels.intervals import WIDEST, Interval

TABLE = torch.tensor([5, 1, 4, 1, 3])


def test_an_interval_is_never_taken_for_one_truth_value():
    """`if` on an interval would take one branch for all positions."""

    def ask_if(b, h, q, k):
        return q >= k if q > 3 else k > q

    def ask_min(b, h, q, k):
        return min(q, k) == k

    r = Interval(torch.tensor(0), torch.tensor(9))
    for mod in (ask_if, ask_min):
        with pytest.raises(TypeError, match="neither true nor false"):
            mod(None, None, r, r)
    with pytest.raises(TypeError, match="single numbers"):
        _ = r < torch.arange(3)
    with pytest.raises(TypeError, match="unhashable"):
        _ = {r}


@pytest.mark.parametrize("seed", range(30))
def test_arithmetic_of_intervals_holds_for_all_values_in_them(seed):
    """Random formulas of two positions, on each pair of values of two intervals."""
    torch.manual_seed(seed)

    def formula(q, k):
        c = torch.randint(-4, 5, (6,)).tolist()
        left = [q + c[0], c[1] - q, q - k, k + q, -k][int(torch.randint(5, ()))]
        right = [k, c[2] + k, -q, torch.tensor(c[3]), c[4]][int(torch.randint(5, ()))]
        compare = ["__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"]
        return getattr(left, compare[int(torch.randint(6, ()))])(right)

    def both(q, k):
        torch.manual_seed(100 + seed)
        one, other = formula(q, k), formula(q, k)
        return (one & other) | ~one

    q0, k0 = torch.randint(-6, 6, (2,))
    q1, k1 = q0 + 3, k0 + 2
    verdict = both(Interval(q0, q1), Interval(k0, k1))
    assert isinstance(verdict, Interval)
    pairs = itertools.product(range(int(q0), int(q1) + 1), range(int(k0), int(k1) + 1))
    truth = [bool(both(torch.tensor(q), torch.tensor(k))) for q, k in pairs]
    assert bool(verdict.high) >= any(truth)
    assert bool(verdict.low) <= all(truth)


@pytest.mark.parametrize("low", range(5))
def test_a_table_is_looked_up_at_each_position_of_an_interval(low):
    for high in range(low, 5):
        found = TABLE[Interval(torch.tensor(low), torch.tensor(high))]
        entries = TABLE[low : high + 1].tolist()
        assert (int(found.low), int(found.high)) == (min(entries), max(entries))


def test_clamping_an_interval_clamps_both_ends():
    x = Interval(torch.tensor(-3), torch.tensor(9)).clamp(0, 5)
    assert (int(x.low), int(x.high)) == (0, 5)


X = Interval(torch.tensor(0), torch.tensor(1))
NOT_EXPRESSED = {
    "a remainder": lambda: X % 2,
    "a quotient": lambda: X // 2,
    "a number plus a Boolean": lambda: (X < 1) & X,
    "not a number": lambda: ~X,
    "where": lambda: torch.where(X, 1, 0),
    "two intervals in a table": lambda: TABLE.expand(5, 5)[X, X],
    "a row of a table": lambda: TABLE.expand(5, 5)[X],
    "too many positions": lambda: torch.arange(999)[
        Interval(torch.tensor(0), torch.tensor(WIDEST))
    ],
}


@pytest.mark.parametrize("name", NOT_EXPRESSED)
def test_what_an_interval_cannot_express_raises_type_error(name):
    with pytest.raises(TypeError):
        NOT_EXPRESSED[name]()
