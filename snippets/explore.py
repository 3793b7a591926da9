"""Explorables: figures that a reader plays with, each a custom element around its drawing.

    ![The weights of journey](figures/softmax-weights.svg){data-explore="softmax" data-given="…"}

The expression is evaluated where the figure stands, in the run that checks the page. What it gives
goes into the page as JSON, in an attribute of the element, and `docs/assets/explore/softmax.js`
begins there. A page that is not what was run keeps its drawings and gets neither.
"""

import html
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = "assets/explore"
# Digits on which machines agree: the last of float32's seven and of float64's sixteen hang on the
# processor.
SINGLE, DOUBLE = 6, 12
ELEMENT = re.compile(
    r'<explore-(?P<name>[\w-]+) data-figure="(?P<src>[^"]+)">(?P<inside>.*?)</explore-(?P=name)>',
    re.S,
)


class Explorable(NamedTuple):
    """The name of an element, the Python expression of what it begins with, and where it stands."""

    name: str
    given: str
    line: int


def names(root: Path) -> set[str]:
    """The explorables that there are: a module of ours each, beside what they share."""
    return {path.stem for path in (root / "docs" / SCRIPTS).glob("*.js")} - {"base"}


def as_json(value: object) -> str:
    """What an explorable begins with, as a page carries it."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(x: Any, digits: int = DOUBLE) -> Any:
    if isinstance(x, dict):
        return {str(key): _plain(item) for key, item in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(item, digits) for item in x]
    if hasattr(x, "tolist"):
        return _plain(x.tolist(), DOUBLE if x.dtype.itemsize == 8 else SINGLE)
    if isinstance(x, float):
        return float(f"{x:.{digits}g}")
    if not isinstance(x, (str, bool, int, type(None))):
        raise TypeError(f"an explorable cannot begin with {type(x).__name__}")
    return x


def element(name: str, src: str, drawing: str, given: str = "") -> str:
    """A drawing, and around it what will play with it.

    In an attribute, for instant navigation would make a script of a script, whatever its type.
    """
    data = f' data-given="{html.escape(given)}"' if given else ""
    return f'<explore-{name} data-figure="{src}"{data}>{drawing}</explore-{name}>'


def bring(content: str, seen: dict[str, list[str]], base: str) -> str:
    """Give each element of a page its JSON, and the page the modules; `base` leads to the site."""
    wanted: dict[str, None] = {}

    def give(match: re.Match[str]) -> str:
        if match["src"] not in seen:
            return match[0]
        wanted[match["name"]] = None
        return element(match["name"], match["src"], match["inside"], seen[match["src"]][1])

    content = ELEMENT.sub(give, content)
    return content + "".join(
        f'<script type="module" src="{base}{SCRIPTS}/{name}.js"></script>' for name in wanted
    )


def shown(soup: Any) -> dict[str, list[str]]:
    """What the explorables of a built page begin with, as the ledger has it."""
    return {
        str(one["data-figure"]): [one.name.removeprefix("explore-"), str(one["data-given"])]
        for one in soup.select("[data-figure][data-given]")
    }
