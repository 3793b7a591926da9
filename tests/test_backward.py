"""The backward pass: by hand, against autograd and finite differences, what holds, errors.

Sizes are prime and differ, so that swapped axes fail; H alone is a multiple of H_kv.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention.flex_attention import create_block_mask

from attention import attention, attention_backward, attention_weights, causal, padding

B, H_KV, H, L, S, D, DV = 2, 3, 6, 5, 7, 11, 13
NAMES = ("query", "key", "value")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tensors(length=L, source=S, *, heads=H, kv_heads=H_KV, **options):
    """A random query, key, value and gradient of the output, in float64."""
    options = {"dtype": torch.float64} | options
    return (
        torch.randn(B, heads, length, D, **options),
        torch.randn(B, kv_heads, source, D, **options),
        torch.randn(B, kv_heads, source, DV, **options),
        torch.randn(B, heads, length, DV, **options),
    )


def by_autograd(query, key, value, grad_out, **how):
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    return torch.autograd.grad(attention(*inputs, **how), inputs, grad_out)


def odd(b, h, q_idx, kv_idx):
    """Depends on all four indices; hides all keys from some queries."""
    return (q_idx + 2 * kv_idx + b + h) % 3 == 0


def some_mask(*shape):
    """A random mask in which the first query of every head sees nothing."""
    mask = torch.rand(shape) < 0.5
    mask[..., 0, :] = False
    return mask


# --- by hand ------------------------------------------------------------------


def test_the_gradients_of_three_quarters_and_a_quarter():
    query = torch.tensor([[math.log(3), 0.0]])
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # scores log 3 and 0: weights 3/4 and 1/4
    value = torch.tensor([[4.0], [8.0]])  # the output is 5
    found = attention_backward(query, key, value, torch.tensor([[2.0]]), scale=1)
    # Gradients of the scores: 3/4 (4 - 5) 2 and 1/4 (8 - 5) 2, which is -3/2 and 3/2.
    for gradient, expected in zip(
        found,
        (
            [[-1.5, 1.5]],
            [[-1.5 * math.log(3), 0.0], [1.5 * math.log(3), 0.0]],
            [[1.5], [0.5]],
        ),
        strict=True,
    ):
        torch.testing.assert_close(gradient, torch.tensor(expected))


def test_of_a_single_key_only_the_value_learns():
    query, key, value = torch.randn(3, 2), torch.randn(1, 2), torch.randn(1, 4)
    grad_out = torch.randn(3, 4)
    found = attention_backward(query, key, value, grad_out)
    # delta is a sum of 4 products in float32, and so is what it is taken from.
    torch.testing.assert_close(found[0], torch.zeros(3, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], torch.zeros(1, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], grad_out.sum(0, keepdim=True))


# --- against autograd and finite differences ---------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([None, 1, 2, 3]),
    length=st.integers(0, 5),
    source=st.integers(0, 6),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (6, 3)]),
    head_dim=st.integers(1, 4),
    value_dim=st.integers(1, 5),
    mask=st.sampled_from([None, "(L, S)", "full", "keys", "causal", "odd", "padding", "block"]),
    query_offset=st.integers(-2, 5),
    key_offset=st.sampled_from([0, 3, "by row"]),
    scale=st.sampled_from([None, 1, 0.3]),
    seed=st.integers(0, 1000),
)
def test_autograd_gives_the_same(
    batch,
    length,
    source,
    heads,
    head_dim,
    value_dim,
    mask,
    query_offset,
    key_offset,
    scale,
    seed,
):
    torch.manual_seed(seed)
    n_heads, n_kv_heads = heads if batch else (1, 1)
    rows = batch or 1
    query, key, value, grad_out = (
        torch.randn(rows, *shape, dtype=torch.float64)
        for shape in (
            (n_heads, length, head_dim),
            (n_kv_heads, source, head_dim),
            (n_kv_heads, source, value_dim),
            (n_heads, length, value_dim),
        )
    )
    how = {"scale": scale}
    if mask == "(L, S)":
        how["mask"] = torch.rand(length, source) < 0.5
    elif mask == "full" and batch:
        how["mask"] = torch.rand(batch, n_heads, length, source) < 0.5
    elif mask == "keys" and batch:
        how["mask"] = torch.rand(batch, 1, 1, source) < 0.7
    elif mask in ("causal", "odd", "padding", "block"):
        mods = {"causal": causal, "odd": odd, "padding": padding(torch.arange(rows) + 1)}
        block = mask == "block" and min(length, source) > 0
        how["mask"] = (
            create_block_mask(odd, rows, n_heads, length, source, device="cpu")
            if block
            else mods.get(mask, odd)
        )
        by_row = torch.arange(rows) - 1 if batch else 1
        how["query_offset"] = query_offset
        how["key_offset"] = by_row if key_offset == "by row" else key_offset
    if batch is None:
        query, key, value, grad_out = (x[0, 0] for x in (query, key, value, grad_out))
    found = attention_backward(query, key, value, grad_out, **how)
    expected = by_autograd(query, key, value, grad_out, **how)
    torch.testing.assert_close(found, expected)


class Attention(torch.autograd.Function):
    """attention, whose backward pass is attention_backward."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        ctx.save_for_backward(query, key, value)
        ctx.mask = mask
        return attention(query, key, value, mask=mask, scale=0.7)

    @staticmethod
    def backward(ctx, grad_out):
        found = attention_backward(*ctx.saved_tensors, grad_out, mask=ctx.mask, scale=0.7)
        return (*found, None)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_both_orders_match_finite_differences(masked):
    q = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, 1, 5, 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 1, 5, 3, dtype=torch.float64, requires_grad=True)
    mask = some_mask(1, 2, 3, 5)
    mask[..., 4] = False  # a key that nobody sees
    mask = mask if masked else None
    assert gradcheck(lambda *x: Attention.apply(*x, mask), (q, k, v))
    assert gradgradcheck(lambda *x: Attention.apply(*x, mask), (q, k, v))


