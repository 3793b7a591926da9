"""The softmax: scores, temperature, head size."""

import math
from typing import Any

import torch

from attention.softmax import logsumexp, softmax
from trials import Numbers, State, Step, Trial, again, click, grab, press


def numbers(state: State, given: Any) -> Numbers:
    scores = torch.tensor(state["scores"], dtype=torch.float64)
    sized = "size" in state
    if sized and not state["divide"]:
        scores = scores * (2 ** state["size"]) ** 0.5
    elif not sized:
        scores = scores / state["temperature"]
    weights = softmax(scores)
    jacobian = torch.autograd.functional.jacobian(softmax, scores)
    found: Numbers = {"lse": logsumexp(scores).item()}
    if sized:
        found |= {"size": 2 ** state["size"], "trace": jacobian.trace().item()}
    else:
        found |= {"temperature": state["temperature"]}
    for i in range(len(scores)):
        found |= {f"scores.{i}": scores[i].item(), f"weights.{i}": weights[i].item()}
        found |= {f"jacobian.{i}.{j}": x for j, x in enumerate(jacobian[i].tolist())}
    return found


def beside(state: State, given: Any) -> Numbers:
    """The sentence, the controls, what stands at the head of what, the bars and the shades."""
    tokens, shown = given["tokens"], numbers(state, given)
    digits = {"size": 0, "temperature": 2, "jacobian": 2}
    weights = [shown[f"weights.{i}"] for i in range(len(tokens))]
    most = weights.index(max(weights))
    found: Numbers = {"head of lse": "log-sum-exp"}
    found |= {f"digits of {name}": f"{digits.get(name.partition('.')[0], 4)}" for name in shown}
    if "size" in state:
        found |= {"control size": state["size"], "control divide": f"{state['divide']}".lower()}
        found |= {"head of size": "head size", "head of trace": ", trace of the Jacobian"}
        trace = float(shown["trace"])
        found["sentence"] = (
            f"{tokens[most]} has the largest weight, {weights[most]:.4f}. "
            f"Trace of the Jacobian {trace:.4f}: "
            f"{('almost nothing', 'little', 'much')[(trace > 0.01) + (trace > 0.2)]} is left to learn from."
        )
    else:
        found["control temperature"] = state["temperature"]
        found["head of temperature"] = "temperature T"
    for i, token in enumerate(tokens):
        found |= {
            f"control scores.{i}": state["scores"][i],
            f"bar of weights.{i}": 100 * weights[i],
        }
        score = "score" if "size" in state else "score / T"
        found |= {
            f"head of scores.{i}": f"{token} {score}",
            f"head of weights.{i}": f"{token} weight",
        }
        found |= {f"head of control scores.{i}": token}
        for j, other in enumerate(tokens):
            slope = abs(shown[f"jacobian.{i}.{j}"])
            found |= {f"head of jacobian.{i}.{j}": f"{token} {other}"}
            found |= {f"shade of jacobian.{i}.{j}": 45 * min(1, 4 * slope)}
    return found


def moved(i: int, by: float) -> Any:
    """A score moved by so much."""

    def change(state: State, _: Any) -> None:
        state["scores"][i] = round(state["scores"][i] + by, 6)

    return change


def put(i: int) -> Any:
    """A score put where the pointer put it."""

    def change(state: State, value: Any) -> None:
        assert abs(value - state["scores"][i]) > 0.5
        state["scores"][i] = value

    return change


def lowest(i: int) -> Any:
    """A score taken down by tenths as long as it stays above -3."""

    def change(state: State, _: Any) -> None:
        score = state["scores"][i]
        state["scores"][i] = score - 0.1 * math.floor((score + 3) / 0.1 + 1e-9)

    return change


def highest(i: int) -> Any:
    """A score taken eight above the lowest."""

    def change(state: State, _: Any) -> None:
        lowest(i)(state, None)
        state["scores"][i] += 8

    return change


def tempered(temperature: float) -> Any:
    """Another temperature."""
    return lambda state, _: state.update(temperature=temperature)


def sized(**what: Any) -> Any:
    """Another head size, or divided or not."""
    return lambda state, _: state.update(**what)


def by_temperature(given: Any) -> State:
    return {"scores": [*given["scores"]], "temperature": 1.0}


def by_size(given: Any) -> State:
    return {"scores": [*given["scores"]], "size": 6, "divide": False}


def restarted(start: Any) -> Any:
    return lambda state, _: state.update(start(state["given"]))


SIZE = "head size, as a power of two"
TRIALS = [
    Trial(
        "softmax",
        "foundations/softmax.md",
        "figures/softmax-jacobian.svg",
        by_temperature,
        [
            Step("raise a score", press("score of Your", "ArrowRight", 3), moved(0, 0.3)),
            Step("lower another", press("score of step", "ArrowLeft", 2), moved(5, -0.2)),
            Step("drag one", grab("score of with", 0.9), put(3)),
            Step("to the end", press("score of one", "End"), highest(4)),
            Step("to the start", press("score of journey", "Home"), lowest(1)),
            Step("cool down", press("temperature", "ArrowLeft", 10), tempered(0.5)),
            Step("freeze", press("temperature", "Home"), tempered(0.05)),
            Step("heat", press("temperature", "End"), tempered(4.0)),
            Step("start again", again, restarted(by_temperature)),
            Step("drag another", grab("score of starts", 0.1), put(2)),
        ],
        numbers,
        beside,
    ),
    Trial(
        "softmax",
        "foundations/scaling.md",
        "figures/scaling-trace.svg",
        by_size,
        [
            Step("divide", click("divide by √(head size)"), sized(divide=True)),
            Step("larger", press(SIZE, "ArrowRight", 3), sized(size=9)),
            Step("not divided", press("divide by √(head size)", "Space"), sized(divide=False)),
            Step("smallest", press(SIZE, "Home"), sized(size=0)),
            Step("raise a score", press("score of key 2", "ArrowRight", 5), moved(1, 0.5)),
            Step("drag one", grab("score of key 4", 0.85), put(3)),
            Step("of four numbers", press(SIZE, "ArrowUp", 2), sized(size=2)),
            Step("divide again", click("divide by √(head size)"), sized(divide=True)),
            Step("lower one", press("score of key 6", "Home"), lowest(5)),
            Step("start again", again, restarted(by_size)),
        ],
        numbers,
        beside,
    ),
]
