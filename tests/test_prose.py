"""How the pages read: what a linter of prose and code can tell."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import attention
from snippets.page import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in ROOT.glob("docs/**/*.md"))
CHAPTERS = [p for p in PAGES if p.parent != ROOT / "docs"]
NEVER = re.compile(
    r"\b(simply|obviously|clearly|of course|trivial(?:ly)?|note that|as we can see|powerful|leverage|dive into|delve)\b",
    re.I,
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_prose_has_no_word_that_never_helps(path: Path) -> None:
    found = [
        f"{name(path)}:{i}: {match[0]}"
        for i, line in enumerate(path.read_text("utf-8").split("\n"), 1)
        for match in NEVER.finditer(line)
    ]
    assert not found


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_code_on_a_page_fits_the_column(path: Path) -> None:
    wide = [
        f"{name(path)}:{fence.line + i}: {len(line)} characters"
        for fence in parse(path).fences
        if fence.lang in ("python", "pycon")
        for i, line in enumerate(fence.source.split("\n"))
        if len(line) > 79
    ]
    assert not wide


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_code_on_a_page_is_clean(path: Path) -> None:
    """Ruff reads all snippets of a page as one file, on the page's own lines."""
    ignored = "E402,B015,B018,B905,F811,E501,E741,RUF001,RUF003,W293,W391"  # a page is a notebook
    ruff = [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format=concise"]
    stdin = [f"--stdin-filename={path.with_suffix('.py')}", "-"]
    result = subprocess.run(
        [*ruff, f"--extend-ignore={ignored}", *stdin],
        input=parse(path).code,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_a_chapter_has_its_parts(path: Path) -> None:
    text = path.read_text("utf-8")
    for heading in ("## What goes wrong", "## Exercises", "## Remember", "## References"):
        assert f"\n{heading}\n" in text, f"{name(path)} has no {heading!r}"
    assert "](figures/" in text, f"{name(path)} has no figure"
    remember = text.split("\n## Remember\n")[1].split("\n## ")[0]
    assert len(re.findall(r"^- ", remember, re.M)) == 3
    exercises = text.split("\n## Exercises\n")[1].split("\n## ")[0]
    asked = len(re.findall(r"^\*\*\d\. ", exercises, re.M))
    assert 2 <= asked <= 4
    assert exercises.count('??? success "Solution"') == asked


@pytest.mark.parametrize("public", attention.__all__)
def test_every_public_name_is_used_by_a_chapter(public: str) -> None:
    imported = rf"from attention import (?:[^(\n]*|\([^)]*)\b{public}\b"
    uses = re.compile(rf"{imported}|attention/(?:\w+/)*\w+\.py:{public}\b")
    assert any(uses.search(path.read_text("utf-8")) for path in CHAPTERS)
