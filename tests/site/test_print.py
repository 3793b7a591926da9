"""A page prints whole: solutions open, code wrapped, nothing that only a screen can use."""

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser
from pypdf import PdfReader
from reader import cases

from snippets import gate

ROOT = Path(__file__).parents[2]
# Formulas, tables, figures and wide code; folded solutions; a lab.
NAMES = ("foundations/heads.md", "order/rotary.md", "labs/alignment.ipynb")
SOURCES = [ROOT / "docs" / name for name in NAMES]
each_source = pytest.mark.parametrize(
    "source",
    cases([(source,) for source in SOURCES], lambda source: source == SOURCES[0]),
    ids=lambda path: path.stem,
)


def dense(text: str) -> str:
    """Text as it can be found again, however its lines were broken."""
    return re.sub(r"[\s\u00a0\u00ad]+", "", text)


@each_source
def test_a_page_prints_whole(
    site: Path, url: str, browser: Browser, tmp_path: Path, source: Path
) -> None:
    html = gate.html_path(site, source.relative_to(ROOT).as_posix())
    address = url + html.parent.relative_to(site).as_posix() + "/"
    with browser.new_context(java_script_enabled=False) as context:  # the theme's opens details
        page = context.new_page()
        page.goto(address)
        page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    texts = [sheet.extract_text() for sheet in PdfReader(tmp_path / "page.pdf").pages]
    assert all(len(text.strip()) > 100 for text in texts)
    printed = dense("".join(texts))

    soup = BeautifulSoup(html.read_text("utf-8"), "html.parser")
    article = soup.select_one("article")
    assert article is not None
    for code in article.select("pre"):
        for line in code.get_text().split("\n"):
            assert dense(line) in printed, line
    for details in article.select("details"):
        words = details.select_one("p")
        if words and not words.select(".katex"):
            assert dense(words.get_text()) in printed
    for report in article.select(".report"):
        assert dense(report.extract().get_text()) not in printed
    for gone in soup.select(".md-header, .md-sidebar, .md-footer"):
        for text in gone.stripped_strings:
            if len(text) > 20 and dense(text) not in dense(article.get_text()):
                assert dense(text) not in printed, text
    for link in article.select("a[href]"):
        address = dense(str(link["href"]))
        assert len(address) < 10 or address not in printed, address


LOOK = """() => ({
    colours: [document.body, document.querySelector("article")].map(getComputedStyle)
        .map(style => [style.backgroundColor, style.color]),
    cut: [...document.querySelectorAll("article pre")]
        .filter(pre => pre.scrollWidth > pre.clientWidth).length,
})"""


@each_source
def test_paper_is_white_and_no_line_of_code_is_cut(
    site: Path, url: str, browser: Browser, source: Path
) -> None:
    html = gate.html_path(site, source.relative_to(ROOT).as_posix())
    size = {"width": 360, "height": 740}  # narrower than any paper
    with browser.new_context(color_scheme="dark", viewport=size) as context:
        page = context.new_page()
        page.goto(url + html.parent.relative_to(site).as_posix() + "/", wait_until="networkidle")
        on_screen = page.evaluate(LOOK)
        page.emulate_media(media="print", color_scheme="dark")
        on_paper = page.evaluate(LOOK)
    assert on_screen["cut"] > 0
    assert on_paper["cut"] == 0
    assert on_screen["colours"] != on_paper["colours"]
    assert on_paper["colours"] == [
        ["rgb(255, 255, 255)", "rgb(0, 0, 0)"],
        ["rgba(0, 0, 0, 0)", "rgb(0, 0, 0)"],
    ]
