"""Mask mods: by hand, against loops and torch, what holds, errors.

Sizes are prime and differ, so that swapped indices fail.
"""

import itertools
import math
import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention as flex

from attention import (
    T5Bias,
    alibi,
    attention,
    attention_weights,
    causal,
    document,
    first_tokens,
    padding,
    prefix_lm,
    shift,
    sliding_window,
)
from snippets.page import parse

B, H, L, S, D, DV = 2, 3, 5, 7, 11, 13
LENGTHS = torch.tensor([5, 3])  # for S keys: some hidden in both rows, and not the same


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tensors(length=L, source=S, *, heads=H, **options):
    options = {"dtype": torch.float64} | options
    return (
        torch.randn(B, heads, length, D, **options),
        torch.randn(B, heads, source, D, **options),
        torch.randn(B, heads, source, DV, **options),
    )


def by_loop(allowed, *shape):
    """A mask (B, H, L, S) from a function of Python's own integers."""
    pairs = itertools.product(*(range(n) for n in shape))
    return torch.tensor([bool(allowed(*pair)) for pair in pairs]).view(shape)


def no_later(b, h, i, j):
    return j <= i


def real(b, h, i, j):
    return j < [5, 3][b]


def window(size):
    return lambda b, h, i, j: j in range(i - size + 1, i + 1)


def among_first(n):
    return lambda b, h, i, j: j in list(range(n))


def prefix(n):
    return lambda b, h, i, j: j in {*range(n), *range(i + 1)}


def same_document(ids):
    """Of lists: one, or one for each row of the batch. A position has its id, or none."""

    def allowed(b, h, i, j):
        row = dict(enumerate(ids[b] if isinstance(ids[0], list) else ids))
        return i in row and j in row and row[i] == row[j]

    return allowed


def moved(allowed, q, kv):
    q, kv = (x if isinstance(x, list) else [x] * B for x in (q, kv))
    return lambda b, h, i, j: allowed(b, h, i + q[b], j + kv[b])


def both(*rules):
    return lambda *pair: all(rule(*pair) for rule in rules)


def either(*rules):
    return lambda *pair: any(rule(*pair) for rule in rules)


APART = [5, 5, -1, 5, 9]  # T is 5 of 7: the last two keys belong to no document
BY_ROW = [[0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3, 0]]

