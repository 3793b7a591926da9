r"""A Python-Markdown extension: formulas typeset, figures inlined.

Any engine that runs Python-Markdown can use it; it knows nothing of MkDocs.

- `$…$` and `$$…$$` (found by pymdownx.arithmatex) become KaTeX's HTML; `\py{0.24}{expr}` shows its
  number; a number of two or more decimals without `\py` is refused;
- `\label{name}` in a display formula gives it the id `eq-name`, and a number if `$\eqref{name}$`
  refers to it on the page;
- `![…](figures/name.svg)` becomes the drawing itself, so that it takes the page's colours, inside
  the element that plays with it where one does;
- a block of code says how tall it is, and can be scrolled from the keyboard if a phone cuts it.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.postprocessors import Postprocessor

from . import explore
from .katex import typeset
from .page import py_macro

MATH = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?P<tex>.*?)</(?P=tag)>', re.S)
LABEL = re.compile(r"\s*\\label\{(?P<name>[\w-]+)\}")
EQREF = re.compile(r"\\eqref\{(?P<name>[\w-]+)\}")
IMAGE = re.compile(r'<img [^>]*?src="[^"]*?(?P<name>[\w-]+\.svg)"[^>]*>')
CODE = re.compile(r"<pre><span></span><code>(?P<code>.*?)</code>", re.S)
NO_PROSE = re.compile(r'<p>(?=<div class="language-)|(?<=</pre></div>)</p>')
PHONE = 36  # characters of a line that a screen of 360 pixels shows, inside a box in the text
DECIMALS = re.compile(r"(?<!\d)(?<!\d\.)\d*\.\d{2,}+(?!\.\d)")  # of a version, nothing


class FormulaError(ValueError):
    """What is wrong with a formula; `tex` is its source, as the page has it."""

    def __init__(self, message: str, tex: str) -> None:
        super().__init__(message)
        self.tex = tex


class BookPostprocessor(Postprocessor):
    inline_figures = True

    def __init__(self, md: Markdown, docs: Path) -> None:
        super().__init__(md)
        self.docs = docs

    def run(self, text: str) -> str:
        text = typeset_page(text)
        if self.inline_figures:
            text = IMAGE.sub(self._figure, text)
        return mark_code(text)

    def _figure(self, image: re.Match[str]) -> str:
        if "figures/" not in image[0]:
            return image[0]
        found = sorted(self.docs.glob(f"**/figures/{image['name']}"))
        if len(found) > 1:
            raise ValueError(
                f"two figures are called {image['name']}: pages need names of their own"
            )
        if not found:
            return image[0]  # the build has been told already; a reader sees the alt text
        alt = re.search(r'alt="([^"]*)"', image[0])
        drawing = inline_svg(found[0].read_text("utf-8"), html.unescape(alt[1]) if alt else "")
        plays = re.search(r'data-explore="([\w-]+)"', image[0])
        return explore.element(plays[1], f"figures/{image['name']}", drawing) if plays else drawing


def mark_code(text: str) -> str:
    """Each block of code with its number of lines, in the order of tabs if a phone cuts a line.

    Two blocks with no empty line between them are a paragraph to Markdown; to HTML that is none.
    """
    return CODE.sub(_code, NO_PROSE.sub("", text))


def _code(block: re.Match[str]) -> str:
    # The `pre` is what scrolls: Material's script takes the tabindex of a `code` away.
    lines = code_text(block["code"]).removesuffix("\n").split("\n")
    focus = ' tabindex="0"' if max(map(len, lines)) > PHONE else ""
    return f'<pre style="--lines:{len(lines)}"{focus}' + block[0].removeprefix("<pre")


def code_text(shown: str) -> str:
    """The text of a block of code, from its HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", shown))


