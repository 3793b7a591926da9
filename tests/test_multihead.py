"""Many heads: by hand, against torch and single heads, what holds, dropout, errors.

Lengths are prime and differ, so that swapped axes fail; H is a multiple of H_kv.
"""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call, grad, vmap
from torch.nn.attention.flex_attention import and_masks, create_block_mask

from attention import MultiHeadAttention, attention, attention_weights, causal, padding

B, H, H_KV, L, S, D = 2, 6, 2, 5, 7, 3
D_MODEL = H * D
# So rare that none happens here: what training computes, but for the dropping.
NEVER = 1e-12


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_(module):
    """In float64 with weights of variance 1 / 2: scores far from equal."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module.double()


def made(d_model=D_MODEL, n_heads=H, *, n_kv_heads=H_KV, bias=True, dropout=0.0):
    return random_(
        MultiHeadAttention(d_model, n_heads, n_kv_heads=n_kv_heads, bias=bias, dropout=dropout)
    )


def tokens(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def inputs():
    return [tokens(B, n, D_MODEL).requires_grad_() for n in (L, S, S)]


def gradients(out, upstream, layer, *xs):
    return torch.autograd.grad(out, [*xs, *layer.parameters()], upstream)


def alibi(score, b, h, q_idx, kv_idx):
    return score - 0.5 * (h + 1) * abs(q_idx - kv_idx) + 0.1 * b


def odd(b, h, q_idx, kv_idx):
    """Depends on all four indices; hides all keys from some queries."""
    return (q_idx + 2 * kv_idx + b + h) % 3 == 0


def by_head(layer, query, key, value, mask=None):
    """One row of the batch, a head at a time, in matrices; the heads are summed at the end."""
    n_heads, group = layer.n_heads, layer.n_heads // layer.n_kv_heads
    size = layer.query.in_features // n_heads
    out = 0 if layer.out.bias is None else layer.out.bias
    for h in range(n_heads):
        rows, kv_rows = (slice(g * size, (g + 1) * size) for g in (h, h // group))
        q, k, v = (
            x @ part.weight[cut].T + (0 if part.bias is None else part.bias[cut])
            for x, part, cut in (
                (query, layer.query, rows),
                (key, layer.key, kv_rows),
                (value, layer.value, kv_rows),
            )
        )
        scores = q @ k.T / math.sqrt(size)
        if mask is not None:
            scores = scores.masked_fill(~mask[h], -math.inf)
        out = out + torch.softmax(scores, 1).nan_to_num(0) @ v @ layer.out.weight[:, rows].T
    return out


# --- by hand ------------------------------------------------------------------


def test_each_head_reads_its_own_numbers_and_the_last_projection_mixes_them():
    layer = MultiHeadAttention(d_model=2, n_heads=2)
    for part in (layer.query, layer.key, layer.value):
        nn.init.eye_(part.weight)
    query = torch.tensor([[math.log(3), 0.0]])
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # head 0 scores log 3 and 0, head 1 twice 0
    value = torch.tensor([[4.0, 2.0], [8.0, 6.0]])
    with torch.no_grad():
        layer.out.weight.copy_(torch.tensor([[0.0, 1.0], [10.0, 0.0]]))
    # Head 0: 3/4 of 4 and 1/4 of 8. Head 1: half of 2 and half of 6.
    torch.testing.assert_close(layer(query, key, value), torch.tensor([[4.0, 50.0]]))


def test_two_query_heads_share_one_key_head():
    layer = MultiHeadAttention(d_model=4, n_heads=4, n_kv_heads=2)
    assert layer.key.weight.shape == layer.value.weight.shape == (2, 4)
    for part in (layer.query, layer.key, layer.out):
        nn.init.eye_(part.weight)
    with torch.no_grad():
        layer.value.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    value = torch.tensor([[3.0, 7.0, 0.0, 0.0]])  # one token: each head takes all of its value
    out = layer(torch.ones(1, 4), torch.ones(1, 4), value)
    assert out.tolist() == [[3.0, 3.0, 7.0, 7.0]]


# --- against torch, and against single heads -------------------------------------


def to_torch(ours, n_heads, bias):
    """A layer of torch's with the weights of ours."""
    d_model = ours.query.in_features
    theirs = nn.MultiheadAttention(
        d_model, n_heads, bias=bias, batch_first=True, dtype=torch.float64
    )
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            theirs.out_proj.bias.copy_(ours.out.bias)
    return theirs


