"""Explorables show what the package computes, whatever a reader does with them, and harm no page."""

import copy
import importlib
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator
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
    ROOT,
    WIDTHS,
    address,
    cases,
    file_of,
    soup_of,
    turn,
)
from trials import Numbers, State, Trial

from snippets import explore, gate, ledger

TRIALS: list[Trial] = [
    trial
    for found in pkgutil.iter_modules(trials.__path__)
    for trial in importlib.import_module(f"trials.{found.name}").TRIALS
]


def name(x: Trial | str) -> str:
    return x if isinstance(x, str) else f"{x.name} at {Path(x.figure).stem}"


each_trial = pytest.mark.parametrize("trial", TRIALS, ids=name)
# What an explorable's script decides, and not the place that it is put to: once for each in the gate.
FIRST = {trial.name: trial for trial in reversed(TRIALS)}.values()
each_explorable = pytest.mark.parametrize(
    "trial", cases([(trial,) for trial in TRIALS], lambda trial: trial in FIRST), ids=name
)


def with_each(argument: str, values: Iterable[str]) -> pytest.MarkDecorator:
    """Each explorable with the values by turns, and in `make test-all` with all of them."""
    values, first = list(values), list(FIRST)
    return pytest.mark.parametrize(
        ("trial", argument),
        cases(
            [(trial, value) for trial in TRIALS for value in values],
            lambda trial, value: (
                trial in first and values.index(value) == first.index(trial) % len(values)
            ),
        ),
        ids=name,
    )


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
    entry = ledger.read(ROOT, ROOT / "docs" / trial.page)
    assert entry is not None
    name, text = entry["explorables"][trial.figure]
    assert name == trial.name
    return json.loads(text)


def element(tab: Page, trial: Trial) -> Locator:
    found = tab.locator(f"explore-{trial.name}[data-figure='{trial.figure}']").first
    found.locator("[role=group]").first.wait_for()
    return found


def differs(shown: list[list[str]], want: Numbers) -> list[str]:
    """What is shown otherwise than the package has it, to the digits that are shown."""
    wrong = []
    for name, text in shown:
        value = want[name]
        if isinstance(value, str):
            expected = value
        elif abs(value) == float("inf"):
            expected = "∞" if value > 0 else "−∞"
        else:
            expected = f"{value:.{len(text.partition('.')[2])}f}".replace("-", "−")
            if not expected.strip("−0."):  # no zero has a sign
                expected = expected.strip("−")
        if text != expected:
            wrong.append(f"{name}: {text}, not {expected}")
    wrong += [f"{name} is not shown" for name in want.keys() - {name for name, _ in shown}]
    return wrong


def differs_beside(found: Locator, trial: Trial, state: State, begin: object) -> list[str]:
    """The same of what is seen beside the numbers, as far as the trial knows of it."""
    want = trial.beside(state, begin)
    return differs([one for one in found.evaluate(BESIDE) if one[0] in want], want)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": WIDTHS["desktop"], "height": 780}) as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page
        assert wrong == []


def test_every_explorable_of_the_book_has_a_trial(site: Path) -> None:
    placed = {
        (f"{path.relative_to(ROOT / 'docs')}", figure)
        for path in ROOT.glob("docs/**/*.md")
        for figure in (ledger.read(ROOT, path) or {})["explorables"]
    }
    assert placed == {(trial.page, trial.figure) for trial in TRIALS}
    assert {trial.name for trial in TRIALS} == explore.names(ROOT)


@each_trial
def test_whatever_a_reader_does_it_shows_what_the_package_computes(
    tab: Page, url: str, trial: Trial
) -> None:
    tab.goto(url + place(trial))
    found, begin = element(tab, trial), given(trial)
    state = trial.start(begin) | {"given": begin}
    assert differs(found.evaluate(SHOWN), trial.numbers(state, begin)) == []
    assert differs_beside(found, trial, state, begin) == []
    assert found.get_by_role("status").inner_text()
    assert len(trial.steps) >= 10
    for step in trial.steps:
        before = copy.deepcopy(state)
        step.change(state, step.act(found))
        shown = found.evaluate(SHOWN)
        assert differs(shown, trial.numbers(state, begin)) == [], step.does
        assert differs_beside(found, trial, state, begin) == [], step.does
        assert state == before or differs(shown, trial.numbers(before, begin)), step.does


