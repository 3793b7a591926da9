"""Exact attention a tile at a time: no scores are kept, forward or backward.

A block of queries meets the keys tile by tile and carries three things along:
the largest score so far (m), the sum of the exponentials (l) and the values
weighted by them (acc). The backward pass recomputes each tile's weights (p)
from the log-sum-exp.

    m'   = max(m, max_j s_j)
    l'   = 2^(m - m') l   + sum_j 2^(s_j - m')
    acc' = 2^(m - m') acc + sum_j 2^(s_j - m') value_j

and, after the last tile, out = acc / l. The exponentials are powers of 2,
which are quicker; the query brings the factor log2(e) that they need.

Source: Dao, "FlashAttention-2" (2023), algorithms 1 and 2.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType

from attention.kernels import refusal
from attention.kernels.blocks import QueryBlock, plan, visible
from attention.masking import AttentionSpec, Indices, evaluate_mod
from attention.softmax import upcast

LOG2_E = 1 / math.log(2)
QUERIES, KEYS, PAIRS = 256, 512, 2**19  # of a tile at most, as measured


# --8<-- [start:tiled]
def tiled(
    query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
) -> tuple[Tensor, Tensor | None]:
    """What `reference` computes, in memory that grows with L and S alone.

    Tiles that the mask rules out are not computed.
    """
    transforms = torch._C._functorch.get_interpreter_stack() or []
    if any(x.key() == TransformType.Vmap for x in transforms):
        raise refusal("tiled", "torch.vmap")
    apply: Any = _Tiled.apply
    out, lse = apply(_batches(query, key, spec), query, key, value)
    return out, lse if spec.return_lse else None


# --8<-- [end:tiled]

tiled = torch.compiler.disable(tiled, reason="its plan is made as it runs")


class Batch(NamedTuple):
    """Batch entries that share tiles, and their plan."""

    rows: slice
    spec: AttentionSpec  # a mask that is a tensor is (b, H, L, S)
    indices: Indices
    blocks: list[QueryBlock]
    pairs: int  # of the largest tile
    unit: float  # log2(e), a factor of the query; 1 before a score_mod


def _batches(query: Tensor, key: Tensor, spec: AttentionSpec) -> list[Batch]:
    """All batch entries, as many at a time as a tile has room for."""
    (B, H, L, _), S, mask = query.shape, key.shape[2], spec.mask
    if 0 in (B, H, L, S):
        return []
    b, h, q_idx, kv_idx = indices = spec.indices(query, key)
    max_keys, unit = KEYS, LOG2_E
    if spec.score_mod is not None:  # its scores too must fit in the cache
        max_keys, unit = KEYS // 2, 1.0
        pair: Any = tuple(index.flatten()[:1] for index in indices)
        score = upcast(query.new_zeros(1, 1, 1, 1))
        if evaluate_mod(spec.score_mod, pair, score).requires_grad:
            raise refusal("tiled", "gradients of what a score_mod captures")
    if isinstance(mask, Tensor):
        mask = mask.expand(B, H, L, S)
    tile = H * min(L, QUERIES) * min(S, max_keys)
    n = max(1, PAIRS // tile)
    batches = []
    for rows in (slice(i, i + n) for i in range(0, B, n)):
        q, kv = (x[rows] if x.dim() == 2 else x for x in (q_idx, kv_idx))
        at = b[rows], h, q, kv
        of_rows = mask[rows] if isinstance(mask, Tensor) else mask
        blocks = plan(of_rows, at, QUERIES, max_keys)
        spec, pairs = replace(spec, mask=of_rows), len(at[0]) * tile
        batches.append(Batch(rows, spec, at, blocks, pairs, unit))
    return batches


class TileScores(NamedTuple):
    """The scores of a tile, and what they are made from.

    N is batch entries times key heads; g query heads share a key head.
    """

    keys: slice
    q: Tensor  # (N, g n, D), scaled
    k: Tensor  # (N, w, D)
    v: Tensor  # (N, w, Dv)
    s: Tensor  # (N, g n, w), exponents of 2; the next tile overwrites them
    indices: Indices
    unmodified: Tensor | None  # (b, H, n, w), what score_mod is called with


# --8<-- [start:tile_scores]
def tile_scores(
    batch: Batch,
    block: QueryBlock,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Tensor,
) -> Iterator[TileScores]:
    """The scores of each tile of a block; query is (N, g n, D), scaled."""
    spec, (b, h, q_idx, kv_idx) = batch.spec, batch.indices
    rows = slice(block.first, block.last)
    heads = len(b), len(h), block.last - block.first
    for tile in block.tiles:
        keys = slice(tile.first, tile.last)
        q, k, v = query, upcast(key[:, keys]), upcast(value[:, keys])
        cap = None
        if tile.masked:
            assert spec.mask is not None
            pairs = visible(spec.mask, batch.indices, rows, keys)
            # minimum with +-inf is many times faster than masked_fill.
            cap = pairs.to(q.dtype).sub_(0.5).mul_(math.inf)
            q, k, v = _cleared(cap, heads, q, k, v)
        s = _sized(memory, *q.shape[:2], k.shape[1])
        torch.bmm(q, k.mT, out=s)
        unmodified, indices = None, (b, h, q_idx[..., rows], kv_idx[..., keys])
        if spec.score_mod is not None:
            unmodified = s.view(*heads, -1)  # (b, H, n, w)
            after = evaluate_mod(spec.score_mod, indices, unmodified)
            s = after * LOG2_E
            if cap is not None:  # not minimum: score_mod may give NaN there
                s.masked_fill_(cap < 0, -math.inf)
            s = s.reshape(*q.shape[:2], -1)  # (N, g n, w)
        elif cap is not None:
            by_head = s.view(*heads, -1)  # (b, H, n, w)
            torch.minimum(by_head, cap, out=by_head)
        yield TileScores(keys, q, k, v, s, indices, unmodified)


# --8<-- [end:tile_scores]


def _cleared(
    cap: Tensor, heads: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Zero queries and keys of which a tile hides all pairs: 0 * NaN is NaN.

    The cap (b or 1, H or 1, n, w) is -inf where a pair is hidden, else inf.
    """
    blind = cap.amax(-1, keepdim=True) < 0  # (b or 1, H or 1, n, 1)
    if bool(blind.any()):
        q = q.masked_fill(_by_key_head(blind.expand(*heads, 1), len(k)), 0)
    unseen = cap.amax(-2) < 0  # (b or 1, H or 1, w)
    if unseen.numel() == k.shape[1]:  # many times faster than masked_fill
        if bool(unseen.any()):
            which = unseen.flatten().nonzero()[:, 0]
            k, v = k.index_fill(1, which, 0), v.index_fill(1, which, 0)
    elif bool(unseen.any()):
        unseen = unseen.expand(*heads[:2], -1).reshape(len(k), -1, k.shape[1])
        unseen = unseen.all(1)[..., None]  # (N, w, 1)
        k, v = k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)
    return q, k, v


