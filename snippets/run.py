"""Run a page as a notebook: one namespace, in order, each snippet showing what a notebook shows.

What a snippet shows is what it printed, then the value of a last bare expression; where it
raises and says so, the error's type and message. Tracebacks show the page's own lines. A page
runs whole, once, when any of its examples is first asked for: so examples may run in any order.
"""

import ast
import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import linecache
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from . import explore
from .edges import HEARD, Listen, listener
from .exercises import Exercise
from .page import INTERACTIVE, Number, Page, Snippet, listing
from .state import as_main, capture, fresh_state, no_loose_ends
from .units import Unit, Watch, units

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SOURCE = "<snippet>"  # the file of what was parsed, whose lines count from its own first
PENDING = object()
TRACEBACK = "Traceback (most recent call last):\n    ...\n"


class Output(NamedTuple):
    """What a cell of a notebook holds, told apart: printed text, a value's, an error's."""

    printed: str = ""
    value: str | None = None
    error: str | None = None


@dataclass
class Shown:
    """What a snippet or a number gave: `text`/`value`, or why it gave nothing."""

    text: str = ""
    value: Any = None
    error: str | None = None  # a message that points at file and line
    skipped: str | None = None
    absent: str | None = None  # the packages that it requires and that are not installed
    prompts: list[tuple[doctest.Example, str]] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)  # the statements, with what each changed
    as_str: bool = False  # whether `print(value)` says what `repr(value)` says
    edges: list[str] = field(default_factory=list)  # digits that hang on the arithmetic
    outputs: list[Output] = field(default_factory=list)  # one for each input: `>>>` has many


