"""All of the starting notebook is in the book: its code in the lab, each of its numbers on a page."""

import re
from decimal import Decimal
from pathlib import Path

import nbformat
import pytest

from snippets.compare import DIFFERENT, compare_output
from snippets.lab import executed
from snippets.page import parse

ROOT = Path(__file__).parents[1]
LAB = ROOT / "docs/labs/first-notebook.ipynb"
# The notebook as it was first written: its cells, and under them what they showed.
NOTEBOOK = (ROOT / "tests/data/first-notebook.txt").read_text("utf-8")
DECIMAL = re.compile(r"\d+\.\d{4}")


def outputs() -> list[str]:
    """What the cells of the starting notebook showed, numbers only, a cell after a blank line."""
    blocks = re.split(r"\n\s*\n", NOTEBOOK)
    return [
        b.strip("\n")
        for b in blocks
        if re.match(
            r"\s*(tensor\(|torch\.Size|(?:Attention|Normalised attention) weights|0\.9544)", b
        )
    ]


def lab_outputs() -> list[str]:
    cells = nbformat.read(executed(ROOT, LAB), as_version=4).cells
    texts = []
    for cell in cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return texts


def chapter_numbers() -> set[str]:
    """Every number of three or four decimals that chapter 1 shows, as an output or in its prose."""
    page = parse(ROOT / "docs/foundations/similarity.md")
    shown = [s.expected for s in page.snippets] + [n.text for n in page.numbers]
    return {number for text in shown for number in re.findall(r"\d+\.\d{3,4}(?!\d)", text)}


def test_the_starting_notebook_has_outputs_to_look_for() -> None:
    assert len(outputs()) == 17
    assert len(set(DECIMAL.findall(NOTEBOOK))) > 60


@pytest.mark.parametrize("number", sorted(set(DECIMAL.findall(NOTEBOOK))))
def test_each_number_of_the_notebook_is_shown_in_the_chapter(number: str) -> None:
    """To four decimals or, where the fourth would hang on the arithmetic, to three."""
    three = [n for n in chapter_numbers() if abs(Decimal(n) - Decimal(number)) <= Decimal("0.0005")]
    assert number in chapter_numbers() or any(len(n) < len(number) for n in three)


@pytest.mark.parametrize("want", list(dict.fromkeys(outputs())))
def test_each_output_of_the_notebook_is_given_by_the_lab(want: str) -> None:
    lines = "\n".join(lab_outputs()).split("\n")
    size = want.count("\n") + 1
    windows = ["\n".join(lines[i : i + size]) for i in range(len(lines) - size + 1)]
    # round-off decides whether torch writes a sum of one as 1. or 1.0000
    plain = [re.sub(r"\b1\.(?:0000)?(?=[,)\]])", "1.0000", text) for text in (want, *windows)]
    assert any(compare_output(plain[0], got) != DIFFERENT for got in plain[1:])


def test_labs_are_committed_without_outputs() -> None:
    for path in ROOT.glob("docs/labs/*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), f"{path.name}: clear the outputs"
            assert cell.get("execution_count") is None
