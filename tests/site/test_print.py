"""A page with less than a browser can do: whole without script, and whole on paper."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page
from pypdf import PdfReader
from reader import (
    ARTICLE,
    FORMULA,
    KINDS,
    NEVER,
    SOLUTION,
    TOOLS,
    URL,
    WIDTHS,
    cases,
    file_of,
    thin,
)

# Formulas, tables, figures and wide code; a lab.
GATE = ("foundations/heads/", "labs/alignment/")
# And folded solutions.
PRINTED = [*GATE, "order/rotary/"]


def each(pages: list[str]) -> pytest.MarkDecorator:
    every = cases(pages, GATE.__contains__)
    return pytest.mark.parametrize("page", every, ids=lambda page: page or "index")


@pytest.fixture(scope="module")
def plain(browser: Browser) -> Iterator[Page]:
    """A tab without script: the theme's would open what is folded before it prints."""
    size = {"width": WIDTHS["desktop"], "height": 780}
    with browser.new_context(java_script_enabled=False, viewport=size) as context:  # type: ignore[arg-type]
        context.set_default_timeout(NEVER)
        yield context.new_page()


def dense(text: str) -> str:
    """Text as it can be found again, however its lines were broken."""
    return re.sub(r"[\s\u00a0\u00ad]+", "", text)


@each(KINDS)
def test_without_script_all_of_a_page_is_there(plain: Page, page: str) -> None:
    plain.goto(URL + page)
    while (folded := plain.locator(f"{SOLUTION}:not([open]) > summary:visible")).count():
        folded.first.click()
    hidden = plain.locator(f"{ARTICLE} :is(p, li, pre, td, h2, {FORMULA})").evaluate_all(
        """all => all.filter(e => {
            if (e.closest(".katex-mathml, .katex-mathml *")) return false;
            const box = e.getBoundingClientRect();
            return e.textContent.trim() && !(box.width > 0 && box.height > 0);
        }).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert hidden == []
    assert plain.locator(f"{TOOLS} button:visible, {TOOLS} :is(a, span):visible").count() == 0
    assert plain.locator(ARTICLE).inner_text().strip()


@each(PRINTED)
def test_a_page_prints_whole(plain: Page, site: Path, tmp_path: Path, page: str) -> None:
    plain.goto(URL + page)
    plain.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    texts = [sheet.extract_text() for sheet in PdfReader(tmp_path / "page.pdf").pages]
    assert all(len(text.strip()) > 100 for text in texts)
    printed = dense("".join(texts))

    soup = BeautifulSoup(thin(file_of(site, page).read_text("utf-8")), "html.parser")
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


@each(PRINTED)
def test_paper_is_white_and_no_line_of_code_is_cut(browser: Browser, page: str) -> None:
    size = {"width": 360, "height": 740}  # narrower than any paper
    with browser.new_context(color_scheme="dark", viewport=size) as context:  # type: ignore[arg-type]
        tab = context.new_page()
        tab.set_default_timeout(NEVER)
        tab.goto(URL + page)
        tab.locator("body[data-md-color-scheme=slate]").wait_for()
        on_screen = tab.evaluate(LOOK)
        tab.emulate_media(media="print", color_scheme="dark")
        on_paper = tab.evaluate(LOOK)
    assert on_screen["cut"] > 0
    assert on_paper["cut"] == 0
    assert on_screen["colours"] != on_paper["colours"]
    assert on_paper["colours"] == [
        ["rgb(255, 255, 255)", "rgb(0, 0, 0)"],
        ["rgba(0, 0, 0, 0)", "rgb(0, 0, 0)"],
    ]
