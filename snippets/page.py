r"""Parse a page once: its snippets, what they must show, its numbers, and what is wrong.

Everything downstream (the tests, the updater, the gate, the site) reads a `Page`, so what is
tested is what is shown. Positions are offsets into `Page.text`; lines count from 1.

The rules, which CONTRIBUTING.md explains to authors:

- a fence is ` ```python `, ` ```pycon `, ` ```output `, or one of `SHOWN`; any other is a problem;
- an ` ```output ` fence stands directly under the Python fence whose output it is;
- `` `0.24`{data-expr="weights[1]"} `` and `\py{0.24}{weights[1]}` are numbers with a source;
- a Python fence may carry `data-raises="ValueError"`, `data-notest="why"`, or, for the reader who
  copies it, `data-needs="several processes"`, and no more; one with `data-requires="triton"` is
  run where that package can be imported;
- `::: attention.softmax` stands for what `reference` makes of that module's docstrings;
- a folded `Solution` ends in a check of the reader's answer (see `exercises`).
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown import Markdown
from markdown.extensions.attr_list import get_attrs_and_remainder
from markdown.preprocessors import Preprocessor
from pymdownx.snippets import SnippetExtension, SnippetMissingError

from . import exercises, reference
from .exercises import Exercise, compiles
from .explore import Explorable

RUN, INTERACTIVE, OUTPUT = "python", "pycon", "output"
SHOWN = {"text", "console", "markdown", "toml", "yaml", "json", "make", "bibtex"}  # never run
REASONS = {  # what a Python fence may say of itself, and with what words
    "data-notest": "a reason",
    "data-raises": "the error's type",
    "data-needs": "what it takes, such as several processes",
    "data-requires": "the packages that it imports beside torch",
    "data-check": "the names that the reader's answer defines",
}
HIGHLIGHTING = {"title", "hl_lines", "linenums"}

FENCE = re.compile(r"(?P<prefix>[ \t>]*)(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^\n]*)")
WORDS = re.compile(r'(?P<lang>[\w#+.-]*)(?P<options>(?:[ \t]+\w+(?:="[^"]*")?)*)[ \t]*')
BRACES = re.compile(r"(?P<lang>[\w#+.-]*)[ \t]*\{(?P<attrs>[^\n]*)\}[ \t]*")
CODE_SPAN = re.compile(  # never across a blank line
    r"(?<![`\\])(`+)(?!`)(?P<text>(?:(?!\n[ \t]*\n).)+?)(?<!`)\1(?!`)", re.S
)
NEWLINES = re.compile(r"[^\n]*\n|[^\n]+")
ATTRS = re.compile(r"\{:?[ ]*(?P<attrs>[^}\n]*)\}")
FIGURE = re.compile(
    r"!\[(?P<alt>[^\]\n]*)\]\((?P<src>figures/[^)\s]+)\)(?P<attrs>\{[^}\n]*\}?)?"  # closed or not
)
INCLUDE = re.compile(r"^[ \t]*--8<--", re.M)
COMMENT = re.compile(r"<!--.*?-->", re.S)
DIRECTIVE = re.compile(r"<!--+\s*;?\s*(?P<word>skip|clear-namespace|invisible-code)\b")
ITEM_FENCE = re.compile(r"^[ \t>]*(?:[-*+]|\d+[.)])[ \t]+(?:`{3,}|~{3,})[^`\n]*$", re.M)
AUTODOC = re.compile(r"^[ \t]*(?:#+[ \t]*)?:::", re.M)
BARE_PROMPT = re.compile(r"^[ \t]*(?:[-*+][ \t]+|\d+[.)][ \t]+)?>>>[ \t]", re.M)


@dataclass(frozen=True)
class Problem:
    """Something that no page may contain, and where."""

    start: int
    line: int
    message: str


@dataclass(frozen=True)
class Fence:
    """A fenced block: `source` without the container's indentation, `line` where it begins."""

    start: int
    end: int
    line: int
    prefix: str
    lang: str
    attrs: dict[str, str]
    source: str
    body: tuple[int, int]
    marks: str = "```"
    braces: bool = False