class Run:
    """The results of a page, by the start of each snippet and number."""

    def __init__(self, page: Page, root: Path) -> None:
        self.page, self.root = page, root
        self.shown: dict[int, Shown] = {}
        self.module = types.ModuleType("__main__")  # pickle and typing look names up in it
        self.namespace = self.module.__dict__
        self.printed = io.StringIO()  # one for the page: a logger may hold on to it
        self.figures: dict[str, str] = {}
        self.given: dict[str, list[str]] = {}  # to explorables, by their figures
        self.leaks: list[str] = []
        self.seconds = 0.0
        self.broken: str | None = None
        name = page.path.resolve()
        self.name = str(name.relative_to(root)) if name.is_relative_to(root) else str(name)

    def __getitem__(self, part: Snippet | Number) -> Shown:
        if not self.shown:
            self.run()
        return self.shown[part.start]

    @property
    def absent(self) -> str:
        """The packages for want of which a part of the page was not run."""
        return ", ".join(sorted({shown.absent for shown in self.shown.values() if shown.absent}))

    def run(self) -> None:
        """Run the whole page, once."""
        code = "".join(snippet.fence.source for snippet in self.page.snippets)
        if "torch" in code or "attention" in code:  # before the clock starts
            with contextlib.suppress(ImportError):
                import torch  # noqa: F401
        linecache.checkcache(str(self.page.path))
        with fresh_state(self.leaks), as_main(self.module):
            start = time.perf_counter()
            self._run_page()
            self.seconds = time.perf_counter() - start

    def answered(self, exercise: Exercise, answer: str) -> Shown:
        """What the check of an exercise shows of an answer in the place of the solution."""
        other = Run(self.page, self.root)
        other.namespace.update(self.namespace)
        for name in exercise.names:
            del other.namespace[name]
        with fresh_state([]), as_main(other.module):
            exec(answer, other.namespace)
            return other._run_part(exercise.check)

    def _run_page(self) -> None:
        late: list[Number] = []
        parts: list[Snippet | Number] = [*self.page.snippets, *self.page.numbers]
        for part in sorted(parts, key=lambda part: part.start):
            self.shown[part.start] = shown = self._run_part(part)
            if isinstance(part, Number) and shown.value is PENDING:
                late.append(part)
        for number in late:
            self.shown[number.start] = self._run_part(number, may_wait=False)

    def _run_part(self, part: Snippet | Number, *, may_wait: bool = True) -> Shown:
        """Whatever happens in a part, it ends in a message that points at the part."""
        if self.broken:
            return Shown(skipped=self.broken)
        try:
            if isinstance(part, Number):
                return self._number(part, may_wait=may_wait)
            with no_loose_ends():
                return self._snippet(part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._fail(part, error)

    def _number(self, number: Number, *, may_wait: bool) -> Shown:
        where = f"{self.name}:{number.line}"
        try:
            return Shown(value=eval(number.expr, dict(self.namespace)))  # it may bind no name
        except NameError as error:
            if may_wait:
                return Shown(value=PENDING)
            if absent := self.absent:  # and so are the names of what was not run
                return Shown(absent=absent)
            return Shown(error=f"{where}: {number.expr!r}: {error}, here or at the end of the page")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Shown(error=f"{where}: {number.expr!r} raised {describe(error)}")

    def _snippet(self, snippet: Snippet) -> Shown:
        if snippet.notest:
            return Shown()
        if absent := [name for name in snippet.requires if not importlib.util.find_spec(name)]:
            return Shown(absent=", ".join(absent))
        if snippet.fence.lang == INTERACTIVE:
            told: list[Output] = []
            source = snippet.fence.source
            prompts = run_prompts(source, self.namespace, self.printed, told)
            sources = [units(example.source) for example, _ in prompts if not example.exc_msg]
            every = [unit for each in sources for unit in each]
            return Shown(prompts=prompts, outputs=told, units=every)
        if snippet.is_listing:
            return self._listing(snippet)
        shown = Shown()
        with capture(self.printed) as printed:
            self.namespace[HEARD] = listener(shown.edges)
            try:
                value = shown.value = self._execute(snippet, shown.units)
            except (Exception, SystemExit) as error:
                if snippet.raises not in {t.__name__ for t in type(error).__mro__[:-2]}:
                    raise
                shown.text = printed.getvalue() + describe(error) + "\n"
                shown.outputs = [Output(printed.getvalue(), error=describe(error))]
                return shown
            shown.text = printed.getvalue()
            shown.outputs = [Output(shown.text, None if value is None else repr(value))]
            if value is not None and not snippet.figure:
                shown.text += repr(value) + "\n"
                shown.as_str = str(value) == repr(value)
        where = f"{self.name}:{snippet.line}"
        draws = hasattr(type(value), "_repr_svg_")
        if snippet.raises:
            shown.error = f"{where}: expected {snippet.raises}, but nothing was raised"
        elif snippet.check and not shown.text.strip():
            shown.error = f"{where}: a check that shows nothing cannot tell right from wrong"
        elif snippet.figure and not draws:
            shown.error = f"{where}: {snippet.figure} follows, but the last value draws nothing"
        elif draws and not snippet.figure:
            shown.error = f"{where}: the last value draws itself, but no ![…](figures/…svg) follows"
        elif snippet.figure:
            self.figures[snippet.figure] = str(value._repr_svg_())
            if snippet.explorable:
                shown.error = self._give(snippet.figure, snippet.explorable)
        return shown

    def _give(self, figure: str, one: explore.Explorable) -> str | None:
        """Keep what an explorable begins with; if there is nothing, say why."""
        where = f"{self.name}:{one.line}"
        if one.name not in explore.names(self.root):
            return f"{where}: there is no explorable called {one.name!r}"
        try:
            given = explore.as_json(eval(one.given, dict(self.namespace)))
        except Exception as error:
            return f"{where}: {one.given!r} raised {describe(error)}"
        self.given[figure] = [one.name, given]
        return None

    def _execute(self, snippet: Snippet, done: list[Unit]) -> Any:
        """Run statement by statement, each watched; the value of a last expression is returned."""
        tree = ast.parse(snippet.fence.source, SOURCE)
        ast.increment_lineno(tree, snippet.line - 1)
        for node in ast.walk(tree):  # so that carets stand under the page's own line
            if isinstance(node, (ast.expr, ast.stmt)):
                node.col_offset += len(snippet.fence.prefix)
                node.end_col_offset = (node.end_col_offset or 0) + len(snippet.fence.prefix)
        ast.fix_missing_locations(Listen().visit(tree))
        path = str(self.page.path)
        compile(tree, path, "exec")  # what no statement alone would show to be wrong
        rest, value, watch = tree.body, None, Watch(self.namespace)
        for unit in units(snippet.fence.source):
            nodes, rest = rest[: len(unit.nodes)], rest[len(unit.nodes) :]
            last = nodes.pop() if not rest and isinstance(nodes[-1], ast.Expr) else None
            exec(compile(ast.Module(nodes, []), path, "exec"), self.namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), path, "eval"), self.namespace)
            unit.changes = watch.changes()
            unit.opaque = unit.is_bare_call and value is None and not unit.changes
            done.append(unit)
        return value

    def _listing(self, snippet: Snippet) -> Shown:
        """A section of the package counts as run: the page's names become the package's objects."""
        source = listing(snippet.fence.source, self.root)
        place, names = listed(snippet.fence.source, self.root)
        module = importlib.import_module(place)
        if not names:
            raise LookupError(f"{snippet.fence.source.strip()} defines no function and no class")
        shown = Shown(value=source)
        public = importlib.import_module(module.__name__.partition(".")[0])
        for name in names:
            self.namespace[name] = thing = getattr(module, name)
            while not inspect.isroutine(thing) and hasattr(thing, "fn"):
                thing = thing.fn  # Triton's wrap a function
            if inspect.getsource(thing).strip() not in source:
                raise LookupError(f"{name} of {module.__name__} is not what this section shows")
            home = public if getattr(public, name, None) is thing else module
            shown.units += units(f"from {home.__name__} import {name}")
        return shown

    def _fail(self, part: Snippet | Number, error: BaseException) -> Shown:
        """The message for a part that raised: its own line, and the traceback from there on."""
        line, report = part.line, describe(error)
        path = str(self.page.path)
        frames = traceback.TracebackException.from_exception(error)
        inside = [i for i, frame in enumerate(frames.stack) if frame.filename == path]
        if isinstance(error, PromptError):
            line += error.example.lineno
            report = f"{describe(error.cause)}\n>>> {error.example.source}"
        elif isinstance(error, SyntaxError) and error.filename in (SOURCE, path):
            line = (error.lineno or 1) + (part.line - 1 if error.filename == SOURCE else 0)
            report += f"\n    {(error.text or '').rstrip()}"
        elif inside:
            line = frames.stack[inside[-1]].lineno or line
            frames.stack = traceback.StackSummary.from_list(frames.stack[inside[0] :])
            report = "".join(frames.format())
        self.broken = f"the snippet at line {part.line} of this page failed"
        return Shown(error=f"{self.name}:{line}: {type(error).__name__}\n{report}")


