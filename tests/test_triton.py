"""The kernel for a GPU, run in Python.

Its share of the conformance matrix is in test_conformance.py; it is compiled in test_imports.py.
"""

import json
import math

import pytest
import torch

from attention import attention, causal, document, padding, shift, sliding_window
from tests import machine

if not machine.TRITON:
    pytest.skip(machine.NO_TRITON, allow_module_level=True)

import triton
import triton.language as tl

from attention.kernels import triton as triton_kernel
from attention.kernels.triton import query_range_of_key
from benchmarks import compiled

INF = math.inf
AT_0 = {"query_offset": 0, "key_offset": 0}
IDS = torch.arange(150) // 41


def tensors(H, H_kv, L, S, D, Dv, *, B=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (B, H, L, D), (B, H_kv, S, D), (B, H_kv, S, Dv)
    made = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)
    return [x.to(dtype).requires_grad_() for x in made]


def both(given, **how):
    """Output, log-sum-exp and gradients, of the kernel and of the formula."""
    found = []
    for kernel in ("triton", "reference"):
        out, lse = attention(*given, **how, kernel=kernel, return_lse=True)
        seen = lse.masked_fill(lse == -INF, 0)
        asked = out.double().sin().sum() + seen.double().cos().sum()
        found.append([out, lse, *torch.autograd.grad(asked, given)])
    return zip(*found, strict=True)


CASES = {
    "no mask": {},
    "causal": {"mask": causal, **AT_0},
    "causal, later": {"mask": causal, "query_offset": 70, "key_offset": 0},
    "window": {"mask": sliding_window(40), "query_offset": 20, "key_offset": 0},
    "documents": {"mask": document(IDS), **AT_0},
    "a window before": {"mask": shift(sliding_window(9), -60, 0), **AT_0},
    "keys in the middle": {"mask": lambda b, h, q, k: (k > 35) & (k < 100), **AT_0},
    "blind among others": {"mask": lambda b, h, q, k: (q % 3 > 0) & (k < 99), **AT_0},
    "the last first": {"mask": lambda b, h, q, k: (k + q > 80) & (k + q < 150), **AT_0},
}
IN_MATRIX = ("no mask", "causal", "documents")


@pytest.mark.parametrize(
    "name",
    [
        # The matrix has these masks too, in a shape of several strips and tiles.
        pytest.param(name, marks=pytest.mark.exhaustive if name in IN_MATRIX else [])
        for name in CASES
    ],
)
def test_several_strips_meet_several_tiles(name):
    """Strips of 64 queries and tiles of 32 keys, neither of which divides the lengths."""
    for got, want in both(tensors(2, 1, 131, 137, 5, 3), **CASES[name]):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("D", [16, 64, 100, 128])
def test_heads_up_to_128_numbers(D):
    given = tensors(1, 1, 40, 50, D, D)
    for got, want in both(given, mask=causal, query_offset=10, key_offset=0, scale=0.3):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(129, 4), (4, 129)])
def test_wider_heads_are_refused(sizes):
    with pytest.raises(NotImplementedError, match="'triton' cannot do heads wider than 128"):
        attention(*tensors(1, 1, 2, 2, *sizes), kernel="triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_is_that_of_the_weights_and_no_more(dtype):
    given = tensors(1, 1, 70, 70, 64, 64, dtype=dtype)
    off = (4 if dtype.itemsize == 2 else 40) * torch.finfo(dtype).eps
    for got, want in both(given, mask=causal, **AT_0):
        assert got.dtype == want.dtype
        assert ((got - want).abs() <= off * want.abs().max().clamp(min=1)).all()


def test_a_scale_is_not_rounded_to_float32():
    for got, want in both(tensors(1, 1, 3, 4, 5, 5), scale=1 / 3):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_gradients_are_those_of_finite_differences():
    given = tensors(2, 1, 2, 3, 2, 1)

    def both(*x):
        return attention(*x, mask=causal, **AT_0, kernel="triton", return_lse=True)

    # One random direction for each input: a difference for each number takes 4 s in Python.
    assert torch.autograd.gradcheck(both, given, fast_mode=True)


@pytest.mark.parametrize("use", ["out", "lse"])
def test_a_gradient_may_come_expanded_or_not_at_all(use):
    given = tensors(2, 1, 5, 5, 3, 3)
    grads = []
    for kernel in ("triton", "reference"):
        out, lse = attention(*given, kernel=kernel, return_lse=True)
        asked = (out if use == "out" else lse).sum()
        grads.append(torch.autograd.grad(asked, given, materialize_grads=True))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_what_is_said_of_queries_that_see_nothing_changes_nothing():
    given = tensors(1, 1, 40, 50, 3, 3)
    how = {**CASES["blind among others"], "return_lse": True}
    grads = []
    for kernel in ("triton", "reference"):
        found = attention(*given, **how, kernel=kernel)
        said = [torch.arange(1.0, x.numel() + 1).view_as(x).to(x.dtype) for x in found]
        grads.append(torch.autograd.grad(found, given, said))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-9)
    assert not grads[0][0][:, :, ::3].any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of NaN
