"""A page that is not what was run shows no green mark and stops a strict build, but no other.

Asked of a book of four pages and a lab of one cell, which is built in a second.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from bs4.element import Tag
from click.testing import CliRunner
from mkdocs.__main__ import cli
from mkdocs.structure.pages import Page
from reader import ROOT, SOURCES, address, file_of, soup_of, thin

from snippets import gate, ledger, reader
from tests import record

INDEX = (
    "# A book\n\nOf [one](part/one.md), [two](part/two.md), three and [a lab](part/lab.ipynb).\n"
)
ONE = """\
# One

It is `3`{data-expr="x"}, as $x = \\py{3}{x}$ says.

```python
class Dot:
    def _repr_svg_(self):
        return '<svg viewBox="0 0 9 9"><desc>One dot.</desc><circle r="3"/></svg>'


x = 3
Dot()
```

![A dot](figures/one-dot.svg){data-explore="softmax" data-given="[x]"}
"""
TWO = "# Two\n\n```python\n2 + 2\n```\n```output\n4\n```\n"
THREE = "# Three\n\nNo code.\n"
PAGES = {"index.md": INDEX, "part/one.md": ONE, "part/two.md": TWO, "part/three.md": THREE}
NAV = f"nav: [index.md, {{Part: {[*PAGES][1:]}}}, {{Labs: [part/lab.ipynb]}}]\n"


def lab(source: str) -> str:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "source": source}
    whole = {"cells": [cell | {"execution_count": None}], "metadata": {}}
    return json.dumps(whole | {"nbformat": 4, "nbformat_minor": 5})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book with its ledger, and the lab executed."""
    root = tmp_path_factory.mktemp("small")
    (root / "docs/part").mkdir(parents=True)
    for name, text in PAGES.items():
        (root / "docs" / name).write_text(text)
    (root / "docs/part/lab.ipynb").write_text(lab("1 + 1"))
    shutil.copytree(ROOT / "docs/assets", root / "docs/assets")
    (root / "attention").mkdir()
    (root / "attention/__init__.py").write_text("from .one import one\n\n__all__ = ['one']\n")
    (root / "attention/one.py").write_text("one = 1\n")
    (root / "overrides").symlink_to(ROOT / "overrides")
    (root / "snippets").symlink_to(ROOT / "snippets")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    settings = re.sub(r"^nav:\n.*?(?=^theme:)", NAV, settings, flags=re.M | re.S)
    (root / "mkdocs.yml").write_text(settings)
    (root / "conftest.py").write_text("pytest_plugins = ['snippets.pytest_plugin']")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "docs"]
    subprocess.run(run, cwd=root, env={"PYTHONPATH": str(ROOT)}, check=True)
    return root


