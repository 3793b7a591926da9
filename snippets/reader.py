"""What the site adds to a page for its reader: buttons that copy, and the mark under the title.

Both are made from the ledger, and from nothing that anybody typed: a page that is not what was run
has no mark of a verified page, and offers none of the files that the tests ran.
"""

import datetime
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ledger, slices
from .markdown_ext import code_text
from .page import INTERACTIVE, OUTPUT, RUN
from .render import squeeze

VERIFIED, NEARLY, PARTLY = "verified", "nearly", "partly"
CHANGED, FAILED, NEVER = "changed", "failed", "never"
GOOD = (VERIFIED, NEARLY, PARTLY)  # the page shows what was run
CORNER = 58  # characters of a first line that leave room for the buttons
SIGNS = {VERIFIED: "✓", NEARLY: "≈", PARTLY: "◐", CHANGED: "△", FAILED: "✗", NEVER: "○"}
BLOCK = re.compile(
    r'<div class="language-(?P<lang>[\w+#.-]+) highlight"(?P<attrs>[^>]*)>'
    r'(?P<body>(?:<span class="filename">.*?</span>)?(?P<pre><pre\b.*?</pre>))\s*</div>'
    r"(?P<gap>\s*)",
    re.S,
)


@dataclass(frozen=True)
class State:
    """Whether the tests speak for a page as it is now, and in which words."""

    word: str
    sentence: str
    entry: dict[str, Any]


def state(root: Path, page: Path) -> State:
    entry = ledger.read(root, page) or {}
    why = ledger.why_stale(root, page)
    said = "" if why else f"{_counts([entry])}, {_with([entry])}"
    if not why and entry["absent"]:
        needs = f"the rest needs {entry['absent']}, which is not installed"
        return State(PARTLY, f"Verified in part, {needs}: {said}.", entry)
    if not why and entry["near"]:
        lines = ", ".join(map(str, entry["near"]))
        many = "s" * (len(entry["near"]) > 1)
        off = f"off by one in line{many} {lines} of the page's source"
        return State(NEARLY, f"Verified to the last digit, {off}: {said}.", entry)
    if not why:
        return State(VERIFIED, f"Verified: {said}.", entry)
    if why.startswith(ledger.FAILS):
        return State(FAILED, f"Not verified: this page {why}.", entry)
    if entry:
        return State(CHANGED, f"Changed since {_day(entry['date'])}: {why}.", entry)
    return State(NEVER, f"Never verified: this page {why}.", entry)


def whole(states: Iterable[State]) -> State:
    """The state of the book, which is that of its worst page."""
    states = list(states)
    good = [one for one in states if one.word in (VERIFIED, NEARLY)]
    if len(good) == len(states):
        entries = [one.entry for one in good]
        near = any(one.word == NEARLY for one in good)
        how = "Verified to the last digit" if near else "Verified"
        said = f"{how}, all {len(good)} pages: {_counts(entries)}, {_with(entries)}."
        return State(NEARLY if near else VERIFIED, said, {})
    word = NEVER if all(one.word == NEVER for one in states) else CHANGED
    return State(word, f"{len(good)} of {len(states)} pages are verified as they are now.", {})


def _counts(entries: list[dict[str, Any]]) -> str:
    totals = {
        "snippet": sum(entry["snippets"] - entry["absent_snippets"] for entry in entries),
        "number": sum(len(entry["numbers"]) - entry["absent_numbers"] for entry in entries),
        "figure": sum(len(entry["figures"]) for entry in entries),
    }
    said = [f"{n} {what}{'s' * (n != 1)}" for what, n in totals.items() if n]
    *most, last = said or ["no code and no computed number"]
    return f"{', '.join(most)} and {last}" if most else last


def _with(entries: list[dict[str, Any]]) -> str:
    """Versions and date; where pages differ, the older date."""

    def of(name: str) -> str:
        return ", ".join(sorted({entry[name] for entry in entries}))

    day = _day(min(entry["date"] for entry in entries))
    return f"torch {of('torch')}, Python {of('python')}, {of('arithmetic')}, {day}"


