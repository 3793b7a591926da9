"""Every kernel computes the same thing, or says that it cannot.

The matrix itself, its cases and the formula that they are held against are in conformance.py.
"""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import and_masks, create_block_mask, or_masks
from torch.utils._python_dispatch import TorchDispatchMode

from attention import (
    MultiHeadAttention,
    T5Bias,
    alibi,
    attention,
    causal,
    document,
    first_tokens,
    kernels,
    padding,
    prefix_lm,
    shift,
    sliding_window,
    softcap,
)
from attention.kernels import CAPABILITIES
from tests import conformance
from tests.conformance import ASPECTS, DTYPES, MASKS, OFFSETS, SCORES, SHAPES
from tests.machine import KERNELS, can

INF = math.inf
B, H, H_KV, L, S, D, DV = 2, 6, 3, 5, 7, 11, 13


def tensors(*, grad=False, dtype=torch.float64, n=H, n_kv=H_KV, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (B, n, L, D), (B, n_kv, S, D), (B, n_kv, S, DV)
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes]
    return [x.requires_grad_(grad) for x in made]


ANY_MASK = can("masks with gaps")
# The edge cases below do not depend on heads, and Triton in Python runs them one by one.
FEW = {"n": 2, "n_kv": 1}
DIFFERENTIABLE = can("gradients on a CPU")
IN_ONE_GRAPH = can("torch.compile in one graph")


# --- the matrix ----------------------------------------------------------------------------------


def is_as_the_table_says(cases, kernel):
    for case in cases:
        lacks = conformance.refusals(kernel, case)
        promised = {a: "passed" if c is None else "refused" for a, c in lacks.items()}
        assert conformance.check(case, kernel) == promised, f"{kernel}: {case}"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_square_of_the_matrix_is_passed_or_refused_as_the_table_says(kernel, mask):
    is_as_the_table_says([c for c in conformance.square() if c.mask == mask], kernel)


@pytest.mark.exhaustive
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_case_is_passed_or_refused_as_the_table_says(kernel, mask, score):
    these = [c for c in conformance.cases() if (c.mask, c.score) == (mask, score)]
    is_as_the_table_says(these, kernel)


AXES = {"mask": MASKS, "score": SCORES, "shape": SHAPES, "dtype": DTYPES, "offsets": OFFSETS}


@pytest.mark.parametrize("cases", [conformance.cases, conformance.square])
def test_every_value_of_an_axis_meets_every_value_of_every_other(cases):
    seen = {
        pair
        for case in cases()
        for pair in itertools.combinations([(axis, getattr(case, axis)) for axis in AXES], 2)
    }
    for (one, these), (other, those) in itertools.combinations(AXES.items(), 2):
        for pair in itertools.product(these, those):
            if pair != ("two dimensions", "one a row"):  # where there are no rows
                assert tuple(zip((one, other), pair, strict=True)) in seen, pair


@pytest.mark.parametrize("kernel", kernels.KERNELS)
def test_the_square_has_every_value_that_a_kernel_can_do(kernel):
    def computed(cases):
        done = [case for case in cases if conformance.refusals(kernel, case)["values"] is None]
        return {(axis, getattr(case, axis)) for case in done for axis in AXES}

    missed = computed(conformance.cases()) - computed(conformance.square())
    if "masks with gaps" not in kernels.KERNELS[kernel].unsupported:
        assert not missed
    # A random tensor has no gaps where L or S is 1 alone, with one of six scores.
    assert all(axis == "mask" and MASKS[value].is_tensor for axis, value in missed)


def test_the_page_shows_this_matrix():
    shown = json.loads(conformance.FILE.read_text())
    cases = list(conformance.cases())
    assert shown["cases"] == len(cases)
    assert shown["shapes"] == {name: [*shape[:7]] for name, shape in SHAPES.items()}
    assert (shown["scores"], shown["offsets"]) == ([*SCORES], [*OFFSETS])
    assert [*shown["kernels"]] == [*kernels.KERNELS]
    for kernel, counts in shown["kernels"].items():
        lacks = [(case, conformance.refusals(kernel, case)) for case in cases]
        for aspect in ASPECTS:
            verdicts = [
                "passed" if c[aspect] is None else "refused" for _, c in lacks if aspect in c
            ]
            assert counts["aspects"][aspect] == Counter(verdicts)
        for mask in MASKS:
            verdicts = [
                "passed" if c is None else "refused"
                for case, aspects in lacks
                if case.mask == mask
                for c in aspects.values()
            ]
            assert counts["masks"][mask] == Counter(verdicts)


