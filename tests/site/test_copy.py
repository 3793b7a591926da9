"""The buttons of a block copy what they say, to the letter, by mouse and by keyboard."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from reader import (
    CONSOLE,
    COPY,
    KINDS,
    OUTPUT,
    PYTHON,
    ROOT,
    RUNNABLE,
    SOURCES,
    URL,
    address,
    cases,
    copied,
    file_of,
    open_solutions,
    python_blocks,
    soup_of,
)

from snippets.page import parse
from tests import record

WITH_CODE = [source for source in SOURCES if parse(source).fences]
# The buttons of one page of each kind and of the last chapter of each part are pressed, in the gate
# those of two: what every button of the book would copy, the checker of the built site has read.
TRIED = [
    source
    for source in WITH_CODE
    if address(source) in KINDS or source == max(source.parent.glob("*.md"))
]
GATE = [ROOT / "docs/index.md", ROOT / "docs/foundations/heads.md"]
NOT_RUN = ROOT / "docs/fast/flex.md"  # has a block that is not run


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


pressed = pytest.mark.parametrize("source", cases([*TRIED, NOT_RUN], GATE.__contains__), ids=name)


def as_shown(source: Path) -> list[str]:
    return [text.rstrip("\n") for _, text in python_blocks(source)]


def as_run(source: Path) -> list[str | None]:
    """What the tests ran for each block, None where nothing was."""
    return [
        None if item["kind"] == "notest" else item["code"].rstrip("\n")
        for item in record.entry(source)["runnable"]
    ]


def some(blocks: list[Any]) -> list[int]:
    """The first, the last and three between."""
    n = len(blocks)
    return sorted({i * (n - 1) // 4 for i in range(5)}) if n else []


@pressed
def test_the_buttons_copy_the_block_as_it_is_shown_and_what_the_tests_ran(
    tab: Page, source: Path
) -> None:
    tab.goto(URL + address(source))
    open_solutions(tab)
    blocks, wanted = tab.locator(PYTHON).all(), as_run(source)
    shown, snippets = as_shown(source), python_blocks(source)
    assert len(blocks) == len(wanted) == len(shown)
    for i in sorted({*some(blocks), *(i for i, want in enumerate(wanted) if want is None)}):
        assert copied(tab, blocks[i].locator(COPY)) == shown[i]
        want, snippet, button = wanted[i], snippets[i][0], blocks[i].locator(RUNNABLE)
        if want is None:
            assert snippet.notest and snippet.notest in (button.text_content() or "")
        else:
            comment, _, code = copied(tab, button).partition("\n\n")
            assert comment.startswith("# ")
            assert code == want


@pressed
def test_the_buttons_work_by_keyboard(tab: Page, source: Path) -> None:
    shown = as_shown(source)
    tab.goto(URL + address(source))
    open_solutions(tab)
    for at in (0, -1):
        block, want = tab.locator(PYTHON).nth(at), as_run(source)[at]
        assert copied(tab, block.locator(COPY), key="Enter") == shown[at]
        assert copied(tab, block.locator(COPY), key="Space") == shown[at]
        if want is not None:
            assert copied(tab, block.locator(RUNNABLE), key="Enter").endswith(f"\n{want}")


def consoles_of(source: Path) -> list[str]:
    return [fence.source for fence in parse(source).fences if fence.lang == "console"]


@pytest.mark.parametrize("source", [*filter(consoles_of, SOURCES)], ids=lambda path: path.stem)
def test_a_console_is_copied_without_its_prompts(tab: Page, source: Path) -> None:
    consoles = consoles_of(source)
    tab.goto(URL + address(source))
    open_solutions(tab)
    wanted = [
        "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        for text in consoles
    ]
    buttons = [block.locator(COPY) for block in tab.locator(CONSOLE).all()]
    assert [copied(tab, button) for button in buttons] == wanted


@pytest.mark.parametrize("source", WITH_CODE, ids=name)
def test_what_a_block_shows_has_no_button(site: Path, source: Path) -> None:
    soup = soup_of(file_of(site, address(source)))
    outputs = soup.select(OUTPUT)
    assert len(outputs) == sum(fence.lang == "output" for fence in parse(source).fences)
    assert soup.select(f"{OUTPUT} button") == []
