"""The updater rewrites outputs and numbers, and nothing else; twice is once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snippets import update

Check = Callable[..., Any]  # the fixture of conftest.py

STALE = """\
# Every kind of change

Before: `0.9`{data-expr="x"}, `?`{data-expr="[x, 3]"} and `0.90 or 7`{data-expr="[x, 8]"}.

```python
x = 0.5
x
```
```output
0.9
```

```python
print("new")
```

Between, untouched:   two  spaces.

```python
y = 1
```
```output
gone
```

!!! note

    ```python
    print("a\\n\\nb")
    ```
    ```output
    stale
    ```

> ```python
> "quoted"
> ```
> ```output
> stale
> ```

```pycon
>>> x
0.9
>>> print("a")
>>> print("a\\n\\nb")
stale
>>> y = 2
stale
>>> 1 / 0
Traceback (most recent call last):
    ...
ZeroDivisionError: stale
```

``` { .python data-raises="KeyError" }
{}["k"]
```
```output
KeyError: 'stale'
```

$x = \\py{0.900}{x}$
"""

FRESH = """\
# Every kind of change

Before: `0.5`{data-expr="x"}, `0.5000, 3`{data-expr="[x, 3]"} and `0.50 or 8`{data-expr="[x, 8]"}.

```python
x = 0.5
x
```
```output
0.5
```

```python
print("new")
```
```output
new
```

Between, untouched:   two  spaces.

```python
y = 1
```

!!! note

    ```python
    print("a\\n\\nb")
    ```
    ```output
    a

    b
    ```

> ```python
> "quoted"
> ```
> ```output
> 'quoted'
> ```

```pycon
>>> x
0.5
>>> print("a")
a
>>> print("a\\n\\nb")
a
<BLANKLINE>
b
>>> y = 2
>>> 1 / 0
Traceback (most recent call last):
    ...
ZeroDivisionError: division by zero
```

``` { .python data-raises="KeyError" }
{}["k"]
```
```output
KeyError: 'k'
```

$x = \\py{0.500}{x}$
"""


def updated(check: Check, text: str) -> str:
    sheet = check(text, updating=True).sheet
    return update.apply(sheet.page.text, sheet.edits)


def test_the_updater_makes_every_kind_of_change_and_no_other(check: Check) -> None:
    assert updated(check, STALE) == FRESH


def test_the_updated_page_passes_and_is_left_alone(check: Check) -> None:
    outcome = check(FRESH)
    assert outcome.ok, outcome.text
    assert updated(check, FRESH) == FRESH


def test_an_output_that_holds_a_fence_gets_longer_marks(check: Check) -> None:
    page = updated(check, "```python\nprint('```')\n```\n")
    assert page == "```python\nprint('```')\n```\n````output\n```\n````\n"
    assert check(page).ok


def test_what_stands_before_a_failure_is_updated(check: Check) -> None:
    page = "```python\n1\n```\n\n```python\n1 / 0\n```\n\n```python\n2\n```\n"
    assert updated(check, page) == page.replace("1\n```\n", "1\n```\n```output\n1\n```\n", 1)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_stay_as_they_were(newline: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("a\nb\n", newline=newline)
    assert update.write(path, "a\nb\n", [(0, 1, "c")])
    assert path.read_bytes() == f"c{newline}b{newline}".encode()


def test_pytest_update_writes_the_page_once(
    book: Path, pytester: pytest.Pytester, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    page = book / "docs/page.md"
    page.write_text(STALE)
    command = (
        "-p",
        "snippets.pytest_plugin",
        f"--rootdir={book}",
        "-c",
        "/dev/null",
        "--update",
        page,
    )
    first = pytester.runpytest_subprocess(*command)
    assert page.read_text() == FRESH
    first.stdout.fnmatch_lines(["updated: docs/page.md: 15 changes"])
    second = pytester.runpytest_subprocess(*command)
    assert page.read_text() == FRESH
    second.stdout.no_fnmatch_line("updated:*")