def test_the_matrix_notices_what_it_should(monkeypatch):
    case = next(c for c in conformance.cases() if c.mask == "causal" and c.shape == "L < S")
    right = conformance.check(case, "reference")
    assert set(right.values()) == {"passed"}
    monkeypatch.setitem(
        conformance.MASKS,
        "causal",
        conformance.Masking(lambda at: first_tokens(99), MASKS["causal"].allowed),
    )
    wrong = conformance.check(case, "reference")
    assert "is off by" in wrong["values"] and "is off by" in wrong["gradients"]


# --- what holds at the edges ---------------------------------------------------------------------

POSITIONED = {
    "causal": causal,
    "sliding_window": sliding_window(3),
    "first_tokens": first_tokens(2),
    "prefix_lm": prefix_lm(3),
    "document": document(torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2], [5, 6, 6, 6, 6, 6, 7, 7]])),
    "padding": padding(torch.tensor([4, 6])),
    "shift": shift(causal, -1, 0),
    "sinks": and_masks(causal, or_masks(sliding_window(2), first_tokens(1))),
    "BlockMask": create_block_mask(sliding_window(2), B, H, L, S, device="cpu"),
}


def allowed_by(mask, query_offset=1):
    mod = getattr(mask, "mask_mod", mask)
    grid = [
        [
            [bool(mod(*map(torch.tensor, (b, 0, i + query_offset, j)))) for j in range(S)]
            for i in range(L)
        ]
        for b in range(B)
    ]
    return torch.tensor(grid)  # (B, L, S)


@pytest.mark.parametrize(
    ("kernel", "mask"),
    [
        # Triton in Python is slow: one mask here, and two more where time does not count.
        pytest.param(kernel, mask, marks=pytest.mark.exhaustive if slow else [])
        for kernel, mask in itertools.product(KERNELS, POSITIONED)
        if kernel in ANY_MASK or mask in ("sliding_window", "document", "shift")
        for slow in [kernel == "triton" and mask != "document"]
    ],
)
def test_a_key_has_influence_if_and_only_if_it_is_allowed(kernel, mask):
    query, key, value = tensors(**FEW)
    mask = POSITIONED[mask]
    how = {"mask": mask, "query_offset": 1, "key_offset": 0, "kernel": kernel}
    before = attention(query, key, value, **how)
    allowed = allowed_by(mask)
    for j in range(S):
        for changed in ("key", "value"):
            given = {"key": key.clone(), "value": value.clone()}
            given[changed][:, :, j] += 1
            moved = (attention(query, **given, **how) != before).any(-1)  # (B, H, L)
            lone = allowed.sum(-1) == 1  # the weight of an only key is 1, whatever the key
            expected = allowed[..., j] & ~lone if changed == "key" else allowed[..., j]
            assert torch.equal(moved, expected[:, None].expand(B, 2, L)), (j, changed)


