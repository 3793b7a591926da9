"""What does the reader see? An independent look at the HTML, held against the parsed page.

The page is rendered with the extensions of `mkdocs.yml`, without MkDocs, and read by an HTML
parser that knows nothing of Markdown. Every block of code that it finds must be a fence that the
parser saw, and the other way round; so must every number with an expression. That catches what
no list of fence forms can: whatever the engine shows as code, and the tests did not see.
"""

import functools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import markdown
from bs4 import BeautifulSoup
from bs4.element import Tag
from mkdocs.utils.yaml import get_yaml_loader, yaml_load

from .markdown_ext import DECIMALS
from .page import SHOWN, Page, listing

Block = tuple[str, str]  # language, text
NO_NUMBER = re.compile(  # a name or a version, though it looks like a number
    r"arXiv:\d{4}\.\d{4,5}|doi:\S+|(?:Python|[Tt]orch|PyTorch|CUDA|Triton)\s+\d+\.\d+"
)


@functools.cache
def _engine(config: Path) -> markdown.Markdown:
    with config.open(encoding="utf-8") as stream:
        settings = yaml_load(stream, loader=get_yaml_loader())
    names, options = ["toc", "tables"], {}
    for item in settings["markdown_extensions"]:
        name, values = next(iter(item.items())) if isinstance(item, dict) else (item, {})
        names.append(name)
        options[name] = values or {}
    return markdown.Markdown(extensions=[*dict.fromkeys(names)], extension_configs=options)


def render(text: str, root: Path) -> str:
    return _engine(root / "mkdocs.yml").reset().convert(text)


def squeeze(text: str) -> str:
    """Without what a renderer may change: space at line ends, blank lines around."""
    return "\n".join(line.rstrip() for line in text.strip("\n").expandtabs(4).split("\n"))


def expected_blocks(page: Page, root: Path) -> list[Block]:
    """The blocks that a reader must see, as the parser saw them."""
    blocks = []
    for fence in page.fences:
        source = fence.source
        if "--8<--" in source:
            try:
                source = listing(source, root)
            except (LookupError, ValueError):
                continue  # the run reports it, with its line
        blocks.append((fence.lang, squeeze(source)))
    return blocks


def shown_blocks(soup: Tag) -> list[Block]:
    """Every block of code in the HTML, with the language that its box names."""
    blocks = []
    for pre in soup.find_all("pre"):
        if pre.find_parent("td", class_="linenos"):
            continue
        lang = "none"
        for box in [pre, *pre.parents]:
            for name in box.get("class") or []:
                if name.startswith("language-"):
                    lang = name.removeprefix("language-")
            if lang != "none":
                break
        blocks.append((lang, squeeze(pre.get_text())))
    return blocks


def shown_numbers(soup: Tag) -> list[tuple[str, str]]:
    """Every [text, expression] in prose and formulas of the HTML."""
    found = [(code.get_text(), str(code["data-expr"])) for code in soup.select("[data-expr]")]
    for formula in soup.select("[data-exprs]"):
        found += [(text, expr) for text, expr in json.loads(str(formula["data-exprs"]))]
    return found


def check(page: Page, root: Path) -> list[tuple[int, str]]:
    """(line, message) for each thing that the reader sees and the tests do not, or vice versa."""
    try:
        html = render(page.text, root)
    except Exception as error:
        literal = re.search(r"in (?:the formula )?'(.*)'", str(error))
        line = _line_of(page, literal[1].replace("\\\\", "\\") if literal else "")
        return [(line, f"the page cannot be rendered: {error}")]
    soup = BeautifulSoup(html, "html.parser")
    return [
        *_check_blocks(page, root, soup),
        *_check_numbers(page, soup),
        *_check_prose(page, root, soup),
    ]


