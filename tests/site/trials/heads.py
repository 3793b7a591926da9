"""Heads: a row of numbers cut into one head, two or four, each with its own weights."""

from typing import Any

import torch

from attention import attention, attention_scores, attention_weights
from trials import Numbers, State, Step, Trial, again, choose, click, press


def numbers(state: State, given: Any) -> Numbers:
    tokens, heads = given["tokens"], state["heads"]
    i, j = state["asks"], state["meets"]
    rows = [torch.tensor(given[x], dtype=torch.float64) for x in ("query", "key", "value")]
    width = rows[0].shape[1]
    size = width // heads
    query, key, value = (x.view(1, -1, heads, size).transpose(1, 2) for x in rows)
    weights = attention_weights(query, key)[0, :, i]  # (H, S)
    scores = attention_scores(query, key)[0, :, i, j]  # (H,)
    out = attention(query, key, value).transpose(1, 2).flatten(2)[0, i]  # (H * D,)
    found: Numbers = {"asks": tokens[i], "meets": tokens[j], "n_weights": weights.numel()}
    found |= {"heads": heads, "size": size, "width": len(out)}
    for d in range(width):
        found |= {f"query.{d}": rows[0][i, d].item(), f"key.{d}": rows[1][j, d].item()}
        found |= {f"product.{d}": (rows[0] * rows[1][j])[i, d].item(), f"out.{d}": out[d].item()}
        has = d < heads
        found |= {f"sum.{d}": scores[d].item() * size**0.5 if has else ""}
        found |= {f"score.{d}": scores[d].item() if has else ""}
        for t in range(len(tokens)):
            found |= {f"weights.{d}.{t}": weights[d, t].item() if has else ""}
    return found


def start(given: Any) -> State:
    return {name: given[name] for name in ("asks", "meets", "heads")}


def now(**what: int) -> Any:
    return lambda state, _: state.update(what)


TRIALS = [
    Trial(
        "heads",
        "foundations/heads.md",
        "figures/heads-journey.svg",
        start,
        [
            Step("cut into four", click("4 heads"), now(heads=4)),
            Step("another asks", press("query", "ArrowDown"), now(asks=2)),
            Step("compare with the last", press("key", "End"), now(meets=5)),
            Step("one head, by key", press("1 head", "Enter"), now(heads=1)),
            Step("compare with itself", choose("key", "starts"), now(meets=2)),
            Step("the first asks", press("query", "Home"), now(asks=0)),
            Step("two heads, by key", press("2 heads", "Space"), now(heads=2)),
            Step("another key", press("key", "ArrowUp"), now(meets=1)),
            Step("the last asks", choose("query", "step"), now(asks=5)),
            Step("start again", again, lambda state, given: state.update(start(state["given"]))),
            Step("four, and another asks", click("4 heads"), now(heads=4)),
            Step("one head", click("1 head"), now(heads=1)),
        ],
        numbers,
    ),
]
