"""Explorables show what the package computes, whatever a reader does with them, and harm no page.

The gate loads each page with one once, does the first few things of its trial, and looks at it; all
things of a trial, and each at each width, are for `make test-all`.
"""

import copy
import importlib
import json
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trials
from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Locator, Page
from reader import (
    ALL,
    AT_ONCE,
    AUDIT,
    DARK,
    LIGHT,
    NEVER,
    ROOT,
    URL,
    WIDTHS,
    Visit,
    address,
    cases,
    file_of,
    forget,
    listening,
    soup_of,
    thin,
    turn,
)
from trials import Numbers, State, Trial

from snippets import explore, gate
from tests import record

TRIALS: list[Trial] = [
    trial
    for found in pkgutil.iter_modules(trials.__path__)
    for trial in importlib.import_module(f"trials.{found.name}").TRIALS
]


def named(trial: Trial) -> str:
    return f"{trial.name} at {Path(trial.figure).stem}"


each_trial = pytest.mark.parametrize("trial", TRIALS, ids=named)
SHOWN = """root => [...root.shadowRoot.querySelectorAll("[data-n]")]
    .map(place => [place.dataset.n, place.textContent])"""
# What is seen beside the numbers: the sentence, where controls stand, what stands at the head of a
# number's row and column or before it, its decimals, how far bars reach (per cent), how dark cells are.
BESIDE = """root => {
    const all = what => [...root.shadowRoot.querySelectorAll(what)];
    const head = place => {
        const cell = place.closest("td");
        if (!cell) return place.previousSibling?.textContent.trim();
        const columns = cell.closest("table").tHead.rows[0].cells;
        return `${cell.parentElement.cells[0].textContent} ${columns[cell.cellIndex].textContent}`.trim();
    };
    const value = ({type, checked, value}) => type === "checkbox" ? `${checked}` : Number(value).toFixed(4).replace("-", "−");
    const per_cent = ({style}, found) => Number(style.background.match(found)?.[1]).toFixed(1);
    return [
        ["sentence", root.shadowRoot.querySelector(".said").textContent],
        ...all("[data-state]").flatMap(one => [
            [`control ${one.dataset.state}`, value(one)],
            [`head of control ${one.dataset.state}`, head(one)],
        ]),
        ...all("[data-n]").flatMap(one => [
            [`head of ${one.dataset.n}`, head(one)],
            [`digits of ${one.dataset.n}`, `${one.textContent.split(".")[1]?.length ?? 0}`],
        ]),
        ...all("[data-n]").map(one => [
            `bar of ${one.dataset.n}`, per_cent(one.closest("td") ?? one, /transparent (\\S+)%\\)$/)
        ]),
        ...all("td[data-n]").map(one => [`shade of ${one.dataset.n}`, per_cent(one, /accent\\) (\\S+)%/)]),
    ];
}"""


def place(trial: Trial) -> str:
    return address(ROOT / "docs" / trial.page)


def given(trial: Trial) -> object:
    """What the page gave, in the run that checked it."""
    name, text = record.entry(ROOT / "docs" / trial.page)["explorables"][trial.figure]
    assert name == trial.name
    return json.loads(text)


def element(tab: Page, trial: Trial) -> Locator:
    found = host(tab, trial)
    found.locator("[role=group]").first.wait_for()
    return found


def rounded(value: float, digits: int) -> str:
    """A number as explorables show it."""
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    shown = f"{value:.{digits}f}".replace("-", "−")
    return shown if shown.strip("−0.") else shown.strip("−")  # no zero has a sign


TIE = 1e-12  # two float64 sums of the same few terms are no farther apart


def differs(shown: list[list[str]], want: Numbers) -> list[str]:
    """What is shown otherwise than the package has it, to the digits that are shown.

    Halfway between two numbers of so many digits either is right.
    """
    wrong = []
    for name, text in shown:
        value, digits = want[name], len(text.partition(".")[2])
        if isinstance(value, str):
            right = {value}
        else:
            near = TIE * max(1, abs(value))
            right = {rounded(x, digits) for x in (value - near, value, value + near)}
        if text not in right:
            wrong.append(f"{name}: {text}, not {' or '.join(sorted(right))}")
    wrong += [f"{name} is not shown" for name in want.keys() - {name for name, _ in shown}]
    return wrong


def differs_beside(found: Locator, trial: Trial, state: State, begin: object) -> list[str]:
    """The same of what is seen beside the numbers, as far as the trial knows of it."""
    want = trial.beside(state, begin)
    return differs([one for one in found.evaluate(BESIDE) if one[0] in want], want)