# Each mod beside what it says in Python's own numbers.
CASES = {
    "window": (sliding_window(3), window(3)),
    "window of one": (sliding_window(1), lambda b, h, i, j: j == i),
    "window longer than all": (sliding_window(100), no_later),
    "first tokens": (first_tokens(2), among_first(2)),
    "no first tokens": (first_tokens(0), lambda *pair: False),
    "first tokens, more than there are": (first_tokens(100), lambda *pair: True),
    "prefix": (prefix_lm(3), prefix(3)),
    "prefix of nothing": (prefix_lm(0), no_later),
    "prefix of all": (prefix_lm(100), lambda *pair: True),
    "document": (document(torch.tensor(APART)), same_document(APART)),
    "document int32": (document(torch.tensor(APART).int()), same_document(APART)),
    "document of one": (document(torch.tensor([4])), lambda b, h, i, j: i == j == 0),
    "document by row": (document(torch.tensor(BY_ROW)), same_document(BY_ROW)),
    "document, causal": (
        flex.and_masks(causal, document(torch.tensor(BY_ROW))),
        both(no_later, same_document(BY_ROW)),
    ),
    "window in documents": (
        flex.and_masks(sliding_window(2), document(torch.tensor(APART))),
        both(window(2), same_document(APART)),
    ),
    "window and sinks": (
        flex.and_masks(causal, flex.or_masks(sliding_window(3), first_tokens(1))),
        both(no_later, either(window(3), among_first(1))),
    ),
    "window and sinks, padded": (
        flex.and_masks(causal, padding(LENGTHS), flex.or_masks(sliding_window(2), first_tokens(2))),
        both(no_later, real, either(window(2), among_first(2))),
    ),
    "prefixes of two lengths": (flex.or_masks(causal, padding(LENGTHS)), either(no_later, real)),
    "shift": (shift(causal, 2, 1), moved(no_later, 2, 1)),
    "shift before the start": (shift(sliding_window(3), -2, -3), moved(window(3), -2, -3)),
    "shift by row": (
        shift(causal, torch.tensor([0, 3]), torch.tensor([1, 0])),
        moved(no_later, [0, 3], [1, 0]),
    ),
    "shift by row and alike": (
        shift(document(torch.tensor(BY_ROW)), torch.tensor([2, -1]).int(), 1),
        moved(same_document(BY_ROW), [2, -1], 1),
    ),
    "shift twice": (shift(shift(prefix_lm(2), 1, 2), 3, -1), moved(prefix(2), 4, 1)),
    "shift of a combination": (
        shift(flex.and_masks(causal, flex.or_masks(sliding_window(2), first_tokens(1))), 3, 0),
        moved(both(no_later, either(window(2), among_first(1))), 3, 0),
    ),
    "combination of shifts": (
        flex.and_masks(shift(causal, 1, 0), shift(padding(LENGTHS), 0, 2)),
        both(moved(no_later, 1, 0), moved(real, 0, 2)),
    ),
    "causal": (causal, no_later),
    "padding": (padding(LENGTHS), real),
    "padding int32": (padding(LENGTHS.int()), real),
    "padding of nothing": (padding(torch.tensor([0, 4])), lambda b, h, i, j: b == 1 and j < 4),
    "both": (
        flex.and_masks(causal, padding(LENGTHS)),
        lambda *pair: no_later(*pair) and real(*pair),
    ),
    "either": (
        flex.or_masks(causal, padding(LENGTHS)),
        lambda *pair: no_later(*pair) or real(*pair),
    ),
}
EVERY = pytest.mark.parametrize(("mod", "allowed"), CASES.values(), ids=CASES)


# --- by hand ------------------------------------------------------------------


def test_causal_keeps_the_diagonal_and_what_is_below_it():
    mask = flex.create_mask(causal, 1, 1, 3, 3, device="cpu")[0, 0]
    assert mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_padding_keeps_as_many_keys_as_each_row_is_long():
    mask = flex.create_mask(padding(torch.tensor([2, 0, 3])), 3, 1, 1, 3, device="cpu")[:, 0, 0]
    assert mask.tolist() == [[True, True, False], [False, False, False], [True, True, True]]


def test_equal_scores_share_a_third_each_among_three_real_keys():
    x = torch.zeros(2, 1, 5, 4)
    weights = attention_weights(x, x, mask=padding(torch.tensor([3, 0])))
    third = 1 / 3
    torch.testing.assert_close(weights[0, 0, 4], torch.tensor([third, third, third, 0, 0]))
    assert (weights[1] == 0).all()


def grid(mod, length=6, source=6, batch=1):
    """A mask's first head, with 0 for hidden: a list of lines for each row of the batch."""
    made = flex.create_mask(mod, batch, 1, length, source, device="cpu")[:, 0].int()
    return ["".join(map(str, row)) for row in made.flatten(0, 1).tolist()]


def test_a_window_of_three_is_three_keys_with_the_querys_own():
    assert grid(sliding_window(3)) == ["100000", "110000", "111000", "011100", "001110", "000111"]


def test_a_window_of_one_is_the_query_alone_and_a_long_one_is_causal():
    assert grid(sliding_window(1), 3, 3) == ["100", "010", "001"]
    assert grid(sliding_window(6)) == grid(sliding_window(7)) == grid(causal)
    assert grid(sliding_window(5)) != grid(causal)


def test_first_tokens_are_seen_by_all_also_by_those_before_them():
    assert grid(first_tokens(2), 3, 4) == ["1100", "1100", "1100"]
    assert grid(first_tokens(0), 3, 4) == ["0000", "0000", "0000"]