def inline_svg(svg: str, alt: str) -> str:
    """The drawing without what only a stand-alone file needs, named by the page and its data."""
    svg = re.sub(r"<\?xml.*?\?>|<style>.*?</style>|<title>.*?</title>", "", svg, flags=re.S).strip()
    data = svg_words(svg)
    svg = re.sub(r"<desc>.*?</desc>", "", svg, flags=re.S)
    label = html.escape(f"{alt.rstrip('.')}. {data}".strip(), quote=True)
    svg = (
        re.sub(r'\s(?:role|aria-label|xmlns)="[^"]*"', "", svg.split(">", 1)[0])
        + ">"
        + svg.split(">", 1)[1]
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}" data-search-exclude', 1)


def svg_words(svg: str) -> str:
    """The data of a drawing in words, as its maker wrote them."""
    described = re.search(r"<desc>(.*?)</desc>", svg, re.S)
    return html.unescape(described[1]) if described else ""


def typeset_page(text: str) -> str:
    """Every formula of a rendered page, typeset, numbered where it is referred to."""
    formulas = [html.unescape(m["tex"]).strip()[2:-2].strip() for m in MATH.finditer(text)]
    labels = [m["name"] for tex in formulas for m in LABEL.finditer(tex)]
    wanted = {m["name"] for tex in formulas for m in EQREF.finditer(tex)}
    for name in wanted - set(labels):
        raise FormulaError(f"\\eqref{{{name}}} refers to no \\label here", f"\\eqref{{{name}}}")
    for name in labels:
        if labels.count(name) > 1:
            raise FormulaError(f"\\label{{{name}}} stands twice", f"\\label{{{name}}}")
    tags = {name: str(i + 1) for i, name in enumerate(n for n in labels if n in wanted)}
    queue = iter(formulas)
    return MATH.sub(lambda m: _formula(m["tag"], next(queue), tags), text)


def _formula(tag: str, source: str, tags: dict[str, str]) -> str:
    if ref := EQREF.fullmatch(source):
        return f'<a class="eqref" href="#eq-{ref["name"]}">({tags[ref["name"]]})</a>'
    attrs = ""
    try:
        tex, unsourced, exprs = strip_macros(source)
        if bare := DECIMALS.search(unsourced):
            raise ValueError(f"{bare[0]} has no \\py{{{bare[0]}}}{{expression}}")
        if label := LABEL.search(tex):
            tex = LABEL.sub("", tex)
            attrs = f' id="eq-{label["name"]}"'
            if label["name"] in tags:
                tex += rf"\tag{{{tags[label['name']]}}}"
        body = typeset(tex, tag == "div")
    except ValueError as error:
        raise FormulaError(f"{error}, in the formula {source}", source) from None
    if exprs:
        attrs += f' data-exprs="{html.escape(json.dumps(exprs), quote=True)}"'
    if tag == "div":
        attrs += ' tabindex="0"'
    return f'<{tag} class="arithmatex" data-search-exclude{attrs}>{body}</{tag}>'


def strip_macros(tex: str) -> tuple[str, str, list[list[str]]]:
    r"""TeX with each `\py` as it shows; the rest without them; the [shown, expr] pairs."""
    out, rest, pairs = "", "", []
    at = 0
    for match in re.finditer(r"\\py(?![A-Za-z])", tex):
        if match.start() < at:
            continue
        shown, expr, end = py_macro(tex, match.start())
        out += tex[at : match.start()] + "{" + shown + "}"
        rest += tex[at : match.start()] + " "
        pairs.append([shown, expr])
        at = end
    return out + tex[at:], rest + tex[at:], pairs


class BookExtension(Extension):
    def __init__(self, **kwargs: Any) -> None:
        self.config = {"docs": ["docs", "where the pages and their figures are"]}
        super().__init__(**kwargs)

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        # after raw_html (30), so that stashed blocks are in the text already
        md.postprocessors.register(BookPostprocessor(md, Path(self.getConfig("docs"))), "book", 5)


def makeExtension(**kwargs: Any) -> BookExtension:  # noqa: N802
    return BookExtension(**kwargs)