@dataclass(frozen=True)
class Snippet:
    """A Python fence, the output fence under it and the figure under that, where there are any."""

    fence: Fence
    output: Fence | None = None
    figure: str | None = None
    explorable: Explorable | None = None

    @property
    def start(self) -> int:
        return self.fence.start

    @property
    def end(self) -> int:
        return (self.output or self.fence).end

    @property
    def line(self) -> int:
        return self.fence.line

    @property
    def expected(self) -> str:
        return self.output.source if self.output else ""

    @property
    def notest(self) -> str | None:
        return self.fence.attrs.get("data-notest")

    @property
    def raises(self) -> str | None:
        return self.fence.attrs.get("data-raises")

    @property
    def requires(self) -> list[str]:
        return self.fence.attrs.get("data-requires", "").split()

    @property
    def check(self) -> str | None:
        return self.fence.attrs.get("data-check")

    @property
    def is_listing(self) -> bool:
        return bool(INCLUDE.search(self.fence.source))


@dataclass(frozen=True)
class Number:
    """A number in prose or in a formula, and the expression that gives it."""

    start: int
    end: int
    line: int
    text: str
    expr: str
    text_start: int


@dataclass
class Page:
    """A parsed Markdown page."""

    path: Path
    text: str
    snippets: list[Snippet] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    exercises: list[Exercise] = field(default_factory=list)
    fences: list[Fence] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    made: list[tuple[int, int]] = field(default_factory=list)  # from docstrings, nobody typed it

    def line_at(self, offset: int) -> int:
        return self.text.count("\n", 0, offset) + 1

    def problem(self, start: int, message: str) -> None:
        self.problems.append(Problem(start, self.line_at(start), message))

    @property
    def code(self) -> str:
        """The page as a Python file with its code on the page's own lines, for linters."""
        lines = [""] * (self.text.count("\n") + 1)
        for snippet in self.snippets:
            broken = "Error" in (snippet.raises or "") and not compiles(snippet.fence.source)
            if snippet.fence.lang == RUN and not snippet.is_listing and not broken:
                body = snippet.fence.source.split("\n")
                lines[snippet.line - 1 : snippet.line - 1 + len(body)] = body
        return "\n".join(lines).rstrip("\n") + "\n"


def parse(path: Path | str, text: str | None = None) -> Page:
    """Read the page at `path` (or `text` in its stead)."""
    path = Path(path)
    text, made = reference.expand(path.read_text("utf-8") if text is None else text)
    page = Page(path, text, made=made)
    page.fences = list(_fences(page))
    _check_fences(page)
    _join_snippets(page)
    prose = blank(page.text, [(f.start, f.end) for f in page.fences])
    for match in DIRECTIVE.finditer(prose):
        page.problem(
            match.start(),
            f"<!-- {match['word']} --> hides a decision from the reader; write "
            '``` { .python data-notest="the reason" } on the fence instead',
        )
    prose = blank(prose, [m.span() for m in COMMENT.finditer(prose)])
    for match in ITEM_FENCE.finditer(prose):
        page.problem(
            match.start(), "a fence on a list marker's line is not shown as code; indent it below"
        )
    for match in INCLUDE.finditer(prose):
        page.problem(match.start(), "only a Python fence may include a file with --8<--")
    for match in AUTODOC.finditer(prose):
        page.problem(match.start(), "::: stands before a module of the package, and nothing else")
    for match in BARE_PROMPT.finditer(prose):
        page.problem(match.start(), ">>> outside a fence is never run: put it in ```pycon")
    page.exercises, complaints = exercises.find(page.text, prose, page.snippets)
    for at, complaint in complaints:
        page.problem(at, complaint)
    _find_numbers(page, prose)
    return page


def _fences(page: Page) -> Iterator[Fence]:
    """Top-level fences by superfences' rules: the closing marks equal the opening ones."""
    lines = NEWLINES.findall(page.text)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    i = 0
    while i < len(lines):
        opening = FENCE.fullmatch(lines[i].rstrip("\n"))
        i += 1
        if not opening or (opening["marks"][0] == "`" and "`" in opening["info"]):
            continue  # no fence, or code in a line such as ``` x ```
        prefix, marks, first = opening["prefix"], opening["marks"], i
        body: list[str] = []
        closed = False
        while i < len(lines) and not closed:
            line = lines[i].rstrip("\n")
            if line.startswith(prefix):
                line = line[len(prefix) :]
            elif line.strip() in ("", prefix.strip()):
                line = ""
            else:
                break  # the container ends before the fence does
            closed = line.rstrip() == marks
            if not closed:
                body.append(line + "\n")
            i += 1
        at = starts[first - 1] + len(prefix)
        if not closed:
            page.problem(at, f"this fence is never closed: {marks}{opening['info']}")
            i = first
            continue
        lang, attrs, complaint = _info(opening["info"])
        if complaint:
            page.problem(at, complaint)
        yield Fence(
            start=at,
            end=starts[i] - lines[i - 1].endswith("\n"),
            line=first + 1,
            prefix=prefix,
            lang=lang,
            attrs=attrs,
            source="".join(body),
            body=(starts[first], starts[i - 1]),
            marks=marks,
            braces="{" in opening["info"],
        )


