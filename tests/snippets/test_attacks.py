"""Pages written to fool the checker: each shows a reader something wrong, and must fail."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snippets.pytest_plugin import Book

Check = Callable[..., Any]  # the fixture of conftest.py


def python(code: str, output: str | None = None) -> str:
    shown = "" if output is None else f"```output\n{output}\n```\n"
    return f"```python\n{code}\n```\n{shown}"


LISTED = "# --8<-- [start:one]\ndef one():\n    return 1\n# --8<-- [end:one]\n"
LISTING = '``` { .python }\n--8<-- "listed.py:one"\n```\n'

# name: (page, the line that the message points at)
WRONG = {
    "a unit stuck to a number": ('`1.5x`{data-expr="1.4"}\n', 1),
    "an exponent cut short": ('`0.433e`{data-expr="1 / 3"}\n', 1),
    "a letter after a number in a formula": ("$\\py{0.75d}{0.2}$\n", 1),
    "a raised exponent": ('`10⁻³`{data-expr="10"}\n', 1),
    "an output under a listing": (LISTING + "```output\n0.9999\n```\n", 1),
    "raises on a listing": (LISTING.replace(".python", '.python data-raises="KeyError"'), 1),
    "a prompt of another shell": ("```pycon\nIn [1]: 1 / 0\n```\n", 2),
    "code without a prompt": ("```pycon\nx = 1 / 0\n>>> 1\n1\n```\n", 2),
    "an output after a blank line": ("```pycon\n>>> x = 1\n\n0.9999\n```\n", 4),
    "lines inside a traceback": (
        "```pycon\n>>> 1 / 0\nTraceback (most recent call last):\n"
        '  File "lie 0.9999", line 12\nZeroDivisionError: division by zero\n```\n',
        2,
    ),
    "a mistyped data-expr": ('There are `37`{data-exp="36"} scores.\n', 1),
    "another attribute": ('`1.5`{expr="2"}\n', 1),
    "a space before the attributes": ('`37` {data-expr="36"}\n', 1),
    "attributes on the next line": ('`37`\n{data-expr="36"}\n', 2),
    "attributes over two lines": ('`37`{data-expr="36\n* 1"}\n', 1),
    "a benchmark behind a library's name": ("Triton 0.45 ms\n", 1),
    "a benchmark in a table": ("| kernel | ms |\n| --- | --- |\n| Triton | 0.45 |\n", 3),
    "a number cut by emphasis": ("It is 0.9**544** now.\n", 1),
    "a number cut by HTML": ("It is <b>0.</b>9544 now.\n", 1),
    "a zero-width space": ("It is 0.9\N{ZERO WIDTH SPACE}544 now.\n", 1),
    "a decimal in alt text": (
        python("class D:\n    def _repr_svg_(self):\n        return '<svg/>'\n\n\nD()")
        + "\n![Loss is 0.9999](figures/page-a.svg)\n",
        10,
    ),
    "a skip in a prompt": (
        "```pycon\n>>> import pytest\n>>> pytest.skip('x')\n```\n\n" + python("1", "3"),
        3,
    ),
    "a skip in an expression": (
        python("import pytest") + "\n`2`{data-expr=\"pytest.skip('x')\"}\n",
        5,
    ),
    "an exit in an expression": ('`2`{data-expr="exit()"}\n', 1),
    "a message on the error stream": (python("import sys\n\nprint('lie', file=sys.stderr)"), 2),
    "another sys.stdout": (python("import io, sys\n\nsys.stdout = io.StringIO()\nprint(1)"), 2),
    "an expression that binds": ('`5`{data-expr="(y := 5)"}\n\n' + python("y", "5"), 4),
    "a text area": ("<textarea>\n1 / 0\n</textarea>\n", 1),
    "a script": ('<script>document.write("0.9999")</script>\n', 1),
    "a frame": ('<iframe srcdoc="0.9999"></iframe>\n', 1),
    "a hidden block": ('<div hidden markdown="1">\n\n' + python("x = 1") + "\n</div>\n", 1),
    "a hidden fence": ("``` { .python .visually-hidden }\nx = 1\n```\n", 1),
    "a block that poses as line numbers": (
        '<table><tr><td class="linenos"><pre>1 / 0</pre></td></tr></table>\n',
        1,
    ),
    "HTML that poses as a formula": (
        '<span class="arithmatex" data-exprs="[]">0.9999</span>\n',
        1,
    ),
    "an included text": ('--8<-- "part.txt"\n', 1),
    "an error in a thread": (
        python(
            "import threading\n\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()"
        ),
        4,
    ),
    "a changed builtin": (python("import builtins\n\nbuiltins.print = repr"), 1),
    "a changed module": (python("import math\n\nmath.pi = 3"), 1),
    "a figure by another road": ("![A b](./figures/page-old.svg)\n", 1),
    "a figure by reference": ("![A b][r]\n\n[r]: figures/page-old.svg\n", 3),
    "a figure in HTML": ('<img alt="A b" src="figures/page-old.svg">\n', 1),
    "an output in a text fence": (python("x = 2 / 3") + "```text\n0.9999\n```\n", 4),
    "a cited sentence": ('*Our loss is 0.9999*{data-cite="someone"}\n', 1),
    "digits after a number": ('`0.95`{data-expr="0.95"}44\n', 1),
    "digits after a number in a formula": ("$\\py{0.95}{0.95}44$\n", 1),
    "a range with dots": ("Weights lie in 0.95...0.99 now.\n", 1),
    "a version below one": ("torch 0.45 milliseconds\n", 1),
    "a drawing by hand": ('<svg aria-label="a b"><text>0.9999</text></svg>\n', 1),
    "a picture from elsewhere": ("![A plot](plot.png)\n", 1),
    "a changed method": (python("import torch\n\ntorch.Tensor.sum = lambda self: 1"), 1),
    "a changed import": (python("import builtins\n\nbuiltins.__import__ = None"), 1),
    "a new name in a module": (python("import math\n\nmath.answer = 42"), 1),
    "a module taken away": (python('import sys\n\ndel sys.modules["math"]'), 1),
    "a log that a later snippet does not show": (
        python(
            "import logging\n\nlog = logging.getLogger('page')\n"
            "log.addHandler(logging.StreamHandler())\nlog.warning('one')",
            "one",
        )
        + "\n"
        + python("log.warning('two')"),
        13,
    ),
    # what used to crash the checker
    "a tick left open before a fence": (
        "An open tick ` here.\n\n" + python("x = 1") + '\nThen `{data-expr="x"} end.\n',
        7,
    ),
    "an error without a message": (
        python("class E(Exception):\n    def __str__(self):\n        return 1 / 0\n\n\nraise E"),
        7,
    ),
    "an open quote": ('x `1`{data-expr="1; and `2`{data-expr="2"}\n', 1),
    "a macro in a macro": ("$\\py{\\py{1}{1}}{1}$\n", 1),
    "an empty data-expr": ("`1`{data-expr}\n", 1),
    "a prompt without a space": ("```pycon\n>>>1\n```\n", 2),
    "an unknown doctest option": ("```pycon\n>>> 1  # doctest: +FOO\n1\n```\n", 2),
    "a drawing that fails": (
        python("class D:\n    def _repr_svg_(self):\n        return 1 / 0\n\n\nD()")
        + "\n![A b](figures/page-a.svg)\n",
        4,
    ),
    "a listing that is no statement": (LISTING.replace("one", "half"), 2),
    "a listing that is not what the module has": (LISTING.replace("one", "twice"), 2),
    "a listing that defines nothing": (LISTING.replace("one", "constant"), 2),
    "an output of marks": (python("5", "#"), 5),
    "a value that is too large": ('`0.5`{data-expr="10**400"}\n', 1),
    # lines that used to be wrong
    "return outside a function": ("# T\n\nText.\n\n" + python("x = 1\nreturn x"), 7),
    "a syntax error inside eval": (python("x = 1\neval('1 +')"), 3),
    "a formula of several lines": ("Text.\n\n$$\nx = 1 \\\\\ny = \\undefined\n$$\n", 4),
    "a form feed before a snippet": ("a\fb\n\n" + python("1 / 0"), 4),
    "a repeated first line": (python("import math") + "\nText.\n\n    import math\n    1 / 0\n", 7),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_page_that_shows_something_wrong_fails_at_its_line(
    name: str, check: Check, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (book / "listed.py").write_text(
        LISTED
        + "# --8<-- [start:half]\nif True:\n# --8<-- [end:half]\n    pass\n"
        + "# --8<-- [start:twice]\ndef two():\n    return 2\n# --8<-- [end:twice]\n"
        + "\n\ndef two():\n    return 0.9999\n"
        + "# --8<-- [start:constant]\nTHREE = 3\n# --8<-- [end:constant]\n"
    )
    (book / "docs/figures").mkdir()
    (book / "docs/figures/page-old.svg").write_text("<svg/>")
    monkeypatch.syspath_prepend(book)
    monkeypatch.chdir(book)
    sys.modules.pop("listed", None)
    page, line = WRONG[name]
    outcome = check(page)
    assert not outcome.ok
    assert line in outcome.lines, outcome.text


# What must not be mistaken for any of that.
RIGHT = {
    "an identifier": "arXiv 1706.03762, arXiv:1706.03762, section 3.10, Python 3.13, torch>=2.13.\n",
    "a table of checked numbers": '| a | b |\n| --- | --- |\n| Triton | `0.50`{data-expr="1 / 2"} |\n',
    "pickle of a page's class": python(
        "import pickle\n\n\nclass A:\n    x = 1\n\n\npickle.loads(pickle.dumps(A())).x", "1"
    ),
    "a prompt that ends in dots": "```pycon\n>>> for i in range(2):\n...     i\n...\n0\n1\n```\n",
    "an optimizer": python(
        "import torch\n\nlayer = torch.nn.Linear(2, 2)\n"
        "optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)"
    ),
    "what is logged": python("import logging\n\nlogging.warning('hello')", "WARNING:root:hello"),
    "an exit that is meant": '``` { .python data-raises="SystemExit" }\nexit()\n```\n'
    "```output\nSystemExit: None\n```\n",
    "a thread that ends itself": python(
        "import sys, threading\n\nt = threading.Thread(target=sys.exit)\nt.start()\nt.join()"
    ),
    "an odd tick": "An odd tick ` here.\n\n" + python("x = 1") + '\n`1`{data-expr="x"}\n',
    "an exponent as written": '`1e-3`{data-expr="0.001"} and `1.0e-09`{data-expr="1e-9"}\n',
    "no negative zero": '`0.00`{data-expr="-1e-9"}\n',
    "links to papers": "[2205.14135](https://arxiv.org/abs/2205.14135), "
    "<https://arxiv.org/abs/2205.14135>\n",
    "versions and places": "Python 3.11 to 3.13, torch ≥ 2.13, v2.13, chapter 2.10, Fig. 3.12, "
    "Eq. (3.14), cuDNN 9.10.\n",
    "a string with digits": "`2.13.0`{data-expr=\"'2.13.0'\"}\n",
    "an annotated fence": "``` { .python .annotate }\nx = 1\n```\n",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name: str, check: Check) -> None:
    outcome = check(RIGHT[name])
    assert outcome.ok, outcome.text
    assert not outcome.skipped


LEAKS = """
import builtins, decimal, math, os, sys