def as_torch_names(ours):
    """The gradients of our weights as torch's layer keeps its own."""
    found = {name: p.grad for name, p in ours.named_parameters()}
    kinds = {name.split(".")[1] for name in found}
    packed = {
        f"in_proj_{kind}": torch.cat(
            [found[f"{part}.{kind}"] for part in ("query", "key", "value")]
        )
        for kind in kinds
    }
    return packed | {f"out_proj.{kind}": found[f"out.{kind}"] for kind in kinds}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([None, 1, 2, 3]),
    length=st.integers(1, 5),
    source=st.integers(1, 6),
    n_heads=st.sampled_from([1, 2, 3, 5]),
    head_dim=st.integers(1, 4),
    bias=st.booleans(),
    which=st.sampled_from(["self", "cross", "cross, values apart"]),
    masked=st.sampled_from([None, "for all heads", "for each head"]),
    padded=st.booleans(),
    from_torch=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_torchs_layer_gives_the_same_values_and_gradients(
    batch, length, source, n_heads, head_dim, bias, which, masked, padded, from_torch, seed
):
    torch.manual_seed(seed)
    d_model, rows = n_heads * head_dim, (batch or 1)
    ours = made(d_model, n_heads, n_kv_heads=None, bias=bias)
    if from_torch:
        theirs = random_(nn.MultiheadAttention(d_model, n_heads, bias=bias, batch_first=True))
        names = ("query", "key", "value")
        state = {"out.weight": theirs.out_proj.weight} | {
            f"{name}.weight": w
            for name, w in zip(names, theirs.in_proj_weight.chunk(3), strict=True)
        }
        if bias:
            state["out.bias"] = theirs.out_proj.bias
            parts = theirs.in_proj_bias.chunk(3)
            state |= {f"{name}.bias": b for name, b in zip(names, parts, strict=True)}
        ours.load_state_dict(state, strict=True)
    else:
        theirs = to_torch(ours, n_heads, bias)

    query, key, value = (tokens(rows, n, d_model) for n in (length, source, source))
    key = query if which == "self" else key
    value = value if "apart" in which else key
    S = key.shape[1]
    drop = torch.zeros(rows, n_heads, length, S, dtype=torch.bool)
    their_mask = their_padding = None
    if masked == "for all heads":
        drop = drop | (torch.rand(length, S) < 0.4)
        their_mask = drop[0, 0]
    elif masked == "for each head":
        drop = torch.rand(rows, n_heads, length, S) < 0.4
        their_mask = drop.flatten(0, 1)  # (B * H, L, S)
    if padded:
        their_padding = torch.arange(S) >= torch.randint(1, S + 1, (rows, 1))
        drop = drop | their_padding[:, None, None, :]
    if batch is None:
        query, key, value = query[0], key[0], value[0]
        their_padding = their_padding[0] if padded else None

    x = [t.clone().requires_grad_() for t in (query, key, value)]
    y = [t.clone().requires_grad_() for t in (query, key, value)]
    asked = {"self": 1, "cross": 2}.get(which, 3)
    out = ours(*x[:asked], mask=~drop if masked or padded else None)
    q2, k2, v2 = {1: (y[0], y[0], y[0]), 2: (y[0], y[1], y[1]), 3: y}[asked]
    expected, _ = theirs(
        q2, k2, v2, key_padding_mask=their_padding, attn_mask=their_mask, need_weights=False
    )
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    for mine, other in zip(x[:asked], y[:asked], strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    torch.testing.assert_close(as_torch_names(ours), grads)


def test_an_upper_triangle_is_causal_for_torchs_layer_and_not_for_ours():
    ours, x = made(n_kv_heads=None), tokens(B, L, D_MODEL)
    triangle = torch.ones(L, L, dtype=torch.bool).triu(1)
    expected, _ = to_torch(ours, H, bias=True)(x, x, x, attn_mask=triangle)
    torch.testing.assert_close(ours(x, mask=causal), expected)
    torch.testing.assert_close(ours(x, mask=~triangle), expected)
    assert not torch.allclose(ours(x, mask=triangle), expected)


def by_sdpa(layer, query, key, value, **how):
    q, k, v = (
        F.linear(x, part.weight, part.bias).view(len(x), x.shape[1], n, -1).transpose(1, 2)
        for x, part, n in (
            (query, layer.query, layer.n_heads),
            (key, layer.key, layer.n_kv_heads),
            (value, layer.value, layer.n_kv_heads),
        )
    )
    heads = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how)
    merged = heads.transpose(1, 2).reshape(query.shape)
    return F.linear(merged, layer.out.weight, layer.out.bias)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 5),
    source=st.integers(1, 6),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (6, 2), (6, 3)]),
    head_dim=st.integers(1, 4),
    bias=st.booleans(),
    mask=st.sampled_from([None, "causal", "random", "one for all"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sdpa_gives_the_same_values_and_gradients_for_grouped_heads(
    batch, length, source, heads, head_dim, bias, mask, dtype, training, seed
):
    torch.manual_seed(seed)
    n_heads, n_kv_heads = heads
    d_model = n_heads * head_dim
    layer = made(
        d_model, n_heads, n_kv_heads=n_kv_heads, bias=bias, dropout=NEVER if training else 0
    ).to(dtype)
    xs = [
        torch.randn(batch, n, d_model, dtype=dtype).requires_grad_()
        for n in (length, source, source)
    ]
    ours, theirs = {}, {}
    if mask == "causal":
        ours, theirs = {"mask": causal, "query_offset": 0, "key_offset": 0}, {"is_causal": True}
    elif mask is not None:
        allowed = torch.rand(batch, n_heads, length, source) < 0.6
        allowed = allowed[:, :1] if mask == "one for all" else allowed
        ours, theirs = {"mask": allowed}, {"attn_mask": allowed}
    out = layer(*xs, **ours)
    expected = by_sdpa(layer, *xs, **theirs)
    # Gradients of weights add up to 15 products, each a rounding of float32 off.
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(out, expected, **near)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        gradients(out, upstream, layer, *xs), gradients(expected, upstream, layer, *xs), **near
    )


@pytest.mark.parametrize("n_kv_heads", [None, 1, 2, 3])
@pytest.mark.parametrize("dropout", [0.0, NEVER])
def test_heads_are_consecutive_rows_and_columns_of_the_weights(n_kv_heads, dropout):
    layer = made(n_kv_heads=n_kv_heads, dropout=dropout)
    query, key, value = inputs()
    mask = torch.rand(B, H, L, S) < 0.5
    mask[..., 0, :] = False
    out = layer(query, key, value, mask=mask)
    for b in range(B):
        expected = by_head(layer, query[b], key[b], value[b], mask[b])
        torch.testing.assert_close(out[b], expected)


HOWS = {
    "nothing": {},
    "score_mod": {"score_mod": alibi, "query_offset": 0, "key_offset": 0},
    "all four": {
        "mask": odd,
        "score_mod": alibi,
        "query_offset": torch.tensor([4, 6]),
        "key_offset": 1,
    },
    "causal": {"mask": causal, "query_offset": S - L, "key_offset": 0},
    "padding": {"mask": padding(torch.tensor([3, 6])), "query_offset": 0, "key_offset": 0},
    "block mask": {
        "mask": create_block_mask(odd, B, H, L, S, device="cpu"),
        "query_offset": 2,
        "key_offset": 0,
    },
}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
@pytest.mark.parametrize("dropout", [0.0, NEVER])
def test_mask_score_mod_and_offsets_reach_the_formula_also_in_training(how, dropout):
    layer, (query, key, value) = made(dropout=dropout), inputs()
    q, k, v = (
        F.linear(x, part.weight, part.bias).unflatten(-1, (n, D)).transpose(1, 2)
        for x, part, n in (
            (query, layer.query, H),
            (key, layer.key, H_KV),
            (value, layer.value, H_KV),
        )
    )
    expected = layer.out(attention(q, k, v, **how).transpose(1, 2).flatten(2))
    out = layer(query, key, value, **how)
    torch.testing.assert_close(out, expected)
    upstream, xs = torch.randn_like(out), (query, key, value)
    torch.testing.assert_close(
        gradients(out, upstream, layer, *xs), gradients(expected, upstream, layer, *xs)
    )


# --- what holds ---------------------------------------------------------------


def test_key_is_query_and_value_is_key_unless_given():
    layer, (query, key, value) = made(), (x.detach() for x in inputs())
    assert torch.equal(layer(query), layer(query, query, query))
    assert torch.equal(layer(query, key), layer(query, key, key))
    assert torch.equal(layer(key, None, value), layer(key, key, value))
    assert not torch.allclose(layer(query, key), layer(query, key, value))


@pytest.mark.parametrize("dropout", [0.0, NEVER])
def test_two_dimensions_are_one_row_of_a_batch(dropout):
    layer, (query, key, value) = made(dropout=dropout), (x[0] for x in inputs())
    mask = torch.rand(L, S) < 0.5
    expected = layer(query[None], key[None], value[None], mask=mask)[0]
    out = layer(query, key, value, mask=mask)
    assert out.shape == (L, D_MODEL)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("n_kv_heads", [None, 1, 2])
@pytest.mark.parametrize("dropout", [0.0, NEVER])
def test_a_token_changes_an_output_if_and_only_if_the_mask_lets_it(n_kv_heads, dropout):
    layer, x = made(n_kv_heads=n_kv_heads, dropout=dropout), tokens(B, L, D_MODEL)
    before = layer(x, mask=causal)
    changes = torch.zeros(L, L, dtype=torch.bool)
    for j in range(L):
        moved = x.clone()
        moved[:, j] += 1
        changed = layer(moved, mask=causal) != before
        changes[:, j] = changed.all(-1).all(0)
        assert torch.equal(changed.any(-1).any(0), changes[:, j])
    assert torch.equal(changes, torch.ones(L, L, dtype=torch.bool).tril())


def test_a_module_serves_every_length_and_keeps_nothing_of_one():
    layer, x = made(), tokens(B, 11, D_MODEL)
    names = layer.state_dict().keys()
    whole = layer(x, mask=causal)
    for n in (2, 7, 1, 11, 3):
        torch.testing.assert_close(layer(x[:, :n], mask=causal), whole[:, :n])
    assert layer.state_dict().keys() == names


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_query_that_sees_nothing_gets_the_last_bias_and_gives_no_gradient(dropout):
    layer, xs = made(dropout=dropout), inputs()
    mask = torch.rand(B, 1, L, S) < 0.5
    mask[:, :, 1] = False
    mask[:, :, 2] = True
    out = layer(*xs, mask=mask)
    assert torch.equal(out[:, 1], layer.out.bias.expand(B, -1))
    found = gradients(out, torch.randn_like(out), layer, *xs)
    assert all(gradient.isfinite().all() for gradient in found)
    assert (found[0][:, 1] == 0).all()
    assert (found[0][:, 2] != 0).all()
    nothing = torch.zeros(L, S, dtype=torch.bool)
    out = made(bias=False, dropout=dropout)(*xs, mask=nothing)
    assert torch.equal(out, torch.zeros(B, L, D_MODEL, dtype=torch.float64))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_keys_and_no_queries(dropout):
    layer = made(bias=False, dropout=dropout)
    x, none = tokens(B, L, D_MODEL), tokens(B, 0, D_MODEL)
    assert torch.equal(layer(x, none), torch.zeros_like(x))
    assert layer(none, x).shape == none.shape
    assert layer(none).shape == none.shape
    assert layer(x[:0], mask=causal).shape == (0, L, D_MODEL)


HIDDEN, VISIBLE = [1, S - 1], [0, 2, 3, 4, 5]
HIDING = torch.ones(L, S, dtype=torch.bool)
HIDING[:, HIDDEN] = False
JUNK = pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])


