"""Every causal implementation: a token changes its own output and later ones, and all of them.

Half of that, that no later token changes an earlier output, is passed by a layer that also hides
each token from itself, and by one that returns zeros. So influence is compared with what the mask
allows, entry by entry.

A layer is a function of two tensors (L, D_MODEL): the tokens that ask (queries) and the tokens
that are asked (keys and values). Given apart, they show which of the two a change came through.
"""

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import or_masks

from attention import (
    CausalSelfAttention,
    MultiHeadAttention,
    RotaryEmbedding,
    alibi,
    attention,
    causal,
)

Layer: TypeAlias = Callable[[Tensor, Tensor], Tensor]

L, D_MODEL, H, H_KV = 7, 12, 6, 2
TRIANGLE = torch.ones(L, L, dtype=torch.bool).tril()


def heads(x: Tensor, n_heads: int) -> Tensor:
    """(L, D_MODEL) as (1, n_heads, L, 2), for n_heads up to D_MODEL / 2."""
    return x[:, : 2 * n_heads].view(len(x), n_heads, 2).transpose(0, 1)[None]


def by_mod(asking: Tensor, asked: Tensor) -> Tensor:
    return attention(asking, asked, asked, mask=causal)


def by_tensor(asking: Tensor, asked: Tensor) -> Tensor:
    return attention(asking, asked, asked, mask=TRIANGLE)


def by_kernel(kernel: str) -> Layer:
    def layer(asking: Tensor, asked: Tensor) -> Tensor:
        return attention(asking, asked, asked, mask=causal, kernel=kernel)

    return layer


