"""The exercises of a page: each a bold title, a text, and a folded solution that ends in a check.

The check judges what a reader writes in the solution's stead, so it may use the name that the text
asks for, and nothing else that the solution alone defines.
"""

import ast
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .page import Snippet

SOLUTION = re.compile(r'^(?P<indent>[ ]*)\?{3}\+?[ ]+success[ ]+"Solution"[ ]*$', re.M)
TITLE = re.compile(r"^[ ]*\*\*(?P<title>\d+\. [^*\n]+)\*\*", re.M)


@dataclass(frozen=True)
class Exercise:
    """A folded solution, the names that it defines for its check, and the title above it."""

    title: str
    names: list[str]
    solution: list["Snippet"]
    check: "Snippet"


def find(
    text: str, prose: str, snippets: list["Snippet"]
) -> tuple[list[Exercise], list[tuple[int, str]]]:
    """The exercises of a page, and what is wrong with them and where.

    `prose` is `text` with its fences and comments overwritten.
    """
    found: list[Exercise] = []
    wrong: list[tuple[int, str]] = []
    after = 0
    for fold in SOLUTION.finditer(prose):
        deeper = re.compile(rf"\n(?=[ ]{{0,{len(fold['indent']) + 3}}}[^ \n])")
        closing = deeper.search(text, fold.end())
        end = closing.start() if closing else len(text)
        region, after = text[after : fold.start()], end
        solution = [s for s in snippets if fold.start() < s.start < end]
        check = solution.pop() if solution else None
        titles = [match["title"] for match in TITLE.finditer(region)]
        if not titles:
            message = "a solution without an exercise: **1. Title.** goes above it"
            wrong.append((fold.start(), message))
        elif not check or check.check is None:
            message = (
                "an exercise without a check: its solution ends in a snippet that judges an "
                'answer, ``` { .python data-check="name" }'
            )
            wrong.append((fold.start(), message))
        else:
            exercise = Exercise(titles[-1].rstrip("."), check.check.split(), solution, check)
            found.append(exercise)
            wrong += [(check.start, message) for message in _complaints(exercise, region)]
    inside = {exercise.check.start for exercise in found}
    for snippet in snippets:
        if snippet.check is not None and snippet.start not in inside:
            wrong.append((snippet.start, "a check is the last snippet of a folded solution"))
    return found, wrong


def _complaints(exercise: Exercise, region: str) -> Iterator[str]:
    """What would keep the check from judging what a reader writes in the solution's stead."""
    check, names = exercise.check, exercise.names
    if check.raises is not None or check.notest is not None or check.is_listing or check.figure:
        yield "a check is run, raises nothing and draws nothing"
    if not check.output:
        yield "a check shows in an ```output fence what a right answer gives"
    sources = [s.fence.source for s in exercise.solution if not s.is_listing]
    if not all(map(compiles, [check.fence.source, *sources])):
        return  # the run says where
    nodes = list(ast.walk(ast.parse(check.fence.source)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    solved = set().union(*map(_defined, sources))
    for name in names:
        if not name.isidentifier():
            yield f"data-check names what an answer defines; {name!r} is no name in Python"
        elif name not in used or name in _defined(check.fence.source):
            yield f"the check of {name!r} does not use the {name!r} of an answer"
        elif name not in solved:
            yield f"the check is of {name!r}, which the solution does not define"
        elif not re.search(rf"`{name}\b", region):
            yield f"the exercise does not tell the reader to define `{name}`"


def compiles(source: str) -> bool:
    try:
        compile(source, "snippet", "exec")
    except SyntaxError:
        return False
    return True


def _defined(source: str) -> set[str]:
    """The names that a snippet binds in its page's namespace."""
    symbols = symtable.symtable(source, "snippet", "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