@JUNK
@pytest.mark.parametrize("dropout", [0.0, NEVER])
@pytest.mark.parametrize("as_mod", [False, True])
def test_junk_in_a_token_that_nobody_sees_reaches_neither_outputs_nor_other_tokens(
    junk, dropout, as_mod
):
    layer, (query, key, value) = made(dropout=dropout), inputs()
    how = {"mask": HIDING}
    if as_mod:
        how = {"mask": lambda b, h, i, j: HIDING[i, j], "query_offset": 0, "key_offset": 0}
    dirty = [x.detach().clone() for x in (key, value)]
    for x in dirty:
        x[:, HIDDEN] = junk
        x.requires_grad_()
    out = layer(query, *dirty, **how)
    expected = layer(query, key[:, VISIBLE], value[:, VISIBLE])
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad(out, [query, *dirty], upstream)
    theirs = torch.autograd.grad(expected, [query, key, value], upstream)
    torch.testing.assert_close(ours, theirs)
    assert all((gradient[:, HIDDEN] == 0).all() for gradient in ours[1:])


@pytest.mark.parametrize("junk", [0.0, 1e6])  # zero times NaN would be NaN in Linear's backward
@pytest.mark.parametrize("dropout", [0.0, NEVER])
def test_a_finite_token_that_nobody_sees_reaches_no_weights(junk, dropout):
    layer, (query, key, value) = made(dropout=dropout), inputs()
    dirty = [x.detach().clone() for x in (key, value)]
    for x in dirty:
        x[:, HIDDEN] = junk
    out = layer(query, *dirty, mask=HIDING)
    expected = layer(query, key[:, VISIBLE], value[:, VISIBLE])
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        gradients(out, upstream, layer), gradients(expected, upstream, layer)
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_a_score_mod_captures_learns(dropout):
    layer, x = made(dropout=dropout), tokens(B, L, D_MODEL)
    bias = torch.zeros(H, dtype=torch.float64, requires_grad=True)
    out = layer(x, score_mod=lambda score, b, h, i, j: score + bias[h] * (i - j))
    (gradient,) = torch.autograd.grad(out, bias, torch.randn_like(out))
    assert (gradient != 0).all()


