"""A page with the package's docstrings on it: what may stand there, and that it is run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Outcome
from snippets import reference, update
from snippets.crosslinks import emphasised
from snippets.page import parse

Check = Callable[..., Outcome]
MODULE = '''\
"""Twice, by a * b_.

    twice(x) = x + x

Source: nobody.
"""

def twice(x: int, *, by: str = "two") -> int:
    """Twice x, as `x * 2` says.

        twice(x) = x + x

    Args:
        x: any number
            of any size.
        by: not <used>.

    Raises:
        TypeError, ValueError: never.

    Example:
        >>> from attention.tiny import twice
        >>> twice(2)
        4
    """
    return x + x


def hidden() -> None:
    """Not public."""
'''


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of one module, which only the reference sees."""
    package = tmp_path / "package/attention"
    package.mkdir(parents=True)
    init = 'from attention.tiny import twice\n\n__all__ = ["twice"]\n'
    (package / "__init__.py").write_text(init)
    (package / "tiny.py").write_text(MODULE)
    monkeypatch.setattr(reference, "ROOT", package.parent)
    monkeypatch.setattr(reference, "public", lambda: {"twice": "attention.tiny"})


@pytest.mark.usefixtures("tiny")
def test_a_module_is_shown_with_its_public_names() -> None:
    text, ((start, end),) = reference.expand("# T\n\n::: attention.tiny\n\nEnd\n")
    assert text[:start] == "# T\n\n"
    assert text[end:] == "\n\nEnd\n"
    for part in (
        "## `attention.tiny`\n\nTwice, by a \\* b\\_.\n\n```text\ntwice(x) = x + x\n```\n\nSource",
        '### `twice`\n\n```pyi\ndef twice(x: int, *, by: str = "two") -> int:\n```\n\nTwice x, as',
        "`x * 2` says.\n\n```text\ntwice(x) = x + x\n```\n\n**Arguments**\n\n",
        "`x`\n:   any number\n    of any size.\n\n`by`\n:   not \\<used>.\n\n**Raises**",
        "`TypeError`, `ValueError`\n:   never.",
        "```pycon\n>>> from attention.tiny import twice\n>>> twice(2)\n4\n```",
    ):
        assert part in text[start:end]
    assert "hidden" not in text


def test_the_examples_of_a_module_are_run(check: Check) -> None:
    outcome = check("# T\n\n::: attention.softmax\n")
    assert outcome.ok, outcome.text
    langs = [snippet.fence.lang for snippet in outcome.sheet.page.snippets]
    assert langs == ["pycon"] * 2


@pytest.mark.usefixtures("tiny")
def test_an_example_that_is_not_so_fails(check: Check) -> None:
    outcome = check("# T\n\n::: attention.tiny\n")
    assert not outcome.ok
    assert "No module named 'attention.tiny'" in outcome.text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# T\n\n::: os\n", "::: stands before a module of the package"),
        ("# T\n\n::: attention.nowhere\n", "::: stands before a module of the package"),
        ("# T\n\n## ::: attention.softmax\n", "::: stands before a module of the package"),
        ("# T\n\n::: attention.softmax\n    options: {}\n", "::: stands before a module"),
        ("# T\n\n```pyi\ndef f(): ...\n```\n", "fence language 'pyi' is neither run nor known"),
        (
            "# T\n\n::: attention.softmax\n\n```pyi\nf()\n```\n",
            "fence language 'pyi' is neither run nor known",
        ),
    ],
    ids=["another package", "no module", "a title", "options", "typed", "typed beside one"],
)
def test_nothing_else_can_hide_among_docstrings(check: Check, text: str, complaint: str) -> None:
    outcome = check(text)
    assert complaint in outcome.text


def test_nothing_rewrites_a_page_that_is_made_from_docstrings(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "edits_for", lambda page, part, shown: [(0, 1, "x")])
    outcome = check("# T\n\n::: attention.softmax\n", updating=True)
    assert "this page is made from docstrings, which nothing rewrites" in outcome.text
    assert not outcome.sheet.edits


def test_a_term_is_looked_for_in_prose_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A *title*\n\n`*code*` [*link*](x.md) **bold** $a*b*c$ a * b * c\n\n```text\n*fence*\n```\n"
        '\n!!! margin "*box*"\n    Here *one\n    Term* and **very *deep* one**.\n'
    )
    assert emphasised(parse(page)) == ["one term", "deep"]
    assert parse(page).made == []