def _info(info: str) -> tuple[str, dict[str, str], str | None]:
    """Language, attributes and a complaint from what follows the opening marks."""
    attrs: dict[str, str] = {}
    if match := BRACES.fullmatch(info):
        pairs, rest = get_attrs_and_remainder(match["attrs"] + "}")
        classes = [v for k, v in pairs if k == "."]
        attrs = {k: v for k, v in pairs if k not in (".", "id")}
        lang = match["lang"] or (classes[0] if classes else "")
        if rest.strip("} ") or "{" in match["attrs"]:
            return lang, attrs, f"cannot read the attributes {{{match['attrs']}}}"
        for name in set(classes[match["lang"] == "" :]) - {"annotate"}:
            return lang, attrs, f"unknown class {name!r} on a {lang} fence"
    elif match := WORDS.fullmatch(info):
        lang = match["lang"]
        for option in re.findall(r'(\w+)(?:="([^"]*)")?', match["options"]):
            attrs[option[0]] = option[1]
        for name in attrs.keys() - HIGHLIGHTING:
            return lang, attrs, f"unknown option {name!r} after ```{lang}"
    else:
        return "", attrs, f"cannot read the fence's first line: {info!r}"
    return lang, attrs, None


def _check_fences(page: Page) -> None:
    for fence in page.fences:
        known = {RUN, INTERACTIVE, OUTPUT} | SHOWN
        if any(start < fence.start < end for start, end in page.made):
            known |= {reference.SIGNATURE}
        if fence.lang not in known:
            hint = "python" if fence.lang.lower() in {"py", "python3", "py3", "python"} else ""
            hint = hint or ("pycon" if fence.lang in {"doctest", "pyconsole"} else "")
            page.problem(
                fence.start,
                f"fence language {fence.lang!r} is neither run nor known to be only shown"
                + (
                    f": write {hint!r}"
                    if hint
                    else f" (run: {RUN}, {INTERACTIVE}; shown: {', '.join(sorted(SHOWN))})"
                ),
            )
        allowed = HIGHLIGHTING | (REASONS.keys() if fence.lang == RUN else set())
        for name in sorted(fence.attrs.keys() - allowed):
            page.problem(fence.start, f"unknown attribute {name!r} on a {fence.lang} fence")
        for name, wants in REASONS.items():
            if not fence.attrs.get(name, "-").strip():
                page.problem(fence.start, f'{name}="" needs {wants}')
        if INCLUDE.search(fence.source) and (fence.lang != RUN or fence.source.count("\n") != 1):
            page.problem(fence.start, "a listing is one --8<-- line, alone in a Python fence")
        elif INCLUDE.search(fence.source) and not fence.braces:
            page.problem(fence.start, "write ``` { .python }: ruff would reformat this listing")


def _join_snippets(page: Page) -> None:
    """Give each Python fence the output fence and the figure that follow it."""
    owned = set()
    images = list(FIGURE.finditer(blank(page.text, [(f.start, f.end) for f in page.fences])))

    def follows(end: int, start: int) -> bool:
        return end <= start and not page.text[end:start].strip("> \t\n")

    for fence, following in itertools.zip_longest(page.fences, page.fences[1:]):
        if fence.lang == INTERACTIVE:
            page.snippets.append(Snippet(fence))
        if fence.lang != RUN:
            continue
        output = None
        if following and following.lang == OUTPUT and follows(fence.end, following.start):
            output = following
            owned.add(output.start)
        image = next((m for m in images if follows((output or fence).end, m.start())), None)
        if image:
            owned.add(image.start())
        explorable = _explorable(page, image) if image else None
        snippet = Snippet(fence, output, image and image["src"], explorable)
        page.snippets.append(snippet)
        if snippet.notest and (output or image):
            page.problem(fence.start, "a snippet that is not run has no output and no figure")
        if snippet.is_listing and (output or image or snippet.raises):
            page.problem(
                fence.start, "a listing shows nothing: give the output a snippet of its own"
            )
        if snippet.raises and not output:
            page.problem(fence.start, "a snippet that raises shows its error in an ```output fence")
    for fence, following in itertools.pairwise(page.fences):
        shown = fence.lang in (RUN, OUTPUT) and following.lang in ("text", "console")
        if shown and follows(fence.end, following.start):
            page.problem(following.start, "what a snippet shows belongs in an ```output fence")
    for fence in page.fences:
        if fence.lang == OUTPUT and fence.start not in owned:
            page.problem(fence.start, "this output fence stands under no ```python fence")
    stem = page.path.stem
    for image in images:
        src = image["src"]
        if image.start() not in owned:
            page.problem(image.start("src"), f"no snippet directly above draws {src}")
        if not re.fullmatch(rf"figures/{re.escape(stem)}(?:-[\w-]+)?\.svg", src):
            page.problem(image.start("src"), f"a figure of this page is named figures/{stem}-….svg")


