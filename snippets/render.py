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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import markdown
from bs4 import BeautifulSoup
from bs4.element import Tag
from mkdocs.utils.yaml import get_yaml_loader, yaml_load

from .markdown_ext import DECIMALS, BookPostprocessor, FormulaError
from .page import Page, blank, listing

Block = tuple[str, str]  # language, text
NO_NUMBER = re.compile(  # an identifier, a version or a place, though it looks like a number
    r"\b\d{4}\.\d{4,5}\b|doi:\S+|https?://\S+|\bv\d+\.\d+"
    r"|(?:[Cc]hapter|[Ss]ection|Table|Figure|Fig\.|Sec\.|Eq\.|§) ?\(?\d+\.\d+"
    r"|(?:Python|PyTorch|[Tt]orch|NumPy|CUDA|cuDNN|Triton|Ubuntu|make) ?[=<>~≥]*=? ?"
    r"[1-9]\d*\.\d+(?:(?:, | to | and | or |–)[1-9]\d*\.\d+)*"
    r"(?!\d|\s*(?:ms|µs|s|x|×|%|[kMG]i?B|times)\b)"
)
BLOCKS = "p, li, td, th, dt, dd, div, h1, h2, h3, h4, h5, h6, blockquote, figcaption, summary, br"
SMUGGLERS = (
    "svg:not(.arithmatex svg), script, style, iframe, object, embed, "
    "textarea, xmp, listing, plaintext, [hidden]"
)
CODE_ATTRS = {"class", "id", "data-expr", "data-cite", "tabindex"}


@functools.cache
def _engine(config: Path) -> markdown.Markdown:
    with config.open(encoding="utf-8") as stream:
        settings = yaml_load(stream, loader=get_yaml_loader())
    names, options = ["toc", "tables"], {}
    for item in settings["markdown_extensions"]:
        name, values = next(iter(item.items())) if isinstance(item, dict) else (item, {})
        names.append(name)
        options[name] = values or {}
    options["pymdownx.snippets"]["base_path"] = [str(config.parent)]  # from wherever it is run
    engine = markdown.Markdown(extensions=[*dict.fromkeys(names)], extension_configs=options)
    book = engine.postprocessors["book"]
    assert isinstance(book, BookPostprocessor)
    book.inline_figures = False  # so that each can be counted
    return engine


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
        if pre.find_parent("td", class_="linenos") and not pre.get_text().strip("0123456789 \n"):
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


class Finding(NamedTuple):
    line: int
    message: str


def check(page: Page, root: Path) -> tuple[list[Finding], dict[str, Any]]:
    """What the reader sees and the tests do not, or vice versa; and what the ledger keeps."""
    try:
        soup = BeautifulSoup(render(page.text, root), "html.parser")
    except FormulaError as error:
        return [Finding(_line_of(page, error.tex.split("\n")[0]), str(error))], {}
    except Exception as error:
        return [Finding(1, f"the page cannot be rendered: {type(error).__name__}: {error}")], {}
    seen = {"blocks": shown_blocks(soup), "numbers": shown_numbers(soup)}
    findings = [
        *_check_blocks(page, root, soup),
        *_check_numbers(page, soup),
        *_check_figures(page, root, soup),
        *_check_tags(page, root, soup),
        *_check_prose(page, soup),
    ]
    return findings, seen


def _check_blocks(page: Page, root: Path, soup: Tag) -> Iterator[Finding]:
    shown, seen = Counter(shown_blocks(soup)), Counter(expected_blocks(page, root))
    for lang, text in shown - seen:
        line = _line_of(page, text.split("\n")[0])
        yield Finding(
            line, f"shown as code ({lang}), but no fence that the tests see:\n{text[:300]}"
        )
    for lang, text in seen - shown:
        fence = next((f for f in page.fences if squeeze(f.source) == text), None)
        line = page.line_at(fence.start) if fence else 1
        yield Finding(
            line, f"a ```{lang} fence that the reader does not see as such:\n{text[:300]}"
        )
    if sum(s.notest is not None for s in page.snippets) != len(soup.select("[data-notest]")):
        yield Finding(1, "a data-notest mark does not reach the reader")


def _check_numbers(page: Page, soup: Tag) -> Iterator[Finding]:
    shown = Counter((text, " ".join(expr.split())) for text, expr in shown_numbers(soup))
    seen = Counter((n.text, " ".join(n.expr.split())) for n in page.numbers)
    for text, expr in shown - seen:
        line = _line_of(page, expr)
        yield Finding(line, f"{text!r} is shown with {expr!r}, which the tests do not see")
    for text, expr in seen - shown:
        line = next((n.line for n in page.numbers if (n.text, n.expr) == (text, expr)), 1)
        yield Finding(
            line,
            f"{text!r} with the expression {expr!r} does not reach the reader as such "
            "(does Markdown read a * or _ in it as emphasis?)",
        )