import numpy as np
import torch

builtins.print = lambda *args: None
math.pi = 3
os.environ["LEAK"] = "1"
os.chdir("/")
sys.path.append("leak")
np.set_printoptions(precision=1)
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_grad_enabled(False)
torch.set_printoptions(precision=1)
torch.softmax = None
"""


def test_no_page_changes_another(check: Check) -> None:
    import os

    import numpy
    import torch

    before = os.getcwd(), list(sys.path), torch.softmax, print
    outcome = check(python(LEAKS.strip()))
    assert "the page changes torch.softmax for all others" in outcome.text
    assert (os.getcwd(), list(sys.path), torch.softmax, print) == before
    assert "LEAK" not in os.environ
    assert numpy.get_printoptions()["precision"] == 8
    assert repr(torch.ones(1) / 3) == "tensor([0.3333])"
    assert torch.is_grad_enabled()


def test_two_pages_cannot_draw_one_figure(book: Path) -> None:
    from markdown import Markdown

    for part in ("one", "two"):
        (book / f"docs/{part}/figures").mkdir(parents=True)
        (book / f"docs/{part}/figures/same.svg").write_text("<svg/>")
    engine = Markdown(
        extensions=["snippets.markdown_ext"],
        extension_configs={"snippets.markdown_ext": {"docs": str(book / "docs")}},
    )
    with pytest.raises(ValueError, match=r"two figures are called same\.svg"):
        engine.convert("![A b](figures/same.svg)")


def test_a_page_that_is_saved_while_it_runs_is_not_overwritten(tmp_path: Path) -> None:
    from snippets import update

    path = tmp_path / "page.md"
    path.write_text("saved meanwhile\n")
    with pytest.raises(ValueError, match="changed while its code ran"):
        update.write(path, "as it was\n", [(0, 2, "xx")])
    assert path.read_text() == "saved meanwhile\n"


@pytest.mark.parametrize(
    ("stale", "fresh"),
    [
        ('`? ms`{data-expr="3.14159"}\n', '`3.1416 ms`{data-expr="3.14159"}\n'),
        ("""`?`{data-expr="'abc'"}\n""", """`abc`{data-expr="'abc'"}\n"""),
        (
            "~~~python\nprint('~~~')\n~~~\n~~~output\nx\n~~~\n",
            "~~~python\nprint('~~~')\n~~~\n~~~~output\n~~~\n~~~~\n",
        ),
        (
            '```python\nprint("```")\n```\n```output title="T"\nx\n```\n',
            '```python\nprint("```")\n```\n````output title="T"\n```\n````\n',
        ),
        (
            "```pycon\n>>> for i in range(2):\n...     i\n...\n>>> 1\n1\n```\n",
            "```pycon\n>>> for i in range(2):\n...     i\n...\n0\n1\n>>> 1\n1\n```\n",
        ),
    ],
)
def test_the_updater_keeps_what_it_must_not_touch(stale: str, fresh: str, check: Check) -> None:
    from snippets import update

    for text in (stale, fresh):
        sheet = check(text, updating=True).sheet
        assert update.apply(sheet.page.text, sheet.edits) == fresh
    assert check(fresh).ok


def test_a_crash_of_the_checker_takes_the_page_out_of_the_ledger(
    check: Check, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snippets import ledger

    page = python("1", "1")
    assert check(page).ok
    assert ledger.read(book, book / "docs/page.md")
    monkeypatch.setattr(Book, "_judge", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check(page)
    assert "fails" in str(ledger.why_stale(book, book / "docs/page.md"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_an_entry_that_cannot_be_read_is_none(text: str, book: Path, check: Check) -> None:
    from snippets import ledger

    assert check(python("1", "1")).ok
    path = ledger.entry_path(book, book / "docs/page.md")
    path.write_text(text)
    assert ledger.why_stale(book, book / "docs/page.md") == "was never run"
