"""The lab on extrapolation is executed, and its pictures show what its prose says."""

import functools
import re
from pathlib import Path
from statistics import fmean

import nbformat

from snippets.lab import executed

ROOT = Path(__file__).parents[1]
LAB = ROOT / "docs/labs/extrapolation.ipynb"
TEXT = re.compile(r'<text x="[\d.]+" y="([\d.]+)"[^>]*>([^<]*)</text>')
SHARE = re.compile(r"\d\.\d\d$")
EARLY = slice(0, 2)  # the columns of the positions that training had
LATE = slice(4, 8)  # from twice its length on
TASKS = {"ago": "Three ago", "put": "The last put"}
GUESSING = 1 / 8


@functools.cache
def pictures() -> dict[str, dict[str, list[float]]]:
    """By title: for each row its label and its numbers, as they are drawn."""
    found = {}
    for cell in nbformat.read(executed(ROOT, LAB), as_version=4).cells:
        for output in cell.get("outputs", []):
            svg = output.get("data", {}).get("image/svg+xml", "")
            lines: dict[str, list[str]] = {}
            for y, words in TEXT.findall(svg):
                lines.setdefault(y, []).append(words)
            for title in re.findall(r"<title>(.+?)</title>", svg):
                rows = [line for line in lines.values() if SHARE.match(" ".join(line[1:2]))]
                found[title] = {label: [float(x) for x in shares] for label, *shares in rows}
    return found


def test_each_picture_has_all_its_rows_and_positions() -> None:
    ways = ["mask alone", "sinusoids", "rotary", "ALiBi", "T5"]
    assert {title: list(rows) for title, rows in pictures().items()} == {
        "Three ago": ways,
        "The last put": ways,
        "With a window of 32": [
            f"{way}, {task}" for way in ("sinusoids", "rotary", "T5") for task in ("ago", "put")
        ],
        "Rotation, four times slower": ["three ago", "last put"],
    }
    assert {len(shares) for rows in pictures().values() for shares in rows.values()} == {8}


def test_within_the_trained_length_the_prose_names_who_answers() -> None:
    ago, put = pictures()["Three ago"], pictures()["The last put"]
    for way in ("sinusoids", "rotary", "T5"):
        assert min(ago[way][EARLY]) > 0.95
    for way in ("mask alone", "ALiBi"):
        assert GUESSING < max(ago[way]) < 0.5
    assert min(ago["ALiBi"]) > 0.2
    for way in ("sinusoids", "rotary", "ALiBi", "T5"):
        assert min(put[way][EARLY]) > 0.8
    assert 0.5 < put["mask alone"][0] < 0.9


def test_a_table_is_not_defined_past_its_end() -> None:
    book = nbformat.read(executed(ROOT, LAB), as_version=4)
    printed = [o.get("text", "") for cell in book.cells for o in cell.get("outputs", [])]
    assert "positions must be from 0 to 31, the table's rows, got 32\n" in printed


def test_past_it_rotation_guesses_and_a_window_brings_it_back() -> None:
    assert max(pictures()["Three ago"]["rotary"][LATE]) < 2 * GUESSING
    assert max(pictures()["The last put"]["rotary"][LATE]) < 0.5
    near = pictures()["With a window of 32"]
    assert min(near["rotary, ago"]) > 0.95 and min(near["rotary, put"]) > 0.8


def test_a_window_brings_sinusoids_back_only_in_part() -> None:
    for task, title in TASKS.items():
        alone = fmean(pictures()[title]["sinusoids"][LATE])
        near = fmean(pictures()["With a window of 32"][f"sinusoids, {task}"][LATE])
        assert alone < near < 0.8


def test_past_it_slopes_keep_their_answers_and_buckets_most() -> None:
    ago, put = pictures()["Three ago"], pictures()["The last put"]
    assert min(put["ALiBi"]) > 0.85
    assert min(ago["T5"]) > 0.5 and 0.4 < min(put["T5"]) < min(put["ALiBi"])
    near = pictures()["With a window of 32"]
    assert min(near["T5, ago"]) > 0.95 and min(near["T5, put"][LATE]) > min(put["T5"][LATE])


def test_rope_scaling_repairs_one_task_and_ruins_the_other() -> None:
    slow = pictures()["Rotation, four times slower"]
    assert min(slow["last put"]) > 0.75
    assert max(slow["three ago"]) < 0.5