def test_a_prefix_is_read_both_ways_and_the_rest_is_causal():
    assert grid(prefix_lm(3), 5, 5) == ["11100", "11100", "11100", "11110", "11111"]
    assert grid(prefix_lm(0)) == grid(prefix_lm(1)) == grid(causal)
    assert grid(prefix_lm(3)) == grid(flex.or_masks(causal, first_tokens(3)))


def test_a_document_attends_to_itself_and_a_position_outside_to_nothing():
    mod = document(torch.tensor([8, 8, 2, 8]))
    assert grid(mod, 5, 5) == ["11010", "11010", "00100", "11010", "00000"]
    assert grid(flex.and_masks(causal, mod), 5, 5) == ["10000", "11000", "00100", "11010", "00000"]
    assert grid(shift(mod, -1, -1), 3, 4) == ["0000", "0110", "0110"]  # nor do those before it


def test_documents_differ_by_row_and_may_be_long_or_short():
    mod = document(torch.tensor([[0, 0, 1], [2, 2, 2]]))
    assert grid(mod, 3, 3, batch=2) == ["110", "110", "001", "111", "111", "111"]


def test_a_window_and_a_sink():
    mod = flex.and_masks(causal, flex.or_masks(sliding_window(3), first_tokens(1)))
    assert grid(mod) == ["100000", "110000", "111000", "111100", "101110", "100111"]


def test_a_shifted_mod_begins_where_the_block_does():
    assert grid(shift(causal, 4, 0), 2, 6) == ["111110", "111111"]
    assert grid(shift(causal, 4, 3), 2, 3) == ["110", "111"]
    assert grid(shift(causal, 0, 1), 2, 3) == ["000", "100"]
    by_row = shift(causal, torch.tensor([0, 4]), 0)
    assert grid(by_row, 2, 6, batch=2) == ["100000", "110000", "111110", "111111"]


# --- against loops and torch ----------------------------------------------------


@EVERY
def test_scalars_vmap_broadcasting_and_create_mask_agree(mod, allowed):
    expected = by_loop(allowed, B, H, L, S)
    indices = [torch.arange(n) for n in (B, H, L, S)]
    by_scalars = [mod(*pair) for pair in itertools.product(*indices)]
    assert all(x.shape == () and x.dtype == torch.bool for x in by_scalars)
    assert torch.equal(torch.stack(by_scalars).view(B, H, L, S), expected)

    mapped = mod
    for dim in (3, 2, 1, 0):
        mapped = torch.vmap(mapped, in_dims=tuple(0 if i == dim else None for i in range(4)))
    assert torch.equal(mapped(*indices), expected)

    broadcast = mod(*torch.meshgrid(*indices, indexing="ij"))
    assert torch.equal(broadcast, expected)
    open_grid = [x.view([-1 if i == dim else 1 for i in range(4)]) for dim, x in enumerate(indices)]
    assert torch.equal(mod(*open_grid).expand(B, H, L, S), expected)
    assert torch.equal(flex.create_mask(mod, B, H, L, S, device="cpu"), expected)


@EVERY
def test_a_mod_hides_what_the_same_mask_as_a_tensor_hides(mod, allowed):
    q, k, v = tensors(S, S)
    expected = attention(q, k, v, mask=by_loop(allowed, B, H, S, S))
    assert torch.equal(attention(q, k, v, mask=mod), expected)


@EVERY
def test_eager_flex_attention_hides_the_same(mod, allowed, monkeypatch):
    # The switch runs FlexAttention eagerly, in place of compiling it first; on a CPU it has
    # no backward.
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    q, k, v = tensors(S, S)
    made = flex.create_block_mask(mod, B, H, S, S, device="cpu")
    expected = flex.flex_attention(q, k, v, block_mask=made)
    for mask in (mod, made):
        torch.testing.assert_close(attention(q, k, v, mask=mask), expected)


