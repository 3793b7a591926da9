"""The site, built as it is deployed, shows what was run and asks nobody else for anything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from mkdocs.config import load_config
from reader import address, file_of, soup_of

from snippets import gate, ledger, picture, plain, takeaway

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/**/*.md"))


def mkdocs(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(cwd)}
    command = [sys.executable, "-m", "mkdocs", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def check_changed(html: str, folder: Path) -> list[str]:
    """What the gate says of the first chapter where its page is this."""
    (folder / "index.html").write_text(html, "utf-8")
    entry = ledger.read(ROOT, ROOT / "docs/foundations/similarity.md")
    assert entry
    return gate.check_page(gate.soup_of(folder / "index.html"), entry)


def test_the_site_shows_what_the_tests_saw(site: Path) -> None:
    assert gate.check_site(site, ROOT) == []


@pytest.mark.parametrize(
    ("find", "replace", "complaint"),
    [
        ("0.9544", "0.9545", "shown, but not seen"),
        ("<pre[^>]*>", "<pre>x = 1\n", "shown, but not seen"),
        ("</article>", "<pre>planted</pre></article>", "shown, but not seen"),
        (r'<code data-expr="[^"]*">[^<]*</code>', "1", "seen by the tests, but not shown"),
        (r'<div class="language-output.*?</div>', "", "not shown"),
    ],
)
def test_the_gate_sees_a_change_of_the_built_page(
    site: Path, tmp_path: Path, find: str, replace: str, complaint: str
) -> None:
    html = (site / "foundations/similarity/index.html").read_text("utf-8")
    changed = re.sub(find, replace, html, count=1 if find != "0.9544" else 0, flags=re.S)
    assert changed != html
    found = check_changed(changed, tmp_path)
    assert any(complaint in line for line in found), found


def test_the_gate_sees_blocks_that_change_places(site: Path, tmp_path: Path) -> None:
    html = (site / "foundations/similarity/index.html").read_text("utf-8")
    outputs = re.findall(r'<div class="language-output.*?</div>', html, re.S)
    one, two = outputs[1], outputs[2]
    html = html.replace(one, "<swap>").replace(two, one).replace("<swap>", two)
    assert check_changed(html, tmp_path) == ["the blocks stand in another order than the tests saw"]


def test_the_gate_refuses_a_page_that_the_ledger_does_not_speak_for(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# T\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<article><pre>1 + 1</pre></article>")
    site = tmp_path / "site"
    assert gate.check_site(site, tmp_path)[0] == "docs/index.md: was never run"
    assert gate.check_site(site, tmp_path / "nowhere") == [
        "there is no book here: run this where docs/ is"
    ]


def test_the_gate_sees_code_on_a_page_that_nobody_ran(site: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# T\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/stray.html").write_text("<article><pre>1 + 1</pre></article>")
    assert gate.check_site(tmp_path / "site", tmp_path) == [
        "docs/index.md: was never run",
        "stray.html: shows code, but no test saw this page",
    ]


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    for path in [*site.glob("**/*.html"), *site.glob("**/*.css")]:
        loads = re.findall(r"url\(['\"]?(https?:)?//", path.read_text("utf-8"))
        soup = soup_of(path)
        for tag in soup.find_all(["script", "img", "iframe", "source", "video"], src=True):
            loads += [tag["src"]] if re.match(r"(https?:)?//", str(tag["src"])) else []
        for tag in soup.find_all("link", href=True):
            if set(tag.get("rel", [])) & {
                "stylesheet",
                "preload",
                "icon",
                "preconnect",
                "prefetch",
            }:
                loads += [tag["href"]] if re.match(r"(https?:)?//", str(tag["href"])) else []
        assert not loads, f"{path.relative_to(site)} loads {loads}"


def test_math_is_typeset_and_numbered_where_it_is_referred_to(site: Path) -> None:
    article = gate.soup_of(file_of(site, "foundations/softmax/")).find("article")
    assert article is not None
    assert len(article.select(".arithmatex .katex")) > 40
    refs = article.select("a.eqref")
    assert refs
    for ref in refs:
        target = article.find(id=str(ref["href"]).removeprefix("#"))
        assert target is not None
        assert ref.get_text() in target.get_text()
    text = " ".join(t for t in article.stripped_strings)
    assert not re.search(r"\\(?:frac|sum|py|label|eqref)\b", re.sub(r"\\[a-z]+ ?\{", "", "")), text


def test_the_labs_formulas_are_typeset(site: Path) -> None:
    soup = BeautifulSoup(
        (site / "labs/first-notebook/index.html").read_text("utf-8"), "html.parser"
    )
    assert len(soup.select(".jp-RenderedMarkdown .katex")) >= 3
    for cell in soup.select(".jp-RenderedMarkdown"):
        for math in cell.select(".katex"):
            math.decompose()
        assert "$" not in cell.get_text()


def test_figures_are_drawings_with_a_text_alternative(site: Path) -> None:
    for name in ("similarity", "softmax"):
        soup = soup_of(file_of(site, f"foundations/{name}/"))
        figures = soup.select('article svg[role="img"]')
        assert figures
        assert all(len(str(figure["aria-label"])) > 60 for figure in figures)


def test_chapters_are_numbered_by_their_place_in_the_navigation(site: Path) -> None:
    for number, name in enumerate(("similarity", "softmax"), start=1):
        label = soup_of(file_of(site, f"foundations/{name}/")).select_one("article .chapter")
        assert label is not None
        assert label.get_text() == f"Chapter {number}"


def test_every_page_ends_in_a_link_that_reports_an_error(site: Path) -> None:
    for path in PAGES:
        link = soup_of(file_of(site, address(path))).select_one(".report a")
        assert link is not None
        assert "error" in str(link["href"]).lower()


def test_the_readmes_picture_is_what_chapter_1_draws(site: Path) -> None:
    assert picture.PICTURE.read_text("utf-8") == picture.DRAWN.read_text("utf-8"), "make picture"


def test_llms_txt_lists_every_page_and_each_of_its_links_is_in_the_site(
    site: Path, url: str
) -> None:
    config = load_config(str(ROOT / "mkdocs.yml"), site_url=url)
    text = (site / "llms.txt").read_text("utf-8")
    assert text.startswith(f"# {config.site_name}\n\n> ")
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S.+$", text, re.M)
    assert len(listed) == len(re.findall("^- ", text, re.M))
    sources = [entry.source for entry in takeaway.navigation(config.nav)]
    assert [Path(link).parent for link in listed] == [
        Path(config.site_url + plain.folder(source)) for source in sources
    ]
    for link in listed:
        assert (site / link.removeprefix(config.site_url)).is_file(), link


def test_a_notebook_and_markdown_lie_beside_each_chapter(site: Path) -> None:
    for path in PAGES:
        place = gate.html_path(site, str(path.relative_to(ROOT))).parent
        assert (place / "index.md").read_text("utf-8").startswith("# ")
        chapter = path.parent != ROOT / "docs"
        assert (place / f"{path.stem}.ipynb").exists() == chapter
        if chapter:
            book = nbformat.read(place / f"{path.stem}.ipynb", as_version=4)
            assert sum(bool(cell.get("outputs")) for cell in book.cells) > 10


NOTEBOOK = """{"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [],
"execution_count": null, "source": "%s"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What a build needs, without a ledger, and labs of one cell."""
    for name in ("docs", "snippets", "overrides", "attention"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for lab in (tmp_path / "docs/labs").glob("*.ipynb"):
        lab.write_text(NOTEBOOK % "1 + 1")
    return tmp_path


def test_a_stale_page_stops_the_build_and_names_the_command(copy: Path) -> None:
    result = mkdocs("build", "--strict", cwd=copy)
    assert result.returncode != 0
    assert "foundations/similarity.md: Never verified: this page was never run." in result.stderr
    assert "Run `pytest docs` first" in result.stderr


def test_a_failing_cell_of_a_lab_stops_the_build(copy: Path) -> None:
    (copy / "docs/labs/first-notebook.ipynb").write_text(NOTEBOOK % "1 / 0")
    result = mkdocs("build", "--strict", cwd=copy)
    assert result.returncode != 0
    assert "docs/labs/first-notebook.ipynb: a cell failed" in result.stderr
    assert "ZeroDivisionError: division by zero" in result.stderr


def test_a_page_that_no_test_would_see_stops_the_build(copy: Path) -> None:
    (copy / "docs/extra.markdown").write_text("# T")
    result = mkdocs("build", "--strict", cwd=copy)
    assert result.returncode != 0
    assert "extra.markdown: a page ends in .md, or no test would see it" in result.stderr
