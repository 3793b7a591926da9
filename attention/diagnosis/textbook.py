# ruff: noqa: D102 - what a step computes, its name says
"""Attention in steps, with all that this book adds to it.

Each step is a method, so that one of them can be replaced by a wrong one. The
words that `Steps` is made with, and so those of `wrong.right` and of every
wrong attention:

    mask          Boolean, True where a query may attend; (L, S), or each
                  dimension 1 or that of (B, H, L, S)
    causal        bool: a query at position i sees the keys at up to i
    window        how many keys a query sees, its own and those just before
    lengths       integers (B,): how many keys of each batch row are real
    scale         a number; None is 1 / sqrt(D)
    softcap       a number c: scaled scores become c tanh(score / c)
    alibi         bool: alibi_slopes(H)[h] |q - k| is taken off after that
    rotary        "half" or "interleaved": how queries and keys are paired to
                  be turned, all D numbers of them, with base 10000
    dropout       probability with which each weight is dropped
    query_offset  position of the first query, where the first key's is 0; None
                  is 0, also where L and S differ
    return_lse    bool: return (out, natural log-sum-exp (B, H, L))
    n_heads       H, where tensors come and go as (B, L, H * D) and so on

Without n_heads the tensors are (L, D), (B, L, D) or (B, H, L, D), where keys
and values may have fewer heads. Several masks hide what any of them hides. A
query that sees nothing gets zeros and -inf; a key that no query sees has no
influence, even where it is NaN.

Nothing is checked here: `attention` is what to use, and these steps are what
to compare with.
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
class Steps:
    """Attention in steps, each of which can be replaced by a wrong one."""

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
        query, key, value = self.take(*tensors)
        self.rank, self.key_shape = query.dim(), key.shape
        D = query.shape[-1] // (self.n_heads or 1)
        n_heads = self.n_heads, *[self.n_heads and key.shape[-1] // D] * 2
        self.query, self.key, self.value = (
            self.split(self.widen(as_heads(x, n)))
            for x, n in zip((query, key, value), n_heads, strict=True)
        )  # (B, H, L, D), (B, H_kv, S, D), (B, H_kv, S, Dv)
        (_, self.H, self.L, self.D), self.S = self.query.shape, key.shape[-2]
        self.key, self.value = self.share(self.key), self.share(self.value)
        self.row, self.k = torch.arange(self.L)[:, None], torch.arange(self.S)
        self.q = self.row + self.start()  # (L, 1)
        self.seen = self.may_see()  # (B or 1, H or 1, L, S)
        self.key, self.value = self.clear(self.key), self.clear(self.value)
        if self.rotary:
            self.query, self.key, self.value = self.turn(
                self.query, self.key, self.value
            )
        out = self.join(self.attend()).to(query.dtype)  # (B, H, L, Dv)
        if self.n_heads:
            out = out.transpose(1, 2).flatten(2)  # (B, L, H * Dv)
            return (out, self.lse()) if self.return_lse else out
        out = out.reshape(*query.shape[:-1], -1)
        lse = query.shape[:-1]
        return (out, self.lse().reshape(lse)) if self.return_lse else out

    def take(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors

    def widen(self, x: Tensor) -> Tensor:
        return upcast(x)

    def split(self, x: Tensor) -> Tensor:
        return x  # (B, H, L, D)

    def share(self, x: Tensor) -> Tensor:
        return repeat_kv(x, self.H)

    # Masks: self.q and self.k are positions, (L, 1) and (S,).
    def start(self) -> int:
        return self.query_offset or 0

    def before(self) -> Tensor:
        return self.q >= self.k

    def near(self, window: int) -> Tensor:
        return (self.k <= self.q) & (self.q - self.k < window)

    def real(self, lengths: Tensor) -> Tensor:
        return self.k < lengths

    def allowed(self, mask: Tensor) -> Tensor:
        return mask

    def may_see(self) -> Tensor:
        seen = torch.ones(1, 1, self.L, self.S, dtype=torch.bool)
        if self.mask is not None:
            seen = seen & self.allowed(self.mask)
        if self.causal:
            seen = seen & self.before()
        if self.window is not None:
            seen = seen & self.near(self.window)
        if self.lengths is not None:
            seen = seen & self.real(self.lengths[:, None, None, None])
        return seen

    def clear(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.seen.any(-2)[..., None], 0)

    def turn(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return self.by(q, self.query_offset or 0), self.by(k), v

    def by(
        self,
        x: Tensor,
        first: int = 0,
        *,
        other: bool = False,
        base: float = 10000.0,
        sign: int = 1,
    ) -> Tensor:
        """The vectors, turned by their positions, or in the other pairs."""
        where = sign * (first + torch.arange(x.shape[-2], dtype=torch.float64))
        angles = where[:, None] * frequencies("D", x.shape[-1], base)
        hands = angles.cos().to(x), angles.sin().to(x)  # (L, D / 2)
        half = (self.rotary == "half") != other
        return rotate(x, *hands, pairing="half" if half else "interleaved")

    # Scores, (B, H, L, S).
    def match(self) -> Tensor:
        return self.query @ self.key.mT

    def usual(self) -> float:
        return 1 / math.sqrt(self.D)

    def factor(self) -> float | int:
        return self.usual() if self.scale is None else self.scale

    def bend(self, s: Tensor) -> Tensor:
        c = self.softcap
        return s if c is None else c * torch.tanh(s / c)

    def slopes(self) -> Tensor:
        return alibi_slopes(self.H)

    def apart(self) -> Tensor:
        return (self.q - self.k).abs()

    def lean(self, s: Tensor) -> Tensor:
        return s - self.slopes()[:, None, None] * self.apart()

    def bias(self, s: Tensor) -> Tensor:
        return self.lean(s) if self.alibi else s

    def modify(self) -> Tensor:
        return self.bias(self.bend(self.match() * self.factor()))

    def hide(self, s: Tensor) -> Tensor:
        return s.masked_fill(~self.seen, -math.inf)

    def final(self) -> Tensor:
        return self.hide(self.modify())

    # Weights, and what is made of them.
    def axis(self) -> int:
        return -1

    def share_out(self, s: Tensor) -> Tensor:
        return softmax(s, self.axis())

    def weights(self) -> Tensor:
        return self.share_out(self.final())

    def drop(self, w: Tensor) -> Tensor:
        return F.dropout(w, self.dropout)

    def thin(self, w: Tensor) -> Tensor:
        return self.drop(w) if self.dropout else w

    def attend(self) -> Tensor:
        return self.thin(self.weights()) @ self.value

    def lse(self) -> Tensor:
        return logsumexp(self.final())

    def join(self, out: Tensor) -> Tensor:
        return out  # (B, H, L, Dv)


def as_heads(x: Tensor, n_heads: int | None) -> Tensor:
    """Any of the shapes that the tensors may have, as (B, H, L, D)."""
    if n_heads:
        split: Tensor = x.unflatten(-1, (n_heads, -1))
        return split.transpose(1, 2)
    return x if x.dim() == 4 else x[:, None] if x.dim() == 3 else x[None, None]