@EVERY
def test_sdpa_gives_the_same_gradients(mod, allowed):
    inputs = tensors(S, S, requires_grad=True)
    mask = by_loop(allowed, B, H, S, S)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(attention(*inputs, mask=mod), inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
    )


def test_causal_is_sdpas_is_causal_where_the_lengths_are_equal():
    q, k, v = tensors(S, S)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(q, k, v, mask=causal), expected)


@pytest.mark.parametrize("start", [0, S - L, S])
def test_offsets_say_where_the_causal_diagonal_begins(start):
    q, k, v = tensors()
    triangle = torch.ones(L, S, dtype=torch.bool).tril(start)
    out = attention(q, k, v, mask=causal, query_offset=start, key_offset=0)
    assert torch.equal(out, attention(q, k, v, mask=triangle))
    moved = attention(q, k, v, mask=causal, query_offset=start + 100, key_offset=100)
    assert torch.equal(moved, out)


# What makes a mod and its rule from a few random numbers.
DRAWN = {
    "causal": lambda n: (causal, no_later),
    "sliding_window": lambda n: (sliding_window(n + 1), window(n + 1)),
    "first_tokens": lambda n: (first_tokens(n), among_first(n)),
    "prefix_lm": lambda n: (prefix_lm(n), prefix(n)),
    "document": lambda n: (
        document(torch.tensor(ids := random.choices(range(3), k=n + 1))),
        same_document(ids),
    ),
    "document by row": lambda n: (
        document(torch.tensor(ids := [random.choices([-7, 0, 7], k=n + 1) for _ in range(B)])),
        same_document(ids),
    ),
    "padding": lambda n: (
        padding(torch.tensor(lengths := [n, random.randrange(9)])),
        lambda b, h, i, j: j < lengths[b],
    ),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_mod_says_the_same_as_a_loop_at_any_length_and_offset(draw):
    random.seed(0)
    for _ in range(25):
        mod, allowed = draw(random.randrange(9))
        length, source = random.randint(1, 9), random.randint(1, 9)
        q, kv = (
            random.choice([random.randint(least, 9), [random.randint(least, 9) for _ in range(B)]])
            for least in (-3, 0)  # a query may stand before the first key
        )
        expected = by_loop(moved(allowed, q, kv), B, 1, length, source)
        offsets = [torch.tensor(x) if isinstance(x, list) else x for x in (q, kv)]
        made = flex.create_mask(shift(mod, *offsets), B, 1, length, source, device="cpu")
        assert torch.equal(made, expected)

        tensors_ = tensors(length, source, heads=1)
        how = {"query_offset": offsets[0], "key_offset": offsets[1]}
        out = attention(*tensors_, mask=mod, **how)
        assert torch.equal(out, attention(*tensors_, mask=expected))


@EVERY
def test_a_block_mask_of_a_mod_is_the_mod_at_each_pair(mod, allowed):
    # Blocks of two positions: most hold pairs of both kinds.
    made = flex.create_block_mask(mod, B, H, 4, 6, device="cpu", BLOCK_SIZE=2)
    blocks = by_loop(allowed, B, H, 4, 6).unflatten(3, (3, 2)).unflatten(2, (2, 2))
    assert torch.equal(made.to_dense() != 0, blocks.any(-1).any(-2))
    inside = torch.zeros(B, H, 2, 3, dtype=torch.bool)
    for b, h, i in itertools.product(range(B), range(H), range(2)):
        full = made.full_kv_indices[b, h, i, : made.full_kv_num_blocks[b, h, i]]
        inside[b, h, i, full.long()] = True
    assert torch.equal(inside, blocks.all(-1).all(-2))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (sliding_window(4), flex.and_masks(causal, lambda b, h, i, j: i - j < 4)),
        (prefix_lm(2), flex.or_masks(causal, first_tokens(2))),
        (sliding_window(3), flex.and_masks(sliding_window(3), causal)),
        (first_tokens(2), flex.or_masks(first_tokens(2), first_tokens(1))),
        (padding(torch.tensor([2, 2])), first_tokens(2)),
        (first_tokens(3), shift(first_tokens(5), 4, 2)),
        (sliding_window(3), shift(sliding_window(3), 41, 41)),
        (shift(sliding_window(3), 2, 0), shift(sliding_window(3), 0, -2)),
    ],
    ids=range(8),
)
def test_mods_that_are_the_same_in_other_words(left, right):
    left, right = (flex.create_mask(m, B, H, L, S, device="cpu") for m in (left, right))
    assert torch.equal(left, right)


