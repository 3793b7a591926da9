"""A chapter taken away as a notebook gives what it shows, and judges what a reader answers."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from nbformat import NotebookNode

from snippets.katex import typeset
from snippets.markdown_ext import svg_words
from snippets.notebook import notebook
from snippets.page import Page, parse
from snippets.plain import VERBATIM, Book, markdown
from snippets.render import squeeze
from snippets.run import Output
from tests.record import ROOT, entry
from tests.wrong_answers import WRONG

PAGES = sorted(ROOT.glob("docs/**/*.md"))
CHAPTERS = [path for path in PAGES if path.parent != ROOT / "docs"]
# Run again in the gate: figures and errors (masks of the future), float64 and derivatives, random
# numbers. Of the others the cells and outputs are compared with the page's.
RUN_ALL = ("causal", "split-keys", "similarity")
EXHAUSTIVE = pytest.mark.exhaustive
BOOK = Book(ROOT, "The book", "https://book.example/", "CC BY 4.0.", "https://github.com/o/r")
LEFT_OVER = re.compile(
    r"data-\w+=|^[> ]*(?:!!!|\?\?\?|===[ ]|///)|--8<--|\{ ?\.|<!--|\\(?:py|label|eqref)\b"
    r"|\\(?:T|softmax|lse|diag|R)(?![A-Za-z])|\]\((?!https?:)",
    re.M,
)


@dataclass
class Chapter:
    page: Page
    drawings: list[str]  # the figures' SVG
    notebook: NotebookNode


def tagged(book: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in book.cells if tag in cell.metadata.get("tags", [])]


def stem(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module", params=CHAPTERS, ids=stem)
def chapter(request: pytest.FixtureRequest) -> Chapter:
    page, seen = parse(request.param), entry(request.param)
    outputs = [[Output(*output) for output in snippet] for snippet in seen["outputs"]]
    drawings = [(page.path.parent / s.figure).read_text("utf-8") for s in page.snippets if s.figure]
    return Chapter(page, drawings, notebook(page, outputs, BOOK))


def execute(book: NotebookNode) -> NotebookNode:
    """A copy, run from top to bottom as *Run All* does."""
    book = copy.deepcopy(book)
    NotebookClient(
        book,
        timeout=120,
        resources={"metadata": {"path": str(ROOT)}},
        coalesce_streams=True,  # what is printed slowly arrives in pieces
        extra_arguments=["--IPKernelApp.log_level=40"],
    ).execute()
    return book


def outputs(cell: NotebookNode) -> list[dict[str, object]]:
    """What a cell shows, without what differs from run to run: its count, and tracebacks."""
    shown = []
    for output in cell.outputs:
        kept = {k: v for k, v in output.items() if k not in ("execution_count", "traceback")}
        if output.output_type == "error":  # Jupyter names the cell in which no Python stands
            kept["evalue"] = re.sub(r" \(\d+\.py, line \d+\)$", "", output.evalue)
        shown.append(kept)
    return shown


def test_a_notebook_is_valid_and_says_what_runs_it(chapter: Chapter) -> None:
    book = chapter.notebook
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert book.metadata.language_info.name == "python"
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    first = book.cells[0].source
    assert (
        f"https://book.example/{chapter.page.path.parent.name}/" in first and "CC BY 4.0" in first
    )


def test_a_notebook_has_all_the_code_of_its_page(chapter: Chapter) -> None:
    sources = [cell.source for cell in chapter.notebook.cells]
    solutions = [s for exercise in chapter.page.exercises for s in exercise.solution]
    for snippet in chapter.page.snippets:
        if snippet.is_listing:
            file, _, name = snippet.fence.source.split('"')[1].partition(":")
            module = file.removesuffix(".py").replace("/", ".")
            at = sources.index(f"from {module} import {name}")
            assert re.search(rf"^> (def|class) {name}\(", sources[at - 1], re.M)
        elif snippet not in solutions and not snippet.notest:
            assert squeeze(snippet.fence.source) in sources


@pytest.mark.parametrize(
    "chapter",
    [path if path.stem in RUN_ALL else pytest.param(path, marks=EXHAUSTIVE) for path in CHAPTERS],
    ids=stem,
    indirect=True,
)
def test_run_again_a_notebook_gives_what_it_shows_and_judges_the_solutions(
    chapter: Chapter,
) -> None:
    """Unsolved, each check names what the reader has not defined, and the rest goes on.

    The same run then goes through the solutions and the checks once more.
    """
    exercises = chapter.page.exercises
    assert len(exercises) == len(tagged(chapter.notebook, "check")) >= 2
    asked = copy.deepcopy(chapter.notebook)
    for exercise, check in zip(exercises, tagged(chapter.notebook, "check"), strict=True):
        source = "\n\n".join(snippet.fence.source for snippet in exercise.solution)
        asked.cells += [nbformat.v4.new_code_cell(source), copy.deepcopy(check)]
    again = execute(asked)
    unsolved = again.cells[: len(chapter.notebook.cells)]
    solved = again.cells[len(unsolved) + 1 :: 2]
    for exercise, cell in zip(exercises, solved, strict=True):
        shown = [o.get("text") or o["data"]["text/plain"] for o in cell.outputs]
        assert squeeze("".join(shown)) == squeeze(exercise.check.expected)
    again.cells = unsolved
    for exercise, cell in zip(exercises, tagged(again, "check"), strict=True):
        (error,) = outputs(cell)
        missing = [f"name '{name}' is not defined" for name in exercise.names]
        assert error["ename"] == "NameError" and error["evalue"] in missing
        cell.outputs = []
    for before, after in zip(chapter.notebook.cells, unsolved, strict=True):
        if before.cell_type == "code":
            assert outputs(before) == outputs(after), before.source


def test_every_exercise_has_wrong_answers_that_the_run_of_its_page_refuses() -> None:
    numbers = [(p.stem, i) for p in CHAPTERS for i, _ in enumerate(parse(p).exercises, start=1)]
    assert numbers == list(WRONG)
    assert all(WRONG.values())


def test_solutions_are_folded_and_run_by_nobody(chapter: Chapter) -> None:
    cells = chapter.notebook.cells
    at = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Solutions"))
    folded = cells[at + 1 :]
    assert len(folded) == len(chapter.page.exercises)
    for exercise, cell in zip(chapter.page.exercises, folded, strict=True):
        assert cell.cell_type == "markdown"
        assert cell.source.startswith(f"<details>\n<summary>{exercise.title}</summary>\n\n")
        assert all(squeeze(s.fence.source) in cell.source for s in exercise.solution)


def prose_of(chapter: Chapter) -> str:
    return "\n\n".join(c.source for c in chapter.notebook.cells if c.cell_type == "markdown")


def outside_code(text: str) -> str:
    """The lines of plain Markdown that are not in a block of code, by an independent parser."""
    kept = text.split("\n")
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map:
            kept[slice(*token.map)] = [""] * (token.map[1] - token.map[0])
    return "\n".join(kept)


def test_a_notebook_needs_nothing_that_only_the_site_knows(chapter: Chapter) -> None:
    assert not LEFT_OVER.findall(outside_code(prose_of(chapter)))


@pytest.mark.parametrize("path", PAGES, ids=stem)
def test_plain_markdown_needs_nothing_that_only_the_site_knows(path: Path) -> None:
    assert not LEFT_OVER.findall(outside_code(markdown(parse(path), BOOK)))


@pytest.mark.parametrize("path", PAGES, ids=stem)
def test_plain_markdown_has_the_code_and_the_outputs_of_its_page(path: Path) -> None:
    page = parse(path)
    text = markdown(page, BOOK)
    fences = [token for token in MarkdownIt().parse(text) if token.type == "fence"]
    lang = {"output": "text"}
    assert [token.info for token in fences] == [lang.get(f.lang, f.lang) for f in page.fences]
    for token, fence in zip(fences, page.fences, strict=True):
        shown = squeeze(token.content)
        if "--8<--" in fence.source:
            assert shown.startswith(("def ", "class ", "@")) and '"""' in shown
        else:
            assert shown == squeeze(fence.source)


@pytest.mark.parametrize("path", PAGES, ids=stem)
def test_the_formulas_of_plain_markdown_can_be_typeset(path: Path) -> None:
    text = markdown(parse(path), BOOK)
    formulas = [m for m in VERBATIM.finditer(outside_code(text)) if not m["text"]]
    assert formulas or "$" not in outside_code(path.read_text("utf-8"))
    for match in formulas:
        assert typeset(match[0].strip("$"), bool(match["display"]))


def test_figures_are_drawn_in_a_notebook_and_told_in_plain_markdown(chapter: Chapter) -> None:
    drawn = chapter.drawings
    shown = [o.data for c in chapter.notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert [d["image/svg+xml"] for d in shown if "image/svg+xml" in d] == drawn
    told = re.findall(r"^\*Figure: .+?\.\* (.+)", markdown(chapter.page, BOOK), re.M)
    assert told == [svg_words(svg) for svg in drawn] != []
