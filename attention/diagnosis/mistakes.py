"""Wrong attentions: right ones in which one step is written as people do.

`WRONG` has each by its name, which says what it does and goes on after "It".
A wrong attention takes the same words as `right`: those of `textbook`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attention.biases import alibi_slopes
from attention.diagnosis.textbook import Out, Steps
from attention.functional import repeat_kv
from attention.softmax import logsumexp, softmax, softmax_naive


@dataclass(frozen=True)
class Wrong:
    """An attention with one step wrong: what it does, and where to read.

    Args:
        name: what it does, to go on after "It".
        step: the step of `Steps` that is replaced, or a word.
        instead: what takes its place, a function of the steps and of what
            that step takes; None: the word is not listened to.
        chapter: title and page of the chapter that explains the step.
    """

    name: str
    step: str
    instead: Callable[..., Any] | None
    chapter: tuple[str, str]

    def __call__(self, *tensors: Tensor, **words: Any) -> Out:
        """Attention with this step wrong, of query, key and value."""
        return right(*tensors, wrongs=(self,), **words)


def right(
    *tensors: Tensor, wrongs: tuple[Wrong, ...] = (), **words: Any
) -> Out:
    """Attention of query, key and value, with all words; or a wrong one."""
    steps = Steps(**words)
    for wrong in wrongs:
        if wrong.instead is None:
            setattr(steps, wrong.step, getattr(Steps, wrong.step))
        else:
            setattr(steps, wrong.step, partial(wrong.instead, steps))
    return steps.run(*tensors)


SOFTMAX = "Softmax, and its derivative", "foundations/softmax"
TENSORS = "Queries, keys and values", "foundations/queries-keys-values"
SCALING = "Why divide by √d_k", "foundations/scaling"
MASKS = "Hiding the future", "foundations/causal"
HEADS = "Many heads", "foundations/heads"
BACKWARD = "The backward pass by hand", "foundations/backward"
ROTARY = "Rotary positions", "order/rotary"
BIASES = "Biases", "order/biases"


def _renormalised(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)


def _value_of(x: Tensor, like: Tensor) -> Tensor:
    """The numbers of x, with the derivatives of something else."""
    return x.detach() + like - like.detach()


def _first(a: Steps) -> int:
    return a.query_offset or 0


def _whole(a: Steps, x: Tensor, first: int) -> Tensor:
    turned: Tensor = a.by(x.transpose(1, 2).flatten(2), first)  # (B, L, H * D)
    return turned.view(*x.transpose(1, 2).shape).transpose(1, 2)


def _dim(a: Steps, dim: int) -> int:
    """Which dimension of (B, H, L, S) is this one of the caller's scores."""
    return {2: (2, 3), 3: (0, 2, 3)}.get(a.rank, (0, 1, 2, 3))[dim]


