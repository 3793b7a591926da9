"""Which tiles a mask leaves: never one too few, and none too many where ranges can tell."""

import itertools

import pytest
import torch
from torch.nn.attention.flex_attention import and_masks, create_block_mask, or_masks

from attention import (
    causal,
    document,
    first_tokens,
    padding,
    prefix_lm,
    shift,
    sliding_window,
)
from attention.kernels.plan import UNIT, Range, Verdict, plan, verdicts
from attention.masking import over_pairs

B, H, L, S = 2, 3, 3 * UNIT - 7, 4 * UNIT + 5
LENGTHS = torch.tensor([100, 233])
IDS = torch.arange(4096) // 90
MARKED = (torch.arange(4096) % 150) < 100
PAIRS = torch.ones(1024, 1024).triu().bool()

# Those that ranges can answer, and those that they cannot.
BY_RANGES = {
    "causal": causal,
    "window": sliding_window(150),
    "first": first_tokens(70),
    "prefix": prefix_lm(130),
    "padding": padding(LENGTHS),
    "shifted": shift(causal, 40, 3),
    "shifted by row": shift(sliding_window(100), torch.tensor([3, 300]), 0),
    "sinks": and_masks(causal, or_masks(sliding_window(80), first_tokens(4))),
    "not causal": lambda b, h, q, k: ~(q >= k),
    "backwards": lambda b, h, q, k: 5 - k > -q,
    "of heads": lambda b, h, q, k: (h == 1) & (q > k),
    "of rows and heads": lambda b, h, q, k: b + h > 1,
    "one diagonal": lambda b, h, q, k: q == k + 64,
    "no diagonal": lambda b, h, q, k: q != k,
    "one side": lambda b, h, q, k: (q < 100) == (k < 100),
    "other side": lambda b, h, q, k: (q < 100) != (k < 100),
    "nothing": lambda b, h, q, k: q < q - 1,
    "document": document(IDS),
    "document of rows": document(torch.stack([IDS, IDS.flip(0)])),
    "table": lambda b, h, q, k: IDS[q] > IDS[k],
    "marked keys": lambda b, h, q, k: MARKED[k],
    "marked keys, causal": lambda b, h, q, k: MARKED[k] & (q >= k),
    "marked keys of rows": lambda b, h, q, k: torch.stack([MARKED, ~MARKED])[b, k],
}
BY_PAIRS = {
    "odd": lambda b, h, q, k: (q + k) % 2 == 1,
    "blocks": lambda b, h, q, k: q // 100 == k // 100,
    "where": lambda b, h, q, k: torch.where(q > 100, k < 64, k > 200),
    "a table of pairs": lambda b, h, q, k: PAIRS[q, k],
    "far in a table": lambda b, h, q, k: IDS[900 + q - k + q - k + q - k] > 9,
}
MODS = BY_RANGES | BY_PAIRS


def where(q_start=11, k_start=0):
    b, h = torch.arange(B), torch.arange(H)
    return b, h, torch.arange(L) + q_start, torch.arange(S) + k_start


def every_pair(mod, at):
    return over_pairs(mod, *at)  # (B, H, L, S)


def by_hand(mask):
    """The verdict on each unit, one at a time."""
    seen = mask.any(0).any(0)  # some row, some head
    whole = mask.all(0).all(0)
    rows, columns = range(0, L, UNIT), range(0, S, UNIT)
    some = [[bool(seen[i : i + UNIT, j : j + UNIT].any()) for j in columns] for i in rows]
    every = [[bool(whole[i : i + UNIT, j : j + UNIT].all()) for j in columns] for i in rows]
    return torch.tensor(some), torch.tensor(every)


@pytest.mark.parametrize("name", MODS)
def test_no_visible_pair_is_ruled_out_and_no_hidden_one_is_taken_for_seen(name):
    at = where()
    some, every, _ = verdicts(MODS[name], at)
    want_some, want_every = by_hand(every_pair(MODS[name], at))
    assert bool((some >= want_some).all())
    assert bool((every <= want_every).all())


# Ranges take two comparisons of one place for two facts that have nothing to do with each other.
EXACT = [n for n in MODS if n not in ("nothing", "marked keys, causal")]


@pytest.mark.parametrize("name", EXACT)
def test_the_verdicts_are_exact(name):
    at = where()
    got, want = verdicts(MODS[name], at), by_hand(every_pair(MODS[name], at))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_a_tensor_and_a_block_mask_are_asked_too():
    at = where()
    mask = torch.rand(B, 1, L, S, generator=torch.Generator().manual_seed(0)) < 0.001
    mask[:, :, :UNIT, UNIT : 3 * UNIT] = True
    for given, want in (
        (mask, mask.expand(B, H, L, S)),
        (mask[:1].expand(B, H, L, S), mask[:1].expand(B, H, L, S)),
        (create_block_mask(causal, 1, 1, 64, 64, device="cpu"), every_pair(causal, at)),
    ):
        got = verdicts(given, at)
        some, every = by_hand(want)
        assert torch.equal(got[0], some) and torch.equal(got[1], every)