@pytest.mark.parametrize("form", ["mod", "tensor", "BlockMask"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # Triton's, in Python
def test_a_key_hidden_from_all_has_no_influence_not_even_as_nan(kernel, form):
    mod = and_masks(padding(torch.tensor([4, 6])), causal)
    mask = {
        "mod": mod,
        "tensor": allowed_by(mod, S - L)[:, None],
        "BlockMask": create_block_mask(shift(mod, S - L, 0), B, 1, L, S, device="cpu"),
    }[form]
    at = {"mod": (S - L, 0), "BlockMask": (0, 0)}.get(form, (None, None))
    how = dict(zip(("query_offset", "key_offset"), at, strict=True), mask=mask, kernel=kernel)
    grad = kernel in DIFFERENTIABLE
    clean, dirty = tensors(grad=grad, **FEW), tensors(**FEW)
    for x in dirty[1:]:
        x[0, :, 4:], x[1, :, 6:] = torch.tensor([math.nan, INF, -INF])[:, None], math.nan
    dirty = [x.requires_grad_(grad) for x in dirty]
    before, after = attention(*clean, **how), attention(*dirty, **how)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    if grad:
        there, here = (
            torch.autograd.grad(before.sum(), clean),
            torch.autograd.grad(after.sum(), dirty),
        )
        torch.testing.assert_close(here, there, rtol=0, atol=1e-12)
        assert not here[1][0, :, 4:].any() and not here[2][1, :, 6:].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_keys_past_the_last_query_of_a_causal_mask_may_be_anything(kernel):
    query, key, value = tensors(**FEW)
    how = {"mask": causal, "query_offset": 0, "key_offset": 0, "kernel": kernel}
    before = attention(query, key, value, **how)
    key[:, :, L:], value[:, :, L:] = math.nan, INF
    torch.testing.assert_close(attention(query, key, value, **how), before)


@pytest.mark.parametrize("form", ["mod", "tensor"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_query_that_sees_nothing_gets_zeros_and_gives_no_nan(kernel, form):
    grad = kernel in DIFFERENTIABLE
    query, key, value = tensors(**FEW)
    query[:, :, 0] = math.nan  # that of a token that is not there
    given = [x.requires_grad_(grad) for x in (query, key, value)]
    mask = torch.ones(L, S, dtype=torch.bool)
    mask[0] = False
    how = {"mask": mask, "kernel": kernel}
    if form == "mod":
        how |= {"mask": shift(causal, -1, 0), "query_offset": 0, "key_offset": 0}
    with_lse = kernel in can("return_lse")
    out = attention(*given, **how, return_lse=with_lse)
    if with_lse:
        out, lse = out
        assert (lse[:, :, 0] == -INF).all() and lse[:, :, 1:].isfinite().all()
    assert not out[:, :, 0].any() and out[:, :, 1:].all()
    if grad:
        gradients = torch.autograd.grad(out.sum(), given)
        assert all(g.isfinite().all() for g in gradients)
        assert not gradients[0][:, :, 0].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_strides_do_not_matter(kernel):
    query, key, value = tensors(n=2, n_kv=2)
    how = {"mask": causal, "query_offset": 2, "key_offset": 0, "kernel": kernel}
    straight = attention(query, key, value, **how)
    crossed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    every_other = [x.repeat_interleave(2, dim=-1)[..., ::2] for x in (query, key, value)]
    for given in (crossed, every_other):
        assert not any(x.is_contiguous() for x in given)
        torch.testing.assert_close(attention(*given, **how), straight)
    one = [x[:1, :1].expand(B, 2, -1, -1) for x in (query, key, value)]
    torch.testing.assert_close(
        attention(*one, **how), attention(*[x.contiguous() for x in one], **how)
    )


@pytest.mark.parametrize("size", ["B", "H", "L", "S", "Dv"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_entries_are_no_trouble(kernel, size):
    sizes = {"B": B, "H": 1, "L": L, "S": S, "Dv": DV} | {size: 0}
    n, h, n_q, n_k, dv = sizes.values()
    query = torch.randn(n, h, n_q, D, requires_grad=kernel in DIFFERENTIABLE)
    key, value = torch.randn(n, max(h, 1), n_k, D), torch.randn(n, max(h, 1), n_k, dv)
    for mask in (None, causal):
        at = {} if mask is None else {"query_offset": 0, "key_offset": 0}
        out = attention(query, key, value, mask=mask, kernel=kernel, **at)
        assert out.shape == (n, h, n_q, dv) and not out.isnan().any()
        if size == "S":
            assert not out.any()
        if out.requires_grad:
            (gradient,) = torch.autograd.grad(out.sum(), query)
            assert not gradient.isnan().any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_second_derivatives_are_right_or_raise(kernel):
    query, key, value = (x[:1, :, :2, :2] for x in tensors(n_kv=H))
    given = [x.detach().requires_grad_(kernel in DIFFERENTIABLE) for x in (query, key, value)]
    if kernel in can("second derivatives"):
        assert torch.autograd.gradgradcheck(lambda *x: attention(*x, kernel=kernel), given)
    elif kernel in DIFFERENTIABLE:
        out = attention(*given, kernel=kernel)
        (first,) = torch.autograd.grad(out.square().sum(), given[0], create_graph=True)
        with pytest.raises(RuntimeError, match=r"not implemented|cannot do second derivatives"):
            first.sum().backward()
    else:  # what a score_mod captures still has gradients, which must not be dropped in silence
        bias = T5Bias(H).double()
        out = attention(*given, kernel=kernel, score_mod=bias)
        with pytest.raises(NotImplementedError, match="second derivatives"):
            torch.autograd.grad(out.sum(), bias.table.weight, create_graph=True)


# --- what a kernel refuses -----------------------------------------------------------------------


def test_the_table_speaks_of_known_capabilities_and_gives_reasons():
    for kernel in kernels.KERNELS.values():
        assert set(kernel.unsupported) <= set(CAPABILITIES)
        assert all(why.strip() for why in kernel.unsupported.values())
    assert not kernels.KERNELS["reference"].unsupported


@pytest.mark.parametrize(
    ("kernel", "words", "how", "able"),
    [
        (
            "sdpa",
            "score_mod",
            {"score_mod": softcap(2.0), "query_offset": 0, "key_offset": 0},
            "reference, flex and tiled",
        ),
        ("sdpa", "return_lse", {"return_lse": True}, "reference, flex, tiled and triton"),
        ("flex", "gradients on a CPU", {}, "reference, sdpa, tiled and triton"),
    ],
)
def test_a_refusal_names_the_kernel_what_it_lacks_and_who_can(kernel, words, how, able):
    given = tensors(grad=kernel == "flex")
    says = f"^kernel='{kernel}' cannot do {words}: .+; {able} can$"
    with pytest.raises(NotImplementedError, match=says):
        attention(*given, kernel=kernel, **how)
    with torch.no_grad():  # where nothing is asked for, nothing is refused
        attention(*given, kernel=kernel)


# --- the adapters --------------------------------------------------------------------------------


class Ops(TorchDispatchMode):
    """The operators that PyTorch runs, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


FUSED = {
    "plain": ({}, {}),
    "causal": ({"mask": causal, "query_offset": 3, "key_offset": 3}, {}),
    "causal BlockMask": (
        {
            "mask": create_block_mask(causal, B, H, L, S, device="cpu"),
            "query_offset": 0,
            "key_offset": 0,
        },
        {},
    ),
    "a decoding step": ({"mask": causal, "query_offset": S - 1, "key_offset": 0}, {"n": 1}),
    "grouped": ({}, {"n_kv": 2}),
    "one key head": ({"mask": causal, "query_offset": 0, "key_offset": 0}, {"n_kv": 1}),
    "two dimensions": ({}, {"flat": True}),
    "Dv < D": ({}, {"dv": 3}),
    "window": ({"mask": sliding_window(2), "query_offset": 0, "key_offset": 0}, {}),
}


@pytest.mark.parametrize("name", FUSED)
def test_sdpa_takes_the_fused_path_and_a_mask_only_where_it_must(name):
    how, shape = FUSED[name]
    query, key, value = tensors(n_kv=shape.get("n_kv", H))
    query, value = query[:, :, : shape.get("n", L)], value[..., : shape.get("dv", DV)]
    given = [x[0, 0] for x in (query, key, value)] if shape.get("flat") else [query, key, value]
    with Ops() as ops:
        out = attention(*given, **how, kernel="sdpa")
    assert "_scaled_dot_product_flash_attention_for_cpu.default" in ops.names
    assert any("any" in op for op in ops.names) == (name == "window")  # a mask was written out
    torch.testing.assert_close(out, attention(*given, **how))


def test_sdpa_does_not_take_is_causal_where_it_means_something_else():
    query, key, value = tensors()
    for at in ({"query_offset": S - L, "key_offset": 0}, {"query_offset": 0, "key_offset": 1}):
        out = attention(query, key, value, mask=causal, **at, kernel="sdpa")
        torch.testing.assert_close(out, attention(query, key, value, mask=causal, **at))
        top_left = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        assert not torch.allclose(out, top_left)


def test_a_block_mask_of_other_sizes_counts_through_its_mod():
    query, key, value = tensors(**FEW)
    how = {"query_offset": S - L, "key_offset": 0}
    small = create_block_mask(causal, 1, 1, 3, 3, device="cpu")
    for kernel in KERNELS:
        torch.testing.assert_close(
            attention(query, key, value, mask=small, kernel=kernel, **how),
            attention(query, key, value, mask=causal, **how),
        )


@pytest.mark.parametrize("kernel", [n for n in KERNELS if n not in IN_ONE_GRAPH])
def test_compiled_in_pieces_a_kernel_gives_the_same_and_says_that_it_is_no_one_graph(kernel):
    def run(query, key, value):
        at = {"query_offset": S - L, "key_offset": 0}
        return attention(query, key, value, mask=sliding_window(3), kernel=kernel, **at)

    given = tensors(dtype=torch.float32, **FEW)
    compiled = torch.compile(run, backend="eager")
    torch.testing.assert_close(compiled(*given), run(*given))
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=f"attention.{kernel}|function {kernel}"):
        torch.compile(run, backend="eager", fullgraph=True)(*given)


def test_a_table_learns_through_flex_as_through_the_reference():
    query, key, value = tensors()
    bias = T5Bias(H, n_buckets=8, max_distance=16).double()
    at = {"mask": causal, "query_offset": 2, "key_offset": 0, "score_mod": bias}
    gradients = []
    for kernel in ("reference", "flex"):
        out = attention(query, key, value, kernel=kernel, **at)
        gradients += torch.autograd.grad(out.square().sum(), bias.table.weight)
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


def test_a_layer_takes_the_biases_as_they_are():
    layer = MultiHeadAttention(12, 6).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    plain = layer(x, mask=causal)
    for bias in (alibi(6), T5Bias(6).double(), softcap(0.3)):
        assert not torch.allclose(layer(x, mask=causal, score_mod=bias), plain)
