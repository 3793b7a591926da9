"""A lab is executed once for each change of itself, of the package or of the pins; a failure stops."""

from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from mkdocs_jupyter.nbconvert2 import nb2html

from snippets.lab import LabError, executed, slim


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


def test_pytest_executes_labs_and_shows_the_cell_that_fails(pytester: pytest.Pytester) -> None:
    (pytester.path / "conftest.py").write_text('pytest_plugins = ["snippets.pytest_plugin"]\n')
    write(pytester.path / "docs/labs/good.ipynb", "40 + 2")
    write(pytester.path / "docs/labs/bad.ipynb", "1 / 0")
    result = pytester.runpytest_subprocess("docs")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([r"docs/labs/bad\.ipynb: a cell failed", "1 / 0", "ZeroDivision"])
    assert [copy.name for copy in pytester.path.glob(".book/**/*.ipynb")] == ["good.ipynb"]
    pytester.runpytest_subprocess("docs", "--arithmetic", "own").assert_outcomes()


OUTPUTS = [
    nbformat.v4.new_output("stream", name="stdout", text="a < b\n"),
    nbformat.v4.new_output("stream", name="stderr", text="be warned\n"),
    nbformat.v4.new_output(
        "display_data", data={"text/html": '<style>a{}</style><table border="1"><td>1</td></table>'}
    ),
    nbformat.v4.new_output(
        "display_data",
        data={
            "image/svg+xml": '<svg viewBox="0 0 1 1"><style>a{}</style><desc>six words</desc></svg>'
        },
    ),
]


def converted(tmp_path: Path, text: str) -> str:
    """What the site's plugin makes of a notebook."""
    cells = [
        nbformat.v4.new_markdown_cell(text),
        nbformat.v4.new_code_cell("print(1)  " + "#" * 40, outputs=OUTPUTS),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "lab.ipynb")
    return str(nb2html(tmp_path / "lab.ipynb"))


def test_a_lab_has_the_markup_of_the_pages(tmp_path: Path) -> None:
    content = converted(tmp_path, "# one\n\n[there](../a.md#b)\n\n```python\n1\n```")
    shown = slim(content, "labs/lab.ipynb", {"a.md": "../../a/"})
    soup = BeautifulSoup(shown, "html.parser")
    assert not soup.select("style, script, .clipboard-copy-txt, [border], .anchor-link")
    assert [code.get_text() for code in soup.select(".language-output > pre > code")] == [
        "a < b\n",
        "be warned\n",
    ]
    assert len(soup.select(".jp-CodeCell > .language-python > pre[tabindex] > code > .c1")) == 1
    assert len(soup.select("pre > code")) == len(soup.select("pre[style='--lines:1']")) == 4
    assert len(soup.select(".stderr")) == len(soup.select("table")) == 1
    drawing = soup.select_one("svg[role=img]")
    assert drawing is not None
    assert "six words" in drawing["aria-label"]
    assert [a["href"] for a in soup.select("a")] == ["#one", "../../a/#b"]
    assert len(shown) < len(content) / 100


def test_a_lab_links_to_pages_only(tmp_path: Path) -> None:
    content = converted(tmp_path, "[there](../gone.md)")
    with pytest.raises(
        LabError, match=r"labs/lab\.ipynb: links to \.\./gone\.md, which is no page"
    ):
        slim(content, "labs/lab.ipynb", {"a.md": "../../a/"})
