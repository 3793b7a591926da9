"""The tiled kernel at its seams: tiles of all sizes, what it skips, keeps and refuses.

That it computes the right thing is the matter of the conformance matrix, which is run here again
with tiles so small that each case has many.
"""

import functools
import math

import pytest
import torch

import attention.kernels.tiled as module
from attention import (
    T5Bias,
    alibi,
    attention,
    causal,
    document,
    first_tokens,
    padding,
    prefix_lm,
    shift,
    sliding_window,
    softcap,
)
from attention.masking import evaluate_mod
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
    block, queries, keys, pairs = request.param
    monkeypatch.setattr("attention.kernels.blocks.BLOCK", block)
    monkeypatch.setattr(module, "QUERIES", queries)
    monkeypatch.setattr(module, "KEYS", keys)
    monkeypatch.setattr(module, "PAIRS", pairs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.usefixtures("tiny")
def test_the_matrix_is_passed_with_tiles_of_any_size(mask):
    cases = [c for c in conformance.cases() if c.mask == mask and c.shape != "no tile divides"]
    for case in cases[::7]:
        lacks = conformance.refusals("tiled", case)
        promised = {a: "passed" if c is None else "refused" for a, c in lacks.items()}
        assert conformance.check(case, "tiled") == promised, case


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


# --- what a score mod captures, and transforms ---------------------------------------------------


def test_a_score_mod_that_ignores_the_score_passes_nothing_back():
    given = [x.requires_grad_() for x in tensors()]
    table = torch.linspace(-1, 1, H, dtype=torch.float64)
    how = {"score_mod": lambda s, b, h, q, k: table[h] * k, **AT}
    out = attention(*given, kernel="tiled", **how)
    query, key, value = torch.autograd.grad(out.sin().sum(), given)
    assert not query.any() and not key.any() and value.any()


def of_a_table():
    table = torch.ones(H, dtype=torch.float64, requires_grad=True)
    return lambda s, b, h, q, k: s + table[h] * (q - k)


def of_a_layer():
    table = torch.nn.Linear(4, H).double()(torch.ones(4, dtype=torch.float64))
    return lambda s, b, h, q, k: s * (1 + table[h])


def unseen_by_python():
    table = torch.ones(H, dtype=torch.float64, requires_grad=True)

    def mod(s, b, h, q, k):
        with torch._C.DisableTorchFunction():
            return s * table[h]

    return mod


@pytest.mark.parametrize(
    "make",
    [of_a_table, of_a_layer, lambda: T5Bias(H).double(), unseen_by_python],
    ids=["table", "layer", "module", "unseen"],
)
def test_gradients_of_what_a_score_mod_captures_are_refused_and_not_dropped(make):
    score_mod = make()
    says = (
        r"^kernel='tiled' cannot do gradients of what a score_mod captures: .* reference and flex"
    )
    with pytest.raises(NotImplementedError, match=says):
        attention(*tensors(), score_mod=score_mod, **AT, kernel="tiled")
    with torch.no_grad():  # where nothing learns, nothing is refused
        got, want = (
            attention(*tensors(), score_mod=score_mod, **AT, kernel=kernel)
            for kernel in ("tiled", "reference")
        )
        torch.testing.assert_close(got, want)
    loss = lambda x: attention(  # noqa: E731
        *tensors(), score_mod=lambda s, b, h, q, k: s * x, **AT, kernel="tiled"
    ).sum()
    with pytest.raises(NotImplementedError, match=says):
        torch.func.grad(loss)(torch.ones((), dtype=torch.float64))


def test_func_grad_differentiates_it():
    given = tensors()
    grads = [
        torch.func.grad(
            lambda *x, kernel=kernel: attention(*x, mask=causal, **AT, kernel=kernel).sin().sum(),
            argnums=(0, 1, 2),
        )(*given)
        for kernel in ("reference", "tiled")
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_vmap_is_refused_forward_backward_and_over_what_a_mod_captures():
    one = [x.requires_grad_() for x in tensors()]
    many = [torch.stack([x, x]) for x in one]
    says = r"kernel='tiled' cannot do torch\.vmap"
    with pytest.raises(NotImplementedError, match=says):
        torch.vmap(lambda *x: attention(*x, mask=causal, **AT, kernel="tiled"))(*many)
    out = attention(*one, mask=causal, **AT, kernel="tiled")
    each = functools.partial(torch.autograd.grad, out, one)
    with pytest.raises(NotImplementedError, match=says):
        torch.vmap(each)(torch.ones(3, *out.shape, dtype=torch.float64))
    with torch.no_grad(), pytest.raises(NotImplementedError, match=says):
        torch.vmap(lambda x: attention(*one, score_mod=lambda s, *at: s * x, **AT, kernel="tiled"))(
            torch.ones(2, dtype=torch.float64)
        )


def test_rows_that_are_alike_but_expanded_count_as_rows():
    """Heads and rows of stride 0, as expand makes them, change nothing."""
    query, key, value = tensors((1, 1, L, D), (1, 1, S, D), (1, 1, S, DV))
    wide = [x.expand(B, 3, -1, -1) for x in (query, key, value)]
    mask = (torch.arange(S) % 2 == 0).expand(B, 3, L, S)
    out = attention(*wide, mask=mask, kernel="tiled")
    want = attention(query, key, value, mask=mask[:1, :1])
    torch.testing.assert_close(out, want.expand_as(out))


IDS = torch.arange(60) // 7
ELEMENTWISE = {
    "causal": causal,
    "window": sliding_window(4),
    "first tokens": first_tokens(3),
    "prefix": prefix_lm(5),
    "document": document(IDS),
    "documents of rows": document(torch.stack([IDS, IDS.flip(0)])),
    "padding": padding(torch.tensor([9, 25])),
    "shift": shift(causal, 3, 0),
    "shift by row": shift(sliding_window(6), torch.tensor([3, 9]), torch.tensor([0, 2])),
    "alibi": alibi(H),
    "T5": T5Bias(H).double(),
    "softcap": softcap(0.5),
    "shifted alibi": shift(alibi(H), torch.tensor([3, 9]), 0),
}


SCORE_MODS = ("alibi", "T5", "softcap", "shifted alibi")


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_mod_of_the_package_broadcasts_as_it_states(name, by_row):
    mod = ELEMENTWISE[name]
    assert mod.elementwise
    q, k = torch.arange(L) + 2, torch.arange(S)
    if by_row:
        q, k = torch.stack([q, q + 7]), torch.stack([k + 1, k])
    indices = torch.arange(B), torch.arange(H), q, k
    scores = tensors((B, H, L, S)) if name in SCORE_MODS else []
    got = evaluate_mod(mod, indices, *scores)
    want = evaluate_mod(lambda *pair: mod(*pair), indices, *scores)  # by vmap
    assert torch.equal(got, want) and got.dtype == want.dtype


def test_a_mod_that_does_not_state_it_is_not_called_with_broadcast_tensors():
    shapes = []

    def mine(b, h, q, k):
        shapes.append(q.shape)
        return q >= k

    for mod in (mine, shift(mine, 1, 0)):
        attention(*tensors(), mask=mod, **AT, kernel="tiled")
        assert not any(shapes[1:])  # the first call is with intervals
        shapes.clear()


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
OF_ONE_PAIR = {
    "counts the scores": lambda s, b, h, q, k: s * s.numel(),
    "a mean of its head": lambda s, b, h, q, k: s + OF_HEADS.T[:, h].mean(),
}


@pytest.mark.parametrize("name", OF_ONE_PAIR)
def test_a_score_mod_of_one_pair_is_one_of_one_pair(name):
    """A mod that does not broadcast is evaluated for each pair."""
    given = tensors(seed=6)
    at = {"query_offset": 0, "key_offset": 0, "score_mod": OF_ONE_PAIR[name]}
    got, want = (attention(*given, **at, kernel=kernel) for kernel in ("tiled", "reference"))
    torch.testing.assert_close(got, want)


def test_a_mask_that_is_changed_before_the_backward_pass_raises():
    query, key, value = (torch.randn(1, 2, 5, 3, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    out = attention(query, key, value, mask=mask, kernel="tiled")
    mask.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
