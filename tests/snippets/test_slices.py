"""A snippet is offered to be copied with what it needs, and only after just that has been run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snippets import slices
from snippets.page import parse
from snippets.run import Run

ROOT = Path(__file__).parents[2]


def runnables(*fences: str) -> list[dict[str, Any]]:
    """What becomes of these snippets; a fence that begins with ``` is taken as it is."""
    text = "\n\n".join(f if f.startswith("```") else f"```python\n{f}\n```" for f in fences)
    page = parse(ROOT / "docs/page.md", text + "\n")
    assert page.problems == []
    run = Run(page, ROOT)
    run.run()
    assert [shown.error for shown in run.shown.values() if shown.error] == []
    return slices.runnables(page, run, ROOT)


def last(*fences: str) -> dict[str, Any]:
    return runnables(*fences)[-1]


TORCH = "import torch"


@pytest.mark.parametrize(
    ("fences", "wants", "leaves"),
    [
        pytest.param(("a = 1\nb = 2", "a"), ["a = 1"], ["b = 2"], id="a name"),
        pytest.param(("a = 1", "a = 2", "a"), ["a = 2"], ["a = 1"], id="bound anew"),
        pytest.param(("a = 1", "a += 1", "a"), ["a = 1", "a += 1"], [], id="augmented"),
        pytest.param(
            ("a = [1]\nb = [2]", "a.append(3)\nb.append(4)", "a"),
            ["a.append(3)"],
            ["b.append"],
            id="a list that grew",
        ),
        pytest.param(("a = {}", "a['k'] = 1", "a"), ["a['k'] = 1"], [], id="an entry"),
        pytest.param(
            (TORCH, "x = torch.zeros(2)\ny = x", "y += 1", "z = y * 2", "x"),
            ["y = x", "y += 1"],
            ["z ="],
            id="a tensor changed under another name",
        ),
        pytest.param(
            (TORCH, "x = torch.zeros(2)", "y = x.add_(1)", "x"), ["y = x.add_(1)"], [], id="add_"
        ),
        pytest.param(
            (
                TORCH,
                "m = torch.nn.Linear(1, 1, bias=False)\ntorch.nn.init.ones_(m.weight)",
                "opt = torch.optim.SGD(m.parameters(), lr=1.0)",
                "loss = m(torch.ones(1)).sum()\nloss.backward()",
                "opt.step()",
                "m.weight.item()",
            ),
            ["ones_", "loss.backward()", "opt.step()"],
            [],
            id="a step of an optimizer",
        ),
        pytest.param(
            (TORCH, "w = torch.ones(1, requires_grad=True)", "(3 * w).sum().backward()", "w.grad"),
            ["backward()"],
            [],
            id="a gradient",
        ),
        pytest.param(
            (
                "class Cache:\n    def __init__(self):\n        self.kept = []\n\n"
                "    def add(self, x):\n        self.kept.append(x)\n        return x",
                "cache = Cache()",
                "x = cache.add(3)",
                "cache.kept",
            ),
            ["x = cache.add(3)"],
            [],
            id="an object that changes itself",
        ),
        pytest.param(
            (TORCH, "torch.manual_seed(1)", "torch.rand(3)", "y = 5", "torch.rand(1)"),
            ["torch.manual_seed(1)", "torch.rand(3)"],
            ["y = 5"],
            id="random numbers drawn before",
        ),
        pytest.param(
            (
                TORCH,
                "torch.manual_seed(1)\na = torch.rand(3)",
                "torch.manual_seed(2)\ntorch.rand(1)",
            ),
            ["torch.manual_seed(2)"],
            ["manual_seed(1)", "a ="],
            id="seeded anew",
        ),
        pytest.param(
            (
                TORCH,
                "torch.manual_seed(1)",
                "model = torch.nn.Linear(2, 2)",
                "torch.randn(1)",
            ),
            ["model = torch.nn.Linear"],
            [],
            id="random numbers drawn by a module",
        ),
        pytest.param(
            ("import random", "random.seed(0)", "a = random.random()", "random.random()"),
            ["random.seed(0)", "a = random.random()"],
            [],
            id="Python's random numbers",
        ),
        pytest.param(
            (
                TORCH,
                "g = torch.Generator().manual_seed(0)",
                "a = torch.rand(1, generator=g)",
                "torch.rand(1, generator=g)",
            ),
            ["a = torch.rand(1, generator=g)"],
            [],
            id="a generator",
        ),
        pytest.param(
            ("def f():\n    return g()", "def g():\n    return 1", "f()"),
            ["def f", "def g"],
            [],
            id="a function that is defined later",
        ),
        pytest.param(
            ("k = 2", "f = lambda x: k * x  # noqa: E731", "k = 3", "f(1)"),
            ["k = 3"],
            ["k = 2"],
            id="what a function reads when it is called",
        ),
        pytest.param(
            ("n = 3", "m = 4", "[i * n for i in range(2)]"), ["n = 3"], ["m"], id="a comprehension"
        ),
        pytest.param(
            ("n = 3", "a = [i * n for i in range(2)]", "n = 4", "a"),
            ["n = 3"],
            ["n = 4"],
            id="what a comprehension reads at once",
        ),
        pytest.param(
            ("a = 1", "if a > 1:\n    a = 2", "a"), ["a = 1", "if a"], [], id="perhaps bound anew"
        ),
        pytest.param(
            ("a = 1", "if not __name__:\n    a = 2", "a"),
            ["a = 1"],
            [],
            id="in fact not bound anew",
        ),
        pytest.param(
            (
                TORCH,
                "w = torch.ones(1, requires_grad=True)",
                "for _ in range(2):\n    (3 * w).sum().backward()",
                "w.grad",
            ),
            ["for _ in"],
            [],
            id="gradients in a loop",
        ),
        pytest.param(
            ("def make():\n    global z\n    z = 5", "for _ in range(1):\n    make()", "z"),
            ["for _ in"],
            [],
            id="a global that a function makes",
        ),
        pytest.param(
            ("class A:\n    x = 1", "y = 1", "class B(A):\n    pass", "B.x"),
            ["class A", "class B"],
            ["y = 1"],
            id="a base class",
        ),
        pytest.param(
            ("i = 7", "total = 0\nfor i in range(3):\n    total += i", "total"),
            ["for i in"],
            ["i = 7"],
            id="the variable of a loop",
        ),
        pytest.param(
            ("n = 0\ndef bump():\n    global n\n    n += 1", "bump()", "n"),
            ["bump()"],
            [],
            id="a global that a function changes",
        ),
        pytest.param(
            (TORCH, "torch.set_default_dtype(torch.float64)", "torch.ones(1).dtype"),
            ["set_default_dtype"],
            [],
            id="a setting that nobody sees",
        ),
        pytest.param(
            ("print('noise')\na = 1\nprint(a)\na", "a + 1"),
            ["a = 1"],
            ["noise", "print(a)\n"],
            id="prints",
        ),
    ],
)
def test_a_slice_holds_what_is_needed_and_no_more(
    fences: tuple[str, ...], wants: list[str], leaves: list[str]
) -> None:
    found = last(*fences)
    assert found["kind"] == slices.SLICE
    for text in wants:
        assert text in found["code"], found["code"]
    for text in leaves:
        assert text not in found["code"], found["code"]