def rotary(asking: Tensor, asked: Tensor) -> Tensor:
    torch.manual_seed(1)
    turn = RotaryEmbedding(D_MODEL // H, pairing="half")
    module = MultiHeadAttention(D_MODEL, H, rotary=turn).double()
    return module(asking[None], asked[None], mask=causal, score_mod=alibi(H))[0]


def grouped(asking: Tensor, asked: Tensor) -> Tensor:
    key = value = heads(asked, H_KV)
    return attention(heads(asking, H), key, value, mask=causal)[0].transpose(0, 1).flatten(1)


def self_attention(asking: Tensor, asked: Tensor) -> Tensor:
    torch.manual_seed(1)
    layer = CausalSelfAttention(D_MODEL, 5).double()
    query = layer.query(asking)
    layer.query.register_forward_hook(lambda *_: query)  # it takes one x, for all three
    return layer(asked)


def multi_head(n_kv_heads: int | None) -> Layer:
    def layer(asking: Tensor, asked: Tensor) -> Tensor:
        torch.manual_seed(1)
        module = MultiHeadAttention(D_MODEL, H, n_kv_heads=n_kv_heads).double()
        return module(asking[None], asked[None], mask=causal)[0]

    return layer


def sdpa(asking: Tensor, asked: Tensor) -> Tensor:
    key = asked[None, None]
    return F.scaled_dot_product_attention(asking[None, None], key, key, is_causal=True)[0, 0]


# A chapter that computes causal attention in a way of its own adds a line here.
CAUSAL: dict[str, Layer] = {
    "attention(mask=causal)": by_mod,
    "attention(mask=tensor)": by_tensor,
    "attention(kernel='sdpa')": by_kernel("sdpa"),
    "attention(kernel='flex')": by_kernel("flex"),
    "attention, grouped heads": grouped,
    "CausalSelfAttention": self_attention,
    "MultiHeadAttention": multi_head(None),
    "MultiHeadAttention, grouped heads": multi_head(H_KV),
    "MultiHeadAttention, rotary and ALiBi": rotary,
    "F.scaled_dot_product_attention": sdpa,  # the control
}


def masked(mod: Callable[..., Tensor]) -> Layer:
    return lambda asking, asked: attention(asking, asked, asked, mask=mod)


def own_hidden(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return q_idx > kv_idx


def own_hidden_mended(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """Each of the first two may see itself: its own query then tells no more than it should."""
    return (q_idx > kv_idx) | ((q_idx == kv_idx) & (q_idx < 2))


def all_hidden(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return kv_idx < 0


def one_ahead(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return q_idx + 1 >= kv_idx


def first_lost(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return (q_idx >= kv_idx) & ((kv_idx > 0) | (q_idx == 0))


def last_seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return kv_idx == L - 1


def over_queries(asking: Tensor, asked: Tensor) -> Tensor:
    """Masked as it should be, and then each column is shared out instead of each row."""
    scores = (asking @ asked.T).masked_fill(~TRIANGLE, -torch.inf)
    return torch.softmax(scores, dim=-2) @ asked


def centred(asking: Tensor, asked: Tensor) -> Tensor:
    """The mean that is taken off the values is one over all positions."""
    return attention(asking, asked, asked - asked.mean(0), mask=causal)


TOO_LITTLE: dict[str, Layer] = {
    "the token itself hidden": masked(own_hidden),
    "the same, but the first two see themselves": masked(own_hidden_mended),
    "everything hidden": masked(all_hidden),
    "the first token lost": masked(first_lost),
}
TOO_MUCH: dict[str, Layer] = {
    "one token ahead": masked(one_ahead),
    "no mask": lambda asking, asked: attention(asking, asked, asked),
    "the future instead": lambda asking, asked: attention(asking, asked, asked, mask=TRIANGLE.T),
    "causal, or the last token": masked(or_masks(causal, last_seen)),
    "softmax over the queries": over_queries,
    "values centred over all positions": centred,
}


def influence(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(L, L): does output i change, in any bit, when token j does?"""
    before, columns = f(x), []
    for j in range(len(x)):
        other = x.clone()
        other[j] = torch.randn_like(other[j])
        columns.append((f(other) != before).any(-1))
    return torch.stack(columns, dim=1)


def influences(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """What each token changes as one that is asked, as one that asks, and as both."""
    torch.manual_seed(0)
    asking, asked = torch.randn(2, L, D_MODEL, dtype=torch.float64)
    return (
        influence(lambda x: layer(asking, x), asked),
        influence(lambda x: layer(x, asked), asking),
        influence(lambda x: layer(x, x), asked),
    )


def expected() -> tuple[Tensor, Tensor, Tensor]:
    """The influences of a causal layer."""
    own = torch.eye(L, dtype=torch.bool)
    own[0, 0] = False  # a single key has a weight of 1, whoever asks
    return TRIANGLE, own, TRIANGLE


def is_causal(layer: Layer) -> bool:
    return all(map(torch.equal, influences(layer), expected()))


def hides_the_future(layer: Layer) -> bool:
    """The usual test, which asks for less."""
    return not any(table.triu(1).any() for table in influences(layer))


@pytest.mark.parametrize("name", CAUSAL)
def test_outputs_change_with_the_past_and_themselves_and_with_nothing_else(name: str) -> None:
    for found, allowed in zip(influences(CAUSAL[name]), expected(), strict=True):
        assert found.int().tolist() == allowed.int().tolist()  # shows where they differ
    assert is_causal(CAUSAL[name])


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_layer_that_leaks_is_caught(name: str) -> None:
    assert not is_causal(TOO_MUCH[name])
    assert not hides_the_future(TOO_MUCH[name])


@pytest.mark.parametrize("name", TOO_LITTLE)
def test_a_layer_that_hides_too_much_is_caught_though_the_usual_test_passes_it(name: str) -> None:
    assert not is_causal(TOO_LITTLE[name])
    assert hides_the_future(TOO_LITTLE[name])


def test_a_softmax_over_the_queries_leaks_by_later_queries_alone() -> None:
    by_asked, by_asking, _ = influences(over_queries)
    assert torch.equal(by_asked, TRIANGLE)
    assert by_asking.triu(1).any()


def test_whole_tokens_alone_do_not_show_that_a_key_is_hidden_from_its_own_query() -> None:
    by_asked, _, by_both = influences(masked(own_hidden_mended))
    assert torch.equal(by_both, TRIANGLE)
    assert not by_asked.diagonal()[2:].any()
