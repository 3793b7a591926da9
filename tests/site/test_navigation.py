"""Ways through the book: its search, instant navigation, a wrong address, no script."""

import functools
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page
from reader import (
    ADDRESSES,
    ARTICLE,
    CHAPTERS,
    COPY,
    FORMULA,
    MARK,
    PYTHON,
    RESULT,
    ROOT,
    RUNNABLE,
    SEARCH,
    SOLUTION,
    STATE,
    TAKE,
    URL,
    Visit,
    address,
    cases,
    copied,
    file_of,
    listening,
    python_blocks,
    soup_of,
    until,
)

from snippets.reader import GOOD

# Two of one part.
FIRST, SECOND = [source for source in CHAPTERS if source.parent.name == "foundations"][:2]
CHAPTER, NEXT = address(FIRST), address(SECOND)
LAB = "labs/first-notebook/"


# --- search -----------------------------------------------------------------


@functools.cache
def entries(site: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((site / "search/search_index.json").read_text())[
        "docs"
    ]
    return found


@functools.cache
def prose(site: Path) -> dict[str, str]:
    """What the search knows of each page, by address."""
    texts: dict[str, str] = {}
    for entry in entries(site):
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


def title_of(source: Path) -> str:
    return source.read_text("utf-8").partition("\n")[0].removeprefix("# ")


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_index_of_the_search_has_each_chapter(site: Path, source: Path) -> None:
    page = address(source)
    titles = {one["location"]: one["title"] for one in entries(site)}
    assert titles[page] == title_of(source)
    assert own_word(site, page)
    assert "katex" not in prose(site)[page] and "<span" not in prose(site)[page]


@pytest.mark.parametrize(
    ("source", "by"),
    cases(
        [(source, by) for source in CHAPTERS for by in ("title", "word")],
        lambda source, by: source == {"title": FIRST, "word": CHAPTERS[-1]}[by],
    ),
    ids=lambda x: x if isinstance(x, str) else str(x.relative_to(ROOT)),
)
def test_the_search_finds_each_chapter(tab: Page, site: Path, source: Path, by: str) -> None:
    title = title_of(source)
    tab.goto(URL)
    words = title if by == "title" else own_word(site, address(source))
    tab.locator(SEARCH).press_sequentially(words)
    tab.locator(RESULT).first.click()
    tab.wait_for_url(re.compile(re.escape(URL + address(source)) + r"(\?.*)?(#.*)?$"))
    tab.get_by_role("heading", level=1, name=title).wait_for()


def test_the_index_of_the_search_waits_for_a_reader_who_searches(tab: Page) -> None:
    seen = Visit()
    with listening(tab, seen), tab.expect_request(URL + "sitemap.xml"):  # which the theme wants too
        tab.goto(URL + CHAPTER, wait_until="networkidle")
    assert not [one for one in seen.asked if "search_index" in one]
    with tab.expect_response(re.compile("search_index.json")):
        tab.locator(SEARCH).focus()


# --- instant navigation -----------------------------------------------------


def test_the_next_chapter_comes_without_a_load_and_whole(tab: Page) -> None:
    tab.goto(URL + CHAPTER)
    tab.evaluate("window.same = true")
    title = tab.locator(f"{ARTICLE} h1").inner_text()
    tab.locator(f"nav a[href$='{NEXT.rstrip('/').rpartition('/')[2]}/']:visible").first.click()
    tab.wait_for_url(URL + NEXT)
    tab.locator(f"{ARTICLE} h1", has_not_text=title.rstrip("¶")).wait_for()
    assert tab.evaluate("window.same") is True
    assert tab.locator(f"{STATE} {MARK}").is_visible()
    assert tab.locator(f"{ARTICLE} {FORMULA}").count() > 40
    assert tab.locator(f"{ARTICLE} {FORMULA} .katex-html").first.bounding_box()
    shown = python_blocks(SECOND)[0][1]
    assert copied(tab, tab.locator(f"{PYTHON} {COPY}").first) == shown.rstrip("\n")
    assert shown.rstrip("\n") in copied(tab, tab.locator(f"{PYTHON} {RUNNABLE}").first)
    tab.go_back()
    tab.wait_for_url(URL + CHAPTER)
    tab.get_by_role("heading", level=1, name=title.rstrip("¶")).wait_for()
    assert tab.evaluate("window.same") is True
    assert copied(tab, tab.locator(f"{PYTHON} {COPY}").first) == python_blocks(FIRST)[0][1].rstrip(
        "\n"
    )


# What a lab looks like: how each of its boxes is drawn.
LOOK = """() => [...document.querySelectorAll("article, article pre, article h2, article .jp-Cell")]
    .map(e => { const s = getComputedStyle(e), b = e.getBoundingClientRect(); return [
        e.tagName, s.fontFamily, s.fontSize, s.color, s.backgroundColor, s.whiteSpace, s.padding,
        Math.round(b.width)] })"""


@pytest.mark.parametrize("way", [(CHAPTER, LAB), (LAB, CHAPTER)], ids=["to a lab", "from a lab"])
def test_a_lab_looks_the_same_however_it_is_reached(tab: Page, way: tuple[str, str]) -> None:
    start, end = way
    tab.goto(URL + end)
    looks = tab.evaluate(LOOK)
    assert len(looks) > 20
    tab.goto(URL + start)
    tab.evaluate("window.same = true")
    name = end.rstrip("/").rpartition("/")[2]
    tab.locator(f"nav a[href$='{name}/']:visible").first.click()
    tab.wait_for_url(URL + end)
    until(tab, f"n => document.querySelectorAll('{ARTICLE} pre').length >= n", 9)
    assert tab.evaluate("window.same") is True
    until(tab, f"want => JSON.stringify(({LOOK})()) === JSON.stringify(want)", looks)


@pytest.mark.parametrize("page", sorted(set(ADDRESSES) - {"404.html"}), ids=lambda p: p or "index")
def test_each_page_says_how_true_it_is_and_can_be_taken_along(site: Path, page: str) -> None:
    file = file_of(site, page)
    (state,) = soup_of(file).select(f"{ARTICLE} h1 ~ {STATE}")
    assert state["data-state"] in GOOD
    assert state.select(MARK)
    if page in map(address, CHAPTERS):
        (notebook,), (markdown,) = (
            state.select(TAKE.format(kind)) for kind in ("notebook", "markdown")
        )
        assert notebook.has_attr("download")
        for link in (notebook, markdown):
            assert (file.parent / str(link["href"])).is_file(), link


# --- keyboard ---------------------------------------------------------------


def test_a_solution_opens_by_keyboard(tab: Page) -> None:
    tab.goto(URL + CHAPTER)
    solution = tab.locator(SOLUTION).first
    assert solution.evaluate("e => e.open") is False
    solution.locator("summary").first.press("Enter")
    assert solution.evaluate("e => e.open") is True


def test_the_skip_link_leads_to_the_text(tab: Page) -> None:
    # The theme's script takes links over while it waits for the site's list of pages; nobody's
    # first key comes that soon.
    tab.goto(URL + CHAPTER, wait_until="networkidle")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.locator(f"{ARTICLE} :target").wait_for()
    tab.keyboard.press("Tab")
    assert tab.evaluate(f"document.activeElement.closest('{ARTICLE}') !== null")


# --- a wrong address --------------------------------------------------------


@pytest.mark.parametrize("wrong", ["nothing-here", "foundations/no/such/page/"])
def test_a_wrong_address_leads_back_into_the_book(tab: Page, wrong: str) -> None:
    response = tab.goto(URL + wrong)
    assert response is not None and response.status == 404
    assert tab.evaluate("[...document.styleSheets].every(s => s.cssRules.length > 0)")
    assert "Book Serif" in tab.locator(ARTICLE).evaluate("e => getComputedStyle(e).fontFamily")
    links = tab.locator(f"{ARTICLE} a[href]:visible")
    targets = {str(target) for target in links.evaluate_all("all => all.map(a => a.href)")}
    assert {URL + address(source) for source in CHAPTERS} <= targets