@pytest.mark.parametrize("name", ["window", "padding", "shifted by row", "document"])
def test_rows_may_stand_elsewhere(name):
    b, h, q, k = where()
    at = b, h, q + torch.tensor([[0], [257]]), k + torch.tensor([[3], [0]])
    some, every, _ = verdicts(MODS[name], at)
    want = by_hand(every_pair(MODS[name], at))
    assert torch.equal(some, want[0]) and torch.equal(every, want[1])


@pytest.mark.parametrize("name", BY_RANGES)
def test_ranges_answer_without_asking_pair_by_pair(name, monkeypatch):
    def never(*args):
        raise AssertionError("asked pair by pair")

    monkeypatch.setattr("attention.kernels.plan.over_pairs", never)
    verdicts(BY_RANGES[name], where())


@pytest.mark.parametrize("name", BY_PAIRS)
def test_what_ranges_cannot_answer_is_asked_pair_by_pair(name, monkeypatch):
    asked = []

    def ask(*args, at_once):
        asked.append(args)
        return over_pairs(*args, at_once=at_once)

    monkeypatch.setattr("attention.kernels.plan.over_pairs", ask)
    verdicts(BY_PAIRS[name], where())
    assert asked


def test_a_mod_that_asks_for_one_truth_gets_no_wrong_one():
    """`if` on a range would take one branch for all places."""

    def ask_if(b, h, q, k):
        return q >= k if q > 3 else k > q

    def ask_min(b, h, q, k):
        return min(q, k) == k

    r = Range(torch.tensor(0), torch.tensor(9))
    for mod in (ask_if, ask_min):
        with pytest.raises(TypeError, match="neither true nor false"):
            mod(None, None, r, r)
    with pytest.raises(TypeError, match="single numbers"):
        _ = r < torch.arange(3)
    with pytest.raises(TypeError, match="unhashable"):
        _ = {r}


@pytest.mark.parametrize("seed", range(30))
def test_arithmetic_of_ranges_holds_for_all_places_in_them(seed):
    """Random formulas of two places, on each pair of two ranges."""
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
    verdict = both(Range(q0, q1), Range(k0, k1))
    assert isinstance(verdict, Verdict)
    pairs = itertools.product(range(int(q0), int(q1) + 1), range(int(k0), int(k1) + 1))
    truth = [bool(both(torch.tensor(q), torch.tensor(k))) for q, k in pairs]
    assert bool(verdict.some) >= any(truth)
    assert bool(verdict.every) <= all(truth)


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(64, 64), (128, 192), (256, 512)], ids=str)
@pytest.mark.parametrize("name", MODS)
def test_a_plan_meets_each_visible_pair_once_and_needs_no_mask_where_it_says_so(name, sizes):
    at = where()
    visible = every_pair(MODS[name], at)
    met, unmasked = torch.zeros(L, S, dtype=torch.int), torch.zeros(L, S, dtype=torch.bool)
    strips, _ = plan(MODS[name], at, *sizes)
    assert [s.first for s in strips] == [0, *(s.last for s in strips[:-1])]
    assert strips[-1].last == L
    for strip in strips:
        assert 0 < strip.last - strip.first <= sizes[0]
        for tile in strip.tiles:
            assert 0 < tile.last - tile.first <= sizes[1]
            met[strip.first : strip.last, tile.first : tile.last] += 1
            if not tile.masked:
                unmasked[strip.first : strip.last, tile.first : tile.last] = True
    assert met.max() <= 1
    assert bool((met.bool() | ~visible.any(0).any(0)).all())
    assert bool((visible | ~unmasked).all())


def test_a_window_costs_little_and_a_causal_mask_about_half():
    q, k = torch.arange(8192), torch.arange(8192)
    at = torch.arange(1), torch.arange(1), q, k

    def pairs(mask):
        strips, _ = plan(mask, at, 256, 512)
        return sum((s.last - s.first) * (t.last - t.first) for s in strips for t in s.tiles)

    assert pairs(None) == 8192**2
    assert 0.5 < pairs(causal) / 8192**2 < 0.52
    assert pairs(sliding_window(256)) < 1.6 * 256 * 8192
    assert pairs(document(torch.arange(8192) // 512)) == 512 * 8192
    sinks = and_masks(causal, or_masks(sliding_window(256), first_tokens(4)))
    assert pairs(sinks) < 1.9 * 256 * 8192
