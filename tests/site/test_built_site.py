"""The site, built as it is deployed, shows what was run and asks nobody else for anything."""

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from mkdocs.config import load_config
from reader import PUBLIC, TAKE, URL, address, file_of, soup_of, thin

from snippets import gate, picture, plain, takeaway
from tests import record

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/**/*.md"))


def first_chapter(site: Path) -> str:
    return thin((site / "foundations/similarity/index.html").read_text("utf-8"))


def check_changed(html: str) -> list[str]:
    """What the gate says of the first chapter where its page is this."""
    entry = record.entry(ROOT / "docs/foundations/similarity.md")
    return gate.check_page(BeautifulSoup(html, "html.parser"), entry)


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
    site: Path, find: str, replace: str, complaint: str
) -> None:
    html = first_chapter(site)
    changed = re.sub(find, replace, html, count=1 if find != "0.9544" else 0, flags=re.S)
    assert changed != html
    found = check_changed(changed)
    assert any(complaint in line for line in found), found


def test_the_gate_sees_blocks_that_change_places(site: Path) -> None:
    html = first_chapter(site)
    outputs = re.findall(r'<div class="language-output.*?</div>', html, re.S)
    one, two = outputs[1], outputs[2]
    html = html.replace(one, "<swap>").replace(two, one).replace("<swap>", two)
    assert check_changed(html) == ["the blocks stand in another order than the tests saw"]


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


def test_the_gate_sees_code_on_a_page_that_nobody_ran(tmp_path: Path) -> None:
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
    for source in article.select("annotation"):
        source.decompose()
    assert not re.search(r"\\(?:frac|sum|py|label|eqref)\b", article.get_text())


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
        assert str(link["href"]).startswith(f"{PUBLIC}/issues/new?title=Error%20on%20")


def test_a_chapter_opens_in_colab(site: Path) -> None:
    link = soup_of(file_of(site, "foundations/similarity/")).select_one(TAKE.format("colab"))
    assert link is not None
    assert str(link["href"]).startswith("https://colab.research.google.com/github/example/")


def test_the_readmes_picture_is_what_chapter_1_draws(site: Path) -> None:
    assert picture.PICTURE.read_text("utf-8") == picture.DRAWN.read_text("utf-8"), "make picture"


def test_llms_txt_lists_every_page_and_each_of_its_links_is_in_the_site(site: Path) -> None:
    config = load_config(str(ROOT / "mkdocs.yml"), site_url=URL)
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