def listed(source: str, root: Path) -> tuple[str, list[str]]:
    """The module that a `--8<--` line shows a part of, and the names which that part defines."""
    path = Path(source.split('"')[1].split(":")[0])
    tree = ast.parse(listing(source, root))
    names = [node.name for node in tree.body if isinstance(node, DEFINITIONS)]
    return ".".join(path.with_suffix("").parts), names


class PromptError(Exception):
    """An interactive example raised what it does not show, or cannot be read."""

    def __init__(self, example: doctest.Example, cause: BaseException) -> None:
        super().__init__(describe(cause))
        self.example, self.cause = example, cause


def run_prompts(
    source: str,
    namespace: dict[str, Any],
    printed: io.StringIO,
    outputs: list[Output] | None = None,
) -> list[tuple[doctest.Example, str]]:
    """Each `>>>` example of `source` with what it gave, as a doctest writes it."""
    results, line = [], 0
    for piece in doctest.DocTestParser().parse(source):
        if isinstance(piece, str):
            if piece.strip():
                line += piece[: -len(piece.lstrip())].count("\n")
                stray = doctest.Example(piece.strip(), "", lineno=line)
                raise PromptError(stray, ValueError("text that is neither input nor its output"))
            line += piece.count("\n")
            continue
        line = piece.lineno + piece.source.count("\n") + piece.want.count("\n")
        if piece.exc_msg and piece.want != f"{TRACEBACK}{piece.exc_msg}":
            raise PromptError(
                piece, ValueError(f"write a traceback as {TRACEBACK!r} and its message")
            )
        with capture(printed):
            values: list[str] = []
            was, sys.displayhook = sys.displayhook, _show_in(printed, values)
            try:
                exec(compile(piece.source, SOURCE, "single"), namespace)
                got = printed.getvalue()
                output = Output(got)
                if values:  # a notebook shows the last one apart
                    output = Output(got.removesuffix(f"{values[-1]}\n"), values[-1])
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if not piece.exc_msg or not isinstance(error, Exception):
                    raise PromptError(piece, error) from error
                got = f"{printed.getvalue()}{TRACEBACK}{describe(error)}\n"
                output = Output(printed.getvalue(), error=describe(error))
            finally:
                sys.displayhook = was
        results.append((piece, got))
        if outputs is not None:
            outputs.append(output)
    return results


def _show_in(printed: io.StringIO, values: list[str]) -> Callable[[Any], None]:
    """What Python's prompt does with a value, without leaving it in `builtins._`."""

    def show(value: Any) -> None:
        if value is not None:
            values.append(repr(value))
            print(values[-1], file=printed)

    return show


def output_line(example: doctest.Example, source: str) -> int:
    """The line of `source`, from 0, on which the output of `example` stands or would stand."""
    lines = source.split("\n")
    at = example.lineno + example.source.count("\n")
    while at < len(lines) and lines[at].strip() == "...":
        at += 1
    return at


def prompt_wants(example: doctest.Example) -> str:
    """What an example expects, written as `run_prompts` writes what it gave."""
    if example.exc_msg:
        return f"{TRACEBACK}{example.exc_msg}"
    return example.want.replace("<BLANKLINE>\n", "\n")


def describe(error: BaseException) -> str:
    """`Type: message`, as the last line of a traceback says it."""
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:
        message = "<its message cannot be read>"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