def test_the_second_derivatives_are_those_of_autograd():
    *inputs, grad_out = tensors(requires_grad=True)
    how = {"mask": some_mask(B, H, L, S)}
    found = attention_backward(*inputs, grad_out, **how)
    expected = torch.autograd.grad(attention(*inputs, **how), inputs, grad_out, create_graph=True)
    torch.testing.assert_close(found, expected)
    upstream = [torch.randn_like(x) for x in inputs]
    torch.testing.assert_close(
        torch.autograd.grad(found, [*inputs, grad_out], upstream),
        torch.autograd.grad(expected, [*inputs, grad_out], upstream),
    )


# --- what holds ---------------------------------------------------------------


def test_the_gradient_of_the_output_goes_in_linearly():
    query, key, value, first = tensors()
    second = torch.randn_like(first)
    how = {"mask": some_mask(L, S)}
    parts = [attention_backward(query, key, value, g, **how) for g in (first, second)]
    both = attention_backward(query, key, value, first + 2 * second, **how)
    for a, b, c in zip(*parts, both, strict=True):
        torch.testing.assert_close(a + 2 * b, c)
    for gradient in attention_backward(query, key, value, torch.zeros_like(first)):
        assert (gradient == 0).all()


def test_the_gradients_of_the_keys_of_a_head_sum_to_zero():
    # The same vector added to every key changes no weight.
    _, grad_key, _ = attention_backward(*tensors(), mask=some_mask(B, H, L, S))
    torch.testing.assert_close(grad_key.sum(2), torch.zeros(B, H_KV, D, dtype=torch.float64))


def test_the_gradient_of_the_values_is_the_weights_that_read_them():
    query, key, value, grad_out = tensors(kv_heads=H)
    mask = some_mask(L, S)
    weights = attention_weights(query, key, mask=mask)
    found = attention_backward(query, key, value, grad_out, mask=mask)[2]
    torch.testing.assert_close(found, torch.einsum("bhls,bhlv->bhsv", weights, grad_out))


def test_query_heads_that_share_a_key_add_up_their_gradients():
    query, key, value, grad_out = tensors()
    shared = attention_backward(query, key, value, grad_out)
    for group in range(H_KV):
        heads = slice(2 * group, 2 * group + 2)
        alone = [
            attention_backward(
                query[:, h, None], key[:, group, None], value[:, group, None], grad_out[:, h, None]
            )
            for h in range(heads.start, heads.stop)
        ]
        torch.testing.assert_close(shared[0][:, heads], torch.cat([x[0] for x in alone], 1))
        torch.testing.assert_close(shared[1][:, group], sum(x[1][:, 0] for x in alone))
        torch.testing.assert_close(shared[2][:, group], sum(x[2][:, 0] for x in alone))


