"""What the search reads of a page: its words, without what it would parse and then leave out.

Formulas and drawings are half of a page's HTML, and the colours of code most of the rest.
"""

import re

EXCLUDED = re.compile(r"<(?P<tag>div|svg) [^>]*data-search-exclude.*?</(?P=tag)>", re.S)
PRE = re.compile(r"<pre\b.*?</pre>", re.S)
SPAN = re.compile(r"</?span\b[^>]*>")


def words(content: str) -> str:
    """The HTML of a page without colours, and without what says that no search should find it."""
    content = EXCLUDED.sub("", PRE.sub(lambda block: SPAN.sub("", block[0]), content))
    out, at, depth = "", 0, 0  # depth counts spans, of which there are many inside a formula
    for span in SPAN.finditer(content):
        if depth:
            depth += -1 if span[0].startswith("</") else 1
            at = span.end()
        elif "data-search-exclude" in span[0]:
            out += content[at : span.start()]
            depth = 1
    return out + content[at:]
