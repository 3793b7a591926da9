"""What a reader's first visit costs: bytes over the wire, compressed as a host does it.

A cold load fetches the page, the style sheets and scripts that it names, what Material's script asks
for (the map of the site; the index of the search waits for a reader who searches, as a test of
the browser holds), and the fonts that its text needs. A font
counts if the classes of a rule that names it are on the page, or, for a face
with a range of letters, if one of them stands there: never less than what a browser fetches.
"""

import functools
import gzip
import re
from pathlib import Path

import pytest
from bs4.element import Tag
from fontTools.ttLib import TTFont
from reader import file_of, soup_of

from snippets import gate

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/labs/*.ipynb")])
LABS = [source for source in SOURCES if source.suffix == ".ipynb"]
KB = 1000
FIGURE = re.compile(r'<svg role="img".*?</svg>', re.S)
CLASSES = re.compile(r'class="([^"]*)"')
FACE = re.compile(r"@font-face\s*\{(?P<body>[^}]*)\}")
RULE = re.compile(r"(?P<selectors>[^{}]+)\{(?P<body>[^{}]*KaTeX_[^{}]*)\}")
COMMENT = re.compile(r"/\*.*?\*/", re.S)
FALLBACK = "√∞"  # the typeface's web files lack them; the reader's own serif draws them
EMPHASIS = "em, i, cite, figcaption, [data-notest], [data-raises]"


def name(path: Path) -> str:
    return path.relative_to(ROOT / "docs").as_posix()


def compressed(content: bytes) -> int:
    return len(gzip.compress(content, mtime=0))


@functools.cache
def size(path: Path) -> int:
    """The bytes of a file that many pages ask for, as they come: fonts are compressed already."""
    return path.stat().st_size if path.suffix == ".woff2" else compressed(path.read_bytes())


@functools.cache
def faces(css: Path) -> list[tuple[str, str, Path]]:
    """Of each @font-face: its family, its body and its file."""
    found = []
    for face in FACE.finditer(css.read_text("utf-8")):
        family = re.search(r"font-family:\s*[\"']?([\w ]+)", face["body"])
        file = re.search(r"url\([\"']?([^)\"']+)", face["body"])
        assert family and file, face[0]
        found.append((family[1], face["body"], css.parent / file[1]))
    return found


def prose_fonts(css: Path, article: Tag) -> set[Path]:
    text = article.get_text()
    return {
        file
        for _, face, file in faces(css)
        if ("italic" not in face or article.select(EMPHASIS))
        and ("unicode-range" not in face or letters(face) & set(map(ord, text)))
    }


def letters(face: str) -> set[int]:
    return {
        letter
        for first, last in re.findall(r"U\+([0-9A-F]+)-([0-9A-F]+)", face)
        for letter in range(int(first, 16), int(last, 16) + 1)
    }


def math_fonts(css: Path, html: str) -> set[Path]:
    """Those of the rules all of whose classes are on the page, wherever they are."""
    classes = {name for names in set(CLASSES.findall(html)) for name in names.split()}
    wanted = {
        (font, "bold" in body or "700" in body, "italic" in body)
        for font, body, selectors in math_rules(css)
        if any(names <= classes for names in selectors)
    }
    return {
        file
        for family, face, file in faces(css)
        if (family, "700" in face or "bold" in face, "italic" in face) in wanted
    }


@functools.cache
def math_rules(css: Path) -> list[tuple[str, str, list[set[str]]]]:
    """Of each rule that names a font of KaTeX: the font, what it says, its selectors' classes."""
    found = []
    for rule in RULE.finditer(FACE.sub("", COMMENT.sub("", css.read_text("utf-8")))):
        font = re.search(r"KaTeX_\w+", rule["body"])
        assert font
        selectors = [set(re.findall(r"\.([\w-]+)", one)) for one in rule["selectors"].split(",")]
        found.append((font[0], rule["body"], selectors))
    return found


