# ruff: noqa: D102 - the names of the steps describe them
"""Attention step by step, with every option of this book.

Each step is a method, so that `mistakes` can replace one of them. The options
of `TextbookAttention`, and so of `textbook_attention` and of every mistake:

    mask          Boolean, True where a query may attend; (L, S), or each
                  dimension 1 or that of (B, H, L, S)
    causal        bool: position i attends to positions <= i
    window        number of keys that a query attends to: its own and those
                  just before
    lengths       integers (B,): number of keys that are not padding
    scale         factor of the dot products; None is 1 / sqrt(D)
    softcap       a number c: scaled scores become c tanh(score / c)
    alibi         bool: alibi_slopes(H)[h] |q - k| is subtracted after that
    rotary        "half" or "interleaved": the pairing of queries and keys,
                  of which all D components are rotated, with base 10000
    dropout       probability with which each weight is dropped
    query_offset  position of the first query, where the first key's is 0; None
                  is 0, also where L and S differ
    return_lse    bool: return (out, natural log-sum-exp (B, H, L))
    n_heads       H, where the tensors are (B, L, H * D) and so on

Without n_heads the tensors are (L, D), (B, L, D) or (B, H, L, D), where keys
and values may have fewer heads. Several masks are combined by "and". A fully
masked query gets zeros and -inf; a key that no query attends to has no
influence, even where it is NaN.

Nothing is validated here: use `attention`, and compare with these steps.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from attention.biases import alibi_slopes
from attention.functional import repeat_kv
from attention.positions.absolute import frequencies
from attention.positions.rotary import rotate
from attention.softmax import logsumexp, softmax, upcast

Pairing: TypeAlias = Literal["half", "interleaved"]
Out: TypeAlias = Tensor | tuple[Tensor, Tensor]


@dataclass
class TextbookAttention:
    """Attention in steps, each of which a `Mistake` can replace."""

    mask: Tensor | None = None
    causal: bool = False
    window: int | None = None
    lengths: Tensor | None = None
    scale: float | int | None = None
    softcap: float | int | None = None
    alibi: bool = False
    rotary: Pairing | None = None
    dropout: float | int = 0.0
    query_offset: int | None = None
    return_lse: bool = False
    n_heads: int | None = None

    def run(self, *tensors: Tensor) -> Out:
        """Take query, key and value through all steps, in their order."""
        query, key, value = self.prepare(*tensors)
        self.rank, self.key_shape = query.dim(), key.shape
        D = query.shape[-1] // (self.n_heads or 1)
        H_kv = self.n_heads and key.shape[-1] // D
        self.query, self.key, self.value = (
            self.split_heads(self.upcast(as_heads(x, n)))
            for x, n in ((query, self.n_heads), (key, H_kv), (value, H_kv))
        )  # (B, H, L, D), (B, H_kv, S, D), (B, H_kv, S, Dv)
        (_, self.H, self.L, self.D), self.S = self.query.shape, key.shape[-2]
        self.key = self.repeat_kv(self.key)  # (B, H, S, D)
        self.value = self.repeat_kv(self.value)  # (B, H, S, Dv)
        self.row = torch.arange(self.L)[:, None]  # (L, 1)
        self.q = self.row + self.query_start()  # (L, 1)
        self.k = torch.arange(self.S)  # (S,)
        self.allowed = self.combined_mask()  # True where a query may attend
        self.key = self.clear_masked(self.key)
        self.value = self.clear_masked(self.value)
        if self.rotary:
            self.query, self.key, self.value = self.apply_rotary(
                self.query, self.key, self.value
            )
        out = self.join_heads(self.attend()).to(query.dtype)  # (B, H, L, Dv)
        if self.n_heads:
            out = out.transpose(1, 2).flatten(2)  # (B, L, H * Dv)
            return (out, self.lse()) if self.return_lse else out
        out = out.reshape(*query.shape[:-1], -1)  # as query, but for Dv
        shape = query.shape[:-1]
        return (out, self.lse().reshape(shape)) if self.return_lse else out

    def prepare(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors  # query, key and value

    def upcast(self, x: Tensor) -> Tensor:
        return upcast(x)

    def split_heads(self, x: Tensor) -> Tensor:
        return x  # (B, H, L, D), split by as_heads

    def repeat_kv(self, x: Tensor) -> Tensor:
        return repeat_kv(x, self.H)  # (B, H, S, D)

    # Masks: self.q and self.k are positions, (L, 1) and (S,).
    def query_start(self) -> int:
        return self.query_offset or 0

    def causal_mask(self) -> Tensor:
        return self.q >= self.k  # (L, S)

    def window_mask(self, window: int) -> Tensor:
        return (self.k <= self.q) & (self.q - self.k < window)  # (L, S)

    def padding_mask(self, lengths: Tensor) -> Tensor:
        return self.k < lengths  # (B, 1, 1, S)

    def given_mask(self, mask: Tensor) -> Tensor:
        return mask

    def combined_mask(self) -> Tensor:
        allowed = torch.ones(1, 1, self.L, self.S, dtype=torch.bool)
        if self.mask is not None:
            allowed = allowed & self.given_mask(self.mask)
        if self.causal:
            allowed = allowed & self.causal_mask()
        if self.window is not None:
            allowed = allowed & self.window_mask(self.window)
        if self.lengths is not None:
            lengths = self.lengths[:, None, None, None]  # (B, 1, 1, 1)
            allowed = allowed & self.padding_mask(lengths)
        return allowed  # (B or 1, H or 1, L, S)

    def clear_masked(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.allowed.any(-2)[..., None], 0)

    def apply_rotary(
        self, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, ...]:
        return (
            self.rotate_one(q, self.query_offset or 0),
            self.rotate_one(k),
            v,
        )

    def rotate_one(
        self,
        x: Tensor,
        first: int = 0,
        *,
        other: bool = False,
        base: float = 10000.0,
        sign: int = 1,
    ) -> Tensor:
        p = sign * (first + torch.arange(x.shape[-2], dtype=torch.float64))
        angles = p[:, None] * frequencies("D", x.shape[-1], base)  # (L, D / 2)
        cos, sin = angles.cos().to(x), angles.sin().to(x)
        half = (self.rotary == "half") != other
        return rotate(x, cos, sin, pairing="half" if half else "interleaved")

    # Scores, (B, H, L, S).
    def dot_products(self) -> Tensor:
        return self.query @ self.key.mT  # (B, H, L, S)

    def default_scale(self) -> float:
        return 1 / math.sqrt(self.D)

    def scale_factor(self) -> float | int:
        return self.default_scale() if self.scale is None else self.scale

    def apply_softcap(self, s: Tensor) -> Tensor:
        c = self.softcap
        return s if c is None else c * torch.tanh(s / c)

    def slopes(self) -> Tensor:
        return alibi_slopes(self.H)  # (H,)

    def distance(self) -> Tensor:
        return (self.q - self.k).abs()  # (L, S)

    def add_alibi(self, s: Tensor) -> Tensor:
        return s - self.slopes()[:, None, None] * self.distance()

    def add_bias(self, s: Tensor) -> Tensor:
        return self.add_alibi(s) if self.alibi else s

    def modified_scores(self) -> Tensor:
        scaled = self.dot_products() * self.scale_factor()
        return self.add_bias(self.apply_softcap(scaled))

    def mask_scores(self, s: Tensor) -> Tensor:
        return s.masked_fill(~self.allowed, -math.inf)

    def scores(self) -> Tensor:
        return self.mask_scores(self.modified_scores())

    # Weights (B, H, L, S) and output (B, H, L, Dv).
    def softmax_dim(self) -> int:
        return -1

    def softmax(self, s: Tensor) -> Tensor:
        return softmax(s, self.softmax_dim())

    def weights(self) -> Tensor:
        return self.softmax(self.scores())

    def drop(self, w: Tensor) -> Tensor:
        return F.dropout(w, self.dropout)

    def apply_dropout(self, w: Tensor) -> Tensor:
        return self.drop(w) if self.dropout else w

    def attend(self) -> Tensor:
        return self.apply_dropout(self.weights()) @ self.value

    def lse(self) -> Tensor:
        return logsumexp(self.scores())  # (B, H, L)

    def join_heads(self, out: Tensor) -> Tensor:
        return out  # (B, H, L, Dv)


def as_heads(x: Tensor, n_heads: int | None) -> Tensor:
    """A tensor of any of the accepted shapes, as (B, H, L, D)."""
    if n_heads:
        heads: Tensor = x.unflatten(-1, (n_heads, -1))  # (B, L, H, D)
        return heads.transpose(1, 2)
    return x if x.dim() == 4 else x[:, None] if x.dim() == 3 else x[None, None]