def test_two_dimensions_are_one_batch_row_and_one_head():
    flat = [x[0, 0] for x in tensors()]
    how = {"mask": causal, "query_offset": 2, "key_offset": 1, "scale": 2}
    found = attention_backward(*flat, **how)
    expected = attention_backward(*(x[None, None] for x in flat), **how)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs[0, 0])


def test_nothing_is_tracked_unless_the_inputs_are():
    inputs = tensors()
    before = [x.clone() for x in inputs]
    assert not any(x.requires_grad for x in attention_backward(*inputs))
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    inputs[0].requires_grad_()
    assert all(x.requires_grad for x in attention_backward(*inputs)[:2])


@pytest.mark.parametrize(("length", "source"), [(0, S), (L, 0), (0, 0)])
def test_no_queries_and_no_keys(length, source):
    inputs = tensors(length, source)
    found = attention_backward(*inputs)
    for gradient, x in zip(found, inputs[:3], strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


# --- nothing to see, and not to be seen -------------------------------------------


def test_a_query_that_sees_nothing_gets_zeros_and_gives_none():
    query, key, value, grad_out = tensors()
    mask = some_mask(L, S)
    found = attention_backward(query, key, value, grad_out, mask=mask)
    assert (found[0][:, :, 0] == 0).all()
    assert (found[0][:, :, 1:] != 0).any(-1).all()
    rest = [x[:, :, 1:] for x in (query, grad_out)]
    expected = attention_backward(rest[0], key, value, rest[1], mask=mask[1:])
    torch.testing.assert_close(found[1:], expected[1:])
    assert all(
        (x == 0).all()
        for x in attention_backward(query, key, value, grad_out, mask=torch.zeros_like(mask))
    )


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_mod", [False, True])
def test_junk_in_a_key_that_nobody_sees_has_no_influence(junk, as_mod):
    query, key, value, grad_out = tensors()
    hidden, visible = [1, S - 1], [0, 2, 3, 4, 5]
    key[:, :, hidden], value[:, :, hidden] = junk, junk
    mask = torch.ones(L, S, dtype=torch.bool)
    mask[:, hidden] = False
    how = {"mask": mask}
    if as_mod:
        how = {"mask": lambda b, h, i, j: mask[i, j], "query_offset": 0, "key_offset": 0}
    inputs = [x.requires_grad_() for x in (query, key, value, grad_out)]
    found = attention_backward(*inputs, **how)
    seen = [x.detach()[:, :, visible].requires_grad_() for x in (key, value)]
    expected = attention_backward(query, *seen, grad_out)
    torch.testing.assert_close(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours[:, :, visible], theirs)
        assert (ours[:, :, hidden] == 0).all()
    second = torch.autograd.grad(sum(x.square().sum() for x in found), inputs)
    assert all(x.isfinite().all() for x in second)
    assert all((x[:, :, hidden] == 0).all() for x in second[1:3])


def test_junk_hidden_from_one_query_head_stays_out_of_that_head():
    query, key, value, grad_out = tensors()
    key[:, 0, 3], value[:, 0, 3] = math.nan, math.nan
    mask = torch.ones(1, H, 1, S, dtype=torch.bool)
    mask[:, 0, :, 3] = False  # of the two heads that read key head 0, the first
    found = attention_backward(query, key, value, grad_out, mask=mask)
    assert found[0][:, 0].isfinite().all()
    assert found[0][:, 1].isnan().all()
    assert found[0][:, 2:].isfinite().all()
    assert all(x[:, 1:].isfinite().all() for x in found[1:])


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_junk_in_a_query_that_sees_nothing_reaches_no_gradient(junk):
    query, key, value, grad_out = tensors()
    mask = some_mask(L, S)
    expected = attention_backward(query, key, value, grad_out, mask=mask)
    query[:, :, 0] = junk
    found = attention_backward(query, key, value, grad_out, mask=mask)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_junk_in_the_gradient_of_a_query_that_sees_nothing_reaches_no_gradient(junk):
    query, key, value, grad_out = tensors()
    mask = some_mask(L, S)
    expected = attention_backward(query, key, value, grad_out, mask=mask)
    grad_out[:, :, 0] = junk
    found = attention_backward(query, key, value, grad_out, mask=mask)
    assert (found[0][:, :, 0] == 0).all()
    torch.testing.assert_close(found, expected)


# --- precision --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    inputs = tensors(dtype=dtype)
    found = attention_backward(*inputs)
    expected = attention_backward(*(x.float() for x in inputs))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs.to(dtype))


