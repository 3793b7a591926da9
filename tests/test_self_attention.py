"""One head with weights that learn: by hand, against formulas, what holds, errors.

Sizes are prime and differ, so that swapped axes fail.
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
from torch.func import functional_call, grad, vmap

from attention import CausalSelfAttention, SelfAttention

B, L, D_MODEL, HEAD_DIM = 2, 5, 7, 3
BOTH = pytest.mark.parametrize("kind", [SelfAttention, CausalSelfAttention])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(kind=SelfAttention, d_model=D_MODEL, head_dim=HEAD_DIM, *, bias=True):
    """A layer in float64 with weights of variance 1: scores far from equal."""
    layer = kind(d_model, head_dim, bias=bias).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def tokens(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_matrices(layer, x, *, causal):
    """The formula of one sequence in matrices, after Vaswani et al., equation (1)."""
    q, k, v = (
        x @ part.weight.T + (0 if part.bias is None else part.bias)
        for part in (layer.query, layer.key, layer.value)
    )
    scores = q @ k.T / math.sqrt(q.shape[1])
    if causal:
        scores = scores + torch.full_like(scores, -math.inf).triu(1)
    return torch.softmax(scores, dim=1) @ v


def gradients(out, upstream, layer, x):
    return torch.autograd.grad(out, [x, *layer.parameters()], upstream)


# --- by hand ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"), [(SelfAttention, [[5.0], [6.0]]), (CausalSelfAttention, [[4.0], [6.0]])]
)
def test_a_token_that_scores_log_3_above_zero_takes_three_quarters(kind, expected):
    layer = kind(d_model=2, head_dim=1)
    with torch.no_grad():
        layer.query.weight.copy_(torch.tensor([[math.log(3), 0.0]]))  # queries log 3 and 0
        layer.key.weight.copy_(torch.tensor([[1.0, 0.0]]))  # keys 1 and 0
        layer.value.weight.copy_(torch.tensor([[4.0, 8.0]]))  # values 4 and 8
    # Token 0: 3/4 of 4 and 1/4 of 8, or its own 4 alone. Token 1: half of each.
    torch.testing.assert_close(layer(torch.eye(2)), torch.tensor(expected))


# --- against formulas -----------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([(), (1,), (2,), (3,)]),
    length=st.integers(1, 6),
    d_model=st.integers(1, 7),
    head_dim=st.integers(1, 7),
    bias=st.booleans(),
    causal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_plain_matrices_give_the_same_values_and_gradients(
    batch, length, d_model, head_dim, bias, causal, seed
):
    torch.manual_seed(seed)
    layer = made(CausalSelfAttention if causal else SelfAttention, d_model, head_dim, bias=bias)
    x = tokens(*batch, length, d_model).requires_grad_()
    rows = x if batch else x[None]
    expected = torch.stack([by_matrices(layer, row, causal=causal) for row in rows])
    expected = expected.view(*batch, length, head_dim)
    out = layer(x)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        gradients(out, upstream, layer, x), gradients(expected, upstream, layer, x)
    )


@BOTH
def test_sdpa_gives_the_same(kind):
    layer, x = made(kind), tokens(B, L, D_MODEL)
    expected = F.scaled_dot_product_attention(
        layer.query(x), layer.key(x), layer.value(x), is_causal=kind is CausalSelfAttention
    )
    torch.testing.assert_close(layer(x), expected)


# --- what holds ---------------------------------------------------------------


def test_without_a_mask_the_outputs_move_with_their_tokens():
    layer, x = made(), tokens(L, D_MODEL)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(layer(x[order]), layer(x)[order])
    causal = made(CausalSelfAttention)
    assert not torch.allclose(causal(x[order]), causal(x)[order])


@BOTH
def test_a_token_changes_an_output_if_and_only_if_it_may(kind):
    layer, x = made(kind), tokens(L, D_MODEL)
    before = layer(x)
    changes = torch.zeros(L, L, dtype=torch.bool)
    for j in range(L):
        moved = x.clone()
        moved[j] += 1
        changes[:, j] = (layer(moved) != before).all(-1)
        assert torch.equal((layer(moved) != before).any(-1), changes[:, j])
    allowed = torch.ones(L, L, dtype=torch.bool)
    assert torch.equal(changes, allowed.tril() if kind is CausalSelfAttention else allowed)


def test_the_output_of_a_prefix_is_the_prefix_of_the_output_at_every_length():
    layer, x = made(CausalSelfAttention), tokens(B, 11, D_MODEL)
    whole = layer(x)
    for n in (2, 7, 1, 11, 3):  # shorter, longer and shorter again: no mask stays behind
        torch.testing.assert_close(layer(x[:, :n]), whole[:, :n])


def test_the_rows_of_a_batch_do_not_meet():
    layer, x = made(), tokens(B, L, D_MODEL)
    moved = x.clone()
    moved[1] += 1
    assert torch.equal(layer(moved)[0], layer(x)[0])
    torch.testing.assert_close(layer(x)[1], layer(x[1]))


@BOTH
def test_no_tokens_give_nothing(kind):
    assert made(kind)(tokens(0, D_MODEL)).shape == (0, HEAD_DIM)
    assert made(kind)(tokens(B, 0, D_MODEL)).shape == (B, 0, HEAD_DIM)
    assert made(kind)(tokens(0, L, D_MODEL)).shape == (0, L, HEAD_DIM)


@BOTH
def test_the_weights_start_as_those_of_three_linear_layers(kind):
    torch.manual_seed(1)
    layer = kind(D_MODEL, HEAD_DIM, bias=True)
    torch.manual_seed(1)
    parts = [nn.Linear(D_MODEL, HEAD_DIM) for _ in range(3)]
    for part, expected in zip((layer.query, layer.key, layer.value), parts, strict=True):
        assert torch.equal(part.weight, expected.weight)
        assert torch.equal(part.bias, expected.bias)


def test_only_weights_are_kept_and_bias_is_off_unless_asked_for():
    weights = {"query.weight", "key.weight", "value.weight"}
    biases = {"query.bias", "key.bias", "value.bias"}
    for kind in (SelfAttention, CausalSelfAttention):
        layer = kind(D_MODEL, HEAD_DIM)
        layer(torch.zeros(L, D_MODEL))
        assert layer.state_dict().keys() == weights
        assert kind(D_MODEL, HEAD_DIM, bias=True).state_dict().keys() == weights | biases


@BOTH
def test_a_state_dict_carries_everything_over(kind):
    layer, x = made(kind), tokens(B, L, D_MODEL)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = made(kind)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(file), strict=True)
    assert torch.equal(other(x), layer(x))


@BOTH
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_computes_the_same_and_shares_nothing(kind, copied):
    layer, x = made(kind), tokens(B, L, D_MODEL)
    other, before = copied(layer), layer(x)
    assert type(other) is kind
    assert torch.equal(other(x), before)
    nn.init.zeros_(other.value.weight)
    assert torch.equal(layer(x), before)


@BOTH
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Each projection is rounded to 11 or 8 binary digits, and scores are of size 10.
    [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float32, 1e-4)],
)
def test_it_moves_to_every_dtype(kind, dtype, tolerance):
    layer = made(kind).to(dtype)
    x = tokens(B, L, D_MODEL).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    expected = layer.double()(x.double())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@BOTH
def test_under_autocast_float32_weights_take_tokens_of_16_and_of_32_bits(kind):
    layer, x = kind(D_MODEL, HEAD_DIM), torch.randn(B, L, D_MODEL)
    with torch.autocast("cpu", torch.bfloat16):
        out, out16 = layer(x), layer(x.bfloat16())
    assert out.dtype == out16.dtype == torch.bfloat16
    torch.testing.assert_close(out, out16)
    # A sum of 7 products of about 0.3, in 8 binary digits
    torch.testing.assert_close(out.float(), layer(x), rtol=0, atol=0.02)


# --- transforms ------------------------------------------------------------------


@BOTH
def test_vmap_over_sequences_is_a_batch(kind):
    layer, x = made(kind), tokens(B, L, D_MODEL)
    torch.testing.assert_close(vmap(layer)(x), layer(x))
    pairs = tokens(3, B, L, D_MODEL)
    torch.testing.assert_close(vmap(layer)(pairs), torch.stack([layer(x) for x in pairs]))


@BOTH
def test_vmap_gives_the_gradients_of_each_sample(kind):
    layer, x = made(kind), tokens(B, L, D_MODEL)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights, x):
        return functional_call(layer, weights, (x,)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for b in range(B):
        alone = torch.autograd.grad(layer(x[b]).square().sum(), list(layer.parameters()))
        torch.testing.assert_close(tuple(g[b] for g in together.values()), alone)


def test_torch_compile_takes_it_in_one_graph_at_every_length():
    layer = made(CausalSelfAttention)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for n in (5, 7, 3, 5):
        x = tokens(B, n, D_MODEL)
        torch.testing.assert_close(compiled(x), layer(x))


# --- errors -----------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["d_model", "head_dim"])
@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "=0 must be at least 1$"),
        (-3, ValueError, "=-3 must be at least 1$"),
        (2.0, TypeError, " must be an integer, got 2.0$"),
        (True, TypeError, " must be an integer, got True$"),
        ("2", TypeError, " must be an integer, got '2'$"),
        (None, TypeError, " must be an integer, got None$"),
    ],
)
def test_sizes_are_integers_of_at_least_1(kind, name, size, error, message):
    with pytest.raises(error, match=f"^{name}{message}"):
        kind(**({"d_model": D_MODEL, "head_dim": HEAD_DIM} | {name: size}))


@BOTH
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "^x must be a tensor of float16.* got list$"),
        (None, TypeError, "^x must be a tensor of float16.* got NoneType$"),
        (torch.zeros(L, D_MODEL).long(), TypeError, "^x must be .* got torch.int64$"),
        (torch.zeros(L, D_MODEL).cfloat(), TypeError, "^x must be .* got torch.complex64$"),
        (
            torch.zeros(D_MODEL),
            ValueError,
            r"^x must be \(L, 7\) or \(B, L, 7\), where d_model=7, got \(7,\)$",
        ),
        (torch.zeros(()), ValueError, r"^x must be .* d_model=7, got \(\)$"),
        (torch.zeros(B, 1, L, D_MODEL), ValueError, r"^x must be .* got \(2, 1, 5, 7\)$"),
        (torch.zeros(L, HEAD_DIM), ValueError, r"^x must be .* d_model=7, got \(5, 3\)$"),
        (torch.zeros(D_MODEL, L), ValueError, r"^x must be .* d_model=7, got \(7, 5\)$"),
        (torch.zeros(L, D_MODEL).double(), ValueError, "^x .*float32.*float64"),
    ],
)
def test_tokens_that_do_not_fit_are_named_with_what_came(kind, x, error, message):
    with pytest.raises(error, match=message):
        kind(D_MODEL, HEAD_DIM)(x)