# The steps, each with its chapter and what people write instead. Names with a
# number are of issues, which docs/pitfalls.md has in full.
_CATALOGUE: dict[
    tuple[str, tuple[str, str]], dict[str, Callable[..., Any] | None]
] = {
    ("usual", SCALING): {  # DL4Proteins-notebooks #12
        "divides by √d_model, not by √head_dim": lambda a: (a.H * a.D) ** -0.5,
        "does not scale the scores": lambda a: 1.0,
        "divides by head_dim, not by its root": lambda a: 1 / a.D,
        "multiplies by √head_dim": lambda a: a.D**0.5,
        "divides by √(key.shape[1])": lambda a: a.key_shape[1] ** -0.5,
        "divides by the root of the number of keys": lambda a: a.S**-0.5,
    },
    ("factor", SCALING): {
        "scales twice": lambda a: (a.scale or a.D**-0.5) ** 2,
    },
    ("axis", SOFTMAX): {  # llms-from-scratch-rs #30, PyTorch-NLP #2
        "takes the softmax over the queries, dim=-2": lambda a: -2,
        "takes the softmax along dim=0": lambda a: _dim(a, 0),
        "takes the softmax along dim=1": lambda a: _dim(a, 1),
    },
    ("share_out", SOFTMAX): {
        "takes no softmax": lambda a, s: s.masked_fill(s == -math.inf, 0),
        "does not subtract the maximum": lambda a, s: softmax_naive(
            s, a.axis()
        ),
        "takes powers of 2, not of e": lambda a, s: softmax(
            s * math.log(2), a.axis()
        ),
        "adds 1 to the sum that it divides by": lambda a, s: softmax(
            F.pad(s, (0, 1)), a.axis()
        )[..., :-1],
        "takes one softmax over all pairs": lambda a, s: softmax(
            s.flatten(-2)
        ).view_as(s),
        "gives NaN to a query that sees nothing": lambda a, s: s.softmax(
            a.axis()
        ),  # pytorch #41508
    },
    ("take", TENSORS): {
        "swaps keys and values": lambda a, q, k, v: (q, v, k),
        "takes the keys for values": lambda a, q, k, v: (q, k, k),
        "takes the queries for keys": lambda a, q, k, v: (q, q, v),
    },
    ("match", TENSORS): {
        "transposes the scores": (lambda a: a.key @ a.query.mT),
        "gives every head the keys of the first": (
            lambda a: a.query @ a.key[:, :1].mT
        ),
    },
    ("widen", SOFTMAX): {"computes in 16 bits": lambda a, x: x},
    ("allowed", MASKS): {  # LLMs-from-scratch #1061
        "takes True for hidden": lambda a, mask: ~mask,
        "takes the mask's rows for keys": lambda a, mask: mask.mT,
    },
    ("before", MASKS): {  # former #10
        "shows a query the future and nothing else": lambda a: a.q < a.k,
        "hides each query's own key": lambda a: a.q > a.k,
        "hides each query's own key except the first's": (
            lambda a: (a.q > a.k) | (a.q + a.k == 0)
        ),
        "lets a query see the next key": lambda a: a.q + 1 >= a.k,
    },
    ("start", MASKS): {  # pytorch #103082, x-transformers #187
        "lines up the first query with the first key": lambda a: 0,
        "lines up the last query with the last key": lambda a: a.S - a.L,
    },
    ("near", MASKS): {
        "keeps a key too many in its window": (
            lambda a, w: (a.k <= a.q) & (a.q - a.k <= w)
        ),
        "keeps a key too few in its window": (
            lambda a, w: (a.k <= a.q) & (a.q - a.k < w - 1)
        ),
        "looks both ways in its window": (lambda a, w: (a.q - a.k).abs() < w),
        "sees the whole future besides its window": (
            lambda a, w: a.q - a.k < w
        ),
    },
    ("real", MASKS): {
        "hides padded queries instead of padded keys": lambda a, n: a.row < n,
        "hides padded queries as well as padded keys": (
            lambda a, n: (a.row < n) & (a.k < n)
        ),
        "keeps one key of the padding": lambda a, n: a.k <= n,
        "expects the padding before the tokens": lambda a, n: a.k >= a.S - n,
    },
    ("clear", MASKS): {  # pytorch #101967
        "multiplies hidden values by 0, which leaves NaN": lambda a, x: x,
    },
    ("hide", MASKS): {  # fairseq #3575, transformers #17306, cs249r_book #1785
        "fills with a large number, not with -inf": (
            lambda a, s: s.masked_fill(~a.seen, -1e9)
        ),
        "adds a large number, not -inf": lambda a, s: s - 1e4 * ~a.seen,
        "adds 1 where a query may attend": lambda a, s: s + 1.0 * a.seen,
        "multiplies hidden scores by 0": lambda a, s: s * a.seen,
        "takes a mask of 0 and -inf for one of 1 and 0": (
            lambda a, s: (
                s.masked_fill(~a.seen, -math.inf)
                - (0 if a.seen.all() else 1e9)
            )
        ),
    },
    ("weights", MASKS): {  # pytorch-image-models #2236
        "masks after the softmax": (
            lambda a: a.share_out(a.modify()) * a.seen
        ),
        "masks after the softmax and renormalises": (
            lambda a: _renormalised(a.share_out(a.modify()) * a.seen)
        ),
    },
    ("share", HEADS): {
        "gives neighbouring heads different key heads": (
            lambda a, x: x.repeat(1, a.H // x.shape[1], 1, 1)
        ),
    },
    ("split", HEADS): {  # FuxiCTR #30
        "cuts the heads by view, without a transpose": (
            lambda a, x: x.transpose(1, 2).reshape(x.shape)
        ),
    },
    ("join", HEADS): {  # transformer-from-scratch #6, opacus #825
        "joins the heads without a transpose": (
            lambda a, x: x.reshape(x.transpose(1, 2).shape).transpose(1, 2)
        ),
        "averages over the heads": lambda a, x: x.mean(1, True).expand_as(x),
    },
    ("drop", HEADS): {
        "drops and does not scale up": (
            lambda a, w: w * (torch.rand_like(w) >= a.dropout)
        ),
        "renormalises after dropout": (
            lambda a, w: _renormalised(F.dropout(w, a.dropout))
        ),
        "keeps with the probability of dropping": (
            lambda a, w: F.dropout(w, 1 - a.dropout)
        ),
    },
    ("attend", HEADS): {
        "drops outputs, not weights": lambda a: a.thin(a.weights() @ a.value),
        "drops scores, not weights": (
            lambda a: a.share_out(a.hide(a.thin(a.modify()))) @ a.value
        ),
        "returns the weights": lambda a: a.weights(),
        "mends NaN in the output, and not in the gradient": (
            lambda a: (a.thin(a.final().softmax(-1)) @ a.value).nan_to_num()
        ),
    },
    ("weights", BACKWARD): {
        "lets no gradient through the weights": (
            lambda a: a.share_out(a.final()).detach()
        ),
        "forgets the average in the softmax's gradient": (
            lambda a: _value_of(
                w := a.share_out(a.final()), w.detach() * a.modify()
            )
        ),
    },
    ("modify", BACKWARD): {  # triton #4541 forgot the mask
        "forgets the scale in the gradient": (
            lambda a: a.bias(
                a.bend(_value_of(a.factor() * a.match(), a.match()))
            )
        ),
    },
    ("share", BACKWARD): {
        "lets no gradient through keys and values": (
            lambda a, x: repeat_kv(x, a.H).detach()
        ),
    },
    ("turn", ROTARY): {
        "pairs the numbers of queries one way and of keys another": (
            lambda a, q, k, v: (a.by(q, _first(a)), a.by(k, other=True), v)
        ),
        "pairs the numbers the other way": lambda a, q, k, v: (
            a.by(q, _first(a), other=True),
            a.by(k, other=True),
            v,
        ),
        "turns the values too": (
            lambda a, q, k, v: (a.by(q, _first(a)), a.by(k), a.by(v))
        ),
        "turns the queries and not the keys": (
            lambda a, q, k, v: (a.by(q, _first(a)), k, v)
        ),
        "turns from position 0 in each call": (
            lambda a, q, k, v: (a.by(q), a.by(k), v)
        ),
        "turns before it cuts the heads": (
            lambda a, q, k, v: (_whole(a, q, _first(a)), _whole(a, k, 0), v)
        ),
        "turns backwards": lambda a, q, k, v: (
            a.by(q, _first(a), sign=-1),
            a.by(k, sign=-1),
            v,
        ),
        "turns pair i by base^(-i / D), not base^(-2i / D)": (
            lambda a, q, k, v: (
                a.by(q, _first(a), base=100.0),
                a.by(k, base=100.0),
                v,
            )
        ),
    },
    ("bend", BIASES): {
        "caps and does not multiply by the cap again": lambda a, s: (
            s if a.softcap is None else torch.tanh(s / a.softcap)
        ),
    },
    ("final", BIASES): {
        "caps the scores after the mask": (
            lambda a: a.bend(a.hide(a.bias(a.match() * a.factor())))
        ),
    },
    ("modify", BIASES): {
        "caps the scores before they are scaled": (
            lambda a: a.bias(a.bend(a.match()) * a.factor())
        ),
        "adds the bias before the scores are scaled": (
            lambda a: a.bend(a.bias(a.match()) * a.factor())
        ),
    },
    ("lean", BIASES): {
        "adds more, not less, the farther a key is": (
            lambda a, s: s + a.slopes()[:, None, None] * a.apart()
        ),
    },
    ("apart", BIASES): {
        "favours later keys, where distance is |q - k|": lambda a: a.q - a.k,
        "measures distances from position 0 in each call": (
            lambda a: (a.row - a.k).abs()
        ),
    },
    ("slopes", BIASES): {
        "gives the heads their slopes in reverse": (
            lambda a: alibi_slopes(a.H).flip(0)
        ),
        "spaces the slopes evenly where H is no power of 2": (
            lambda a: 2.0 ** (-8 / a.H * torch.arange(1, a.H + 1))
        ),
        "puts the slopes in order where H is no power of 2": (
            lambda a: alibi_slopes(a.H).sort(descending=True)[0]
        ),
    },
    ("lse", SOFTMAX): {
        "gives a log-sum-exp of base 2": (
            lambda a: logsumexp(a.final()) / math.log(2)
        ),
        "takes a log-sum-exp that overflows": (
            lambda a: a.final().exp().sum(-1).log()
        ),
        "takes the log-sum-exp before the mask": (
            lambda a: logsumexp(a.modify())
        ),
        "does not add the maximum to the log-sum-exp again": (
            lambda a: logsumexp(a.final()) - a.final().amax(-1)
        ),
    },
}
CHAPTER_OF = {
    "mask": MASKS,
    "causal": MASKS,
    "window": MASKS,
    "lengths": MASKS,
    "scale": SCALING,
    "softcap": BIASES,
    "alibi": BIASES,
    "rotary": ROTARY,
    "dropout": HEADS,
    "query_offset": MASKS,
}
WRONG = {
    name: Wrong(name, step, instead, chapter)
    for (step, chapter), wrongs in _CATALOGUE.items()
    for name, instead in wrongs.items()
} | {
    f"ignores {word}": Wrong(f"ignores {word}", word, None, chapter)
    for word, chapter in CHAPTER_OF.items()
}