def test_shift_moves_score_mods_as_offsets_do(monkeypatch):
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    q, k, v = tensors()
    by_row = torch.tensor([4, 1])

    def weighted(score, b, h, q_idx, kv_idx, weight=0.5):
        return score + weight * q_idx * kv_idx

    learned = T5Bias(H).double()
    torch.nn.init.normal_(learned.table.weight)
    mods = (alibi(H), learned, weighted, partial(weighted, weight=2.0))
    for mod, start in itertools.product(mods, (3, by_row)):
        shifted = shift(mod, start, 1)
        expected = attention(q, k, v, score_mod=mod, query_offset=start, key_offset=1)
        unmoved = attention(q, k, v, score_mod=mod, query_offset=0, key_offset=0)
        assert not torch.allclose(expected, unmoved)
        told = attention(q, k, v, score_mod=shifted, query_offset=0, key_offset=0)
        assert torch.equal(told, expected)
        with torch.no_grad():  # on a CPU, Flex has no backward
            torch.testing.assert_close(flex.flex_attention(q, k, v, score_mod=shifted), expected)


@pytest.mark.parametrize("mod", [causal, flex.or_masks(causal, causal), shift(causal, 1, 1)])
def test_flex_takes_a_shifted_mask_mod_for_a_mask_mod(mod):
    assert flex._get_mod_type(shift(mod, 1, 2)).name == "MASK_MOD"


def test_the_masks_of_transformers_are_ours():
    theirs = pytest.importorskip("transformers.masking_utils")
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])  # LENGTHS
    packed = torch.tensor(BY_ROW)
    alike = {
        theirs.causal_mask_function: causal,
        theirs.sliding_window_causal_mask_function(3): sliding_window(3),
        theirs.sliding_window_causal_mask_function(1): sliding_window(1),
        theirs.packed_sequence_mask_function(packed): document(packed),
    }
    for mod, ours in alike.items():
        for start in (0, S - L):
            made = theirs.sdpa_mask(
                B,
                L,
                S,
                q_offset=start,
                mask_function=mod,
                attention_mask=attention_mask.bool(),
                allow_is_causal_skip=False,
            )
            padded = flex.and_masks(ours, padding(attention_mask.sum(-1)))
            expected = flex.create_mask(shift(padded, start, 0), B, 1, L, S, device="cpu")
            assert torch.equal(made, expected)


# --- what holds ---------------------------------------------------------------


def test_one_mod_serves_every_length():
    mod = padding(LENGTHS)
    for n in (S, 2, 11, S):
        q, k, v = tensors(n, n)
        for mask, allowed in ((causal, no_later), (mod, real)):
            expected = attention(q, k, v, mask=by_loop(allowed, B, H, n, n))
            assert torch.equal(attention(q, k, v, mask=mask), expected)


