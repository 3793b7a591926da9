"""Mask mods: by hand, against loops and torch, what holds, errors.

Sizes are prime and differ, so that swapped indices fail.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention as flex

from attention import attention, attention_weights, causal, padding

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


# Each mod beside what it says in Python's own numbers.
CASES = {
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


# --- against loops and torch ----------------------------------------------------


@EVERY
def test_scalars_vmap_broadcasting_and_create_mask_say_the_same(mod, allowed):
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
def test_junk_in_the_filling_has_no_influence_forward_or_backward(junk):
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


def test_too_few_lengths_for_the_batch_do_not_pass_in_silence():
    q, k, v = tensors(S, S)
    with pytest.raises(IndexError, match="out of bounds"):
        attention(q, k, v, mask=padding(LENGTHS[:1]))


# --- transforms ------------------------------------------------------------------


def test_vmap_over_heads_keeps_the_rows_of_the_batch():
    q, k, v = (x.transpose(0, 1)[:, :, None] for x in tensors(S, S))  # (H, B, 1, S, D)
    mod = flex.and_masks(causal, padding(LENGTHS))
    mapped = torch.vmap(lambda q, k, v: attention(q, k, v, mask=mod))(q, k, v)
    expected = attention(*(x[:, :, 0].transpose(0, 1) for x in (q, k, v)), mask=mod)
    torch.testing.assert_close(mapped[:, :, 0].transpose(0, 1), expected)


def test_torch_compile_follows_lengths_that_change():
    def f(q, k, v, lengths):
        return attention(q, k, v, mask=flex.and_masks(causal, padding(lengths)))

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    for n, lengths in ((5, [5, 3]), (7, [2, 7]), (11, [0, 10]), (7, [7, 1])):
        inputs = (*tensors(n, n), torch.tensor(lengths))
        torch.testing.assert_close(compiled(*inputs), f(*inputs))


def test_torch_compile_takes_a_mod_made_outside():
    mod = padding(LENGTHS)
    q, k, v = tensors(S, S)
    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v, mask=mod), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, mask=mod))


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
def test_wrong_lengths_are_named_with_what_came(lengths, error, message):
    with pytest.raises(error, match=message):
        padding(lengths)
