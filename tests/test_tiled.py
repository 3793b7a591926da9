"""The tiled kernel at its seams: tiles of all sizes, what it skips, what it keeps, what it learns.

That it computes the right thing is the matter of the conformance matrix, which is run here again
with tiles so small that each case has many.
"""

import functools
import math

import pytest
import torch
from torch import nn

import attention.kernels.tiled as module
from attention import T5Bias, alibi, attention, causal, padding, sliding_window, softcap
from attention.kernels.captured import captured
from tests import conformance
from tests.conformance import MASKS

B, H, H_KV, L, S, D, DV = 2, 6, 3, 19, 31, 5, 7
AT = {"query_offset": S - L, "key_offset": 0}


def tensors(*sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes or ((B, H, L, D), (B, H_KV, S, D), (B, H_KV, S, DV))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes]


@pytest.fixture(params=[(2, 4, 6, 40), (3, 3, 9, 10**6)], ids=str)
def tiny(request, monkeypatch):
    """Tiles of a few queries and keys, of one head or of many rows at once."""
    unit, queries, keys, pairs = request.param
    monkeypatch.setattr("attention.kernels.plan.UNIT", unit)
    monkeypatch.setattr(module, "QUERIES", queries)
    monkeypatch.setattr(module, "KEYS", keys)
    monkeypatch.setattr(module, "PAIRS", pairs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.usefixtures("tiny")
def test_the_matrix_is_passed_with_tiles_of_any_size(mask):
    cases = [c for c in conformance.cases() if c.mask == mask and c.shape != "no tile divides"]
    for case in cases[::7]:
        assert set(conformance.check(case, "tiled").values()) == {"passed"}, case


def test_what_is_kept_for_the_backward_pass_grows_with_the_length_and_no_faster():
    def kept(n):
        given = [x.requires_grad_() for x in tensors((1, 2, n, 8), (1, 2, n, 8), (1, 2, n, 8))]
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        )
        with hooks:
            attention(*given, kernel="tiled")
        return sum(sizes)

    assert kept(1024) == 4 * kept(256)


@pytest.mark.parametrize(
    "mask", [None, causal, sliding_window(64)], ids=["none", "causal", "window"]
)
def test_no_tensor_is_larger_than_the_inputs_or_a_tile(mask):
    """Nothing of the size of all scores is ever there, forward or backward."""
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, (tuple, list)) else [out]
            largest.extend(
                x.untyped_storage().nbytes() // x.itemsize
                for x in made
                if isinstance(x, torch.Tensor)
            )
            return out

    n = 2048
    given = [x.requires_grad_() for x in tensors(*[(1, 1, n, 16)] * 3, dtype=torch.float32)]
    with Sizes():
        attention(*given, mask=mask, kernel="tiled").sum().backward()
    assert max(largest) <= max(module.PAIRS, n * 16)
    assert max(largest) < n * n / 8


def test_tiles_that_a_mask_rules_out_are_not_computed(monkeypatch):
    pairs = []
    real = torch.bmm

    def bmm(a, b, **how):
        pairs.append(a.shape[0] * a.shape[1] * b.shape[2])
        return real(a, b, **how)

    monkeypatch.setattr(torch, "bmm", bmm)
    n = 2048
    given = tensors(*[(1, 1, n, 4)] * 3, dtype=torch.float32)
    found = {}
    for name, mask in {"full": None, "causal": causal, "window": sliding_window(128)}.items():
        pairs.clear()
        attention(*given, mask=mask, kernel="tiled")
        found[name] = sum(pairs) / n**2
    assert found["full"] == 1
    assert found["causal"] < 0.6
    assert found["window"] < 0.11


def test_a_plan_is_made_once_for_both_passes(monkeypatch):
    made = []
    real = module.plan
    monkeypatch.setattr(module, "plan", lambda *args: made.append(args) or real(*args))
    given = [x.requires_grad_() for x in tensors()]
    out = attention(*given, mask=causal, **AT, kernel="tiled")
    assert len(made) == 1
    out.sum().backward()
    assert len(made) == 1


