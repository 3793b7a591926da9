"""Links that nobody types: from the chapters to the glossary and the API reference, and back.

A term of the glossary is linked where the book uses it first, in italics; a public name of the
package has its home in the chapter that shows its code or, failing that, imports it first. Both
follow from the sources and from the order of the chapters, so no page says so itself.
"""

import ast
import functools
import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import reference
from .page import CODE_SPAN, COMMENT, Page, blank, parse
from .plain import VERBATIM
from .takeaway import navigation

GLOSSARY, REFERENCE = "glossary.md", "reference.md"
ENTRY = re.compile(
    r'^(?P<term>[^\n{]+?)[ ]*\{[ ]*#(?P<key>[\w-]+)(?:[ ]data-also="(?P<also>[^"]*)")?[ ]*\}\n:',
    re.M,
)
EMPHASIS = re.compile(r"(?<![*\w\\])\*(?![*\s])(?P<text>[^*]+?)(?<!\s)\*(?!\*)")
NO_PLACE = re.compile(r"^[ ]*(?:#+ |!!!|\?\?\?).*$|\[[^\]]*\]\([^)]*\)", re.M)  # titles, links
SHOWN = re.compile(
    r"<(?P<tag>h[1-6]|a|pre|code|svg|summary|figcaption)\b.*?</(?P=tag)>|<em>(?P<text>[^<]*)</em>",
    re.S,
)
LISTING = re.compile(rf'--8<-- "{reference.PACKAGE}/(?:\w+/)*\w+\.py:(?P<name>\w+)"')
NAME = re.compile(r'<h3 id="(?P<name>\w+)">.*?</h3>', re.S)
DEFINITION = re.compile(
    r'<dt\b[^>]*\bid="(?P<key>[\w-]+)".*?</dt>\s*<dd>.*?(?=(?:</p>\s*)?</dd>)', re.S
)

Address = Callable[[str], str]  # of a page, by its source, as the page at hand links to it


@dataclass(frozen=True)
class Chapter:
    number: int
    title: str
    source: str


@dataclass(frozen=True)
class Links:
    """Which chapter first uses each term, and which is the home of each public name."""

    terms: dict[str, str]  # each form of a term, with the key of its entry
    first: dict[str, Chapter]
    homes: dict[str, Chapter]

    def add(self, content: str, source: str, address: Address) -> str:
        """The HTML of a page with the links that it is owed."""
        if source == GLOSSARY:
            return DEFINITION.sub(lambda entry: self._back(entry, address), content)
        if source == REFERENCE:
            return NAME.sub(lambda heading: self._home(heading, address), content)
        owed = {key for key, chapter in self.first.items() if chapter.source == source}

        def link(shown: re.Match[str]) -> str:
            key = self.terms.get(_normal(html.unescape(shown["text"] or "")))
            if key not in owed:
                return shown[0]
            owed.remove(key)
            href = f"{address(GLOSSARY)}#{key}"
            return f'<a class="term" id="term-{key}" href="{href}">{shown[0]}</a>'

        names = [name for name, chapter in self.homes.items() if chapter.source == source]
        there = ", ".join(
            f'<a href="{address(REFERENCE)}#{name}"><code>{name}</code></a>' for name in names
        )
        api = f'\n<p class="api">In the API reference: {there}.</p>' if names else ""
        return (SHOWN.sub(link, content) if owed else content) + api

    def _back(self, entry: re.Match[str], address: Address) -> str:
        if not (chapter := self.first.get(entry["key"])):
            return entry[0]
        href = f"{address(chapter.source)}#term-{entry['key']}"
        return f'{entry[0]} <a class="home" href="{href}">Chapter {chapter.number}</a>'

    def _home(self, heading: re.Match[str], address: Address) -> str:
        if not (chapter := self.homes.get(heading["name"])):
            return heading[0]
        title = html.escape(f"Chapter {chapter.number}, {chapter.title}")
        link = f'<a href="{address(chapter.source)}">{title}</a>'
        return f'{heading[0]}\n<p class="home">{link}</p>'


def links(root: Path, nav: list[Any]) -> Links:
    """The links of the book at `root`, whose chapters stand in `nav` as mkdocs.yml writes it."""
    entries, docs = entries_of(root), root / "docs"
    terms = {form: key for key, forms in entries.items() for form in forms}
    first: dict[str, Chapter] = {}
    listed: dict[str, Chapter] = {}
    imported: dict[str, Chapter] = {}
    sources = [entry.source for entry in navigation(nav) if entry.is_chapter]
    for number, source in enumerate(sources, start=1):
        text = (docs / source).read_text("utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        chapter = Chapter(number, title, source)
        italics, imports = _uses(docs / source, text)
        for used in italics:
            if used in terms:
                first.setdefault(terms[used], chapter)
        for match in LISTING.finditer(text):
            listed.setdefault(match["name"], chapter)
        for name in imports:
            imported.setdefault(name, chapter)
    homes = {
        name: home for name in reference.public() if (home := listed.get(name, imported.get(name)))
    }
    return Links(terms, first, homes)


def entries_of(root: Path) -> dict[str, set[str]]:
    """The key of each entry of the glossary, and the forms in which its term is met."""
    path = root / "docs" / GLOSSARY
    text = path.read_text("utf-8") if path.exists() else ""
    return {
        entry["key"]: {
            _normal(form) for form in f"{entry['term']},{entry['also'] or ''}".split(",")
        }
        - {""}
        for entry in ENTRY.finditer(text)
    }


@functools.lru_cache(maxsize=99)  # under `mkdocs serve` most chapters are as they were
def _uses(path: Path, text: str) -> tuple[list[str], list[str]]:
    """What a chapter has in italics, and what its code imports from the package."""
    page = parse(path, text)
    return emphasised(page), _imports(page)


def emphasised(page: Page) -> list[str]:
    """What a page has in italics, in order: no titles, no links, nothing in code or a formula."""
    prose = blank(page.text, [(f.start, f.end) for f in page.fences])
    for pattern in (COMMENT, VERBATIM, CODE_SPAN, NO_PLACE):
        prose = blank(prose, [match.span() for match in pattern.finditer(prose)])
    return [_normal(match["text"]) for match in EMPHASIS.finditer(prose)]


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _imports(page: Page) -> list[str]:
    """The names that the code of a page imports from the package."""
    try:
        tree = ast.parse(page.code)
    except SyntaxError:
        return []  # the run says where
    return [
        item.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == reference.PACKAGE
        for item in node.names
    ]
