"""The lab on alignment is executed, and each of its pictures shows what its prose says."""

import re
from pathlib import Path

import nbformat

from snippets.lab import executed

ROOT = Path(__file__).parents[1]
LAB = ROOT / "docs/labs/alignment.ipynb"
WORDS = "Your journey starts with one step".split()


def pictures() -> dict[str, dict[str, tuple[str, float]]]:
    """By title: for each word to be written the word that it reads most, and its weight."""
    found = {}
    for cell in nbformat.read(executed(ROOT, LAB), as_version=4).cells:
        for output in cell.get("outputs", []):
            svg = output.get("data", {}).get("image/svg+xml", "")
            for title, largest in re.findall(r"<desc>(.+?): .*row: (.+)\.</desc>", svg, re.S):
                rows = re.findall(r"(\w+): (\w+) (\d\.\d\d)", largest)
                found[title] = {row: (column, float(weight)) for row, column, weight in rows}
    return found


def test_after_training_each_word_reads_its_own() -> None:
    shown = pictures()
    after = ("Weights after training", "Weights of a dot product from a smaller start")
    for title in after:
        assert {row: column for row, (column, _) in shown[title].items()} == {w: w for w in WORDS}
        assert min(weight for _, weight in shown[title].values()) > 0.8


def test_before_training_no_word_does() -> None:
    before = pictures()["Weights before training"]
    assert set(before) == set(WORDS)
    assert max(weight for _, weight in before.values()) < 0.35


def test_a_dot_product_of_a_sum_misses_some() -> None:
    stuck = pictures()["Weights of a dot product after training"]
    assert sum(column != row for row, (column, _) in stuck.items()) in range(1, 5)
