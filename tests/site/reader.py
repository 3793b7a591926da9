"""What the tests of the site share: where the pages are, what to look for on them, how to look."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet
from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup
from playwright.sync_api import ConsoleMessage, Locator, Page

from snippets import gate, search
from snippets import page as pages
from snippets.page import Snippet

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("docs/**/*.md"))
CHAPTERS = sorted(ROOT.glob("docs/*/*.md"))
LABS = sorted(ROOT.glob("docs/labs/*.ipynb"))

# The book is served under a path, as a project's pages are: an address from the root would fail.
# The host is one that browsers trust with a clipboard; each worker serves it at a port of its own.
HOST, PATH = "book.localhost", "/book/"
URL = f"http://{HOST}{PATH}"
# A repository, for what only a public book has. Nothing is ever asked of it.
PUBLIC = "https://github.com/example/attention"

WIDTHS = {"phone": 360, "desktop": 1280}

# What the tests look for. Everything that names a class of the theme or of the book is here.
ARTICLE = "article"
PYTHON = "article :is(.language-python, .language-pycon).highlight"
CONSOLE = "article .language-console.highlight"
OUTPUT = "article .language-output.highlight"
TOOLS = "div.code-tools"
COPY = "button.code-copy"
RUNNABLE = "button.code-run"
STATE = "div.page-state"
MARK = "p.mark"
TAKE = "a[data-take={}]"
SOLUTION = "details"
FORMULA = ".katex"
SCHEME = "data-md-color-scheme"
LIGHT, DARK = "default", "slate"
TOGGLE = "[data-md-component=palette] label:not([hidden])"
SEARCH = "[data-md-component=search-query]"
RESULT = "[data-md-component=search-result] a.md-search-result__link"
SKIP = "a.md-skip"


def address(source: Path) -> str:
    """The address of a page, relative to the book's."""
    html = gate.html_path(Path(), source.relative_to(ROOT).as_posix())
    return "" if html.parent == Path() else f"{html.parent.as_posix()}/"


ADDRESSES = [*map(address, [*SOURCES, *LABS]), "404.html"]

# One page of each kind, for what the theme decides and a page's own words do not: the first, a
# chapter, tables, terms, signatures, a lab, a wrong address.
KINDS = [
    *("", "foundations/heads/", "conformance/", "glossary/", "reference/"),
    *("labs/alignment/", "404.html"),
]
# The reference has five hundred places for the focus, and none that is not elsewhere.
WALKED = [page for page in KINDS if page != "reference/"]


def cases(every: Iterable[Any], gate: Callable[..., bool]) -> list[ParameterSet]:
    """The cases that `gate` wants are in the gate; the others are run by `make test-all`."""
    whole = [one if isinstance(one, tuple) else (one,) for one in every]
    return [pytest.param(*one, marks=() if gate(*one) else pytest.mark.exhaustive) for one in whole]


def is_due(page: str, width: str) -> bool:
    """Each page is met at one width in the gate, by turns, and one of each kind at both."""
    return page in KINDS or list(WIDTHS)[ADDRESSES.index(page) % 2] == width


@functools.cache  # parsing takes its time, and a dozen tests ask for each page
def soup_of(path: Path) -> BeautifulSoup:
    """A page of the built site, to be read and not to be changed; formulas are empty."""
    return BeautifulSoup(thin(path.read_text("utf-8")), "html.parser")


def thin(html: str) -> str:
    """A page without what is inside its formulas, and without the colours of code: a third of it."""
    html = re.sub(r"<math\b.*?</math>", "", html, flags=re.S)
    return search.without_spans(search.without_colours(html), 'class="katex-html"')


def file_of(site: Path, page: str) -> Path:
    """The file behind an address in the book."""
    return site / page if page.endswith(".html") else site / page / "index.html"


def python_blocks(source: Path) -> list[tuple[Snippet, str]]:
    """The Python blocks of a page in its order, each with the text that a reader sees."""
    parsed = pages.parse(source)
    return [
        (s, pages.listing(s.fence.source, ROOT) if s.is_listing else s.fence.source)
        for s in parsed.snippets
    ]


# --- a visit ----------------------------------------------------------------

# A limit for what never comes. What is waited for comes when the machine has time for it.
NEVER = 120_000  # ms