@pytest.fixture
def book(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which the test works."""
    shutil.copytree(whole, tmp_path / "book", symlinks=True)
    monkeypatch.chdir(tmp_path / "book")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    for name in ("SITE_URL", "REPO_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "book"


def build(*options: str) -> tuple[int, str]:
    """Build the book in whose folder we are; the exit code, and what the terminal says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MkDocs and its plugins
        result = CliRunner().invoke(cli, ["build", *options])
    return result.exit_code, result.output


def page(book: Path, source: str) -> Tag:
    return gate.soup_of(gate.html_path(book / "site", f"docs/{source}"))


def mark(book: Path, source: str) -> tuple[str, str]:
    (state,) = page(book, source).select("h1 + .page-state")
    (text,) = state.select(".mark")
    return str(state["data-state"]), text.get_text()


def test_a_book_that_was_run_is_built_and_verified(book: Path) -> None:
    code, said = build("--strict", "-f", "mkdocs.yml")  # a relative path, as one types it
    assert (code, "WARNING" in said) == (0, False), said
    for source in [*PAGES, "part/lab.ipynb"]:
        assert mark(book, source)[0] == "verified", source
    one = page(book, "part/one.md")
    assert one.select(".code-run") and one.select("[data-given]") and one.select("[data-take]")


def test_without_a_public_home_nothing_leads_there(book: Path, site: Path) -> None:
    assert build("--strict")[0] == 0
    one = page(book, "part/one.md")
    (report,) = one.select(".report a")
    assert report["href"] == "../../#if-you-find-an-error"
    assert soup_of(file_of(site, "")).select_one("#if-you-find-an-error")  # of the book itself
    assert one.select("[data-take=notebook]") and not one.select("[data-take=colab]")
    assert not [a for a in one.select("a[href]") if "//github.com" in str(a["href"])]
    assert not any("git+" in str(b["data-clipboard-text"]) for b in one.select(".code-run"))


def test_where_a_package_is_missing_the_page_says_so_and_can_be_taken_away(book: Path) -> None:
    needs = '\n``` { .python data-requires="no_such_package" }\nx = 1\n```\n'
    (book / "docs/part/two.md").write_text(TWO + needs + '\n`1`{data-expr="x"}\n')
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "docs/part/two.md"]
    subprocess.run(run, env={"PYTHONPATH": str(ROOT)}, check=True)
    code, said = build("--strict")
    assert code == 0, said
    state, text = mark(book, "part/two.md")
    assert state == "partly" and "no_such_package" in text, text
    entry = ledger.read(book, book / "docs/part/two.md")
    assert entry is not None and gate.check_page(page(book, "part/two.md"), entry) == []
    notebook = json.loads((book / "site/part/two/two.ipynb").read_text("utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    shown = [("".join(c["source"]), len(c["outputs"])) for c in cells]
    assert shown[-2:] == [("2 + 2", 1), ("x = 1", 0)]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def test_marks_fall_when_a_page_changes_or_fails_or_was_never_run(book: Path) -> None:
    edit(book / "docs/part/one.md", "x = 3", "x = 4")
    ledger.fail(book, book / "docs/part/two.md", ["docs/part/two.md:4: the output differs"])
    (book / ".book/docs/part/three.json").unlink()
    code, said = build()
    assert code == 0, said
    state, text = mark(book, "part/one.md")
    assert state == "changed"
    assert "the page has changed" in text
    assert page(book, "part/one.md").select(".code-run, [data-given], [data-take]") == []
    assert page(book, "part/one.md").select("[data-figure]")
    assert mark(book, "part/two.md") == ("failed", "✗ Not verified: this page fails at line 4.")
    never = ("never", "○ Never verified: this page was never run.")
    assert mark(book, "part/three.md") == never
    whole = "△ 1 of 4 pages are verified as they are now."
    assert mark(book, "index.md") == ("changed", whole)
    assert mark(book, "part/lab.ipynb")[0] == "verified"
    for words in (
        "part/one.md: Changed since .*: the page has changed since it was run",
        "part/two.md: .* fails at line 4",
        "part/three.md: .* was never run",
    ):
        assert re.search(words, said), said
    code, said = build("--strict")
    assert code != 0, "what is published is verified"
    for words in ("part/one.md: ", "part/two.md: ", "part/three.md: ", "Run `pytest docs` first"):
        assert words in said


def test_what_is_broken_stops_no_build_but_a_strict_one(book: Path) -> None:
    (book / "docs/part/figures/one-dot.svg").unlink()
    edit(book / "docs/part/two.md", "# Two", "# Two\n\n$\\nosuch$")
    dot = '![A dot](figures/one-dot.svg){data-explore="missing" data-given="3"}'
    edit(book / "docs/part/three.md", "No code.", dot)
    (book / "docs/part/lab.ipynb").write_text(lab("1 / 0"))
    code, said = build()
    assert code == 0, said
    assert page(book, "part/one.md").select('img[alt="A dot"]')
    assert "'figures/one-dot.svg'" in said and "part/one.md: Changed since" in said
    shown = page(book, "part/two.md").select_one("article")
    assert shown and "This page cannot be shown: " in shown.get_text()
    assert "part/two.md cannot be shown: " in said and "nosuch" in said
    for source in ("one", "two", "three"):
        assert mark(book, f"part/{source}.md")[0] == "changed"
    state, text = mark(book, "part/lab.ipynb")
    assert state == "failed"
    assert "a cell of this lab fails: ZeroDivisionError: division by zero" in text
    assert re.search("part/lab.ipynb: .* ZeroDivisionError: division by zero", said)
    code, said = build("--strict")
    assert code != 0
    assert "docs/part/lab.ipynb: a cell failed" in said and "1 / 0" in said
    (book / "docs/part/lab.ipynb").write_text(lab("1 + 1"))
    code, said = build("--strict")
    assert code != 0
    assert "part/one.md: " in said and "figures/one-dot.svg is not what its snippet drew" in said


def test_a_page_that_no_test_would_see_stops_every_build(book: Path) -> None:
    (book / "docs/extra.markdown").write_text("# T")
    code, said = build()
    assert code != 0
    assert "extra.markdown: a page ends in .md, or no test would see it" in said


def test_all_marks_fall_when_the_package_changes(book: Path) -> None:
    (book / "attention/one.py").write_text("# changed\n")
    states = [reader.state(book, book / "docs" / source) for source in PAGES]
    for state in states:
        assert state.word == "changed"
        assert "attention/ has changed" in state.sentence
    said = "0 of 4 pages are verified as they are now."
    assert reader.whole(states) == reader.State("changed", said, {})


# --- under `mkdocs serve` ---------------------------------------------------


def files(site: Path) -> dict[str, bytes]:
    """What a build made, but for the map of the site, which knows the time."""
    return {
        path.relative_to(site).as_posix(): path.read_bytes()
        for path in site.glob("**/*.*")
        if path.is_file() and not path.name.startswith("sitemap")
    }


def cold(book: Path) -> dict[str, bytes]:
    """What a process makes that has built nothing before."""
    run = [sys.executable, "-m", "mkdocs", "build", "-q", "--site-dir", "cold"]
    subprocess.run(run, cwd=book, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return files(book / "cold")


def test_after_an_edit_one_page_is_rendered_and_all_are_as_ever(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, render = list[str](), Page.render

    def count(page: Page, config: Any, files: Any) -> None:
        rendered.append(page.file.src_uri)
        render(page, config, files)

    monkeypatch.setattr(Page, "render", count)
    assert build()[0] == 0
    assert sorted(rendered) == sorted(PAGES)
    edit(book / "docs/part/one.md", "x = 3", "x = 4")
    rendered.clear()
    assert build()[0] == 0
    assert rendered == ["part/one.md"]
    assert files(book / "site") == cold(book)
    (book / "attention/one.py").write_text("# changed\n")
    rendered.clear()
    assert build()[0] == 0
    assert sorted(rendered) == sorted(PAGES)


def test_a_warning_is_given_until_its_reason_is_gone(book: Path) -> None:
    edit(book / "docs/part/three.md", "No code.", "[x](nowhere.md)")
    for _ in range(2):
        assert "'nowhere.md'" in build()[1]
    edit(book / "docs/part/three.md", "nowhere.md", "one.md#nowhere")
    for _ in range(2):
        assert "'#nowhere'" in build()[1]
    edit(book / "docs/part/one.md", "It is", "## Nowhere\n\nIt is")
    assert "'#nowhere'" not in build()[1]


@pytest.mark.exhaustive
def test_the_whole_book_is_the_same_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Path
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("one", "two"):
        assert build("--site-dir", str(tmp_path / name))[0] == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_broken_book_is_served_and_follows_its_writer(book: Path) -> None:
    """A process of its own, for it ends when it is told to."""
    (book / "docs/part/lab.ipynb").write_text(lab("1 / 0"))
    edit(book / "docs/part/two.md", "# Two", "# Two\n\n$\\nosuch$")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    run = [sys.executable, "-m", "mkdocs", "serve", "--dev-addr", address]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(run, cwd=book, env=env, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for('data-state="failed"', f"http://{address}/part/lab/", server)
            assert "This page cannot be shown" in ask(f"http://{address}/part/two/", server)
            edit(book / "docs/part/two.md", "$\\nosuch$", "Mended.")
            wait_for("Mended.", f"http://{address}/part/two/", server)
        finally:
            server.terminate()


def wait_for(words: str, address: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(3000):  # minutes, for what never comes
        if words in ask(address, server):
            return
        time.sleep(0.1)
    pytest.fail(f"{words!r} never comes at {address}")


def ask(address: str, server: "subprocess.Popen[bytes]") -> str:
    """What is served there; nothing as long as the server, which lives, is not ready."""
    assert server.poll() is None, "the server has stopped"
    not_yet = (OSError, http.client.HTTPException)
    with contextlib.suppress(*not_yet), urllib.request.urlopen(address, timeout=60) as answer:
        return str(answer.read().decode())
    return ""


# --- the site of the book ---------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text + "x = 1\n", "a button copies what no test has run"),
        (lambda text: text[2:], "a runnable copy does not say what must be installed"),
        (lambda text: None, "a runnable copy is missing"),
    ],
)
def test_the_gate_sees_a_change_of_what_a_button_copies(
    site: Path, change: Callable[[str], str | None], complaint: str
) -> None:
    source = ROOT / "docs/foundations/similarity.md"
    entry = record.entry(source)
    soup = BeautifulSoup(thin(file_of(site, address(source)).read_text("utf-8")), "html.parser")
    assert gate.check_page(soup, entry) == []
    button = soup.select(".code-run")[3]
    if (text := change(str(button["data-clipboard-text"]))) is None:
        button.decompose()
    else:
        button["data-clipboard-text"] = text
    (found,) = gate.check_page(soup, entry)
    assert complaint in found


def test_every_page_of_the_site_is_verified_and_says_so(site: Path) -> None:
    for source in SOURCES:
        (state,) = soup_of(file_of(site, address(source))).select("h1 + .page-state")
        assert state["data-state"] in reader.GOOD, source


def test_the_index_shows_the_state_of_each_page(site: Path) -> None:
    rows = soup_of(site / "index.html").select(".page-state details tbody tr")
    assert len(rows) == len(SOURCES)
    assert all("Verified" in row.get_text() for row in rows)