def test_only_weights_are_kept_and_bias_is_off_unless_asked_for():
    parts = ("query", "key", "value", "out")
    weights, biases = ({f"{part}.{kind}" for part in parts} for kind in ("weight", "bias"))
    layer = MultiHeadAttention(D_MODEL, H)
    assert {name: tuple(p.shape) for name, p in layer.state_dict().items()} == dict.fromkeys(
        weights, (D_MODEL, D_MODEL)
    )
    layer = MultiHeadAttention(D_MODEL, H, n_kv_heads=H_KV, bias=True, dropout=0.1)
    layer(torch.zeros(L, D_MODEL), mask=causal)
    shapes = {name: tuple(p.shape) for name, p in layer.state_dict().items()}
    assert shapes.keys() == weights | biases
    assert shapes["query.weight"] == shapes["out.weight"] == (D_MODEL, D_MODEL)
    assert shapes["key.weight"] == shapes["value.weight"] == (H_KV * D, D_MODEL)
    assert shapes["key.bias"] == shapes["value.bias"] == (H_KV * D,)


def test_a_state_dict_carries_everything_over():
    layer, x = made(), tokens(B, L, D_MODEL)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = made()
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(file), strict=True)
    assert torch.equal(other(x), layer(x))
    with pytest.raises(RuntimeError, match=r"size mismatch for key\.weight"):
        made(n_kv_heads=None).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_computes_the_same_and_shares_nothing(copied):
    layer, x = made(dropout=0.5).eval(), tokens(B, L, D_MODEL)
    other, before = copied(layer), layer(x, mask=causal)
    assert torch.equal(other(x, mask=causal), before)
    assert not torch.equal(other.train()(x, mask=causal), before)
    nn.init.zeros_(other.value.weight)
    assert torch.equal(layer(x, mask=causal), before)


