"""Rewrite a page's outputs and numbers from what its code gave, and nothing else.

Edits are collected while the page is judged and written once, at the end of the run; applying
them twice changes nothing more.
"""

import re
from pathlib import Path

from .compare import show, tidy
from .page import Number, Page, Snippet
from .run import Shown, prompt_wants

Edit = tuple[int, int, str]


def edits_for(page: Page, part: Snippet | Number, shown: Shown) -> list[Edit]:
    """The changes that make `part` say what `shown` says."""
    if isinstance(part, Number):
        new = show(part.text, shown.value)
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
    if part.output and "```" not in got:
        return [(*part.output.body, lines)]
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", got)), default=0))
    fence = f"\n{prefix}{marks}output\n{lines}{prefix}{marks}"
    return [(part.fence.end, part.end, fence)]


def _prompt_edits(page: Page, part: Snippet, shown: Shown) -> list[Edit]:
    edits = []
    start = part.fence.body[0]
    lines = page.text[start : part.fence.body[1]].splitlines(keepends=True)
    offsets = [start]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    for example, got in shown.prompts:
        if tidy(got) == tidy(prompt_wants(example)):
            continue
        first = example.lineno + example.source.count("\n")
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
    """Write the page with its edits; line ends stay as they were. False where nothing changed."""
    new = apply(text, edits)
    if new == text:
        return False
    crlf = b"\r\n" in path.read_bytes()
    path.write_text(new, "utf-8", newline="\r\n" if crlf else "\n")
    return True
