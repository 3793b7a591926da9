"""Buttons and marks come from the ledger; a page that is not what was run gets neither."""

import base64
import hashlib
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from snippets import gate, ledger, policy, reader, slices
from snippets.render import render

Check = Callable[..., Any]  # the fixture of conftest.py
PAGE = """# T

```python
x = "<a & b>"
```

```python
len(x)
```
```output
7
```

``` { .python data-notest="needs a GPU" }
x.cuda()
```

``` { .python data-needs="several processes" title="ring.py" }
print(x)
```
```output
<a & b>
```

And then:

```console
$ make test   # everything
12 passed
$ make serve
```

`7`{data-expr="len(x)"}
"""


@pytest.fixture
def page(book: Path, check: Check) -> Path:
    (book / "attention").mkdir()
    (book / "attention/softmax.py").write_text("x = 1\n")
    outcome = check(PAGE)
    assert outcome.ok, outcome.text
    return book / "docs/page.md"


def shown(book: Path, page: Path, home: str = "") -> BeautifulSoup:
    content = render(page.read_text("utf-8"), book)
    return BeautifulSoup(reader.add_buttons(content, reader.state(book, page), home), "html.parser")


def test_a_page_that_was_run_says_what_was_checked(book: Path, page: Path) -> None:
    state = reader.state(book, page)
    assert state.word == reader.VERIFIED
    assert state.sentence.startswith("Verified: 3 snippets and 1 number, torch 2.")


def test_a_page_that_was_never_run_says_so(book: Path) -> None:
    state = reader.state(book, book / "docs/other.md")
    assert (state.word, state.sentence) == (
        reader.NEVER,
        "Never verified: this page was never run.",
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [("docs/page.md", "the page has"), ("attention/softmax.py", "attention/ has")],
)
def test_a_change_takes_mark_and_runnable_copies_away(
    path: str, why: str, book: Path, page: Path
) -> None:
    assert len(shown(book, page).select(".code-run")) == 4
    with (book / path).open("a") as file:
        file.write("\n")
    state = reader.state(book, page)
    assert state.word == reader.CHANGED
    assert why in state.sentence
    soup = shown(book, page)
    assert soup.select(".code-run") == []
    assert len(soup.select(".code-copy")) == 5


def test_a_page_with_another_last_digit_says_so_and_where(book: Path, check: Check) -> None:
    page = book / "docs/page.md"
    assert check(PAGE, pinned=False).ok
    assert reader.state(book, page).word == reader.VERIFIED
    assert ", another arithmetic, " in reader.state(book, page).sentence
    assert check(PAGE + '\n`0.667`{data-expr="0.66649"}\n', pinned=False).ok
    state = reader.state(book, page)
    assert state.word == reader.NEARLY
    line = PAGE.count("\n") + 2
    assert state.sentence.startswith(
        f"Verified to the last digit, off by one in line {line} of the page's source: 3 snippets"
    )
    assert reader.whole([state]).sentence.startswith("Verified to the last digit, all 1 pages")
    assert len(shown(book, page).select(".code-run")) == 4


def test_a_page_that_fails_says_where_and_keeps_its_text(book: Path, page: Path) -> None:
    ledger.fail(book, page, ["docs/page.md:7: the output differs\n…", "docs/page.md:9: …"])
    state = reader.state(book, page)
    assert state.word == reader.FAILED
    assert state.sentence == "Not verified: this page fails at line 7, and in 1 more place."
    assert shown(book, page).select(".code-run") == []
    assert reader.whole([state]).sentence == "0 of 1 pages are verified as they are now."


def test_a_page_that_lacks_a_package_is_verified_in_part(book: Path, check: Check) -> None:
    page = book / "docs/page.md"
    lacking = '\n``` { .python data-requires="no_such_package" }\ny = 1\n```\n`1`{data-expr="y"}\n'
    assert check(PAGE + lacking).ok
    state = reader.state(book, page)
    assert state.word == reader.PARTLY
    needs = "the rest needs no_such_package, which is not installed"
    assert state.sentence.startswith(f"Verified in part, {needs}: 3 snippets and 1 number, ")
    assert len(shown(book, page).select(".code-run")) == 4
    assert reader.whole([state]).word == reader.CHANGED


def test_the_book_is_as_good_as_its_worst_page(book: Path, page: Path) -> None:
    good = reader.state(book, page)
    never = reader.state(book, book / "docs/other.md")
    assert reader.whole([good, good]).sentence.startswith("Verified, all 2 pages: 6 snippets and 2")
    assert reader.whole([good, never]).word == reader.CHANGED
    assert reader.whole([good, never]).sentence.startswith("1 of 2 pages")
    assert reader.whole([never, never]).word == reader.NEVER


