"""Run a page as a notebook: one namespace, in order, each snippet showing what a notebook shows.

What a snippet shows is what it printed, then the value of a last bare expression; where it
raises and says so, the error's type and message. Tracebacks show the page's own lines. A page
runs whole, once, when any of its examples is first asked for: so examples may run in any order.
"""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import linecache
import random
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .page import INTERACTIVE, Number, Page, Snippet, listing

PENDING = object()
TRACEBACK = "Traceback (most recent call last):\n    ...\n"


@dataclass
class Shown:
    """What a snippet or a number gave: `text`/`value`, or why it gave nothing."""

    text: str = ""
    value: Any = None
    error: str | None = None  # a message that points at file and line
    skipped: str | None = None
    seconds: float = 0.0
    prompts: list[tuple[doctest.Example, str]] = field(default_factory=list)


class Run:
    """The results of a page, by the start of each snippet and number."""

    def __init__(self, page: Page, root: Path) -> None:
        self.page, self.root = page, root
        self.shown: dict[int, Shown] = {}
        self.namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self.figures: dict[str, str] = {}
        self.seconds = 0.0
        self._broken: str | None = None
        name = page.path.resolve()
        self.name = str(name.relative_to(root)) if name.is_relative_to(root) else str(name)

    def __getitem__(self, part: Snippet | Number) -> Shown:
        if not self.shown:
            code = "".join(snippet.fence.source for snippet in self.page.snippets)
            if "torch" in code or "attention" in code:  # before the clock starts
                with contextlib.suppress(ImportError):
                    import torch  # noqa: F401
            with fresh_state():
                start = time.perf_counter()
                self._run_page()
                self.seconds = time.perf_counter() - start
        return self.shown[part.start]

    def _run_page(self) -> None:
        linecache.checkcache(str(self.page.path))
        late: list[Number] = []
        parts: list[Snippet | Number] = [*self.page.snippets, *self.page.numbers]
        for part in sorted(parts, key=lambda part: part.start):
            if self._broken:
                self.shown[part.start] = Shown(skipped=self._broken)
            elif isinstance(part, Number):
                self.shown[part.start] = shown = self._number(part, may_wait=True)
                if shown.value is PENDING:
                    late.append(part)
            else:
                start = time.perf_counter()
                self.shown[part.start] = shown = self._snippet(part)
                shown.seconds = time.perf_counter() - start
        for number in late:
            if self._broken:
                self.shown[number.start] = Shown(skipped=self._broken)
            else:
                self.shown[number.start] = self._number(number, may_wait=False)

    def _number(self, number: Number, *, may_wait: bool) -> Shown:
        where = f"{self.name}:{number.line}"
        try:
            return Shown(value=eval(number.expr, self.namespace))
        except NameError as error:
            if may_wait:
                return Shown(value=PENDING)
            return Shown(error=f"{where}: {number.expr!r}: {error}, here or at the end of the page")
        except Exception as error:
            return Shown(error=f"{where}: {number.expr!r} raised {type(error).__name__}: {error}")

    def _snippet(self, snippet: Snippet) -> Shown:
        if snippet.notest:
            return Shown()
        if snippet.fence.lang == INTERACTIVE:
            return self._prompts(snippet)
        if snippet.is_listing:
            return self._listing(snippet)
        printed, value = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(printed):
                value = self._execute(snippet)
                if value is not None and not snippet.figure:
                    print(repr(value))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if snippet.raises and snippet.raises in {t.__name__ for t in type(error).__mro__[:-2]}:
                return Shown(text=printed.getvalue() + describe(error) + "\n")
            return self._fail(snippet, error)
        shown = Shown(text=printed.getvalue(), value=value)
        where = f"{self.name}:{snippet.line}"
        draws = hasattr(value, "_repr_svg_")
        if snippet.raises:
            shown.error = f"{where}: expected {snippet.raises}, but nothing was raised"
        elif snippet.figure and not draws:
            shown.error = f"{where}: {snippet.figure} follows, but the last value draws nothing"
        elif draws and not snippet.figure:
            shown.error = f"{where}: the last value draws itself, but no ![…](figures/…svg) follows"
        elif snippet.figure:
            self.figures[snippet.figure] = value._repr_svg_()
        return shown

    def _execute(self, snippet: Snippet) -> Any:
        """Run all but a last expression, whose value is returned."""
        tree = self._parse(snippet.fence.source, snippet)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        path = str(self.page.path)
        exec(compile(tree, path, "exec"), self.namespace)
        if isinstance(last, ast.Expr):
            return eval(compile(ast.Expression(last.value), path, "eval"), self.namespace)
        return None

    def _parse(self, source: str, snippet: Snippet) -> ast.Module:
        tree = ast.parse(source, str(self.page.path))  # a syntax error counts lines in the snippet
        ast.increment_lineno(tree, snippet.line - 1)
        for node in ast.walk(tree):  # so that carets stand under the page's own line
            if isinstance(node, (ast.expr, ast.stmt)):
                node.col_offset += len(snippet.fence.prefix)
                node.end_col_offset = (node.end_col_offset or 0) + len(snippet.fence.prefix)
        return tree

    def _prompts(self, snippet: Snippet) -> Shown:
        try:
            return Shown(prompts=run_prompts(snippet.fence.source, self.namespace, "<prompt>"))
        except PromptError as error:
            line = snippet.line + error.example.lineno
            message = f"{self.name}:{line}: {describe(error.cause)}\n>>> {error.example.source}"
            return self._broken_by(snippet, message)

    def _listing(self, snippet: Snippet) -> Shown:
        """A section of the package counts as run: the page's names become the package's objects."""
        where = f"{self.name}:{snippet.line}"
        try:
            source = listing(snippet.fence.source, self.root)
            path = self.root / snippet.fence.source.split('"')[1].split(":")[0]
            module = importlib.import_module(
                ".".join(path.relative_to(self.root).with_suffix("").parts)
            )
        except (LookupError, ImportError, ValueError) as error:
            return self._broken_by(snippet, f"{where}: {error}")
        text = inspect.getsource(module)
        names = [n for n in ast.parse(source).body if hasattr(n, "name")]
        if source.strip() not in inspect.cleandoc(text) or not names:
            return self._broken_by(
                snippet, f"{where}: defines nothing of {module.__name__}, or not as imported"
            )
        for node in names:
            self.namespace[node.name] = getattr(module, node.name)
        return Shown(value=source)

    def _fail(self, snippet: Snippet, error: BaseException) -> Shown:
        frames = traceback.TracebackException.from_exception(error)
        path = str(self.page.path)
        inside = [i for i, frame in enumerate(frames.stack) if frame.filename == path]
        line = frames.stack[inside[-1]].lineno if inside else snippet.line
        if isinstance(error, SyntaxError):
            line = snippet.line - 1 + (error.lineno or 1)
            report = f"{describe(error)}\n    {(error.text or '').rstrip()}"
        else:
            frames.stack = traceback.StackSummary.from_list(
                frames.stack[inside[0] :] if inside else []
            )
            report = "".join(frames.format())
        return self._broken_by(snippet, f"{self.name}:{line}: {type(error).__name__}\n{report}")

    def _broken_by(self, snippet: Snippet, message: str) -> Shown:
        self._broken = f"the snippet at line {snippet.line} of this page failed"
        return Shown(error=message)


