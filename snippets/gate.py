"""Hold a built site against the ledger: `python -m snippets.gate site`.

Runs outside the engine that built the site, so that any engine can be held to it. For every page,
the blocks of code and the numbers that a reader finds in the HTML are those that the tests saw,
both ways; what is on no page of the ledger shows no code at all.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from bs4.element import Tag

from . import explore, ledger
from .lab import copy_path
from .page import INTERACTIVE, RUN
from .render import shown_blocks, shown_numbers


def html_path(site: Path, source: str) -> Path:
    """Where the page of a source under docs/ is in the built site."""
    place = Path(source).relative_to("docs").with_suffix("")
    return site / (place.parent if place.name == "index" else place) / "index.html"


def soup_of(path: Path) -> Tag:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def check_site(site: Path, root: Path) -> list[str]:
    """What the built site shows and the tests did not see, and the other way round."""
    complaints, known = [], set[Path]()
    for source in sorted((root / "docs").glob("**/*.md")):
        page, name = html_path(site, str(source.relative_to(root))), source.relative_to(root)
        known.add(page)
        entry = ledger.read(root, source)
        if why := ledger.why_stale(root, source):
            complaints.append(f"{name}: {why}")
        elif not page.exists():
            complaints.append(f"{name}: was run, but is not in the site")
        elif entry:
            complaints += [f"{name}: {text}" for text in check_page(soup_of(page), entry)]
    for source in sorted(root.glob("docs/labs/*.ipynb")):
        page = html_path(site, str(source.relative_to(root)))
        known.add(page)
        wrong = check_lab(page, copy_path(root, source))
        complaints += [f"docs/labs/{source.name}: {text}" for text in wrong]
    for page in sorted(set(site.glob("**/*.html")) - known):
        if soup_of(page).select("pre, [data-expr], [data-exprs]"):
            complaints.append(f"{page.relative_to(site)}: shows code, but no test saw this page")
    return complaints if known else ["there is no book here: run this where docs/ is"]


def check_page(soup: Tag, entry: dict[str, Any]) -> list[str]:
    """Both ways and in order: the blocks and the numbers that the tests saw in the page's HTML."""
    out = []
    for what, shown in (("blocks", shown_blocks(soup)), ("numbers", shown_numbers(soup))):
        seen = [tuple(item) for item in entry[what]]
        out += [f"shown, but not seen by the tests: {item}" for item in _less(shown, seen)]
        out += [f"seen by the tests, but not shown: {item}" for item in _less(seen, shown)]
        if not out and shown != seen:
            out.append(f"the {what} stand in another order than the tests saw")
    if explore.shown(soup) != entry["explorables"]:
        out.append("an explorable begins with something else than the tests saw")
    python = sum(lang in (RUN, INTERACTIVE) for lang, _ in shown_blocks(soup))
    if python != entry["snippets"] + len(entry["notest"]):
        out.append(f"shows {python} blocks of Python, {entry['snippets']} were run")
    if len(soup.select("[data-notest]")) != len(entry["notest"]):
        out.append("a block that was not run is not marked as such")
    buttons = [str(button["data-clipboard-text"]) for button in soup.select("button.code-run")]
    copied = Counter(text.partition("\n\n")[2] for text in buttons)
    if copied != Counter(item["code"] for item in entry["runnable"]):
        out.append("a button copies what no test has run, or a runnable copy is missing")
    if any(not text.startswith("# ") for text in buttons):
        out.append("a runnable copy does not say what must be installed")
    if soup.select(".katex-error, merror"):
        out.append("a formula is shown as an error")
    return out


def _less(ones: list[tuple[str, str]], others: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return list((Counter(ones) - Counter(others)).elements())


def check_lab(page: Path, executed: Path) -> list[str]:
    """The cells of an executed lab and the first words that each of them showed are all there."""
    if not page.exists():
        return ["is not in the site"]
    if not executed.exists():
        return ["was never executed as it is now"]
    cells = [c for c in nbformat.read(executed, as_version=4).cells if c.cell_type == "code"]
    shown = soup_of(page).select(".jp-Notebook > .jp-CodeCell")
    if len(shown) != len(cells):
        return [f"has {len(cells)} cells of code, {len(shown)} are shown"]
    out = []
    for cell, box in zip(cells, shown, strict=True):
        words = "".join(box.get_text().split())
        for text in [cell.source, *map(plain_text, cell.outputs)]:
            if "".join(text.split()) not in words:
                out.append(f"a cell does not show {text[:100]!r}")
    return out


def plain_text(output: Any) -> str:
    """What an output says in words; a drawing says nothing."""
    data = output.get("data", {})
    return str(
        output.get("text") or ("" if "image/svg+xml" in data else data.get("text/plain", ""))
    )


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()
    complaints = check_site(site, Path.cwd())
    for line in complaints:
        print(line)
    print(f"{len(complaints)} differences between {site.name}/ and what the tests saw")
    return bool(complaints)


if __name__ == "__main__":
    raise SystemExit(main())
