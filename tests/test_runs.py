"""Which run of keys each query sees: solved from a mod, held against the mod asked pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import and_masks, create_block_mask, or_masks

from attention import causal, document, first_tokens, padding, prefix_lm, shift, sliding_window
from attention.kernels.runs import runs

B, H, L, S = 2, 3, 9, 13
QUERY, KEY = torch.zeros(B, H, L, 2), torch.zeros(B, 1, S, 2)
IDS = torch.tensor([[3, 3, 3, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 5], [0] * 7 + [1] * 7])
REAL = torch.tensor([[1] * 9 + [0] * 5, [0, 0, 0] + [1] * 11]).bool()


def shown(first, last):
    """The pairs that runs leave, (B, H, L, S)."""
    keys = torch.arange(S)
    return (first[..., None] <= keys) & (keys < last[..., None])


def asked(mask, query_offset=0, key_offset=0):
    """The same, of the mod asked about each pair by itself."""
    places = torch.as_tensor(query_offset).expand(B), torch.as_tensor(key_offset).expand(B)
    pairs = torch.zeros(B, H, L, S, dtype=torch.bool)
    for b, h, i, j in torch.ones_like(pairs).nonzero().tolist():
        at = (b, h, i + int(places[0][b]), j + int(places[1][b]))
        pairs[b, h, i, j] = mask(*map(torch.tensor, at))
    return pairs


SOLVED = {
    "causal": causal,
    "window": sliding_window(4),
    "first": first_tokens(5),
    "prefix": prefix_lm(4),
    "documents of a row": document(IDS[0]),
    "documents": document(IDS),
    "padding": padding(torch.tensor([5, 0])),
    "shifted": shift(causal, torch.tensor([-2, 5]), 1),
    "both": and_masks(causal, document(IDS), padding(torch.tensor([11, 4]))),
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
}


@pytest.mark.parametrize("at", [(0, 0), (4, 1), (-3, 2)])
@pytest.mark.parametrize("name", SOLVED)
def test_a_mod_is_solved(name, at):
    if name in ("documents", "documents of a row", "marked queries", "marked keys", "both") and (
        at != (0, 0)
    ):
        at = (1, 0)
    mask = SOLVED[name]
    found = runs(mask, QUERY, KEY, *at)
    assert torch.equal(shown(*found), asked(mask, *at))
    assert all(x.shape == (B, H, L) and x.dtype == torch.int32 for x in found)
    assert (found[0] <= found[1]).all() and (found[0] >= 0).all() and (found[1] <= S).all()


def test_rows_may_begin_elsewhere():
    at = torch.tensor([3, -1]), torch.tensor([0, 2])
    mask = and_masks(sliding_window(5), shift(causal, -1, 0))
    assert torch.equal(shown(*runs(mask, QUERY, KEY, *at)), asked(mask, *at))


def test_a_block_mask_is_its_mod_and_no_mask_is_all():
    mask = create_block_mask(causal, B, H, L, S, device="cpu")
    assert torch.equal(shown(*runs(mask, QUERY, KEY, 2, 0)), asked(causal, 2))
    assert shown(*runs(None, QUERY, KEY, 0, 0)).all()


def test_what_is_alike_is_not_copied():
    for x in runs(causal, QUERY, KEY, 0, 0):
        assert x.stride()[:2] == (0, 0)
    assert runs(document(IDS), QUERY, KEY, 0, 0)[0].stride()[1] == 0


REFUSED = {
    "a tensor": torch.ones(1, 1, L, S, dtype=torch.bool),
    "sinks": and_masks(causal, or_masks(sliding_window(2), first_tokens(1))),
    "a gap": lambda b, h, q, k: (k < 3) | (k > q),
    "not": lambda b, h, q, k: ~(k > q),
    "unequal": lambda b, h, q, k: k != q,
    "remainders": lambda b, h, q, k: k % 3 == 0,
    "documents that come again": document(torch.tensor([0, 1, 1, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2])),
    "unsorted, by order": lambda b, h, q, k: IDS[0, k] < 2,
    "marks with a gap": lambda b, h, q, k: torch.tensor([1, 0] * 7).bool()[k],
    "two products": lambda b, h, q, k: q * k > 3,
    "a score": lambda b, h, q, k: q - k,
    "a number": lambda b, h, q, k: 1,
    "with if": lambda b, h, q, k: q >= k if k > 3 else q == k,
    "max": lambda b, h, q, k: max(q, k) > 3,
    "a comparison compared": lambda b, h, q, k: (q >= k) == (k > 3),
    "two keys": lambda b, h, q, k: k - k == 0,
    "rows of a table": lambda b, h, q, k: torch.ones(20, 2)[k] > 0,
    "compared with a vector": lambda b, h, q, k: k > torch.tensor([3]),
    "where": lambda b, h, q, k: torch.where(k > q, True, False),
    "by name": lambda b, h, q, k: k.float() > 3,
    "xor": lambda b, h, q, k: (k > q) ^ (k > 3),
    "a queries' number under a clamp": lambda b, h, q, k: (k - q).clamp(0, 3) == 0,
    "distance": lambda b, h, q, k: abs(q - k) < 3,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_solved_is_refused(name):
    with pytest.raises((TypeError, AttributeError)):
        runs(REFUSED[name], QUERY, KEY, 0, 0)


def test_an_error_of_the_mod_itself_comes_through():
    def broken(b, h, q, k):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        runs(broken, QUERY, KEY, 0, 0)


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
def test_whatever_is_written_it_is_solved_right(words):
    names = {"ids": IDS[0], "__builtins__": {}}
    mask = eval(f"lambda b, h, q, k: {words}", names)
    found = shown(*runs(mask, QUERY[:1, :1], KEY[:1], 0, 0))[0, 0]
    q, k = torch.arange(L)[:, None], torch.arange(S)
    assert torch.equal(found, mask(0, 0, q, k).expand(L, S)), words
