"""A lab is executed once for each change of itself, of the package or of the pins; a failure stops."""

from pathlib import Path

import nbformat
import pytest

from snippets.lab import LabError, executed


def write(path: Path, source: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = nbformat.v4.new_code_cell(source, id="only")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)
    return path


def test_a_lab_is_executed_once_for_each_change(tmp_path: Path) -> None:
    lab = write(tmp_path / "docs/labs/lab.ipynb", "40 + 2")
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention/a.py").write_text("x = 1\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    first = executed(tmp_path, lab)
    assert nbformat.read(first, as_version=4).cells[0].outputs[0].data["text/plain"] == "42"
    stamp = first.stat().st_mtime_ns
    assert executed(tmp_path, lab) == first
    assert first.stat().st_mtime_ns == stamp
    copies = {first}
    for change in ("attention/a.py", "constraints.txt"):
        (tmp_path / change).write_text("changed\n")
        copies.add(executed(tmp_path, lab))
    copies.add(executed(tmp_path, write(lab, "40 + 3")))
    assert len(copies) == 4


def test_a_failing_cell_fails_the_lab_and_leaves_no_copy(tmp_path: Path) -> None:
    lab = write(tmp_path / "docs/labs/lab.ipynb", "1 / 0")
    for _ in range(2):
        with pytest.raises(LabError, match=r"(?s)docs/labs/lab\.ipynb.*1 / 0.*ZeroDivisionError"):
            executed(tmp_path, lab)
    assert not list(tmp_path.glob(".book/**/*.ipynb"))