def fetched(site: Path, page: Path) -> tuple[dict[str, int], int]:
    """The bytes of each file of a cold load, and those of the figures inside the page."""
    soup, text = soup_of(page), page.read_text("utf-8")
    article = soup.select_one("article")
    assert article is not None
    styles = [page.parent / str(link["href"]) for link in soup.select('link[rel="stylesheet"]')]
    scripts = [page.parent / str(script["src"]) for script in soup.select("script[src]")]
    others = [site / "sitemap.xml"]
    others += [page.parent / str(link["href"]) for link in soup.select('link[rel="icon"]')]
    files = {path.resolve() for path in (*styles, *scripts, *others)}
    book, katex = site / "assets/book.css", site / "assets/katex/katex.min.css"
    fonts = prose_fonts(book, article) | math_fonts(katex, text)
    preloaded = {page.parent / str(link["href"]) for link in soup.select('link[rel="preload"]')}
    fonts |= {path.resolve() for path in preloaded}
    sizes = {path.name: size(path) for path in files | fonts}
    sizes["page"] = compressed(text.encode())
    return sizes, sizes["page"] - compressed(FIGURE.sub("", text).encode())


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_a_first_visit_is_light(site: Path, source: Path) -> None:
    page = gate.html_path(site, source.relative_to(ROOT).as_posix())
    sizes, figures = fetched(site, page)
    total = sum(sizes.values())
    assert total - figures <= 240 * KB, sizes
    assert total <= 350 * KB, sizes


@pytest.mark.parametrize("source", LABS, ids=name)
def test_a_lab_brings_no_style_and_no_script_of_its_own(site: Path, source: Path) -> None:
    page = gate.html_path(site, source.relative_to(ROOT).as_posix())
    assert compressed(page.read_bytes()) <= 40 * KB
    soup = soup_of(page)
    assert not soup.select("article style, article script, article link")
    chapter = soup_of(file_of(site, "foundations/softmax/"))
    ours, theirs = (
        {Path(str(link["href"])).name for link in page.select('link[rel="stylesheet"]')}
        for page in (soup, chapter)
    )
    assert ours == theirs  # a page that is navigated to instantly finds its style there already


def test_our_script_is_small(site: Path) -> None:
    ours = [path for path in site.glob("assets/**/*.js") if "javascripts" not in path.parts]
    inline = {
        script.get_text()
        for page in site.glob("**/*.html")
        for script in soup_of(page).select("script")
        if not script.get("src") and script.get("type") != "application/json"
    }
    material = [text for text in inline if "__md_" in text or "__prefix" in text]
    written = "".join(sorted(inline - set(material))).encode()
    play = [path for path in ours if path.parent.name == "explore"]
    assert sum(compressed(path.read_bytes()) for path in play) <= 40 * KB
    others = sum(compressed(path.read_bytes()) for path in set(ours) - set(play))
    assert others + compressed(written) <= 10 * KB


@functools.cache
def has(css: Path) -> dict[bool, set[int]]:
    """The letters of the typeface, upright and italic."""
    found: dict[bool, set[int]] = {False: set(), True: set()}
    for _, face, file in faces(css):
        with TTFont(file) as font:
            known = set(font.getBestCmap())
            found["italic" in face] |= known & letters(face) if letters(face) else known
    return found


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_the_typeface_has_every_letter_of_the_prose(site: Path, source: Path) -> None:
    page = gate.html_path(site, source.relative_to(ROOT).as_posix())
    article = soup_of(page).select_one("article")
    assert article is not None
    others = set(map(id, article.select("pre, code:not([data-expr]), .katex, svg, .sign")))

    def prose(tag: Tag) -> str:
        return "".join(
            text for text in tag.find_all(string=True) if others.isdisjoint(map(id, text.parents))
        )

    for italic, tags in ((False, [article]), (True, article.select("em, i, cite"))):
        text = "".join(map(prose, tags))
        lacking = {
            letter
            for letter in set(text) - {*FALLBACK}
            if letter.isprintable() and ord(letter) not in has(site / "assets/book.css")[italic]
        }
        assert not lacking, f"add {lacking} to LETTERS in tools/vendor.py, or use other words"


def test_the_typeface_has_the_weights_that_the_style_asks_for(site: Path) -> None:
    css = site / "assets/book.css"
    for _, face, file in faces(css):
        with TTFont(file) as font:
            (axis,) = font["fvar"].axes
            assert f"font-weight:{axis.minValue:.0f} {axis.maxValue:.0f}" in face, file.name
            names = {str(record) for record in font["name"].names if record.nameID in (1, 4, 6, 16)}
            assert not any("Source" in known for known in names)  # the licence reserves it
    asked = re.findall(r"font-weight:(\d+)[;}]", css.read_text("utf-8"))
    assert all(400 <= int(weight) <= 700 for weight in asked)
