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

from attention.kernels import unsupported_error
from attention.kernels.blocks import QueryBlock, plan, visible
from attention.masking import AttentionSpec, Indices, evaluate_mod
from attention.softmax import upcast

LOG2_E = 1 / math.log(2)
QUERIES, KEYS = 256, 512  # of a tile at most, as measured
PAIRS = 2**19  # of a tile that batch entries share, at most


def tiled(
    query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec
) -> tuple[Tensor, Tensor | None]:
    """What `reference` computes, a tile of scores at a time.

    Memory grows with L and S, but for the plan's two bits for each block of
    64 x 64 pairs. Tiles that the mask hides are not computed.
    """
    transforms = torch._C._functorch.get_interpreter_stack() or []
    if any(x.key() == TransformType.Vmap for x in transforms):
        raise unsupported_error("tiled", "torch.vmap")
    apply: Any = _Tiled.apply
    out, lse = apply(_batches(query, key, spec), query, key, value)
    return out, lse if spec.return_lse else None


tiled = torch.compiler.disable(tiled, reason="its plan is made as it runs")


class Batch(NamedTuple):
    """Batch entries that share tiles, and their plan."""

    entries: slice
    spec: AttentionSpec  # a mask that is a tensor is (b, H, L, S)
    indices: Indices
    blocks: list[QueryBlock]
    pairs: int  # of the largest tile
    log2_factor: float  # of the query: log2(e); 1 before a score_mod


