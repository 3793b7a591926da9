"""Exact attention a tile at a time: no scores are kept, forward or backward.

A strip of queries meets the keys tile by tile and carries three things along:
the largest score so far, the sum of the powers, and the values weighed by
them. The way back makes each tile's weights again from the log-sum-exp, as
chapter 7 does.

    largest' = max(largest, max_j scores_j)
    shrink   = 2^(largest - largest')
    total'   = shrink total + sum_j 2^(scores_j - largest')
    mixed'   = shrink mixed + sum_j 2^(scores_j - largest') value_j

and, after the last tile, mixed / total. They are powers of 2 because those
are quicker; the query brings the factor log2(e) that they need.

Source: Dao, "FlashAttention-2" (2023), algorithms 1 and 2; the running sums,
Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attention.kernels.at_once import at_once
from attention.kernels.captured import NAMED, UNFOUND, captured
from attention.kernels.plan import Hidden, Plan, Strip, Tile, hidden, plan
from attention.masking import (
    Indices,
    Mask,
    Offset,
    ScoreMod,
    over_pairs,
    positions,
)
from attention.softmax import upcast

LOG2_E = 1 / math.log(2)
QUERIES, KEYS, PAIRS = 256, 512, 2**19  # of a tile at most, as measured


# --8<-- [start:tiled]
def tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None,
    score_mod: ScoreMod | None,
    query_offset: Offset,
    key_offset: Offset,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `reference` computes, in memory that grows with L and S alone.

    Tiles that the mask rules out are not computed. Tensors that score_mod
    captures get their gradients too.
    """
    at = (mask, query_offset, key_offset)
    how, learns = _how(query, key, score_mod, scale, *at)
    apply: Any = _Tiled.apply
    out, lse = apply(how, query, key, value, *at, *learns)
    return out, lse if return_lse else None


# --8<-- [end:tiled]

tiled = torch.compiler.disable(tiled, reason="its plan is made as it runs")


@dataclass(frozen=True)
class How:
    """What to do with scores; and the plans, of rows from each first one."""

    score_mod: ScoreMod | None
    scale: float
    at_once: bool = False  # the score_mod may be asked about all pairs
    plans: dict[int, Plan] = field(default_factory=dict)

    @property
    def unit(self) -> float:
        """Makes exponents of 2 of scores, which no score_mod must see."""
        return LOG2_E if self.score_mod is None else 1.0

    def changed(self, where: Indices, scores: Tensor) -> Tensor:
        """The scores (rows, heads, n, w) after score_mod."""
        assert self.score_mod is not None
        return over_pairs(self.score_mod, *where, scores, at_once=self.at_once)


def _how(
    query: Tensor,
    key: Tensor,
    score_mod: ScoreMod | None,
    scale: float,
    mask: Mask | None,
    *offsets: Offset,
) -> tuple[How, list[Tensor]]:
    """What to do with scores, and what a score mod learns.

    The mods are asked about the first pair, if there is one.
    """
    how = How(score_mod, scale)
    learns: list[Tensor] = []
    if 0 in (*query.shape[:3], key.shape[2]):
        return how, learns
    first = torch.zeros((), dtype=torch.int64, device=query.device)
    starts = (positions(x, 1, query.device).flatten()[0] for x in offsets)
    pair = (first, first, *starts)
    mod = mask.mask_mod if isinstance(mask, BlockMask) else mask
    transformed = torch._C._are_functorch_transforms_active()
    if callable(mod) and transformed:
        captured(mod, *pair)
    if score_mod is not None:
        pair = (upcast(query.new_ones(())), *pair)
        if transformed or torch.is_grad_enabled():
            learns = captured(score_mod, *pair)
        how = replace(how, at_once=at_once(score_mod, *pair))
    return how, learns if torch.is_grad_enabled() else []


