"""What the run of each page left in the ledger: every test that asks what a page gave reads it."""

import fcntl
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

from snippets import ledger

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"]


def entry(page: Path) -> dict[str, Any]:
    """What is recorded of a page that passed. Pages are run first where there is no record."""
    _run_pages()
    why, found = ledger.why_stale(ROOT, page), ledger.read(ROOT, page)
    assert why is None and found is not None, f"{page.relative_to(ROOT)}: {why}"
    return found


@functools.cache
def _run_pages() -> None:
    (ROOT / ".book").mkdir(exist_ok=True)
    with (ROOT / ".book/lock").open("w") as lock:  # two workers may want it
        fcntl.flock(lock, fcntl.LOCK_EX)
        stale = [str(page) for page in PAGES if ledger.why_stale(ROOT, page)]
        if stale:
            subprocess.run([sys.executable, "-m", "pytest", "-q", *stale], cwd=ROOT, check=False)
