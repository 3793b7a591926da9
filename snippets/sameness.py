"""Is what the pages show the same under every arithmetic? `pytest docs --arithmetic all`.

Each arithmetic needs processes of its own, since torch reads its settings once. There the pages are
run and what each part gave is written down, judged by nobody; then the records are compared.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .arithmetic import ARITHMETICS
from .compare import show, tidy
from .page import INTERACTIVE, Page
from .run import Run, Shown, output_line

FOLDER = "BOOK_RECORD"  # where a process that only records is told to write


def folder() -> Path | None:
    """Where this process writes what the pages gave, instead of judging it."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def main(args: Sequence[Any]) -> int:
    """Run pytest with these arguments under each arithmetic and print what differs; 1 if any."""
    records: dict[str, dict[str, str]] = {}
    for name in ARITHMETICS:
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pytest", *map(str, args), "--arithmetic", name]
            command += ["--quiet", "-p", "no:cacheprovider"]
            ran = subprocess.run(
                command, env={**os.environ, FOLDER: place}, capture_output=True, text=True
            )
            records[name] = _read(Path(place))
        if ran.returncode or not records[name]:
            print(ran.stdout[-3000:], ran.stderr[-3000:], f"{name}: the run failed", sep="\n")
            return 1
        print(f"{name}: {len(records[name])} outputs, numbers and figures", flush=True)
    differences = list(compare(records))
    print(*differences, f"{len(differences)} are not the same in all of them", sep="\n")
    return bool(differences)


def compare(records: dict[str, dict[str, str]]) -> Iterator[str]:
    """What was not the same: its place, and under it what each arithmetic gave."""
    places = dict.fromkeys(place for record in records.values() for place in record)
    for place in places:
        given: dict[str, list[str]] = {}
        for name, record in records.items():
            given.setdefault(record.get(place, "(nothing)"), []).append(name)
        if len(given) > 1:
            values = [f"    {', '.join(names)}: {text}" for text, names in _apart(given)]
            yield "\n".join([f"{place}:", *values])


def _apart(given: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Of long texts the first line that differs."""
    lines = [text.split("\n") for text in given]
    longest = max(map(len, lines))
    padded = [[*one, *[""] * (longest - len(one))] for one in lines]
    at = next(i for i in range(longest) if len({one[i] for one in padded}) > 1)
    return [
        (f"{one[at]:.300}" + f" (line {at + 1})" * (longest > 1), names)
        for one, names in zip(padded, given.values(), strict=True)
    ]


def write(place: Path, page: Page, run: Run) -> None:
    """Write down what each part of a page gave."""
    record: dict[str, str] = {}
    for number in page.numbers:
        shown = run.shown[number.start]
        where = f"{run.name}:{number.line}: {number.expr}"
        record[where] = shown.error or _number(number.text, shown)
    for snippet in page.snippets:
        shown, where = run.shown[snippet.start], f"{run.name}:{snippet.line}"
        if snippet.fence.lang == INTERACTIVE:
            _add_prompts(record, run.name, snippet.line, snippet.fence.source, shown.prompts)
        else:
            record[where] = shown.error or shown.skipped or tidy(shown.text)
        if snippet.figure:
            record[f"{where}: {snippet.figure}"] = run.figures.get(snippet.figure, "")
            record[f"{where}: data-given"] = run.given.get(snippet.figure, ["", ""])[1]
    _write(place, run.name, record)


def write_prompts(place: Path, name: str, line: int, source: str, prompts: list[Any]) -> None:
    """Write down what the examples of a docstring gave."""
    record: dict[str, str] = {}
    _add_prompts(record, name, line, source, prompts)
    _write(place, f"{name}:{line}", record)


def _add_prompts(
    record: dict[str, str], name: str, line: int, source: str, prompts: list[Any]
) -> None:
    for example, got in prompts:
        record[f"{name}:{line + output_line(example, source)}"] = tidy(got)


def _number(text: str, shown: Shown) -> str:
    try:
        return show(text, shown.value)
    except Exception as error:
        return f"{error}"


def _write(place: Path, name: str, record: dict[str, str]) -> None:
    path = place / (name.replace("/", "--").replace(":", "-") + ".json")
    by_line = sorted(record.items(), key=lambda item: int(item[0].split(":")[1]))
    path.write_text(json.dumps(dict(by_line)), "utf-8")


def _read(place: Path) -> dict[str, str]:
    files = sorted(place.glob("*.json"))
    return {k: v for path in files for k, v in json.loads(path.read_text("utf-8")).items()}