@pytest.mark.parametrize("dropout", [0.0, NEVER])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Four projections of 18 products of size 1, each rounded to 11 or 8 binary digits
    [(torch.float16, 0.1), (torch.bfloat16, 0.8), (torch.float32, 1e-4)],
)
def test_it_moves_to_every_dtype(dtype, tolerance, dropout):
    layer = made(dropout=dropout).to(dtype)
    query, key, value = (x.detach().to(dtype) for x in inputs())
    out = layer(query, key, value, mask=HIDING)
    assert out.dtype == dtype
    expected = layer.double()(query.double(), key.double(), value.double(), mask=HIDING)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dropout", [0.0, NEVER])
def test_under_autocast_float32_weights_take_tokens_of_16_and_of_32_bits(dropout):
    layer = MultiHeadAttention(D_MODEL, H, n_kv_heads=H_KV, dropout=dropout)
    query, key = torch.randn(B, L, D_MODEL), torch.randn(B, S, D_MODEL)
    with torch.autocast("cpu", torch.bfloat16):
        out, out16 = layer(query, key), layer(query.bfloat16(), key.bfloat16())
        mixed = layer(query, key.bfloat16())
    assert out.dtype == out16.dtype == mixed.dtype == torch.bfloat16
    torch.testing.assert_close(out, out16)
    torch.testing.assert_close(out, mixed)
    # Sums of 18 products of about 0.3, in 8 binary digits
    torch.testing.assert_close(out.float(), layer(query, key), rtol=0, atol=0.03)


# --- dropout -----------------------------------------------------------------------


def revealing(n_heads, n_kv_heads, source, dropout):
    """A layer whose output is its weights, and the value tokens with which it is so.

    Every key-value head has the unit vectors as values, and the last projection is none.
    """
    layer = made(n_heads * source, n_heads, n_kv_heads=n_kv_heads, bias=False, dropout=dropout)
    nn.init.zeros_(layer.value.weight)
    nn.init.eye_(layer.out.weight)
    unit = torch.eye(source, dtype=torch.float64)
    with torch.no_grad():
        layer.value.weight[:, :source] = unit.repeat(n_kv_heads, 1)
    return layer, F.pad(unit, (0, (n_heads - 1) * source))


