"""Outputs and numbers are judged to the letter here and to the last digit elsewhere."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from snippets.compare import DIFFERENT, NEAR, SAME, compare_number, compare_output, show
from snippets.edges import knife_edges

Check = Callable[..., Any]  # the fixture of conftest.py

PAGE = """\
# Numbers of every kind

The first screen says `0.3333`{data-expr="third"} before its name is bound.

```python
third = 1 / 3
rows = [[0.125, -2.5], [1e-9, 40.0]]
print(f"{third:.4f}", rows)
third
```
```output
0.3333 [[0.125, -2.5], [1e-09, 40.0]]
0.3333333333333333
```

Two at once: `0.125 and -2.50`{data-expr="rows[0]"}; a count, `2`{data-expr="len(rows)"}; with a real
minus `−2.5`{data-expr="rows[0][1]"}; rounded `0.33`{data-expr="third"}; tiny `1.0e-09`{data-expr="rows[1][0]"}.

| what | value |
| --- | --- |
| third | `0.333`{data-expr="third"} |

Inline $x = \\py{0.3333}{third}$, and displayed

$$
\\py{0.125\\cdot 40.00}{[rows[0][0], rows[1][1]]} = \\py{5.000}{rows[0][0] * rows[1][1]}
$$

```pycon
>>> third * 3
1.0
>>> for row in rows:
...     print(row[0])
0.125
1e-09
>>> 1 / 0
Traceback (most recent call last):
    ...
ZeroDivisionError: division by zero
```