def test_a_key_has_influence_if_and_only_if_it_is_real():
    q, k, v = tensors()
    how = {"mask": padding(LENGTHS), "query_offset": 0, "key_offset": 0}
    before = attention(q, k, v, **how)
    for j in range(S):
        moved = v.clone()
        moved[:, :, j] += 1
        changed = (attention(q, k, moved, **how) != before).all(-1)
        assert torch.equal(changed, (j < LENGTHS)[:, None, None].expand(B, H, L))


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_junk_in_padding_has_no_influence_forward_or_backward(junk):
    lengths = torch.tensor([4, 0])
    q, k, v = tensors()
    k[0, :, 4:], k[1], v[0, :, 4:], v[1] = junk, junk, junk, junk
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, lse = attention(
        *inputs, mask=padding(lengths), query_offset=0, key_offset=0, return_lse=True
    )
    cut = [x.detach()[:1, :, :4].requires_grad_() for x in (k, v)]
    expected = attention(q[:1], *cut)
    torch.testing.assert_close(out[:1], expected)
    assert (out[1] == 0).all() and (lse[1] == -math.inf).all()
    ours = torch.autograd.grad(out.square().sum() + lse[0].sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in ours)
    assert (ours[0][1] == 0).all()
    for gradient in ours[1:]:
        assert (gradient[0, :, :4] != 0).all()
        assert (gradient[0, :, 4:] == 0).all() and (gradient[1] == 0).all()


def test_rows_longer_than_the_keys_see_all_of_them():
    q, k, v = tensors(S, S)
    assert torch.equal(attention(q, k, v, mask=padding(torch.tensor([S, 100]))), attention(q, k, v))


def test_padding_counts_positions_so_that_keys_may_be_split():
    q, k, v = tensors()
    mod = padding(LENGTHS)  # of the second part, only row 0 has a real key
    parts = [
        attention(
            q,
            k[:, :, cut],
            v[:, :, cut],
            mask=mod,
            query_offset=0,
            key_offset=cut.start,
            return_lse=True,
        )
        for cut in (slice(0, 4), slice(4, S))
    ]
    shares = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    merged = sum(share * out for share, (out, _) in zip(shares, parts, strict=True))
    expected = attention(q, k, v, mask=mod, query_offset=0, key_offset=0)
    torch.testing.assert_close(merged, expected)


def test_two_dimensions_are_the_first_row_of_the_batch():
    q, k, v = (x[0, 0] for x in tensors(S, S))
    expected = attention(q, k[:5], v[:5])
    torch.testing.assert_close(attention(q, k, v, mask=padding(LENGTHS)), expected)


def test_too_few_lengths_for_the_batch_raise():
    q, k, v = tensors(S, S)
    with pytest.raises(IndexError, match="out of bounds"):
        attention(q, k, v, mask=padding(LENGTHS[:1]))
    for mod in (document(torch.tensor(BY_ROW[:1])), shift(causal, torch.tensor([1]), 0)):
        with pytest.raises(IndexError, match="out of bounds"):
            attention(q, k, v, mask=mod)


@pytest.mark.parametrize(
    "mod",
    [
        sliding_window(3),
        prefix_lm(2),
        flex.and_masks(causal, document(torch.tensor(BY_ROW))),
        flex.and_masks(causal, flex.or_masks(sliding_window(2), first_tokens(1))),
    ],
    ids=["window", "prefix", "documents", "sinks"],
)
def test_keys_may_be_split_anywhere_and_merged(mod):
    q, k, v = tensors()
    start = S - L
    expected = attention(q, k, v, mask=mod, query_offset=start, key_offset=0)
    for cut in range(1, S):
        parts = []
        for part in (slice(0, cut), slice(cut, S)):
            where = {"query_offset": start, "key_offset": part.start}
            cut_k, cut_v = k[:, :, part], v[:, :, part]
            parts.append(attention(q, cut_k, cut_v, mask=mod, **where, return_lse=True))
            kept = flex.create_mask(shift(mod, *where.values()), B, 1, L, len(k[0, 0, part]), "cpu")
            assert torch.equal(attention(q, cut_k, cut_v, mask=kept), parts[-1][0])
        lses = torch.stack([lse for _, lse in parts])
        shares = (lses - lses.logsumexp(0)).exp().nan_to_num()[..., None]
        merged = sum(share * out for share, (out, _) in zip(shares, parts, strict=True))
        torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize(
    "mod",
    [causal, sliding_window(3), flex.and_masks(causal, document(torch.tensor(BY_ROW)))],
    ids=["causal", "window", "documents"],
)
def test_a_cache_gives_token_by_token_what_the_whole_gives_at_once(mod):
    q, k, v = tensors(S, S)
    whole = attention(q, k, v, mask=mod)
    for n in range(S):
        newest = q[:, :, n : n + 1]
        where = {"query_offset": n, "key_offset": 0}
        out = attention(newest, k[:, :, : n + 1], v[:, :, : n + 1], mask=mod, **where)
        torch.testing.assert_close(out, whole[:, :, n : n + 1])


