"""The links that nobody types lead from the chapters to the back matter, and back."""

import functools
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest
from bs4.element import Tag
from mkdocs.config import load_config
from reader import ROOT, address, soup_of, thin

import attention
from snippets import crosslinks, gate
from tests import record

CHAPTERS = {
    link.source
    for link in crosslinks.links(ROOT, load_config(str(ROOT / "mkdocs.yml")).nav).homes.values()
}
TERMS = crosslinks.entries_of(ROOT)
BOOK = "https://book/"


@functools.cache
def article(site: Path, source: str) -> Tag:
    found = soup_of(gate.html_path(site, f"docs/{source}")).find("article")
    assert isinstance(found, Tag)
    return found


def led(source: str, link: Tag) -> tuple[str, str]:
    """The page that a link of a page leads to, as an address in the book, and the place on it."""
    page, place = urldefrag(urljoin(BOOK + address(ROOT / "docs" / source), str(link["href"])))
    return page.removeprefix(BOOK), place


def test_the_reference_shows_every_public_name_and_no_other(site: Path) -> None:
    shown = [str(heading["id"]) for heading in article(site, "reference.md").select("h3")]
    assert sorted(shown) == sorted(attention.__all__)


@pytest.mark.parametrize("public", attention.__all__)
def test_a_name_and_the_chapter_that_it_comes_from_link_to_each_other(
    site: Path, public: str
) -> None:
    heading = article(site, "reference.md").find("h3", id=public)
    assert isinstance(heading, Tag)
    home = heading.find_next_sibling("p")
    assert isinstance(home, Tag) and home["class"] == ["home"]
    (link,) = home.select("a")
    chapter, _ = led("reference.md", link)
    (source,) = (name for name in CHAPTERS if address(ROOT / "docs" / name) == chapter)
    back = [led(source, one) for one in article(site, source).select(".api a")]
    assert ("reference/", public) in back


@pytest.mark.parametrize("key", TERMS)
def test_a_term_and_its_entry_in_the_glossary_link_to_each_other(site: Path, key: str) -> None:
    entry = article(site, "glossary.md").select_one(f"dt#{key} + dd")
    assert entry is not None
    (link,) = entry.select("a.home")
    chapter, place = led("glossary.md", link)
    assert place == f"term-{key}"
    source = f"{chapter.rstrip('/')}.md"
    (used,) = article(site, source).select(f"a.term#{place}")
    assert led(source, used) == ("glossary/", key)
    assert " ".join(used.get_text().lower().split()) in TERMS[key]
    assert not used.find_parent(["h1", "h2", "h3", "summary", "pre", "a"])


def test_each_term_is_linked_once_in_the_book(site: Path) -> None:
    pages = [path.read_text("utf-8") for path in site.glob("**/index.html")]
    found = Counter(key for page in pages for key in re.findall(r'id="term-([\w-]+)"', page))
    assert found == Counter(list(TERMS))


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        ("dim", "axis"),  # in a signature
        (r'(?<=<div class="language-pyi).*?</div>', '"><pre>def f(): ...</pre></div>'),
        (r"(?<=tensor\(\[\[0\.7311, 0\.26)89", "88"),
    ],
    ids=["a signature", "another signature", "an example"],
)
def test_the_gate_sees_a_change_of_the_reference(site: Path, find: str, replace: str) -> None:
    entry = record.entry(ROOT / "docs/reference.md")
    bare = thin(gate.html_path(site, "docs/reference.md").read_text("utf-8"))
    changed = re.sub(find, replace, bare, count=1 if find != "dim" else 0, flags=re.S)
    assert changed != bare
    soup = gate.BeautifulSoup(changed, "html.parser")
    assert any("not seen by the tests" in line for line in gate.check_page(soup, entry))


def test_no_page_knows_where_it_was_built(site: Path) -> None:
    for path in site.glob("**/*.html"):
        assert str(ROOT) not in path.read_text("utf-8"), path


def test_mkdocstrings_leaves_nothing_but_its_page(site: Path) -> None:
    assert not list(site.glob("**/*mkdocstrings*")) + list(site.glob("objects.inv"))
    for path in site.glob("**/*.html"):
        text = path.read_text("utf-8")
        assert "mkdocstrings" not in text and "<autoref" not in text, path
