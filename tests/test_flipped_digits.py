"""On every page of the book, every digit of every output and of every number is held by the code.

Each page is run once. Then each digit that it shows is changed, one at a time, and the part that it
belongs to is judged again, against what the code gave. Away from the pinned platform a last digit may
differ by one, so there is nothing to flip there.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snippets.page import Number, Page, Snippet, parse
from snippets.pytest_plugin import Book, Sheet, is_pinned
from snippets.run import Run

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])


def flipped(text: str) -> Iterator[tuple[int, str]]:
    """Each way to change one digit of `text`, with the line that the digit is on."""
    for i, char in enumerate(text):
        if char in "0123456789":
            line = text.count("\n", 0, i)
            yield line, text[:i] + str((int(char) + 1) % 10) + text[i + 1 :]


def changed_parts(page: Page) -> Iterator[tuple[int, str, Snippet | Number]]:
    """Each part of the page with one digit changed: its line, what it shows then, the part."""
    for number in page.numbers:
        for _, text in flipped(number.text):
            yield number.line, text, replace(number, text=text)
    for snippet in page.snippets:
        if snippet.output and not snippet.notest:
            for line, text in flipped(snippet.output.source):
                output = replace(snippet.output, source=text)
                yield snippet.output.line + line, text, replace(snippet, output=output)


@pytest.mark.skipif(not is_pinned(ROOT), reason="off the pinned platform last digits may differ")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_flipped_digit_of_the_page_is_caught_at_its_line(path: Path) -> None:
    page = parse(path)
    run = Run(page, ROOT)
    book = Book(ROOT, updating=False, pinned=True)
    for part in [*page.snippets, *page.numbers]:
        assert not run[part].error
        if not getattr(part, "figure", None):
            assert not book._judge(Sheet(page, run), part)
    for line, text, part in changed_parts(page):
        message = book._judge(Sheet(page, run), part)
        assert message, f"{run.name}:{line}: {text!r} passes"
        assert message.startswith(f"{run.name}:{line}:"), (line, message)


def test_the_chapters_show_digits_to_flip() -> None:
    chapters = [parse(path) for path in PAGES if path.parent.name == "foundations"]
    assert sum(1 for page in chapters for _ in changed_parts(page)) > 1000