``` { .python data-raises="ValueError" }
print("so far", 17)
int("4x2")
```
```output
so far 17
ValueError: invalid literal for int() with base 10: '4x2'
```
"""


def test_the_sample_page_passes(check: Check) -> None:
    outcome = check(PAGE)
    assert outcome.ok, outcome.text
    assert outcome.skipped == []


def shown_digits() -> list[int]:
    """Offsets of every digit that the sample page shows as an output or as a number."""
    spans = [m.span() for m in re.finditer(r"(?<=```output\n).*?(?=```)", PAGE, re.S)]
    spans += [m.span(1) for m in re.finditer(r"`([^`\n]+)`\{data-expr", PAGE)]
    spans += [m.span(1) for m in re.finditer(r"\\py\{([^}]*)\}", PAGE)]
    spans += [m.span() for m in re.finditer(r"^(?:1\.0|0\.125|1e-09)$", PAGE, re.M)]
    return sorted({i for a, b in spans for i in range(a, b) if PAGE[i].isdigit()})


@pytest.mark.parametrize("at", shown_digits())
def test_every_flipped_digit_is_caught_at_its_line(at: int, check: Check) -> None:
    flipped = PAGE[:at] + str((int(PAGE[at]) + 1) % 10) + PAGE[at + 1 :]
    outcome = check(flipped)
    line = PAGE.count("\n", 0, at) + 1
    assert not outcome.ok
    first_of_formula = line - 1  # a formula of several lines is reported where its number stands
    assert outcome.lines & {line, first_of_formula}, outcome.text


def test_the_sample_page_has_digits_to_flip() -> None:
    assert len(shown_digits()) > 80


@pytest.mark.parametrize(
    ("want", "got", "verdict"),
    [
        ("tensor([0.1385, 0.2379])", "tensor([0.1385, 0.2379])", SAME),
        ("tensor([0.1385, 0.2379])", "tensor([0.1385, 0.2380])", NEAR),
        ("tensor([0.1385, 0.2379])", "tensor([0.1385, 0.2381])", DIFFERENT),
        ("tensor([-0.0000, 1.0000])", "tensor([0.0000, 1.0000])", NEAR),
        ("tensor([ 0.001])", "tensor([0.001])", NEAR),
        ("tensor([1., 2.])", "tensor([0., 3.])", DIFFERENT),  # pytest's NUMBER accepts it
        ("1.0", "0.9", DIFFERENT),  # so does it this
        ("0.25", "0.26", DIFFERENT),  # fewer than three digits
        ("9.8", "9.9", DIFFERENT),
        ("162.55", "162.56", NEAR),
        ("tensor(2.)", "tensor(2.0000)", NEAR),  # another width, for another value
        ("tensor([ 1.,  2.])", "tensor([1.0000, 2.0001])", NEAR),
        ("tensor(2.)", "tensor(2.0002)", DIFFERENT),
        ("tensor(2.)", "tensor(3.)", DIFFERENT),
        ("1.0000e-04", "9.9999e-05", NEAR),
        ("12", "13", DIFFERENT),
        ("1.234e-05", "1.235e-05", NEAR),
        ("1.234e-05", "1.234e-06", DIFFERENT),
        ("loss 0.123", "lass 0.123", DIFFERENT),
        ("0.1234", "0.123", DIFFERENT),
        ("tensor([0.1234])", "tensor([0.1234, 0.1234])", DIFFERENT),
        ("nan", "0.000", DIFFERENT),
        ("a  \nb\n\n", "a\nb", SAME),
    ],
)
def test_outputs_compare_by_their_digits(want: str, got: str, verdict: str) -> None:
    assert compare_output(want, got) == verdict


@pytest.mark.parametrize(
    ("text", "value", "verdict"),
    [
        ("0.2379", 0.23794, SAME),
        ("0.2379", 0.23796, NEAR),
        ("0.2379", 0.2382, DIFFERENT),
        ("0.24", 0.2451, DIFFERENT),
        ("[1.000, 2.000]", [1.001, float("nan")], DIFFERENT),
        ("5", 5.4, SAME),
        ("5", 5.6, DIFFERENT),
        ("62 %", 61.9, SAME),
        ("True", True, SAME),
        ("journey", "journey", SAME),
        ("journey", "starts", DIFFERENT),
        (r"0.55\cdot0.43", [0.55, 0.43], SAME),
        (r"0.55\cdot0.43", [0.43, 0.55], DIFFERENT),
    ],
)
def test_numbers_compare_to_the_digits_shown(text: str, value: object, verdict: str) -> None:
    assert compare_number(text, value) == verdict


def test_a_number_that_shows_too_few_values_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'0\.1' shows 1 numbers, the expression gives 2"):
        show("0.1", [0.1, 0.2])


def test_a_near_miss_passes_off_the_pinned_arithmetic_and_is_counted(check: Check) -> None:
    page = '```python\n1 / 3\n```\n```output\n0.3333333333333334\n```\n\n`0.667`{data-expr="0.66649"}\n'
    here, elsewhere = check(page), check(page, pinned=False)
    assert here.failed == 2
    assert elsewhere.ok, elsewhere.text
    assert elsewhere.near == ["docs/page.md:5", "docs/page.md:8"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.8055", torch.tensor(0.80554992)),
        ("0.8055", 0.8055499196052551),  # the same, out of its tensor
        ("tensor([-20.9591,   0.5000])", torch.tensor([-20.95904922, 0.5])),
        ("0.5000", torch.tensor([100.0, 0.50005])[1:] * torch.ones(1)),
        ("32.12", 32.125),  # between two roundings, whatever the machine
        ("0.39", 0.385),
        ("[1.2, 0.12]", [1.21, 0.125]),
    ],
)
def test_a_number_on_a_knife_edge_is_refused(text: str, value: object) -> None:
    (edge,) = knife_edges(text, value)
    assert "stands on a knife-edge" in edge
    assert "show one digit fewer" in edge


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.806", torch.tensor(0.80554992)),
        ("0.4300", torch.tensor(0.43)),
        ("8.03125", 8.03125),
        ("tensor([0.3333, 0.2500])", torch.tensor([1 / 3, 0.25])),
        ("0.33333333", 1 / 3),
        ("tensor([0.4062], dtype=torch.bfloat16)", torch.tensor([0.40625], dtype=torch.bfloat16)),
        ("tensor([1, 2])", torch.tensor([1, 2])),
        ("tensor([nan, -inf])", torch.tensor([float("nan"), float("-inf")])),
        ("12", 12),
        ("True", True),
        ("journey", "journey"),
        ("6 words", ["a"] * 6),
        ("1e-09", 1e-9),
    ],
)
def test_a_number_that_any_machine_rounds_alike_is_not(text: str, value: object) -> None:
    assert knife_edges(text, value) == []


def test_a_page_with_a_knife_edge_fails_where_its_arithmetic_is_pinned(check: Check) -> None:
    page = (
        '`0.39`{data-expr="x"}\n\n```python\nx = 0.385\nx = [x]\nx\n```\n```output\n[0.385]\n```\n'
    )
    assert check(page).lines == {1}
    assert check(page, pinned=False).ok
    assert check(page.replace("0.39", "0.38"), updating=True).lines == {1}


@pytest.mark.parametrize(
    ("shows", "given"),
    [
        ('print(f"so {x:.2f}")', "so 0.39"),
        ('print(f"{x:{5}.2f} of", 1)', " 0.39 of 1"),
        ('print(f"{x / 10:.1%}")', "3.9%"),
        ('"%d" % 1 + "".join(f"{y:.2f}" for y in [x])', "'10.39'"),
        ('def f(y):\n    return f"{y:.2f}"\n\n\nf(x)', "'0.39'"),
    ],
)
def test_so_does_a_number_that_is_printed(check: Check, shows: str, given: str) -> None:
    page = f"```python\nx = 0.385\n```\n\n```python\n{shows}\n```\n```output\n{given}\n```\n"
    outcome = check(page)
    assert outcome.lines == {6}
    assert "0.39 stands on a knife-edge" in outcome.text or "3.9" in outcome.text
    right = page.replace("0.385", "0.386")
    assert check(right).ok, check(right).text


def test_a_tensor_that_is_printed_is_judged_as_one(check: Check) -> None:
    page = (
        "```python\nimport torch\n\nprint(torch.tensor([0.12345, 1.5]))\n```\n```output\n{}\n```\n"
    )
    assert check(page.format("tensor([0.1235, 1.5000])")).lines == {2}
    fine = page.replace("0.12345", "0.1234")
    assert check(fine.format("tensor([0.1234, 1.5000])")).ok


def test_without_a_package_what_requires_it_is_not_run_and_the_rest_is(check: Check) -> None:
    page = (
        "```python\n1\n```\n```output\n1\n```\n\n"
        '``` { .python data-requires="no_such_package json" }\nx = 1\n```\n\n`1`{data-expr="x"}\n'
    )
    outcome = check(page)
    assert outcome.ok
    assert outcome.skipped == ["needs no_such_package, which is not installed"] * 2
    assert check(page.replace("no_such_package", "re")).skipped == []
    undefined = check(page.replace("no_such_package", "re").replace("x = 1", "y = 1"))
    assert "name 'x' is not defined" in undefined.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("double = lambda x: x + x + 1", ""),
        ("double = lambda x: x * x", "the check takes it for right"),
        ("1 / 0", "ZeroDivisionError"),
        ("other = 1", "name 'double' is not defined"),
    ],
)
def test_a_check_must_refuse_a_wrong_answer(check: Check, answer: str, message: str) -> None:
    outcome = check(EXERCISE, wrong=(answer,))
    assert outcome.ok == (not message)
    assert message in outcome.text
    assert outcome.lines == ({13} if message else set())


EXERCISE = """# A page

