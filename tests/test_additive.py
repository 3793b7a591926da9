"""Additive attention: by hand, against loops, what holds, errors.

Sizes are prime and differ, so that swapped axes fail.
"""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.nn.attention.flex_attention import and_masks, create_block_mask

from attention import AdditiveAttention, causal, padding

B, L, S, D_QUERY, D_KEY, D_HIDDEN, DV = 2, 5, 7, 3, 11, 13, 17


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(d_query=D_QUERY, d_key=D_KEY, d_hidden=D_HIDDEN):
    """A layer in float64 with weights large enough to bend the tanh and part the scores."""
    layer = AdditiveAttention(d_query, d_key, d_hidden).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def tensors(*batch, length=L, source=S, **options):
    options = {"dtype": torch.float64} | options
    return (
        torch.randn(*batch, length, D_QUERY, **options),
        torch.randn(*batch, source, D_KEY, **options),
        torch.randn(*batch, source, DV, **options),
    )


def dot(x, y):
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def by_loop(layer, query, key, value, allowed=None):
    """One row of the batch in Python's own numbers, after Bahdanau et al.: weights and output."""
    w_query, w_key, (v,) = (part.weight.tolist() for part in (layer.query, layer.key, layer.score))
    weights = torch.zeros(len(query), len(key), dtype=torch.float64)
    for i, q in enumerate(query.tolist()):
        shares = {}
        for j, k in enumerate(key.tolist()):
            if allowed is None or allowed(i, j):
                rows = zip(w_query, w_key, strict=True)
                hidden = [math.tanh(dot(a, q) + dot(b, k)) for a, b in rows]
                shares[j] = math.exp(dot(v, hidden))
        for j, share in shares.items():
            weights[i, j] = share / math.fsum(shares.values())
    out = torch.zeros(len(query), value.shape[1], dtype=torch.float64)
    for i in range(len(query)):
        for d in range(value.shape[1]):
            out[i, d] = dot(weights[i].tolist(), value[:, d].tolist())
    return weights, out


def gradients(out, upstream, layer, *xs):
    return torch.autograd.grad(out, [*xs, *layer.parameters()], upstream)


# --- by hand ------------------------------------------------------------------


