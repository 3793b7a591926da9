"""The tiles of `attention.kernels.tiled` on a GPU, in Triton.

Many programs run at once. Each takes a block of queries, keeps m, l and acc
on the chip, and goes through the tiles of keys:

    m'    = max(m, max_j s_j)
    alpha = 2^(m - m')
    l'    = alpha l   + sum_j 2^(s_j - m')
    acc'  = alpha acc + sum_j 2^(s_j - m') value_j

In the backward pass the gradient of a query sums over keys, and that of a key
over queries. Each has programs of its own, so that no two add to one address.

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

from attention.kernels import interpreted, unsupported_error
from attention.kernels.blocks import runs
from attention.masking import AttentionSpec
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


def tuned(*sizes: tuple[int, int, int, int]) -> Any:
    """Try sizes of a tile, numbers of warps and stages; keep the fastest."""
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
    """What may fit on a chip: float32 and wider, in the last config alone."""
    return configs if BYTES == 2 else configs[-1:]


@triton.jit
def head_ptr(x, b, h):
    """x[b, h]; a tensor is a pointer and its strides."""
    ptr, by = x
    ptr += tl.cast(b, tl.int64) * by[0] + tl.cast(h, tl.int64) * by[1]
    return ptr, by


@triton.jit
def row_ptrs(x, start, n: tl.constexpr, width: tl.constexpr):
    """Pointers to the n rows of x[b, h] from start on, (n, width)."""
    ptr, by = x
    ptr += tl.cast(start, tl.int64) * by[2]
    i, d = tl.arange(0, n), tl.arange(0, width)
    return ptr + i[:, None] * by[2] + d[None, :] * by[3]


# --8<-- [start:load]
@triton.jit
def load(x, start, rows, D: tl.constexpr, width: tl.constexpr):
    """Rows of x[b, h], (n, width): D numbers each, and 0 elsewhere."""
    here = rows[:, None] & (tl.arange(0, width) < D)[None, :]
    return tl.load(row_ptrs(x, start, rows.shape[0], width), here, other=0.0)


# --8<-- [end:load]


@triton.jit
def store(x, start, rows, new, D: tl.constexpr):
    """Store these rows in x[b, h], D numbers each."""
    here = rows[:, None] & (tl.arange(0, new.shape[1]) < D)[None, :]
    ptrs = row_ptrs(x, start, new.shape[0], new.shape[1])
    tl.store(ptrs, new.to(ptrs.dtype.element_ty), here)


@triton.jit
def load_each(x, start, end, n: tl.constexpr):
    """Numbers start to start + n - 1 of x[b, h], 0 from the end on."""
    ptr, by = x
    i = start + tl.arange(0, n)
    return tl.load(ptr + i * by[2], i < end, other=0)


@triton.jit
def store_each(x, start, end, new):
    """Store numbers in x[b, h] from start on, none from the end on."""
    ptr, by = x
    i = start + tl.arange(0, new.shape[0])
    tl.store(ptr + i * by[2], new, i < end)


# --8<-- [start:dot]
@triton.jit
def dot(x, y):
    """The product, summed in float32 or wider, and never rounded to TF32."""
    if INTERPRETED and x.dtype == tl.bfloat16:  # not in NumPy
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, input_precision="ieee")


# --8<-- [end:dot]


# --8<-- [start:program_block]
@triton.jit
def program_block(H, L, ROWS: tl.constexpr):
    """This program's batch entry and head, and the start of its block of L."""
    blocks, program = tl.cdiv(L, ROWS), tl.program_id(0)
    bh = program // blocks
    # With a causal mask the last blocks have most to compute: they go first.
    return bh // H, bh % H, (blocks - 1 - program % blocks) * ROWS


# --8<-- [end:program_block]


# --8<-- [start:spans]
@triton.jit
def spans(first, last, S, KEYS: tl.constexpr):
    """Keys at which tiles begin to be masked, whole, masked, and skipped."""
    sees = first < last
    low = tl.min(tl.where(sees, first, S)) // KEYS * KEYS
    high = tl.max(tl.where(sees, last, 0))
    whole = tl.cdiv(tl.max(tl.where(sees, first, 0)), KEYS) * KEYS
    whole = tl.minimum(whole, high)
    rest = tl.min(tl.where(sees, last, S)) // KEYS * KEYS
    rest = tl.maximum(tl.minimum(rest, high), whole)
    return low, whole, rest, high


# --8<-- [end:spans]