def _by_key_head(x: Tensor, N: int) -> Tensor:
    """(b, H, n, d) as (N, g n, d): queries that share keys in one matrix."""
    return x.reshape(N, x.shape[:3].numel() // N, x.shape[-1])


def _sized(memory: Tensor, *size: int) -> Tensor:
    """Memory as a tensor of this size, with whatever was there before."""
    return memory[: math.prod(size)].view(size)


# --8<-- [start:tiled_forward]
def tiled_forward(
    batches: list[Batch], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """The output (B, H, L, Dv) and the log-sum-exp (B, H, L)."""
    out = query.new_zeros(*query.shape[:3], value.shape[-1])
    lse = upcast(query[..., 0]).new_full(query.shape[:3], -math.inf)
    for batch in batches:
        memory = lse.new_empty(batch.pairs)
        keys = key[batch.rows].flatten(0, 1)  # (N, S, D)
        values = value[batch.rows].flatten(0, 1)  # (N, S, Dv)
        for block in batch.blocks:
            at = batch.rows, slice(None), slice(block.first, block.last)
            q = upcast(query[at]) * (batch.spec.scale * batch.unit)
            q = _by_key_head(q, len(keys))  # (N, g n, D)
            # Not -inf: -inf - -inf is NaN.
            m = q.new_full((*q.shape[:2], 1), torch.finfo(q.dtype).min)
            l = torch.zeros_like(m)
            acc = q.new_zeros(*q.shape[:2], value.shape[-1])
            for x in tile_scores(batch, block, q, keys, values, memory):
                m_new = torch.maximum(m, x.s.amax(-1, keepdim=True))
                p = x.s.sub_(m_new).exp2_()  # (N, g n, w)
                alpha = m.sub_(m_new).exp2_()  # (N, g n, 1)
                l.mul_(alpha).add_(p.sum(-1, keepdim=True))
                acc.mul_(alpha).baddbmm_(p, x.v)
                m = m_new
            lse[at] = ((m + l.log2()) / LOG2_E).view_as(lse[at])
            acc /= l.masked_fill_(l == 0, 1)  # zeros where nothing is seen
            out[at] = acc.view_as(out[at])
    return out, lse


# --8<-- [end:tiled_forward]


# --8<-- [start:tiled_backward]
def tiled_backward(
    batches: list[Batch],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    dlse: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of query, key and value."""
    dq, dk, dv = (lse.new_zeros(x.shape) for x in (query, key, value))
    delta = ((upcast(do) * out).sum(-1) - dlse)[..., None]  # (B, H, L, 1)
    lse = lse.masked_fill(lse == -math.inf, 0)  # nothing is seen
    lse = lse[..., None] * LOG2_E  # (B, H, L, 1)
    for batch in batches:
        memory, more = (lse.new_empty(batch.pairs) for _ in range(2))
        keys, values, dks, dvs = (
            x[batch.rows].flatten(0, 1) for x in (key, value, dk, dv)
        )  # (N, S, D or Dv); dks and dvs are views
        for block in batch.blocks:
            at = batch.rows, slice(None), slice(block.first, block.last)
            q = upcast(query[at]) * (batch.spec.scale * batch.unit)
            of_block = q, upcast(do[at]), delta[at], lse[at]
            q, do_, delta_, lse_ = (
                _by_key_head(x, len(keys)) for x in of_block
            )  # (N, g n, D), (N, g n, Dv), (N, g n, 1), (N, g n, 1)
            dq_ = torch.zeros_like(q)
            for x in tile_scores(batch, block, q, keys, values, memory):
                p = x.s.sub_(lse_).exp2_()  # (N, g n, w)
                dvs[:, x.keys].baddbmm_(p.mT, do_)
                ds = _sized(more, *p.shape)
                torch.bmm(do_, x.v.mT, out=ds)
                ds.sub_(delta_).mul_(p)
                ds = _before_score_mod(batch, x, ds)
                dq_.baddbmm_(ds, x.k)
                dks[:, x.keys].baddbmm_(ds.mT, x.q)
            dq[at] = dq_.mul_(batch.spec.scale).view_as(dq[at])
        dks /= batch.unit
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


# --8<-- [end:tiled_backward]


class _Tiled(torch.autograd.Function):
    """The forward pass, and what the backward pass needs of it."""

    forward = staticmethod(tiled_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the output and the log-sum-exp, and no scores."""
        ctx.batches, *tensors = inputs
        masks = [batch.spec.mask for batch in ctx.batches]
        masks = [mask for mask in masks if isinstance(mask, Tensor)]
        # The masks are saved so that one changed in place raises.
        ctx.save_for_backward(*tensors, *output, *masks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradients, which have no gradients of their own."""
        apply: Any = _Gradients.apply
        return None, *apply(ctx.batches, *ctx.saved_tensors[:5], *grads)


class _Gradients(torch.autograd.Function):
    """The backward pass, as a function whose own backward pass refuses."""

    forward = staticmethod(tiled_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse."""
        raise refusal("tiled", "second derivatives")

    @staticmethod
    def vmap(*args: Any) -> Any:
        """Refuse."""
        raise refusal("tiled", "torch.vmap")


def _before_score_mod(batch: Batch, x: TileScores, ds: Tensor) -> Tensor:
    """The gradient of the scores that score_mod is called with."""
    score_mod = batch.spec.score_mod
    if score_mod is None or x.unmodified is None:
        return ds
    with torch.enable_grad():
        scores = x.unmodified.detach().requires_grad_()
        after = evaluate_mod(score_mod, x.indices, scores)
    if not after.requires_grad:  # score_mod ignores the score
        return torch.zeros_like(ds)
    (grad,) = torch.autograd.grad(
        after, scores, ds.view_as(after), materialize_grads=True
    )
    return grad.reshape(ds.shape)