def draws(n, dropout, mask=None):
    """Weights of n rows of a batch that are alike, in training and in eval: (n, H, L, S)."""
    layer, value = revealing(4, 2, 5, dropout)
    query, key = tokens(1, 3, 20), tokens(1, 5, 20)
    batch = [x.expand(n, -1, -1) for x in (query, key, value[None])]
    outs = [layer.train(training)(*batch, mask=mask) for training in (True, False)]
    return [out.detach().view(n, 3, 4, 5).transpose(1, 2) for out in outs]


def test_in_eval_dropout_does_nothing_and_draws_nothing():
    layer, xs = made(dropout=0.5).eval(), inputs()
    without = made(dropout=0)
    without.load_state_dict(layer.state_dict(), strict=True)
    before = torch.get_rng_state()
    for how in HOWS.values():
        assert torch.equal(layer(*xs, **how), without(*xs, **how))
        assert torch.equal(layer(*xs, **how), without.eval()(*xs, **how))
    assert torch.equal(torch.get_rng_state(), before)


def test_in_training_it_is_another_draw_each_time_and_the_same_for_the_same_seed():
    layer, xs = made(dropout=0.5), inputs()
    outs = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        outs.append(layer(*xs))
    assert torch.equal(outs[0], outs[2])
    assert not torch.allclose(outs[0], outs[1])
    assert not torch.allclose(layer.eval()(*xs), outs[0])


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_a_weight_is_dropped_or_divided_by_what_is_kept(dropout):
    n = 1000
    dropped, weights = draws(n, dropout)
    zero = dropped == 0
    kept = weights / (1 - dropout)
    torch.testing.assert_close(dropped, kept.masked_fill(zero, 0))
    # Five standard deviations of a mean of 60 n draws
    near = 5 * math.sqrt(dropout * (1 - dropout) / zero.numel())
    assert zero.double().mean().item() == pytest.approx(dropout, abs=near)


def test_the_mean_over_draws_is_what_eval_gives():
    n, dropout = 4000, 0.3
    dropped, weights = draws(n, dropout)
    deviation = weights[0] * math.sqrt(dropout / (1 - dropout) / n)
    assert ((dropped.mean(0) - weights[0]).abs() < 5 * deviation).all()


def test_each_row_head_query_and_key_is_drawn_on_its_own():
    n = 2000
    dropped, _ = draws(n, 0.5)
    zero = (dropped == 0).double().flatten(1)  # (n, H * L * S)
    together = torch.corrcoef(zero.T).fill_diagonal_(0)
    assert together.abs().max().item() < 5 / math.sqrt(n)  # 5 standard deviations


def test_what_is_dropped_are_weights_and_not_numbers_of_the_output():
    layer = made(bias=False, dropout=0.5)
    nn.init.eye_(layer.out.weight)
    with torch.no_grad():  # all numbers of a value are alike
        layer.value.weight.copy_(layer.value.weight[::D].repeat_interleave(D, 0))
    heads = layer(*inputs()).unflatten(-1, (H, D))
    torch.testing.assert_close(heads, heads[..., :1].expand_as(heads))
    assert not torch.allclose(heads[..., 0, :], heads[..., 1, :])


def test_dropout_shows_no_hidden_key():
    mask = torch.rand(1, 4, 3, 5) < 0.5
    mask[..., 0, :] = False
    dropped, weights = draws(1000, 0.5, mask)
    assert torch.equal((dropped != 0).any(0), mask[0])
    assert torch.equal(weights[0] != 0, mask[0])


@JUNK
def test_junk_that_nobody_sees_stays_out_of_the_dropped_weights(junk):
    layer, (query, key, value) = made(dropout=0.5), (x.detach() for x in inputs())
    key[:, HIDDEN], value[:, HIDDEN] = junk, junk
    xs = [x.requires_grad_() for x in (query, key, value)]
    for _ in range(10):
        out = layer(*xs, mask=HIDING)
        assert out.isfinite().all()
        found = torch.autograd.grad(out.square().sum(), xs)
        assert all(gradient.isfinite().all() for gradient in found)
        assert all((gradient[:, HIDDEN] == 0).all() for gradient in found[1:])


