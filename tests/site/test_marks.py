"""A page that is not what was run cannot show a green mark; nobody types it, and nothing keeps it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bs4.element import Tag
from reader import address, file_of, soup_of

from snippets import gate, ledger, reader

ROOT = Path(__file__).parents[2]
PAGES = len(list(ROOT.glob("docs/**/*.md")))
LAB = """{"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [],
"execution_count": null, "source": "1 + 1"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}"""
PARTS = ("docs", "snippets", "overrides", "attention", "benchmarks", ".book")


@pytest.fixture
def book(site: Path, tmp_path: Path) -> Path:
    """A copy of the book with its ledger, and labs of one cell."""
    for name in PARTS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "constraints.txt", "conftest.py"):
        shutil.copy(ROOT / name, tmp_path)
    for lab in (tmp_path / "docs/labs").glob("*.ipynb"):
        lab.write_text(LAB)
    return tmp_path


def build(book: Path, *options: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(book)}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", *options]
    return subprocess.run(command, cwd=book, env=env, capture_output=True, text=True)


def page(book: Path, source: str) -> Tag:
    return gate.soup_of(gate.html_path(book / "site", f"docs/{source}"))


def mark(book: Path, source: str) -> tuple[str, str]:
    (state,) = page(book, source).select("h1 + .page-state")
    (text,) = state.select(".mark")
    return str(state["data-state"]), text.get_text()


def test_marks_fall_when_a_page_changes_or_was_never_run(book: Path) -> None:
    changed = book / "docs/foundations/similarity.md"
    changed.write_text(changed.read_text("utf-8").replace("0.9544", "0.9545", 1), "utf-8")
    (book / ".book/docs/bibliography.json").unlink()
    assert build(book).returncode == 0
    assert mark(book, "foundations/softmax.md")[0] == "verified"
    assert page(book, "foundations/softmax.md").select(".code-run")
    assert page(book, "foundations/softmax.md").select("[data-given]")
    state, text = mark(book, "foundations/similarity.md")
    assert state == "changed"
    assert "the page has changed" in text
    assert page(book, "foundations/similarity.md").select(".code-run, [data-given]") == []
    assert page(book, "foundations/similarity.md").select("[data-figure]")
    assert mark(book, "bibliography.md") == ("never", "○ Never verified: this page was never run.")
    assert mark(book, "index.md") == (
        "changed",
        f"△ {PAGES - 2} of {PAGES} pages are verified as they are now.",
    )
    result = build(book, "--strict")
    assert result.returncode != 0, "what is published is verified"
    assert "foundations/similarity.md: Changed since " in result.stderr
    assert "the page has changed since it was run" in result.stderr


def test_all_marks_fall_when_the_package_changes(book: Path) -> None:
    with (book / "attention/softmax.py").open("a") as file:
        file.write("# changed\n")
    states = [reader.state(book, source) for source in book.glob("docs/**/*.md")]
    assert len(states) == PAGES
    for state in states:
        assert state.word == "changed"
        assert "attention/ has changed" in state.sentence
    said = f"0 of {PAGES} pages are verified as they are now."
    assert reader.whole(states) == reader.State("changed", said, {})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text + "x = 1\n", "a button copies what no test has run"),
        (lambda text: text[2:], "a runnable copy does not say what must be installed"),
        (lambda text: None, "a runnable copy is missing"),
    ],
)
def test_the_gate_sees_a_change_of_what_a_button_copies(
    site: Path, change: Callable[[str], str | None], complaint: str
) -> None:
    source = ROOT / "docs/foundations/similarity.md"
    entry, soup = (
        ledger.read(ROOT, source),
        gate.soup_of(gate.html_path(site, "docs/foundations/similarity.md")),
    )
    assert entry is not None
    assert gate.check_page(soup, entry) == []
    button = soup.select(".code-run")[3]
    if (text := change(str(button["data-clipboard-text"]))) is None:
        button.decompose()
    else:
        button["data-clipboard-text"] = text
    (found,) = gate.check_page(soup, entry)
    assert complaint in found


def test_every_page_of_the_site_is_verified_and_says_so(site: Path) -> None:
    for source in sorted((ROOT / "docs").glob("**/*.md")):
        soup = soup_of(file_of(site, address(source)))
        (state,) = soup.select("h1 + .page-state")
        assert state["data-state"] == "verified", source


def test_the_index_shows_the_state_of_each_page(site: Path) -> None:
    rows = gate.soup_of(site / "index.html").select(".page-state details tbody tr")
    assert len(rows) == len(list((ROOT / "docs").glob("**/*.md")))
    assert all("Verified: " in row.get_text() for row in rows)