class PromptError(Exception):
    """An interactive example raised what it does not show."""

    def __init__(self, example: doctest.Example, cause: Exception) -> None:
        self.example, self.cause = example, cause


def run_prompts(
    source: str, namespace: dict[str, Any], path: str
) -> list[tuple[doctest.Example, str]]:
    """Each `>>>` example of `source` with what it gave, as a doctest writes it."""
    results = []
    for example in doctest.DocTestParser().get_examples(source):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(example.source, path, "single"), namespace)
            got = printed.getvalue()
        except Exception as error:
            if not example.exc_msg:
                raise PromptError(example, error) from error
            got = f"{printed.getvalue()}{TRACEBACK}{describe(error)}\n"
        results.append((example, got))
    return results


def prompt_wants(example: doctest.Example) -> str:
    """What an example expects, written as `run_prompts` writes what it gave."""
    if example.exc_msg:
        return f"{TRACEBACK}{example.exc_msg}"
    return example.want.replace("<BLANKLINE>\n", "\n")


def describe(error: BaseException) -> str:
    """`Type: message`, as the last line of a traceback says it."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextlib.contextmanager
def fresh_state() -> Iterator[None]:
    """What a page changes outside its namespace starts fresh and does not outlive the page.

    Randomness starts from a seed that nobody knows, so that an unseeded page cannot pass twice.
    """
    python = random.getstate()
    random.seed()
    with contextlib.ExitStack() as stack:
        stack.callback(random.setstate, python)
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
            numpy.random.seed()
        if torch := sys.modules.get("torch"):
            stack.callback(torch.set_rng_state, torch.get_rng_state())
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
            stack.callback(torch.set_printoptions, profile="default")
            torch.seed()
        yield
