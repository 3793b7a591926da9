"""The tiles of `attention.kernels.tiled` on a GPU, in Triton.

Many programs run at once. One takes a strip of queries, keeps what it carries
along on the chip, and meets the tiles of keys in turn:

    largest' = max(largest, max_j scores_j)
    shrink   = 2^(largest - largest')
    total'   = shrink total + sum_j 2^(scores_j - largest')
    mixed'   = shrink mixed + sum_j 2^(scores_j - largest') value_j

On the way back the gradient of a query sums over keys, and that of a key over
queries. Each gets programs of its own, so that no two add to one place.

With TRITON_INTERPRET=1 in the environment Triton runs this in Python, on a
CPU: slowly, and with the same numbers but for TF32.

Sources: Dao, "FlashAttention-2" (2023), algorithms 1 and 2; the language,
Tillet, Kung and Cox, "Triton" (2019).
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention.kernels import interpreted, refusal
from attention.kernels.runs import runs
from attention.masking import Mask, Offset
from attention.softmax import upcast

if interpreted() and isinstance(tl.max, triton.JITFunction):
    raise ImportError(
        "TRITON_INTERPRET=1 comes too late: Triton is imported, by torch; "
        "set it before that"
    )
INTERPRETED = tl.constexpr(interpreted())
LOG2_E = tl.constexpr(1 / math.log(2))
LOWEST = tl.constexpr(-3e38)  # not -inf: -inf - -inf is NaN
WIDEST = 128  # of a query, key or value, in numbers
SMALL = (64, 32, 4, 1) if INTERPRETED else (32, 32, 4, 1)


# --8<-- [start:tuned]
def tuned(*sizes: tuple[int, int, int, int]) -> Any:
    """Try queries and keys of a tile, warps and stages; keep the fastest."""
    if INTERPRETED:
        sizes = ()
    configs = [
        triton.Config({"QUERIES": q, "KEYS": k}, num_warps=w, num_stages=s)
        for q, k, w, s in (*sizes, SMALL)
    ]
    return triton.autotune(
        configs,
        key=["LENGTH", "BYTES", "D", "Dv"],
        prune_configs_by={"early_config_prune": _fitting},
    )


def _fitting(configs: list[Any], given: Any, BYTES: int, **rest: Any) -> Any:
    """What a chip may have room for: float32 and wider, in the last alone."""
    return configs if BYTES == 2 else configs[-1:]


# --8<-- [end:tuned]


# --8<-- [start:of_head]
@triton.jit
def of_head(x, b, h):
    """x[b, h]; a tensor is where it begins, and its strides."""
    at, by = x
    return at + tl.cast(b, tl.int64) * by[0] + tl.cast(h, tl.int64) * by[1], by


# --8<-- [end:of_head]


# --8<-- [start:rows_of]
@triton.jit
def rows_of(x, start, n: tl.constexpr, width: tl.constexpr):
    """Where the n rows of x[b, h] from start on lie, (n, width)."""
    at, by = x
    at += tl.cast(start, tl.int64) * by[2]
    i, d = tl.arange(0, n), tl.arange(0, width)
    return at + i[:, None] * by[2] + d[None, :] * by[3]


# --8<-- [end:rows_of]


# --8<-- [start:load]
@triton.jit
def load(x, start, rows, D: tl.constexpr, width: tl.constexpr):
    """Rows of x[b, h], D numbers each; 0 in the place of all others."""
    here = rows[:, None] & (tl.arange(0, width) < D)[None, :]
    return tl.load(rows_of(x, start, rows.shape[0], width), here, other=0.0)


# --8<-- [end:load]


@triton.jit
def store(x, start, rows, new, D: tl.constexpr):
    """Put these rows into x[b, h], D numbers each."""
    here = rows[:, None] & (tl.arange(0, new.shape[1]) < D)[None, :]
    at = rows_of(x, start, new.shape[0], new.shape[1])
    tl.store(at, new.to(at.dtype.element_ty), here)


@triton.jit
def load_each(x, start, end, n: tl.constexpr):
    """One number of x[b, h] for each of n places, 0 past the end."""
    at, by = x
    i = start + tl.arange(0, n)
    return tl.load(at + i * by[2], i < end, other=0)


@triton.jit
def store_each(x, start, end, new):
    """Put one number into each place of x[b, h], none past the end."""
    at, by = x
    i = start + tl.arange(0, new.shape[0])
    tl.store(at + i * by[2], new, i < end)


# --8<-- [start:dot]
@triton.jit
def dot(x, y):
    """Their product, summed in float32 or wider; no TF32 before that."""
    if INTERPRETED and x.dtype == tl.bfloat16:  # it knows no such numbers
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, input_precision="ieee")


# --8<-- [end:dot]


# --8<-- [start:strip]
@triton.jit
def strip(H, L, ROWS: tl.constexpr):
    """This program's row and head, and where its strip of L begins."""
    strips, program = tl.cdiv(L, ROWS), tl.program_id(0)
    bh = program // strips
    # Where a mask is causal the last strips have most to do: they go first.
    return bh // H, bh % H, (strips - 1 - program % strips) * ROWS


