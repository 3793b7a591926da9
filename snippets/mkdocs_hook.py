"""MkDocs' door to the book: build only what was run, show the labs as executed, name the rest.

Small on purpose: what pages need to be rendered is in `markdown_ext`, which any engine can load.
"""

import html
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority

from snippets import lab, ledger
from snippets.katex import typeset

log = logging.getLogger("mkdocs.plugins.book")
serving = False
NO_CHAPTERS = {"Labs", "Back matter"}
MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>\S|\S[^$]*?\S)\$(?![\d$])", re.S
)
CODE = re.compile(r"(<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>|<[^>]+>)", re.S)


def on_startup(command: str, dirty: bool) -> None:
    global serving
    serving = command == "serve"


def on_config(config: Any) -> Any:
    if not config.repo_url:
        config.edit_uri = ""  # no public home, no link to edit at
    return config


@event_priority(-100)  # after the notebook plugin has wrapped the files
def on_files(files: Any, config: Mapping[str, Any]) -> Any:
    root = Path(config["config_file_path"]).parent
    stale = []
    for file in files:
        path = Path(file.abs_src_path or "")
        if file.is_documentation_page() and not file.src_uri.endswith((".md", ".ipynb")):
            raise PluginError(f"{file.src_uri}: a page ends in .md, or no test would see it")
        if file.src_uri.endswith(".md") and (why := ledger.why_stale(root, path)):
            stale.append(f"{file.src_uri}: {why}")
        if file.src_uri.endswith(".ipynb"):
            try:
                file.abs_src_path = str(lab.executed(root, path))
            except lab.LabError as error:
                raise PluginError(str(error)) from None
    if stale and not serving:
        listed = "\n  ".join(stale)
        raise PluginError(
            f"these pages are not what was run:\n  {listed}\nRun `{ledger.COMMAND}` first."
        )
    for line in stale:
        log.info("%s; run `%s` to check it", line, ledger.COMMAND)
    return files


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """A lab's formulas and figures, which no Markdown extension sees, as those of the pages."""
    if not page.file.src_uri.endswith(".ipynb"):
        return content
    pages = {f.src_uri: f.url_relative_to(page.file) for f in files.documentation_pages()}
    try:
        content = lab.slim(content, page.file.src_uri, pages)
    except lab.LabError as error:
        raise PluginError(str(error)) from None
    return "".join(
        part if i % 2 else MATH.sub(_formula, part) for i, part in enumerate(CODE.split(content))
    )


def _formula(match: re.Match[str]) -> str:
    tex = html.unescape(match["display"] or match["inline"]).strip()
    body = typeset(tex, bool(match["display"]))
    return f'<span class="arithmatex" data-search-exclude>{body}</span>'


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """A chapter's number is its place in the navigation: parts come before labs and back matter."""
    parts = [item for item in nav.items if item.is_section]
    pages = [page for part in parts if part.title not in NO_CHAPTERS for page in part.children]
    context["chapter"] = pages.index(page) + 1 if page in pages else None
    return context


def on_post_page(output: str, page: Any, config: Any) -> str:
    return name_dialog(output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    return name_dialog(output)  # of 404.html


def name_dialog(output: str) -> str:
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)
