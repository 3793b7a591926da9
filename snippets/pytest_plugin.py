"""pytest's door to the book: Sybil finds the examples of each page, `run` runs them.

Each snippet, number and page-wide check is one test. `--update` rewrites what a page shows from
what it gave. A page that passed whole is written into the ledger; the summary says what was run,
what was not, and what agreed only to the last digit.
"""

import io
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.document import PythonDocStringDocument

from . import ledger, render, slices, update
from .compare import NEAR, SAME, compare_number, compare_output, show, tidy
from .page import INTERACTIVE, Number, Page, Snippet, parse
from .run import (
    PromptError,
    Run,
    Shown,
    describe,
    output_line,
    prompt_wants,
    run_prompts,
)
from .state import fresh_state

Part = Snippet | Number | None  # None: the page-wide check


@dataclass
class Sheet:
    """A page under test: which of its parts passed, and what to change in it."""

    page: Page
    run: Run
    parts: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
    edits: list[update.Edit] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    runnables: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Book:
    """The state of one test run."""

    root: Path
    updating: bool
    pinned: bool
    sheets: list[Sheet] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    heard: Counter[str] = field(default_factory=Counter)  # from workers of xdist
    docstrings: int = 0
    overhead: float = 0.0
    slicing: float = 0.0

    # Sybil's parser for pages

    def __call__(self, document: Document) -> Iterator[Region]:
        start = time.perf_counter()
        page = parse(document.path, document.text)
        document.text, document.end = page.text, len(page.text)
        sheet = Sheet(page, Run(page, self.root))
        self.sheets.append(sheet)
        self.overhead += time.perf_counter() - start
        whole = len(page.text)
        parts: list[Part] = [*page.snippets, *page.numbers, None]
        for part in parts:
            begin, end = (part.start, part.end) if part else (whole, whole)
            sheet.parts.add(begin)
            yield Region(begin, end, (sheet, part), self.evaluate)

    def evaluate(self, example: Example) -> str | None:
        sheet, part = example.parsed
        start = time.perf_counter()
        message: str | None = "the checker failed"
        try:
            message = self._judge(sheet, part)
        finally:
            self.overhead += time.perf_counter() - start
            if message and not self.updating:
                ledger.forget(self.root, sheet.page.path)
        if not message:
            sheet.passed.add(part.start if part else len(sheet.page.text))
            if sheet.passed == sheet.parts and not self.updating:
                message = self._enter(sheet)
        return message

    def _judge(self, sheet: Sheet, part: Part) -> str | None:
        page, run = sheet.page, sheet.run
        if part is None:
            return self._judge_page(sheet)
        before = time.perf_counter()
        shown = run[part]
        self.overhead -= time.perf_counter() - before
        if shown.skipped:
            pytest.skip(shown.skipped)
        if shown.error:
            return shown.error
        if self.updating:
            try:
                if page.problems:
                    raise ValueError("the page is left alone until what is wrong with it is mended")
                edits = update.edits_for(page, part, shown)
                if edits and page.made:
                    raise ValueError("this page is made from docstrings, which nothing rewrites")
                sheet.edits += edits
            except Exception as error:
                return f"{run.name}:{part.line}: {describe(error)}"
            return None
        if isinstance(part, Number):
            return self._judge_number(run, part, shown)
        if part.fence.lang == INTERACTIVE:
            return self._judge_prompts(run.name, part.line, part.fence.source, shown.prompts)
        if part.is_listing or part.notest:
            return None
        if part.figure:
            self._draw(sheet, part.figure)
        line = page.line_at(part.output.body[0]) if part.output else part.line
        return self.verdict(run.name, line, part.expected, shown.text)

    def _judge_page(self, sheet: Sheet) -> str | None:
        page, run = sheet.page, sheet.run
        if not run.shown:
            run.run()
            self.overhead -= run.seconds
        findings, sheet.seen = render.check(page, self.root)
        found = [(p.line, p.message) for p in page.problems] + [tuple(f) for f in findings]
        found += [(1, f"the page changes {name} for all others") for name in run.leaks]
        return "\n".join(f"{run.name}:{line}: {text}" for line, text in sorted(found)) or None

    def _judge_number(self, run: Run, number: Number, shown: Shown) -> str | None:
        where = f"{run.name}:{number.line}"
        try:
            verdict = compare_number(number.text, shown.value)
            got = show(number.text, shown.value)
        except Exception as error:
            return f"{where}: {error}"
        if verdict == SAME or (verdict == NEAR and self._tolerate(where)):
            return None
        return f"{where}: {number.expr}\nExpected: {number.text}\nGot:      {got}"

    def _judge_prompts(self, name: str, line: int, source: str, prompts: list[Any]) -> str | None:
        for example, got in prompts:
            at = line + output_line(example, source)
            if message := self.verdict(name, at, prompt_wants(example), got):
                return f"{message}\n>>> {example.source}"
        return None

    def verdict(self, name: str, line: int, want: str, got: str) -> str | None:
        """None where `got` is what is shown, else a message that points at the difference."""
        want, got = tidy(want), tidy(got)
        verdict = compare_output(want, got)
        if verdict == SAME:
            return None
        wants, gots = want.split("\n"), got.split("\n")
        same = 0
        while same < min(len(wants), len(gots)) and wants[same] == gots[same]:
            same += 1
        where = f"{name}:{line + min(same, max(len(wants) - 1, 0))}"
        if verdict == NEAR and self._tolerate(where):
            return None
        if not want:
            return f"{where}: shows something, but no ```output fence follows\nGot:\n{got}"
        return f"{where}: the output differs\nExpected:\n{want}\nGot:\n{got or '(nothing)'}"

    def _tolerate(self, where: str) -> bool:
        """Off the pinned platform a last digit may differ by one; it is counted."""
        if not self.pinned:
            self.near.append(where)
        return not self.pinned

    def _draw(self, sheet: Sheet, src: str) -> None:
        svg = sheet.run.figures[src]
        path = sheet.page.path.parent / src
        if not path.exists() or path.read_text("utf-8") != svg:  # unchanged files wake no server
            path.parent.mkdir(exist_ok=True)
            path.write_text(svg, "utf-8")
        sheet.figures[src] = ledger.digest(svg)

    def _enter(self, sheet: Sheet) -> str | None:
        """A page all of whose parts passed: its snippets run alone too, and it is written down."""
        page, start = sheet.page, time.perf_counter()
        try:
            sheet.runnables = slices.runnables(page, sheet.run, self.root)
        except slices.RunnableError as error:
            ledger.forget(self.root, page.path)
            return str(error)
        finally:
            self.slicing += time.perf_counter() - start
        ledger.write(
            self.root,
            page.path,
            snippets=sum(not s.notest for s in page.snippets),
            figures=sheet.figures,
            explorables=sheet.run.given,
            notest=[[s.line, s.notest] for s in page.snippets if s.notest],
            outputs=[sheet.run[s].outputs for s in page.snippets],
            pinned=self.pinned,
            runnable=sheet.runnables,
            **sheet.seen,
        )
        return None

    def report(self) -> tuple[dict[str, int], list[str]]:
        """Counts of what was run (times in ms), and what a reader of the summary must know."""
        ran = [sheet for sheet in self.sheets if sheet.run.shown]
        snippets = [(sheet.run.name, s) for sheet in ran for s in sheet.page.snippets]
        hidden = [(name, s) for name, s in snippets if s.notest]
        counts = {
            "pages": len(ran),
            "snippets": len(snippets) - len(hidden),
            "numbers": sum(len(sheet.page.numbers) for sheet in ran),
            "figures": sum(len(sheet.run.figures) for sheet in ran),
            "explorables": sum(len(sheet.run.given) for sheet in ran),
            "docstrings": self.docstrings,
            "code": round(1000 * sum(sheet.run.seconds for sheet in ran)),
            "overhead": round(1000 * self.overhead),
            "slicing": round(1000 * self.slicing),
            **dict.fromkeys(slices.KINDS, 0),
            **Counter(item["kind"] for sheet in ran for item in sheet.runnables),
        }
        notes = [f"not run: {name}:{s.line}: {s.notest}" for name, s in hidden]
        if not self.pinned and ran:
            notes.append(f"not the pinned platform: {len(self.near)} last digits differ by one")
            notes += [f"near: {where}" for where in self.near]
        for sheet in ran:
            if sheet.edits:
                notes.append(f"updated: {sheet.run.name}: {len(sheet.edits)} changes")
        return counts, notes + self.notes

    # Sybil's parser for the docstrings of the package

    def docstring(self, document: Document) -> Iterator[Region]:
        if match := re.search(r"^[ \t]*>>> ", document.text, re.M):
            yield Region(
                match.start(), len(document.text), document.text[match.start() :], self.prompt
            )

    def prompt(self, example: Example) -> str | None:
        """A docstring's examples run in a namespace of their own, as pasted into an empty file."""
        self.docstrings += 1
        name = Path(example.path).resolve().relative_to(self.root).as_posix()
        leaks: list[str] = []
        try:
            with fresh_state(leaks):
                prompts = run_prompts(example.parsed, {"__name__": "__main__"}, io.StringIO())
        except PromptError as error:
            at = example.line + error.example.lineno
            return f"{name}:{at}: {error}\n>>> {error.example.source}"
        return self._judge_prompts(name, example.line, example.parsed, prompts)


