"""What an explorable begins with is what its page computed, where its figure stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bs4 import BeautifulSoup

from snippets import explore

Check = Callable[..., Any]  # the fixture of conftest.py

PAGE = """\
# A figure to play with

```python
class Dot:
    def _repr_svg_(self):
        return "<svg></svg>"


x = 3
Dot()
```

![A dot](figures/page-dot.svg){data-explore="softmax" data-given="[x, 1.5]"}

```python
x = 4
```
"""
BRACES = '{data-explore="softmax" data-given="[x, 1.5]"}'
LINE = PAGE[: PAGE.index(BRACES)].count("\n") + 1
DOT = "figures/page-dot.svg"


@pytest.fixture
def play(book: Path, check: Check) -> Check:
    """Judge the page with other braces behind its figure, in a book with one explorable."""
    scripts = book / "docs" / explore.SCRIPTS
    scripts.mkdir(parents=True)
    for name in ("softmax", "base"):
        (scripts / f"{name}.js").touch()
    return lambda braces: check(PAGE.replace(BRACES, braces))


def test_the_value_is_that_of_the_place_where_the_figure_stands(play: Check) -> None:
    outcome = play(BRACES)
    assert outcome.ok, outcome.text
    assert outcome.sheet.run.given == {DOT: ["softmax", "[3, 1.5]"]}


def test_an_expression_binds_no_name_of_the_page(play: Check) -> None:
    outcome = play('{data-explore="softmax" data-given="[(y := x)]"}')
    assert outcome.ok, outcome.text
    assert "y" not in outcome.sheet.run.namespace


@pytest.mark.parametrize(
    ("braces", "message"),
    [
        ('{data-explore="softmax"}', "data-explore and data-given alone"),
        ('{data-given="x"}', "data-explore and data-given alone"),
        ('{data-explore="softmax" data-given="x" width="9"}', "data-explore and data-given alone"),
        ('{data-explore="softmax" data-given="{1: x}"}', "data-explore and data-given alone"),
        ('{data-explore="softmax" data-given="x}', "'\"x' raised SyntaxError"),
        ('{data-explore="softmax" data-given=x"}', "'x\"' raised SyntaxError"),
        ('{data-explore="softmax" data-given=""}', "'' raised SyntaxError"),
        ('{data-explore="softmax" data-given="x"', "('softmax', 'x') does not reach the reader"),
        ('{data-explore="softmax" data-given="x*2*x"}', "'x*2*x') does not reach the reader"),
        ('{data-explore="softmin" data-given="x"}', "there is no explorable called 'softmin'"),
        ('{data-explore="base" data-given="x"}', "there is no explorable called 'base'"),
        ('{data-explore="softmax" data-given="x / 0"}', "'x / 0' raised ZeroDivisionError"),
        ('{data-explore="softmax" data-given="later"}', "'later' raised NameError"),
        ('{data-explore="softmax" data-given="{x}"}', "'\"{x' raised SyntaxError"),
        ('{data-explore="softmax" data-given="print"}', "cannot begin with builtin_function"),
    ],
)
def test_what_cannot_play_is_reported_at_the_line_of_its_figure(
    braces: str, message: str, play: Check
) -> None:
    said = play(braces).text.splitlines()
    assert any(line.startswith(f"docs/page.md:{LINE}: ") and message in line for line in said), said


def test_an_explorable_that_fails_leaves_the_rest_of_the_page_to_be_judged(play: Check) -> None:
    outcome = play('{data-explore="softmax" data-given="1 / 0"}')
    assert (outcome.failed, outcome.skipped) == (1, [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([0.43, -2.5, 1e-9]), "[0.43, -2.5, 1e-09]"),
        (torch.tensor(0.43), "0.43"),
        (torch.tensor([[0.1], [1 / 3]]), "[[0.1], [0.333333]]"),
        (torch.tensor([16777217.0, 0.12347054481506348]), "[16777200.0, 0.123471]"),
        (torch.tensor([0.43, 1 / 3], dtype=torch.float64), "[0.43, 0.333333333333]"),
        (torch.tensor([0.43]).bfloat16(), "[0.429688]"),
        (torch.tensor([1, 2]), "[1, 2]"),
        (torch.tensor([True, False]), "[true, false]"),
        (0.1 + 0.2, "0.3"),
        ((1, True, None, "Wärme"), '[1, true, null, "Wärme"]'),
        ({"a": [{"b": torch.tensor([0.43])}], 2: ()}, '{"a": [{"b": [0.43]}], "2": []}'),
    ],
)
def test_a_value_is_written_as_json(value: object, text: str) -> None:
    assert explore.as_json(value) == text


def test_what_is_given_does_not_hang_on_the_last_bits_of_a_number() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1000, generator=generator) * 10 ** torch.arange(-20.0, 20.0, 0.04)
    near = torch.nextafter(x, 2 * x)
    agree = torch.tensor(explore._plain(x)) == torch.tensor(explore._plain(near))
    assert agree.float().mean() > 0.95  # a rounding has edges too
    assert torch.allclose(torch.tensor(explore._plain(x)), x, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("value", "name"),
    [({1}, "set"), ([1j], "complex"), ({"a": slice(2)}, "slice"), (len, "builtin")],
)
def test_other_values_are_refused_by_their_type(value: object, name: str) -> None:
    with pytest.raises(TypeError, match=f"cannot begin with {name}"):
        explore.as_json(value)


def test_what_is_no_number_of_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        explore.as_json(torch.tensor([float("inf")]))


def test_html_in_what_is_given_is_escaped_and_comes_back() -> None:
    given = explore.as_json(["</explore-softmax><b title='x'>&amp;\"", 1 < 2])
    made = explore.element("softmax", DOT, "<svg></svg>", given)
    assert made.count("<") == 4
    assert explore.shown(BeautifulSoup(made, "html.parser")) == {DOT: ["softmax", given]}


def test_only_what_was_seen_is_given_and_loaded() -> None:
    seen = explore.element("softmax", DOT, "<svg></svg>")
    changed = explore.element("tiles", "figures/page-other.svg", "<svg></svg>")
    content = explore.bring(seen + changed + seen, {DOT: ["softmax", "[3]"]}, "../")
    assert content.count(' data-given="[3]"') == content.count("data-given") == 2
    soup = BeautifulSoup(content, "html.parser")
    assert explore.shown(soup) == {DOT: ["softmax", "[3]"]}
    assert [one["src"] for one in soup.select("script")] == ["../assets/explore/softmax.js"]
