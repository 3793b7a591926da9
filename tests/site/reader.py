"""What the tests in a browser share: where the pages are, what to look for on them, how to look."""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page

from snippets import gate
from snippets import page as pages
from snippets.page import Snippet

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("docs/**/*.md"))
CHAPTERS = sorted(ROOT.glob("docs/*/*.md"))
LABS = sorted(ROOT.glob("docs/labs/*.ipynb"))

# The book is served under a path, as a project's pages are: an address from the root would fail.
PATH = "/book/"
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
# chapter, the longest page, tables, terms, signatures, a lab, a wrong address.
KINDS = [
    *("", "foundations/heads/", "pitfalls/", "conformance/", "glossary/", "reference/"),
    *("labs/alignment/", "404.html"),
]


@functools.cache  # parsing takes a third of a second, and a dozen tests ask for each page
def soup_of(path: Path) -> BeautifulSoup:
    """A page of the built site, to be read and not to be changed."""
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def file_of(site: Path, page: str) -> Path:
    """The file behind an address in the book."""
    return site / page if page.endswith(".html") else site / page / "index.html"


# Pages of which the buttons are pressed and the blocks pasted: one of each kind, and the last
# chapter of each part. What every button of the book would copy, the gate has read.
TRIED = [
    source
    for source in SOURCES
    if address(source) in KINDS or source == max(source.parent.glob("*.md"))
]


def python_blocks(source: Path) -> list[tuple[Snippet, str]]:
    """The Python blocks of a page in its order, each with the text that a reader sees."""
    parsed = pages.parse(source)
    return [
        (s, pages.listing(s.fence.source, ROOT) if s.is_listing else s.fence.source)
        for s in parsed.snippets
    ]


# --- a visit ----------------------------------------------------------------

# Runs before anything of the page does, and notes what happens to it.
WATCH = """
window.watched = {shifts: [], violations: []};
addEventListener("securitypolicyviolation", e =>
    watched.violations.push(`${e.effectiveDirective} forbids ${e.blockedURI} ${e.sample}`));
const name = node => (node?.outerHTML ?? node?.textContent ?? "?").slice(0, 60);
const from = ({x, y}) => `${Math.round(x)},${Math.round(y)}`;
const note = list => list.getEntries().forEach(entry =>
    entry.hadRecentInput || watched.shifts.push([entry.value, entry.sources.map(s =>
        `${from(s.previousRect)} to ${from(s.currentRect)}: ${name(s.node)}`)]));
new PerformanceObserver(note).observe({type: "layout-shift", buffered: true});
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
# The header fades from the page's title to the book's a little after the scrolling.
SETTLED = """async () => {
    await new Promise(done => setTimeout(done, 300));
    await Promise.all(document.getAnimations().map(animation => animation.finished));
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
OPEN_ALL = "() => document.querySelectorAll('details').forEach(d => d.open = true)"
AUDIT = """async (rules, where = document) => (await axe.run(where, {
    ...rules, resultTypes: ["violations"],
})).violations.flatMap(rule => rule.nodes.map(node =>
    `${rule.id}: ${node.target.join(" ")}: ${node.failureSummary.replace(/\\s+/g, " ")}`))"""
# The scheme decides colours and nothing else, and the width does not decide them. Each page is
# audited as a desktop shows it; a phone and the colours, light and dark, on one page of each kind.
COLOURS = ["color-contrast", "link-in-text-block"]
ALL = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WITHOUT_COLOURS = {rule: {"enabled": False} for rule in COLOURS}
RULES = {
    ("desktop", LIGHT): {"runOnly": ALL},
    ("desktop", DARK): {"runOnly": COLOURS},
    ("phone", LIGHT): {"runOnly": ALL, "rules": WITHOUT_COLOURS},
}


@dataclass
class Visit:
    """What a reader met on one page, at one width, in a browser that had never seen it."""

    heard: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    shifts: list[tuple[float, list[str]]] = field(default_factory=list)
    too_wide: list[str] = field(default_factory=list)
    formulas: list[tuple[str, float, float]] = field(default_factory=list)
    audits: dict[str, list[str]] = field(default_factory=dict)

    def hear(self, kind: str, text: str, place: Mapping[str, object]) -> None:
        if kind in ("error", "warning"):
            self.heard.append(f"{kind}: {text} ({place.get('url')})")


EVERYWHERE = ("desktop", LIGHT)


def visit(browser: Browser, url: str, *, closely: bool = True) -> dict[str, Visit]:
    """Load a page cold, read it to its end, then look at it: closely, colours too, by all RULES.

    On a phone and on a desktop at once, for what takes long runs in the browser.
    """
    with contextlib.ExitStack() as stack:
        open_pages = {}
        for name, width in WIDTHS.items():
            context = browser.new_context(
                viewport={"width": width, "height": 780},
                is_mobile=name == "phone",
                has_touch=name == "phone",
            )
            stack.enter_context(context)
            open_pages[name] = context.new_page()
        visits = {name: _load(page, url) for name, page in open_pages.items()}
        for scheme in (LIGHT, DARK):
            wanted = set(RULES) if closely else {EVERYWHERE}
            audited = {n: p for n, p in open_pages.items() if (n, scheme) in wanted}
            for name, page in audited.items():
                if scheme == DARK:
                    page.locator(TOGGLE).click()
                page.locator(f"body[{SCHEME}={scheme}]").wait_for()
                rules = RULES[name, scheme]
                if closely:  # what is far from the screen is styled when it is seen
                    page.evaluate(SCROLL)
                    page.evaluate(SETTLED)
                else:
                    rules = {**rules, "rules": WITHOUT_COLOURS}
                page.evaluate(f"rules => {{ window.audit = ({AUDIT})(rules) }}", rules)
            for name, page in audited.items():
                visits[name].audits[scheme] = page.evaluate("audit")
        for name, page in open_pages.items():
            visits[name].violations = page.evaluate("watched.violations")
    return visits


def _load(page: Page, url: str) -> Visit:
    seen = Visit()
    page.on("console", lambda message: seen.hear(message.type, message.text, message.location))
    page.on("pageerror", lambda error: seen.heard.append(f"uncaught: {error}"))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.set_default_timeout(10_000)
    page.add_init_script(WATCH)
    page.goto(url)
    page.evaluate("document.fonts.ready.then(() => 0)")
    page.evaluate(SCROLL)
    seen.shifts = page.evaluate("watched.shifts")
    page.evaluate(OPEN_ALL)
    seen.too_wide = page.evaluate(TOO_WIDE, page.viewport_size["width"])
    seen.formulas = page.evaluate(FORMULAS)
    page.evaluate(THIN)
    page.evaluate(AXE_SCRIPT)
    return seen


def open_solutions(page: Page) -> None:
    """Open what is folded, as a reader does, so that all of the page can be reached."""
    while (folded := page.locator(f"{SOLUTION}:not([open]) > summary:visible")).count():
        folded.first.click()