def test_what_nobody_sees_may_be_nan_in_whatever_tile():
    mask = padding(torch.tensor([40]))
    given = tensors(1, 1, 70, 100, 4, 4)
    want = list(both(given, mask=mask, **AT_0))
    with torch.no_grad():
        given[1][:, :, 40:], given[2][:, :, 40:] = math.nan, math.nan
    for (got, _), (right, _) in zip(both(given, mask=mask, **AT_0), want, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-12)


@triton.jit
def ask_spans(first, last, S, out, KEYS: tl.constexpr, n: tl.constexpr):
    i = tl.arange(0, n)
    at = triton_kernel.spans(tl.load(first + i), tl.load(last + i), S, KEYS)
    for j in tl.static_range(4):
        tl.store(out + j, at[j])


@pytest.mark.parametrize("seed", range(30))
def test_tiles_are_left_out_or_unmasked_just_where_they_may_be(seed):
    generator = torch.Generator().manual_seed(seed)
    S, n = 100, 16
    first = torch.randint(0, 60 if seed % 2 else 12, (n,), generator=generator, dtype=torch.int32)
    length = torch.randint(0 if seed % 3 else 70, 99, (n,), generator=generator)
    last = (first + length).clamp(max=S).int()
    if seed == 5:
        last = first
    out = torch.zeros(4, dtype=torch.int32)
    ask_spans[(1,)](first, last, S, out, KEYS=16, n=n)
    low, whole, rest, high = out.tolist()
    sees, starts = first < last, range(0, S, 16)
    keys = torch.arange(0, S, 16)[:, None] + torch.arange(16)  # (tiles, keys)
    pairs = (first[:, None, None] <= keys) & (keys < last[:, None, None])
    seen_whole = pairs[sees].all(2).all(0) & sees.any()
    assert [*range(whole, rest, 16)] == [i for i, x in zip(starts, seen_whole, strict=True) if x]
    met = [i for i in starts if low <= i < high]
    hull = [i for i in starts if sees.any() and i + 16 > min(first[sees]) and i < max(last[sees])]
    assert met == hull
    assert low % 16 == whole % 16 == rest % 16 == 0 or whole == rest == high


@pytest.mark.parametrize("in_order", [True, False])
def test_no_query_that_sees_a_key_is_left_out(in_order):
    generator = torch.Generator().manual_seed(7)
    first = torch.randint(0, 30, (2, 3, 25), generator=generator, dtype=torch.int32)
    last = first + torch.randint(0, 9, (2, 3, 25), generator=generator, dtype=torch.int32)
    if in_order:
        first, last = first.sort(-1).values, last.sort(-1).values
        last = torch.maximum(first, last)
    by_first, by_last = query_range_of_key(first, last, 35)
    keys, queries = torch.arange(35)[:, None], torch.arange(25)
    pairs = (first[..., None, :] <= keys) & (keys < last[..., None, :])
    within = (by_first[..., None] <= queries) & (queries < by_last[..., None])
    assert (within | ~pairs).all()
    sees = (first < last)[..., None, :]
    if in_order:  # nothing but they, and those that see nothing
        assert torch.equal(within & sees, pairs)


def test_the_file_that_the_page_shows_names_all_tiles():
    rows = json.loads(compiled.FILE.read_text())["kernels"]
    assert {(r["kernel"], r["target"]) for r in rows} == {
        (kernel, target) for kernel in compiled.KERNELS for target in compiled.TARGETS
    }
    assert all(r["shared"] <= 227 * 1024 for r in rows)
