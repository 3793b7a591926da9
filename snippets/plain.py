r"""A page as plain Markdown, which any reader of Markdown shows: the book's own forms spelled out.

Fences come from the parsed page. What stands between them is rewritten: formulas without the
book's macros, numbers without their expressions, boxes as quotes, links with the site's address.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .exercises import SOLUTION
from .katex import MACROS
from .markdown_ext import EQREF, LABEL, strip_macros, svg_words
from .page import CODE_SPAN, COMMENT, FIGURE, OUTPUT, RUN, Fence, Page, listing

FENCE_MARK = re.compile(r"(?P<pad>.*)\0(?P<index>\d+)\0")  # where a fence stood
DISPLAY, INLINE = r"\$\$.+?\$\$", r"\$(?!\s)(?:\\.|[^\\$\n]|\n(?![ \t]*\n))+?(?<!\s)\$"
VERBATIM = re.compile(
    rf"{CODE_SPAN.pattern}|(?P<display>(?<!\\){DISPLAY})|(?P<inline>(?<!\\){INLINE})",
    re.S,
)
MACRO = re.compile(rf"(?:{'|'.join(map(re.escape, MACROS))})(?![A-Za-z])")
NUMBER_GROUP = re.compile(r"((?:^|(?<=[({=]))\s*)\{(\d[\d. +-]*)\}")  # braces that do nothing
PAIR = r'(?:[.#][\w-]+|[\w-]+="[^"]*")'
ATTR_LIST = re.compile(rf"[ ]*\{{:?[ ]*{PAIR}(?:[ ]+{PAIR})*[ ]*\}}")
LONE_ATTR_LIST = re.compile(rf"^{ATTR_LIST.pattern}[ ]*\n?", re.M)
LINK = re.compile(r"(?<=\])\((?!\w+:|//|figures/)(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?")
BOX = re.compile(r'[ ]*(?:!!!|\?{3}\+?|={3}[!+]?)[ ]+(?P<type>\w*)[^"]*(?:"(?P<title>.*)")?[ ]*')


@dataclass(frozen=True)
class Book:
    """Where the sources are, and what the configuration says of the site."""

    root: Path
    name: str
    url: str  # with a slash at its end
    licence: str
    repository: str = ""  # of the public repository; empty where there is none

    def source(self, page: Path) -> str:
        """The page's path under docs/, as MkDocs names it."""
        return page.resolve().relative_to(self.root.resolve() / "docs").as_posix()

    def address(self, source: str) -> str:
        """The address of the page that is made from `source`."""
        return self.url + folder(source)


def folder(source: str) -> str:
    """The folder of a page in the site, with a slash at its end; nothing for the first page."""
    path = PurePosixPath(source).with_suffix("")
    path = path.parent if path.name == "index" else path
    return "" if path == PurePosixPath() else f"{path}/"


@dataclass(eq=False)
class Box:
    """An admonition, a folded block or a tab around a line."""

    indent: int
    title: str
    is_solution: bool


@dataclass(frozen=True)
class Line:
    """A line of prose without its boxes' indentation, or the place of a fence."""

    boxes: tuple[Box, ...]
    text: str
    fence: Fence | None = None
    pad: str = ""  # what stands before a fence in a list or in a quote


def markdown(page: Page, book: Book) -> str:
    """The whole page: code, outputs and listings as blocks, figures in words, boxes as quotes."""
    out = Quoted()
    for line in lines(page, book):
        text = figures_in_words(line.text, page)
        if line.fence:
            text = indent(block(line.fence, book), line.pad)
        out.add(line.boxes, text)
    source = f"[{book.name}]({book.address(book.source(page.path))}). {book.licence}"
    return f"{out.take()}\n\n---\n\nFrom {source}\n"