def _check_blocks(page: Page, root: Path, soup: Tag) -> list[tuple[int, str]]:
    shown, seen = Counter(shown_blocks(soup)), Counter(expected_blocks(page, root))
    out = []
    for (lang, text), _ in (shown - seen).items():
        line = _line_of(page, text.split("\n")[0])
        out.append(
            (line, f"shown as code ({lang}), but no fence that the tests see:\n{text[:300]}")
        )
    for (lang, text), _ in (seen - shown).items():
        fence = next((f for f in page.fences if squeeze(f.source) == text), None)
        line = page.line_at(fence.start) if fence else 1
        out.append(
            (line, f"a ```{lang} fence that is not shown as such to the reader:\n{text[:300]}")
        )
    runs = sum(snippet.notest is not None for snippet in page.snippets)
    if runs != len(soup.select("[data-notest]")):
        out.append((1, "a data-notest mark does not reach the reader"))
    return out


def _check_numbers(page: Page, soup: Tag) -> list[tuple[int, str]]:
    shown = Counter((text, " ".join(expr.split())) for text, expr in shown_numbers(soup))
    seen = Counter((n.text, " ".join(n.expr.split())) for n in page.numbers)
    out = []
    for text, expr in shown - seen:
        out.append(
            (_line_of(page, expr), f"{text!r} is shown with {expr!r}, which the tests do not see")
        )
    for text, expr in seen - shown:
        line = next((n.line for n in page.numbers if n.text == text), 1)
        out.append(
            (line, f"{text!r} with the expression {expr!r} does not reach the reader as such")
        )
    return out


def _check_prose(page: Page, root: Path, soup: Tag) -> list[tuple[int, str]]:
    out = []
    keys = bibliography(root)
    for cited in soup.select("[data-cite]"):
        if (key := str(cited["data-cite"])) not in keys:
            out.append((_line_of(page, key), f"data-cite={key!r} is not in docs/bibliography.md"))
    for image in soup.select("img, svg:not(.arithmatex svg)"):
        if not str(image.get("alt") or image.get("aria-label") or "").strip(" ."):
            out.append((_line_of(page, str(image.get("src", ""))), "an image without alt text"))
    texts = [str(tag[name]) for name in ("alt", "title") for tag in soup.select(f"[{name}]")]
    for gone in soup.select("pre, svg, .arithmatex, [data-expr], [data-cite], script, style"):
        gone.replace_with(" ")
    texts.append(prose := soup.get_text(" "))
    for code in soup.find_all("code"):
        code.replace_with(" ")
    for match in re.finditer(r"(?:`{3,}|~{3,})[^\n]*", soup.get_text(" ")):
        out.append((_line_of(page, match[0]), f"a fence that is shown as text: {match[0]!r}"))
    for match in re.finditer(r"^\s*>>> .*", prose, re.M):
        out.append((_line_of(page, match[0].strip()), ">>> outside a fence is never run"))
    for text in texts:
        for match in DECIMALS.finditer(NO_NUMBER.sub("", text)):
            out.append(
                (
                    _line_of(page, match[0], prose_only=True),
                    f'{match[0]} has no source: write `{match[0]}`{{data-expr="…"}}, '
                    "or cite it with data-cite",
                )
            )
    return out


def bibliography(root: Path) -> set[str]:
    """The keys of the bibliography: the ids of its entries."""
    path = root / "docs" / "bibliography.md"
    return set(re.findall(r"\{\s*#([\w-]+)", path.read_text("utf-8"))) if path.exists() else set()


def _line_of(page: Page, literal: str, *, prose_only: bool = False) -> int:
    text = page.text
    if prose_only:
        for fence in page.fences:
            blank = re.sub(r"[^\n]", " ", text[fence.start : fence.end])
            text = text[: fence.start] + blank + text[fence.end :]
        for number in page.numbers:
            text = text[: number.start] + " " * (number.end - number.start) + text[number.end :]
    at = text.find(literal) if literal else -1
    return page.line_at(at) if at >= 0 else 1


def summary(page: Page, root: Path) -> dict[str, Any]:
    """What the ledger keeps of a page for the gate: its blocks and its numbers."""
    return {
        "blocks": sorted(map(list, expected_blocks(page, root))),
        "numbers": sorted([n.text, " ".join(n.expr.split())] for n in page.numbers),
        "never_run": sorted({f.lang for f in page.fences} & SHOWN),
    }