def test_a_key_that_scores_log_3_above_another_takes_three_quarters():
    layer = AdditiveAttention(1, 1, 1)
    with torch.no_grad():
        for part, weight in (
            (layer.query, 2.0),
            (layer.key, -1.0),
            (layer.score, 2 * math.log(3)),
        ):
            part.weight.fill_(weight)
    query = torch.tensor([[1.5]])
    key = torch.tensor([[3 - math.atanh(0.5)], [3.0]])  # tanh of 3 - key: 1/2 and 0
    value = torch.tensor([[4.0, 0.0], [8.0, 1.0]])
    torch.testing.assert_close(layer.weights(query, key), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(layer(query, key, value), torch.tensor([[5.0, 0.25]]))


# --- against loops and finite differences ---------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([None, 1, 2, 3]),
    length=st.integers(0, 4),
    source=st.integers(0, 5),
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_plain_loop_gives_the_same(batch, length, source, sizes, masked, seed):
    torch.manual_seed(seed)
    d_query, d_key, d_hidden, d_value = sizes
    layer, shape = made(d_query, d_key, d_hidden), () if batch is None else (batch,)
    query, key, value = (
        torch.randn(*shape, n, d, dtype=torch.float64)
        for n, d in ((length, d_query), (source, d_key), (source, d_value))
    )
    mask = torch.rand(batch or 1, 1, length, source) < 0.5
    how = {}
    if masked:
        how["mask"] = mask if batch else mask[0, 0]
    weights, out = layer.weights(query, key, **how), layer(query, key, value, **how)
    rows = zip(query, key, value, strict=True) if batch else [(query, key, value)]
    expected = [
        by_loop(layer, *row, allowed=(lambda i, j, m=m: m[0, i, j]) if masked else None)
        for row, m in zip(rows, mask, strict=True)
    ]
    torch.testing.assert_close(
        weights, torch.stack([w for w, _ in expected]).view(*shape, length, source)
    )
    torch.testing.assert_close(
        out, torch.stack([o for _, o in expected]).view(*shape, length, d_value)
    )


def odd(b, h, q_idx, kv_idx):
    """Depends on row and positions; hides all keys from some queries."""
    return (q_idx + 2 * kv_idx + b) % 3 == 0


@pytest.mark.parametrize(
    ("mod", "query_offset", "key_offset"),
    [
        (causal, 2, 0),
        (odd, 4, -1),
        (odd, torch.tensor([4, 6]), torch.tensor([0, 1])),
        (padding(torch.tensor([3, 0])), 0, 0),
        (and_masks(causal, padding(torch.tensor([5, 2]))), 1, 0),
        (create_block_mask(odd, B, 1, L, S, device="cpu"), 0, 0),
    ],
)
def test_a_plain_loop_gives_the_same_with_every_mod(mod, query_offset, key_offset):
    layer, (query, key, value) = made(), tensors(B)
    how = {"mask": mod, "query_offset": query_offset, "key_offset": key_offset}
    weights, out = layer.weights(query, key, **how), layer(query, key, value, **how)
    mod = getattr(mod, "mask_mod", mod)
    starts = [torch.as_tensor(o).expand(B).tolist() for o in (query_offset, key_offset)]
    for b in range(B):

        def allowed(i, j, b=b):
            return mod(*(torch.tensor(n) for n in (b, 0, i + starts[0][b], j + starts[1][b])))

        expected = by_loop(layer, query[b], key[b], value[b], allowed)
        torch.testing.assert_close((weights[b], out[b]), expected)


@pytest.mark.parametrize("shape", [(L, S), (B, 1, L, S), (1, 1, L, S), (B, 1, 1, S), (1, 1, L, 1)])
def test_masks_have_the_shapes_that_attention_takes(shape):
    layer, (query, key, value) = made(), tensors(B)
    mask = torch.rand(shape) < 0.5
    full = mask.expand(B, 1, L, S)
    out = layer(query, key, value, mask=mask)
    for b in range(B):
        _, expected = by_loop(layer, query[b], key[b], value[b], lambda i, j, b=b: full[b, 0, i, j])
        torch.testing.assert_close(out[b], expected)


def test_derivatives_of_both_orders_match_finite_differences():
    layer = made(2, 3, 2)
    names = [name for name, _ in layer.named_parameters()]
    mask = torch.tensor([[True, True, False], [False, False, False]])  # one key, one query

    def f(query, key, value, *weights):
        state = dict(zip(names, weights, strict=True))
        return functional_call(layer, state, (query, key, value), {"mask": mask})

    xs = [
        torch.randn(n, d, dtype=torch.float64, requires_grad=True)
        for n, d in ((2, 2), (3, 3), (3, 2))
    ]
    assert gradcheck(f, (*xs, *layer.parameters()))
    assert gradgradcheck(f, (*xs, *layer.parameters()))


# --- what holds ---------------------------------------------------------------


def test_the_output_is_the_weights_times_the_values_and_rows_sum_to_one():
    layer, (query, key, value) = made(), tensors(B)
    weights = layer.weights(query, key)
    assert weights.shape == (B, L, S)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, L, dtype=torch.float64))
    torch.testing.assert_close(layer(query, key, value), weights @ value)


def test_two_dimensions_are_one_row_of_a_batch():
    layer, (query, key, value) = made(), tensors()
    mask = torch.rand(L, S) < 0.5
    lifted = [x[None] for x in (query, key, value)]
    torch.testing.assert_close(layer(query, key, value, mask=mask), layer(*lifted, mask=mask)[0])
    torch.testing.assert_close(
        layer.weights(query, key, mask=mask), layer.weights(*lifted[:2], mask=mask)[0]
    )


def test_permuting_the_keys_with_their_values_changes_nothing():
    layer, (query, key, value) = made(), tensors(B)
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        layer(query, key[:, order], value[:, order]), layer(query, key, value)
    )


