"""Common mistakes: textbook attention with one step replaced.

`MISTAKES` has each by its name, which completes a sentence that begins with
"It". A mistake takes the options of `textbook`.
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
from attention.diagnosis.textbook import Out, TextbookAttention
from attention.functional import repeat_kv
from attention.softmax import logsumexp, softmax, softmax_naive


@dataclass(frozen=True)
class Mistake:
    """An attention with one step wrong.

    Args:
        name: completes a sentence that begins with "It".
        step: the method of `TextbookAttention` that is replaced, or an option.
        replacement: a function of the attention and the step's arguments;
            None: the option is ignored.
        chapter: title and page of the chapter that explains the step.
    """

    name: str
    step: str
    replacement: Callable[..., Any] | None
    chapter: tuple[str, str]

    def __call__(self, *tensors: Tensor, **options: Any) -> Out:
        """Attention of query, key and value with this mistake."""
        return textbook_attention(*tensors, mistakes=(self,), **options)


def textbook_attention(
    *tensors: Tensor, mistakes: tuple[Mistake, ...] = (), **options: Any
) -> Out:
    """Attention of query, key and value, with mistakes where given."""
    attend = TextbookAttention(**options)
    for x in mistakes:
        if x.replacement is None:  # back to the default
            setattr(attend, x.step, getattr(TextbookAttention, x.step))
        else:
            setattr(attend, x.step, partial(x.replacement, attend))
    return attend.run(*tensors)


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


def _with_gradient_of(x: Tensor, other: Tensor) -> Tensor:
    """The values of x, with the derivatives of another tensor."""
    return x.detach() + other - other.detach()


def _first(a: TextbookAttention) -> int:
    return a.query_offset or 0


def _rotate_unsplit(a: TextbookAttention, x: Tensor, first: int) -> Tensor:
    joined = x.transpose(1, 2)  # (B, L, H, D)
    rotated = a.rotate_one(joined.flatten(2), first)  # (B, L, H * D)
    return rotated.view(joined.shape).transpose(1, 2)  # (B, H, L, D)


def _dim(a: TextbookAttention, dim: int) -> int:
    """The dimension of (B, H, L, S) that is `dim` of the caller's scores."""
    return {2: (2, 3), 3: (0, 2, 3)}.get(a.rank, (0, 1, 2, 3))[dim]


