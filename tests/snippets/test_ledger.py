"""The ledger speaks for a page only while nothing that the page depends on has changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snippets import ledger

Check = Callable[..., Any]  # the fixture of conftest.py
PAGE = '# T\n\n```python\n1 + 1\n```\n```output\n2\n```\n\n`3`{data-expr="1 + 2"}\n'


@pytest.fixture
def page(book: Path, check: Check) -> Path:
    (book / "attention").mkdir()
    (book / "attention/softmax.py").write_text("x = 1\n")
    (book / "benchmarks").mkdir()
    (book / "constraints.txt").write_text("torch==2.13.0\n")
    assert check(PAGE).ok
    return book / "docs/page.md"


def test_a_page_that_passed_is_in_the_ledger(book: Path, page: Path) -> None:
    entry = ledger.read(book, page)
    assert entry is not None
    assert ledger.why_stale(book, page) is None
    assert entry["page"] == "docs/page.md"
    assert (entry["snippets"], len(entry["numbers"])) == (1, 1)
    assert ["python", "1 + 1"] in entry["blocks"]


def test_a_page_that_was_never_run_is_stale(book: Path) -> None:
    assert ledger.why_stale(book, book / "docs/other.md") == "was never run"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("docs/page.md", "the page has changed"),
        ("attention/softmax.py", "attention/ has changed"),
        ("attention/new.py", "attention/ has changed"),
        ("benchmarks/speed.json", "what a benchmark wrote has changed"),
        ("constraints.txt", "constraints.txt has changed"),
    ],
)
def test_a_change_makes_the_entry_stale(path: str, why: str, book: Path, page: Path) -> None:
    with (book / path).open("a") as file:
        file.write("# changed\n")
    assert why in str(ledger.why_stale(book, page))


def test_of_a_page_that_fails_the_ledger_says_where(book: Path, page: Path, check: Check) -> None:
    assert not check(PAGE.replace("\n2\n", "\n3\n")).ok
    assert ledger.why_stale(book, page) == "fails at line 7"
    page.write_text("# Another page\n")
    assert ledger.why_stale(book, page) == "the page has changed since it was run"


def test_a_page_that_is_updated_is_not_yet_verified(book: Path, check: Check) -> None:
    check(PAGE, updating=True)
    assert ledger.why_stale(book, book / "docs/page.md") == "was never run"


def test_a_figure_that_is_not_as_drawn_is_stale(book: Path, check: Check) -> None:
    drawing = 'class D:\n    def _repr_svg_(self):\n        return "<svg/>"\n\n\nD()'
    assert check(f"```python\n{drawing}\n```\n\n![A figure](figures/page-a.svg)\n").ok
    page = book / "docs/page.md"
    assert ledger.why_stale(book, page) is None
    (book / "docs/figures/page-a.svg").write_text("<svg>other</svg>")
    assert "not what its snippet drew" in str(ledger.why_stale(book, page))
    (book / "docs/figures/page-a.svg").unlink()
    assert "not what its snippet drew" in str(ledger.why_stale(book, page))


def test_entries_hold_no_path_of_the_machine(book: Path, page: Path) -> None:
    assert str(book) not in json.dumps(ledger.read(book, page))