def _day(date: str) -> str:
    day = datetime.date.fromisoformat(date)
    return f"{day.day} {day:%B %Y}"


def mark(shown: State, how: str, links: str = "", table: str = "") -> str:
    """The lines under a title; `how` is where the reader learns what they mean."""
    first, colon, rest = html.escape(shown.sentence).partition(":")
    return (
        f'<div class="page-state" data-state="{shown.word}" data-search-exclude>'
        f'<p class="mark"><span class="sign" aria-hidden="true">{SIGNS[shown.word]}</span> '
        f'<a href="{html.escape(how)}">{first}</a>{colon}{rest}</p>{links}{table}</div>'
    )


def take(links: Iterable[tuple[str, str, str]]) -> str:
    """What a reader can take away: label, address, kind."""
    made = [
        f'<a href="{html.escape(url)}" data-take="{kind}"{" download" * (kind == "notebook")}>'
        f"{label}</a>"
        for label, url, kind in links
    ]
    return f'<p class="take">To take away: {" · ".join(made)}</p>' if made else ""


def table(rows: Iterable[tuple[str, str, State]]) -> str:
    """Page by page, for the index: title, address, state."""
    body = "".join(
        f'<tr data-state="{one.word}"><td><a href="{url}">{html.escape(title)}</a></td>'
        f"<td>{html.escape(one.sentence)}</td></tr>"
        for title, url, one in rows
    )
    return (
        "<details><summary>Page by page</summary><table><thead><tr><th>Page</th><th>State</th>"
        f"</tr></thead><tbody>{body}</tbody></table></details>"
    )


def under_title(content: str, addition: str) -> str:
    head, found, tail = content.partition("</h1>")
    return f"{head}{found}\n{addition}\n{tail}" if found else addition + content


def add_buttons(content: str, shown: State, home: str) -> str:
    """Each block of code with its buttons; the runnable ones only on a page that is verified."""
    ready = list(shown.entry.get("runnable", [])) if shown.word in GOOD else []
    count = 0

    def tools(match: re.Match[str]) -> str:
        nonlocal count
        lang = match["lang"]
        if lang == OUTPUT:
            return match[0]
        count += 1
        name = f"__code_{count}"
        text = squeeze(code_text(match["pre"]))
        buttons = (
            f'<button type="button" class="code-copy" {_copies(lang, text, name)}>Copy</button>'
        )
        if lang in (RUN, INTERACTIVE):
            found = next((item for item in ready if item["block"] == text), None)
            if found:
                ready.remove(found)
                buttons += _run_button(found, home)
        row = len(text.partition("\n")[0]) > CORNER
        shows = match.string.startswith(f'<div class="language-{OUTPUT} ', match.end("gap"))
        names = "highlight tooled" + " rowed" * row + " shows" * shows
        return (
            f'<div class="language-{lang} {names}" id="{name}"{match["attrs"]}>{match["body"]}'
            f'<div class="code-tools">{buttons}</div></div>{match["gap"]}'
        )

    return BLOCK.sub(tools, content)


def _copies(lang: str, text: str, name: str) -> str:
    """What Material's script copies: the block, or of a console the commands alone."""
    if lang != "console":
        return f'data-clipboard-target="#{name} pre"'
    commands = "\n".join(line[2:] for line in text.split("\n") if line.startswith("$ "))
    return f'data-clipboard-text="{_attribute(commands)}"'


def _run_button(found: dict[str, Any], home: str) -> str:
    label = f"Copy runnable ({found['needs']})" if found["needs"] else "Copy runnable"
    title = {
        slices.ALONE: "This block as a file of its own",
        slices.SLICE: "With the code above that it needs, as a file of its own",
        slices.PAGE: "With all the code above, as a file of its own",
        slices.NOT_RUN: "With all the code above, as a file that no test has run",
    }[found["kind"]]
    return (
        f'<button type="button" class="code-run" title="{title}" data-kind="{found["kind"]}" '
        f'data-clipboard-text="{_attribute(slices.pasted(found, home))}">'
        f"{html.escape(label)}</button>"
    )


def _attribute(text: str) -> str:
    return html.escape(text, quote=True).replace("\n", "&#10;")
