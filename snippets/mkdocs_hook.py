"""MkDocs' door to the book: say of each page whether it is what was run, and give it its buttons.

Small on purpose: what pages need to be rendered is in `markdown_ext`, which any engine can load.

A strict build, from which the book is published, refuses a page that is not what was run and a page
that cannot be rendered. Any other build shows the page with its mark, and the terminal says why.
"""

import functools
import html
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import CombinedEvent, event_priority
from mkdocs.structure.toc import get_toc
from mkdocs.utils import CountHandler, get_relative_url
from mkdocs_autorefs import AutorefsExtension
from mkdocstrings import MkdocstringsPlugin

from snippets import arithmetic, crosslinks, explore, lab, ledger, policy, reader, search, takeaway
from snippets.katex import typeset
from snippets.takeaway import NO_CHAPTERS

log = logging.getLogger("mkdocs.plugins.book")
serving = False
links: crosslinks.Links
states: dict[str, reader.State]  # of each page, by its source
surroundings: str  # a hash of all that is watched and is no page
rendered: dict[str, tuple[str, dict[str, Any]]] = {}  # by source: a hash, and what was made of it
MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>\S|\S[^$]*?\S)\$(?![\d$])", re.S
)
CODE = re.compile(r"(<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>|<[^>]+>)", re.S)


def on_startup(command: str, dirty: bool) -> None:
    global serving
    serving = command == "serve"
    arithmetic.use()  # the kernels that execute labs compute as the pages do


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
def on_files(files: Any, config: Any) -> Any:
    global links, states, surroundings
    root = takeaway.book_of(config).root
    links = crosslinks.links(root, config.nav)
    states = {}
    for file in files.documentation_pages():
        path = Path(file.abs_src_path)
        if path.suffix == ".ipynb":
            states[file.src_uri] = _execute(file, root, config.strict)
        elif path.suffix == ".md":
            states[file.src_uri] = reader.state(root, path)
        else:
            raise PluginError(f"{file.src_uri}: a page ends in .md, or no test would see it")
    stale = [
        f"{source}: {shown.sentence}"
        for source, shown in states.items()
        if shown.word not in reader.GOOD
    ]
    if stale and config.strict:
        listed = "\n  ".join(stale)
        raise PluginError(
            f"these pages are not what was run:\n  {listed}\nRun `{ledger.COMMAND}` first."
        )
    for line in stale:
        log.info(line)
    surroundings = _surroundings(files, config)
    return files


def _execute(file: Any, root: Path, strict: bool) -> reader.State:
    """Show the executed copy of a lab; where a cell fails, the lab as it is, and why."""
    try:
        copy = lab.executed(root, Path(file.abs_src_path))
    except lab.LabError as error:
        if strict:
            raise PluginError(str(error)) from None
        why = str(error).rpartition("\n")[2]
        return reader.State(reader.FAILED, f"Not verified: a cell of this lab fails: {why}.", {})
    file.abs_src_path = str(copy)
    return lab.state(root, copy)


def _surroundings(files: Any, config: Any) -> str:
    paths = {Path(config.config_file_path)}
    paths |= {path for folder in config.watch for path in Path(folder).rglob("*.*")}
    paths |= {Path(f.abs_src_path) for f in files.media_files() if f.src_dir == config.docs_dir}
    pages = sorted(file.src_uri for file in files.documentation_pages())
    contents = (path.read_bytes() for path in sorted(paths) if path.suffix != ".pyc")
    return ledger.digest(*pages, *contents)


@event_priority(-100)
def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> None:
    page.render = functools.partial(_render, page, page.render)


