"""Ways through the book: its search, instant navigation, the keyboard, a wrong address, no script."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from reader import (
    ADDRESSES,
    ARTICLE,
    CHAPTERS,
    COPY,
    FORMULA,
    KINDS,
    MARK,
    PYTHON,
    RESULT,
    RUNNABLE,
    SEARCH,
    SOLUTION,
    STATE,
    TAKE,
    TOOLS,
    WIDTHS,
    address,
    cases,
    file_of,
    python_blocks,
    soup_of,
)

# Two of one part.
FIRST, SECOND = [source for source in CHAPTERS if source.parent.name == "foundations"][:2]
CHAPTER, NEXT = address(FIRST), address(SECOND)
LAB = "labs/first-notebook/"
SOUGHT = {"title": FIRST, "word": SECOND}  # in the gate; of all chapters the index is read
each_kind = pytest.mark.parametrize(
    "page",
    cases([(page,) for page in KINDS], lambda page: page in (CHAPTER, KINDS[1], KINDS[-2])),
    ids=lambda page: page or "index",
)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    with browser.new_context(
        viewport={"width": WIDTHS["desktop"], "height": 780},
        permissions=["clipboard-read", "clipboard-write"],
    ) as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        yield page


# --- search -----------------------------------------------------------------


@functools.cache
def prose(site: Path) -> dict[str, str]:
    """What the search knows of each page, by address."""
    index = json.loads((site / "search/search_index.json").read_text("utf-8"))
    texts: dict[str, str] = {}
    for entry in index["docs"]:
        page = entry["location"].partition("#")[0]
        texts[page] = f"{texts.get(page, '')} {entry['title']} {entry['text']}"
    return texts


def own_word(site: Path, page: str) -> str:
    """The first letters of a word that only this page has.

    The search knows stems, `clip` for clipped, and looks for what begins as it is told; it cuts
    NoFuture in two.
    """
    texts = prose(site)
    others = " ".join(text for other, text in texts.items() if other != page).lower()
    prose_alone = re.sub(r"<(pre|code)\b.*?</\1>", " ", texts[page], flags=re.S)
    for text in (prose_alone, texts[page]):
        words = re.findall(r"\b[a-z]{7,12}\b", re.sub(r"<[^>]+>", " ", text))
        own = [w for w in words if w[:6] not in others and not w.endswith(("ed", "ing", "s", "ly"))]
        if own:
            break
    return max(own, key=lambda w: (words.count(w), w))[:6]


@pytest.mark.parametrize(
    ("source", "by"),
    cases([(s, by) for s in CHAPTERS for by in ("title", "word")], lambda s, by: s == SOUGHT[by]),
    ids=lambda x: x if isinstance(x, str) else x.stem,
)
def test_the_search_finds_each_chapter(
    tab: Page, site: Path, url: str, source: Path, by: str
) -> None:
    title = source.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    tab.goto(url)
    words = title if by == "title" else own_word(site, address(source))
    tab.locator(SEARCH).press_sequentially(words)
    tab.locator(RESULT).first.click()
    tab.wait_for_url(re.compile(re.escape(url + address(source)) + r"(\?.*)?(#.*)?$"))
    tab.get_by_role("heading", level=1, name=title).wait_for()


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_the_index_of_the_search_has_title_and_words_of_each_chapter(
    site: Path, source: Path
) -> None:
    title = source.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    assert title in prose(site)[address(source)]
    assert own_word(site, address(source))


def test_the_index_of_the_search_waits_for_a_reader_who_searches(tab: Page, url: str) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    with tab.expect_request(url + "sitemap.xml"):  # for which the theme's script asks as well
        tab.goto(url + CHAPTER)
    tab.wait_for_load_state("networkidle")
    assert not [one for one in asked if "search_index" in one]
    with tab.expect_response(re.compile("search_index.json")):
        tab.locator(SEARCH).focus()


# --- instant navigation -----------------------------------------------------


def copied(tab: Page, selector: str) -> str:
    tab.locator(selector).first.click()
    return str(tab.evaluate("navigator.clipboard.readText()"))


def test_the_next_chapter_comes_without_a_load_and_whole(tab: Page, url: str) -> None:
    tab.goto(url + CHAPTER)
    tab.evaluate("window.same = true")
    title = tab.locator(f"{ARTICLE} h1").inner_text()
    tab.locator(f"nav a[href$='{NEXT.rstrip('/').rpartition('/')[2]}/']:visible").first.click()
    tab.wait_for_url(url + NEXT)
    tab.locator(f"{ARTICLE} h1", has_not_text=title.rstrip("¶")).wait_for()
    assert tab.evaluate("window.same") is True
    assert tab.locator(f"{STATE} {MARK}").is_visible()
    assert tab.locator(f"{ARTICLE} {FORMULA}").count() > 40
    assert tab.locator(f"{ARTICLE} {FORMULA} .katex-html").first.bounding_box()
    shown = python_blocks(SECOND)[0][1]
    assert copied(tab, f"{PYTHON} {COPY}") == shown.rstrip("\n")
    assert shown.rstrip("\n") in copied(tab, f"{PYTHON} {RUNNABLE}")
    tab.go_back()
    tab.wait_for_url(url + CHAPTER)
    tab.get_by_role("heading", level=1, name=title.rstrip("¶")).wait_for()
    assert tab.evaluate("window.same") is True
    assert copied(tab, f"{PYTHON} {COPY}") == python_blocks(FIRST)[0][1].rstrip("\n")


# What a lab looks like: how each of its boxes is drawn.
LOOK = """() => [...document.querySelectorAll("article, article pre, article h2, article .jp-Cell")]
    .map(e => { const s = getComputedStyle(e), b = e.getBoundingClientRect(); return [
        e.tagName, s.fontFamily, s.fontSize, s.color, s.backgroundColor, s.whiteSpace, s.padding,
        Math.round(b.width)] })"""


@pytest.mark.parametrize("way", [(CHAPTER, LAB), (LAB, CHAPTER)], ids=["to a lab", "from a lab"])
def test_a_lab_looks_the_same_however_it_is_reached(
    tab: Page, url: str, way: tuple[str, str]
) -> None:
    start, end = way
    tab.goto(url + end)
    looks = tab.evaluate(LOOK)
    assert len(looks) > 20
    tab.goto(url + start)
    tab.evaluate("window.same = true")
    name = end.rstrip("/").rpartition("/")[2]
    tab.locator(f"nav a[href$='{name}/']:visible").first.click()
    tab.wait_for_url(url + end)
    tab.wait_for_function(f"n => document.querySelectorAll('{ARTICLE} pre').length >= n", arg=9)
    assert tab.evaluate("window.same") is True
    tab.wait_for_function(f"want => JSON.stringify(({LOOK})()) === JSON.stringify(want)", arg=looks)


@pytest.mark.parametrize("page", sorted(set(ADDRESSES) - {"404.html"}), ids=lambda p: p or "index")
def test_each_page_says_how_true_it_is_and_can_be_taken_along(site: Path, page: str) -> None:
    file = file_of(site, page)
    (state,) = soup_of(file).select(f"{ARTICLE} h1 ~ {STATE}")
    assert state["data-state"] == "verified"
    assert state.select(MARK)
    if page in map(address, CHAPTERS):
        (notebook,), (markdown,) = (
            state.select(TAKE.format(kind)) for kind in ("notebook", "markdown")
        )
        assert notebook.has_attr("download")
        for link in (notebook, markdown):
            assert (file.parent / str(link["href"])).is_file(), link


# --- keyboard ---------------------------------------------------------------


def test_the_skip_link_leads_to_the_text(tab: Page, url: str) -> None:
    # The theme's script takes links over while it waits for the site's list of pages; nobody's
    # first key comes that soon.
    tab.goto(url + CHAPTER, wait_until="networkidle")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.locator(f"{ARTICLE} :target").wait_for()
    tab.keyboard.press("Tab")
    assert tab.evaluate(f"document.activeElement.closest('{ARTICLE}') !== null")


# --- a wrong address --------------------------------------------------------


@pytest.mark.parametrize("wrong", ["nothing-here", "foundations/no/such/page/"])
def test_a_wrong_address_leads_back_into_the_book(tab: Page, url: str, wrong: str) -> None:
    response = tab.goto(url + wrong)
    assert response is not None and response.status == 404
    assert tab.evaluate("[...document.styleSheets].every(s => s.cssRules.length > 0)")
    assert "Book Serif" in tab.locator(ARTICLE).evaluate("e => getComputedStyle(e).fontFamily")
    links = tab.locator(f"{ARTICLE} a[href]:visible")
    targets = {str(target) for target in links.evaluate_all("all => all.map(a => a.href)")}
    assert {url + address(source) for source in CHAPTERS} <= targets
    for target in targets:
        if target.startswith(url):
            assert tab.request.get(target).ok, target


# --- less than a browser can do ---------------------------------------------


@each_kind
def test_without_script_all_of_a_page_is_there(browser: Browser, url: str, page: str) -> None:
    size = {"width": WIDTHS["desktop"], "height": 780}
    with browser.new_context(java_script_enabled=False, viewport=size) as context:  # type: ignore[arg-type]
        tab = context.new_page()
        tab.goto(url + page)
        while (folded := tab.locator(f"{SOLUTION}:not([open]) > summary:visible")).count():
            folded.first.click()
        hidden = tab.locator(f"{ARTICLE} :is(p, li, pre, td, h2, {FORMULA})").evaluate_all(
            """all => all.filter(e => {
                if (e.closest(".katex-mathml, .katex-mathml *")) return false;
                const box = e.getBoundingClientRect();
                return e.textContent.trim() && !(box.width > 0 && box.height > 0);
            }).map(e => e.outerHTML.slice(0, 120))"""
        )
        assert hidden == []
        assert tab.locator(f"{TOOLS} button:visible, {TOOLS} :is(a, span):visible").count() == 0
        assert tab.locator(ARTICLE).inner_text().strip()
