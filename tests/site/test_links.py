"""Every link of the built site leads somewhere, and everything that a page asks for is there."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup
from bs4.element import Tag
from reader import ADDRESSES, URL, file_of, soup_of

LOADS = {"href", "src", "data", "poster", "data-src"}
URL_IN_CSS = re.compile(r"url\(\s*['\"]?([^'\")]+)")


def links_of(soup: Tag) -> Iterator[str]:
    for tag in soup.find_all(True):
        yield from (str(tag[name]) for name in LOADS & tag.attrs.keys())
        yield from (part.split()[0] for part in str(tag.get("srcset", "")).split(",") if part)
        yield from URL_IN_CSS.findall(str(tag.get("style", "")))
    for style in soup.find_all("style"):
        yield from URL_IN_CSS.findall(style.get_text())


def broken(site: Path, page: str, links: Iterator[str]) -> list[str]:
    """The links of a page, at its address in the book, that lead nowhere within the book."""
    out = []
    for link in links:
        target = urlsplit(urljoin(URL + page, link))
        host = f"{target.scheme}://{target.netloc}"
        if target.scheme in ("data", "mailto", "javascript"):
            continue
        if not URL.startswith(f"{host}/"):
            continue  # another host: nobody is asked offline
        if not f"{host}{target.path}".startswith(URL):
            out.append(f"{link} leads out of the book")
            continue
        place = site / unquote(f"{host}{target.path}"[len(URL) :])
        place = place / "index.html" if target.path.endswith("/") else place
        if not place.is_file():
            out.append(f"{link} leads nowhere")
        elif place.suffix == ".html" and unquote(target.fragment) not in {"", *places(place)}:
            out.append(f"{link} names no place there")
    return out


@functools.cache
def places(html: Path) -> set[str]:
    """The places of a page that a fragment can name."""
    return {str(tag.get("id") or tag.get("name")) for tag in soup_of(html).select("[id], a[name]")}


def test_every_page_is_looked_at(site: Path) -> None:
    built = {str(path.relative_to(site)) for path in site.glob("**/*.html")}
    assert built == {page if page.endswith(".html") else f"{page}index.html" for page in ADDRESSES}


@pytest.mark.parametrize("page", ADDRESSES, ids=lambda page: page or "index")
def test_every_link_of_a_page_leads_somewhere(site: Path, page: str) -> None:
    links = list(links_of(soup_of(file_of(site, page))))
    assert len(links) > 10
    assert broken(site, page, iter(links)) == []


def test_every_file_that_a_style_asks_for_is_there(site: Path) -> None:
    styles = list(site.glob("**/*.css"))
    assert styles
    for path in styles:
        text = re.sub(r"/\*.*?\*/", "", path.read_text("utf-8"), flags=re.S)
        found = broken(site, path.relative_to(site).as_posix(), iter(URL_IN_CSS.findall(text)))
        assert found == [], path.name


def test_the_map_of_the_site_leads_to_its_pages(site: Path) -> None:
    listed = re.findall(r"<loc>(.*?)</loc>", (site / "sitemap.xml").read_text("utf-8"))
    assert sorted(listed) == sorted(URL + page for page in ADDRESSES if page != "404.html")


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("../nowhere/", "leads nowhere"),
        ("../softmax/#nowhere", "names no place there"),
        ("/assets/book.css", "leads out of the book"),
        ("../../assets/missing.svg", "leads nowhere"),
    ],
)
def test_a_link_that_leads_nowhere_is_seen(site: Path, link: str, complaint: str) -> None:
    soup = BeautifulSoup(f'<p><a href="{link}">x</a></p>', "html.parser")
    found = broken(site, "foundations/similarity/", links_of(soup))
    assert found == [f"{link} {complaint}"]