def test_derivatives_through_one_draw_match_finite_differences():
    layer = made(4, 2, n_kv_heads=1, dropout=0.5)
    names = [name for name, _ in layer.named_parameters()]
    how = {"mask": odd, "query_offset": 0, "key_offset": 0}

    def f(query, key, *weights):
        torch.manual_seed(3)
        state = dict(zip(names, weights, strict=True))
        return functional_call(layer, state, (query, key), how)

    xs = [tokens(1, n, 4).requires_grad_() for n in (2, 3)]
    assert gradcheck(f, (*xs, *layer.parameters()))


# --- transforms ------------------------------------------------------------------


@pytest.mark.parametrize("n_kv_heads", [None, 2])
def test_vmap_over_sequences_is_a_batch(n_kv_heads):
    layer, (query, key, value) = made(n_kv_heads=n_kv_heads), inputs()
    how = {"mask": causal, "query_offset": 2, "key_offset": 0}
    mapped = vmap(lambda *xs: layer(*xs, **how))(query, key, value)
    torch.testing.assert_close(mapped, layer(query, key, value, **how))
    several = [tokens(3, B, n, D_MODEL) for n in (L, S, S)]
    expected = torch.stack([layer(*xs, **how) for xs in zip(*several, strict=True)])
    torch.testing.assert_close(vmap(lambda *xs: layer(*xs, **how))(*several), expected)


def test_vmap_draws_dropout_for_each_sample():
    layer, x = made(dropout=0.5), tokens(L, D_MODEL).expand(B, L, D_MODEL)
    out = vmap(layer, randomness="different")(x)
    assert not torch.allclose(out[0], out[1])
    out = vmap(layer, randomness="same")(x)
    torch.testing.assert_close(out[0], out[1])


@pytest.mark.parametrize("dropout", [0.0, NEVER])
def test_vmap_gives_the_gradients_of_each_sample(dropout):
    layer, x = made(dropout=dropout), tokens(B, L, D_MODEL)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights, x):
        return functional_call(layer, weights, (x,), {"mask": causal}).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0), randomness="different")(weights, x)
    for b in range(B):
        alone = layer(x[b], mask=causal).square().sum()
        alone = torch.autograd.grad(alone, list(layer.parameters()))
        torch.testing.assert_close(tuple(g[b] for g in together.values()), alone)


def test_torch_compile_takes_training_in_one_graph():
    layer, (query, key, value) = made(dropout=0.5), inputs()
    how = {"mask": causal, "query_offset": 2, "key_offset": 0}
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    outs = []
    for f in (compiled, layer):
        torch.manual_seed(1)
        outs.append(f(query, key, value, **how))
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(
        *(gradients(out, torch.ones_like(out), layer, query, key, value) for out in outs)
    )


def test_torch_compile_follows_lengths_that_change():
    layer = made()

    def f(x, lengths):
        return layer(x, mask=and_masks(causal, padding(lengths)))

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    for n, lengths in ((5, [5, 3]), (7, [2, 7]), (11, [0, 10]), (7, [7, 1])):
        x, lengths = tokens(B, n, D_MODEL), torch.tensor(lengths)
        torch.testing.assert_close(compiled(x, lengths), f(x, lengths))


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d_model", "n_heads", "n_kv_heads"])
@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "=0 must be at least 1$"),
        (-2, ValueError, "=-2 must be at least 1$"),
        (2.0, TypeError, " must be an integer, got 2.0$"),
        (True, TypeError, " must be an integer, got True$"),
        ("2", TypeError, " must be an integer, got '2'$"),
    ],
)
def test_sizes_are_integers_of_at_least_1(name, size, error, message):
    sizes = {"d_model": 12, "n_heads": 4, "n_kv_heads": 2} | {name: size}
    with pytest.raises(error, match=f"^{name}{message}"):
        MultiHeadAttention(**sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 3, None), "^d_model=10 must be divisible by n_heads=3$"),
        ((3, 4, None), "^d_model=3 must be divisible by n_heads=4$"),
        ((12, 4, 3), "^n_heads=4 must be divisible by n_kv_heads=3$"),
        ((12, 4, 8), "^n_heads=4 must be divisible by n_kv_heads=8$"),
        ((10, 3, 2), "^d_model=10 must be divisible by n_heads=3$"),
    ],
)
def test_heads_share_out_the_model_and_the_key_heads_without_a_rest(sizes, message):
    d_model, n_heads, n_kv_heads = sizes
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(d_model, n_heads, n_kv_heads=n_kv_heads)


