"""Every fence form that Markdown allows is run, or fails by file and line; none is passed over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Check = Callable[..., Any]  # the fixture of conftest.py

FAILS = "raise RuntimeError('planted')"

# Each form holds a planted failure. It must be reported at the line marked with FAILS.
RUN = {
    "backticks": "```python\nFAILS\n```\n",
    "a space before the language": "``` python\nFAILS\n```\n",
    "a trailing space": "```python \nFAILS\n```\n",
    "tildes": "~~~python\nFAILS\n~~~\n",
    "four backticks": "````python\nFAILS\n````\n",
    "a title": '```python title="attend.py"\nFAILS\n```\n',
    "highlighted lines": '```python hl_lines="1"\nFAILS\n```\n',
    "line numbers": '```python linenums="1"\nFAILS\n```\n',
    "all options": '```python title="a" hl_lines="1" linenums="1"\nFAILS\n```\n',
    "braces": "``` { .python }\nFAILS\n```\n",
    "tight braces": "```{.python}\nFAILS\n```\n",
    "braces with a class": "``` {.python .annotate}\nFAILS\n```\n",
    "braces with options": '``` { .python title="a" hl_lines="1" }\nFAILS\n```\n',
    "a CRLF file": "```python\r\nFAILS\r\n```\r\n",
    "in an admonition": "!!! note\n\n    ```python\n    FAILS\n    ```\n",
    "in a folded block": "??? note\n    ```python\n    FAILS\n    ```\n",
    "in a tab": '=== "A"\n\n    ```python\n    FAILS\n    ```\n',
    "in a tab in a tab": '=== "A"\n\n    === "B"\n\n        ```python\n        FAILS\n        ```\n',
    "in a list": "- item\n\n    ```python\n    FAILS\n    ```\n",
    "in a block quote": "> quote\n>\n> ```python\n> FAILS\n> ```\n",
    "in a footnote": "Text[^1].\n\n[^1]: Note.\n\n    ```python\n    FAILS\n    ```\n",
    "in a block of HTML": '<div markdown="1">\n\n```python\nFAILS\n```\n\n</div>\n',
    "a prompt": "```pycon\n>>> FAILS\n```\n",
    "a prompt in a list": "- item\n\n    ```pycon\n    >>> 1\n    1\n    >>> FAILS\n    ```\n",
}

# Each form is refused, whatever it holds, at the line marked with HERE.
REFUSED = {
    "py": "```pyHERE\n1\n```\n",
    "python3": "```python3HERE\n1\n```\n",
    "Python": "```PythonHERE\n1\n```\n",
    "an unlisted language": "```rustHERE\n1\n```\n",
    "a comma": "```python,ignoreHERE\n1\n```\n",
    "braces without a dot": "```{python}HERE\n1\n```\n",
    "exec": '```python exec="on"HERE\n1\n```\n',
    "a bare notest": '```python notest="why"HERE\n1\n```\n',
    "an unknown attribute": '``` { .python data-skip="why" }HERE\n1\n```\n',
    "a notest without a reason": '``` { .python data-notest="" }HERE\n1\n```\n',
    "a raises without a type": '``` { .python data-raises="" }HERE\n1\n```\n```output\nx\n```\n',
    "no language": "```HERE\n1\n```\n",
    "an indented block": "Text.\n\n    1 + 1  # HERE\n",
    "a prompt in the text": "Text.\n\n>>> 1 + 1  # HERE\n",
    "a prompt in a list item": "- >>> 1 + 1  # HERE\n",
    "HTML": "<pre><code>1 + 1  # HERE</code></pre>\n",
    "HTML with attributes": '<pre class="x">1 + 1  # HERE</pre>\n',
    "an unclosed fence": "```pythonHERE\n1\n",
    "a fence swallowed by an unclosed one": "````pythonHERE\n1\n\n```python\n1 / 0\n```\n",
    "a fence whose container ends": "!!! note\n\n    ```pythonHERE\n    1\n\n```\n",
    "a comment": "<!--\n```pythonHERE\n1\n```\n-->\n",
    "a list marker's line": "- ```pythonHERE\n  1\n  ```\n",
    "an output under nothing": "Text.\n\n```outputHERE\n1\n```\n",
    "an output under text": "```python\nx = 1\n```\n\nText.\n\n```outputHERE\n1\n```\n",
    "a second output": "```python\n1\n```\n```output\n1\n```\n```outputHERE\n1\n```\n",
    "skip: next": "<!-- skip: next -->HERE\n\n```python\nx = 1\n```\n",
    "skip: next with a reason": '<!-- skip: next "why" -->HERE\n\n```python\nx = 1\n```\n',
    "skip: start without an end": "<!-- skip: start -->HERE\n\n```python\nx = 1\n```\n",
    "a longer closing fence": "```pythonHERE\n1\n````\n",
}


def line_of(text: str, mark: str) -> int:
    return text[: text.index(mark)].count("\n") + 1


@pytest.mark.parametrize("form", RUN)
def test_a_failure_planted_in_any_fence_is_reported_at_its_line(form: str, check: Check) -> None:
    page = "# Title\n\nText.\n\n" + RUN[form]
    outcome = check(page.replace("FAILS", FAILS))
    assert not outcome.ok
    assert "RuntimeError: planted" in outcome.text
    assert line_of(page, "FAILS") in outcome.lines


@pytest.mark.parametrize("form", RUN)
def test_a_fence_without_a_failure_passes(form: str, check: Check) -> None:
    outcome = check("# Title\n\nText.\n\n" + RUN[form].replace("FAILS", "x = 1"))
    assert outcome.ok, outcome.text
    assert outcome.passed == 2  # the snippet and the page


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_run_is_refused_at_its_line(form: str, check: Check) -> None:
    page = "# Title\n\nText.\n\n" + REFUSED[form]
    outcome = check(page.replace("HERE", ""))
    assert not outcome.ok
    assert line_of(page, "HERE") in outcome.lines, outcome.text


def test_a_fence_inside_a_markdown_fence_is_text(check: Check) -> None:
    outcome = check("````markdown\n```python\n1 / 0\n```\n````\n")
    assert outcome.ok, outcome.text


def test_code_in_a_line_is_no_fence(check: Check) -> None:
    assert check("Write ``` `x` ``` and go on.\n\n``` in a line ``` too.\n").ok


def test_a_snippet_that_is_not_run_passes_with_its_reason(check: Check) -> None:
    outcome = check('``` { .python data-notest="needs a GPU" }\n1 / 0\n```\n')
    assert outcome.ok, outcome.text
    assert outcome.sheet.page.snippets[0].notest == "needs a GPU"


def test_after_a_failure_the_rest_is_skipped_with_the_reason(check: Check) -> None:
    outcome = check(
        '```python\nx = 1 / 0\n```\n\n```python\ny = 1\n```\n\n`2`{data-expr="1 + 1"}\n'
    )
    assert outcome.failed == 1
    assert outcome.skipped == ["the snippet at line 2 of this page failed"] * 2


def test_a_wrong_output_does_not_stop_the_page(check: Check) -> None:
    outcome = check(
        "```python\n1\n```\n```output\n2\n```\n\n```python\n3\n```\n```output\n3\n```\n"
    )
    assert (outcome.failed, outcome.passed, outcome.skipped) == (1, 2, [])


def test_the_traceback_shows_the_pages_own_lines(check: Check) -> None:
    page = "# T\n\n!!! note\n\n    ```python\n    def f(x):\n        return x / 0\n\n    f(3)\n    ```\n"
    outcome = check(page)
    assert 'docs/page.md", line 7, in f' in outcome.text
    assert "return x / 0\n           ~~^~~" in outcome.text  # the caret stands under the division
    assert 7 in outcome.lines


def test_pytest_on_one_page_is_red_by_file_and_line_without_a_build(
    book: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (book / "docs/page.md").write_text("# T\n\n```python\n1 + 1\n```\n```output\n3\n```\n")
    result = pytester.runpytest_subprocess(
        "-p",
        "snippets.pytest_plugin",
        f"--rootdir={book}",
        "-c",
        "/dev/null",
        book / "docs/page.md",
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["docs/page.md:7: the output differs", "Expected:", "3", "Got:", "2"]
    )
