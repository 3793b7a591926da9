"""Masks put together: the code that is shown is run, and the grid must be the one that it makes."""

import functools
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator
from torch.nn.attention.flex_attention import create_block_mask, create_mask, noop_mask

from trials import Numbers, State, Step, Trial, again, click, grab, press

PAGE = Path(__file__).parents[3] / "docs/masks.md"
FLEX = "torch.nn.attention.flex_attention"
OFF = {"causal": False, "window": 0, "first": 0, "prefix": 0, "second": 0, "real": 6}


def code(state: State) -> str:
    """The lines that make this mask, imports and all."""
    rules, makes = [], []
    if state["prefix"] and state["causal"]:
        rules.append(f"prefix_lm({state['prefix']})")
    elif state["causal"]:
        rules.append("causal")
    window, first = f"sliding_window({state['window']})", f"first_tokens({state['first']})"
    if state["window"] and state["first"]:
        rules.append(f"or_masks({window}, {first})")
    elif state["window"] or state["first"]:
        rules.append(window if state["window"] else first)
    if state["second"]:
        ids = [0] * state["second"] + [1] * (6 - state["second"])
        makes.append(f"ids = torch.tensor({ids})")
        rules.append("document(ids)")
    if state["real"] < 6:
        makes.append(f"lengths = torch.tensor([{state['real']}])")
        rules.append("padding(lengths)")
    if len(rules) < 2:
        line = f"mask = {rules[0] if rules else None}"
    elif len(line := f"mask = and_masks({', '.join(rules)})") > 79:
        line = "\n".join(["mask = and_masks(", *(f"    {rule}," for rule in rules), ")"])
    makes.append(line)
    if state["start"] and rules:
        makes.append(f"mask = shift(mask, q={state['start']}, kv=0)")
    body = "\n".join(makes)
    ours = ("causal", "document", "first_tokens", "padding", "prefix_lm", "shift", "sliding_window")
    imports = ["import torch"] if "torch.tensor" in body else []
    for module, names in (("attention", ours), (FLEX, ("and_masks", "or_masks"))):
        if used := [name for name in names if name in body]:
            imports.append(f"from {module} import {', '.join(used)}")
    return "\n".join([*imports, "", body]) if imports else body


@functools.cache
def made(lines: str, n_queries: int) -> tuple[list[list[int]], list[list[int]]]:
    """The pairs that this code lets through, and the tiles that FlexAttention would compute."""
    names: dict[str, Any] = {}
    exec(lines, names)
    mask = names["mask"] or noop_mask
    size = (mask, 1, 1, n_queries, 6)
    pairs = create_mask(*size, device="cpu")[0, 0]
    blocks = create_block_mask(*size, device="cpu", BLOCK_SIZE=2).to_dense()[0, 0]
    return pairs.int().tolist(), blocks.tolist()


def idle(state: State) -> str:
    """The rules without which the code makes the same grid."""
    names = {"window": "sliding_window", "first": "first_tokens", "prefix": "prefix_lm"}
    names |= {"second": "document", "real": "padding", "causal": "causal"}
    found = []
    for rule, none in OFF.items():
        prefixed = state["causal"] and state["prefix"]
        if (rule == "causal" and prefixed) or (rule == "prefix" and not prefixed):
            continue
        less = {**state, rule: none}
        n = 6 - state["start"]
        if state[rule] != none and made(code(less), n) == made(code(state), n):
            found.append(names[rule])
    return ", ".join(found) or "none"


def numbers(state: State, given: Any) -> Numbers:
    tokens, start = given["tokens"], state["start"]
    pairs, blocks = made(code(state), 6 - start)
    cells = {
        f"cell.{q + start}.{k}": "1" if seen else "0" if blocks[q // 2][k // 2] else "–"
        for q, row in enumerate(pairs)
        for k, seen in enumerate(row)
    }
    shown = list(cells.values())
    cells |= {f"cell.{q}.{k}": "" for q in range(start) for k in range(6)}
    return cells | {
        "code": code(state),
        "idle": idle(state),
        "pairs": len(shown),
        "seen": shown.count("1"),
        "wasted": shown.count("0"),
        "spared": shown.count("–"),
        "tiles": sum(map(len, blocks)),
        "skipped": sum(row.count(0) for row in blocks),
        "window": state["window"] or "off",
        "first": state["first"] or "off",
        "prefix": state["prefix"] if state["prefix"] and state["causal"] else "off",
        "second": tokens[state["second"]] if state["second"] else "off",
        "real": state["real"] if state["real"] < 6 else "all",
        "start": tokens[start],
    }


def sinks(given: Any) -> State:
    """The mask of the figure, in the words of the page."""
    state = {**OFF, "causal": True, "window": 3, "first": 1, "start": 0}
    line = code(state).rpartition("mask = ")[2]
    assert f"sinks = {line}\n" in PAGE.read_text("utf-8")
    return state


def put(**what: Any) -> Any:
    """A rule changed."""
    return lambda state, _: state.update(what)


def put_there(rule: str) -> Any:
    """A rule that the pointer changed."""

    def change(state: State, value: float) -> None:
        assert state[rule] != value
        state[rule] = int(value)

    return change


def copy(element: Locator) -> str:
    """What is on the clipboard once the button was pressed."""
    element.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    element.get_by_role("button", name="Copy the code").click()
    element.get_by_text("Copied.").wait_for()
    return str(element.page.evaluate("navigator.clipboard.readText()"))


def copied(state: State, text: str) -> None:
    assert text == code(state)


TRIALS = [
    Trial(
        "masks",
        "masks.md",
        "figures/masks-sinks.svg",
        sinks,
        [
            Step("no first token", press("first tokens", "ArrowLeft"), put(first=0)),
            Step("two of them", press("first tokens", "ArrowRight", 2), put(first=2)),
            Step("not causal", click("causal"), put(causal=False)),
            Step("causal", press("causal", "Space"), put(causal=True)),
            Step("drag the window", grab("window", 0.8), put_there("window")),
            Step("no window, no first", press("window", "Home"), put(window=0)),
            Step("nor that", press("first tokens", "Home"), put(first=0)),
            Step("a prefix", press("prefix, read both ways", "ArrowRight", 3), put(prefix=3)),
            Step("a second text", grab("second text from", 0.55), put_there("second")),
            Step("padding", press("real keys", "ArrowLeft", 3), put(real=3)),
            Step("a window of two", press("window", "ArrowRight", 2), put(window=2)),
            Step("all rules at once", press("first tokens", "ArrowRight"), put(first=1)),
            Step("queries from starts", press("queries from", "ArrowRight", 2), put(start=2)),
            Step("copy", copy, copied),
            Step("one query", press("queries from", "End"), put(start=5)),
            Step("nothing real", press("real keys", "Home"), put(real=0)),
            Step("start again", again, lambda state, _: state.update(sinks(None))),
            Step("from journey", press("queries from", "ArrowRight"), put(start=1)),
            Step("free", click("causal"), put(causal=False)),
            Step("no window", press("window", "Home"), put(window=0)),
            Step("no rule", press("first tokens", "Home"), put(first=0)),
        ],
        numbers,
    ),
]