def test_a_window_needs_no_more_keys_than_its_size():
    q, k, v = tensors(S, S)
    whole = attention(q, k, v, mask=sliding_window(3))
    for n in range(2, S):
        kept = slice(n - 2, n + 1)
        where = {"query_offset": n, "key_offset": n - 2}
        newest = q[:, :, n : n + 1]
        out = attention(newest, k[:, :, kept], v[:, :, kept], mask=sliding_window(3), **where)
        torch.testing.assert_close(out, whole[:, :, n : n + 1])
        torch.testing.assert_close(out, attention(newest, k[:, :, kept], v[:, :, kept]))


def test_packed_documents_are_what_they_are_alone():
    q, k, v = tensors(S, S)
    ids = torch.tensor([0, 0, 0, 4, 4, 1, 1])
    together = attention(q, k, v, mask=flex.and_masks(causal, document(ids)))
    parts = [[x[:, :, ids == n] for x in (q, k, v)] for n in (0, 4, 1)]
    alone = torch.cat([attention(*part, mask=causal) for part in parts], dim=2)
    torch.testing.assert_close(together, alone)


def test_a_position_in_no_document_gets_zeros_and_a_finite_gradient():
    inputs = tensors(S, S, requires_grad=True)
    out, lse = attention(*inputs, mask=document(torch.tensor(APART)), return_lse=True)
    assert (out[:, :, 5:] == 0).all() and (lse[:, :, 5:] == -math.inf).all()
    assert (out[:, :, :5] != 0).all()
    for gradient in torch.autograd.grad(out.square().sum(), inputs):
        assert gradient.isfinite().all() and (gradient[:, :, 5:] == 0).all()


# --- transforms ------------------------------------------------------------------


def test_vmap_over_heads_keeps_the_rows_of_the_batch():
    q, k, v = (x.transpose(0, 1)[:, :, None] for x in tensors(S, S))  # (H, B, 1, S, D)
    mod = flex.and_masks(causal, padding(LENGTHS))
    mapped = torch.vmap(lambda q, k, v: attention(q, k, v, mask=mod))(q, k, v)
    expected = attention(*(x[:, :, 0].transpose(0, 1) for x in (q, k, v)), mask=mod)
    torch.testing.assert_close(mapped[:, :, 0].transpose(0, 1), expected)