@pytest.mark.parametrize(
    "fences",
    [
        pytest.param(
            ("it = iter([1, 2, 3])", "first = next(it)", "next(it)"), id="an iterator moves on"
        ),
        pytest.param(
            ("def f(x):\n    return 0", "a = f(1)", "from math import floor as f", "a, f(2.5)"),
            id="an import that comes too late to come first",
        ),
        pytest.param(
            ("class C:\n    n = 0", "def f():\n    C.n += 1\n    return C.n", "x = f()", "C.n"),
            id="an attribute of a class",
        ),
    ],
)
def test_a_snippet_that_no_slice_reproduces_takes_the_whole_page(fences: tuple[str, ...]) -> None:
    found = last(*fences)
    assert found["kind"] == slices.PAGE
    assert all(line in found["code"] for f in fences[:-1] for line in f.split("\n"))


def test_a_snippet_that_cannot_be_repeated_is_refused() -> None:
    count = "import json\n\njson.seen = getattr(json, 'seen', 0) + 1\njson.seen"
    with pytest.raises(slices.RunnableError, match=r"page\.md:2: shows something else when it is"):
        runnables(count)


@pytest.mark.parametrize(
    ("code", "line", "shows"),
    [
        ("1 + 1", "print(1 + 1)", "2\n"),
        ("'a'", "print(repr('a'))", "'a'\n"),
        ("1, 2", "print((1, 2))", "(1, 2)\n"),
        ("(\n    1\n    + 1\n)  # two", "print(1\n    + 1", "2\n"),
        ("print('a')", "print('a')", "a\n"),
        ("[].append(1)", "[].append(1)", ""),
        ("x = 1", "x = 1", ""),
        ("# nothing", "# nothing", ""),
        ("'ü', 1  # 'ü', 1", "print(('ü', 1))  # 'ü', 1", "('ü', 1)\n"),
    ],
)
def test_a_pasted_file_prints_what_a_notebook_shows(code: str, line: str, shows: str) -> None:
    (found,) = runnables(code)
    assert (found["kind"], found["shows"]) == (slices.ALONE, shows)
    if "\n" not in line:
        assert line in found["code"].split("\n")


