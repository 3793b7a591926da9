"""What readers do with each explorable, and what the package says that they must then see.

A trial names an explorable, the figure that it stands around, the state in which it begins, ten
things that a reader does with keys and pointer, each with what it makes of the state, and the
numbers of a state as the package computes them, by the names that the explorable gives them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Locator

State = dict[str, Any]
Numbers = dict[str, float | str]


@dataclass(frozen=True)
class Step:
    """What a reader does with an explorable, and what that makes of the state, changed in place.

    `change` gets what `act` returns, which for a pointer on a slider is the value that it came to.
    """

    does: str
    act: Callable[[Locator], Any]
    change: Callable[[State, Any], None]


@dataclass(frozen=True)
class Trial:
    """One explorable at one place of the book."""

    name: str
    page: str  # under docs/
    figure: str
    start: Callable[[Any], State]  # from what the page gives
    steps: list[Step]
    numbers: Callable[[State, Any], Numbers]
    # What else is seen, the sentence say, by the names that BESIDE of test_explore.py gives it.
    beside: Callable[[State, Any], Numbers] = lambda state, given: {}


def press(label: str, key: str, times: int = 1) -> Callable[[Locator], None]:
    """Keys on the control with this label."""

    def act(element: Locator) -> None:
        control = element.get_by_label(label, exact=True)
        control.focus()
        for _ in range(times):
            control.press(key)

    return act


def click(label: str) -> Callable[[Locator], None]:
    """A click on the control with this label."""
    return lambda element: element.get_by_label(label, exact=True).click()


def grab(label: str, share: float) -> Callable[[Locator], float]:
    """The pointer on a slider, at this share of its length; the value that it came to."""

    def act(element: Locator) -> float:
        slider = element.get_by_label(label, exact=True)
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box
        slider.click(position={"x": share * box["width"], "y": box["height"] / 2})
        return float(slider.input_value())

    return act


def choose(label: str, option: str) -> Callable[[Locator], None]:
    """One option of a list."""

    def act(element: Locator) -> None:
        element.get_by_label(label, exact=True).select_option(option)

    return act


def enter(label: str, text: str) -> Callable[[Locator], None]:
    """A number typed into a field."""
    return lambda element: element.get_by_label(label, exact=True).fill(text)


def again(element: Locator) -> None:
    """The button that leads back to the start."""
    element.get_by_role("button", name="Start again").click()