@with_each("width", WIDTHS)
def test_everyone_can_use_it(browser: Browser, url: str, trial: Trial, width: str) -> None:
    size = {"width": WIDTHS[width], "height": 780}
    with browser.new_context(viewport=size, has_touch=width == "phone") as context:  # type: ignore[arg-type]
        tab = context.new_page()
        tab.goto(url + place(trial))
        found = element(tab, trial)
        tab.evaluate(AXE_SCRIPT)
        for scheme in (LIGHT, DARK):
            turn(tab, scheme)
            found.scroll_into_view_if_needed()
            tab.evaluate(AT_ONCE)
            audit = f"([rules, where]) => ({AUDIT})(rules, where)"
            assert tab.evaluate(audit, [{"runOnly": ALL}, f"explore-{trial.name}"]) == []
        boxes = found.evaluate(
            """root => [...root.shadowRoot.querySelectorAll("input, select, button, [tabindex]")]
                .map(e => [e.getBoundingClientRect(), e.outerHTML.slice(0, 99)])
                .filter(([box]) => box.right > innerWidth || box.height < 16 || box.width < 16)"""
        )
        assert boxes == []


@each_explorable
def test_all_of_it_can_be_reached_by_keyboard(tab: Page, url: str, trial: Trial) -> None:
    tab.goto(url + place(trial))
    found = element(tab, trial)
    every = "input, select, button, [tabindex='0']"
    wanted = found.evaluate(f"root => root.shadowRoot.querySelectorAll(`{every}`).length")
    found.evaluate(f"root => root.shadowRoot.querySelector(`{every}`).focus()")
    met = 1
    while met <= wanted:
        tab.keyboard.press("Tab")
        if not found.evaluate("root => !!root.shadowRoot.activeElement"):
            break
        seen = found.evaluate(
            "root => getComputedStyle(root.shadowRoot.activeElement).outlineStyle !== 'none'"
        )
        assert seen
        met += 1
    assert met == wanted


@each_explorable
def test_it_works_after_instant_navigation_and_twice_on_a_page(
    tab: Page, url: str, trial: Trial
) -> None:
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    home = url + ("foundations/across/" if "across" not in trial.page else "foundations/heads/")
    tab.goto(home)
    tab.evaluate("window.same = true")
    name = place(trial).rstrip("/").rpartition("/")[2]
    tab.locator(f"nav a[href$='{name}/']:visible").first.click()
    tab.wait_for_url(url + place(trial))
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
    assert heard == []


@with_each("without", ["script", "screen"])
def test_the_figure_stands_without_script_and_on_paper(
    browser: Browser, url: str, trial: Trial, without: str
) -> None:
    size = {"width": WIDTHS["desktop"], "height": 780}
    with browser.new_context(java_script_enabled=without != "script", viewport=size) as context:  # type: ignore[arg-type]
        tab = context.new_page()
        tab.goto(url + place(trial))
        host = tab.locator(f"explore-{trial.name}[data-figure='{trial.figure}']")
        if without == "screen":
            found = element(tab, trial)
            assert not host.locator("> svg").is_visible()
            tab.emulate_media(media="print")
            assert not found.get_by_role("button").first.is_visible()
        box = host.locator("> svg").bounding_box()
        assert box and box["width"] > 100 and box["height"] > 50


@each_explorable
def test_nothing_moves_for_who_wants_it_still(browser: Browser, url: str, trial: Trial) -> None:
    with browser.new_context(reduced_motion="reduce") as context:
        tab = context.new_page()
        tab.goto(url + place(trial))
        found = element(tab, trial)
        trial.steps[0].act(found)
        assert tab.evaluate("document.getAnimations().length") == 0


def test_only_pages_that_use_one_load_its_script(site: Path) -> None:
    for path in site.glob("**/*.html"):
        page = soup_of(path)
        loaded = [Path(str(one["src"])).stem for one in page.select("script[type=module]")]
        used = [one.name.removeprefix("explore-") for one in page.select("[data-figure]")]
        assert sorted(loaded) == sorted(set(used)), path
        assert "import(" not in path.read_text("utf-8")


def test_the_gate_sees_an_explorable_that_begins_elsewhere(site: Path) -> None:
    page = file_of(site, place(TRIALS[0])).read_text("utf-8")
    changed = re.sub(r'( data-given="[^"]*?\d)(\d)', r"\g<1>\g<2>1", page, count=1)
    assert changed != page
    entry = ledger.read(ROOT, ROOT / "docs" / TRIALS[0].page)
    assert entry is not None
    assert gate.check_page(BeautifulSoup(page, "html.parser"), entry) == []
    (said,) = gate.check_page(BeautifulSoup(changed, "html.parser"), entry)
    assert "an explorable begins with something else" in said
