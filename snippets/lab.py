"""Execute a lab once for each change of the notebook, of the package or of the pins.

The source under `docs/labs/` holds no outputs. What is shown is an executed copy under `.book/`,
whose name carries a hash of all that it depends on; a failing cell leaves no copy.

The converter of notebooks brings half a megabyte of style and script to each. Here its cells get
the markup of the pages instead, and so their look: light and dark, on phones and on paper.
"""

import base64
import html
import os
import platform
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from bs4.element import Tag
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from .arithmetic import describe
from .ledger import digest, digest_files, torch_version
from .markdown_ext import inline_svg, mark_code
from .reader import VERIFIED, State

SVG = "data:image/svg+xml;base64,"  # how the converter gives a drawing, dark on any page


class LabError(RuntimeError):
    """A cell of a lab failed; the message names the lab, shows the cell, and ends in the error."""


_failed: dict[Path, LabError] = {}  # no lab is executed again, as it is, by the same process


def copy_path(root: Path, notebook: Path) -> Path:
    """Where the executed copy of `notebook`, as all is now, belongs."""
    key = digest(
        notebook.read_bytes(),
        digest_files(root, "attention/**/*.py"),
        digest_files(root, "constraints.txt"),
        torch_version(),
    )
    return root / ".book" / "labs" / f"{notebook.stem}-{key}" / notebook.name


def executed(root: Path, notebook: Path) -> Path:
    """The executed copy of `notebook`, made now unless it is there already."""
    target = copy_path(root, notebook)
    if target.exists():
        return target
    if target in _failed:
        raise _failed[target]
    book = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        book,
        timeout=600,
        resources={"metadata": {"path": str(root)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # not that its loopback is unencrypted
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        report = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rstrip()  # without a terminal's colours
        _failed[target] = LabError(f"{notebook.relative_to(root)}: a cell failed\n{report}")
        raise _failed[target] from None
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")  # another process may read the target now
    nbformat.write(book, draft)
    draft.replace(target)
    return target


def state(root: Path, executed: Path) -> State:
    """The mark of a lab that is shown as it was executed."""
    cells = [c for c in nbformat.read(executed, as_version=4).cells if c.cell_type == "code"]
    versions = f"torch {torch_version()}, Python {platform.python_version()}, {describe(root)}"
    return State(VERIFIED, f"Executed for this site: {len(cells)} cells of code, {versions}.", {})


def slim(content: str, source: str, pages: Mapping[str, str]) -> str:
    """The cells of a converted notebook in the markup of the pages, and nothing else.

    `source` is the notebook's path under docs/; `pages` gives the addresses of the sources that a
    cell may link to.
    """
    soup = BeautifulSoup(content, "html.parser")
    for foreign in soup.select("style, script, link, clipboard-copy, .clipboard-copy-txt"):
        foreign.decompose()
    for link in soup.select('a[href*=".md"], a[href*=".ipynb"]'):
        path, mark, place = str(link["href"]).partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if "://" not in path and target not in pages:
            raise LabError(f"{source}: links to {path}, which is no page")
        link["href"] = pages.get(target, path) + mark + place
    for anchor in soup.select(".anchor-link"):
        anchor["class"], anchor["title"] = "headerlink", "Permanent link"
    for pre in soup.select(".jp-MarkdownOutput .highlight > pre"):
        pre.replace_with(BeautifulSoup(_pre(pre), "html.parser"))
    cells = "\n".join(map(_cell, soup.select(".jp-Notebook > .jp-Cell")))
    return mark_code(f'<div class="jp-Notebook">\n{cells}\n</div>')


def _cell(cell: Tag) -> str:
    if "jp-CodeCell" not in cell["class"]:
        prose = "".join(text.decode_contents() for text in cell.select(".jp-MarkdownOutput"))
        return f'<div class="jp-RenderedMarkdown">{prose}</div>'
    blocks = [_block("python", pre) for pre in cell.select(".jp-InputArea pre")]
    blocks += [_output(output) for output in cell.select(".jp-OutputArea-output")]
    return '<div class="jp-CodeCell">' + "".join(blocks) + "</div>"


def _output(output: Tag) -> str:
    kind = str(output.get("data-mime-type"))
    if "jp-RenderedText" in output["class"] and output.pre:
        return _block("output stderr" if kind.endswith("stderr") else "output", output.pre)
    for image in output.select(f'img[src^="{SVG}"]'):
        drawing = _drawing(str(image["src"]).removeprefix(SVG))
        image.replace_with(BeautifulSoup(drawing, "html.parser"))
    tables = output.select("table")
    for table in tables:
        table.attrs = {}  # the theme styles a table that claims no style of its own
    focus = ' tabindex="0"' if tables else ""
    return f'<div class="jp-OutputArea-output"{focus}>{output.decode_contents()}</div>'


def _drawing(encoded: str) -> str:
    svg = base64.b64decode(encoded).decode()
    title = re.search(r"<title>(.*?)</title>", svg, re.S)
    return inline_svg(svg, html.unescape(title[1]) if title else "A drawing")


def _block(language: str, pre: Tag) -> str:
    return f'<div class="language-{language} highlight">{_pre(pre)}</div>'


def _pre(pre: Tag) -> str:
    code = pre.decode_contents().removeprefix("<span></span>").rstrip("\n")
    return f"<pre><span></span><code>{code}\n</code></pre>"
