"""What must stand above a snippet for it to run alone, and the proof that this suffices.

The slice of a snippet holds the earlier statements of its page that bind a name it reads, that
change what such a name stands for, or that move the random numbers it draws. Then it runs, in a
fresh namespace, and must show what the page shows. Where it does not, the whole earlier page is
taken instead, and must pass in turn.
"""

import ast
import functools
import importlib.metadata
import io
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .exercises import compiles
from .page import INTERACTIVE, Page, Snippet, listing
from .render import squeeze
from .run import DEFINITIONS, Run, Shown, describe
from .state import as_main, capture, fresh_state, no_loose_ends
from .units import Unit, units

ALONE, SLICE, PAGE, NOT_RUN = "alone", "slice", "page", "notest"
KINDS = {  # and how the summary of a run counts them
    ALONE: "need nothing above them",
    SLICE: "a part of the page",
    PAGE: "the whole page above them",
    NOT_RUN: "not run",
}
OURS = "attention"
WIDTH = 79

Import = tuple[str, str, str]  # module, name (none of `import module`), name given to it


class RunnableError(Exception):
    """Not even with all earlier code does a snippet show, elsewhere, what it shows on its page."""


@dataclass(frozen=True)
class Runnable:
    """A snippet that can be pasted into an empty file."""

    block: str  # the snippet, as the reader sees it
    kind: str  # what stands above it: nothing, a slice, the whole page; or it was not run
    code: str
    shows: str  # what the file prints, or where it raises, the last line of that
    installs: list[str]
    needs: str = ""  # more than a Python: a GPU, several processes


def runnables(page: Page, run: Run, root: Path) -> list[dict[str, Any]]:
    """One for each snippet of a page that has run, in the page's order, for the ledger.

    What only a prompt shows, such as each value of a loop, has no file, and is left out.
    """
    found, before = [], list[Unit]()
    for snippet in page.snippets:
        shown = run.shown[snippet.start]
        if shown.absent:
            continue
        try:
            found.append(asdict(_runnable(snippet, shown, before, root)))
        except RunnableError as error:
            if snippet.fence.lang != INTERACTIVE:
                raise RunnableError(f"{run.name}:{snippet.line}: {error}") from None
        before += shown.units
    return found


def _runnable(snippet: Snippet, shown: Shown, before: list[Unit], root: Path) -> Runnable:
    source = snippet.fence.source
    block = squeeze(listing(source, root) if snippet.is_listing else source)
    needs = snippet.notest or snippet.fence.attrs.get("data-needs", "")
    candidates: list[tuple[str, list[Unit], list[Unit], bool]] = []
    if snippet.is_listing:
        above, own = _of_module(snippet, root)
        candidates = [(SLICE if above else ALONE, above, own, True)]
    elif not compiles(_plain(snippet)) or not units(_plain(snippet)):
        code = _plain(snippet)  # it has nothing to run
        return _tried(block, ALONE, code, shown, needs, root) or _refuse(code, shown)
    else:
        own = _own(snippet, shown)
        if snippet.notest:
            code = compose(before, own)
            return Runnable(block, NOT_RUN, code, "", installs(code, root), needs)
        above = needed(before, own)
        kind = SLICE if above else ALONE
        candidates += [(kind, above, own, True), (PAGE, before, own, True)]
        candidates += [(PAGE, before, own, False)]
    for kind, above, own, first in candidates:
        code = compose(above, own, imports_first=first)
        if found := _tried(block, kind, code, shown, needs, root):
            return found
    return _refuse(code, shown)


def _refuse(code: str, shown: Shown) -> Runnable:
    printed, error = execute(code)
    raise RunnableError(
        "shows something else when it is run again with all the code above it in an empty file; "
        f"does it depend on the time, on a file, or on random numbers without a seed?\n"
        f"Here:  {_wants(shown)!r:.300}\nThere: {printed + error!r:.300}"
    )


def _tried(
    block: str, kind: str, code: str, shown: Shown, needs: str, root: Path
) -> Runnable | None:
    printed, error = execute(code)
    printed_there, error_there = _wants(shown)
    same = printed == printed_there or (kind == PAGE and printed.endswith(printed_there))
    if not same or _no_line(error) != _no_line(error_there):
        return None
    return Runnable(block, kind, code, printed + error, installs(code, root), needs)


def _no_line(error: str) -> str:
    return re.sub(r"\bon line \d+", "", error).strip()


def _wants(shown: Shown) -> tuple[str, str]:
    """What a snippet printed on its page, with what it showed and a file prints; and its error."""
    drawn = hasattr(type(shown.value), "_repr_svg_") and not _can_save(shown.value)
    printed = ""
    for output in shown.outputs:
        printed += output.printed
        printed += f"{output.value}\n" if output.value is not None and not drawn else ""
    error = shown.outputs[-1].error if shown.outputs else None
    return printed, f"{error}\n" if error else ""


