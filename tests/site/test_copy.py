"""The buttons of a block copy what they say, to the letter, by mouse and by keyboard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page
from reader import (
    CONSOLE,
    COPY,
    OPEN_ALL,
    OUTPUT,
    PYTHON,
    ROOT,
    RUNNABLE,
    SOURCES,
    WIDTHS,
    address,
    cases,
    file_of,
    python_blocks,
    soup_of,
)

from snippets import ledger
from snippets.page import parse

WITH_CODE = [source for source in SOURCES if parse(source).fences]
# The longest page and the one with signatures; the gate has read what every button would copy.
pressed = pytest.mark.parametrize(
    "source",
    cases([(s,) for s in WITH_CODE], lambda s: s.stem in ("pitfalls", "reference")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
each_page = pytest.mark.parametrize(
    "source", WITH_CODE, ids=lambda path: str(path.relative_to(ROOT))
)
# Reads what was copied, and leaves something that no block says, lest a dead button pass.
TAKE = """async () => {
    const text = await navigator.clipboard.readText();
    await navigator.clipboard.writeText("(nothing)");
    return text;
}"""


NOTHING = "(nothing)"


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """A tab that may use the clipboard."""
    size = {"width": WIDTHS["desktop"], "height": 780}
    with browser.new_context(
        viewport=size,  # type: ignore[arg-type]
        permissions=["clipboard-read", "clipboard-write"],
    ) as context:
        yield context.new_page()


def copied(tab: Page, button: Locator, *, key: str | None = None) -> str:
    if key:
        button.focus()
        tab.keyboard.press(key)
    else:
        button.click()
    text = str(tab.evaluate(TAKE))
    for _ in range(20):  # on a busy machine the clipboard comes a little later
        if text != NOTHING:
            break
        tab.wait_for_timeout(50)
        text = str(tab.evaluate(TAKE))
    return text.rstrip("\n")


def as_shown(source: Path) -> list[str]:
    return [text.rstrip("\n") for _, text in python_blocks(source)]


def as_run(source: Path) -> list[str | None]:
    """What the tests ran for each block, None where nothing was."""
    entry = ledger.read(ROOT, source)
    assert entry is not None
    return [
        None if item["kind"] == "notest" else item["code"].rstrip("\n")
        for item in entry["runnable"]
    ]


def some(blocks: list[Any]) -> list[int]:
    """The first, the last and three between; what each button would copy the gate has read."""
    n = len(blocks)
    return sorted({i * (n - 1) // 4 for i in range(5)}) if n else []


@pressed
def test_the_buttons_copy_the_block_as_it_is_shown_and_what_the_tests_ran(
    tab: Page, url: str, source: Path
) -> None:
    tab.goto(url + address(source))
    tab.evaluate(OPEN_ALL)
    tab.evaluate(TAKE)
    blocks, wanted = tab.locator(PYTHON).all(), as_run(source)
    shown, snippets = as_shown(source), python_blocks(source)
    assert len(blocks) == len(wanted) == len(shown)
    for i in some(blocks):
        assert copied(tab, blocks[i].locator(COPY)) == shown[i]
        want, snippet, button = wanted[i], snippets[i][0], blocks[i].locator(RUNNABLE)
        if want is None:
            assert snippet.notest and snippet.notest in (button.text_content() or "")
        else:
            comment, _, code = copied(tab, button).partition("\n\n")
            assert comment.startswith("# ")
            assert code == want


@pressed
def test_the_buttons_work_by_keyboard(tab: Page, url: str, source: Path) -> None:
    shown = as_shown(source)
    tab.goto(url + address(source))
    tab.evaluate(OPEN_ALL)
    tab.evaluate(TAKE)
    for at in (0, -1):
        block, want = tab.locator(PYTHON).nth(at), as_run(source)[at]
        assert copied(tab, block.locator(COPY), key="Enter") == shown[at]
        assert copied(tab, block.locator(COPY), key="Space") == shown[at]
        if want is not None:
            assert copied(tab, block.locator(RUNNABLE), key="Enter").endswith(f"\n{want}")


def consoles_of(source: Path) -> list[str]:
    return [fence.source for fence in parse(source).fences if fence.lang == "console"]


@pytest.mark.parametrize("source", [*filter(consoles_of, SOURCES)], ids=lambda path: path.stem)
def test_a_console_is_copied_without_its_prompts(tab: Page, url: str, source: Path) -> None:
    consoles = consoles_of(source)
    tab.goto(url + address(source))
    tab.evaluate(OPEN_ALL)
    tab.evaluate(TAKE)
    wanted = [
        "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        for text in consoles
    ]
    buttons = [block.locator(COPY) for block in tab.locator(CONSOLE).all()]
    assert [copied(tab, button) for button in buttons] == wanted


@each_page
def test_what_a_block_shows_has_no_button(site: Path, source: Path) -> None:
    soup = soup_of(file_of(site, address(source)))
    outputs = soup.select(OUTPUT)
    assert len(outputs) == sum(fence.lang == "output" for fence in parse(source).fences)
    assert soup.select(f"{OUTPUT} button") == []
