"""What a test run saw of each page, so that the site never shows what was not run.

One JSON file a page under `.book/`, not committed: hashes of the page, of the package's sources and
of the pins, the versions, and every block of code and number in the order in which the reader sees
them. An entry speaks for its page while the hashes are as they were; the build stops on a stale or
missing one, or on one that says where the page failed.
"""

import datetime
import functools
import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COMMAND = "pytest docs"
FAILS = "fails"
CHANGED = {
    "text": "the page has",
    "package": "attention/ has",
    "measured": "what a benchmark wrote has",
    "pins": "constraints.txt has",
    "checker": "what checks it has",
    "python": "Python has",
    "torch": "torch has",
}


def digest(*chunks: bytes | str) -> str:
    whole = hashlib.sha256()
    for chunk in chunks:
        data = chunk.encode() if isinstance(chunk, str) else chunk
        whole.update(f"{len(data)}:".encode() + data)
    return whole.hexdigest()[:16]


def digest_files(root: Path, *patterns: str) -> str:
    """One hash of all files that match, names included."""
    files = sorted({path for pattern in patterns for path in root.glob(pattern)})
    return digest(*(part for f in files for part in (str(f.relative_to(root)), f.read_bytes())))


def inputs(root: Path, page: Path) -> dict[str, str]:
    """Everything that a page's outputs depend on, or that decides whether they are right."""
    return {
        "text": digest(page.read_text("utf-8")),
        "package": digest_files(root, "attention/**/*.py"),
        "measured": digest_files(root, "benchmarks/*.json"),
        "pins": digest_files(root, "constraints.txt"),
        "checker": digest_files(
            root, "snippets/**/*.py", "snippets/**/*.jinja", "conftest.py", "mkdocs.yml"
        ),
        "python": platform.python_version(),
        "torch": torch_version(),
    }


def entry_path(root: Path, page: Path) -> Path:
    return (root / ".book" / page.resolve().relative_to(root)).with_suffix(".json")


def write(root: Path, page: Path, **seen: Any) -> None:
    """Enter what a run saw of a page that passed."""
    entry = {
        "page": page.resolve().relative_to(root).as_posix(),
        **inputs(root, page),
        "date": datetime.date.today().isoformat(),
        **seen,
    }
    path = entry_path(root, page)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")  # another process may be reading
    draft.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", "utf-8")
    draft.replace(path)


def fail(root: Path, page: Path, messages: list[str]) -> None:
    """Enter where a page failed, each message beginning with a file and a line."""
    write(root, page, failed=messages)


def read(root: Path, page: Path) -> dict[str, Any] | None:
    """The entry of a page, or None where there is none that can be read."""
    try:
        entry = json.loads(entry_path(root, page).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(entry, dict) and ("values" in entry or "failed" in entry)
    return entry if whole else None


def why_stale(root: Path, page: Path) -> str | None:
    """Why the ledger does not speak for this page as it is now; None where it does."""
    entry = read(root, page)
    if entry is None:
        return "was never run"
    for name, value in inputs(root, page).items():
        if entry.get(name) != value:
            return f"{CHANGED[name]} changed since it was run"
    if entry.get("failed"):
        first, *others = entry["failed"]
        place = " ".join(first.partition("\n")[0].split(":")[1:2])
        many = "s" * (len(others) > 1)
        more = f", and in {len(others)} more place{many}" if others else ""
        return f"{FAILS} at line {place}{more}"
    for src, sha in entry["figures"].items():
        figure = page.parent / src
        if not figure.exists() or digest(figure.read_text("utf-8")) != sha:
            return f"{src} is not what its snippet drew"
    return None


@functools.cache
def torch_version() -> str:
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return "none"
