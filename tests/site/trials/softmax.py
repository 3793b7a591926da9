"""The softmax: scores, temperature, head size."""

from typing import Any

import torch

from attention.softmax import logsumexp, softmax
from trials import Numbers, State, Step, Trial, again, press


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
    found |= {"size": 2 ** state["size"]} if sized else {"temperature": state["temperature"]}
    for i in range(len(scores)):
        found |= {f"scores.{i}": scores[i].item(), f"weights.{i}": weights[i].item()}
        found |= {f"jacobian.{i}.{j}": x for j, x in enumerate(jacobian[i].tolist())}
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
            Step("to the end", press("score of one", "End"), moved(4, 4)),
            Step("to the start", press("score of journey", "Home"), moved(1, -4)),
            Step("cool down", press("temperature", "ArrowLeft", 10), tempered(0.5)),
            Step("freeze", press("temperature", "Home"), tempered(0.05)),
            Step("heat", press("temperature", "End"), tempered(4.0)),
            Step("start again", again, restarted(by_temperature)),
            Step("drag another", grab("score of starts", 0.1), put(2)),
        ],
        numbers,
    ),
]
