"""pytest's door to the book: Sybil finds the examples of each page, `run` runs them.

Each snippet, number and page-wide check is one test. `--update` rewrites what a page shows from
what it gave. What a page gave, or where it failed, is written into the ledger; the summary says
what was run, what was not, and what agreed only to the last digit. A lab is one test, which leaves
the executed copy that the site shows. `--arithmetic all` runs the same pages under several
arithmetics and lists what is not the same in all of them.
"""

import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.document import PythonDocStringDocument

from . import arithmetic, lab, ledger, render, sameness, slices, update
from .compare import NEAR, SAME, as_recorded, compare_number, compare_output, show, tidy
from .edges import knife_edges
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
    failures: list[str] = field(default_factory=list)
    near: list[int] = field(default_factory=list)  # lines whose last digit differs by one


@dataclass
class Book:
    """The state of one test run."""

    root: Path
    updating: bool = False
    pinned: bool = True  # whether each output must match to the letter
    arithmetic: str = ""  # for a reader
    wrong_answers: Mapping[tuple[str, int], list[str]] = field(default_factory=dict)
    record: Path | None = None  # a folder for what each page gave, and nothing is judged
    executes_labs: bool = True
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
        shown = self._run(sheet, part)
        if self.record:
            if part is None:
                sameness.write(self.record, sheet.page, sheet.run)
            return None
        if shown and shown.skipped:
            pytest.skip(shown.skipped)
        start = time.perf_counter()
        message: str | None = f"{sheet.run.name}:{part.line if part else 1}: the checker failed"
        try:
            message = self._judge(sheet, part, shown)
            if not message:
                sheet.passed.add(part.start if part else len(sheet.page.text))
                if sheet.passed == sheet.parts and not self.updating:
                    message = self._enter(sheet)
        finally:
            self.overhead += time.perf_counter() - start
            if message and not self.updating:
                sheet.failures.append(message)
                ledger.fail(self.root, sheet.page.path, sheet.failures)
        if shown and shown.absent:
            pytest.skip(f"needs {shown.absent}, which is not installed")
        return message

    def _run(self, sheet: Sheet, part: Part) -> Shown | None:
        if not sheet.run.shown:
            sheet.run.run()
        return sheet.run[part] if part else None

    def _judge(self, sheet: Sheet, part: Part, shown: Shown | None) -> str | None:
        page, run = sheet.page, sheet.run
        if part is None or shown is None:
            return self._judge_page(sheet)
        if shown.absent:
            return None
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
                return self._edge(run, part, shown)
            except Exception as error:
                return f"{run.name}:{part.line}: {describe(error)}"
        if isinstance(part, Number):
            return self.judge_number(sheet, part, shown.value) or self._edge(run, part, shown)
        if part.fence.lang == INTERACTIVE:
            return self.judge_prompts(sheet, part, shown.prompts)
        if part.is_listing or part.notest:
            return None
        if part.figure:
            self._draw(sheet, part.figure)
        line = page.line_at(part.output.body[0]) if part.output else part.line
        message = self.verdict(run.name, line, part.expected, shown.text, sheet.near)
        return message or self._edge(run, part, shown)

    def _edge(self, run: Run, part: Snippet | Number, shown: Shown) -> str | None:
        """Why what is shown hangs on the arithmetic; asked under the pinned one alone."""
        if not self.pinned:
            return None
        text = ""
        if isinstance(part, Number):
            text = show(part.text, shown.value)
        elif len(shown.outputs) == 1 and not part.figure:
            text = shown.outputs[0].value or ""
        edges = dict.fromkeys([*knife_edges(text, shown.value), *shown.edges])
        return "\n".join(f"{run.name}:{part.line}: {edge}" for edge in edges) or None

    def _judge_page(self, sheet: Sheet) -> str | None:
        page, run = sheet.page, sheet.run
        findings, sheet.seen = render.check(page, self.root)
        found = [(p.line, p.message) for p in page.problems] + [tuple(f) for f in findings]
        found += [(1, f"the page changes {name} for all others") for name in run.leaks]
        if not run.broken and not run.absent:
            found += self._judge_checks(sheet)
        return "\n".join(f"{run.name}:{line}: {text}" for line, text in sorted(found)) or None

    def _judge_checks(self, sheet: Sheet) -> Iterator[tuple[int, str]]:
        """The check of an exercise must not take a wrong answer for right."""
        page, run = sheet.page, sheet.run
        for number, exercise in enumerate(page.exercises, start=1):
            for answer in self.wrong_answers.get((page.path.stem, number), []):
                try:
                    shown = run.answered(exercise, answer)
                    told = shown.error or "the check takes it for right"
                    refused = not shown.error and tidy(shown.text) != tidy(exercise.check.expected)
                except Exception as error:
                    told, refused = describe(error), False
                if not refused:
                    yield exercise.check.line, f"a wrong answer: {told}\n{answer}"

    def judge_number(self, sheet: Sheet, number: Number, value: Any) -> str | None:
        """None where `value` rounds to what is shown, else a message that points at it."""
        name = sheet.run.name
        where = f"{name}:{number.line}"
        try:
            verdict = compare_number(number.text, value)
            got = show(number.text, value)
        except Exception as error:
            return f"{where}: {error}"
        if verdict == SAME or (verdict == NEAR and self._tolerate(where, number.line, sheet.near)):
            return None
        return f"{where}: {number.expr}\nExpected: {number.text}\nGot:      {got}"

    def judge_prompts(self, sheet: Sheet, part: Snippet, prompts: list[Any]) -> str | None:
        """None where each prompt gave what is shown under it."""
        return self._prompts(sheet.run.name, part.line, part.fence.source, prompts, sheet.near)

    def _prompts(
        self, name: str, line: int, source: str, prompts: list[Any], near: list[int]
    ) -> str | None:
        for example, got in prompts:
            at = line + output_line(example, source)
            if message := self.verdict(name, at, prompt_wants(example), got, near):
                return f"{message}\n>>> {example.source}"
        return None

    def verdict(self, name: str, line: int, want: str, got: str, near: list[int]) -> str | None:
        """None where `got` is what is shown, else a message that points at the difference.

        Where only last digits differ, and may, their line is added to `near`.
        """
        want, got = tidy(want), tidy(got)
        verdict = compare_output(want, got)
        if verdict == SAME:
            return None
        wants, gots = want.split("\n"), got.split("\n")
        same = 0
        while same < min(len(wants), len(gots)) and wants[same] == gots[same]:
            same += 1
        at = line + min(same, max(len(wants) - 1, 0))
        where = f"{name}:{at}"
        if verdict == NEAR and self._tolerate(where, at, near):
            return None
        if not want:
            return f"{where}: shows something, but no ```output fence follows\nGot:\n{got}"
        return f"{where}: the output differs\nExpected:\n{want}\nGot:\n{got or '(nothing)'}"

    def _tolerate(self, where: str, line: int, near: list[int]) -> bool:
        """Off the pinned arithmetic a last digit may differ by one; it is counted."""
        if not self.pinned:
            self.near.append(where)
            near.append(line)
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
            values=[as_recorded(n.text, sheet.run[n].value) for n in page.numbers],
            arithmetic=self.arithmetic,
            near=sorted(sheet.near),
            absent=sheet.run.absent,
            absent_snippets=sum(bool(sheet.run[s].absent) for s in page.snippets),
            absent_numbers=sum(bool(sheet.run[n].absent) for n in page.numbers),
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
            notes.append(f"{self.arithmetic}: {len(self.near)} last digits differ by one")
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
        if self.record:
            sameness.write_prompts(self.record, name, example.line, example.parsed, prompts)
            return None
        return self._prompts(name, example.line, example.parsed, prompts, [])


