"""MkDocs' door to the book: say of each page whether it is what was run, and give it its buttons.

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
from mkdocs.utils import get_relative_url
from mkdocs_autorefs import AutorefsExtension
from mkdocstrings import MkdocstringsPlugin

from snippets import crosslinks, explore, lab, ledger, policy, reader, takeaway
from snippets.katex import typeset
from snippets.takeaway import NO_CHAPTERS

log = logging.getLogger("mkdocs.plugins.book")
serving = False
links: crosslinks.Links
MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>\S|\S[^$]*?\S)\$(?![\d$])", re.S
)
CODE = re.compile(r"(<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>|<[^>]+>)", re.S)


def on_startup(command: str, dirty: bool) -> None:
    global serving
    serving = command == "serve"


@event_priority(-100)  # after mkdocstrings has added its style, and autorefs its links
def on_config(config: Any) -> Any:
    # No page here has need of them, and autorefs would take `a[0]["b"]` in an attribute for a link.
    config.extra_css.remove(MkdocstringsPlugin.css_filename)
    config.markdown_extensions[:] = [
        one for one in config.markdown_extensions if not isinstance(one, AutorefsExtension)
    ]
    if not config.repo_url:
        config.edit_uri = ""  # no public home, no link to edit at
    return config


@event_priority(-100)  # after the notebook plugin has wrapped the files
def on_files(files: Any, config: Mapping[str, Any]) -> Any:
    global links
    root = Path(config["config_file_path"]).parent
    links = crosslinks.links(root, config["nav"])
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
    if stale and config["strict"]:  # as it is published
        listed = "\n  ".join(stale)
        raise PluginError(
            f"these pages are not what was run:\n  {listed}\nRun `{ledger.COMMAND}` first."
        )
    for line in stale:
        log.info("%s; run `%s` to check it", line, ledger.COMMAND)
    return files


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """The links that nobody types and, in a lab, formulas and figures as those of the pages."""
    pages = {f.src_uri: f.url_relative_to(page.file) for f in files.documentation_pages()}
    if not page.file.src_uri.endswith(".ipynb"):
        return links.add(content, page.file.src_uri, pages.__getitem__)
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


@event_priority(-100)  # after the search has read the page, which wants no buttons
def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """The chapter's number, the mark under the title, and the buttons of each block.

    A chapter's number is its place in the navigation: parts come before labs and back matter.
    """
    parts = [item for item in nav.items if item.is_section]
    pages = [page for part in parts if part.title not in NO_CHAPTERS for page in part.children]
    context["chapter"] = pages.index(page) + 1 if page in pages else None
    root = Path(config["config_file_path"]).parent
    how = get_relative_url(".", page.url) + "#how-the-pages-are-kept-true"
    takes = reader.take(takeaway.links(page, config))
    if page.file.src_uri.endswith(".ipynb"):
        shown = lab.state(Path(page.file.abs_src_path))
        page.content = reader.add_buttons(page.content, shown, "")
        page.content = reader.under_title(page.content, reader.mark(shown, how, takes))
        return context
    shown, table = reader.state(root, Path(page.file.abs_src_path)), ""
    page.content = reader.add_buttons(page.content, shown, config.repo_url or "")
    if shown.word in reader.GOOD:
        base = get_relative_url(".", page.url).rstrip("/") + "/"
        page.content = explore.bring(page.content, shown.entry["explorables"], base)
    takes = takes if shown.word in reader.GOOD else ""  # what was not run is not written
    if page.is_homepage:
        rows = [
            (one.title, get_relative_url(one.url, page.url), reader.state(root, path))
            for one in nav.pages
            if (path := Path(one.file.abs_src_path)).suffix == ".md"
        ]
        shown, table = reader.whole(row[-1] for row in rows), reader.table(rows)
    page.content = reader.under_title(page.content, reader.mark(shown, how, takes, table))
    return context


def on_post_page(output: str, page: Any, config: Any) -> str:
    return name_dialog(output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    return name_dialog(output)  # of 404.html


def name_dialog(output: str) -> str:
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def on_post_build(config: Any) -> None:
    Path(config.site_dir, MkdocstringsPlugin.css_filename).unlink(missing_ok=True)
    takeaway.write(config)
    if not serving:  # its reloading is a script in the page
        policy.write(Path(config["site_dir"]))