def test_derivatives_match_finite_differences_those_of_the_log_sum_exp_too():
    given = [x.requires_grad_() for x in tensors((1, 2, 3, 2), (1, 1, 5, 2), (1, 1, 5, 3))]
    how = {"mask": causal, "query_offset": 2, "key_offset": 0, "kernel": "tiled"}
    assert torch.autograd.gradcheck(lambda *x: attention(*x, return_lse=True, **how), given)


# --- what a score mod learns ---------------------------------------------------------------------


def of_a_table():
    table = torch.linspace(-1, 1, H, dtype=torch.float64).requires_grad_()
    return (lambda s, b, h, q, k: s + table[h] * (q - k)), [table]


def of_two_tables():
    one = torch.linspace(-1, 1, H, dtype=torch.float64).requires_grad_()
    two = torch.linspace(0.5, 2, B, dtype=torch.float64).requires_grad_()
    return (lambda s, b, h, q, k: s * two[b] + one[h]), [one, two]


def of_a_layer():
    """The table is the output of a layer, whose graph lies outside."""
    torch.manual_seed(0)
    layer = nn.Linear(4, H).double()
    table = layer(torch.ones(4, dtype=torch.float64)).tanh()
    return (lambda s, b, h, q, k: s * (1 + table[h])), list(layer.parameters())


def of_a_module():
    torch.manual_seed(0)
    bias = T5Bias(H).double()
    return bias, list(bias.parameters())


def of_a_stack():
    """The tensors come to an operation in a list."""
    some = [torch.tensor(float(i), dtype=torch.float64).requires_grad_() for i in range(H)]
    return (lambda s, b, h, q, k: s * (1 + torch.stack(some)[h])), some


@pytest.mark.parametrize(
    "make",
    [of_a_table, of_two_tables, of_a_layer, of_a_module, of_a_stack],
    ids=lambda f: f.__name__,
)
@pytest.mark.usefixtures("tiny")
def test_what_a_score_mod_captures_learns_as_through_the_reference(make):
    given = tensors()
    grads = []
    for kernel in ("reference", "tiled"):
        score_mod, leaves = make()
        out = attention(*given, score_mod=score_mod, mask=causal, **AT, kernel=kernel)
        grads.append(torch.autograd.grad(out.sin().sum(), leaves))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
        assert a.any()


def test_a_score_mod_that_ignores_the_score_passes_nothing_back():
    given = [x.requires_grad_() for x in tensors()]
    table = torch.linspace(-1, 1, H, dtype=torch.float64).requires_grad_()
    how = {"score_mod": lambda s, b, h, q, k: table[h] * k, **AT}
    out = attention(*given, kernel="tiled", **how)
    query, key, value, grad = torch.autograd.grad(out.sin().sum(), [*given, table])
    assert not query.any() and not key.any() and value.any() and grad.any()


