"""Every page, in a real browser, on a phone and on a desktop, light and dark."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from reader import (
    ADDRESSES,
    CHAPTERS,
    DARK,
    EVERYWHERE,
    FORMULA,
    KINDS,
    LIGHT,
    RULES,
    SCHEME,
    STATE,
    TAKE,
    WIDTHS,
    Visit,
    address,
    file_of,
    soup_of,
    visit,
)

Visitor = Callable[[str, str], Visit]
each_page = pytest.mark.parametrize("page", ADDRESSES, ids=lambda page: page or "index")
each_width = pytest.mark.parametrize("width", WIDTHS)


@pytest.fixture(scope="module")
def visited(browser: Browser, url: str) -> Visitor:
    """What a reader meets on a page at a width. Each is loaded once, whatever is asked about it."""
    visits = functools.cache(lambda page: visit(browser, url + page, closely=page in KINDS))
    return lambda page, width: visits(page)[width]


@each_page
@each_width
def test_nothing_goes_wrong_in_the_console(visited: Visitor, page: str, width: str) -> None:
    assert visited(page, width).heard == []


@each_page
@each_width
def test_the_content_security_policy_forbids_nothing_that_is_there(
    visited: Visitor, page: str, width: str
) -> None:
    assert visited(page, width).violations == []


@each_page
def test_each_page_has_a_content_security_policy(site: Path, page: str) -> None:
    soup = soup_of(file_of(site, page))
    policy = soup.select_one('head > meta[http-equiv="Content-Security-Policy"]')
    assert policy is not None
    assert "script-src" in str(policy["content"])


@each_page
@each_width
def test_nobody_else_is_asked_for_anything(
    visited: Visitor, url: str, page: str, width: str
) -> None:
    asked = visited(page, width).asked
    assert len(asked) > 3
    assert [u for u in asked if not u.startswith((url, "data:"))] == []


@each_page
@each_width
def test_no_page_scrolls_sideways(visited: Visitor, page: str, width: str) -> None:
    assert visited(page, width).too_wide == []


@each_page
@each_width
def test_nothing_moves_while_it_is_read(
    visited: Visitor, browser: Browser, url: str, page: str, width: str
) -> None:
    shifts = visited(page, width).shifts
    if sum(value for value, _ in shifts) > 0.01:  # on a busy machine a font can come late, once
        shifts = visit(browser, url + page, closely=False)[width].shifts
    assert sum(value for value, _ in shifts) <= 0.01, shifts


@each_page
@each_width
def test_every_formula_is_there_to_be_seen(
    visited: Visitor, site: Path, page: str, width: str
) -> None:
    soup = soup_of(file_of(site, page))
    shown = visited(page, width).formulas
    assert len(shown) == len(soup.select(FORMULA))
    assert [tex for tex, wide, high in shown if wide <= 0 or high <= 0] == []
    assert soup.select(".katex-error, merror") == []
    assert shown or page not in map(address, CHAPTERS)


@pytest.mark.parametrize(
    ("page", "width", "scheme"),
    [(page, *how) for page in ADDRESSES for how in RULES if page in KINDS or how == EVERYWHERE],
    ids=lambda x: x or "index",
)
def test_everyone_can_use_the_page(visited: Visitor, page: str, width: str, scheme: str) -> None:
    found = visited(page, width).audits[scheme]
    assert not found, "\n".join(["axe finds:", *found])


@pytest.mark.parametrize(("prefers", "scheme"), [("light", LIGHT), ("dark", DARK)])
def test_the_book_opens_in_the_scheme_that_the_reader_prefers(
    browser: Browser, url: str, prefers: str, scheme: str
) -> None:
    with browser.new_context(color_scheme=prefers) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(url)
        page.locator(f"body[{SCHEME}={scheme}]").wait_for(timeout=5000)


def test_a_public_book_asks_nobody_either(browser: Browser, public: str) -> None:
    """Of a public repository the theme would like to know the stars, from each reader's browser."""
    for name, met in visit(browser, public).items():
        assert [u for u in met.asked if not u.startswith((public, "data:"))] == [], name
        assert met.heard == met.violations == [], name
        assert met.too_wide == [] and not any(met.audits.values()), name


def test_a_public_chapter_opens_in_colab(site: Path, public: str) -> None:
    link = soup_of(file_of(site.parent / "public", address(CHAPTERS[0]))).select_one(
        f"{STATE} {TAKE.format('colab')}"
    )
    assert link is not None
    assert str(link["href"]).startswith("https://colab.research.google.com/github/example/")