@pytest.mark.parametrize(
    ("dropout", "error", "message"),
    [
        (True, TypeError, "^dropout must be a number, got True$"),
        ("0.1", TypeError, "^dropout must be a number, got '0.1'$"),
        (None, TypeError, "^dropout must be a number, got None$"),
        (-0.1, ValueError, "^dropout=-0.1 must be from 0 to below 1$"),
        (1, ValueError, "^dropout=1 must be from 0 to below 1$"),
        (1.5, ValueError, "^dropout=1.5 must be"),
        (math.nan, ValueError, "^dropout=nan must be"),
    ],
)
def test_dropout_is_a_number_from_0_to_below_1(dropout, error, message):
    with pytest.raises(error, match=message):
        MultiHeadAttention(D_MODEL, H, dropout=dropout)


Q, K, V = torch.zeros(B, L, D_MODEL), torch.zeros(B, S, D_MODEL), torch.zeros(B, S, D_MODEL)
ROWS = "^value must have one row for each row of key, got .*"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, "^query must be a tensor of float16.* got list$"),
        ({"query": None}, TypeError, "^query must be a tensor of .* got NoneType$"),
        ({"key": K.long()}, TypeError, "^key must be .* got torch.int64$"),
        ({"value": V.bool()}, TypeError, "^value must be .* got torch.bool$"),
        (
            {"query": Q[0, 0]},
            ValueError,
            r"^query must be \(L, 18\) or \(B, L, 18\), where d_model=18, got \(18,\)$",
        ),
        ({"key": K[None]}, ValueError, r"^key must be .*d_model=18, got \(1, 2, 7, 18\)$"),
        ({"value": V[..., 1:]}, ValueError, r"^value must be .*d_model=18, got \(2, 7, 17\)$"),
        (
            {"query": Q[0]},
            ValueError,
            r"^query, key, value must all have a batch, or none, got .*\(5, 18\).*\(2, 7, 18\)",
        ),
        ({"key": K[0]}, ValueError, "^query, key, value must all have a batch, or none"),
        ({"value": V[0]}, ValueError, r"must all have a batch, or none, .*\(7, 18\)"),
        ({"key": K[:1], "value": V[:1]}, ValueError, "^query and key must have the same batch"),
        ({"query": Q[:1]}, ValueError, "^query and key must have the same batch size B, got"),
        ({"value": V[:, 1:]}, ValueError, ROWS),
        ({"value": V[:, :1]}, ValueError, ROWS),
        ({"value": V[:1]}, ValueError, ROWS),
        ({"value": Q}, ValueError, ROWS),
        ({"query": Q.double()}, ValueError, "^query .*float32.*float64"),
        ({"key": K.double()}, ValueError, "^key .*float32.*float64"),
        ({"value": V.half()}, ValueError, "^value .*float32.*float16"),
        ({"mask": torch.zeros(L, S)}, TypeError, "^mask must be Boolean.* got torch.float32"),
        (
            {"mask": HIDING.T},
            ValueError,
            r"^mask must be \(L, S\) = \(5, 7\) or.*\(2, 6, 5, 7\), got \(7, 5\)$",
        ),
        (
            {"mask": HIDING.expand(B, H_KV, L, S)},
            ValueError,
            r"^mask must be .* = \(2, 6, 5, 7\), got \(2, 2, 5, 7\)$",
        ),
        ({"mask": "causal"}, TypeError, "^mask must be .* got str$"),
        ({"mask": causal}, ValueError, "^query_offset is missing: where L=5 and S=7 differ"),
        ({"score_mod": 3}, TypeError, "^score_mod must be a function, got int$"),
        (
            {"mask": causal, "query_offset": 0, "key_offset": 1.5},
            TypeError,
            "^key_offset must be an int or a tensor of int32 or int64, got float$",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_what_came(changed, error, message, training):
    layer = MultiHeadAttention(D_MODEL, H, n_kv_heads=H_KV, dropout=0.5).train(training)
    with pytest.raises(error, match=message):
        layer(**({"query": Q, "key": K, "value": V} | changed))


def test_weights_for_a_figure_are_those_that_the_layer_uses():
    layer, value = revealing(4, 2, 5, 0.0)
    query, key = tokens(3, 20), tokens(5, 20)
    q, k = (
        part(x).unflatten(-1, (-1, 5)).transpose(0, 1)[None]
        for part, x in ((layer.query, query), (layer.key, key))
    )
    shown = layer(query, key, value).view(3, 4, 5).transpose(0, 1)
    torch.testing.assert_close(shown[None], attention_weights(q, k))