def _can_save(value: Any) -> bool:
    return hasattr(type(value), "_repr_svg_") and hasattr(value, "save")


def _plain(snippet: Snippet) -> str:
    """The snippet's code without prompts."""
    if snippet.fence.lang != INTERACTIVE:
        return snippet.fence.source
    return "".join(
        line[4:]
        for line in snippet.fence.source.splitlines(keepends=True)
        if line.startswith((">>> ", "... "))
    )


def _own(snippet: Snippet, shown: Shown) -> list[Unit]:
    """The snippet's statements, printing where a notebook would show."""
    own = units(_plain(snippet))
    for unit, seen in zip(own, shown.units, strict=False):  # up to where it raises
        unit.changes = seen.changes
    if snippet.fence.lang == INTERACTIVE:
        for unit, output in zip(own, shown.outputs, strict=False):
            if output.value is not None and isinstance(unit.nodes[-1], ast.Expr) and unit.is_value:
                unit.source = _printing(unit.source, "print(repr(", "))")
    elif own and shown.value is not None and isinstance(own[-1].nodes[-1], ast.Expr):
        if snippet.figure and _can_save(shown.value):
            name = Path(snippet.figure).name
            after = f'\nfigure.save("{name}")  # a picture to open\nprint(figure)'
            own[-1].source = _printing(own[-1].source, "figure = ", "") + after
        elif shown.as_str:
            own[-1].source = _printing(own[-1].source, "print(", ")")
        elif not snippet.figure:
            own[-1].source = _printing(own[-1].source, "print(repr(", "))")
    return own


def _printing(source: str, start: str, end: str) -> str:
    """`source` with its last statement, an expression, between `start` and `end`."""
    node = ast.parse(source).body[-1]
    lines = source.encode().split(b"\n")
    at = sum(len(line) + 1 for line in lines[: node.lineno - 1]) + node.col_offset
    to = sum(len(line) + 1 for line in lines[: (node.end_lineno or 1) - 1])
    to += node.end_col_offset or 0
    raw = source.encode()
    shown = raw[at:to].decode()
    call = ast.parse(f"f({shown})", mode="eval").body
    if start.endswith("(") and isinstance(call, ast.Call) and len(call.args) != 1:
        shown = f"({shown})"
    return raw[:at].decode() + start + shown + end + raw[to:].decode()


def needed(before: list[Unit], own: list[Unit]) -> list[Unit]:
    """The statements of `before` that `own` needs, and those that they need, in order."""
    every = [*before, *own]
    keep = set(range(len(before), len(every)))
    opaque = {i for i, unit in enumerate(before) if unit.opaque}
    todo = [(name, i) for i in keep | opaque for name in every[i].reads]
    todo += [(name, len(every)) for i in keep | opaque for name in every[i].later]
    keep |= opaque
    done = set[tuple[str, int]]()
    todo += [(name, i) for i in keep for name in _drawn(every[i])]
    while todo:
        name, limit = wanted = todo.pop()
        if wanted in done:
            continue
        done.add(wanted)
        for i in range(limit - 1, -1, -1):
            unit = every[i]
            if name not in unit.binds | unit.changes:
                continue
            if i not in keep:
                keep.add(i)
                todo += [(other, i) for other in unit.reads | _drawn(unit)]
                todo += [(other, len(every)) for other in unit.later]
            if unit.settles(name):
                break
    return [unit for i, unit in enumerate(before) if i in keep]


def _drawn(unit: Unit) -> set[str]:
    """The random states that a statement drew from, as they were before it."""
    return {name for name in unit.changes - unit.binds if name.startswith("<")}


def _of_module(snippet: Snippet, root: Path) -> tuple[list[Unit], list[Unit]]:
    """For a listing: what it needs of its own module, and itself."""
    path = root / snippet.fence.source.split('"')[1].split(":")[0]
    names = {
        node.name
        for node in ast.parse(listing(snippet.fence.source, root)).body
        if isinstance(node, DEFINITIONS)
    }
    source = re.sub(r"^[ \t]*# --8<-- .*\n", "", path.read_text("utf-8"), flags=re.M)
    package = ".".join(path.relative_to(root).parent.parts)
    every = units(re.sub(r"^from \.(\w+) ", rf"from {package}.\1 ", source, flags=re.M))
    keep = [unit for unit in every if unit.binds & names]
    for unit in keep:
        wanted = unit.reads | unit.later
        keep += [other for other in every if other.binds & wanted and other not in keep]
    own = [unit for unit in keep if unit.binds & names]
    above = [unit for unit in every if unit in keep and unit not in own]
    return above, own


