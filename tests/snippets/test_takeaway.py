"""What a page says survives as a notebook and as plain Markdown; exercises follow their rules."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nbformat import NotebookNode

from snippets.notebook import notebook
from snippets.page import parse
from snippets.plain import Book, markdown
from snippets.run import Run
from snippets.takeaway import Entry, links, llms_txt, navigation

Check = Callable[..., Any]  # the fixture of conftest.py

SOLVED = """# T

**1. Twice.** Write `twice(x)`.

??? success "Solution"
    Add it to itself.

    ```python
    def twice(x):
        return x + x
    ```

    ``` { .python data-check="twice" }
    twice(3)
    ```
    ```output
    6
    ```
"""


@pytest.fixture
def book(book: Path) -> Path:
    (book / "docs/part").mkdir()
    return book


@pytest.fixture
def plain(book: Path) -> Callable[[str], str]:
    """A page under docs/part/ as plain Markdown, without its title and what stands at its end."""

    def run(text: str) -> str:
        page = parse(book / "docs/part/page.md", f"# T\n\n{text}")
        whole = markdown(page, Book(book, "Book", "https://b.example/", "Licence."))
        return whole.removeprefix("# T\n\n").split("\n\n---\n")[0]

    return run


@pytest.fixture
def cells(book: Path) -> Callable[..., list[NotebookNode]]:
    """The cells of a page under docs/part/, run, without the first."""

    def make(text: str, *, repository: str = "") -> list[NotebookNode]:
        page = parse(book / "docs/part/page.md", text if text[0] == "#" else f"# T\n\n{text}")
        assert not page.problems
        run = Run(page, book)
        outputs = [run[s].outputs for s in page.snippets]
        about = Book(book, "Book", "https://b.example/", "Licence.", repository)
        return list(notebook(page, outputs, about).cells[1:])

    return make


PLAIN = {
    "a number": ('It is `0.24`{data-expr="x"}.', "It is 0.24."),
    "a cited number": ('It is `28.4`{data-cite="v"}.', "It is 28.4."),
    "code in a line": ("See `x = {1}`{ .x } and `a`.", "See `x = {1}` and `a`."),
    "a formula": (r"Let $\py{0.5}{x} \in \R$.", r"Let $0.5 \in \mathbb{R}$."),
    "a group that counts": (r"$10^\py{44}{x}$", r"$10^{44}$"),
    "a macro, not its namesake": (r"$X\T \Theta$", r"$X^{\top} \Theta$"),
    "an operator that GitHub refuses": (
        r"$\softmax(\operatorname{f}(x))$",
        r"$\mathop{\mathrm{softmax}}(\mathop{\mathrm{f}}(x))$",
    ),
    "macros outside formulas": (r"Type `\softmax` and `$\py$`.", r"Type `\softmax` and `$\py$`."),
    "numbered formulas": (
        "$$\na \\label{one}\n$$\n\n$$\nb \\label{two}\n$$\n\n$$\nc \\label{three}\n$$\n\n"
        r"$\eqref{three}$ and $\eqref{two}$.",
        "$$\na\n$$\n\n$$\nb \\tag{1}\n$$\n\n$$\nc \\tag{2}\n$$\n\n(2) and (1).",
    ),
    "a label in code": ("`\\label{one}` $$\na \\label{two}\n$$ $\\eqref{two}$", "`\\label{one}` $$a \\tag{1}$$ (1)"),
    "an admonition": ('!!! note "A *title*"\n    One.\n\n    Two.\n\nThree.', "> **A *title***\n>\n> One.\n>\n> Two.\n\nThree."),
    "an admonition without a title": ("!!! note\n    One.", "> **Note**\n>\n> One."),
    "a margin note": ('!!! margin ""\n    One.\n', "> One."),
    "a folded block": ('???+ tip inline "T"\n    One.\n', "> **T**\n>\n> One."),
    "two boxes": ("!!! note\n    One.\n\n!!! tip\n    Two.", "> **Note**\n>\n> One.\n\n> **Tip**\n>\n> Two."),
    "a box in a box": ("!!! note\n    !!! tip\n        One.\n    Two.", "> **Note**\n>\n> > **Tip**\n> >\n> > One.\n>\n> Two."),
    "tabs": ('=== "A"\n    One.\n\n=== "B"\n    Two.', "> **A**\n>\n> One.\n\n> **B**\n>\n> Two."),
    "a formula in a box": ("!!! note\n    $$\n    a\n    = b \\label{x}\n    $$\n", "> **Note**\n>\n> $$a = b$$"),
    "code in a box": ("!!! note\n    ```python\n    x = 1\n    ```\n", "> **Note**\n>\n> ```python\n> x = 1\n> ```"),
    "code in a list": ("- One.\n\n    ```python\n    x = 1\n    ```\n", "- One.\n\n    ```python\n    x = 1\n    ```"),
    "an output": ("```python\n1\n```\n```output\n1\n```\n", "```python\n1\n```\n```text\n1\n```"),
    "code that is not run": ('``` { .python data-notest="no GPU" }\n1\n```\n', "*Not run: no GPU.*\n\n```python\n1\n```"),
    "a fence in a fence": ("````markdown\n```python\n!!! x\n```\n````", "````markdown\n```python\n!!! x\n```\n````"),
    "a comment": ("One.\n\n<!-- two\n\nthree -->\n\nFour<!-- five -->.", "One.\n\nFour."),
    "attributes": ("## A { #a }\n\n[B](https://x.example/){ .md-button .x }\n\n- C\n  { #c }\n- D", "## A\n\n[B](https://x.example/)\n\n- C\n- D"),
    "a link to a page": ("[a](other.md)", "[a](https://b.example/part/other/)"),
    "a link upwards": ("[a](../more/b.md#c)", "[a](https://b.example/more/b/#c)"),
    "a link to the first page": ("[a](../index.md)", "[a](https://b.example/)"),
    "a link on the page": ("[a](#b)", "[a](https://b.example/part/page/#b)"),
    "a link with code in it": ("[`a`](b.md)", "[`a`](https://b.example/part/b/)"),
    "a link to a lab": ("[a](../labs/b.ipynb)", "[a](https://b.example/labs/b/)"),
    "a link in code": ("`[a](b.md)`", "`[a](b.md)`"),
}  # fmt: skip


@pytest.mark.parametrize("form", PLAIN)
def test_each_form_of_the_book_becomes_plain_markdown(
    form: str, plain: Callable[[str], str]
) -> None:
    given, wanted = PLAIN[form]
    assert plain(given) == wanted


def test_formulas_have_the_numbers_that_the_site_gives_them(plain: Callable[[str], str]) -> None:
    from bs4 import BeautifulSoup

    from snippets.render import render

    text = "$$\na \\label{one}\n$$\n\n$$\nb \\label{two}\n$$\n\n$$\nc \\label{three}\n$$\n\nBy $\\eqref{three}$, $\\eqref{one}$."
    site = BeautifulSoup(render(text, Path(__file__).parents[2]), "html.parser")
    refs = " ".join(a.get_text() for a in site.select("a.eqref"))
    assert refs == "(2) (1)"
    assert plain(text).endswith("By (2), (1).")


def test_what_was_printed_and_what_was_given_are_told_apart(cells: Any) -> None:
    (cell,) = cells(
        '```python\nprint("x")\nprint("y", end="")\n"z"\n```\n```output\nx\ny\'z\'\n```\n'
    )
    assert [o.output_type for o in cell.outputs] == ["stream", "execute_result"]
    assert cell.outputs[0].text == "x\ny"
    assert cell.outputs[1].data["text/plain"] == "'z'"


def test_a_value_that_looks_printed_is_none_the_less_a_value(cells: Any) -> None:
    page = "```python\nprint(1)\n```\n```output\n1\n```\n\n```python\n1\n```\n```output\n1\n```\n"
    printed, given = cells(page)
    assert printed.outputs[0].output_type == "stream"
    assert given.outputs[0].output_type == "execute_result"


def test_an_error_is_shown_and_lets_the_notebook_go_on(cells: Any) -> None:
    page = (
        '``` { .python data-raises="ValueError" }\nprint(1)\nraise ValueError("a: b")\n```\n'
        "```output\n1\nValueError: a: b\n```\n"
    )
    (cell,) = cells(page)
    assert cell.metadata.tags == ["raises-exception"]
    stream, error = cell.outputs
    assert stream.text == "1\n"
    assert (error.ename, error.evalue) == ("ValueError", "a: b")


def test_prompts_become_a_cell_each(cells: Any) -> None:
    page = (
        "```pycon\n>>> for i in range(2):\n...     print(i)\n0\n1\n>>> x = 2\n>>> print(x) or x\n2\n2\n"
        ">>> 1 / 0\nTraceback (most recent call last):\n    ...\nZeroDivisionError: division by zero\n```\n"
    )
    loop, assign, both, error = cells(page)
    assert loop.source == "for i in range(2):\n    print(i)" and loop.outputs[0].text == "0\n1\n"
    assert assign.source == "x = 2" and not assign.outputs
    assert both.outputs[0].text == "2\n" and both.outputs[0].output_type == "stream"
    error = error.outputs[0]
    assert error.ename == "ZeroDivisionError"


def test_code_in_a_box_is_a_cell_between_two_quotes(cells: Any) -> None:
    before, code, after = cells(
        "!!! note\n    One.\n\n    ```python\n    x = 1\n    ```\n\n    Two.\n"
    )
    assert before.source == "> **Note**\n>\n> One."
    assert (code.cell_type, code.source) == ("code", "x = 1")
    assert after.source == "> Two."


def test_code_in_a_list_is_a_cell_and_what_follows_is_no_code(cells: Any) -> None:
    page = "- One.\n\n    ```python\n    x = 1\n    ```\n\n    Two.\n\n    Three.\n\nFour.\n"
    before, code, after = cells(page)
    assert (before.source, code.source) == ("- One.", "x = 1")
    assert after.source == "Two.\n\nThree.\n\nFour."


def test_code_that_is_not_run_is_no_cell_and_says_why(cells: Any) -> None:
    (cell,) = cells('``` { .python data-notest="no GPU" }\n1\n```\n')
    assert cell.cell_type == "markdown" and "Not run: no GPU." in cell.source


def test_an_id_outlives_an_edit_of_another_cell(cells: Any) -> None:
    page = "One.\n\n```python\nx = 1\n```\n\nTwo.\n\n```python\nx = 1\n```\n"
    was, now = cells(page), cells(page.replace("One.", "Zero.\n\n```python\ny = 1\n```\n"))
    assert [cell.id for cell in now[2:]] == [cell.id for cell in was[1:]]
    assert len({cell.id for cell in was}) == 4


def test_an_exercise_is_an_empty_cell_above_its_check(cells: Any) -> None:
    text, empty, says, check, heading, solution = cells(SOLVED)
    assert text.source == "**1. Twice.** Write `twice(x)`."
    assert (
        all(line.startswith("#") for line in empty.source.split("\n")) and "twice" in empty.source
    )
    assert "```text\n6\n```" in says.source
    assert check.source == "twice(3)" and check.metadata.tags == ["check", "raises-exception"]
    assert not check.outputs and check.execution_count is None
    assert heading.source.startswith("## Solutions")
    assert solution.cell_type == "markdown" and "def twice(x):" in solution.source


def test_a_notebook_installs_the_package_only_where_there_is_where_from(cells: Any) -> None:
    assert all("pip" not in cell.source for cell in cells(SOLVED))
    install = cells(SOLVED, repository="https://git.example/o/r")[0]
    assert 'find_spec("attention") is None' in install.source
    assert '%pip install --quiet "git+https://git.example/o/r"' in install.source


RULES = {
    "a check outside a solution": (
        "# T\n\n``` { .python data-check=\"x\" }HERE\n1\n```\n```output\n1\n```\n",
        "a check is the last snippet of a folded solution",
    ),
    "a snippet below the check": (
        SOLVED.replace('"Solution"', '"Solution"HERE') + "\n    ```python\n    x = 1\n    ```\n",
        "an exercise without a check",
    ),
    "a check below the fold": (
        SOLVED.replace('"Solution"', '"Solution"HERE').replace("\n    ``` { .python data", "\nText.\n\n    ``` { .python data"),
        "an exercise without a check",
    ),
    "an exercise without a check": (
        SOLVED.replace('"Solution"', '"Solution"HERE').replace(' { .python data-check="twice" }', "python"),
        "an exercise without a check",
    ),
    "a solution without code": (
        '# T\n\n**1. A.** B.\n\n??? success "Solution"HERE\n    C.\n', "an exercise without a check",
    ),
    "a solution without an exercise": (
        SOLVED.replace("**1. Twice.**", "").replace('"Solution"', '"Solution"HERE'), "a solution without an exercise",
    ),
    "an empty attribute": (
        SOLVED.replace('check="twice" }', 'check="" }HERE'), 'data-check="" needs the names',
    ),
    "a name that is none": (
        SOLVED.replace('check="twice" }', 'check="twice(x)" }HERE'), "'twice(x)' is no name in Python",
    ),
    "a check that does not use the name": (
        SOLVED.replace('check="twice" }', 'check="twice" }HERE').replace("twice(3)", "6"), "the check of 'twice' does not use",
    ),
    "a check that defines the name itself": (
        SOLVED.replace('check="twice" }', 'check="twice" }HERE').replace("twice(3)", "twice = int\n    twice(6)"),
        "the check of 'twice' does not use the 'twice' of an answer",
    ),
    "a name that the solution does not define": (
        SOLVED.replace('check="twice" }', 'check="twice" }HERE').replace("def twice", "def double"), "which the solution does not define",
    ),
    "a name that the exercise does not say": (
        SOLVED.replace('check="twice" }', 'check="twice" }HERE').replace("Write `twice(x)`", "Double it"),
        "does not tell the reader to define `twice`",
    ),
    "a check without an output": (
        SOLVED.replace('check="twice" }', 'check="twice" }HERE').replace("```output\n    6\n    ```", ""),
        "a check shows in an ```output fence",
    ),
    "a check that raises": (
        SOLVED.replace('check="twice" }', 'check="twice" data-raises="E" }HERE'), "raises nothing",
    ),
    "a check on another language": (
        '# T\n\n``` { .text data-check="x" }HERE\n1\n```\n', "unknown attribute 'data-check'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_what_breaks_a_rule_of_exercises_is_refused_at_its_line(rule: str, check: Check) -> None:
    text, message = RULES[rule]
    outcome = check(text.replace("HERE", ""))
    assert message in outcome.text
    assert text[: text.index("HERE")].count("\n") + 1 in outcome.lines, outcome.text


def test_a_page_that_keeps_the_rules_of_exercises_passes(check: Check) -> None:
    outcome = check(SOLVED)
    assert outcome.ok, outcome.text
    (exercise,) = outcome.sheet.page.exercises
    assert (exercise.title, exercise.names) == ("1. Twice", ["twice"])


def test_a_check_that_shows_nothing_is_refused(check: Check) -> None:
    page = SOLVED.replace("twice(3)", "six = twice(3)").replace("output\n    6\n", "output\n")
    assert "a check that shows nothing" in check(page).text


NAV = [
    {"The book": "index.md"},
    {"One": ["one/a.md", {"B": "one/b.md"}]},
    {"Labs": ["labs/c.ipynb"]},
]


def test_chapters_are_the_pages_of_the_numbered_parts() -> None:
    assert list(navigation(NAV)) == [
        Entry("The book", "index.md", False),
        Entry("One", "one/a.md", True),
        Entry("One", "one/b.md", True),
        Entry("Labs", "labs/c.ipynb", False),
    ]


@pytest.mark.parametrize(
    ("source", "repository", "labels"),
    [
        ("one/a.md", "", ["Notebook", "Markdown"]),
        ("one/a.md", "https://git.example/o/r", ["Notebook", "Markdown"]),
        ("one/a.md", "https://github.com/o/r", ["Notebook", "Colab", "Markdown"]),
        ("one/a.md", "https://github.com/o/r.git/", ["Notebook", "Colab", "Markdown"]),
        ("index.md", "https://github.com/o/r", ["Markdown"]),
        ("labs/c.ipynb", "https://github.com/o/r", ["Notebook"]),
    ],
)
def test_a_page_offers_what_there_is_of_it(source: str, repository: str, labels: list[str]) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=source))
    found = links(page, SimpleNamespace(nav=NAV, repo_url=repository))
    assert [label for label, _, _ in found] == labels
    hrefs = {kind: href for _, href, kind in found}
    if "colab" in hrefs:
        assert hrefs["colab"] == (
            "https://colab.research.google.com/github/o/r/blob/notebooks/one/a.ipynb"
        )
    if "notebook" in hrefs:
        assert hrefs["notebook"] in ("a.ipynb", "c.ipynb")


def test_llms_txt_says_what_each_page_asks(tmp_path: Path) -> None:
    book = Book(tmp_path, "Book", "https://b.example/", "Licence.")
    one, two = Entry("One", "one/a.md", True), Entry("Two", "two/b.md", True)
    pages = [
        (one, "index.md", "# A\n\n**Why\nso?** Because.\n"),
        (two, "index.md", "# B\n\nIt is 1.5 high. More.\n"),
    ]
    assert llms_txt(pages, "A\n summary.", book) == (
        "# Book\n\n> A summary.\n\n"
        "## One\n\n- [A](https://b.example/one/a/index.md): Why so?\n\n"
        "## Two\n\n- [B](https://b.example/two/b/index.md): It is 1.5 high.\n"
    )