# Runs before anything of the page does, and notes what happens to it. A font that comes late moves
# what is set in it: on a busy machine no page can help that, and such moves are left out.
WATCH = """
window.watched = {violations: []};
addEventListener("securitypolicyviolation", e =>
    watched.violations.push(`${e.effectiveDirective} forbids ${e.blockedURI} ${e.sample}`));
const name = node => (node?.outerHTML ?? node?.textContent ?? "?").slice(0, 60);
const from = ({x, y}) => `${Math.round(x)},${Math.round(y)}`;
const shifts = [], late = [];
document.fonts.addEventListener("loading", () => late.push([performance.now(), Infinity]));
document.fonts.addEventListener("loadingdone", () => requestAnimationFrame(() =>
    requestAnimationFrame(() => { if (late.length) late.at(-1)[1] = performance.now(); })));
const note = list => list.getEntries().forEach(entry =>
    entry.hadRecentInput || shifts.push([entry.startTime, entry.value, entry.sources.map(s =>
        `${from(s.previousRect)} to ${from(s.currentRect)}: ${name(s.node)}`)]));
new PerformanceObserver(note).observe({type: "layout-shift", buffered: true});
watched.shifts = (all = false) => shifts
    .filter(([at]) => all || !late.some(([start, end]) => start <= at && at <= end))
    .map(([at, ...shift]) => shift);
"""
SCROLL = """async () => {
    const root = document.documentElement, frame = () => new Promise(requestAnimationFrame);
    for (let y = 0; y < root.scrollHeight; y += innerHeight) {
        scrollTo({top: y, behavior: "instant"});
        await frame(); await frame();
    }
    scrollTo({top: 0, behavior: "instant"});
    await frame(); await frame();
}"""
# What is far from the screen is drawn when it is seen, and colours take a moment to turn: here both
# come at once. The header has the book's title again once the page is at its top.
AT_ONCE = """async () => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync("*, ::before, ::after { content-visibility: visible !important; transition: none !important }");
    document.adoptedStyleSheets.push(sheet);
    scrollTo({top: 0, behavior: "instant"});
    while (document.querySelector(".md-header__title--active")) await new Promise(requestAnimationFrame);
}"""
# A formula is a tree for machines and one for the eye; it is the second that must have a size.
FORMULAS = """() => [...document.querySelectorAll(".katex")].map(formula => {
    const box = formula.querySelector(".katex-html")?.getBoundingClientRect();
    return [formula.querySelector("annotation")?.textContent ?? "", box?.width ?? 0, box?.height ?? 0];
})"""
# What sticks out of a page that is too wide.
TOO_WIDE = """width => document.documentElement.scrollWidth <= width ? [] :
    [`the document is ${document.documentElement.scrollWidth} wide`,
     ...[...document.querySelectorAll("body *")]
        .filter(e => e.getBoundingClientRect().right > width)
        .map(e => e.outerHTML.slice(0, 99)).slice(0, 9)]"""
# What moves of itself, for a reader who wants it still.
MOVES = """async () => {
    const seen = new Set();
    for (let y = 0; y < 20; y++) {
        scrollTo({top: y * innerHeight, behavior: "instant"});
        await new Promise(requestAnimationFrame);
        document.getAnimations().filter(a => a.playState === "running").forEach(a =>
            seen.add(`${a.animationName ?? a.transitionProperty}: ` +
                a.effect.target.outerHTML.slice(0, 99)));
    }
    scrollTo({top: 0, behavior: "instant"});
    return [...seen];
}"""
OPEN_ALL = "() => document.querySelectorAll('details').forEach(d => d.open = true)"
# Axe takes seconds for a thousand pieces of code and formulas that look alike: one of each kind of
# block and colour stays a piece of its own, and of the formulas, which are hidden from whoever
# reads by ear, the first few.
THIN = """() => {
    const seen = new Set();
    for (const piece of document.querySelectorAll("pre code span")) {
        const kind = `${piece.closest(".highlight")?.className} ${piece.className}`;
        if (seen.has(kind)) piece.replaceWith(...piece.childNodes);
        seen.add(kind);
    }
    [...document.querySelectorAll(".katex-html")].slice(20).forEach(formula => formula.replaceChildren());
}"""
AUDIT = """async (rules, where = document) => (await axe.run(where, {
    ...rules, resultTypes: ["violations"],
})).violations.flatMap(rule => rule.nodes.map(node =>
    `${rule.id}: ${node.target.join(" ")}: ${node.failureSummary.replace(/\\s+/g, " ")}`))"""