class Quoted:
    """Text of which each box is a quote, with a bare line between two that touch."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.boxes: tuple[Box, ...] = ()
        self.gap = False

    def add(self, boxes: tuple[Box, ...], text: str) -> None:
        if not text.strip():
            self.gap = True
            return
        same = [a for a, b in zip(self.boxes, boxes, strict=False) if a is b]
        entered = boxes[len(same) :]
        if self.parts and (self.gap or self.boxes != boxes):
            self.parts.append(("> " * len(same)).rstrip())
        for depth, box in enumerate(entered, start=len(same) + 1):
            if box.title:
                self.parts += [f"{'> ' * depth}**{box.title}**", ("> " * depth).rstrip()]
        self.parts += [("> " * len(boxes) + line).rstrip() for line in text.split("\n")]
        self.boxes, self.gap = boxes, False

    def take(self) -> str:
        """What there is so far; what follows in the same box is not titled again."""
        text, self.parts, self.gap = "\n".join(self.parts), [], False
        return text


def lines(page: Page, book: Book) -> Iterator[Line]:
    """The page line by line, its prose made plain; a fence counts as a line."""
    boxes: list[Box] = []
    for text in _plain_prose(page, book).split("\n"):
        if not text.strip():
            yield Line(tuple(boxes), "")
            continue
        indented = len(text) - len(text.lstrip(" "))
        while boxes and indented < boxes[-1].indent:
            boxes.pop()
        within = boxes[-1].indent if boxes else 0
        if opening := BOX.fullmatch(text):
            title = opening["type"].title() if opening["title"] is None else opening["title"]
            boxes.append(Box(indented + 4, title, bool(SOLUTION.fullmatch(text))))
        elif mark := FENCE_MARK.fullmatch(text):
            fence = page.fences[int(mark["index"])]
            yield Line(tuple(boxes), "", fence, mark["pad"][within:])
        else:
            yield Line(tuple(boxes), text[within:])


def _plain_prose(page: Page, book: Book) -> str:
    """The page's text with a mark for each fence, and its inline forms spelled out."""
    text, at = "", 0
    for i, fence in enumerate(page.fences):
        text += f"{page.text[at : fence.start]}\0{i}\0"
        at = fence.end
    text += page.text[at:]
    text = re.sub(rf"(?m)^[ ]*{COMMENT.pattern}[ ]*\n|{COMMENT.pattern}", "", text, flags=re.S)
    tags = _tags([match[0] for match in VERBATIM.finditer(text) if not match["text"]])
    out, at = "", 0
    for match in VERBATIM.finditer(text):
        out += _words(text[at : match.start()], page, book)
        at = match.end()
        if match["text"]:
            attrs = ATTR_LIST.match(text, at)
            sourced = attrs and ("data-expr" in attrs[0] or "data-cite" in attrs[0])
            out += match["text"] if sourced else match[0]
            at = attrs.end() if attrs else at
        else:
            out += _formula(match[0], tags, in_box=text[: match.start()].endswith((" ", ">")))
    return out + _words(text[at:], page, book)


def _words(text: str, page: Page, book: Book) -> str:
    """Prose between code and formulas: no attribute lists, links with the site's address."""
    source = book.source(page.path)

    def absolute(link: re.Match[str]) -> str:
        parts = [*PurePosixPath(source).parent.parts]
        for part in PurePosixPath(link["path"]).parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        target = "/".join(parts) if link["path"] else source
        made = target.endswith((".md", ".ipynb"))
        return f"({book.address(target) if made else book.url + target}{link['anchor'] or ''}"

    text = ATTR_LIST.sub("", LONE_ATTR_LIST.sub("", text))
    return LINK.sub(absolute, text)


def _tags(formulas: list[str]) -> dict[str, str]:
    """The numbers of the formulas that the page refers to, as on the site: in their order."""
    wanted = {match["name"] for tex in formulas for match in EQREF.finditer(tex)}
    labels = [m["name"] for tex in formulas for m in LABEL.finditer(tex) if m["name"] in wanted]
    return {name: str(i) for i, name in enumerate(labels, start=1)}


def _formula(formula: str, tags: dict[str, str], *, in_box: bool) -> str:
    """TeX that needs nothing of this book: MathJax, KaTeX and GitHub's form of it read it."""
    marks = "$$" if formula.startswith("$$") else "$"
    tex = formula.removeprefix(marks).removesuffix(marks)
    if reference := EQREF.fullmatch(tex.strip()):
        return f"({tags[reference['name']]})"
    tex, _, _ = strip_macros(tex)
    tex = NUMBER_GROUP.sub(r"\1\2", tex)
    tex = MACRO.sub(lambda macro: MACROS[macro[0]], tex)
    # GitHub's Markdown refuses \operatorname
    tex = re.sub(r"\\operatorname\{([^{}]*)\}", r"\\mathop{\\mathrm{\1}}", tex)
    if label := LABEL.search(tex):
        tag = rf" \tag{{{tags[label['name']]}}}" if label["name"] in tags else ""
        ending = "\n" if tex.endswith("\n") else ""
        tex = LABEL.sub("", tex).rstrip() + tag + ending
    if marks == "$" or in_box:  # a quote would put its marks into the formula's lines
        tex = " ".join(tex.split())
    return f"{marks}{tex}{marks}"


def block(fence: Fence, book: Book) -> str:
    """A fence as any Markdown has it, with the reason above it where it was not run."""
    source = fence.source
    if "--8<--" in source and fence.lang == RUN:
        source = listing(source, book.root)
    text = fenced({OUTPUT: "text"}.get(fence.lang, fence.lang), source)
    notest = fence.attrs.get("data-notest")
    return f"*Not run: {notest}.*\n\n{text}" if notest else text


def fenced(lang: str, source: str) -> str:
    """A block of code between marks that it cannot hold itself."""
    marks = max(re.findall(r"`{3,}", source), key=len, default="``") + "`"
    return f"{marks}{lang}\n{source.rstrip()}\n{marks}"


def indent(text: str, pad: str) -> str:
    return "\n".join((pad + line).rstrip() for line in text.split("\n"))


def figures_in_words(text: str, page: Page) -> str:
    """Pictures that the page draws, as what they show and the data in them."""

    def words(image: re.Match[str]) -> str:
        path = page.path.parent / image["src"]
        data = svg_words(path.read_text("utf-8")) if path.exists() else ""
        return f"*Figure: {image['alt'].rstrip('.')}.* {data}".rstrip()

    return FIGURE.sub(words, text)
