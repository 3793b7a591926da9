"""On every page of the book, every digit of every output and of every number is held by the code.

Each digit that a page shows is changed, one at a time, and the part that it belongs to is judged
again, against what the run of the page recorded. Away from the pinned arithmetic a last digit may
differ by one, so there is nothing to flip there.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snippets.arithmetic import is_pinned
from snippets.page import Number, Page, Snippet, parse
from snippets.pytest_plugin import Book, Sheet
from snippets.run import Output, Run
from tests.record import PAGES, ROOT, entry


def flipped(text: str) -> Iterator[tuple[int, str]]:
    """Each way to change one digit of `text`, with the line that the digit is on."""
    for i, char in enumerate(text):
        if char in "0123456789":
            line = text.count("\n", 0, i)
            yield line, text[:i] + str((int(char) + 1) % 10) + text[i + 1 :]


def has_output(snippet: Snippet) -> bool:
    return bool(snippet.output and not snippet.notest)


def changed_parts(page: Page) -> Iterator[tuple[int, str, Snippet | Number]]:
    """Each part of the page with one digit changed: its line, what it shows then, the part."""
    for number in page.numbers:
        for _, text in flipped(number.text):
            yield number.line, text, replace(number, text=text)
    for snippet in filter(has_output, page.snippets):
        assert snippet.output
        for line, text in flipped(snippet.output.source):
            output = replace(snippet.output, source=text)
            yield snippet.output.line + line, text, replace(snippet, output=output)


def gave(snippet: Snippet, outputs: list[Output]) -> str:
    """What a snippet shows, of what its run recorded."""
    text = ""
    for output in outputs:
        value = None if snippet.figure else output.value
        text += output.printed
        text += "".join(f"{line}\n" for line in (value, output.error) if line is not None)
    return text


@pytest.mark.skipif(not is_pinned(ROOT), reason="elsewhere last digits may differ")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_flipped_digit_of_the_page_is_caught_at_its_line(path: Path) -> None:
    page, seen = parse(path), entry(path)
    book, sheet = Book(ROOT), Sheet(page, Run(page, ROOT))  # which is not run again
    values = {n.start: value for n, value in zip(page.numbers, seen["values"], strict=True)}
    texts = {
        snippet.start: gave(snippet, [Output(*output) for output in outputs])
        for snippet, outputs in zip(page.snippets, seen["outputs"], strict=True)
    }

    def judge(part: Snippet | Number) -> str | None:
        if isinstance(part, Number):
            return book.judge_number(sheet, part, values[part.start])
        assert part.output
        line = page.line_at(part.output.body[0])
        return book.verdict(sheet.run.name, line, part.expected, texts[part.start], sheet.near)

    for part in [*filter(has_output, page.snippets), *page.numbers]:
        assert judge(part) is None
    for line, text, part in changed_parts(page):
        message = judge(part)
        assert message, f"{sheet.run.name}:{line}: {text!r} passes"
        assert message.startswith(f"{sheet.run.name}:{line}:"), (line, message)


def test_the_chapters_show_digits_to_flip() -> None:
    chapters = [parse(path) for path in PAGES if path.parent.name == "foundations"]
    assert sum(1 for page in chapters for _ in changed_parts(page)) > 1000
