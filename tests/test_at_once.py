"""A mod is asked about all pairs at once only where vmap would say the same."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import and_masks

from attention import T5Bias, alibi, causal, document, padding, sliding_window, softcap
from attention.kernels.at_once import at_once
from attention.masking import over_pairs

B, H, L, S = 2, 3, 5, 7
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(B, generator=GENERATOR)
HEADS = torch.randn(H, generator=GENERATOR)
OF_HEADS = torch.randn(H, 40, generator=GENERATOR)
OF_PAIRS = torch.randn(B, H, 40, 40, generator=GENERATOR)
LEARNED = torch.nn.Parameter(torch.randn(H, generator=GENERATOR))
NUMBER = torch.tensor(0.3)
DOUBLE = torch.tensor(0.3, dtype=torch.float64)


def gates(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A learned softplus, with a constant that is computed first."""
    rate = torch.nn.functional.softplus(LEARNED.sum())
    return score * rate - torch.where(q > k, NUMBER, 0.5) + OF_HEADS[h, (q - k).abs()]


def with_if(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Python's if takes one number."""
    return score if h == 0 else 2 * score


SCORES = {
    "ALiBi": alibi(H),
    "T5": T5Bias(H),
    "softcap": softcap(5.0),
    "a table of heads": lambda s, b, h, q, k: s + OF_HEADS[h, q],
    "a table of pairs": lambda s, b, h, q, k: s + OF_PAIRS[b, h, q, k],
    "a number": lambda s, b, h, q, k: s * NUMBER + ROWS[b],
    "gates": gates,
    "whole numbers": lambda s, b, h, q, k: s + (q // 2 - k % 3) * NUMBER,
    "nothing of the score": lambda s, b, h, q, k: HEADS[h] * (q - k),
    "as it is": lambda s, b, h, q, k: s,
}
MASKS = {
    "causal": causal,
    "documents": document(torch.arange(40).expand(B, -1) // 3),
    "padding": padding(torch.tensor([3, 30])),
    "both": and_masks(sliding_window(4), lambda b, h, q, k: ROWS[b] > HEADS[h]),
    "every third": lambda b, h, q, k: (q - k) % 3 == 0,
}
ONE_BY_ONE = {
    "a sum over pairs": lambda s, b, h, q, k: s - s.sum(),
    "a running sum": lambda s, b, h, q, k: s + q.cumsum(-1) if q.dim() else s + q,
    "a column of a table": lambda s, b, h, q, k: s + OF_HEADS.T[:, h].mean(),
    "how many there are": lambda s, b, h, q, k: s / s.numel(),
    "other words for many": lambda s, b, h, q, k: s if s.dim() == 0 else 2 * s,
    "a row of a table": lambda s, b, h, q, k: s + OF_HEADS[h][q],
    "an embedding": lambda s, b, h, q, k: s + torch.nn.functional.embedding(h, OF_HEADS)[..., 0],
    "Python's if": with_if,
    "a mean of two": lambda s, b, h, q, k: s + torch.stack([q, k]).float().mean(),
    "chance": lambda s, b, h, q, k: s + torch.rand_like(s),
    "in place, of its own": lambda s, b, h, q, k: (2 * s).add_(q),
    "a mean with a table": lambda s, b, h, q, k: (s + torch.ones(3, 1, 1)).mean(),
    "in place": lambda s, b, h, q, k: s.add_(1.0),
    "numbers of a wider type": lambda s, b, h, q, k: (s * DOUBLE).float(),
    "one number for each head": lambda s, b, h, q, k: (s + HEADS).sum(-1),
    "a matrix product": lambda s, b, h, q, k: OF_HEADS[h] @ OF_HEADS[0] * s,
    "one entry of four dimensions": lambda s, b, h, q, k: s + OF_PAIRS[:1, :1, :1, :1].mean(),
}
# What no kernel takes: vmap is to say so.
NO_MODS = {
    "four dimensions": lambda s, b, h, q, k: s + OF_PAIRS[:1, :1, :1, :1],
    "two numbers": lambda s, b, h, q, k: torch.stack([s, s]),
    "no tensor": lambda s, b, h, q, k: 0.0,
    "an error": lambda s, b, h, q, k: OF_HEADS[h, 1000] + s,
}


def first_pair(*score: Tensor) -> tuple[Tensor, ...]:
    """What a kernel asks about first."""
    return *(x.new_ones(()) for x in score), *torch.zeros(4, dtype=torch.int64)


def every_pair() -> tuple[Tensor, ...]:
    """Rows, heads and places, those of the queries other in each row."""
    starts = torch.tensor([[0], [11]])
    return torch.arange(B), torch.arange(H), starts + torch.arange(L), torch.arange(S) + 2


@pytest.mark.parametrize("name", SCORES)
def test_a_score_mod_that_computes_number_by_number_is_asked_at_once(name: str) -> None:
    scores = torch.randn(B, H, L, S, generator=torch.Generator().manual_seed(1))
    assert at_once(SCORES[name], *first_pair(scores))
    got = over_pairs(SCORES[name], *every_pair(), scores, at_once=True)
    torch.testing.assert_close(got, over_pairs(SCORES[name], *every_pair(), scores))


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_mod_that_computes_number_by_number_is_asked_at_once(name: str) -> None:
    assert at_once(MASKS[name], *first_pair())
    got = over_pairs(MASKS[name], *every_pair(), at_once=True)
    assert torch.equal(got, over_pairs(MASKS[name], *every_pair()))


@pytest.mark.parametrize("name", [*ONE_BY_ONE, *NO_MODS])
def test_any_other_is_not(name: str) -> None:
    mod = {**ONE_BY_ONE, **NO_MODS}[name]
    assert not at_once(mod, *first_pair(torch.zeros(1)))


def test_nor_is_one_that_torch_func_maps_over() -> None:
    def told(slope: Tensor) -> Tensor:
        mod = lambda s, b, h, q, k: s - slope * (q - k)  # noqa: E731
        return torch.tensor(at_once(mod, *first_pair(torch.zeros(1))))

    assert not torch.vmap(told)(torch.ones(2)).any()