# For each step its chapter and its replacements. Names with a number are
# issues, listed in docs/pitfalls.md.
_CATALOGUE: dict[
    tuple[str, tuple[str, str]], dict[str, Callable[..., Any] | None]
] = {
    ("default_scale", SCALING): {  # DL4Proteins-notebooks #12
        "divides by √d_model, not by √head_dim": lambda a: (a.H * a.D) ** -0.5,
        "does not scale the scores": lambda a: 1.0,
        "divides by head_dim, not by its root": lambda a: 1 / a.D,
        "multiplies by √head_dim": lambda a: a.D**0.5,
        "divides by √(key.shape[1])": lambda a: a.key_shape[1] ** -0.5,
        "divides by the root of the number of keys": lambda a: a.S**-0.5,
    },
    ("scale_factor", SCALING): {
        "scales twice": lambda a: (a.scale or a.D**-0.5) ** 2,
    },
    ("softmax_dim", SOFTMAX): {  # llms-from-scratch-rs #30, PyTorch-NLP #2
        "takes the softmax over the queries, dim=-2": lambda a: -2,
        "takes the softmax along dim=0": lambda a: _dim(a, 0),
        "takes the softmax along dim=1": lambda a: _dim(a, 1),
    },
    ("softmax", SOFTMAX): {
        "takes no softmax": lambda a, s: s.masked_fill(s == -math.inf, 0),
        "does not subtract the maximum": lambda a, s: softmax_naive(
            s, a.softmax_dim()
        ),
        "takes powers of 2, not of e": lambda a, s: softmax(
            s * math.log(2), a.softmax_dim()
        ),
        "adds 1 to the sum that it divides by": lambda a, s: softmax(
            F.pad(s, (0, 1)), a.softmax_dim()
        )[..., :-1],
        "takes one softmax over all pairs": lambda a, s: softmax(
            s.flatten(-2)
        ).view_as(s),
        "gives NaN to a query that sees nothing": lambda a, s: s.softmax(
            a.softmax_dim()
        ),  # pytorch #41508
    },
    ("prepare", TENSORS): {
        "swaps keys and values": lambda a, q, k, v: (q, v, k),
        "takes the keys for values": lambda a, q, k, v: (q, k, k),
        "takes the queries for keys": lambda a, q, k, v: (q, q, v),
    },
    ("dot_products", TENSORS): {
        "transposes the scores": (lambda a: a.key @ a.query.mT),
        "gives every head the keys of the first": (
            lambda a: a.query @ a.key[:, :1].mT
        ),
    },
    ("upcast", SOFTMAX): {"computes in 16 bits": lambda a, x: x},
    ("given_mask", MASKS): {  # LLMs-from-scratch #1061
        "takes True for hidden": lambda a, mask: ~mask,
        "takes the mask's rows for keys": lambda a, mask: mask.mT,
    },
    ("causal_mask", MASKS): {  # former #10
        "shows a query the future and nothing else": lambda a: a.q < a.k,
        "hides each query's own key": lambda a: a.q > a.k,
        "hides each query's own key except the first's": (
            lambda a: (a.q > a.k) | (a.q + a.k == 0)
        ),
        "lets a query see the next key": lambda a: a.q + 1 >= a.k,
    },
    ("query_start", MASKS): {  # pytorch #103082, x-transformers #187
        "lines up the first query with the first key": lambda a: 0,
        "lines up the last query with the last key": lambda a: a.S - a.L,
    },
    ("window_mask", MASKS): {
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
    ("padding_mask", MASKS): {
        "hides padded queries instead of padded keys": lambda a, n: a.row < n,
        "hides padded queries as well as padded keys": (
            lambda a, n: (a.row < n) & (a.k < n)
        ),
        "keeps one key of the padding": lambda a, n: a.k <= n,
        "expects the padding before the tokens": lambda a, n: a.k >= a.S - n,
    },
    ("clear_masked", MASKS): {  # pytorch #101967
        "multiplies hidden values by 0, which leaves NaN": lambda a, x: x,
    },
    # fairseq #3575, transformers #17306, cs249r_book #1785
    ("mask_scores", MASKS): {
        "fills with a large number, not with -inf": (
            lambda a, s: s.masked_fill(~a.allowed, -1e9)
        ),
        "adds a large number, not -inf": lambda a, s: s - 1e4 * ~a.allowed,
        "adds 1 where a query may attend": lambda a, s: s + 1.0 * a.allowed,
        "multiplies hidden scores by 0": lambda a, s: s * a.allowed,
        "takes a mask of 0 and -inf for one of 1 and 0": (
            lambda a, s: (
                s.masked_fill(~a.allowed, -math.inf)
                - (0 if a.allowed.all() else 1e9)
            )
        ),
    },
    ("weights", MASKS): {  # pytorch-image-models #2236
        "masks after the softmax": (
            lambda a: a.softmax(a.modified_scores()) * a.allowed
        ),
        "masks after the softmax and renormalises": (
            lambda a: _renormalised(a.softmax(a.modified_scores()) * a.allowed)
        ),
    },
    ("repeat_kv", HEADS): {
        "gives neighbouring heads different key heads": (
            lambda a, x: x.repeat(1, a.H // x.shape[1], 1, 1)
        ),
    },
    ("split_heads", HEADS): {  # FuxiCTR #30
        "cuts the heads by view, without a transpose": (
            lambda a, x: x.transpose(1, 2).reshape(x.shape)
        ),
    },
    ("join_heads", HEADS): {  # transformer-from-scratch #6, opacus #825
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
        "drops outputs, not weights": lambda a: a.apply_dropout(
            a.weights() @ a.value
        ),
        "drops scores, not weights": (
            lambda a: (
                a.softmax(a.mask_scores(a.apply_dropout(a.modified_scores())))
                @ a.value
            )
        ),
        "returns the weights": lambda a: a.weights(),
        "mends NaN in the output, and not in the gradient": (
            lambda a: (
                a.apply_dropout(a.scores().softmax(-1)) @ a.value
            ).nan_to_num()
        ),
    },
    ("weights", BACKWARD): {
        "lets no gradient through the weights": (
            lambda a: a.softmax(a.scores()).detach()
        ),
        "forgets the average in the softmax's gradient": (
            lambda a: _with_gradient_of(
                w := a.softmax(a.scores()), w.detach() * a.modified_scores()
            )
        ),
    },
    ("modified_scores", BACKWARD): {  # triton #4541 forgot the mask
        "forgets the scale in the gradient": (
            lambda a: a.add_bias(
                a.apply_softcap(
                    _with_gradient_of(
                        a.scale_factor() * a.dot_products(), a.dot_products()
                    )
                )
            )
        ),
    },
    ("repeat_kv", BACKWARD): {
        "lets no gradient through keys and values": (
            lambda a, x: repeat_kv(x, a.H).detach()
        ),
    },
    ("apply_rotary", ROTARY): {
        "pairs the numbers of queries one way and of keys another": (
            lambda a, q, k, v: (
                a.rotate_one(q, _first(a)),
                a.rotate_one(k, other=True),
                v,
            )
        ),
        "pairs the numbers the other way": lambda a, q, k, v: (
            a.rotate_one(q, _first(a), other=True),
            a.rotate_one(k, other=True),
            v,
        ),
        "turns the values too": (
            lambda a, q, k, v: (
                a.rotate_one(q, _first(a)),
                a.rotate_one(k),
                a.rotate_one(v),
            )
        ),
        "turns the queries and not the keys": (
            lambda a, q, k, v: (a.rotate_one(q, _first(a)), k, v)
        ),
        "turns from position 0 in each call": (
            lambda a, q, k, v: (a.rotate_one(q), a.rotate_one(k), v)
        ),
        "turns before it cuts the heads": (
            lambda a, q, k, v: (
                _rotate_unsplit(a, q, _first(a)),
                _rotate_unsplit(a, k, 0),
                v,
            )
        ),
        "turns backwards": lambda a, q, k, v: (
            a.rotate_one(q, _first(a), sign=-1),
            a.rotate_one(k, sign=-1),
            v,
        ),
        "turns pair i by base^(-i / D), not base^(-2i / D)": (
            lambda a, q, k, v: (
                a.rotate_one(q, _first(a), base=100.0),
                a.rotate_one(k, base=100.0),
                v,
            )
        ),
    },
    ("apply_softcap", BIASES): {
        "caps and does not multiply by the cap again": lambda a, s: (
            s if a.softcap is None else torch.tanh(s / a.softcap)
        ),
    },
    ("scores", BIASES): {
        "caps the scores after the mask": (
            lambda a: a.apply_softcap(
                a.mask_scores(a.add_bias(a.dot_products() * a.scale_factor()))
            )
        ),
    },
    ("modified_scores", BIASES): {
        "caps the scores before they are scaled": (
            lambda a: a.add_bias(
                a.apply_softcap(a.dot_products()) * a.scale_factor()
            )
        ),
        "adds the bias before the scores are scaled": (
            lambda a: a.apply_softcap(
                a.add_bias(a.dot_products()) * a.scale_factor()
            )
        ),
    },
    ("add_alibi", BIASES): {
        "adds more, not less, the farther a key is": (
            lambda a, s: s + a.slopes()[:, None, None] * a.distance()
        ),
    },
    ("distance", BIASES): {
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
            lambda a: logsumexp(a.scores()) / math.log(2)
        ),
        "takes a log-sum-exp that overflows": (
            lambda a: a.scores().exp().sum(-1).log()
        ),
        "takes the log-sum-exp before the mask": (
            lambda a: logsumexp(a.modified_scores())
        ),
        "does not add the maximum to the log-sum-exp again": (
            lambda a: logsumexp(a.scores()) - a.scores().amax(-1)
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
MISTAKES = {
    name: Mistake(name, step, replacement, chapter)
    for (step, chapter), replacements in _CATALOGUE.items()
    for name, replacement in replacements.items()
} | {
    f"ignores {option}": Mistake(f"ignores {option}", option, None, chapter)
    for option, chapter in CHAPTER_OF.items()
}
