"""What the tests in a browser share: where the pages are, what to look for on them, how to look."""

from dataclasses import dataclass, field
from pathlib import Path

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, ConsoleMessage, Page

from snippets import gate
from snippets import page as pages
from snippets.page import RUN, Snippet

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
BLOCK = "div.highlight"
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
const note = list => list.getEntries().forEach(entry =>
    entry.hadRecentInput || watched.shifts.push([entry.value, entry.sources.map(s =>
        s.node?.nodeType === 1 ? s.node.outerHTML.slice(0, 99) : s.node?.textContent ?? "?")]));
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
OPEN_ALL = "() => document.querySelectorAll('details').forEach(d => d.open = true)"
AUDIT = """async tags => (await axe.run({
    runOnly: {type: "tag", values: tags}, resultTypes: ["violations"],
})).violations.flatMap(rule => rule.nodes.map(node =>
    `${rule.id}: ${node.target.join(" ")}: ${node.failureSummary.replace(/\\s+/g, " ")}`))"""
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@dataclass
class Listener:
    """What a page says in its console, and whom it asks for something."""

    heard: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.heard.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.heard.append(f"{message.type}: {message.text} ({message.location.get('url')})")


@dataclass
class Visit:
    """What a reader met on one page, at one width, in a browser that had never seen it."""

    status: int
    heard: list[str]
    asked: list[str]
    violations: list[str]
    shifts: list[tuple[float, list[str]]]
    too_wide: list[str]
    formulas: list[tuple[str, float, float]]
    audits: dict[str, list[str]]


def visit(browser: Browser, url: str, width: int) -> Visit:
    """Load a page cold, read it to its end, then look at it closely in both schemes."""
    touch = width < 600
    with browser.new_context(
        viewport={"width": width, "height": 780}, is_mobile=touch, has_touch=touch
    ) as context:
        page, listener = context.new_page(), Listener()
        listener.attach(page)
        page.add_init_script(WATCH)
        response = page.goto(url)
        assert response
        page.evaluate("document.fonts.ready.then(() => 0)")
        page.evaluate(SCROLL)
        shifts = page.evaluate("watched.shifts")
        page.evaluate(OPEN_ALL)
        page.evaluate(AXE_SCRIPT)
        audits = {}
        for scheme in (LIGHT, DARK):
            if scheme == DARK:
                page.locator(TOGGLE).click()
            page.locator(f"body[{SCHEME}={scheme}]").wait_for()
            audits[scheme] = page.evaluate(AUDIT, TAGS)
        return Visit(
            response.status,
            listener.heard,
            listener.asked,
            page.evaluate("watched.violations"),
            shifts,
            page.evaluate(TOO_WIDE, width),
            page.evaluate(FORMULAS),
            audits,
        )