class DocStrings(PythonDocStringDocument):
    """Docstrings only, without importing the module's names for them."""

    def __init__(self, text: str, path: str) -> None:
        Document.__init__(self, text, path)


def is_pinned(root: Path) -> bool:
    """Linux on x86-64 with the Python of .python-version and the torch of constraints.txt."""

    def pin(name: str, pattern: str, default: str) -> str:
        path = root / name
        match = re.search(pattern, path.read_text("utf-8"), re.M) if path.exists() else None
        return match[1] if match else default

    python = ".".join(platform.python_version_tuple()[:2])
    torch = ledger.torch_version()
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and pin(".python-version", r"^(\d+\.\d+)", python) == python
        and pin("constraints.txt", r"^torch==([\w.]+)", torch) == torch
    )


BOOK = pytest.StashKey[Book]()
COLLECT = pytest.StashKey[Callable[..., Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("book")
    group.addoption("--update", action="store_true", help="rewrite the pages' outputs and numbers")
    group.addoption(
        "--unpinned", action="store_true", help="judge as on a platform other than the pinned one"
    )


def pytest_configure(config: pytest.Config) -> None:
    root = config.rootpath.resolve()
    if getattr(config.option, "dist", None) == "load":
        config.option.dist = "loadfile"  # a page's snippets stay together
    if config.getoption("--update") and hasattr(config, "workerinput"):
        raise pytest.UsageError("--update rewrites pages: run it without -n")
    pinned = is_pinned(root) and not config.getoption("--unpinned")
    book = Book(root, config.getoption("--update"), pinned)
    config.stash[BOOK] = book
    pages = Sybil([book], path=str(root), pattern="*.md", name="page")
    docstrings = Sybil(
        [book.docstring],
        path=str(root / "attention"),
        pattern="*.py",
        document_types={".py": DocStrings},
        name="docstring",
    )
    from sybil.integration.pytest import pytest_integration

    config.stash[COLLECT] = pytest_integration(pages, docstrings)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    collector: pytest.Collector | None = parent.config.stash[COLLECT](file_path, parent)
    return collector


def pytest_sessionfinish(session: pytest.Session) -> None:
    book = session.config.stash[BOOK]
    for sheet in book.sheets:
        if sheet.edits:
            try:
                update.write(sheet.page.path, sheet.page.text, sheet.edits)
            except ValueError as error:
                sheet.edits.clear()
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
                book.notes.append(f"not updated: {error}")
    if hasattr(session.config, "workeroutput"):  # a worker of xdist tells its controller
        session.config.workeroutput["book"] = book.report()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended: its part of the book joins that of the others."""
    book = node.config.stash[BOOK]
    counts, notes = getattr(node, "workeroutput", {}).get("book", ({}, []))
    book.heard.update(counts)
    book.notes += notes


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    book = config.stash[BOOK]
    counts, notes = book.report()
    counts = book.heard + Counter(counts)
    if not counts["pages"]:
        return
    terminalreporter.section("the book")
    each = counts["overhead"] / max(counts["snippets"], 1)
    terminalreporter.write_line(
        f"{counts['pages']} pages, {counts['snippets']} snippets, {counts['numbers']} numbers, "
        f"{counts['figures']} figures ({counts['explorables']} to play with), "
        f"{counts['docstrings']} docstrings; "
        f"their code took {counts['code'] / 1000:.2f} s, the checker {each:.1f} ms a snippet"
    )
    if any(counts[kind] for kind in slices.KINDS):
        kinds = ", ".join(f"{counts[kind]} {what}" for kind, what in slices.KINDS.items())
        terminalreporter.write_line(
            f"to copy and run: {kinds}; running each took {counts['slicing'] / 1000:.2f} s"
        )
    for note in notes:
        terminalreporter.write_line(note)