def _explorable(page: Page, image: re.Match[str]) -> Explorable | None:
    """What plays with a figure, as the braces behind it say."""
    if not image["attrs"]:
        return None
    pairs, rest = get_attrs_and_remainder(image["attrs"][1:])
    attrs = dict(pairs)
    if rest.strip("} ") or attrs.keys() != {"data-explore", "data-given"}:
        page.problem(image.start("attrs"), "a figure may carry data-explore and data-given alone")
        return None
    return Explorable(
        attrs["data-explore"], attrs["data-given"], page.line_at(image.start("attrs"))
    )


def _find_numbers(page: Page, prose: str) -> None:
    r"""Numbers with an expression: code spans with data-expr, and \py{…}{…} in formulas."""
    spans = []
    for span in CODE_SPAN.finditer(prose):
        spans.append(span.span())
        attrs = ATTRS.match(prose, span.end())
        if not attrs or "data-expr" not in attrs["attrs"]:
            continue
        pairs = dict(get_attrs_and_remainder(attrs["attrs"] + "}")[0])
        if not (pairs.get("data-expr") or "").strip() or attrs["attrs"].count('"') % 2:
            page.problem(span.start(), f"cannot read data-expr in {attrs[0]}")
            continue
        spans.append(attrs.span())
        text = span["text"]
        expr = pairs["data-expr"].replace("\\|", "|")
        page.numbers.append(
            Number(
                span.start(),
                attrs.end(),
                page.line_at(span.start()),
                text,
                expr,
                span.start("text"),
            )
        )
    prose = blank(prose, spans)
    for start in (m.start() for m in re.finditer(r"\\py(?![A-Za-z])", prose)):
        try:
            shown, expr, end = py_macro(prose, start)
        except ValueError as error:
            page.problem(start, str(error))
            continue
        at = prose.index("{", start) + 1
        page.numbers.append(Number(start, end, page.line_at(start), shown, expr, at))
    page.numbers.sort(key=lambda number: number.start)
    for number in page.numbers:
        left, right = page.text[: number.start], page.text[number.end :]
        if re.search(r"\d\.?$", left[-2:]) or re.match(r"\.?\d", right):
            page.problem(number.start, "digits stand right beside this number")
    for before, after in itertools.pairwise(list(page.numbers)):
        if after.start < before.end:
            page.problem(after.start, "a number inside another: is a brace or a quote left open?")
            page.numbers.remove(after)


def py_macro(text: str, start: int) -> tuple[str, str, int]:
    r"""What `\py{shown}{expression}` at `start` shows, its expression, and where it ends."""
    parts, at = [], start + len("\\py")
    for _ in range(2):
        if text[at : at + 1] != "{":
            raise ValueError(r"\py needs two groups: \py{number}{expression}")
        depth, i = 1, at + 1
        while depth and i < len(text):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if depth or re.search(r"\n[ \t]*\n", text[at:i]):
            raise ValueError(r"a brace of \py{number}{expression} is never closed")
        parts.append(text[at + 1 : i - 1])
        at = i
    return parts[0], " ".join(parts[1].split()), at


def blank(text: str, spans: list[tuple[int, int]]) -> str:
    """`text` with the spans overwritten by spaces, so that offsets and lines stay."""
    for start, end in spans:
        text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
    return text


@functools.cache
def _includer(base: str) -> Preprocessor:
    extension = SnippetExtension(base_path=[base], check_paths=True, dedent_subsections=True)
    return Markdown(extensions=[extension]).preprocessors["snippet"]


def listing(source: str, base: Path) -> str:
    """The text that a `--8<--` line includes, by the extension that shows it on the site."""
    try:
        return "\n".join(_includer(str(base)).run(source.rstrip("\n").split("\n"))) + "\n"
    except SnippetMissingError as error:
        raise LookupError(f"{error} (included by {source.strip()})") from None