def test_a_key_has_influence_if_and_only_if_the_mask_lets_it():
    layer, (query, key, value) = made(), tensors(B)
    how = {"mask": causal, "query_offset": 0, "key_offset": 0}
    before, out = layer.weights(query, key, **how), layer(query, key, value, **how)
    for j in range(S):
        moved_key, moved = key.clone(), value.clone()
        moved_key[:, j] += 1
        moved[:, j] += 1
        allowed = (torch.arange(L) >= j).expand(B, L)
        changed = (layer(query, key, moved, **how) != out).all(-1)
        assert torch.equal(changed, allowed)
        # The first query sees one key, whose weight is 1 whatever it is.
        changed = (layer.weights(query, moved_key, **how) != before).any(-1)
        assert torch.equal(changed[:, 1:], allowed[:, 1:])


def test_a_module_serves_every_length():
    layer, (query, key, value) = made(), tensors(B, source=11)
    for n in (7, 2, 11, 1):
        how = {"mask": padding(torch.tensor([n, n])), "query_offset": 0, "key_offset": 0}
        expected = layer(query, key[:, :n], value[:, :n])
        torch.testing.assert_close(layer(query, key, value, **how), expected)


def test_a_query_that_sees_nothing_gets_zeros_and_gives_zero_gradients():
    layer, xs = made(), tensors(B, requires_grad=True)
    mask = torch.rand(B, 1, L, S) < 0.5
    mask[:, :, 1] = False
    mask[:, :, 2] = True
    out = layer(*xs, mask=mask)
    assert (out[:, 1] == 0).all()
    assert (layer.weights(*xs[:2], mask=mask)[:, 1] == 0).all()
    found = gradients(out, torch.randn_like(out), layer, *xs)
    assert all(gradient.isfinite().all() for gradient in found)
    assert (found[0][:, 1] == 0).all()
    assert (found[0][:, 2] != 0).all()
    out = layer(*xs, mask=torch.zeros_like(mask))
    found = gradients(out, torch.randn_like(out), layer, *xs)
    assert all((gradient == 0).all() for gradient in (out, *found))


def test_no_queries_give_nothing_and_no_keys_give_zeros():
    layer = made()
    assert layer(*tensors(B, length=0)).shape == (B, 0, DV)
    assert torch.equal(layer(*tensors(B, source=0)), torch.zeros(B, L, DV, dtype=torch.float64))
    assert layer(*tensors(0)).shape == (0, L, DV)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_mod", [False, True])
def test_junk_in_a_key_that_nobody_sees_has_no_influence(junk, as_mod):
    layer, (query, key, value) = made(), tensors(B)
    hidden, visible = [1, S - 1], [0, 2, 3, 4, 5]
    key[:, hidden], value[:, hidden] = junk, junk
    mask = torch.ones(L, S, dtype=torch.bool)
    mask[:, hidden] = False
    how = {"mask": mask}
    if as_mod:
        how = {"mask": lambda b, h, i, j: mask[i, j], "query_offset": 0, "key_offset": 0}
    xs = [x.requires_grad_() for x in (query, key, value)]
    out = layer(*xs, **how)
    seen = [x.detach()[:, visible].requires_grad_() for x in (key, value)]
    expected = layer(query, *seen)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    ours = gradients(out, upstream, layer, *xs)
    theirs = gradients(expected, upstream, layer, query, *seen)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[3:], theirs[3:])  # of the weights
    for gradient, their in zip(ours[1:3], theirs[1:3], strict=True):
        torch.testing.assert_close(gradient[:, visible], their)
        assert (gradient[:, hidden] == 0).all()


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_junk_in_a_query_that_sees_nothing_reaches_no_gradient(junk):
    layer, (query, key, value) = made(), tensors(B)
    mask = torch.rand(L, S) < 0.5
    mask[1] = False
    query[:, 1] = junk
    xs = [x.requires_grad_() for x in (query, key, value)]
    out = layer(*xs, mask=mask)
    assert out.isfinite().all() and (out[:, 1] == 0).all()
    found = gradients(out, torch.randn_like(out), layer, *xs)
    assert all(gradient.isfinite().all() for gradient in found)