**1. Twice.** Write `double`.

??? success "Solution"

    ```python
    def double(x):
        return 2 * x
    ```

    ``` { .python data-check="double" }
    double(2) == 4
    ```
    ```output
    True
    ```
"""


def test_a_page_is_not_helped_by_randomness(check: Check) -> None:
    page = "```python\nimport random\n\nrandom.random() < 2\n```\n```output\nTrue\n```\n"
    assert check(page).ok
    first, second = (
        check(page.replace("random.random() < 2", "random.random()")).text for _ in range(2)
    )
    assert first != second


@pytest.mark.parametrize(
    ("page", "line", "message"),
    [
        ("```python\n1\n```\n", 2, "shows something, but no ```output fence"),
        ("```python\nx = 1\n```\n```output\n1\n```\n", 5, "the output differs"),
        ('``` { .python data-raises="KeyError" }\n{}[1]\n```\n', 1, "shows its error"),
        (
            '``` { .python data-raises="KeyError" }\n1\n```\n```output\n1\n```\n',
            2,
            "nothing was raised",
        ),
        (
            '``` { .python data-raises="KeyError" }\n1 / 0\n```\n```output\nZeroDivisionError: division by zero\n```\n',
            2,
            "ZeroDivisionError",
        ),
        ("Text 0.25 here.\n", 1, "0.25 has no source"),
        ("# Title 0.25\n", 1, "0.25 has no source"),
        ("Text `x = 0.25` here.\n", 1, "0.25 has no source"),
        ("a\n\n| a |\n| --- |\n| 0.25 |\n", 5, "0.25 has no source"),
        ("Text\n\n$x = 0.25$\n", 3, "in the formula x = 0.25"),
        ("Text\n\n$\\py{0.25}{1 / 4} + 0.75$\n", 3, "0.75 has no"),
        ("Text\n\n$\\py{0.26}{1 / 4}$\n", 3, "Expected: 0.26"),
        ("Text\n\n$\\py{0.25}$\n", 3, "two groups"),
        ("Text\n\n$\\undefined x$\n", 3, "Undefined control sequence"),
        ("Text\n\n$\\eqref{nowhere}$\n", 3, "refers to no \\label"),
        ('`0.25`{data-expr="quarter"}\n', 1, "'quarter' is not defined"),
        ('`0.25`{data-expr="1 / 0"}\n', 1, "ZeroDivisionError"),
        ('`0.25`{data-expr="[1, 2]"}\n', 1, "shows 1 numbers, the expression gives 2"),
        ('`0.25`{data-cite="nobody"}\n', 1, "not in docs/bibliography.md"),
        ("![A picture](figures/page.svg)\n", 1, "no snippet directly above draws"),
        ('``` { .python }\n--8<-- "attention/none.py:x"\n```\n', 2, "none.py"),
    ],
)
def test_what_has_no_source_fails_at_its_line(
    page: str, line: int, message: str, check: Check
) -> None:
    outcome = check(page)
    assert message in outcome.text
    assert line in outcome.lines


@pytest.mark.parametrize(
    "page",
    [
        "Version 2.13.0, arXiv:1706.03762, 0.5, 3 and 10.\n",
        "Text $x^{2} + 0.5$.\n",
        "A [link](https://example.org/0.25) and `x[1]`.\n",
    ],
)
def test_what_is_no_number_of_two_decimals_needs_no_source(page: str, check: Check) -> None:
    outcome = check(page)
    assert outcome.ok, outcome.text


def test_a_cited_number_needs_a_key_of_the_bibliography(check: Check, book: Any) -> None:
    (book / "docs/bibliography.md").write_text("- Someone. *Title*. { #someone2020 }\n")
    assert check('`28.4`{data-cite="someone2020"} and `28.41`{data-cite="someone2020"}\n').ok


def test_a_number_is_judged_where_it_stands(check: Check) -> None:
    page = '```python\nx = 1\n```\n\n`1`{data-expr="x"}\n\n```python\nx = 2\n```\n\n`2`{data-expr="x"}\n'
    assert check(page).ok


FIGURE = """\
```python
class Drawing:
    def _repr_svg_(self):
        return "<svg><desc>Data.</desc></svg>"


Drawing()
```

