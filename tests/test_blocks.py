"""Which tiles a mask leaves, and which run of keys a query: held against the mask, pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import and_masks, or_masks

from attention import (
    causal,
    document,
    first_tokens,
    padding,
    prefix_lm,
    shift,
    sliding_window,
)
from attention.kernels import blocks
from attention.kernels.blocks import BLOCK, plan, runs, verdicts
from attention.masking import AttentionSpec, evaluate_mod

B, H, L, S = 2, 3, 3 * BLOCK - 7, 4 * BLOCK + 5
LENGTHS = torch.tensor([100, 233])
IDS = torch.arange(4096) // 90
MARKED = (torch.arange(4096) % 150) < 100
PAIRS = torch.ones(1024, 1024).triu().bool()

# Those that intervals can express, and those that they cannot.
BY_INTERVALS = {
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
MODS = BY_INTERVALS | BY_PAIRS


def where(q_start=11, k_start=0):
    b, h = torch.arange(B), torch.arange(H)
    return b, h, torch.arange(L) + q_start, torch.arange(S) + k_start


def every_pair(mod, at):
    return evaluate_mod(mod, at)  # (B, H, L, S)


def by_hand(mask):
    """The verdict on each block, one at a time."""
    seen = mask.any(0).any(0)  # some row, some head
    whole = mask.all(0).all(0)
    rows, columns = range(0, L, BLOCK), range(0, S, BLOCK)
    some = [[bool(seen[i : i + BLOCK, j : j + BLOCK].any()) for j in columns] for i in rows]
    every = [[bool(whole[i : i + BLOCK, j : j + BLOCK].all()) for j in columns] for i in rows]
    return torch.tensor(some), torch.tensor(every)


@pytest.mark.parametrize("name", MODS)
def test_no_visible_pair_is_ruled_out_and_no_hidden_one_is_taken_for_seen(name):
    at = where()
    some, every = verdicts(MODS[name], at)
    want_some, want_every = by_hand(every_pair(MODS[name], at))
    assert bool((some >= want_some).all())
    assert bool((every <= want_every).all())


# Intervals take two comparisons of one position for two facts that are independent of each other.
EXACT = [n for n in MODS if n not in ("nothing", "marked keys, causal")]


@pytest.mark.parametrize("name", EXACT)
def test_the_verdicts_are_exact(name):
    at = where()
    got, want = verdicts(MODS[name], at), by_hand(every_pair(MODS[name], at))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_the_verdicts_on_a_tensor_are_exact():
    at = where()
    mask = torch.rand(B, 1, L, S, generator=torch.Generator().manual_seed(0)) < 0.001
    mask[:, :, :BLOCK, BLOCK : 3 * BLOCK] = True
    for tensor in (mask.expand(B, H, L, S), mask[:1].expand(B, H, L, S)):
        got = verdicts(tensor, at)
        some, every = by_hand(tensor)
        assert torch.equal(got[0], some) and torch.equal(got[1], every)


@pytest.mark.parametrize("name", ["window", "padding", "shifted by row", "document"])
def test_batch_entries_may_have_offsets_of_their_own(name):
    b, h, q, k = where()
    at = b, h, q + torch.tensor([[0], [257]]), k + torch.tensor([[3], [0]])
    some, every = verdicts(MODS[name], at)
    want = by_hand(every_pair(MODS[name], at))
    assert torch.equal(some, want[0]) and torch.equal(every, want[1])


@pytest.mark.parametrize("name", BY_INTERVALS)
def test_intervals_answer_without_evaluating_pair_by_pair(name, monkeypatch):
    def never(*args):
        raise AssertionError("evaluated pair by pair")

    monkeypatch.setattr(blocks, "visible", never)
    verdicts(BY_INTERVALS[name], where())


@pytest.mark.parametrize("name", BY_PAIRS)
def test_what_intervals_cannot_express_is_evaluated_pair_by_pair(name, monkeypatch):
    seen = []
    real = blocks.visible
    monkeypatch.setattr(blocks, "visible", lambda *args: seen.append(args) or real(*args))
    verdicts(BY_PAIRS[name], where())
    assert seen


class OwnError(Exception):
    pass


@pytest.mark.parametrize("kind", [TypeError, AttributeError, RuntimeError, IndexError, OwnError])
@pytest.mark.parametrize("ask", [verdicts, runs])
def test_an_error_of_the_mod_itself_comes_through(ask, kind):
    def broken(b, h, q, k):
        raise kind("of its own")

    with pytest.raises(kind, match="of its own"):
        ask(broken, where())


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(64, 64), (128, 192), (256, 512)], ids=str)
@pytest.mark.parametrize("name", MODS)
def test_a_plan_meets_each_visible_pair_once_and_needs_no_mask_where_it_says_so(name, sizes):
    at = where()
    visible = every_pair(MODS[name], at)
    met, unmasked = torch.zeros(L, S, dtype=torch.int), torch.zeros(L, S, dtype=torch.bool)
    query_blocks = plan(MODS[name], at, *sizes)
    assert [s.first for s in query_blocks] == [0, *(s.last for s in query_blocks[:-1])]
    assert query_blocks[-1].last == L
    for block in query_blocks:
        assert 0 < block.last - block.first <= sizes[0]
        for tile in block.tiles:
            assert 0 < tile.last - tile.first <= sizes[1]
            met[block.first : block.last, tile.first : tile.last] += 1
            if not tile.masked:
                unmasked[block.first : block.last, tile.first : tile.last] = True
    assert met.max() <= 1
    assert bool((met.bool() | ~visible.any(0).any(0)).all())
    assert bool((visible | ~unmasked).all())


def test_a_window_costs_little_and_a_causal_mask_about_half():
    q, k = torch.arange(8192), torch.arange(8192)
    at = torch.arange(1), torch.arange(1), q, k

    def pairs(mask):
        query_blocks = plan(mask, at, 256, 512)
        return sum((s.last - s.first) * (t.last - t.first) for s in query_blocks for t in s.tiles)

    assert pairs(None) == 8192**2
    assert 0.5 < pairs(causal) / 8192**2 < 0.52
    assert pairs(sliding_window(256)) < 1.6 * 256 * 8192
    assert pairs(document(torch.arange(8192) // 512)) == 512 * 8192
    sinks = and_masks(causal, or_masks(sliding_window(256), first_tokens(4)))
    assert pairs(sinks) < 1.9 * 256 * 8192


# --- runs ----------------------------------------------------------------------------------------

N_QUERIES, N_KEYS = 9, 13
DOCUMENTS = torch.tensor([[3, 3, 3, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 5], [0] * 7 + [1] * 7])
REAL = torch.tensor([[1] * 9 + [0] * 5, [0, 0, 0] + [1] * 11]).bool()


def few(query_offset=0, key_offset=0):
    """Indices of a few queries and keys."""
    spec = AttentionSpec(query_offset=query_offset, key_offset=key_offset)
    return spec.indices(torch.zeros(B, H, N_QUERIES, 1), torch.zeros(B, 1, N_KEYS, 1))


def shown(first, last):
    """The pairs that runs leave, (B, H, queries, N_KEYS)."""
    keys = torch.arange(N_KEYS)
    return (first[..., None] <= keys) & (keys < last[..., None])


def asked(mask, query_offset=0, key_offset=0):
    """The same, of the mod called with each pair by itself."""
    starts = torch.as_tensor(query_offset).expand(B), torch.as_tensor(key_offset).expand(B)
    pairs = torch.zeros(B, H, N_QUERIES, N_KEYS, dtype=torch.bool)
    for b, h, i, j in torch.ones_like(pairs).nonzero().tolist():
        at = (b, h, i + int(starts[0][b]), j + int(starts[1][b]))
        pairs[b, h, i, j] = torch.as_tensor(mask(*map(torch.tensor, at)))
    return pairs


SOLVED = {
    "causal": causal,
    "window": sliding_window(4),
    "first": first_tokens(5),
    "prefix": prefix_lm(4),
    "documents of a row": document(DOCUMENTS[0]),
    "documents": document(DOCUMENTS),
    "padding": padding(torch.tensor([5, 0])),
    "shifted": shift(causal, torch.tensor([-2, 5]), 1),
    "both": and_masks(causal, document(DOCUMENTS), padding(torch.tensor([11, 4]))),
    "either": or_masks(causal, first_tokens(4)),
    "marked keys": lambda b, h, q, k: REAL[b, k] & (k <= q),
    "marked queries": lambda b, h, q, k: REAL[b, q] & (k >= q),
    "one key": lambda b, h, q, k: q == k,
    "one for each head": lambda b, h, q, k: k == h + 2,
    "turned round": lambda b, h, q, k: (-k < -q) & (5 - k >= q - 9) & (1 + k > 3) & (-(k - q) <= 4),
    "halves": lambda b, h, q, k: (k < 7.5) & (k > q / 2) & (k >= 0.5),
    "queries alone": lambda b, h, q, k: (q > 3) & (b == 0),
    "all and none": lambda b, h, q, k: (k < 0) | (k < 99),
    "windows of heads": lambda b, h, q, k: (q - k < h) & (q - k > -2 * h),
    # Neither of these is one comparison after another, and each leaves one run of keys.
    "not": lambda b, h, q, k: ~(k > q),
    "unsorted, by order": lambda b, h, q, k: DOCUMENTS[0, k] < 2,
    "two products": lambda b, h, q, k: q * k > 3,
    "a comparison compared": lambda b, h, q, k: (q >= k) == (k > 3),
    "two keys": lambda b, h, q, k: k - k == 0,
    "where": lambda b, h, q, k: torch.where(k > q, True, False),
    "by name": lambda b, h, q, k: k.float() > 3,
    "xor": lambda b, h, q, k: (k > q) ^ (k > 3),
    "a queries' number under a clamp": lambda b, h, q, k: (k - q).clamp(0, 3) == 0,
    "distance": lambda b, h, q, k: abs(q - k) < 3,
}


@pytest.mark.parametrize("at", [(0, 0), (4, 1), (-3, 2)], ids=str)
@pytest.mark.parametrize("name", SOLVED)
def test_the_run_of_each_query_is_found(name, at):
    tables = ("documents", "documents of a row", "marked queries", "marked keys", "both")
    if name in (*tables, "unsorted, by order") and at != (0, 0):
        at = (1, 0)
    mask = SOLVED[name]
    found = runs(mask, few(*at))
    assert torch.equal(shown(*found), asked(mask, *at))
    assert all(x.shape == (B, H, N_QUERIES) and x.dtype == torch.int32 for x in found)
    assert (found[0] <= found[1]).all()
    assert (found[0] >= 0).all() and (found[1] <= N_KEYS).all()


@pytest.mark.parametrize("name", BY_INTERVALS)
def test_runs_of_many_blocks_are_those_of_all_pairs(name):
    pairs = every_pair(BY_INTERVALS[name], where())  # (B, H, L, S)
    begins = pairs.int().diff(dim=-1, prepend=torch.zeros(B, H, L, 1, dtype=torch.int)) > 0
    found = runs(BY_INTERVALS[name], where())
    if (begins.sum(-1) > 1).any():
        assert found is None
        return
    keys = torch.arange(S)
    assert torch.equal((found[0][..., None] <= keys) & (keys < found[1][..., None]), pairs)


def test_runs_with_offsets_for_each_batch_entry():
    at = torch.tensor([3, -1]), torch.tensor([0, 2])
    mask = and_masks(sliding_window(5), shift(causal, -1, 0))
    assert torch.equal(shown(*runs(mask, few(*at))), asked(mask, *at))


def test_a_tensor_with_one_run_of_keys_is_as_good_as_a_mod_and_no_mask_shows_all():
    pairs = asked(causal, 2)
    assert torch.equal(shown(*runs(pairs, few())), pairs)
    assert shown(*runs(None, few())).all()
    pairs[1, 2, 7, 4] = False
    assert runs(pairs, few()) is None
    for small in (torch.arange(N_KEYS) > 4, torch.arange(N_QUERIES)[:, None] > 4):
        pairs = small.expand(B, H, N_QUERIES, N_KEYS)
        small = small.reshape(1, 1, -1, small.shape[-1])
        assert torch.equal(shown(*runs(small, few())), pairs)


def test_runs_of_equal_batch_entries_and_heads_are_not_copied():
    for x in runs(causal, few()):
        assert x.stride()[:2] == (0, 0)
    assert runs(document(DOCUMENTS), few())[0].stride()[1] == 0


WITH_GAPS = {
    "sinks": and_masks(causal, or_masks(sliding_window(2), first_tokens(1))),
    "a gap": lambda b, h, q, k: (k < 3) | (k > q),
    "unequal": lambda b, h, q, k: k != q,
    "remainders": lambda b, h, q, k: k % 3 == 0,
    "documents that come again": document(torch.tensor([0, 1, 1, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2])),
    "marks with a gap": lambda b, h, q, k: torch.tensor([1, 0] * 7).bool()[k],
}


@pytest.mark.parametrize("name", WITH_GAPS)
def test_a_query_that_sees_keys_with_a_gap_has_no_run(name):
    assert runs(WITH_GAPS[name], few()) is None


NO_MODS = {
    "a score": lambda b, h, q, k: q - k,
    "a number": lambda b, h, q, k: 1,
    "with if": lambda b, h, q, k: q >= k if k > 3 else q == k,
    "max": lambda b, h, q, k: max(q, k) > 3,
    "rows of a table": lambda b, h, q, k: torch.ones(20, 2)[k] > 0,
    "compared with a vector": lambda b, h, q, k: k > torch.tensor([3]),
}


@pytest.mark.parametrize("name", NO_MODS)
def test_what_is_no_mask_mod_raises_the_error_of_the_reference(name):
    query, key = torch.zeros(B, H, N_QUERIES, 1), torch.zeros(B, H, N_KEYS, 1)
    with pytest.raises(Exception, match=r"^(mask|vmap)") as want:
        AttentionSpec(NO_MODS[name]).mask_tensor(query, key)
    with pytest.raises(want.type):
        runs(NO_MODS[name], few())


number = st.integers(-6, 14)


@st.composite
def masks(draw):
    """A mod of comparisons joined by &, and the words that made it."""
    sides = st.sampled_from(["k", "-k", "k + q", "k - q", "q - k", "-(k - q)", "3 - k", "ids[k]"])
    words = []
    for _ in range(draw(st.integers(1, 4))):
        side, n = draw(sides), draw(number)
        op = "==" if side == "ids[k]" else draw(st.sampled_from(["<", "<=", ">", ">=", "=="]))
        other = "ids[q]" if side == "ids[k]" and draw(st.booleans()) else str(n)
        pair = [side, other] if draw(st.booleans()) else [other, side]
        words.append(f"({pair[0]} {op} {pair[1]})")
    return " & ".join(words)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(masks())
def test_runs_of_random_masks_match_brute_force(words):
    names = {"ids": DOCUMENTS[0], "__builtins__": {}}
    mask = eval(f"lambda b, h, q, k: {words}", names)
    q, k = torch.arange(N_QUERIES), torch.arange(N_KEYS)
    pairs = mask(0, 0, q[:, None], k).expand(N_QUERIES, N_KEYS)
    begins = pairs.int().diff(dim=-1, prepend=torch.zeros(N_QUERIES, 1, dtype=torch.int)) > 0
    found = runs(mask, (torch.arange(1), torch.arange(1), q, k))
    if (begins.sum(-1) > 1).any():
        assert found is None, words
    else:
        assert torch.equal(shown(*found)[0, 0], pairs), words