def test_a_runnable_copy_is_what_was_run_under_a_line_of_what_it_takes(
    book: Path, page: Path
) -> None:
    buttons = shown(book, page, "https://x.org/a/b").select(".code-run")
    entry = ledger.read(book, page)
    assert entry is not None
    codes = [item["code"] for item in entry["runnable"]]
    assert [str(b["data-clipboard-text"]).split("\n\n", 1)[1] for b in buttons] == codes
    assert codes[1] == 'x = "<a & b>"\n\nprint(len(x))\n'
    assert all(str(b["data-clipboard-text"]).startswith("# Needs Python alone") for b in buttons)


def test_equal_blocks_in_two_places_are_two_copies(book: Path, check: Check) -> None:
    show = "```python\nx\n```\n```output\n{}\n```\n\n"
    set_x = "```python\nx = {}\n```\n\n"
    assert check("".join((set_x + show).format(i, i) for i in (1, 2))).ok
    buttons = shown(book, book / "docs/page.md").select(".code-run")
    codes = [str(button["data-clipboard-text"]).split("\n\n", 1)[1] for button in buttons]
    assert codes == ["x = 1\n", "x = 1\n\nprint(x)\n", "x = 2\n", "x = 2\n\nprint(x)\n"]


def test_prompts_can_be_copied_as_a_file(book: Path, check: Check) -> None:
    assert check("```pycon\n>>> x = 2\n>>> x + 1\n3\n```\n").ok
    soup = shown(book, book / "docs/page.md")
    (button,) = soup.select(".language-pycon .code-run")
    assert str(button["data-clipboard-text"]).endswith("\n\nx = 2\nprint(repr(x + 1))\n")
    entry = ledger.read(book, book / "docs/page.md")
    assert entry is not None
    assert gate.check_page(soup, entry) == []


def test_the_books_date_is_that_of_the_page_verified_longest_ago(book: Path, page: Path) -> None:
    state = reader.state(book, page)
    old = reader.State(state.word, "", state.entry | {"date": "2026-01-09"})
    assert reader.whole([state, old]).sentence.endswith(", 9 January 2026.")


def test_a_button_says_what_its_code_takes(book: Path, page: Path) -> None:
    labels = [button.get_text() for button in shown(book, page).select(".code-run")]
    assert labels == [
        "Copy runnable",
        "Copy runnable",
        "Copy runnable (needs a GPU)",
        "Copy runnable (several processes)",
    ]


def test_blocks_are_copied_as_shown_and_of_a_console_the_commands(book: Path, page: Path) -> None:
    soup = shown(book, page)
    for button in soup.select(".code-copy[data-clipboard-target]"):
        (target,) = soup.select(str(button["data-clipboard-target"]))
        assert target.name == "pre"
        assert target.find_parent(class_="highlight") == button.find_parent(class_="highlight")
    (console,) = soup.select(".language-console .code-copy")
    assert console["data-clipboard-text"] == "make test   # everything\nmake serve"
    assert soup.select(".language-output button") == []


def test_the_mark_is_under_the_title_and_escaped() -> None:
    state = reader.State(reader.CHANGED, "Changed: <b>", {})
    content = reader.under_title("<h1>T</h1><p>x</p>", reader.mark(state, "#how"))
    soup = BeautifulSoup(content, "html.parser")
    mark = soup.select_one("h1 + .page-state[data-state=changed] .mark")
    assert mark is not None
    assert mark.get_text() == "△ Changed: <b>"
    assert html.escape("<b>") in content


def test_the_policy_allows_the_scripts_of_all_pages_and_no_other(tmp_path: Path) -> None:
    head = '<head><meta charset="utf-8"></head>'
    (tmp_path / "a.html").write_text(f"{head}<script>one()</script><script src=x.js></script>")
    (tmp_path / "b.html").write_text(f'{head}<script type="application/json">{{}}</script>')
    policy.write(tmp_path)
    digest = base64.b64encode(hashlib.sha256(b"one()").digest()).decode()
    for name in ("a.html", "b.html"):
        soup = BeautifulSoup((tmp_path / name).read_text(), "html.parser")
        (meta,) = soup.select('meta[http-equiv="Content-Security-Policy"]')
        (scripts,) = [r for r in str(meta["content"]).split("; ") if r.startswith("script-src")]
        assert scripts == f"script-src 'self' 'sha256-{digest}'"


def test_kinds_are_counted_in_the_summary() -> None:
    assert set(slices.KINDS) == {slices.ALONE, slices.SLICE, slices.PAGE, slices.NOT_RUN}
