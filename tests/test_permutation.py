"""Without positions attention sees a set; with a mask, what the mask leaves of it."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from attention import (
    AdditiveAttention,
    CausalSelfAttention,
    MultiHeadAttention,
    SelfAttention,
    attention,
    causal,
)

CLOSE = {"rtol": 0, "atol": 1e-12}  # float64: only the order of sums differs


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shuffle(n: int) -> Tensor:
    """A permutation of n >= 3 that is not its own inverse: mistakes would hide."""
    while True:
        order = torch.randperm(n)
        if not torch.equal(order[order], torch.arange(n)):
            return order


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: SelfAttention(12, 5, bias=True),
        lambda: MultiHeadAttention(12, 4),
        lambda: MultiHeadAttention(12, 4, n_kv_heads=2, bias=True),
        lambda: MultiHeadAttention(12, 4, n_kv_heads=1),
    ],
    ids=["one head", "heads", "grouped heads", "one key head"],
)
def test_a_layer_shuffles_its_results_as_its_tokens(layer: Callable[[], nn.Module]) -> None:
    made = layer().double()
    for length in (3, 7, 11):
        x, order = tokens(2, length, 12), shuffle(length)
        torch.testing.assert_close(made(x[:, order]), made(x)[:, order], **CLOSE)


def test_shuffled_keys_with_their_values_change_nothing_in_any_layer() -> None:
    x, source, order = tokens(2, 5, 12), tokens(2, 7, 12), shuffle(7)
    layer = MultiHeadAttention(12, 4, n_kv_heads=2).double()
    torch.testing.assert_close(layer(x, source[:, order]), layer(x, source), **CLOSE)
    additive = AdditiveAttention(12, 12, 5).double()
    moved = source[:, order]
    torch.testing.assert_close(additive(x, moved, moved), additive(x, source, source), **CLOSE)


def test_a_mask_that_is_shuffled_along_shuffles_the_results() -> None:
    x, order = tokens(7, 5), shuffle(7)
    mask = torch.rand(7, 7) < 0.5  # empty rows may occur, and are zero
    moved = mask[order][:, order]
    y = x[order]
    expected = attention(x, x, x, mask=mask)[order]
    torch.testing.assert_close(attention(y, y, y, mask=moved), expected, **CLOSE)
    wrong = attention(y, y, y, mask=mask)
    assert not torch.allclose(wrong, expected, atol=1e-3)


def test_no_shuffle_but_none_commutes_with_a_causal_layer() -> None:
    layer, x = CausalSelfAttention(12, 5).double(), tokens(5, 12)
    for order in map(list, permutations(range(5))):
        same = torch.allclose(layer(x[order]), layer(x)[order], **CLOSE)
        assert same == (order == [0, 1, 2, 3, 4])


def test_one_causal_layer_shows_its_last_token_a_set_and_two_an_order() -> None:
    one, two = (CausalSelfAttention(12, 12).double() for _ in range(2))
    deep = nn.Sequential(one, two)
    x = tokens(7, 12)
    y = x[torch.cat([shuffle(6), torch.tensor([6])])]
    torch.testing.assert_close(one(y)[-1], one(x)[-1], **CLOSE)
    assert not torch.allclose(deep(y)[-1], deep(x)[-1], atol=1e-4)


def test_equal_scores_under_a_causal_mask_give_one_over_the_place() -> None:
    zero, value = torch.zeros(9, 1).double(), torch.eye(9, dtype=torch.float64)
    first = attention(zero, zero, value, mask=causal)[:, 0]
    counted = torch.arange(9, dtype=torch.float64)
    torch.testing.assert_close(1 / first - 1, counted, **CLOSE)
