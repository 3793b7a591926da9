"""What the search reads of a page: its words, without what it would parse and then leave out.

Formulas and drawings are half of a page's HTML, and the colours of code most of the rest.
"""

import re

EXCLUDED = "data-search-exclude"
BLOCK = re.compile(rf"<(?P<tag>div|svg) [^>]*{EXCLUDED}.*?</(?P=tag)>", re.S)
PRE = re.compile(r"<pre\b.*?</pre>", re.S)
SPAN = re.compile(r"</?span\b[^>]*>")


def words(content: str) -> str:
    """The HTML of a page without colours, and without what says that no search should find it."""
    return without_spans(BLOCK.sub("", without_colours(content)), EXCLUDED)


def without_colours(content: str) -> str:
    """Blocks of code as text."""
    return PRE.sub(lambda block: SPAN.sub("", block[0]), content)


def without_spans(content: str, mark: str) -> str:
    """HTML without the spans that are marked so, and all that is in them."""
    out, at, depth = "", 0, 0
    for span in SPAN.finditer(content):
        if depth:
            depth += -1 if span[0].startswith("</") else 1
            at = span.end()
        elif mark in span[0]:
            out += content[at : span.start()]
            depth = 1
    return out + content[at:]