class Twice(torch.autograd.Function):
    """A function with a backward pass of its own, which a score mod calls."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_a_score_mod_may_call_a_function_with_a_backward_pass_of_its_own():
    table = torch.linspace(1, 2, H, dtype=torch.float64).requires_grad_()
    grads = []
    for kernel in ("reference", "tiled"):
        how = {"score_mod": lambda s, b, h, q, k: s * Twice.apply(table)[h], **AT}
        out = attention(*tensors(), kernel=kernel, **how)
        grads += torch.autograd.grad(out.sin().sum(), table)
    torch.testing.assert_close(*grads)
    assert grads[0].all()


def test_what_cannot_be_found_is_refused_and_not_dropped():
    table = torch.ones(H, dtype=torch.float64, requires_grad=True)
    unseen = torch._C.DisableTorchFunction  # as code without Python has it

    def half_seen(s, b, h, q, k):
        with unseen():
            twice = table * 2
        return s * twice[h]

    def not_seen(s, b, h, q, k):
        with unseen():
            return s * table[h]

    for score_mod in (half_seen, not_seen):
        with pytest.raises(NotImplementedError, match=r"kernel='tiled' cannot find .*captures"):
            attention(*tensors(), score_mod=score_mod, **AT, kernel="tiled").sum().backward()
        with torch.no_grad():  # where nothing learns, nothing is refused
            attention(*tensors(), score_mod=score_mod, **AT, kernel="tiled")


def test_a_table_that_was_changed_in_between_raises():
    table = torch.zeros(H, dtype=torch.float64, requires_grad=True)
    out = attention(*tensors(), score_mod=lambda s, b, h, q, k: s + table[h], **AT, kernel="tiled")
    with torch.no_grad():
        table += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_captured_finds_each_tensor_that_learns_once_and_no_other():
    zero = torch.zeros((), dtype=torch.int64)
    learns, still = torch.ones(3, requires_grad=True), torch.ones(3)

    def mod(s, b, h, q, k):
        made = learns * 2
        return s + made[h] + learns[h] + still[h]

    (found,) = captured(mod, torch.zeros(()), zero, zero, zero, zero)
    assert found is learns
    assert captured(alibi(3), torch.zeros(()), zero, zero, zero, zero) == []


def test_second_derivatives_of_a_table_are_refused_too():
    table = torch.zeros(H, dtype=torch.float64, requires_grad=True)
    out = attention(*tensors(), score_mod=lambda s, b, h, q, k: s + table[h], **AT, kernel="tiled")
    (first,) = torch.autograd.grad(out.sin().sum(), table, create_graph=True)
    with pytest.raises(NotImplementedError, match="kernel='tiled' cannot do second derivatives"):
        first.sum().backward()


# --- vmap ----------------------------------------------------------------------------------------

N = 3
HOW = {
    "plain": {},
    "causal": {"mask": causal, **AT},
    "padding": {"mask": padding(torch.tensor([9, 25])), **AT},
    "offsets by row": {"mask": causal, "query_offset": torch.tensor([3, 12]), "key_offset": 0},
    "tensor": {"mask": torch.rand(B, 1, L, S, generator=torch.Generator().manual_seed(0)) < 0.5},
    "tensor for all": {"mask": torch.arange(S).expand(1, 1, 1, S) % 3 > 0},
    "softcap": {"score_mod": softcap(1.0), **AT},
    "of rows": {"score_mod": lambda s, b, h, q, k: s * (1 + b), **AT},
}


@pytest.mark.parametrize("dims", [(0, 0, 0), (0, None, 1), (2, 0, None)], ids=str)
@pytest.mark.parametrize("name", HOW)
def test_vmap_maps_it_and_its_gradients(name, dims):
    given = tensors((N, B, H, L, D), (N, B, H_KV, S, D), (N, B, H_KV, S, DV))
    given = [x[0] if d is None else x.movedim(0, d) for x, d in zip(given, dims, strict=True)]
    grads = []
    for kernel in ("reference", "tiled"):

        def run(*x, kernel=kernel):
            return attention(*x, kernel=kernel, **HOW[name])

        out = torch.vmap(run, in_dims=dims)(*given)
        loss = torch.func.grad(lambda *x: run(*x).sin().sum(), argnums=(0, 1, 2))
        grads.append([out, *torch.vmap(loss, in_dims=dims)(*given)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_vmap_maps_a_mask_and_offsets_too():
    given = tensors((N, B, H, L, D), (N, B, H_KV, S, D), (N, B, H_KV, S, DV))
    mask = torch.rand(N, B, 1, L, S, generator=torch.Generator().manual_seed(1)) < 0.5
    starts = torch.tensor([[0, 9], [12, 1], [5, 5]])
    for extra, how in (
        (mask, lambda x: {"mask": x}),
        (starts, lambda x: {"mask": causal, "query_offset": x, "key_offset": 0}),
    ):
        both = [
            torch.vmap(lambda q, k, v, x, n=n, how=how: attention(q, k, v, kernel=n, **how(x)))(
                *given, extra
            )
            for n in ("reference", "tiled")
        ]
        torch.testing.assert_close(*both, rtol=0, atol=1e-12)


def test_gradients_for_many_directions_at_once_are_those_of_each():
    given = [x.requires_grad_() for x in tensors()]
    table = torch.linspace(-1, 1, H, dtype=torch.float64).requires_grad_()
    how = {"score_mod": lambda s, b, h, q, k: s * (2 + table[h]), **AT}
    directions = torch.randn(N, B, H, L, DV, dtype=torch.float64)
    both = []
    for kernel in ("reference", "tiled"):
        out = attention(*given, kernel=kernel, **how)
        leaves = [*given, table]
        each = functools.partial(torch.autograd.grad, out, leaves, retain_graph=True)
        both.append(torch.vmap(each)(directions))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n", [2, B * 2])
def test_what_a_mod_captures_is_not_mapped_over_in_silence(n):
    given = tensors((n, B, H, L, D), (n, B, H_KV, S, D), (n, B, H_KV, S, DV))
    lengths, table = torch.full((n, B), 9), torch.ones(n, H, dtype=torch.float64)
    says = "kernel='tiled' cannot let torch.func transform what a mod captures"

    def masked(q, k, v, x):
        return attention(q, k, v, mask=lambda b, h, i, j: j < x[b], **AT, kernel="tiled")

    def scored(q, k, v, x):
        return attention(q, k, v, score_mod=lambda s, b, h, i, j: s * x[h], **AT, kernel="tiled")

    with pytest.raises(NotImplementedError, match=says):
        torch.vmap(masked)(*given, lengths)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), pytest.raises(NotImplementedError, match=says):
            torch.vmap(scored)(*given, table)
    one = [x[0] for x in given]
    with pytest.raises(NotImplementedError, match=says):
        torch.func.grad(lambda x: scored(*one, x).sum())(table[0])


def test_rows_that_are_alike_but_expanded_count_as_rows():
    """Heads and rows of stride 0, as expand makes them, change nothing."""
    query, key, value = tensors((1, 1, L, D), (1, 1, S, D), (1, 1, S, DV))
    wide = [x.expand(B, 3, -1, -1) for x in (query, key, value)]
    mask = (torch.arange(S) % 2 == 0).expand(B, 3, L, S)
    out = attention(*wide, mask=mask, kernel="tiled")
    want = attention(query, key, value, mask=mask[:1, :1])
    torch.testing.assert_close(out, want.expand_as(out))


def test_a_score_of_minus_infinity_from_a_mod_hides_the_pair():
    given = [x.requires_grad_() for x in tensors()]

    def mod(s, b, h, q, k):
        return torch.where((k > q) | (q == S - L), -math.inf, s)

    out, lse = attention(*given, score_mod=mod, **AT, kernel="tiled", return_lse=True)
    assert not out[:, :, 0].any() and (lse[:, :, 0] == -math.inf).all()
    grads = torch.autograd.grad(out.sin().sum(), given)
    assert all(x.isfinite().all() for x in grads)


def test_what_a_score_mod_says_of_hidden_pairs_does_not_count():
    given = tensors(seed=4)

    def wild(score, b, h, q_idx, kv_idx):
        return torch.where(q_idx >= kv_idx, score, torch.nan)

    at = {"query_offset": 3, "key_offset": 0, "mask": causal, "return_lse": True}
    got = attention(*given, **at, score_mod=wild, kernel="tiled")
    want = attention(*given, **at)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def test_a_mask_of_more_than_one_answer_is_refused_as_by_the_reference():
    rows = torch.randn(40, 2)
    at = {"query_offset": 0, "key_offset": 0, "mask": lambda b, h, q, k: rows[q] > rows[k]}
    for kernel in ("reference", "tiled"):
        with pytest.raises(TypeError, match="mask must return one"):
            attention(*tensors(), **at, kernel=kernel)


OF_HEADS = torch.randn(H, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
NOT_AT_ONCE = {
    "counts the scores": lambda s, b, h, q, k: s * s.numel(),
    "a mean of its head": lambda s, b, h, q, k: s + OF_HEADS.T[:, h].mean(),
}


@pytest.mark.parametrize("name", NOT_AT_ONCE)
def test_a_score_mod_of_one_pair_is_one_of_one_pair(name):
    """What would say something else of many pairs is asked about each."""
    given = tensors(seed=6)
    at = {"query_offset": 0, "key_offset": 0, "score_mod": NOT_AT_ONCE[name]}
    got, want = (attention(*given, **at, kernel=kernel) for kernel in ("tiled", "reference"))
    torch.testing.assert_close(got, want)