# --8<-- [end:strip]


# --8<-- [start:spans]
@triton.jit
def spans(first, last, S, KEYS: tl.constexpr):
    """Where tiles begin to be seen in part, whole, in part, and no more."""
    sees = first < last
    low = tl.min(tl.where(sees, first, S)) // KEYS * KEYS
    high = tl.max(tl.where(sees, last, 0))
    whole = tl.cdiv(tl.max(tl.where(sees, first, 0)), KEYS) * KEYS
    whole = tl.minimum(whole, high)
    rest = tl.min(tl.where(sees, last, S)) // KEYS * KEYS
    rest = tl.maximum(tl.minimum(rest, high), whole)
    return low, whole, rest, high


# --8<-- [end:spans]


# --8<-- [start:meet]
@triton.jit
def meet(
    q,
    key,
    first,
    last,
    start,
    unit,
    D: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """A tile: which keys are seen, these keys, and the exponents of 2."""
    seen = tl.full((KEYS,), True, tl.int1)
    if MASKED:
        keys = start + tl.arange(0, KEYS)[None, :]
        visible = (first[:, None] <= keys) & (keys < last[:, None])
        seen = tl.max(visible.to(tl.int32), 0) > 0
    k = load(key, start, seen, D, q.shape[1])
    exponents = dot(q, k.T) * unit
    if MASKED:
        exponents = tl.where(visible, exponents, float("-inf"))
    return seen, k, exponents


# --8<-- [end:meet]


# --8<-- [start:forward]
@tuned((128, 128, 8, 3), (128, 64, 8, 3), (64, 64, 4, 3))
@triton.jit
def forward(
    query,
    key,
    value,
    first,
    last,
    out,
    lse,
    scale,
    H,
    group,
    L,
    S,
    LENGTH,
    BYTES,
    D: tl.constexpr,
    Dv: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    WIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The output and the log-sum-exp of a strip of queries."""
    b, h, start = strip(H, L, QUERIES)
    rows = start + tl.arange(0, QUERIES) < L
    first = load_each(of_head(first, b, h), start, L, QUERIES)
    last = load_each(of_head(last, b, h), start, L, QUERIES)
    sees = first < last
    q = load(of_head(query, b, h), start, sees, D, WIDTH)
    key, value = of_head(key, b, h // group), of_head(value, b, h // group)
    unit = (tl.cast(scale[0], WIDE) + scale[1]) * LOG2_E
    largest = tl.full((QUERIES,), LOWEST, WIDE)
    total = tl.zeros((QUERIES,), WIDE)
    mixed = tl.zeros((QUERIES, WIDTH_V), WIDE)
    at = spans(first, last, S, KEYS)
    for part in tl.static_range(3):
        for i in tl.range(at[part], at[part + 1], KEYS):
            seen, _, exponents = meet(
                q, key, first, last, i, unit, D, KEYS, part != 1
            )
            highest = tl.maximum(largest, tl.max(exponents, 1))
            powers = tl.exp2(exponents - highest[:, None])
            shrink = tl.exp2(largest - highest)
            total = total * shrink + tl.sum(powers, 1)
            v = load(value, i, seen, Dv, WIDTH_V)
            mixed = mixed * shrink[:, None] + dot(powers.to(v.dtype), v)
            largest = highest
    total = tl.where(sees, total, 1.0)
    level = tl.where(sees, largest + tl.log2(total), float("-inf"))
    store_each(of_head(lse, b, h), start, L, level / LOG2_E)
    mixed = tl.where(sees[:, None], mixed / total[:, None], 0.0)
    store(of_head(out, b, h), start, rows, mixed, Dv)


# --8<-- [end:forward]


# --8<-- [start:backward_query]
@tuned((128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 8, 2))
@triton.jit
def backward_query(
    query,
    key,
    value,
    first,
    last,
    out,
    lse,
    grad_out,
    grad_lse,
    delta,
    grad_query,
    scale,
    H,
    group,
    L,
    S,
    LENGTH,
    BYTES,
    D: tl.constexpr,
    Dv: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    WIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The gradient of a strip of queries, and delta for that of the keys."""
    b, h, start = strip(H, L, QUERIES)
    rows = start + tl.arange(0, QUERIES) < L
    first = load_each(of_head(first, b, h), start, L, QUERIES)
    last = load_each(of_head(last, b, h), start, L, QUERIES)
    sees = first < last
    q = load(of_head(query, b, h), start, sees, D, WIDTH)
    key, value = of_head(key, b, h // group), of_head(value, b, h // group)
    out = load(of_head(out, b, h), start, sees, Dv, WIDTH_V)
    grad = load(of_head(grad_out, b, h), start, sees, Dv, WIDTH_V)
    scale = tl.cast(scale[0], WIDE) + scale[1]
    level = load_each(of_head(lse, b, h), start, L, QUERIES) * LOG2_E
    level = tl.where(sees, level, 0.0)
    less = tl.sum(grad.to(WIDE) * out.to(WIDE), 1)
    less -= load_each(of_head(grad_lse, b, h), start, L, QUERIES)
    less = tl.where(sees, less, 0.0)
    store_each(of_head(delta, b, h), start, L, less)
    grad_q = tl.zeros((QUERIES, WIDTH), WIDE)
    at = spans(first, last, S, KEYS)
    for part in tl.static_range(3):
        for i in tl.range(at[part], at[part + 1], KEYS):
            unit = scale * LOG2_E
            seen, k, exponents = meet(
                q, key, first, last, i, unit, D, KEYS, part != 1
            )
            weights = tl.exp2(exponents - level[:, None])
            v = load(value, i, seen, Dv, WIDTH_V)
            grad_scores = weights * (dot(grad, v.T) - less[:, None])
            grad_q += dot(grad_scores.to(k.dtype), k)
    store(of_head(grad_query, b, h), start, rows, grad_q * scale, D)


# --8<-- [end:backward_query]


# --8<-- [start:backward_key]
@tuned((32, 128, 8, 3), (32, 128, 8, 2), (64, 64, 8, 2))
@triton.jit
def backward_key(
    query,
    key,
    value,
    first,
    last,
    by_first,
    by_last,
    lse,
    grad_out,
    delta,
    grad_key,
    grad_value,
    scale,
    H,
    group,
    L,
    S,
    LENGTH,
    BYTES,
    D: tl.constexpr,
    Dv: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    WIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The gradients of a tile of keys and of their values; H is theirs."""
    b, kv_head, start = strip(H, S, KEYS)
    keys = start + tl.arange(0, KEYS)
    k = load(of_head(key, b, kv_head), start, keys < S, D, WIDTH)
    v = load(of_head(value, b, kv_head), start, keys < S, Dv, WIDTH_V)
    scale = tl.cast(scale[0], WIDE) + scale[1]
    grad_k = tl.zeros((KEYS, WIDTH), WIDE)
    grad_v = tl.zeros((KEYS, WIDTH_V), WIDE)
    for h in range(kv_head * group, (kv_head + 1) * group):
        low = load_each(of_head(by_first, b, h), start, S, KEYS)
        low = tl.min(tl.where(keys < S, low, L)) // QUERIES * QUERIES
        high = tl.max(load_each(of_head(by_last, b, h), start, S, KEYS))
        q_h, grad_h = of_head(query, b, h), of_head(grad_out, b, h)
        first_h, last_h = of_head(first, b, h), of_head(last, b, h)
        lse_h, delta_h = of_head(lse, b, h), of_head(delta, b, h)
        for i in tl.range(low, high, QUERIES):
            begin = load_each(first_h, i, L, QUERIES)
            end = load_each(last_h, i, L, QUERIES)
            sees = begin < end
            q = load(q_h, i, sees, D, WIDTH)
            grad = load(grad_h, i, sees, Dv, WIDTH_V)
            level = load_each(lse_h, i, L, QUERIES) * LOG2_E
            less = load_each(delta_h, i, L, QUERIES)
            # A row for each key: what is summed needs not be turned.
            visible = (begin <= keys[:, None]) & (keys[:, None] < end)
            exponents = dot(k, q.T) * (scale * LOG2_E) - level
            weights = tl.where(visible, tl.exp2(exponents), 0.0)
            grad_v += dot(weights.to(grad.dtype), grad)
            grad_scores = weights * (dot(v, grad.T) - less)
            grad_scores = tl.where(visible, grad_scores, 0.0)
            grad_k += dot(grad_scores.to(q.dtype), q)
    store(of_head(grad_key, b, kv_head), start, keys < S, grad_k * scale, D)
    store(of_head(grad_value, b, kv_head), start, keys < S, grad_v, Dv)


# --8<-- [end:backward_key]


# --8<-- [start:triton_tiled]
def triton_tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None,
    score_mod: None,
    query_offset: Offset,
    key_offset: Offset,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `reference` computes, on a GPU, in memory that grows with L and S.

    Of a mask it must be known which run of keys each query sees. A query, key
    or value has at most 128 numbers.
    """
    if max(query.shape[-1], value.shape[-1]) > WIDEST:
        raise refusal("triton", "heads wider than 128")
    if 0 in (*query.shape[:3], key.shape[2]):  # there is nothing to run
        lse = upcast(query.new_full(query.shape[:3], -math.inf))
        return query.new_zeros(*query.shape[:3], value.shape[-1]), lse
    try:
        seen = runs(mask, query, key, query_offset, key_offset)
    except (TypeError, AttributeError) as error:  # it wants something else
        raise refusal("triton", "masks with gaps") from error
    apply: Any = _Triton.apply
    out, lse = apply(query, key, value, *seen, scale)
    return out, lse if return_lse else None


# --8<-- [end:triton_tiled]

triton_tiled = torch.compiler.disable(triton_tiled, reason="it solves a mask")


def _launch(
    kernel: Any,
    tensors: list[Tensor],
    query: Tensor,
    value: Tensor,
    scale: float,
) -> None:
    """Run one program for each strip of queries; of backward_key, of keys."""
    (B, H, L, D), (_, H_kv, S, Dv) = query.shape, value.shape
    by_key = kernel is backward_key
    n_heads, n = (H_kv, S) if by_key else (H, L)

    def grid(how: dict[str, int]) -> tuple[int]:
        strip = how["KEYS" if by_key else "QUERIES"]
        return (B * n_heads * triton.cdiv(n, strip),)

    high = float(torch.tensor(scale, dtype=torch.float32))
    with torch.cuda.device_of(query):
        kernel[grid](
            *((x, x.stride()) for x in tensors),
            scale=(high, scale - high),  # numbers go there as float32
            H=n_heads,
            group=H // H_kv,
            L=L,
            S=S,
            LENGTH=triton.next_power_of_2(max(L, S)),
            BYTES=query.element_size(),
            D=D,
            Dv=Dv,
            WIDTH=max(16, triton.next_power_of_2(D)),
            WIDTH_V=max(16, triton.next_power_of_2(Dv)),
            WIDE=tl.float64 if query.dtype == torch.float64 else tl.float32,
        )


# --8<-- [start:seen_by]
def seen_by(first: Tensor, last: Tensor, S: int) -> tuple[Tensor, Tensor]:
    """For each key, queries first to last - 1 beyond which none sees it.

    All are (B, H, L), and what is returned is (B, H, S). Where runs begin and
    end in the order of the queries, all queries between see the key.
    """
    keys = torch.arange(S, device=first.device, dtype=first.dtype)
    keys = keys.repeat(*first.shape[:2], 1)
    latest = last.cummax(-1).values  # up to each query
    earliest = first.flip(-1).cummin(-1).values.flip(-1)  # from each query on
    by_first, by_last = (
        torch.searchsorted(ends, keys, right=True, out_int32=True)
        for ends in (latest, earliest)
    )
    return by_first, by_last


# --8<-- [end:seen_by]


class _Triton(torch.autograd.Function):
    """The forward pass, and what the backward pass needs of it."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        first: Tensor,
        last: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """The output (B, H, L, Dv) and the log-sum-exp (B, H, L)."""
        out = query.new_empty(*query.shape[:3], value.shape[-1])
        lse = upcast(query[:0]).new_empty(query.shape[:3])
        tensors = [query, key, value, first, last, out, lse]
        _launch(forward, tensors, query, value, scale)
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the output and the log-sum-exp, and no scores."""
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradients, which have no gradients of their own."""
        apply: Any = _Gradients.apply
        found = apply(*ctx.saved_tensors, *grads, ctx.scale)
        return *found, None, None, None


class _Gradients(torch.autograd.Function):
    """The backward pass, as a function whose own backward pass refuses."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        first: Tensor,
        last: Tensor,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor,
        scale: float,
    ) -> tuple[Tensor, ...]:
        """Those of query, key and value."""
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        delta = torch.empty_like(lse)
        given = [query, key, value, first, last]
        rest = [out, lse, grad_out, grad_lse, delta, grads[0]]
        _launch(backward_query, [*given, *rest], query, value, scale)
        by = seen_by(first, last, key.shape[2])
        rest = [*by, lse, grad_out, delta, *grads[1:]]
        _launch(backward_key, [*given, *rest], query, value, scale)
        return tuple(grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse."""
        raise refusal("triton", "second derivatives")
