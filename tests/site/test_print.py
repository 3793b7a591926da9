"""A page prints whole: solutions open, code wrapped, nothing that only a screen can use."""

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser
from pypdf import PdfReader

from snippets import gate

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("docs/foundations/*.md"), *ROOT.glob("docs/labs/*.ipynb")])


def dense(text: str) -> str:
    """Text as it can be found again, however its lines were broken."""
    return re.sub(r"[\s\u00a0\u00ad]+", "", text)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_page_prints_whole(
    site: Path, url: str, browser: Browser, tmp_path: Path, source: Path
) -> None:
    html = gate.html_path(site, source.relative_to(ROOT).as_posix())
    address = url + html.parent.relative_to(site).as_posix() + "/"
    context = browser.new_context(color_scheme="dark", viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(address, wait_until="networkidle")
    page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    page.emulate_media(media="print", color_scheme="dark")
    paper = page.evaluate(
        "[document.body, document.querySelector('article')].map(e => getComputedStyle(e))"
        ".map(s => [s.backgroundColor, s.color])"
    )
    context.close()
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
    for gone in soup.select(".md-header, .md-sidebar, .md-footer, .report"):
        for text in gone.stripped_strings:
            if len(text) > 20 and text not in article.get_text():
                assert dense(text) not in printed, text
    assert "http" not in printed
    assert paper == [["rgb(255, 255, 255)", "rgb(0, 0, 0)"], ["rgba(0, 0, 0, 0)", "rgb(0, 0, 0)"]]
