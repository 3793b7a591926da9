"""Rewrite a page's outputs and numbers from what its code gave, and nothing else.

Edits are collected while the page is judged and written once, at the end of the run; applying
them twice changes nothing more.
"""

import re
from pathlib import Path

from .compare import show, tidy
from .page import NEWLINES, Number, Page, Snippet
from .run import Shown, output_line, prompt_wants

Edit = tuple[int, int, str]


def edits_for(page: Page, part: Snippet | Number, shown: Shown) -> list[Edit]:
    """The changes that make `part` say what `shown` says."""
    if isinstance(part, Number):
        new = show(part.text, shown.value)
        if set("`\n|") & set(new):
            raise ValueError(f"{new!r} cannot be written in a line of Markdown")
        return (
            [(part.text_start, part.text_start + len(part.text), new)] if new != part.text else []
        )
    if shown.prompts:
        return _prompt_edits(page, part, shown)
    got, prefix = tidy(shown.text), part.fence.prefix
    if got == tidy(part.expected) or part.is_listing or part.notest:
        return []
    if not got:
        return [(part.fence.end, part.end, "")]
    lines = "".join(_indent(line, prefix) for line in got.split("\n"))
    marks = _marks(part.output.marks if part.output else "```", got)
    if part.output and part.output.marks == marks:
        return [(*part.output.body, lines)]
    if part.output:
        info = page.text[part.output.start : part.output.body[0]].lstrip(part.output.marks[0])
        return [(part.output.start, part.end, f"{marks}{info}{lines}{prefix}{marks}")]
    return [(part.fence.end, part.end, f"\n{prefix}{marks}output\n{lines}{prefix}{marks}")]


def _marks(marks: str, text: str) -> str:
    """Marks of a fence that can hold `text`: longer than any run of them that it begins with."""
    runs = re.findall(rf"^[ ]*({marks[0]}{{3,}})", text, re.M)
    longest = max((len(run) for run in runs), default=0)
    return marks if longest < len(marks) else marks[0] * (longest + 1)


def _prompt_edits(page: Page, part: Snippet, shown: Shown) -> list[Edit]:
    edits = []
    start = part.fence.body[0]
    offsets = [start]
    for line in NEWLINES.findall(page.text[start : part.fence.body[1]]):
        offsets.append(offsets[-1] + len(line))
    for example, got in shown.prompts:
        if tidy(got) == tidy(prompt_wants(example)):
            continue
        if re.search(r"^(?:>>> |\.\.\.(?: |$)|`{3}|~{3})", got, re.M):
            raise ValueError(f"a >>> block cannot show the output of {example.source.strip()!r}")
        first = output_line(example, part.fence.source)
        last = first + example.want.count("\n")
        prefix = part.fence.prefix + " " * example.indent
        written = re.sub(r"^$", "<BLANKLINE>", tidy(got), flags=re.M) if tidy(got) else ""
        new = "".join(_indent(line, prefix) for line in written.split("\n")) if written else ""
        edits.append((offsets[first], offsets[last], new))
    return edits


def _indent(line: str, prefix: str) -> str:
    return (prefix + line).rstrip() + "\n"


def apply(text: str, edits: list[Edit]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def write(path: Path, text: str, edits: list[Edit]) -> bool:
    """Write the page with its edits; line ends stay as they were. False where nothing changed.

    Raises ValueError if the page is no longer `text`: somebody has saved it meanwhile.
    """
    new = apply(text, edits)
    if new == text:
        return False
    if path.read_text("utf-8") != text:
        raise ValueError(f"{path.name} was changed while its code ran, so it is left alone")
    raw = path.read_bytes()
    crlf = raw.count(b"\r\n")
    if crlf not in (0, raw.count(b"\n")):
        raise ValueError(f"{path.name} has line ends of two kinds, so it is left alone")
    path.write_text(new, "utf-8", newline="\r\n" if crlf else "\n")
    return True
