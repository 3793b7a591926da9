"""What the second button copies runs as pasted, and prints what the page shows."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pasting import Outcome, run_all
from reader import PYTHON, ROOT, RUNNABLE, SOURCES, address, file_of, python_blocks, soup_of

from snippets import ledger
from snippets.arithmetic import is_pinned
from snippets.compare import DIFFERENT, SAME, compare_output, tidy
from snippets.page import RUN, Snippet

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


Part = tuple[Snippet, dict[str, str], str]  # a block, what the ledger says of it, what is pasted


def parts(site: Path, source: Path) -> list[Part]:
    """The blocks of a page that can be pasted."""
    texts, seen, blocks = pasted(site, source), runnable(source), python_blocks(source)
    assert len(texts) == len(seen) == len(blocks)
    assert [item["kind"] == "notest" for item in seen] == [s.notest is not None for s, _ in blocks]
    every = [(s, item, text) for (s, _), item, text in zip(blocks, seen, texts, strict=True)]
    return [(s, item, text) for s, item, text in every if text and not s.notest]


def report(source: Path, part: Part, outcome: Outcome) -> str | None:
    snippet, item, text = part
    why = complaint(snippet, item, outcome)
    where = f"{source.relative_to(ROOT)}:{snippet.line} ({item['kind']})"
    return f"{where} {why}\n--- pasted:\n{text}" if why else None


def test_a_block_of_each_kind_runs_as_pasted_into_python(site: Path, tmp_path: Path) -> None:
    """The shortest of each, through `python -` from an empty folder: each imports torch anew.

    The run of its page has run every block in a fresh namespace.
    """
    kinds: dict[tuple[str, bool], tuple[Path, Part]] = {}
    for source in WITH_CODE:
        for part in parts(site, source):
            kind = part[1]["kind"], bool(part[0].raises)
            if kind not in kinds or len(part[2]) < len(kinds[kind][1][2]):
                kinds[kind] = source, part
    assert {kind for kind, _ in kinds} == {"alone", "slice", "page"}
    for source, part in kinds.values():
        ran = subprocess.run(
            [sys.executable, "-"], input=part[2], capture_output=True, text=True, cwd=tmp_path
        )
        assert not report(source, part, Outcome(ran.stdout, ran.stderr, ran.returncode))


@pytest.mark.exhaustive
@each_page
def test_every_block_runs_as_pasted(site: Path, source: Path) -> None:
    every = parts(site, source)
    outcomes = run_all([text for _, _, text in every])
    wrong = [report(source, part, got) for part, got in zip(every, outcomes, strict=True)]
    assert not any(wrong), "\n\n".join(filter(None, wrong))


@each_page
def test_its_first_line_says_what_must_be_installed(site: Path, source: Path) -> None:
    for text in filter(None, pasted(site, source)):
        comment, _, code = text.partition("\n")
        assert comment.startswith("# ")
        for name in ("torch", "attention"):
            if re.search(rf"^(import|from) {name}\b", code, re.M):
                assert name in comment