def test_every_explorable_of_the_book_has_a_trial(site: Path) -> None:
    placed = {
        (f"{path.relative_to(ROOT / 'docs')}", figure)
        for path in ROOT.glob("docs/**/*.md")
        for figure in record.entry(path)["explorables"]
    }
    assert placed == {(trial.page, trial.figure) for trial in TRIALS}
    assert {trial.name for trial in TRIALS} == explore.names(ROOT)


def load(tab: Page, trial: Trial) -> Locator:
    tab.goto(URL + place(trial))
    return element(tab, trial)


def play(found: Locator, trial: Trial) -> list[str]:
    """Do the things of a trial: what is then shown otherwise than it is."""
    begin = given(trial)
    state = trial.start(begin) | {"given": begin}

    def wrong(does: str) -> list[str]:
        shown = differs(found.evaluate(SHOWN), trial.numbers(state, begin))
        return [f"{does}: {one}" for one in shown + differs_beside(found, trial, state, begin)]

    out = wrong("at first")
    if not found.get_by_role("status").inner_text():
        out.append("there is no sentence")
    for step in trial.steps:
        before = copy.deepcopy(state)
        step.change(state, step.act(found))
        out += wrong(step.does)
        if state != before and not differs(found.evaluate(SHOWN), trial.numbers(before, begin)):
            out.append(f"{step.does}: no number has changed")
    return out


@dataclass
class Met:
    """What was seen of an explorable where it stands, on one load of its page."""

    wrong: list[str]
    audits: dict[str, list[str]]
    cut: list[str]  # controls that are too small, or beyond the screen
    focus: list[bool]  # of each stop of the keyboard: is it marked?
    wanted: int  # how many stops there are
    moving: int
    on_paper: bool
    errors: list[str] = field(default_factory=list)


EVERY = "input, select, button, [tabindex='0']"
CUT = """root => [...root.shadowRoot.querySelectorAll("input, select, button, [tabindex]")]
    .map(e => [e.getBoundingClientRect(), e.outerHTML.slice(0, 99)])
    .filter(([box]) => box.right > innerWidth || box.height < 16 || box.width < 16)"""
# Axe measures all that is on a page before it asks about a part of it: here the others are gone.
ALONE = """host => {
    for (let e = host; !e.matches("article"); e = e.parentElement)
        [...e.parentElement.children].forEach(other => other === e || other.remove());
}"""
FOCUSED = """root => {
    const e = root.shadowRoot.activeElement;
    return e && getComputedStyle(e).outlineStyle !== "none";
}"""


@pytest.fixture(scope="module")
def met(desk: Page) -> Callable[[Trial], Met]:
    """Each explorable is loaded and looked at once, whatever is asked about it."""
    known: dict[str, Met] = {}

    def meet(trial: Trial) -> Met:
        if trial.figure not in known:
            known[trial.figure] = look(desk, trial)
        return known[trial.figure]

    return meet


def look(tab: Page, trial: Trial) -> Met:
    heard = Visit()
    with listening(tab, heard):
        found = load(tab, trial)
        focus = stops(tab, found)
        wrong = play(found, trial)
        tab.emulate_media(reduced_motion="reduce")
        trial.steps[0].act(found)
        moving = tab.evaluate("document.getAnimations().length")
        hidden = not host(tab, trial).locator("> svg").is_visible()
        tab.emulate_media(media="print")
        on_paper = hidden and is_drawn(tab, trial)
        on_paper &= not found.get_by_role("button").first.is_visible()
        tab.emulate_media(media="screen", reduced_motion="no-preference")
        host(tab, trial).evaluate(ALONE)
        tab.set_viewport_size({"width": WIDTHS["phone"], "height": 780})
        cut = found.evaluate(CUT)
        tab.set_viewport_size({"width": WIDTHS["desktop"], "height": 780})
        audits = audit(tab, trial)
    wanted = found.evaluate(f"root => root.shadowRoot.querySelectorAll(`{EVERY}`).length")
    forget(tab)
    return Met(wrong, audits, cut, focus, wanted, moving, on_paper, heard.heard)


def audit(tab: Page, trial: Trial) -> dict[str, list[str]]:
    tab.evaluate(AT_ONCE)
    tab.evaluate(AXE_SCRIPT)
    out = {}
    for scheme in (LIGHT, DARK):
        turn(tab, scheme)
        out[scheme] = host(tab, trial).evaluate(f"host => ({AUDIT})({{runOnly: {ALL}}}, host)")
    return out


def stops(tab: Page, found: Locator) -> list[bool]:
    """Where the keyboard stops within an explorable, from its first control on."""
    found.evaluate(f"root => root.shadowRoot.querySelector(`{EVERY}`).focus()")
    for key in ("Tab", "Shift+Tab"):  # the browser marks a focus that a key has moved
        tab.keyboard.press(key)
    met = list[bool]()
    while (marked := found.evaluate(FOCUSED)) is not None:
        met.append(marked)
        tab.keyboard.press("Tab")
    return met