def compose(above: list[Unit], own: list[Unit], *, imports_first: bool = True) -> str:
    """A Python file of these statements: imports first, those of `above` cut to what is used."""
    body = [unit for unit in [*above, *own] if not (imports_first and unit.is_import)]
    text = ""
    if imports_first:
        used = {name for unit in body for name in unit.reads | unit.later}
        mine = {item for unit in own if unit.is_import for item in _imports(unit)}
        theirs = {item for unit in above if unit.is_import for item in _imports(unit)}
        text = _import_lines(mine | {item for item in theirs if _bound(item) in used})
    last = Unit("", [ast.Pass()])
    for unit in body:
        define = any(isinstance(u.nodes[-1], DEFINITIONS) for u in (last, unit) if u.nodes)
        together = (last in above) == (unit in above) and last.source
        text += "\n" * (2 if define else unit.gap if together else 1)
        text += unit.source + "\n"
        last = unit
    return text.lstrip("\n")


def _imports(unit: Unit) -> Iterable[Import]:
    for node in unit.nodes:
        if isinstance(node, ast.Import):
            yield from ((item.name, "", item.asname or "") for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", item.name, item.asname or "") for item in node.names)


def _bound(item: Import) -> str:
    module, name, given = item
    return given or name or module.partition(".")[0]


def _import_lines(items: set[Import]) -> str:
    """As a linter would sort them: the standard library, other packages, this book's."""

    def section(module: str) -> int:
        top = module.partition(".")[0]
        if top == "__future__":
            return 0
        return 1 if top in sys.stdlib_module_names else 3 if top == OURS else 2

    sections: dict[int, list[str]] = {}
    for whole in (True, False):
        modules = sorted({module for module, name, _ in items if (not name) == whole})
        for module in modules:
            pairs = sorted((n, given) for m, n, given in items if m == module and (not n) == whole)
            said = [f"{n or module} as {given}" if given else n or module for n, given in pairs]
            if whole:
                lines = [f"import {one}" for one in said]
            else:
                lines = [f"from {module} import {', '.join(said)}"]
                if len(lines[0]) > WIDTH:
                    lines = [f"from {module} import (", *(f"    {one}," for one in said), ")"]
            sections.setdefault(section(module), []).extend(lines)
    return "\n".join("\n".join(sections[n]) + "\n" for n in sorted(sections))


def execute(code: str) -> tuple[str, str]:
    """What `code` prints as a file of its own, and the error that ends it, if one does."""
    module = types.ModuleType("__main__")
    with tempfile.TemporaryDirectory() as folder, fresh_state([]), as_main(module):
        os.chdir(folder)
        with capture(io.StringIO()) as printed:
            try:
                with no_loose_ends():
                    exec(compile(code, "<runnable>", "exec"), module.__dict__)
            except (Exception, SystemExit) as error:
                return printed.getvalue(), describe(error) + "\n"
        return printed.getvalue(), ""


def installs(code: str, root: Path) -> list[str]:
    """What a Python needs to run `code`: pinned requirements, and this book's package."""
    tops = set[str]()
    for node in ast.walk(ast.parse(code)) if compiles(code) else ():
        if isinstance(node, ast.Import):
            tops |= {item.name.partition(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add((node.module or "").partition(".")[0])
    tops -= {*sys.stdlib_module_names, "__future__"}
    if OURS in tops:
        tops.add("torch")
    pins = root / "constraints.txt"
    text = pins.read_text("utf-8") if pins.exists() else ""
    found = []
    for top in sorted(tops - {OURS}):
        name = _distributions().get(top, [top])[0]
        pin = re.search(rf"^{re.escape(name)}==[\w.]+", text, re.M | re.I)
        found.append(pin[0] if pin else name)
    return [*found, OURS] if OURS in tops else found


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def heading(runnable: dict[str, Any], home: str) -> str:
    """The first line of a pasted file: what must be installed, and what else it takes."""
    packages = [name for name in runnable["installs"] if name != OURS]
    ours = OURS in runnable["installs"]
    if not packages and not ours:
        line = "# Needs Python alone"
    elif ours and home:
        line = f'# pip install {" ".join(packages)} "attention-book @ git+{home}"'
    elif ours:
        line = (
            f"# pip install {' '.join(packages)}; attention: pip install . in a copy of this book"
        )
    else:
        line = f"# pip install {' '.join(packages)}"
    if runnable["kind"] == NOT_RUN:
        return f"{line}  (not run by the book's tests: {runnable['needs']})"
    return f"{line}  (needs {runnable['needs']})" if runnable["needs"] else line


def pasted(runnable: dict[str, Any], home: str) -> str:
    """What the reader gets."""
    return f"{heading(runnable, home)}\n\n{runnable['code']}"