# --8<-- [start:tile_scores]
@triton.jit
def tile_scores(
    q,
    key,
    first,
    last,
    start,
    scale,
    D: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Which keys of a tile are seen, the keys, and scores (n, KEYS)."""
    seen = tl.full((KEYS,), True, tl.int1)
    if MASKED:
        keys = start + tl.arange(0, KEYS)[None, :]
        visible = (first[:, None] <= keys) & (keys < last[:, None])
        seen = tl.max(visible.to(tl.int32), 0) > 0
    k = load(key, start, seen, D, q.shape[1])
    s = dot(q, k.T) * scale  # (n, KEYS)
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    return seen, k, s


# --8<-- [end:tile_scores]


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
    """The output and the log-sum-exp of a block of queries."""
    b, h, start = program_block(H, L, QUERIES)
    rows = start + tl.arange(0, QUERIES) < L
    first = load_each(head_ptr(first, b, h), start, L, QUERIES)
    last = load_each(head_ptr(last, b, h), start, L, QUERIES)
    sees = first < last
    q = load(head_ptr(query, b, h), start, sees, D, WIDTH)
    key, value = head_ptr(key, b, h // group), head_ptr(value, b, h // group)
    log2_scale = (tl.cast(scale[0], WIDE) + scale[1]) * LOG2_E
    m = tl.full((QUERIES,), LOWEST, WIDE)
    l = tl.zeros((QUERIES,), WIDE)
    acc = tl.zeros((QUERIES, WIDTH_V), WIDE)
    ends = spans(first, last, S, KEYS)
    for part in tl.static_range(3):
        for i in tl.range(ends[part], ends[part + 1], KEYS):
            seen, _, s = tile_scores(
                q, key, first, last, i, log2_scale, D, KEYS, part != 1
            )
            m_new = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - m_new[:, None])  # (QUERIES, KEYS)
            alpha = tl.exp2(m - m_new)
            l = l * alpha + tl.sum(p, 1)
            v = load(value, i, seen, Dv, WIDTH_V)
            acc = acc * alpha[:, None] + dot(p.to(v.dtype), v)
            m = m_new
    l = tl.where(sees, l, 1.0)
    log2_sum = tl.where(sees, m + tl.log2(l), float("-inf"))
    store_each(head_ptr(lse, b, h), start, L, log2_sum / LOG2_E)
    acc = tl.where(sees[:, None], acc / l[:, None], 0.0)
    store(head_ptr(out, b, h), start, rows, acc, Dv)


# --8<-- [end:forward]


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
    """The gradient of a block of queries, and delta for that of the keys."""
    b, h, start = program_block(H, L, QUERIES)
    rows = start + tl.arange(0, QUERIES) < L
    first = load_each(head_ptr(first, b, h), start, L, QUERIES)
    last = load_each(head_ptr(last, b, h), start, L, QUERIES)
    sees = first < last
    q = load(head_ptr(query, b, h), start, sees, D, WIDTH)
    key, value = head_ptr(key, b, h // group), head_ptr(value, b, h // group)
    out = load(head_ptr(out, b, h), start, sees, Dv, WIDTH_V)
    do = load(head_ptr(grad_out, b, h), start, sees, Dv, WIDTH_V)
    scale = tl.cast(scale[0], WIDE) + scale[1]
    lse = load_each(head_ptr(lse, b, h), start, L, QUERIES) * LOG2_E
    lse = tl.where(sees, lse, 0.0)
    d = tl.sum(do.to(WIDE) * out.to(WIDE), 1)
    d -= load_each(head_ptr(grad_lse, b, h), start, L, QUERIES)
    d = tl.where(sees, d, 0.0)
    store_each(head_ptr(delta, b, h), start, L, d)
    dq = tl.zeros((QUERIES, WIDTH), WIDE)
    ends = spans(first, last, S, KEYS)
    for part in tl.static_range(3):
        for i in tl.range(ends[part], ends[part + 1], KEYS):
            log2_scale = scale * LOG2_E
            seen, k, s = tile_scores(
                q, key, first, last, i, log2_scale, D, KEYS, part != 1
            )
            p = tl.exp2(s - lse[:, None])  # (QUERIES, KEYS)
            v = load(value, i, seen, Dv, WIDTH_V)
            ds = p * (dot(do, v.T) - d[:, None])  # (QUERIES, KEYS)
            dq += dot(ds.to(k.dtype), k)
    store(head_ptr(grad_query, b, h), start, rows, dq * scale, D)


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
    b, kv_head, start = program_block(H, S, KEYS)
    keys = start + tl.arange(0, KEYS)
    k = load(head_ptr(key, b, kv_head), start, keys < S, D, WIDTH)
    v = load(head_ptr(value, b, kv_head), start, keys < S, Dv, WIDTH_V)
    scale = tl.cast(scale[0], WIDE) + scale[1]
    dk = tl.zeros((KEYS, WIDTH), WIDE)
    dv = tl.zeros((KEYS, WIDTH_V), WIDE)
    for h in range(kv_head * group, (kv_head + 1) * group):
        low = load_each(head_ptr(by_first, b, h), start, S, KEYS)
        low = tl.min(tl.where(keys < S, low, L)) // QUERIES * QUERIES
        high = tl.max(load_each(head_ptr(by_last, b, h), start, S, KEYS))
        q_h, do_h = head_ptr(query, b, h), head_ptr(grad_out, b, h)
        first_h, last_h = head_ptr(first, b, h), head_ptr(last, b, h)
        lse_h, delta_h = head_ptr(lse, b, h), head_ptr(delta, b, h)
        for i in tl.range(low, high, QUERIES):
            begin = load_each(first_h, i, L, QUERIES)
            end = load_each(last_h, i, L, QUERIES)
            sees = begin < end
            q = load(q_h, i, sees, D, WIDTH)
            do = load(do_h, i, sees, Dv, WIDTH_V)
            lse_i = load_each(lse_h, i, L, QUERIES) * LOG2_E
            d = load_each(delta_h, i, L, QUERIES)
            # A row for each key, so that p and ds need no transpose.
            visible = (begin <= keys[:, None]) & (keys[:, None] < end)
            s = dot(k, q.T) * (scale * LOG2_E)  # (KEYS, QUERIES)
            p = tl.where(visible, tl.exp2(s - lse_i), 0.0)
            dv += dot(p.to(do.dtype), do)
            ds = p * (dot(v, do.T) - d)  # (KEYS, QUERIES)
            ds = tl.where(visible, ds, 0.0)
            dk += dot(ds.to(q.dtype), q)
    store(head_ptr(grad_key, b, kv_head), start, keys < S, dk * scale, D)
    store(head_ptr(grad_value, b, kv_head), start, keys < S, dv, Dv)


# --8<-- [end:backward_key]


def triton_tiled(
    query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
) -> tuple[Tensor, Tensor | None]:
    """What `reference` computes, on a GPU, in memory that grows with L and S.

    The keys that a query may attend to must stand side by side, and D and Dv
    be at most 128.
    """
    if max(query.shape[-1], value.shape[-1]) > WIDEST:
        raise unsupported_error("triton", "heads wider than 128")
    if 0 in (*query.shape[:3], key.shape[2]):  # no pairs
        lse = upcast(query.new_full(query.shape[:3], -math.inf))
        return query.new_zeros(*query.shape[:3], value.shape[-1]), lse
    found = runs(spec.mask, spec.indices(query, key))
    if found is None:
        raise unsupported_error("triton", "masks with gaps")
    apply: Any = _Triton.apply
    out, lse = apply(query, key, value, *found, spec.scale)
    return out, lse if spec.return_lse else None


triton_tiled = torch.compiler.disable(
    triton_tiled, reason="mask bounds are computed at run time"
)


def _launch(
    kernel: Any,
    tensors: list[Tensor],
    query: Tensor,
    value: Tensor,
    scale: float,
) -> None:
    """Run a program for each block of queries; of backward_key, of keys."""
    (B, H, L, D), (_, H_kv, S, Dv) = query.shape, value.shape
    by_key = kernel is backward_key
    n_heads, n = (H_kv, S) if by_key else (H, L)

    def grid(config: dict[str, int]) -> tuple[int]:
        block = config["KEYS" if by_key else "QUERIES"]
        return (B * n_heads * triton.cdiv(n, block),)

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


# --8<-- [start:query_range_of_key]
def query_range_of_key(
    first: Tensor, last: Tensor, S: int
) -> tuple[Tensor, Tensor]:
    """For each key, queries first to last - 1 beyond which none sees it.

    Takes (B, H, L), and returns (B, H, S). Where runs begin and end in the
    order of the queries, all queries between see the key.
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


# --8<-- [end:query_range_of_key]


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
        """The gradients of query, key and value."""
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        delta = torch.empty_like(lse)
        given = [query, key, value, first, last]
        rest = [out, lse, grad_out, grad_lse, delta, grads[0]]
        _launch(backward_query, [*given, *rest], query, value, scale)
        by = query_range_of_key(first, last, key.shape[2])
        rest = [*by, lse, grad_out, delta, *grads[1:]]
        _launch(backward_key, [*given, *rest], query, value, scale)
        return tuple(grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse."""
        raise unsupported_error("triton", "second derivatives")
