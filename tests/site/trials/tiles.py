"""Tiles: each state against attention over the keys that have been met, with all others masked.

Nothing is carried from one tile to the next here: every state is computed from scratch.
"""

from typing import Any

import torch
from torch import Tensor

from attention import attention, attention_scores, causal
from trials import Numbers, State, Step, Trial, again, choose, click, grab, press

STRIPS, TILES = (1, 2, 3), (1, 2, 3, 6)


def walk(state: State, may_see: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The tiles that are made, in their order, and the pairs of those that are not."""
    made, skipped = [], torch.zeros_like(may_see)
    for rows in torch.arange(len(may_see)).split(STRIPS[state["n_q"]]):
        tiles = list(torch.arange(may_see.shape[1]).split(TILES[state["n_k"]]))
        for cols in tiles[::-1] if state["last"] else tiles:
            pairs = rows[:, None], cols
            if may_see[pairs].any():
                made.append((rows, cols))
            else:
                skipped[pairs] = True
    return made, skipped


def covered(tiles: list[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Where the pairs of these tiles are."""
    mask = torch.zeros_like(like)
    for rows, cols in tiles:
        mask[rows[:, None], cols] = True
    return mask


def numbers(state: State, given: Any) -> Numbers:
    query, key, value = (
        torch.tensor(given[x], dtype=torch.float64) for x in ("query", "key", "value")
    )
    L, S = len(query), len(key)
    place = torch.arange(max(L, S))
    may_see = torch.ones(L, S, dtype=torch.bool)
    if state["causal"]:
        may_see = causal(place[:1], place[:1], place[:L, None], place[:S])
    made, skipped = walk(state, may_see)
    at = state["at"]
    strip = made[max(at, 1) - 1][0]
    tiles = [tile for tile in made[:at] if tile[0][0] == strip[0]]
    met, before, tile = (covered(x, may_see) for x in (tiles, tiles[:-1], tiles[-1:]))

    scale = given["scale"]
    scores = attention_scores(query, key, scale=scale).masked_fill(~may_see, -torch.inf)
    seen = met & may_see
    out, lse = attention(query, key, value, mask=seen, scale=scale, return_lse=True)
    largest, earlier = (
        scores.masked_fill(~x, -torch.inf).amax(dim=1) for x in (seen, before & may_see)
    )
    total = torch.exp(lse - largest).nan_to_num(0.0)
    counts = torch.exp(scores - largest[:, None]).nan_to_num(0.0)

    score = torch.empty(int(tile.sum()), dtype=torch.float32)
    carried = torch.empty(len(strip), value.shape[1] + 2, dtype=torch.float32)
    found: Numbers = {"at": at, "tiles": len(made), "scores": len(score)}
    found |= {"state": carried.numel(), "bytes": score.nbytes + carried.nbytes}
    found |= {"table": L * S, "table_bytes": scores.float().nbytes}
    found["long"] = "64 MiB" if L > 1 else "16 KiB"
    if L > 1:
        sizes = STRIPS[state["n_q"]] * TILES[state["n_k"]]
        found["skipped"] = int(skipped.sum()) // sizes
    for i in range(L):
        here, some = i in strip, bool(seen[i].any())
        shown = {
            "largest": largest[i].item() if some else "none",
            "factor": torch.exp(earlier - largest)[i].item() if earlier[i] > -torch.inf else "",
            "sum": total[i].item(),
            "mix": (out[i, 0] * total[i]).item(),
            "out": out[i, 0].item(),
        }
        found |= {f"{what}.{i}": x if here else "" for what, x in shown.items()}
        for j in range(S):
            made_now = scores[i, j].item() if tile[i, j] else "skip" if skipped[i, j] else ""
            found[f"score.{i}.{j}"] = made_now
            found[f"count.{i}.{j}"] = counts[i, j].item() if met[i, j] else ""
    return found


def start(given: Any) -> State:
    n_q, n_k = STRIPS.index(given["n_q"]), TILES.index(given["n_k"])
    return {"at": 1, "n_q": n_q, "n_k": n_k, "last": True, "causal": False}


def on(by: int) -> Any:
    """So many tiles on, or back."""
    return lambda state, _: state.update(at=state["at"] + by)


def to(at: int) -> Any:
    return lambda state, _: state.update(at=at)


def put(state: State, value: float) -> None:
    assert value > state["at"]
    state["at"] = int(value)


def other(**what: Any) -> Any:
    """Other tiles, from the first of them."""
    return lambda state, _: state.update(what | {"at": 1})


def restart(state: State, _: Any) -> None:
    state.update(start(state["given"]))


NEXT, BACK = "next tile", "previous tile"
TRIALS = [
    Trial(
        "tiles",
        "fast/online-softmax.md",
        "figures/online-softmax-counts.svg",
        start,
        [
            Step("the second tile", click(NEXT), on(1)),
            Step("the third, by key", press(NEXT, "Enter"), on(1)),
            Step("no further", click(NEXT), on(0)),
            Step("before the first", press("tile", "Home"), to(0)),
            Step("not before that", click(BACK), on(0)),
            Step("one key at a time", press("keys in a tile", "Home"), other(n_k=0)),
            Step("drag to the fourth or so", grab("tile", 0.7), put),
            Step("back by two", press(BACK, "Space", 2), on(-2)),
            Step("from left to right", click("last tile first"), other(last=False)),
            Step("to the end", press("tile", "End"), to(6)),
            Step("tiles of three", choose("keys in a tile", "3"), other(n_k=2)),
            Step("and the other", press("tile", "ArrowRight"), to(2)),
            Step("start again", again, restart),
            Step("all at once", press("keys in a tile", "End"), other(n_k=3)),
        ],
        numbers,
    ),
    Trial(
        "tiles",
        "fast/tiles.md",
        "figures/tiles-order.svg",
        start,
        [
            Step("the strip's other tile", click(NEXT), on(1)),
            Step("the next strip", press(NEXT, "Enter"), on(1)),
            Step("to the end", press("tile", "End"), to(6)),
            Step("hide the future", click("causal"), other(causal=True)),
            Step("one tile on", press("tile", "ArrowRight"), to(2)),
            Step("the next, half seen", click(NEXT), to(3)),
            Step("strips of three", press("queries in a strip", "ArrowDown"), other(n_q=2)),
            Step("the last tile", press("tile", "End"), to(3)),
            Step("tiles of one", press("keys in a tile", "Home"), other(n_k=0)),
            Step("drag far", grab("tile", 0.8), put),
            Step("one back", press(BACK, "Space"), on(-1)),
            Step(
                "from left to right, by key", press("last tile first", "Space"), other(last=False)
            ),
            Step("drag to the middle", grab("tile", 0.5), put),
            Step("tiles of two", choose("keys in a tile", "2"), other(n_k=1)),
            Step("one query at a time", choose("queries in a strip", "1"), other(n_q=0)),
            Step("to the start", press("tile", "Home"), to(0)),
            Step("see everything", press("causal", "Space"), other(causal=False)),
            Step("start again", again, restart),
        ],
        numbers,
    ),
]