def test_only_three_weights_are_kept():
    layer = AdditiveAttention(D_QUERY, D_KEY, D_HIDDEN)
    layer(*tensors(B, dtype=torch.float32))
    shapes = {name: tuple(p.shape) for name, p in layer.state_dict().items()}
    assert shapes == {
        "query.weight": (D_HIDDEN, D_QUERY),
        "key.weight": (D_HIDDEN, D_KEY),
        "score.weight": (1, D_HIDDEN),
    }


def test_a_state_dict_carries_everything_over():
    layer, xs = made(), tensors(B)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = made()
    assert not torch.equal(other(*xs), layer(*xs))
    other.load_state_dict(torch.load(file), strict=True)
    assert torch.equal(other(*xs), layer(*xs))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_computes_the_same_and_shares_nothing(copied):
    layer, xs = made(), tensors(B)
    other, before = copied(layer), layer(*xs)
    assert torch.equal(other(*xs), before)
    nn.init.zeros_(other.score.weight)
    assert torch.equal(layer(*xs), before)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A score is a sum of 13 numbers of size 1, rounded to 11 or 8 binary digits.
    [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float32, 1e-5)],
)
def test_it_moves_to_every_dtype_and_its_weights_are_float32_or_wider(dtype, tolerance):
    layer, xs = made().to(dtype), tensors(B, dtype=dtype)
    out, weights = layer(*xs), layer.weights(*xs[:2])
    assert out.dtype == dtype
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, L))  # not rounded to 16 bits
    expected = layer.double()(*(x.double() for x in xs))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_under_autocast_the_values_are_averaged_in_float32():
    layer, xs = AdditiveAttention(D_QUERY, D_KEY, D_HIDDEN), tensors(B, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, weights = layer(*xs), layer.weights(*xs[:2])
    assert out.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(out, weights @ xs[2])


# --- transforms ------------------------------------------------------------------

OFFSETS = {"query_offset": 2, "key_offset": 0}


def test_vmap_over_sequences_is_a_batch():
    layer, xs = made(), tensors(B)
    mapped = vmap(lambda *xs: layer(*xs, mask=causal, **OFFSETS))(*xs)
    torch.testing.assert_close(mapped, layer(*xs, mask=causal, **OFFSETS))
    several = tensors(3, B)
    expected = torch.stack([layer(*xs) for xs in zip(*several, strict=True)])
    torch.testing.assert_close(vmap(layer)(*several), expected)


def test_vmap_gives_the_gradients_of_each_sample():
    layer, xs = made(), tensors(B)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    how = {"mask": causal} | OFFSETS

    def loss(weights, *xs):
        return functional_call(layer, weights, xs, how).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, *xs)
    for b in range(B):
        alone = layer(*(x[b] for x in xs), **how).square().sum()
        alone = torch.autograd.grad(alone, list(layer.parameters()))
        torch.testing.assert_close(tuple(g[b] for g in together.values()), alone)


def test_torch_compile_takes_it_in_one_graph_at_every_length():
    layer = made()

    def f(query, key, value, lengths):
        return layer(query, key, value, mask=padding(lengths), **OFFSETS)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    for n, lengths in ((5, [5, 3]), (7, [2, 7]), (11, [0, 10])):
        xs = (*tensors(B, source=n), torch.tensor(lengths))
        torch.testing.assert_close(compiled(*xs), f(*xs))


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d_query", "d_key", "d_hidden"])
@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "=0 must be at least 1$"),
        (-2, ValueError, "=-2 must be at least 1$"),
        (2.0, TypeError, " must be an integer, got 2.0$"),
        (True, TypeError, " must be an integer, got True$"),
        (None, TypeError, " must be an integer, got None$"),
    ],
)
def test_sizes_are_integers_of_at_least_1(name, size, error, message):
    sizes = {"d_query": 3, "d_key": 5, "d_hidden": 7} | {name: size}
    with pytest.raises(error, match=f"^{name}{message}"):
        AdditiveAttention(**sizes)


