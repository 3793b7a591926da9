"""What the second button copies runs as pasted, and prints what the page shows."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pasting import Outcome, run_all
from reader import PYTHON, ROOT, RUNNABLE, SOURCES, TRIED, address, file_of, python_blocks, soup_of

from snippets import ledger
from snippets.compare import DIFFERENT, SAME, compare_output, tidy
from snippets.page import RUN, Snippet
from snippets.pytest_plugin import is_pinned

WITH_CODE = [source for source in SOURCES if python_blocks(source)]
each_page = pytest.mark.parametrize(
    "source", WITH_CODE, ids=lambda path: str(path.relative_to(ROOT))
)


@functools.cache
def pasted(site: Path, source: Path) -> list[str | None]:
    """The text behind each block's second button, None where it has none."""
    page = soup_of(file_of(site, address(source)))
    buttons = [block.select_one(RUNNABLE) for block in page.select(PYTHON)]
    texts = [button.get("data-clipboard-text") if button else None for button in buttons]
    return [str(text) if text else None for text in texts]


def runnable(source: Path) -> list[dict[str, str]]:
    entry = ledger.read(ROOT, source)
    assert entry is not None
    found: list[dict[str, str]] = entry["runnable"]
    return found


def agrees(want: str, got: str) -> bool:
    verdict = compare_output(tidy(want), tidy(got))
    return verdict == SAME or (verdict != DIFFERENT and not is_pinned(ROOT))


def nowhere(error: str) -> str:
    """An error's message without the line that it may name, which is another in another text."""
    return re.sub(r"\bline \d+", "line …", error)


def complaint(snippet: Snippet, ran: dict[str, str], outcome: Outcome) -> str | None:
    """Why a block, pasted, does not do what the page shows; None where it does."""
    if snippet.raises:
        # the message goes to the other stream, at the end of a traceback
        said, _, error = f"\n{tidy(snippet.expected)}".rpartition("\n")
        if outcome.code == 0 or nowhere(tidy(outcome.err).rpartition("\n")[2]) != nowhere(error):
            return f"does not end in {error}:\n{outcome.err}"
        want = said.lstrip("\n")
    elif outcome.code != 0:
        return f"fails:\n{outcome.err or outcome.code}"
    elif snippet.figure or snippet.fence.lang != RUN:
        want = ran["shows"]  # the page shows a drawing, or a conversation
    else:
        want = snippet.expected
    got = tidy(outcome.out)
    if ran["kind"] == "page":  # what comes before shows something too
        lines = got.split("\n")
        got = "\n".join(lines[len(lines) - len(tidy(want).split("\n")) :]) if want else ""
    if not agrees(want, got):
        return f"prints\n{got}\nand not\n{want}"
    if not snippet.raises and not agrees(ran["shows"], outcome.out):
        return f"prints\n{outcome.out}\nand the tests saw\n{ran['shows']}"
    return None


def longest_of_each_kind(parts: list[Any]) -> list[Any]:
    """One that needs nothing, one with a part of the page, one with all of it; all that raise."""
    kinds = {
        (item["kind"], s.raises): (s, item, text)
        for s, item, text in sorted(parts, key=lambda part: len(part[2]))
    }
    return [*kinds.values()]


@pytest.mark.parametrize(
    "source",
    [source for source in WITH_CODE if source in TRIED],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_block_of_each_kind_runs_as_pasted(site: Path, source: Path) -> None:
    """Each has been run in a namespace of its own, and the gate has read each button."""
    texts, seen, blocks = pasted(site, source), runnable(source), python_blocks(source)
    assert len(texts) == len(seen) == len(blocks)
    assert [t is None for t in texts] == [item["kind"] == "notest" for item in seen]
    assert [item["kind"] == "notest" for item in seen] == [s.notest is not None for s, _ in blocks]
    parts = [
        (s, item, t) for (s, _), item, t in zip(blocks, seen, texts, strict=True) if t is not None
    ]
    parts = longest_of_each_kind(parts)
    outcomes = run_all([text for _, _, text in parts])
    wrong = [
        f"{source.relative_to(ROOT)}:{snippet.line} ({item['kind']}) {why}\n--- pasted:\n{text}"
        for (snippet, item, text), outcome in zip(parts, outcomes, strict=True)
        if (why := complaint(snippet, item, outcome))
    ]
    assert not wrong, "\n\n".join(wrong)


def test_python_itself_does_with_them_what_these_tests_do(site: Path, tmp_path: Path) -> None:
    """One of each kind, the longest, through `python -` from an empty folder."""
    longest: dict[str, str] = {}
    for source in WITH_CODE:
        for text, item in zip(pasted(site, source), runnable(source), strict=True):
            if text and len(text) > len(longest.get(item["kind"], "")):
                longest[item["kind"]] = text
    assert longest
    for text, outcome in zip(longest.values(), run_all([*longest.values()]), strict=True):
        real = subprocess.run(
            [sys.executable, "-"], input=text, capture_output=True, text=True, cwd=tmp_path
        )
        assert (real.returncode, real.stdout) == (outcome.code, outcome.out), real.stderr


@each_page
def test_its_first_line_says_what_must_be_installed(site: Path, source: Path) -> None:
    for text in filter(None, pasted(site, source)):
        comment, _, code = text.partition("\n")
        assert comment.startswith("# ")
        for name in ("torch", "attention"):
            if re.search(rf"^(import|from) {name}\b", code, re.M):
                assert name in comment