def test_products_beyond_the_range_of_float16_do_not_overflow():
    query, key, value, grad_out = (300 * x for x in tensors(dtype=torch.float16))
    # A key 300 times as large, and in the end a result that float16 can hold.
    found = attention_backward(query, key, value / 300, grad_out / 300, scale=1e-6)
    assert all(x.isfinite().all() for x in found)


def test_autocast_changes_nothing():
    inputs = tensors(dtype=torch.float32)
    expected = attention_backward(*inputs, mask=some_mask(L, S))
    torch.manual_seed(0)
    inputs = tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_backward(*inputs, mask=some_mask(L, S))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


# --- transforms ------------------------------------------------------------------


def test_vmap_over_batch_and_heads_gives_what_four_dimensions_do():
    inputs = tensors(kv_heads=H)
    how = {"mask": causal, "query_offset": S - L, "key_offset": 0}
    one = torch.vmap(torch.vmap(lambda *x: attention_backward(*x, **how)))
    torch.testing.assert_close(one(*inputs), attention_backward(*inputs, **how))


def test_torch_compile_takes_the_whole_of_it_in_one_graph_at_every_length():
    def f(*inputs):
        return attention_backward(*inputs, mask=causal, query_offset=2, key_offset=0)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    for length, source in ((5, 7), (3, 11), (7, 5)):
        inputs = tensors(length, source)
        torch.testing.assert_close(compiled(*inputs), f(*inputs))


# --- errors -------------------------------------------------------------------------

Q, K, V, G = tensors()
MASK = torch.ones(L, S, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"grad_out": [1.0]}, TypeError, "^grad_out must .* got list$"),
        ({"grad_out": None}, TypeError, "^grad_out must .* got NoneType$"),
        ({"grad_out": G.numpy()}, TypeError, "^grad_out must .* got ndarray$"),
        (
            {"grad_out": G[..., 1:]},
            ValueError,
            r"^grad_out must have the output's shape \(2, 6, 5, 13\), got \(2, 6, 5, 12\)$",
        ),
        ({"grad_out": G[:, :, :1]}, ValueError, r"\(2, 6, 5, 13\), got \(2, 6, 1, 13\)$"),
        ({"grad_out": G[:, :1]}, ValueError, r"\(2, 6, 5, 13\), got \(2, 1, 5, 13\)$"),
        ({"grad_out": G[0, 0]}, ValueError, r"\(2, 6, 5, 13\), got \(5, 13\)$"),
        ({"grad_out": torch.tensor(1.0)}, ValueError, r"\(2, 6, 5, 13\), got \(\)$"),
        (
            {"grad_out": G.float()},
            ValueError,
            "^grad_out must share the dtype of query, torch.float64, got torch.float32$",
        ),
        ({"grad_out": G.long()}, TypeError, "^grad_out must be a tensor of .* got torch.int64$"),
        (
            {"grad_out": G.to("meta")},
            ValueError,
            "^grad_out must share the device of query, cpu, got meta$",
        ),
        ({"query": [1.0]}, TypeError, "^query must be a tensor of float16.* got list$"),
        ({"key": K.long()}, TypeError, "^key must be .* got torch.int64$"),
        ({"query": Q[0]}, ValueError, r"must all be \(L, D\) or all \(B, H, L, D\), got query"),
        ({"value": V[:, :, 1:]}, ValueError, "^value must have one row for each row of key"),
        ({"value": V.float()}, ValueError, "^query, key, value must share one dtype"),
        ({"query": Q[:, :4]}, ValueError, "H=4, must be a multiple of .* H_kv=3, got"),
        ({"scale": 0}, ValueError, "^scale=0 must be finite and above 0$"),
        ({"scale": True}, TypeError, "^scale must be a number or None, got bool$"),
        ({"mask": MASK.float()}, TypeError, "^mask must be Boolean.* got torch.float32"),
        ({"mask": MASK.T}, ValueError, r"^mask must be \(L, S\) = \(5, 7\).* got \(7, 5\)$"),
        ({"mask": causal}, ValueError, "^query_offset is missing: where L=5 and S=7"),
    ],
)
def test_bad_input_is_named_with_what_came(changed, error, message):
    with pytest.raises(error, match=message):
        attention_backward(**({"query": Q, "key": K, "value": V, "grad_out": G} | changed))