![A drawing](figures/page-one.svg)
"""


def test_a_figure_is_written_by_the_run_and_only_when_it_changes(check: Check, book: Any) -> None:
    assert check(FIGURE).ok
    path = book / "docs/figures/page-one.svg"
    assert path.read_text() == "<svg><desc>Data.</desc></svg>"
    before = path.stat().st_mtime_ns
    assert check(FIGURE).ok
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Drawing()\n```", "drawing = Drawing()\n```"), "the last value draws nothing"),
        (("![A drawing](figures/page-one.svg)", "Text."), "no ![…](figures/…svg) follows"),
        (("page-one", "other"), "named figures/page-….svg"),
        (("A drawing", ""), "without alt text"),
    ],
)
def test_a_figure_without_its_half_fails(
    change: tuple[str, str], message: str, check: Check
) -> None:
    assert message in check(FIGURE.replace(*change)).text


def test_a_listing_shows_the_packages_source_and_binds_its_names(
    check: Check, book: Any, monkeypatch: Any
) -> None:
    (book / "attention_sample.py").write_text(
        "import math\n\n\n# --8<-- [start:root]\ndef root(x):\n    return math.sqrt(x)\n# --8<-- [end:root]\n"
    )
    monkeypatch.syspath_prepend(book)
    monkeypatch.chdir(book)
    page = '``` { .python }\n--8<-- "attention_sample.py:root"\n```\n\n```python\nroot(9)\n```\n```output\n3.0\n```\n'
    outcome = check(page)
    assert outcome.ok, outcome.text
