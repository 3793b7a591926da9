"""Every page in a real browser, on a phone and on a desktop, light and dark.

The gate meets each page at one width, and one page of each kind at both and in both schemes.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Route
from reader import (
    ADDRESSES,
    AT_ONCE,
    AUDIT,
    AXE_SCRIPT,
    CHAPTERS,
    COLOURS,
    DARK,
    FORMULA,
    KINDS,
    LIGHT,
    NEVER,
    OPEN_ALL,
    SCHEME,
    SCROLL,
    THIN,
    URL,
    WALKED,
    WATCH,
    WIDTHS,
    Visit,
    address,
    cases,
    file_of,
    forget,
    is_due,
    soup_of,
    turn,
    until,
    visit,
    walk,
)

Visitor = Callable[[str, str], Visit]
each_page = pytest.mark.parametrize("page", ADDRESSES, ids=lambda page: page or "index")
each_kind = pytest.mark.parametrize("page", KINDS, ids=lambda page: page or "index")
each_visit = pytest.mark.parametrize(
    ("page", "width"),
    cases([(page, width) for page in ADDRESSES for width in WIDTHS], is_due),
    ids=lambda x: x or "index",
)


@pytest.fixture(scope="module")
def tabs(browser: Browser) -> Iterator[dict[str, Page]]:
    """A tab for each width, which keeps nothing that it has seen."""
    found = {}
    for name, width in WIDTHS.items():
        phone = name == "phone"
        size = {"width": width, "height": 780}
        context = browser.new_context(viewport=size, is_mobile=phone, has_touch=phone)  # type: ignore[arg-type]
        context.set_default_timeout(NEVER)
        found[name] = context.new_page()
        found[name].add_init_script(WATCH)
        session = context.new_cdp_session(found[name])
        session.send("Network.enable")
        session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    yield found
    for tab in found.values():
        tab.context.close()


@pytest.fixture(scope="module")
def visited(tabs: dict[str, Page]) -> Visitor:
    """What a reader meets on a page at a width. Each is loaded once, whatever is asked about it."""
    return functools.cache(lambda page, width: visit(tabs[width], page))


@each_visit
def test_nothing_goes_wrong_in_the_console(visited: Visitor, page: str, width: str) -> None:
    assert visited(page, width).heard == []


@each_visit
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


@each_visit
def test_nobody_else_is_asked_for_anything(visited: Visitor, page: str, width: str) -> None:
    """Nor is the host of the repository, of which the theme would like to know the stars."""
    asked = visited(page, width).asked
    assert len(asked) > 3
    assert [u for u in asked if not u.startswith((URL, "data:"))] == []


@each_visit
def test_no_page_scrolls_sideways(visited: Visitor, page: str, width: str) -> None:
    assert visited(page, width).too_wide == []


@each_visit
def test_nothing_moves_while_it_is_read(visited: Visitor, page: str, width: str) -> None:
    shifts = visited(page, width).shifts
    assert sum(value for value, _ in shifts) <= 0.01, shifts


def test_a_typeface_that_comes_late_moves_nothing(tabs: dict[str, Page], site: Path) -> None:
    """It is asked for, and then done without: on a page of prose, for formulas wait for theirs."""
    page = next(p for p in ADDRESSES if p and not soup_of(file_of(site, p)).select(FORMULA))
    tab, held = tabs["desktop"], list[Route]()
    tab.route("**/book-serif-*.woff2", lambda route: held.append(route))
    tab.goto(URL + page, wait_until="domcontentloaded")
    until(tab, "() => performance.getEntriesByType('paint').length")
    # A browser waits a tenth of a second for an optional typeface, and no less on a slow machine.
    tab.evaluate("() => new Promise(resolve => setTimeout(resolve, 1000))")
    assert held
    for route in held:
        route.continue_()
    tab.unroute("**/book-serif-*.woff2")
    tab.wait_for_load_state("load")
    tab.evaluate(SCROLL)
    shifts = tab.evaluate("watched.shifts(true)")
    assert sum(value for value, _ in shifts) <= 0.01, shifts


@each_visit
def test_every_formula_is_there_to_be_seen(
    visited: Visitor, site: Path, page: str, width: str
) -> None:
    soup = soup_of(file_of(site, page))
    shown = visited(page, width).formulas
    assert len(shown) == len(soup.select(FORMULA))
    assert [tex for tex, wide, high in shown if wide <= 0 or high <= 0] == []
    assert soup.select(".katex-error, merror") == []
    assert shown or page not in map(address, CHAPTERS)


@each_visit
def test_everyone_can_use_the_page(visited: Visitor, page: str, width: str) -> None:
    """Of what the theme decides, colours and sizes, one page of each kind is asked."""
    found = visited(page, width).audit
    assert not found, "\n".join(["axe finds:", *found])


@each_kind
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_every_colour_can_be_told_from_its_ground(
    visited: Visitor, page: str, width: str, scheme: str
) -> None:
    found = visited(page, width).colours[scheme]
    assert not found, "\n".join(["axe finds:", *found])


@pytest.mark.exhaustive
@each_page
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_every_text_can_be_told_from_its_ground(
    tabs: dict[str, Page], page: str, width: str, scheme: str
) -> None:
    tab = tabs[width]
    tab.goto(URL + page)
    tab.evaluate(OPEN_ALL)
    tab.evaluate(AT_ONCE)
    turn(tab, scheme)
    tab.evaluate(THIN)
    tab.evaluate(AXE_SCRIPT)
    found = tab.evaluate(AUDIT, {"runOnly": COLOURS})
    forget(tab)
    assert not found, "\n".join(["axe finds:", *found])


@pytest.mark.parametrize(
    "page",
    cases(ADDRESSES, WALKED.__contains__),
    ids=lambda page: page or "index",
)
def test_all_of_a_page_can_be_reached_by_keyboard(
    tabs: dict[str, Page], visited: Visitor, page: str
) -> None:
    if page in WALKED:
        lost = visited(page, "desktop").lost
    else:
        tabs["desktop"].goto(URL + page)
        lost = walk(tabs["desktop"])
    assert not lost, "\n".join(["the focus does not come there, or cannot be seen:", *lost])


@each_kind
def test_nothing_moves_by_itself_for_who_wants_it_still(visited: Visitor, page: str) -> None:
    assert visited(page, "phone").moving == []


@pytest.mark.parametrize(("prefers", "scheme"), [("light", LIGHT), ("dark", DARK)])
def test_the_book_opens_in_the_scheme_that_the_reader_prefers(
    tabs: dict[str, Page], prefers: Literal["light", "dark"], scheme: str
) -> None:
    tab = tabs["desktop"]
    tab.emulate_media(color_scheme=prefers)
    tab.goto(URL)
    tab.locator(f"body[{SCHEME}={scheme}]").wait_for()
    forget(tab)
    tab.emulate_media(color_scheme="light")
