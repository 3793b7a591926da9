"""Six tokens: a word that asks, a vector that moves, the mask, the scale and the temperature."""

import math
from collections.abc import Callable
from typing import Any

import torch
from playwright.sync_api import Locator

from attention import attention, attention_scores, attention_weights, causal
from trials import Numbers, State, Step, Trial, again, choose, click, enter, press

TIP = "tip of the arrow"
ACROSS, UP = (-1, 1), (-0.4, 1.6)


def result(x: float | torch.Tensor) -> str:
    return f"{x:.4f}".replace("-", "−")


def short(x: float) -> str:
    """A factor: four decimals, two where the others are zeros; a negative one in parentheses."""
    digits = 2 if float(f"{x:.2f}") == float(f"{x:.4f}") else 4
    return f"{x:.{digits}f}" if x >= 0 else f"(−{-x:.{digits}f})"


def products(a: torch.Tensor, b: torch.Tensor, left: Callable[[float], str] = short) -> str:
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return " + ".join(f"{left(x)}·{short(y)}" for x, y in pairs)


def numbers(state: State, given: Any) -> Numbers:
    tied, tokens, asks = "words" in given, given["tokens"], state["asks"]
    key = torch.tensor(state["key"], dtype=torch.float64)
    query = key if tied else torch.tensor(state["query"], dtype=torch.float64)
    value = key if tied else torch.tensor(given["value"], dtype=torch.float64)
    temperature, scaled = state.get("temperature", 1), state.get("scale", False)
    scale = (query.shape[1] ** -0.5 if scaled else 1) / temperature
    mask = causal if state.get("causal") else None
    scores = attention_scores(query, key, scale=scale)[asks]
    weights = attention_weights(query, key, mask=mask, scale=scale)[asks]
    context = attention(query, key, value, mask=mask, scale=scale)[asks]
    word = state["moves"] if state["moves"] < len(tokens) else int(weights.argmax())
    score = attention_scores(query, key, scale=1)[asks, word].item()
    pair = [f"{tokens[asks]}·", tokens[word]]
    if not tied:
        pair = [f"query of {tokens[asks]} · ", f"key of {tokens[word]}"]
    product = f"{''.join(pair)} = {products(query[asks], key[word])} = {result(score)}"
    if scaled:
        product += f", over √{query.shape[1]} = {result(score / math.sqrt(query.shape[1]))}"
    if temperature != 1:
        product += f", over {temperature:.2f} = {result(scores[word])}"
    if mask and word > asks:
        product += ", hidden: −∞"
    seen = torch.arange(len(tokens)) <= asks
    found: Numbers = {
        "product": product,
        "mix": f"context, first number = {products(weights, value[:, 0], result)} = {result(context[0])}",
    }
    if not tied:
        found["temperature"] = temperature
    for i in range(len(tokens)):
        found[f"scores.{i}"] = -math.inf if mask and not seen[i] else scores[i].item()
        found[f"weights.{i}"] = weights[i].item()
    return found | {f"context.{d}": x for d, x in enumerate(context.tolist())}


def held(state: State) -> list[float]:
    """The vector that moves: a word's or, after these, that of the word that asks."""
    own = state["moves"] < len(state["key"])
    return state["key"][state["moves"]] if own else state["query"][state["asks"]]


def typed(element: Locator) -> list[float]:
    fields = element.get_by_role("spinbutton").all()
    return [float(field.input_value()) for field in fields]


def drag(across: float, up: float) -> Callable[[Locator], Any]:
    """The tip taken, a little beside its middle, and let go at this place of the plane.

    It comes to within what a pixel is; to where exactly, the fields beside it say.
    """

    def act(element: Locator) -> list[float]:
        tip = element.get_by_label(TIP, exact=True)
        tip.scroll_into_view_if_needed()
        box, plane = tip.bounding_box(), tip.locator("xpath=..").bounding_box()
        assert box and plane
        unit = plane["width"] / 320 * 150
        start = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
        x, y, *_ = typed(element)
        # What leaves the plane is drawn to its edge; no vector here leaves it but to the right.
        here = (x, y) if x <= ACROSS[1] else (ACROSS[1], y * ACROSS[1] / x)
        assert abs(plane["x"] + unit * (here[0] - ACROSS[0] + 10 / 150) - start[0]) < 1
        assert abs(plane["y"] + unit * (UP[1] - here[1] + 10 / 150) - start[1]) < 1
        mouse = element.page.mouse
        mouse.move(start[0] + 3, start[1] - 2)
        mouse.down()
        mouse.move(start[0] + 20, start[1] - 20)
        by = unit * (across - here[0]), unit * (up - here[1])
        mouse.move(start[0] + 3 + by[0], start[1] - 2 - by[1], steps=3)
        mouse.up()
        mouse.move(start[0], start[1])
        came = typed(element)
        assert max(abs(came[0] - across), abs(came[1] - up)) < 0.015
        return came

    return act


