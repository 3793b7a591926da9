"""What a reader can take away: each chapter as a notebook, each page as Markdown, and llms.txt.

MkDocs' hook calls `write` when the site is built, the template shows `links`. Only what the ledger
speaks for is written, so that nothing is handed out that was not run.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import nbformat

from .notebook import notebook
from .page import parse
from .plain import Book, folder, markdown
from .reader import GOOD, State
from .run import Output

NO_CHAPTERS = {"Labs", "Back matter"}  # parts of the navigation whose pages have no number
GITHUB = re.compile(r"https://github\.com/(?P<name>[\w.-]+/[\w.-]+?)(?:\.git)?/?")
BOLD, SENTENCE = re.compile(r"\*\*(.+?)\*\*"), re.compile(r"(.+?[.?!])(?=\s|$)")
BRANCH = "notebooks"  # where the workflow `pages` puts them for Colab


class Entry(NamedTuple):
    """A page of the navigation, the part that it stands in, and whether that part is numbered."""

    part: str
    source: str
    is_chapter: bool


def book_of(config: Any) -> Book:
    return Book(
        root=Path(config.config_file_path).resolve().parent,
        name=config.site_name,
        url=config.site_url.rstrip("/") + "/",
        licence=config.copyright,
        repository=(config.repo_url or "").rstrip("/"),
    )


def navigation(nav: list[Any], part: str = "") -> Iterator[Entry]:
    """The pages of `nav`, as mkdocs.yml writes it, in order."""
    for item in nav:
        for title, inner in item.items() if isinstance(item, dict) else [("", item)]:
            if isinstance(inner, list):
                yield from navigation(inner, part or title)
            else:
                yield Entry(part or title, inner, bool(part) and part not in NO_CHAPTERS)


def write(config: Any, states: Mapping[str, State]) -> None:
    """Put a notebook and Markdown beside each page of the built site, and llms.txt at its root."""
    book, site = book_of(config), Path(config.site_dir)
    found = []
    for entry in navigation(config.nav):
        path, target = book.root / "docs" / entry.source, site / folder(entry.source)
        if path.suffix == ".ipynb":  # a lab is a notebook already
            cells = nbformat.read(path, as_version=4).cells
            text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
            found.append((entry, path.name, text))
            continue
        if states[entry.source].word not in GOOD:
            continue  # only where the site is served while somebody writes
        text, made = taken(book, path, json.dumps(states[entry.source].entry), entry.is_chapter)
        found.append((entry, "index.md", text))
        (target / "index.md").write_text(text, "utf-8")
        if made:
            (target / f"{path.stem}.ipynb").write_text(made, "utf-8")
    (site / "llms.txt").write_text(llms_txt(found, config.site_description, book), "utf-8")


@functools.lru_cache(maxsize=99)  # under `mkdocs serve` most pages are as they were
def taken(book: Book, path: Path, entry: str, is_chapter: bool) -> tuple[str, str]:
    """A page as Markdown and, if it is a chapter, as a notebook.

    The entry of the ledger, as JSON, has a hash of all that either depends on.
    """
    page = parse(path)
    outputs = [[Output(*output) for output in snippet] for snippet in json.loads(entry)["outputs"]]
    made = nbformat.writes(notebook(page, outputs, book)) + "\n" if is_chapter else ""
    return markdown(page, book), made


def llms_txt(pages: list[tuple[Entry, str, str]], summary: str, book: Book) -> str:
    """The book for a machine that reads (llmstxt.org): every page, where it is, what it asks.

    A page is its entry, the name of the file to read, and its text as Markdown.
    """
    out, part = f"# {book.name}\n\n> {' '.join(summary.split())}\n", None
    for entry, name, text in pages:
        if entry.part != part:
            out, part = f"{out}\n## {entry.part}\n\n", entry.part
        title, first, *_ = (" ".join(block.split()) for block in f"{text}\n\n".split("\n\n"))
        gist = BOLD.match(first) or SENTENCE.match(first)
        address = book.address(entry.source) + name
        out += f"- [{title.removeprefix('# ')}]({address}): {gist[1] if gist else first}\n"
    return out


def links(page: Any, config: Any) -> list[tuple[str, str, str]]:
    """What the page (of MkDocs) offers to take away: label, address, kind."""
    source = page.file.src_uri
    if source.endswith(".ipynb"):
        return [("Notebook", PurePosixPath(source).name, "notebook")]
    found = [("Markdown", "index.md", "markdown")]
    if any(entry.source == source and entry.is_chapter for entry in navigation(config.nav)):
        name = PurePosixPath(source).with_suffix(".ipynb")
        if host := GITHUB.fullmatch(config.repo_url or ""):
            colab = "https://colab.research.google.com/github"
            found.insert(0, ("Colab", f"{colab}/{host['name']}/blob/{BRANCH}/{name}", "colab"))
        found.insert(0, ("Notebook", name.name, "notebook"))
    return found