class LabFile(pytest.File):
    """A notebook under docs/, one test."""

    def collect(self) -> list[pytest.Item]:
        return [LabItem.from_parent(self, name="lab")]


class LabItem(pytest.Item):
    """Each cell of a lab runs to its end; the site shows the copy that is made here."""

    def runtest(self) -> None:
        lab.executed(self.config.rootpath.resolve(), self.path)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, lab.LabError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.path.name


class DocStrings(PythonDocStringDocument):
    """Docstrings only, without importing the module's names for them."""

    def __init__(self, text: str, path: str) -> None:
        Document.__init__(self, text, path)


BOOK = pytest.StashKey[Book]()
COLLECT = pytest.StashKey[Callable[..., Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("book")
    group.addoption("--update", action="store_true", help="rewrite the pages' outputs and numbers")
    group.addoption(
        "--arithmetic",
        choices=[*arithmetic.ARITHMETICS, arithmetic.ALL],
        default=arithmetic.PINNED,
        help="what the pages are run under; `all` lists what is not the same under each",
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    class Hooks:
        @pytest.hookspec(firstresult=True)
        def pytest_wrong_answers(self) -> Any:
            """Wrong answers to exercises, by the page's stem and the exercise's number."""

    pluginmanager.add_hookspecs(Hooks)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if config.getoption("--arithmetic") == arithmetic.ALL:
        return sameness.main(config.invocation_params.args)
    return None


def pytest_configure(config: pytest.Config) -> None:
    root = config.rootpath.resolve()
    if config.getoption("--arithmetic") != arithmetic.ALL:
        arithmetic.use(config.getoption("--arithmetic"))
    if getattr(config.option, "dist", None) == "load":
        config.option.dist = "loadfile"  # a page's snippets stay together
    if config.getoption("--update") and hasattr(config, "workerinput"):
        raise pytest.UsageError("--update rewrites pages: run it without -n")
    book = Book(
        root,
        updating=config.getoption("--update"),
        pinned=arithmetic.is_pinned(root),
        arithmetic=arithmetic.describe(root),
        wrong_answers=config.hook.pytest_wrong_answers() or {},
        record=sameness.folder(),
        executes_labs=config.getoption("--arithmetic") == arithmetic.PINNED
        and not (config.getoption("--update") or sameness.folder()),
    )
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
    book = parent.config.stash[BOOK]
    if file_path.suffix == ".ipynb" and file_path.is_relative_to(book.root / "docs"):
        return LabFile.from_parent(parent, path=file_path) if book.executes_labs else None
    collector: pytest.Collector | None = parent.config.stash[COLLECT](file_path, parent)
    return collector


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Labs come first: the longest is as long as many pages, and would run alone at the end."""
    items.sort(key=lambda item: not isinstance(item, LabItem))


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