def _check_figures(page: Page, root: Path, soup: Tag) -> Iterator[Finding]:
    shown = Counter(
        str(image["src"]) for image in soup.find_all("img", src=True) if "figures/" in image["src"]
    )
    drawn = Counter(snippet.figure for snippet in page.snippets if snippet.figure)
    for src in shown - drawn:
        yield Finding(_line_of(page, src), f"no snippet directly above draws {src}")
    for src in drawn - shown:
        yield Finding(_line_of(page, str(src)), f"{src} is drawn, but not shown")
    plays = Counter(
        (str(image.get("data-explore")), str(image.get("data-given")))
        for image in soup.select("img[data-explore]")
    )
    seen = Counter(s.explorable[:2] for s in page.snippets if s.explorable)
    for one in plays - seen:
        yield Finding(_line_of(page, one[1]), f"{one} plays with no figure that the tests see")
    for one in seen - plays:
        yield Finding(
            _line_of(page, one[1]),
            f"{one} does not reach the reader as such "
            "(is a brace left open, or a * or _ read as emphasis?)",
        )
    for image in soup.find_all("img"):
        src, line = str(image.get("src")), _line_of(page, str(image.get("src")))
        if not str(image.get("alt", "")).strip(" ."):
            yield Finding(line, "an image without alt text")
        if page.path.resolve().is_relative_to(root / "docs") and "figures/" not in src:
            yield Finding(line, f"no snippet draws {src}")


def _check_tags(page: Page, root: Path, soup: Tag) -> Iterator[Finding]:
    """HTML that would hide something from the other checks."""
    keys = bibliography(root)
    for cited in soup.select("[data-cite]"):
        if (key := str(cited["data-cite"])) not in keys:
            yield Finding(_line_of(page, key), f"data-cite={key!r} is not in docs/bibliography.md")
    for cited in soup.select("[data-cite]:not(code)"):
        line = _line_of(page, str(cited["data-cite"]))
        yield Finding(line, 'data-cite stands on one number: `28.4`{data-cite="key"}')
    for tag in soup.select(SMUGGLERS):
        yield Finding(
            _line_of(page, f"<{tag.name}"), f"<{tag.name}> hides what it shows from the tests"
        )
    for tag in soup.select(".arithmatex, [data-exprs]"):
        if not tag.select(".katex"):
            yield Finding(_line_of(page, "arithmatex"), "HTML that poses as a formula")
    for code in soup.select("code:not(pre code)"):
        for name in code.attrs.keys() - CODE_ATTRS:
            yield Finding(_line_of(page, name), f"unknown attribute {name!r} on a piece of code")


def _check_prose(page: Page, soup: Tag) -> Iterator[Finding]:
    texts = [str(tag[name]) for name in ("alt", "title") for tag in soup.select(f"[{name}]")]
    for gone in soup.select("pre, svg, .arithmatex, [data-expr], [data-cite], script, style"):
        gone.replace_with(" ")
    for block in soup.select(BLOCKS):
        block.append("\n")
    texts.append(re.sub("[\N{ZERO WIDTH SPACE}\N{SOFT HYPHEN}]", "", soup.get_text()))
    for text in texts:
        for match in DECIMALS.finditer(NO_NUMBER.sub(" ", text)):
            yield Finding(
                _line_of_decimal(page, match[0]),
                f'{match[0]} has no source: write `{match[0]}`{{data-expr="…"}}, '
                "or cite it with data-cite",
            )
    for code in soup.find_all("code"):
        code.replace_with(" ")
    prose = soup.get_text()
    for match in re.finditer(r"(?:^|\s)(`{3,}[^\n]*|~{3,}\w[^\n]*)", prose):
        yield Finding(_line_of(page, match[1]), f"a fence that is shown as text: {match[1]!r}")
    for match in re.finditer(
        r"\{:?[^{}]*(?:=[\"'\u201c\u2018]|data-expr|data-cite)[^{}]*\}", prose
    ):
        line = _line_of(page, match[0].split("\n")[0])
        yield Finding(line, f"attributes that are shown as text: {match[0]!r}")


def bibliography(root: Path) -> set[str]:
    """The keys of the bibliography: the ids of its entries."""
    path = root / "docs" / "bibliography.md"
    return set(re.findall(r"\{\s*#([\w-]+)", path.read_text("utf-8"))) if path.exists() else set()


def _line_of(page: Page, literal: str) -> int:
    """The first line outside fences that holds `literal`, else the first line that does, else 1."""
    for text in (_outside_fences(page), page.text):
        if literal and (at := text.find(literal)) >= 0:
            return page.line_at(at)
    return 1


def _line_of_decimal(page: Page, decimal: str) -> int:
    """The line of a number that no number with an expression and no link's address holds."""
    spans = [(number.start, number.end) for number in page.numbers]
    text = blank(_outside_fences(page), spans)
    text = re.sub(r"\]\([^)\n]*\)", lambda link: " " * len(link[0]), text)
    at = next((m.start() for m in DECIMALS.finditer(text) if m[0] == decimal), None)
    return _line_of(page, decimal) if at is None else page.line_at(at)


def _outside_fences(page: Page) -> str:
    return blank(page.text, [(fence.start, fence.end) for fence in page.fences])