def tap(name: str) -> Callable[[Locator], Any]:
    """The tip of another arrow, taken and let go: it is chosen, and stays where it is."""

    def act(element: Locator) -> None:
        index = element.locator(".live text:not(.axis)").all_text_contents().index(name)
        element.locator(f".live [data-at='{index}']").click()

    return act


def put(state: State, came: list[float]) -> None:
    """The first two numbers are where the pointer let go."""
    assert max(abs(x - y) for x, y in zip(held(state), came, strict=False)) > 0.1
    held(state)[:2] = came[:2]


def by(d: int, much: float) -> Callable[[State, Any], None]:
    """One number of the vector that moves, by so much."""

    def change(state: State, _: Any) -> None:
        held(state)[d] = round(held(state)[d] + much, 4)

    return change


def to(d: int, x: float) -> Callable[[State, Any], None]:
    def change(state: State, _: Any) -> None:
        held(state)[d] = x

    return change


def now(**what: Any) -> Callable[[State, Any], None]:
    return lambda state, _: state.update(what)


def similar(given: Any) -> State:
    return {"asks": 1, "moves": 0, "key": [[*word] for word in given["words"]]}


def projected(given: Any) -> State:
    return {
        "asks": 1,
        "moves": 2 if given.get("causal") else 0,
        "query": [[*row] for row in given["query"]],
        "key": [[*row] for row in given["key"]],
        "scale": True,
        "temperature": 1,
        "causal": given.get("causal", False),
    }


def restarted(start: Callable[[Any], State]) -> Callable[[State, Any], None]:
    return lambda state, _: state.update(start(state["given"]))


TRIALS = [
    Trial(
        "six-tokens",
        "foundations/similarity.md",
        "figures/similarity-vectors.svg",
        similar,
        [
            Step("drag Your", drag(0.8, 1.2), put),
            Step("nudge it left", press(TIP, "ArrowLeft", 3), by(0, -0.15)),
            Step("and down", press(TIP, "ArrowDown"), by(1, -0.05)),
            Step("type its third number", enter("number 3", "-0.4"), to(2, -0.4)),
            Step("take one", tap("one"), now(moves=4)),
            Step("multiply it by ten", enter("number 1", "7.7"), to(0, 7.7)),
            Step("beyond the plane", enter("number 2", "2.5"), to(1, 2.5)),
            Step("drag it back", drag(0.2, 0.9), put),
            Step("ask as step", choose("query", "step"), now(asks=5)),
            Step("move the word that asks", choose("move", "step"), now(moves=5)),
            Step("turn it round", drag(-0.7, 0.1), put),
            Step("start again", again, restarted(similar)),
            Step("nudge right", press(TIP, "ArrowRight", 2), by(0, 0.1)),
            Step("nudge up", press(TIP, "ArrowUp", 2), by(1, 0.1)),
            Step("by its field", press("number 2", "ArrowUp"), by(1, 0.05)),
        ],
        numbers,
    ),
    Trial(
        "six-tokens",
        "foundations/queries-keys-values.md",
        "figures/queries-keys-values-keys.svg",
        projected,
        [
            Step("drag the key of Your", drag(0.9, 0.3), put),
            Step("take the query", tap("query"), now(moves=6)),
            Step("turn it round", drag(-0.5, -0.3), put),
            Step("nudge it", press(TIP, "ArrowUp", 3), by(1, 0.15)),
            Step("do not scale", click("divide by √D"), now(scale=False)),
            Step("heat", press("temperature", "ArrowRight", 20), now(temperature=2.0)),
            Step("scale again", click("divide by √D"), now(scale=True)),
            Step("ask as one", choose("query", "one"), now(asks=4)),
            Step("move a key", choose("move", "key of with"), now(moves=3)),
            Step("type a number", enter("number 1", "-0.75"), to(0, -0.75)),
            Step("freeze", press("temperature", "Home"), now(temperature=0.05)),
            Step("ask as journey", choose("query", "journey"), now(asks=1)),
            Step("start again", again, restarted(projected)),
        ],
        numbers,
    ),
    Trial(
        "six-tokens",
        "foundations/causal.md",
        "figures/causal-weights.svg",
        projected,
        [
            Step("drag a hidden key", drag(0.9, 1.3), put),
            Step("show the future", click("hide the future"), now(causal=False)),
            Step("nudge the key", press(TIP, "ArrowRight"), by(0, 0.05)),
            Step("hide it", click("hide the future"), now(causal=True)),
            Step("ask as starts", choose("query", "starts"), now(asks=2)),
            Step("type a number", enter("number 2", "0.3"), to(1, 0.3)),
            Step("ask as Your", choose("query", "Your"), now(asks=0)),
            Step("ask as step", choose("query", "step"), now(asks=5)),
            Step("take the query", tap("query"), now(moves=6)),
            Step("turn it", drag(-0.8, 0.6), put),
            Step("cool", press("temperature", "ArrowLeft", 10), now(temperature=0.5)),
            Step("do not scale", click("divide by √D"), now(scale=False)),
            Step("ask as with", choose("query", "with"), now(asks=3)),
            Step("start again", again, restarted(projected)),
        ],
        numbers,
    ),
]
