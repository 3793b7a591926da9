"""A small book in a temporary folder, checked by the plugin's own parts with the real mkdocs.yml."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.outcomes import Skipped
from sybil import Document
from sybil.example import SybilFailure

from snippets.pytest_plugin import Book

ROOT = Path(__file__).parents[2]


class Outcome:
    """What checking a page said: its messages, the lines they point at, and the counts."""

    def __init__(self, book: Book, page: Path) -> None:
        self.passed, self.skipped, messages = 0, list[str](), list[str]()
        for example in Document.parse(str(page), book).examples():
            try:
                example.evaluate()
                self.passed += 1
            except SybilFailure as failure:
                messages.append(failure.result)
            except Skipped as skip:
                self.skipped.append(str(skip))
        self.failed, self.text = len(messages), "\n".join(messages)
        self.lines = {int(line) for line in re.findall(r"page\.md:(\d+): ", self.text)}
        self.ok = not messages
        self.near = book.near
        self.sheet = book.sheets[-1]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """The root of an empty book."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs").mkdir()
    return tmp_path


@pytest.fixture
def check(book: Path) -> Callable[..., Outcome]:
    """Write `text` as docs/page.md and judge each of its examples, as pytest does."""

    def run(
        text: str, *, pinned: bool = True, updating: bool = False, wrong: tuple[str, ...] = ()
    ) -> Outcome:
        page = book / "docs/page.md"
        page.write_text(text, "utf-8", newline="")
        how = "pinned arithmetic" if pinned else "another arithmetic"
        answers = {("page", 1): [*wrong]}
        return Outcome(Book(book.resolve(), updating, pinned, how, answers), page)

    return run