def test_torch_compile_follows_lengths_documents_and_offsets_that_change():
    def f(q, k, v, lengths, ids, start):
        mod = flex.and_masks(causal, padding(lengths), shift(document(ids), start, start))
        return attention(q, k, v, mask=mod)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    for n, lengths in ((5, [5, 3]), (7, [2, 7]), (11, [0, 10]), (7, [7, 1])):
        documents = torch.randint(3, (B, n)), torch.randint(-2, 3, (B,))
        inputs = (*tensors(n, n), torch.tensor(lengths), *documents)
        torch.testing.assert_close(compiled(*inputs), f(*inputs))


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([3, 1], TypeError, "^lengths must be a tensor of int32 or int64, got list$"),
        (3, TypeError, "^lengths must be a tensor of int32 or int64, got int$"),
        (torch.tensor([3.0, 1.0]), TypeError, "^lengths must be .* got torch.float32$"),
        (torch.tensor([True, False]), TypeError, "^lengths must be .* got torch.bool$"),
        (torch.tensor([3, 1], dtype=torch.int16), TypeError, "^lengths .* got torch.int16$"),
        (torch.tensor([3, 1], dtype=torch.uint8), TypeError, "^lengths .* got torch.uint8$"),
        (torch.tensor(3), ValueError, r"^lengths must be \(B,\), got shape \(\)$"),
        (torch.tensor([[3, 1]]), ValueError, r"^lengths must be \(B,\), got shape \(1, 2\)$"),
        (torch.tensor([3, -1]), ValueError, r"^lengths must be at least 0, got \[3, -1\]$"),
    ],
)
def test_padding_names_bad_lengths(lengths, error, message):
    with pytest.raises(error, match=message):
        padding(lengths)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sliding_window(0), ValueError, "^size=0 must be at least 1$"),
        (lambda: sliding_window(-3), ValueError, "^size=-3 must be at least 1$"),
        (lambda: sliding_window(2.0), TypeError, r"^size must be an integer, got 2\.0$"),
        (lambda: sliding_window(True), TypeError, "^size must be an integer, got True$"),
        (lambda: sliding_window(None), TypeError, "^size must be an integer, got None$"),
        (lambda: first_tokens(-1), ValueError, "^n=-1 must be at least 0$"),
        (lambda: first_tokens("1"), TypeError, "^n must be an integer, got '1'$"),
        (lambda: prefix_lm(-2), ValueError, "^n=-2 must be at least 0$"),
        (lambda: prefix_lm(torch.tensor(1)), TypeError, r"^n must be an integer, got tensor\(1\)$"),
        (lambda: document([0, 0, 1]), TypeError, "^ids must be a tensor of int32 .* got list$"),
        (lambda: document(torch.tensor([0.0])), TypeError, "^ids must .* got torch.float32$"),
        (lambda: document(torch.tensor([True])), TypeError, "^ids must .* got torch.bool$"),
        (lambda: document(torch.tensor(1)), ValueError, r"^ids must be \(T,\) or \(B, T\).*\(\)$"),
        (lambda: document(torch.zeros(1, 2, 3).int()), ValueError, r"^ids .* shape \(1, 2, 3\)$"),
        (lambda: document(torch.zeros(0).int()), ValueError, r"^ids .* shape \(0,\)$"),
        (lambda: document(torch.zeros(0, 3).int()), ValueError, r"^ids .* shape \(0, 3\)$"),
        (lambda: shift(3, 0, 0), TypeError, "^mod must be a function, got int$"),
        (lambda: shift(torch.ones(2, 2) > 0, 0, 0), TypeError, "^mod must be .* got torch.bool$"),
        (lambda: shift(causal, 1.0, 0), TypeError, "^q must be .* got float$"),
        (lambda: shift(causal, True, 0), TypeError, "^q must be .* got bool$"),
        (lambda: shift(causal, 0, None), TypeError, "^kv must be .* got NoneType$"),
        (lambda: shift(causal, 0, torch.tensor([0.5])), TypeError, "^kv .* got torch.float32$"),
        (lambda: shift(causal, torch.tensor(1), 0), ValueError, r"^q must be .*\(B,\), got \(\)$"),
        (lambda: shift(causal, 0, torch.ones(2, 1).int()), ValueError, r"^kv .*, got \(2, 1\)$"),
    ],
)
def test_the_arguments_of_a_mask_are_checked(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- the page -----------------------------------------------------------------------


def test_each_line_of_the_translations_stands_in_code_that_runs():
    page = parse(Path(__file__).parents[1] / "docs/masks.md")
    _, _, translations = page.text.partition("\n## Carried over\n")
    table = [line for line in translations.split("\n") if line.startswith("| ")]
    lines = [re.findall("`([^`]+)`", line.split("|")[2]) for line in table[2:]]
    code = " ".join(fence.source for fence in page.fences if fence.lang == "python")
    code = re.sub(r"\s+", "", code)
    assert len(lines) > 10 and all(lines)
    for line in itertools.chain(*lines):
        assert re.sub(r"\s+", "", line) in code, line
