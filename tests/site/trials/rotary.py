"""Rotary positions: places, pairings and rules, turned by the package's own module."""

import math
from typing import Any

import torch
from torch import Tensor

from attention import (
    RotaryEmbedding,
    rope_scaling_linear,
    rope_scaling_llama3,
    rope_scaling_ntk,
    rope_scaling_yarn,
)
from trials import Numbers, State, Step, Trial, again, choose, enter, grab, press

PAIRS = [0, 32, 48, 63]  # those that the page prints, of a head of 128
N = 4096
RULES = [
    None,
    rope_scaling_linear(8),
    rope_scaling_ntk(8),
    rope_scaling_yarn(8, N),
    rope_scaling_llama3(8, N),
]
PAIRINGS = ["interleaved", "half"]


def module(state: State, word: str, size: int) -> RotaryEmbedding:
    """What turns the query or the key."""
    pairing: Any = PAIRINGS[state[f"{word}_pairing"]]
    if size == 2:
        return RotaryEmbedding(2, pairing=pairing)
    whole = RotaryEmbedding(128, pairing=pairing, scaling=RULES[state["rule"]])
    some = whole.frequencies[PAIRS], whole.attention_factor
    return RotaryEmbedding(size, pairing=pairing, scaling=lambda _: some)


def turned(state: State, given: Any, word: str, on: int = 0) -> Tensor:
    """The query or the key at its place, or so many further on."""
    x = torch.tensor([given[word]], dtype=torch.float64)
    return module(state, word, x.shape[1])(x, offset=state[word] + on)[0]


def numbers(state: State, given: Any) -> Numbers:
    query, key = (turned(state, given, word) for word in ("query", "key"))
    later = turned(state, given, "query", 10) @ turned(state, given, "key", 10)
    distance = state["key"] - state["query"]
    found: Numbers = {"distance": distance, "score": (query @ key).item(), "later": later.item()}
    found |= {"at.query": state["query"], "at.key": state["key"]}
    if "rules" not in given:
        found |= {f"query.{d}": x for d, x in enumerate(query.tolist())}
        return found | {f"key.{d}": x for d, x in enumerate(key.tolist())}
    numbered = [
        torch.arange(8).reshape(2, 4).T if state[f"{word}_pairing"] else torch.arange(8).view(4, 2)
        for word in ("query", "key")
    ]
    old = RotaryEmbedding(128, pairing="half").frequencies[PAIRS]
    new = module(state, "query", 8).frequencies
    for i in range(4):
        names = list(dict.fromkeys(", ".join(map(str, x[i].tolist())) for x in numbered))
        turns, trained = (
            x * new_or_old[i].item() / math.tau
            for x, new_or_old in ((abs(distance), new), (N, old))
        )
        found |= {
            f"numbers.{i}": " and ".join(names),
            f"slowed.{i}": (old / new)[i].item(),
            f"turns.{i}": turns,
            f"trained.{i}": trained,
            f"angles.{i}": "new" if trained < 1 and turns > trained + 1e-9 else "known",
            f"scores.{i}": (query * key)[numbered[0][i]].sum().item(),
        }
    return found


def start(given: Any) -> State:
    query, key = given["places"]
    return {"query": query, "key": key, "rule": 0, "query_pairing": 0, "key_pairing": 0}


def at_the_start(given: Any) -> State:
    """What the page prints of the two arrows and of their score."""
    state = start(given)
    first = [x for word in ("query", "key") for x in turned(state, given, word).tolist()]
    assert [round(x, 4) for x in first] == [-0.9917, 1.1485, -1.1959, -0.0678]
    assert round(float(numbers(state, given)["score"]), 4) == 1.1082
    return state


def far_apart(given: Any) -> State:
    """What the page prints of the turns of its four pairs, and of pair 48 in a longer text."""
    state = start(given)
    found = numbers(state, given)
    assert [round(float(found[f"trained.{i}"]), 3) for i in range(4)] == [
        651.899,
        6.519,
        0.652,
        0.075,
    ]
    for rule, turns in enumerate([5.22, 0.65, 1.07, 0.65, 0.65]):
        assert round(float(numbers(state | {"rule": rule}, given)["turns.2"]), 2) == turns
    return state


def put(**what: Any) -> Any:
    """Something chosen or typed."""
    return lambda state, _: state.update(what)


def by(query: int = 0, key: int = 0) -> Any:
    """Words moved by so many places."""

    def change(state: State, _: Any) -> None:
        state["query"] += query
        state["key"] += key

    return change


def put_there(word: str) -> Any:
    """A word put where the pointer put it."""

    def change(state: State, value: float) -> None:
        assert abs(state[word] - value) > 5
        state[word] = int(value)

    return change


def move(element: Any) -> None:
    """The button that moves both."""
    element.get_by_role("button", name="Move both by 10").click()


def move_by_key(element: Any) -> None:
    """The same from the keyboard."""
    element.get_by_role("button", name="Move both by 10").press("Enter")


def restarted(state: State, _: Any) -> None:
    state.update(start(state["given"]))


TRIALS = [
    Trial(
        "rotary",
        "order/rotary.md",
        "figures/rotary-turned.svg",
        at_the_start,
        [
            Step("move both", move, by(10, 10)),
            Step("once more", move_by_key, by(10, 10)),
            Step("start again", again, restarted),
            Step("starts a place on", press("place of starts", "ArrowRight"), by(key=1)),
            Step("start once more", again, restarted),
            Step("journey after it", press("place of journey", "ArrowRight", 2), by(query=2)),
            Step("drag starts", grab("place of starts", 0.7), put_there("key")),
            Step("drag journey", grab("place of journey", 0.4), put_there("query")),
            Step("type a place", enter("place of journey as a number", "101"), put(query=101)),
            Step("type another", enter("place of starts as a number", "102"), put(key=102)),
            Step("type too much", enter("place of journey as a number", "12345"), put(query=999)),
            Step("type a part of one", enter("place of starts as a number", "2.6"), put(key=3)),
            Step("journey back", press("place of journey", "Home"), put(query=0)),
            Step("past the slider", move, by(10, 10)),
        ],
        numbers,
    ),
    Trial(
        "rotary",
        "order/rotary.md",
        "figures/rotary-stretched.svg",
        far_apart,
        [
            Step("linear", choose("stretched by", "linear"), put(rule=1)),
            Step("by a base", choose("stretched by", "NTK-aware"), put(rule=2)),
            Step("YaRN", choose("stretched by", "YaRN"), put(rule=3)),
            Step("move both", move, by(10, 10)),
            Step("mix", choose("key paired", "half"), put(key_pairing=1)),
            Step("move both, mixed", move_by_key, by(10, 10)),
            Step("halves", choose("query paired", "half"), put(query_pairing=1)),
            Step("Llama 3", choose("stretched by", "Llama 3"), put(rule=4)),
            Step("mix again", press("key paired", "ArrowUp"), put(key_pairing=0)),
            Step("drag the query", grab("place of query", 0.3), put_there("query")),
            Step("drag the key", grab("place of key", 0.31), put_there("key")),
            Step("step the key", press("place of key", "ArrowRight", 3), by(key=3)),
            Step("type a place", enter("place of query as a number", "5000"), put(query=5000)),
            Step("type another", enter("place of key as a number", "904"), put(key=904)),
            Step("as it was", choose("stretched by", "none"), put(rule=0)),
            Step("start again", again, restarted),
        ],
        numbers,
    ),
]