def _batches(query: Tensor, key: Tensor, spec: AttentionSpec) -> list[Batch]:
    """All batch entries, as many at a time as a tile has room for."""
    (B, H, L, _), S, mask = query.shape, key.shape[2], spec.mask
    if 0 in (B, H, L, S):
        return []
    b, h, q_idx, kv_idx = indices = spec.indices(query, key)
    max_keys, log2_factor = KEYS, LOG2_E
    if spec.score_mod is not None:  # its scores too must fit in the cache
        max_keys, log2_factor = KEYS // 2, 1.0
        pair: Any = tuple(index.flatten()[:1] for index in indices)
        score = upcast(query.new_zeros(1, 1, 1, 1))
        if evaluate_mod(spec.score_mod, pair, score).requires_grad:
            raise unsupported_error(
                "tiled", "gradients of what a score_mod captures"
            )
    if isinstance(mask, Tensor):
        mask = mask.expand(B, H, L, S)
    pairs = H * min(L, QUERIES) * min(S, max_keys)  # of one batch entry
    n = max(1, PAIRS // pairs)
    batches = []
    for entries in (slice(i, i + n) for i in range(0, B, n)):
        q, kv = (x[entries] if x.dim() == 2 else x for x in (q_idx, kv_idx))
        indices = b[entries], h, q, kv
        part = mask[entries] if isinstance(mask, Tensor) else mask
        blocks = plan(part, indices, QUERIES, max_keys)
        of = entries, replace(spec, mask=part), indices, blocks
        batches.append(Batch(*of, len(b[entries]) * pairs, log2_factor))
    return batches


class TileScores(NamedTuple):
    """The scores of a tile, and what they are made from.

    N is batch entries times key heads; g query heads share a key head; n are
    the queries of the block, and w the keys of the tile.
    """

    key_slice: slice
    q: Tensor  # (N, g n, D), scaled
    k: Tensor  # (N, w, D)
    v: Tensor  # (N, w, Dv)
    s: Tensor  # (N, g n, w), exponents of 2; used up before the next tile
    indices: Indices
    unmodified: Tensor | None  # (b, H, n, w), what score_mod is called with


# --8<-- [start:tile_scores]
def tile_scores(
    batch: Batch,
    block: QueryBlock,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    buffer: Tensor,
) -> Iterator[TileScores]:
    """The scores of each tile of a block; query is (N, g n, D), scaled."""
    spec, (b, h, q_idx, kv_idx) = batch.spec, batch.indices
    queries = slice(block.first, block.last)
    heads = len(b), len(h), block.last - block.first
    for tile in block.tiles:
        keys = slice(tile.first, tile.last)
        q, k, v = query, upcast(key[:, keys]), upcast(value[:, keys])
        bound = None
        if tile.masked:
            assert spec.mask is not None
            pairs = visible(spec.mask, batch.indices, queries, keys)
            # minimum with +-inf is many times faster than masked_fill.
            bound = pairs.to(q.dtype).sub_(0.5).mul_(math.inf)
            q, k, v = _cleared(bound, heads, q, k, v)
        s = _sized(buffer, *q.shape[:2], k.shape[1])
        torch.bmm(q, k.mT, out=s)
        indices = b, h, q_idx[..., queries], kv_idx[..., keys]
        unmodified = None
        if spec.score_mod is not None:
            unmodified = s.view(*heads, -1)  # (b, H, n, w)
            after = evaluate_mod(spec.score_mod, indices, unmodified)
            s = after * LOG2_E
            if bound is not None:  # not minimum: score_mod may give NaN
                s.masked_fill_(bound < 0, -math.inf)
            s = s.reshape(*q.shape[:2], -1)  # (N, g n, w)
        elif bound is not None:
            by_head = s.view(*heads, -1)  # (b, H, n, w)
            torch.minimum(by_head, bound, out=by_head)
        yield TileScores(keys, q, k, v, s, indices, unmodified)


# --8<-- [end:tile_scores]


def _cleared(
    bound: Tensor, heads: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Zero queries and keys of which a tile hides all pairs: 0 * NaN is NaN.

    The bound (b or 1, H or 1, n, w) is -inf where it hides a pair.
    """
    hidden_q = bound.amax(-1, keepdim=True) < 0  # (b or 1, H or 1, n, 1)
    if bool(hidden_q.any()):
        hidden_q = hidden_q.expand(*heads, 1)  # (b, H, n, 1)
        q = q.masked_fill(_by_key_head(hidden_q, len(k)), 0)
    hidden_k = bound.amax(-2) < 0  # (b or 1, H or 1, w)
    if hidden_k.numel() == k.shape[1]:  # many times faster than masked_fill
        if bool(hidden_k.any()):
            index = hidden_k.flatten().nonzero()[:, 0]
            k, v = k.index_fill(1, index, 0), v.index_fill(1, index, 0)
    elif bool(hidden_k.any()):
        hidden_k = hidden_k.expand(*heads[:2], -1)  # (b, H, w)
        hidden_k = hidden_k.reshape(len(k), -1, k.shape[1])  # (N, g, w)
        hidden_k = hidden_k.all(1)[..., None]  # (N, w, 1)
        k, v = k.masked_fill(hidden_k, 0), v.masked_fill(hidden_k, 0)
    return q, k, v


def _by_key_head(x: Tensor, N: int) -> Tensor:
    """(b, H, n, d) as (N, g n, d): queries that share keys in one matrix."""
    return x.reshape(N, x.shape[:3].numel() // N, x.shape[-1])


def _sized(buffer: Tensor, *size: int) -> Tensor:
    """Memory as a tensor of this size, with whatever was there before."""
    return buffer[: math.prod(size)].view(size)


# --8<-- [start:tiled_forward]
def tiled_forward(
    batches: list[Batch], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """The output (B, H, L, Dv) and the log-sum-exp (B, H, L)."""
    out = query.new_zeros(*query.shape[:3], value.shape[-1])
    lse = upcast(query[..., 0]).new_full(query.shape[:3], -math.inf)
    for batch in batches:
        buffer = lse.new_empty(batch.pairs)
        keys = key[batch.entries].flatten(0, 1)  # (N, S, D)
        values = value[batch.entries].flatten(0, 1)  # (N, S, Dv)
        for block in batch.blocks:
            at = batch.entries, slice(None), slice(block.first, block.last)
            q = upcast(query[at]) * (batch.spec.scale * batch.log2_factor)
            q = _by_key_head(q, len(keys))  # (N, g n, D)
            # Not -inf: -inf - -inf is NaN.
            m = q.new_full((*q.shape[:2], 1), torch.finfo(q.dtype).min)
            l = torch.zeros_like(m)
            acc = q.new_zeros(*q.shape[:2], value.shape[-1])
            for tile in tile_scores(batch, block, q, keys, values, buffer):
                m_new = torch.maximum(m, tile.s.amax(-1, keepdim=True))
                p = tile.s.sub_(m_new).exp2_()  # (N, g n, w)
                alpha = m.sub_(m_new).exp2_()  # (N, g n, 1)
                l.mul_(alpha).add_(p.sum(-1, keepdim=True))
                acc.mul_(alpha).baddbmm_(p, tile.v)
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
        buffer, ds_buffer = (lse.new_empty(batch.pairs) for _ in range(2))
        keys, values, dks, dvs = (
            x[batch.entries].flatten(0, 1) for x in (key, value, dk, dv)
        )  # (N, S, D or Dv); dks and dvs are views
        for block in batch.blocks:
            at = batch.entries, slice(None), slice(block.first, block.last)
            q = upcast(query[at]) * (batch.spec.scale * batch.log2_factor)
            of_block = q, upcast(do[at]), delta[at], lse[at]
            q, do_, delta_, lse_ = (
                _by_key_head(x, len(keys)) for x in of_block
            )  # (N, g n, D), (N, g n, Dv), (N, g n, 1), (N, g n, 1)
            dq_ = torch.zeros_like(q)
            for tile in tile_scores(batch, block, q, keys, values, buffer):
                p = tile.s.sub_(lse_).exp2_()  # (N, g n, w)
                dvs[:, tile.key_slice].baddbmm_(p.mT, do_)
                ds = _sized(ds_buffer, *p.shape)
                torch.bmm(do_, tile.v.mT, out=ds)
                ds.sub_(delta_).mul_(p)
                ds = _before_score_mod(batch, tile, ds)
                dq_.baddbmm_(ds, tile.k)
                dks[:, tile.key_slice].baddbmm_(ds.mT, tile.q)
            dq[at] = dq_.mul_(batch.spec.scale).view_as(dq[at])
        dks /= batch.log2_factor  # q has that factor, beside the scale
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


# --8<-- [end:tiled_backward]


class _Tiled(torch.autograd.Function):
    """The forward pass, and what the backward pass needs of it."""

    forward = staticmethod(tiled_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the output and the log-sum-exp, and no scores."""
        ctx.batches, *tensors = inputs
        masks = (batch.spec.mask for batch in ctx.batches)
        # A mask is saved so that it raises if it is changed in place.
        masks = (mask for mask in masks if isinstance(mask, Tensor))
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
        raise unsupported_error("tiled", "second derivatives")

    @staticmethod
    def vmap(*args: Any) -> Any:
        """Refuse."""
        raise unsupported_error("tiled", "torch.vmap")


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