class Part(NamedTuple):
    """A strip of queries of some rows and heads, which meets tiles of keys.

    The rows times the heads of keys are N; g heads of queries share a head of
    keys.
    """

    rows: slice
    heads: slice
    strip: Strip
    hidden: list[Hidden | None]  # of each tile
    where: Indices  # the rows, these heads, the strip's queries, all keys
    of_keys: list[Tensor]  # (N, S, ...) each

    def queries(self, x: Tensor) -> Tensor:
        """This part of a tensor (B, H, L, ...), a view."""
        return x[self.rows, self.heads, self.strip.first : self.strip.last]

    def at(self, tile: Tile) -> Indices:
        """The rows, the heads, the strip's queries and the tile's keys."""
        b, h, q_idx, kv_idx = self.where
        return b, h, q_idx, kv_idx[..., tile.first : tile.last]

    def share(self, x: Tensor) -> Tensor:
        """(rows, heads, n, ...) as (N, g n, ...)."""
        n = len(self.of_keys[0])
        return x.reshape(n, math.prod(x.shape[:3]) // n, x.shape[-1])

    def clear(self, x: Tensor, unseen: Tensor) -> Tensor:
        """Keys or values (N, w, ...), those nobody sees 0: 0 * NaN is NaN."""
        if unseen.numel() == x.shape[1]:  # many times faster
            return x.index_fill(1, unseen.flatten().nonzero()[:, 0], 0)
        n_rows = len(self.where[0])
        unseen = unseen.expand(n_rows, len(x) // n_rows, -1, -1)
        return x.masked_fill(unseen.flatten(0, 1), 0)

    def split(self, x: Tensor) -> Tensor:
        """(N, g n, ...) as (rows, heads, n, ...)."""
        n_rows, n_heads = len(self.where[0]), len(self.where[1])
        n = math.prod(x.shape[:2]) // (n_rows * n_heads)
        return x.view(n_rows, n_heads, n, x.shape[-1])


# --8<-- [start:parts]
def _parts(
    how: How,
    query: Tensor,
    mask: Mask | None,
    query_offset: Offset,
    key_offset: Offset,
    *of_keys: Tensor,
) -> Iterator[Part]:
    """Every part once: rows, then strips of queries, then heads."""
    (B, H, L, _), (_, H_kv, S, _) = query.shape, of_keys[0].shape
    if 0 in (B, H, L, S):
        return
    group = H // H_kv
    n_rows = max(1, PAIRS // (H * min(L, QUERIES) * min(S, KEYS)))
    all_b, h = (torch.arange(n, device=query.device) for n in (B, H))
    all_q = positions(query_offset, L, query.device)
    all_kv = positions(key_offset, S, query.device)
    if isinstance(mask, Tensor):
        mask = mask.expand(*mask.shape[:2], L, S)
    dtype = upcast(query.new_empty(0)).dtype
    for row in range(0, B, n_rows):
        rows = slice(row, row + n_rows)
        q, kv = (x[rows] if x.dim() == 2 else x for x in (all_q, all_kv))
        b, of_rows = all_b[rows], mask
        if isinstance(mask, Tensor) and len(mask) > 1:
            of_rows = mask[rows]
        where = (b, h, q, kv)
        if row not in how.plans:
            how.plans[row] = plan(of_rows, where, QUERIES, KEYS)
        strips, at_once = how.plans[row]
        keys: dict[int, list[list[Tensor]]] = {}
        for strip in strips:
            widest = max((t.last - t.first for t in strip.tiles), default=1)
            widest *= group * len(b) * (strip.last - strip.first)
            # Heads of keys in a part: all, where it has more than one row, so
            # that what flatten gives of the gradients is a view of them.
            n = max(1, min(PAIRS // widest, H_kv))
            kv_heads = [slice(i, i + n) for i in range(0, H_kv, n)]
            if n not in keys:
                some = ([x[rows, i] for x in of_keys] for i in kv_heads)
                keys[n] = [[x.flatten(0, 1) for x in xs] for xs in some]
            unseen = [
                hidden(of_rows, where, at_once, strip, tile, H_kv, dtype)
                for tile in strip.tiles
            ]
            q_idx = q[..., strip.first : strip.last]
            for of_heads, i in zip(keys[n], kv_heads, strict=True):
                heads = slice(i.start * group, i.stop * group)
                gone = [x and x.of_heads(heads, i) for x in unseen]
                at = (b, h[heads], q_idx, kv)
                yield Part(rows, heads, strip, gone, at, of_heads)


# --8<-- [end:parts]


class Scratch:
    """Memory for one tile, which the next one uses again."""

    def __init__(self, like: Tensor) -> None:
        self.memory = upcast(like.new_empty(0))

    def take(self, *size: int) -> Tensor:
        """A tensor of this size, filled with whatever was there."""
        n = math.prod(size)
        if n > len(self.memory):
            self.memory = self.memory.new_empty(n)
        return self.memory[:n].view(size)


class Met(NamedTuple):
    """A tile that a strip has met."""

    tile: Tile
    query: Tensor  # (N, g n, D), scaled
    key: Tensor  # (N, w, D)
    value: Tensor  # (N, w, Dv)
    exponents: Tensor  # (N, g n, w), of 2; the next tile overwrites them
    scores: Tensor | None  # what score_mod was given, (rows, heads, n, w)


# --8<-- [start:meet]
def _meet(
    part: Part, how: How, query: Tensor, scratch: Scratch
) -> Iterator[Met]:
    """Each tile in turn; query is (N, g n, D), scaled."""
    more = Scratch(query)
    for tile, gone in zip(part.strip.tiles, part.hidden, strict=True):
        q = query
        k, v = (upcast(x[:, tile.first : tile.last]) for x in part.of_keys[:2])
        if gone and gone.keys is not None:
            k, v = part.clear(k, gone.keys), part.clear(v, gone.keys)
        if gone and gone.queries is not None:
            q = part.share(part.split(q).masked_fill(gone.queries, 0))
        exponents = scratch.take(*q.shape[:2], k.shape[1])
        torch.bmm(q, k.mT, out=exponents)
        scores = None
        if how.score_mod is not None:
            scores = part.split(exponents)
            changed = how.changed(part.at(tile), scores)
            after = more.take(*scores.shape)
            torch.mul(changed, LOG2_E, out=after)
            if gone:  # whatever the mod says of hidden pairs, NaN too
                after.masked_fill_(gone.cap < 0, -math.inf)
            exponents = part.share(after)
        elif gone:
            capped = part.split(exponents)
            torch.minimum(capped, gone.cap, out=capped)
        yield Met(tile, q, k, v, exponents, scores)


# --8<-- [end:meet]


# --8<-- [start:tiled_forward]
def tiled_forward(
    how: How, query: Tensor, key: Tensor, value: Tensor, *at: Any
) -> tuple[Tensor, Tensor]:
    """The output (B, H, L, Dv) and the log-sum-exp (B, H, L)."""
    out = query.new_zeros(*query.shape[:3], value.shape[-1])
    lse = upcast(query[..., :1]).new_full((*query.shape[:3], 1), -math.inf)
    scratch = Scratch(query)
    for part in _parts(how, query, *at, key, value):
        q = part.share(upcast(part.queries(query)) * (how.scale * how.unit))
        lowest = torch.finfo(q.dtype).min  # not -inf: -inf - -inf is NaN
        largest = q.new_full((*q.shape[:2], 1), lowest)
        total = torch.zeros_like(largest)
        mixed = q.new_zeros(*q.shape[:2], value.shape[-1])
        for met in _meet(part, how, q, scratch):
            highest = met.exponents.amax(-1, keepdim=True)
            highest = torch.maximum(largest, highest)
            powers = met.exponents.sub_(highest).exp2_()
            shrink = largest.sub_(highest).exp2_()
            total.mul_(shrink).add_(powers.sum(-1, keepdim=True))
            mixed.mul_(shrink).baddbmm_(powers, met.value)
            largest = highest
        part.queries(lse).copy_(part.split((largest + total.log2()) / LOG2_E))
        mixed.div_(total.masked_fill_(total == 0, 1))  # zeros where none is
        part.queries(out).copy_(part.split(mixed))
    return out, lse[..., 0]


# --8<-- [end:tiled_forward]


# --8<-- [start:tiled_backward]
def tiled_backward(
    how: How,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    at: list[Any],
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    *learns: Tensor,
) -> list[Tensor]:
    """The gradients of query, key, value and what score_mod captures."""
    leaves = [query, key, value, *learns]
    wide = [*(upcast(x[:0]) for x in leaves[:3]), *learns]
    grads = [y.new_zeros(x.shape) for x, y in zip(leaves, wide, strict=True)]
    grad_query, *of_keys = grads[:3]
    lse, grad_lse = lse[..., None], grad_lse[..., None]
    scratch, more = Scratch(query), Scratch(query)
    for part in _parts(how, query, *at, key, value, *of_keys):
        q = part.share(upcast(part.queries(query)) * (how.scale * how.unit))
        grad = part.share(upcast(part.queries(grad_out)))
        level = part.share(part.queries(lse) * LOG2_E)
        level = level.masked_fill(level == -math.inf, 0)  # sees nothing
        delta = grad * part.share(part.queries(out))
        delta = delta.sum(-1, keepdim=True)
        delta -= part.share(part.queries(grad_lse))
        grad_q = torch.zeros_like(q)
        for met in _meet(part, how, q, scratch):
            weights = met.exponents.sub_(level).exp2_()
            grad_k, grad_v = (
                x[:, met.tile.first : met.tile.last] for x in part.of_keys[2:]
            )
            grad_v.baddbmm_(weights.mT, grad)
            grad_scores = more.take(*weights.shape)
            torch.bmm(grad, met.value.mT, out=grad_scores)
            grad_scores.sub_(delta).mul_(weights)
            if met.scores is not None:
                grad_scores = _through(
                    how, part, met, grad_scores, learns, grads[3:]
                )
            grad_q.baddbmm_(grad_scores, met.key)
            grad_k.baddbmm_(grad_scores.mT, met.query)
        part.queries(grad_query).copy_(part.split(grad_q * how.scale))
    of_keys[0] /= how.unit
    return [x.to(y.dtype) for x, y in zip(grads, leaves, strict=True)]


# --8<-- [end:tiled_backward]


def _through(
    how: How,
    part: Part,
    met: Met,
    grad: Tensor,
    learns: tuple[Tensor, ...],
    sums: list[Tensor],
) -> Tensor:
    """The gradient before a score mod; adds to those of what it captures."""
    assert met.scores is not None
    with torch.enable_grad():
        scores = met.scores.detach().requires_grad_()
        after = how.changed(part.at(met.tile), scores)
        found = torch.autograd.grad(
            after, [scores, *learns], part.split(grad), allow_unused=True
        )
    before, *more = found
    for total, x in zip(sums, more, strict=True):
        if x is None:
            raise NotImplementedError(NAMED.format(UNFOUND))
        total += x
    return torch.zeros_like(grad) if before is None else part.share(before)


class _Tiled(torch.autograd.Function):
    """The forward pass, and what the backward pass needs of it."""

    @staticmethod
    def forward(how: How, *args: Any) -> tuple[Tensor, Tensor]:
        """Of query, key, value, mask, the offsets, and what is learned."""
        return tiled_forward(how, *args[:6])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the output and the log-sum-exp, and no scores."""
        how, query, key, value, *rest = inputs
        ctx.how, ctx.at = how, rest[:3]
        ctx.save_for_backward(query, key, value, *output, *rest[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradients, which have no gradients of their own."""
        query, key, value, out, lse, *learns = ctx.saved_tensors
        args = (query, key, value, *ctx.at, out, lse, *grads, *learns)
        apply: Any = _Gradients.apply
        found = apply(ctx.how, *args)
        return None, *found[:3], None, None, None, *found[3:]

    @staticmethod
    def vmap(info: Any, in_dims: Any, how: How, *args: Any) -> Any:
        """Map over one more dimension."""
        return _one_by_one(_Tiled, info.batch_size, in_dims[1:], how, args)


class _Gradients(torch.autograd.Function):
    """The backward pass, as a function whose own backward pass refuses."""

    @staticmethod
    def forward(how: How, *args: Any) -> tuple[Tensor, ...]:
        """Of what `tiled_backward` takes."""
        query, key, value, *rest = args
        return tuple(
            tiled_backward(how, query, key, value, rest[:3], *rest[3:])
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse."""
        raise NotImplementedError(NAMED.format("do second derivatives"))

    @staticmethod
    def vmap(info: Any, in_dims: Any, how: How, *args: Any) -> Any:
        """Map over one more dimension."""
        n = info.batch_size
        return _one_by_one(_Gradients, n, in_dims[1:], how, args)


def _one_by_one(
    function: Any, n: int, in_dims: Any, how: How, args: Any
) -> tuple[Any, Any]:
    """Apply a function to n examples, and stack what it gives."""

    def example(i: int) -> Iterator[Any]:
        for x, dim in zip(args, in_dims, strict=True):
            yield x if dim is None else x.select(dim, i)

    found = [
        function.apply(replace(how, plans={}), *example(i)) for i in range(n)
    ]
    stacked = tuple(torch.stack(x) for x in zip(*found, strict=True))
    return stacked, (0,) * len(stacked)