def test_a_prompt_that_prints_is_not_printed_again() -> None:
    found = last("```pycon\n>>> print(1 + 1)\n2\n```")
    assert (found["code"], found["shows"]) == ("print(1 + 1)\n", "2\n")


def test_prompts_become_a_file() -> None:
    *_, found = runnables("a = 3", "```pycon\n>>> a + 1\n4\n>>> b = 'x'\n>>> b\n'x'\n```")
    assert found["code"] == "a = 3\n\nprint(repr(a + 1))\nb = 'x'\nprint(repr(b))\n"
    assert found["shows"] == "4\n'x'\n"


def test_code_after_prompts_can_use_their_names() -> None:
    assert last("```pycon\n>>> a = 3\n```", "a")["code"] == "a = 3\n\nprint(a)\n"


def test_imports_come_first_sorted_and_cut_to_what_is_used() -> None:
    found = last(
        "import torch\nfrom math import sqrt, floor",
        "from attention import softmax, attention\nimport sys",
        "import os.path as p\nfrom collections import Counter\n\n"
        "Counter([sqrt(4), p.sep]), softmax(torch.zeros(2))",
    )
    assert found["code"].split("\n\n")[:-1] == [
        "import os.path as p\nfrom collections import Counter\nfrom math import sqrt",
        "import torch",
        "from attention import softmax",
    ]


def test_a_snippet_that_raises_ends_with_its_error() -> None:
    found = last(
        "x = 0",
        '``` { .python data-raises="ZeroDivisionError" }\nprint(1)\n1 / x\n```\n```output\n```',
    )
    assert found["code"] == "x = 0\n\nprint(1)\n1 / x\n"
    assert found["shows"] == "1\nZeroDivisionError: division by zero\n"


def test_what_ran_before_an_error_counts_and_the_error_does_not() -> None:
    found = last(
        '``` { .python data-raises="ZeroDivisionError" }\nx = 2\n1 / 0\n```\n```output\n```', "x"
    )
    assert found["code"] == "x = 2\n\nprint(x)\n"


def test_code_that_does_not_parse_stands_alone() -> None:
    found = last("x = 1", '``` { .python data-raises="SyntaxError" }\nx =\n```\n```output\n```')
    assert (found["kind"], found["code"]) == (slices.ALONE, "x =\n")


def test_a_figure_is_saved_for_the_reader_to_open() -> None:
    draw = (
        "import torch\nfrom attention import heatmap\n\nheatmap(torch.ones(1, 1), ['a'], ['b'])\n"
    )
    found = last(f"```python\n{draw}```\n\n![A figure](figures/page-a.svg)")
    assert 'figure.save("page-a.svg")' in found["code"]
    assert found["shows"].startswith("Figure(alt=")


def test_a_listing_comes_with_what_it_needs_of_its_module() -> None:
    section = '``` { .python }\n--8<-- "attention/softmax.py:softmax"\n```'
    found = last(section)
    assert found["kind"] == slices.SLICE
    assert "def _shift" in found["code"]
    assert "from attention.validation import" in found["code"]
    assert "def logsumexp" not in found["code"]
    user = last(section, "import torch", "softmax(torch.zeros(1))")
    assert user["code"].startswith("import torch\n\nfrom attention import softmax\n\n")


def test_code_that_was_not_run_says_so_in_its_first_line() -> None:
    found = last("x = 1", '``` { .python data-notest="needs a GPU" }\nx\n```')
    assert found["kind"] == slices.NOT_RUN
    assert "(not run by the book's tests: needs a GPU)" in slices.heading(found, "")


def test_code_that_takes_more_than_a_python_says_so_and_is_run() -> None:
    found = last('``` { .python data-needs="several processes" }\nprint(1)\n```')
    assert (found["kind"], found["shows"]) == (slices.ALONE, "1\n")
    assert slices.heading(found, "") == "# Needs Python alone  (needs several processes)"


@pytest.mark.parametrize(
    ("code", "home", "line"),
    [
        ("1", "", "# Needs Python alone"),
        ("import torch", "", "# pip install torch==2.13.0"),
        (
            "import attention",
            "https://x.org/a/b",
            '# pip install torch==2.13.0 "attention-book @ git+https://x.org/a/b"',
        ),
        (
            "import attention",
            "",
            "# pip install torch==2.13.0; attention: pip install . in a copy of this book",
        ),
    ],
)
def test_the_first_line_says_what_must_be_installed(code: str, home: str, line: str) -> None:
    assert slices.pasted(last(code), home).split("\n\n")[0] == line


def test_a_pasted_file_runs_in_a_python_of_its_own() -> None:
    found = last("import torch", "x = torch.arange(3)", "y = x", "y += 1", "x")
    result = subprocess.run(
        [sys.executable, "-"], input=slices.pasted(found, ""), capture_output=True, text=True
    )
    assert (result.stdout, result.stderr) == ("tensor([1, 2, 3])\n", "")