def _render(page: Any, how: Callable[..., None], config: Any, files: Any) -> None:
    """Have the page rendered, unless that was done before and nothing has changed since."""
    source = page.file.src_uri
    key = ledger.digest(page.markdown, surroundings)
    known, made = rendered.get(source, ("", {}))
    if known == key:
        vars(page).update(made)
        # MkDocs asks the pages of this build whether they have these places
        page.links_to_anchors = {
            files.get_file_from_path(file.src_uri): anchors
            for file, anchors in (page.links_to_anchors or {}).items()
        }
        return
    before, warnings = dict(vars(page)), CountHandler(level=logging.WARNING)
    logging.getLogger("mkdocs").addHandler(warnings)
    try:
        how(config, files)
        if source.endswith(".ipynb"):
            _show_lab(page, files)
    except Exception as error:
        if config.strict:
            raise
        log.warning("%s cannot be shown: %s", source, error)
        page.toc, said = get_toc([]), html.escape(str(error))
        page.content = f"<h1>{page.title}</h1>\n<p>This page cannot be shown: {said}</p>"
    finally:
        logging.getLogger("mkdocs").removeHandler(warnings)
    if not warnings.counts:  # which are given again as long as there is a reason
        changed = {name: x for name, x in vars(page).items() if before.get(name, page) is not x}
        rendered[source] = key, changed


def _show_lab(page: Any, files: Any) -> None:
    """Formulas and figures of a lab as those of the pages."""
    addresses = {f.src_uri: f.url_relative_to(page.file) for f in files.documentation_pages()}
    content = lab.slim(page.content, page.file.src_uri, addresses)
    page.content = "".join(
        part if i % 2 else MATH.sub(_formula, part) for i, part in enumerate(CODE.split(content))
    )


def _formula(match: re.Match[str]) -> str:
    tex = html.unescape(match["display"] or match["inline"]).strip()
    body = typeset(tex, bool(match["display"]))
    return f'<span class="arithmatex" data-search-exclude>{body}</span>'


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """The links that nobody types."""
    if page.file.src_uri.endswith(".ipynb"):
        return content
    return links.add(
        content,
        page.file.src_uri,
        lambda source: files.get_file_from_path(source).url_relative_to(page.file),
    )


@event_priority(100)  # before the search reads the page
def _show_words(context: Any, page: Any, config: Any, nav: Any) -> None:
    page.whole, page.content = page.content, search.words(page.content)


@event_priority(-100)  # after the search has read the page, which wants no buttons
def _show_all(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """The chapter's number, the mark under the title, and the buttons of each block.

    A chapter's number is its place in the navigation: parts come before labs and back matter.
    """
    parts = [item for item in nav.items if item.is_section]
    pages = [page for part in parts if part.title not in NO_CHAPTERS for page in part.children]
    context["chapter"] = pages.index(page) + 1 if page in pages else None
    source = page.file.src_uri
    shown, table = states[source], ""
    how = get_relative_url(".", page.url) + "#how-the-pages-are-kept-true"
    page.content = reader.add_buttons(page.whole, shown, config.repo_url or "")
    takes = ""
    if shown.word in reader.GOOD:  # what was not run is not to be taken away
        takes = reader.take(takeaway.links(page, config))
        base = get_relative_url(".", page.url).rstrip("/") + "/"
        page.content = explore.bring(page.content, shown.entry.get("explorables", {}), base)
    if page.is_homepage:
        rows = [
            (one.title, get_relative_url(one.url, page.url), states[one.file.src_uri])
            for one in nav.pages
            if one.file.src_uri.endswith(".md")
        ]
        shown, table = reader.whole(row[-1] for row in rows), reader.table(rows)
    page.content = reader.under_title(page.content, reader.mark(shown, how, takes, table))
    return context


on_page_context = CombinedEvent(_show_words, _show_all)


def on_post_page(output: str, page: Any, config: Any) -> str:
    return name_dialog(output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    return name_dialog(output)  # of 404.html


def name_dialog(output: str) -> str:
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def on_post_build(config: Any) -> None:
    Path(config.site_dir, MkdocstringsPlugin.css_filename).unlink(missing_ok=True)
    takeaway.write(config, states)
    if not serving:  # its reloading is a script in the page
        policy.write(Path(config.site_dir))
