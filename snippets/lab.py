"""Execute a lab once for each change of the notebook, of the package or of the pins.

The source under `docs/labs/` holds no outputs. What is shown is an executed copy under `.book/`,
whose name carries a hash of all that it depends on; a failing cell leaves no copy.
"""

import os
import platform
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from .ledger import digest, digest_files, torch_version
from .reader import VERIFIED, State


class LabError(RuntimeError):
    """A cell of a lab failed; the message names the lab and shows the cell."""


def copy_path(root: Path, notebook: Path) -> Path:
    """Where the executed copy of `notebook`, as all is now, belongs."""
    key = digest(
        notebook.read_bytes(),
        digest_files(root, "attention/**/*.py"),
        digest_files(root, "constraints.txt"),
    )
    return root / ".book" / "labs" / f"{notebook.stem}-{key}" / notebook.name


def executed(root: Path, notebook: Path) -> Path:
    """The executed copy of `notebook`, made now unless it is there already."""
    target = copy_path(root, notebook)
    if target.exists():
        return target
    book = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        book,
        timeout=600,
        resources={"metadata": {"path": str(root)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # not that its loopback is unencrypted
    )
    try:
        client.execute()
    except CellExecutionError as error:
        report = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without a terminal's colours
        raise LabError(f"{notebook.relative_to(root)}: a cell failed\n{report}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")  # another process may read the target now
    nbformat.write(book, draft)
    draft.replace(target)
    return target


def state(executed: Path) -> State:
    """The mark of a lab: it is shown as it was executed, or not at all."""
    cells = [c for c in nbformat.read(executed, as_version=4).cells if c.cell_type == "code"]
    versions = f"torch {torch_version()}, Python {platform.python_version()}"
    return State(VERIFIED, f"Executed for this site: {len(cells)} cells of code, {versions}.", {})