# The colours are those of a few styles: two texts that are set alike on the same ground are read
# alike, and the first of them is asked.
SOME = """root => {
    const seen = new Set();
    const ground = e => e ? `${getComputedStyle(e).backgroundColor} ${getComputedStyle(e).backgroundImage} ${ground(e.parentElement)}` : "";
    const text = [...root.querySelectorAll("*")].filter(e =>
        [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
    return {include: text.filter(e => {
        const s = getComputedStyle(e);
        const kind = [s.color, s.fontSize, s.fontWeight, s.opacity, ground(e)].join();
        return !seen.has(kind) && seen.add(kind);
    })};
}"""
COLOURS = ["color-contrast", "link-in-text-block"]
SOME_COLOURS = f"root => ({AUDIT})({{runOnly: {COLOURS}}}, ({SOME})(root.shadowRoot ?? root))"
ALL = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OFF = {"enabled": False}
WITHOUT_COLOURS = {"runOnly": ALL, "rules": dict.fromkeys(COLOURS, OFF)}
# The theme decides the size of what is pressed, and to measure it takes as long as all other rules.
WORDS_ALONE = {"runOnly": ALL, "rules": dict.fromkeys([*COLOURS, "target-size"], OFF)}


@dataclass
class Visit:
    """What a reader met on one page, at one width, who had never seen it."""

    heard: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    shifts: list[tuple[float, list[str]]] = field(default_factory=list)
    too_wide: list[str] = field(default_factory=list)
    formulas: list[tuple[str, float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # by who reads with the keyboard
    moving: list[str] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)
    colours: dict[str, list[str]] = field(default_factory=dict)


@contextlib.contextmanager
def listening(tab: Page, seen: Visit) -> Iterator[None]:
    """Hear what the console says, and see what is asked for."""

    def says(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            seen.heard.append(f"{message.type}: {message.text} ({message.location['url']})")

    listeners: dict[Any, Callable[[Any], None]] = {
        "console": says,
        "pageerror": lambda error: seen.heard.append(f"uncaught: {error}"),
        "request": lambda request: seen.asked.append(request.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    yield
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)


def visit(tab: Page, page: str) -> Visit:
    """Load a page, read it to its end, then look at it; closely, if it is the one of its kind."""
    seen, closely = Visit(), page in KINDS
    assert tab.viewport_size
    width = tab.viewport_size["width"]
    with listening(tab, seen):
        tab.goto(URL + page)
        tab.evaluate("document.fonts.ready.then(() => 0)")
        tab.evaluate(SCROLL)
        seen.shifts = tab.evaluate("watched.shifts()")
        if page in WALKED and width == WIDTHS["desktop"]:
            seen.lost = walk(tab)
        if closely and width == WIDTHS["phone"]:
            tab.emulate_media(reduced_motion="reduce")
            seen.moving = tab.evaluate(MOVES)
            tab.emulate_media(reduced_motion="no-preference")
        tab.evaluate(OPEN_ALL)
        tab.evaluate(AT_ONCE)
        seen.too_wide = tab.evaluate(TOO_WIDE, width)
        seen.formulas = tab.evaluate(FORMULAS)
        tab.evaluate(THIN)
        tab.evaluate(AXE_SCRIPT)
        seen.audit = tab.evaluate(AUDIT, WITHOUT_COLOURS if closely else WORDS_ALONE)
        for scheme in (LIGHT, DARK) if closely else ():
            turn(tab, scheme)
            seen.colours[scheme] = tab.locator("body").evaluate(SOME_COLOURS)
        seen.violations = tab.evaluate("watched.violations")
    forget(tab)
    return seen


def until(tab: Page, holds: str, arg: object = None) -> None:
    """Wait for what a function of the page returns to be true.

    Playwright's own waiting evaluates a string in the page, which the policy of the site forbids
    unless it holds at the first look.
    """
    tab.evaluate(
        f"""async arg => {{
            const holds = {holds}, begun = performance.now();
            while (!holds(arg)) {{
                if (performance.now() > begun + {NEVER}) throw new Error("never");
                await new Promise(requestAnimationFrame);
            }}
        }}""",
        arg,
    )


ELSEWHERE = f"{URL}elsewhere"
NO_ICON = '<link rel="icon" href="data:,">'  # or the browser asks the host for one


def forget(tab: Page) -> None:
    """Clear what the book keeps for a reader, once the page, which may still write, is left."""
    tab.route(ELSEWHERE, lambda route: route.fulfill(body=NO_ICON, content_type="text/html"))
    tab.goto(ELSEWHERE)
    tab.unroute(ELSEWHERE)
    tab.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")


def turn(tab: Page, scheme: str) -> None:
    """Have the page light or dark, as a reader turns it."""
    if not tab.locator(f"body[{SCHEME}={scheme}]").count():
        tab.locator(TOGGLE).click()
    tab.locator(f"body[{SCHEME}={scheme}]").wait_for()


# Reads what was copied, once there is something; what no block says is left, lest a dead button pass.
NOTHING = "(nothing)"
TAKEN = f"""async () => {{
    let text = "{NOTHING}";
    for (let frame = 0; frame < 2000 && text === "{NOTHING}"; frame++) {{
        await new Promise(requestAnimationFrame);
        text = await navigator.clipboard.readText();
    }}
    return text;
}}"""


def copied(tab: Page, button: Locator, *, key: str | None = None) -> str:
    """What a button puts into the clipboard, pressed by mouse or by key."""
    tab.evaluate(f"navigator.clipboard.writeText('{NOTHING}')")
    if key:
        button.press(key)
    else:
        button.click()
    return str(tab.evaluate(TAKEN)).rstrip("\n")


# --- the keyboard -----------------------------------------------------------

# What is asked of each element that the focus has come to, as the next Tab goes down: what opens
# takes a moment, so what cannot be seen is asked again at the end.
WALK = """() => {
    const focused = () => {
        let e = document.activeElement;
        while (e?.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;
        return !e || e === document.body || e === document.documentElement ? null : e;
    };
    const isLost = e => {
        // an option shows by its label that it has the focus
        const shown = e.type === "radio" ? e.nextElementSibling : e;
        const box = shown.getBoundingClientRect(), style = getComputedStyle(shown);
        const x = box.x + box.width / 2;
        const seen = box.width > 0 && box.height > 0 && x >= 0 && x <= innerWidth
            && box.bottom > 0 && box.top < innerHeight;
        const marked = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0)
            || style.boxShadow !== "none" || e.matches("input[type=text]");
        return !seen || !marked;
    };
    const end = document.body.appendChild(document.createElement("button")); // or Tab leaves the page
    window.walk = {stops: [], lost: [], ended: false};
    addEventListener("keydown", event => {
        const e = focused();
        if (event.key !== "Tab" || !e) return;
        if (e === end) {
            walk.ended = true;
            event.preventDefault();
            return;
        }
        e.dataset.stop = walk.stops.push(e);
        if (isLost(e)) walk.lost.push(e);
    }, true);
    walk.again = async () => {
        end.remove();
        const lost = [];
        for (const e of walk.lost) {
            e.focus();
            for (let n = 0; n < 60 && isLost(e); n++) await new Promise(requestAnimationFrame);
            if (isLost(e)) lost.push(e.outerHTML.slice(0, 120));
        }
        return lost;
    };
}"""
WANTED = f"{SEARCH}, {TOOLS} button, {SOLUTION} summary, {ARTICLE} a"
LEFT = """wanted => [...document.querySelectorAll(wanted)]
    .filter(e => !e.dataset.stop && e.checkVisibility()).map(e => e.outerHTML.slice(0, 120))"""


def walk(tab: Page) -> list[str]:
    """Go through a page with Tab alone: what the focus does not come to, or cannot be seen at."""
    tab.evaluate(OPEN_ALL)
    tab.evaluate(WALK)
    for _ in range(tab.locator("a, button, input, select, summary, [tabindex]").count()):
        for _ in range(9):
            tab.keyboard.press("Tab")
        if tab.evaluate("walk.ended"):
            break
    else:
        return ["the focus never comes to the end"]
    lost = [*tab.evaluate("walk.again()"), *tab.evaluate(LEFT, WANTED)]
    if not tab.url.endswith("404.html") and not tab.evaluate("walk.stops[0].hash"):
        lost.append("the way past the navigation does not come first")
    return lost


def open_solutions(tab: Page) -> None:
    """Open what is folded, as a reader does, so that all of the page can be reached.

    All is drawn first: what is drawn on the way to it moves what a pointer is about to press.
    """
    tab.evaluate(AT_ONCE)
    while (folded := tab.locator(f"{SOLUTION}:not([open]) > summary:visible")).count():
        folded.first.click()
