"""A page as a Jupyter notebook: the same code, what the run saw of it, and cells to answer in.

A notebook shows what its page shows and gives it again when it is run. An exercise has an empty
cell in its solution's place, and under it the check of what is written there. The solutions stand
at the end, folded by HTML, which JupyterLab, VS Code, Colab, GitHub and nbconvert all understand
(cell metadata that folds is read by one of them at most), and are no cells of code: *Run All*
would define what the reader is asked for.
"""

from doctest import DocTestParser
from html import escape

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from .exercises import Exercise
from .ledger import digest
from .page import FIGURE, INTERACTIVE, OUTPUT, Fence, Page, Snippet
from .plain import Book, Line, Quoted, block, fenced, figures_in_words, indent, lines
from .run import Output, listed

METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
}
INSTALL = """\
import importlib.util

if importlib.util.find_spec("attention") is None:
    %pip install --quiet "git+{}"
"""


def notebook(page: Page, outputs: list[list[Output]], book: Book) -> NotebookNode:
    """The notebook of a page; `outputs` are those of its snippets, as a run told them apart."""
    made: NotebookNode = new_notebook(cells=_Maker(page, outputs, book).make(), metadata=METADATA)
    nbformat.validate(made)
    return made


class _Maker:
    """Cells in the order of the page; prose is gathered until something else comes."""

    def __init__(self, page: Page, outputs: list[list[Output]], book: Book) -> None:
        self.page, self.book = page, book
        self.cells: list[NotebookNode] = []
        self.prose = Quoted()
        self.loose = 0  # the indentation of a list's item that a cell has cut in two
        self.snippets = {s.fence.start: s for s in page.snippets if not s.notest}
        self.outputs = {s.start: o for s, o in zip(page.snippets, outputs, strict=True)}
        self.exercises = iter(page.exercises)
        self.solutions: list[tuple[Exercise, Quoted]] = []
        self.count = 0

    def make(self) -> list[NotebookNode]:
        title, *body = lines(self.page, self.book)
        self.open(title.text)
        solution = None
        for line in body:
            within = next((box for box in line.boxes if box.is_solution), None)
            if within and within is not solution:
                self.ask(next(self.exercises))
                solution = within
            if within:
                self.solve(line)
            elif line.fence:
                self.fence(line, line.fence)
            else:
                self.say(line)
        self.flush()
        if self.solutions:
            self.close()
        return self.cells

    def open(self, title: str) -> None:
        book, address = self.book, self.book.address(self.book.source(self.page.path))
        needs = "Install it, and PyTorch with it: `pip install .` in the folder of the book."
        if book.repository:
            needs = "The next cell installs it, and PyTorch with it, where it is missing."
        self.markdown(
            f"{title}\n\nA chapter of [{book.name}]({book.url}), from <{address}>. "
            f"{book.licence}\n\nTo run it you need the book's package, `attention`. {needs}"
        )
        if book.repository:
            self.code(INSTALL.format(book.repository))

    def say(self, line: Line) -> None:
        text = FIGURE.sub("", line.text)  # the cell above shows it
        if self.loose and text.startswith(" " * self.loose):
            text = text[self.loose :]
        elif text.strip():
            self.loose = 0
        self.prose.add(line.boxes, text)

    def fence(self, line: Line, fence: Fence) -> None:
        snippet = self.snippets.get(fence.start)
        if fence.lang == OUTPUT:
            return  # its cell shows it
        if not snippet or snippet.is_listing:
            self.prose.add(line.boxes, indent(block(fence, self.book), line.pad))
        if snippet:
            self.flush()
            self.loose = 0 if line.pad.strip() else len(line.pad)
            self.run(snippet)

    def run(self, snippet: Snippet) -> None:
        """The cells of a snippet, with what each of them showed."""
        source = snippet.fence.source
        if snippet.is_listing:
            module, names = listed(source, self.book.root)
            self.code(f"from {module} import {', '.join(names)}")
            return
        sources = [source]
        if snippet.fence.lang == INTERACTIVE:
            sources = [example.source for example in DocTestParser().get_examples(source)]
        shown = self.outputs[snippet.start] or [Output()]  # a package was missing
        for source, output in zip(sources, shown, strict=True):
            tags = ["raises-exception"] if output.error else []
            self.code(source, tags, self.results(output, snippet))

    def results(self, output: Output, snippet: Snippet) -> list[NotebookNode]:
        results = []
        if output.printed:
            results.append(new_output("stream", name="stdout", text=output.printed))
        if output.value is not None:
            data = {"text/plain": output.value}
            if snippet.figure:
                data["image/svg+xml"] = (self.page.path.parent / snippet.figure).read_text("utf-8")
            results.append(new_output("execute_result", data, execution_count=self.count + 1))
        if output.error is not None:
            name, _, message = output.error.partition(": ")
            results.append(
                new_output("error", ename=name, evalue=message, traceback=[output.error])
            )
        return results

    def ask(self, exercise: Exercise) -> None:
        """An empty cell, and the check of what the reader writes there."""
        self.flush()
        names = " and ".join(exercise.names)
        self.code(f"# Define {names} here. Until then the check ends in a NameError.", ["exercise"])
        shows = fenced("text", exercise.check.expected)
        self.markdown(f"**Check.** With a right answer the next cell shows\n\n{shows}")
        self.code(exercise.check.fence.source, ["check", "raises-exception"])
        self.solutions.append((exercise, Quoted()))

    def solve(self, line: Line) -> None:
        _, told = self.solutions[-1]
        text = figures_in_words(line.text, self.page)
        if line.fence:
            text = indent(block(line.fence, self.book), line.pad)
        told.add(tuple(box for box in line.boxes if not box.is_solution), text)

    def close(self) -> None:
        self.markdown("## Solutions\n\nTo try one, copy its code into the exercise's cell.")
        for exercise, told in self.solutions:
            self.markdown(
                f"<details>\n<summary>{escape(exercise.title)}</summary>\n\n{told.take()}\n\n</details>"
            )

    def flush(self) -> None:
        if text := self.prose.take():
            self.markdown(text)

    def markdown(self, text: str) -> None:
        self.add(new_markdown_cell(text))

    def code(
        self, source: str, tags: list[str] | None = None, outputs: list[NotebookNode] | None = None
    ) -> None:
        cell = new_code_cell(source.strip("\n"), metadata={"tags": tags} if tags else {})
        if outputs is not None:  # it was run
            self.count += 1
            cell.execution_count, cell.outputs = self.count, outputs
        self.add(cell)

    def add(self, cell: NotebookNode) -> None:
        """With an id that an edit elsewhere on the page leaves as it is."""
        twins = sum(cell.source == other.source for other in self.cells)
        cell.id = digest(cell.source, str(twins))
        self.cells.append(cell)