def host(tab: Page, trial: Trial) -> Locator:
    return tab.locator(f"explore-{trial.name}[data-figure='{trial.figure}']").first


def is_drawn(tab: Page, trial: Trial) -> bool:
    box = host(tab, trial).locator("> svg").bounding_box()
    return box is not None and box["width"] > 100 and box["height"] > 50


@each_trial
def test_whatever_a_reader_does_it_shows_what_the_package_computes(
    met: Callable[[Trial], Met], trial: Trial
) -> None:
    assert len(trial.steps) >= 10
    assert met(trial).wrong == []
    assert met(trial).errors == []


@each_trial
def test_everyone_can_use_it(met: Callable[[Trial], Met], trial: Trial) -> None:
    for scheme, found in met(trial).audits.items():
        assert not found, scheme
    assert met(trial).cut == []


@pytest.mark.exhaustive
@each_trial
def test_everyone_can_use_it_on_a_phone(browser: Browser, trial: Trial) -> None:
    size = {"width": WIDTHS["phone"], "height": 780}
    with browser.new_context(viewport=size, has_touch=True) as context:  # type: ignore[arg-type]
        context.set_default_timeout(NEVER)
        tab = context.new_page()
        found = load(tab, trial)
        for scheme, complaints in audit(tab, trial).items():
            assert not complaints, scheme
        assert found.evaluate(CUT) == []


@each_trial
def test_all_of_it_can_be_reached_by_keyboard(met: Callable[[Trial], Met], trial: Trial) -> None:
    assert met(trial).focus == [True] * met(trial).wanted


@each_trial
def test_nothing_moves_for_who_wants_it_still(met: Callable[[Trial], Met], trial: Trial) -> None:
    assert met(trial).moving == 0


@each_trial
def test_on_paper_stands_the_figure(met: Callable[[Trial], Met], trial: Trial) -> None:
    assert met(trial).on_paper


# In the gate one is enough: all come into a page and leave it by the same lines of base.js.
@pytest.mark.parametrize("trial", cases(TRIALS, TRIALS[0].__eq__), ids=named)
def test_the_figure_stands_without_script(browser: Browser, trial: Trial) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto(URL + place(trial))
        assert is_drawn(tab, trial)


@pytest.mark.parametrize("trial", cases(TRIALS, TRIALS[0].__eq__), ids=named)
def test_it_works_after_instant_navigation_and_twice_on_a_page(tab: Page, trial: Trial) -> None:
    home = URL + ("foundations/across/" if "across" not in trial.page else "foundations/heads/")
    heard = Visit()
    with listening(tab, heard):
        tab.goto(home)
        tab.evaluate("window.same = true")
        name = place(trial).rstrip("/").rpartition("/")[2]
        tab.locator(f"nav a[href$='{name}/']:visible").first.click()
        tab.wait_for_url(URL + place(trial))
        found, begin = element(tab, trial), given(trial)
        assert tab.evaluate("window.same") is True
        start = trial.numbers(trial.start(begin) | {"given": begin}, begin)
        assert differs(found.evaluate(SHOWN), start) == []
        found.evaluate("root => root.parentElement.after(root.cloneNode(true))")
        twin = tab.locator(f"explore-{trial.name}[data-figure='{trial.figure}']").nth(1)
        trial.steps[0].act(twin)
        assert differs(found.evaluate(SHOWN), start) == []
        assert differs(twin.evaluate(SHOWN), start)
        tab.go_back()
        tab.wait_for_url(home)
        tab.go_forward()
        assert differs(element(tab, trial).evaluate(SHOWN), start) == []
    assert heard.heard == []


def test_only_pages_that_use_one_load_its_script(site: Path) -> None:
    for path in site.glob("**/*.html"):
        page = soup_of(path)
        loaded = [Path(str(one["src"])).stem for one in page.select("script[type=module]")]
        used = [one.name.removeprefix("explore-") for one in page.select("[data-figure]")]
        assert sorted(loaded) == sorted(set(used)), path
        assert "import(" not in path.read_text("utf-8")


def test_the_gate_sees_an_explorable_that_begins_elsewhere(site: Path) -> None:
    page = thin(file_of(site, place(TRIALS[0])).read_text("utf-8"))
    changed = re.sub(r'( data-given="[^"]*?\d)(\d)', r"\g<1>\g<2>1", page, count=1)
    assert changed != page
    entry = record.entry(ROOT / "docs" / TRIALS[0].page)
    assert gate.check_page(BeautifulSoup(page, "html.parser"), entry) == []
    (said,) = gate.check_page(BeautifulSoup(changed, "html.parser"), entry)
    assert "an explorable begins with something else" in said