Q, K, V = tensors(B, dtype=torch.float32)
MASK = torch.ones(L, S, dtype=torch.bool)
ROWS = r"^value must have one row for each row of key.* got "


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, "^query must be a tensor of float16.* got list$"),
        ({"query": Q.long()}, TypeError, "^query must be .* got torch.int64$"),
        ({"key": [1.0]}, TypeError, "^key must be a tensor of float16.* got list$"),
        ({"key": K.bool()}, TypeError, "^key must be .* got torch.bool$"),
        ({"value": [1.0]}, TypeError, "^value must be a tensor of float16.* got list$"),
        ({"value": None}, TypeError, "^value must be .* got NoneType$"),
        ({"value": V.long()}, TypeError, "^value must be .* got torch.int64$"),
        ({"value": V.bool()}, TypeError, "^value must be .* got torch.bool$"),
        (
            {"query": Q[0, 0]},
            ValueError,
            r"^query must be \(L, 3\) or \(B, L, 3\), where d_query=3, got \(3,\)$",
        ),
        ({"query": Q[..., 1:]}, ValueError, r"^query must be .*d_query=3, got \(2, 5, 2\)$"),
        ({"key": K[..., 1:]}, ValueError, r"^key must be .*d_key=11, got \(2, 7, 10\)$"),
        (
            {"key": K[:, None], "value": V[:, None]},
            ValueError,
            r"^key must be .*d_key=11, got \(2, 1, 7, 11\)$",
        ),
        ({"query": Q[0]}, ValueError, r"^query.* batch.* got .*\(5, 3\).*\(2, 7, 11\)"),
        ({"key": K[0], "value": V[0]}, ValueError, r"^query.* batch.* got .*\(7, 11\)"),
        (
            {"query": Q[:1]},
            ValueError,
            r"^query and key must have the same batch size B, got .*\(1, 5, 3\).*\(2, 7, 11\)",
        ),
        ({"key": K[:1], "value": V[:1]}, ValueError, "^query and key must have the same batch"),
        ({"value": V[:, 1:]}, ValueError, ROWS + r".*\(\[?2, 6, 17\]?\)"),
        ({"value": V[:, :1]}, ValueError, ROWS + r".*\(\[?2, 1, 17\]?\)"),
        ({"value": V[:1]}, ValueError, ROWS + r".*\(\[?1, 7, 17\]?\)"),
        ({"value": V[0]}, ValueError, ROWS + r".*\(\[?7, 17\]?\)"),
        ({"value": V[:, :, 0]}, ValueError, ROWS + r".*\(\[?2, 7\]?\)"),
        ({"value": torch.tensor(1.0)}, ValueError, ROWS + r".*\((\[\])?\)"),
        ({"query": Q.double()}, ValueError, "^query.*float32.*float64"),
        ({"key": K.double()}, ValueError, "^key .*float32.*float64"),
        ({"value": V.double()}, ValueError, "^value .*float32.*float64"),
        ({"mask": MASK.float()}, TypeError, "^mask must be Boolean.* got torch.float32"),
        (
            {"mask": MASK.T},
            ValueError,
            r"^mask must be \(L, S\) = \(5, 7\) or.*\(2, 1, 5, 7\), got \(7, 5\)$",
        ),
        ({"mask": MASK.expand(B, L, S)}, ValueError, r"^mask must be .* got \(2, 5, 7\)$"),
        ({"mask": MASK.expand(B, 3, L, S)}, ValueError, r"^mask .* got \(2, 3, 5, 7\)$"),
        ({"mask": "causal"}, TypeError, "^mask must be .* got str$"),
        ({"mask": causal}, ValueError, "^query_offset is missing: where L=5 and S=7 differ"),
        (
            {"mask": causal, "query_offset": torch.zeros(3).long(), "key_offset": 0},
            ValueError,
            r"^query_offset must be .* got \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_what_came(changed, error, message):
    layer = AdditiveAttention(D_QUERY, D_KEY, D_HIDDEN)
    given_ = {"query": Q, "key": K, "value": V} | changed
    with pytest.raises(error, match=message):
        layer(**given_)
    if "value" not in changed:
        del given_["value"]
        with pytest.raises(error, match=message):
            layer.weights(**given_)
