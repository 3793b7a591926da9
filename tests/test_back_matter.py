"""What stands at the end of the book agrees with what stands before it."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from mkdocs.config import load_config

import attention
from snippets import crosslinks, reference, render
from snippets.page import parse

ROOT = Path(__file__).parents[1]
BIBLIOGRAPHY = ROOT / "docs/bibliography.md"
PAGES = sorted(path for path in ROOT.glob("docs/**/*.md") if path != BIBLIOGRAPHY)
KEYS = sorted(render.bibliography(ROOT))
CITATION = re.compile(r'bibliography\.md#([\w-]+)|data-cite="([\w-]+)"')
TERMS = crosslinks.entries_of(ROOT)
LINKS = crosslinks.links(ROOT, load_config(str(ROOT / "mkdocs.yml")).nav)
REFERENCE = parse(ROOT / "docs/reference.md").text


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cited(path: Path) -> set[str]:
    return {link or cite for link, cite in CITATION.findall(path.read_text("utf-8"))}


# --- bibliography -----------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_every_entry_of_the_bibliography_is_cited(key: str) -> None:
    assert any(key in cited(path) for path in PAGES)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_citation_has_its_entry(path: Path) -> None:
    assert cited(path) <= set(KEYS)


def test_the_bibliography_is_in_alphabetical_order() -> None:
    text = BIBLIOGRAPHY.read_text("utf-8")
    assert re.findall(r"\{ #([\w-]+) \}$", text, re.M) == KEYS
    assert len(re.findall("^- ", text, re.M)) == len(KEYS)


# --- glossary ---------------------------------------------------------------


@pytest.mark.parametrize("key", TERMS)
def test_a_chapter_uses_each_term_of_the_glossary_in_italics(key: str) -> None:
    assert key in LINKS.first


def test_the_glossary_is_in_alphabetical_order_and_no_term_has_two_entries() -> None:
    text = (ROOT / "docs/glossary.md").read_text("utf-8")
    terms = [entry["term"] for entry in crosslinks.ENTRY.finditer(text)]
    assert terms == sorted(terms, key=str.casefold)
    assert len(terms) == text.count("\n:   ") == len(TERMS)
    forms = [form for entry in TERMS.values() for form in entry]
    assert len(forms) == len(set(forms))


# --- reference --------------------------------------------------------------


def test_the_reference_knows_the_names_that_python_knows() -> None:
    assert list(reference.public()) == attention.__all__
    for public, module in reference.public().items():
        assert getattr(attention, public).__module__ == module


def test_the_reference_has_every_public_name_once_and_no_other() -> None:
    assert sorted(re.findall(r"^### `(\w+)`$", REFERENCE, re.M)) == sorted(attention.__all__)


@pytest.mark.parametrize("public", attention.__all__)
def test_every_public_name_has_a_chapter_as_its_home(public: str) -> None:
    assert public in LINKS.homes


def documented(public: str) -> list[object]:
    """A public name and, of a class, its public methods that have a docstring."""
    thing = getattr(attention, public)
    inside = vars(thing).items() if inspect.isclass(thing) else []
    return [thing] + [m for n, m in inside if n[0] != "_" and inspect.isfunction(m) and m.__doc__]


@pytest.mark.parametrize("public", attention.__all__)
def test_an_entry_of_the_reference_says_all_that_the_docstring_says(public: str) -> None:
    text = REFERENCE[REFERENCE.index(f"### `{public}`\n") :]
    shown = letters(re.sub(r"^```\w*$", "", text, flags=re.M))
    for thing in documented(public):
        said = re.sub(r"^Args:$", "Arguments:", inspect.getdoc(thing) or "", flags=re.M)
        assert said and letters(said) in shown


def letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text)


@pytest.mark.parametrize("public", attention.__all__)
def test_a_signature_of_the_reference_is_the_one_that_python_sees(public: str) -> None:
    _, _, entry = REFERENCE.partition(f"### `{public}`\n")
    block = entry.partition("```pyi\n")[2].partition("\n```")[0]
    (written,) = ast.parse(f"{block}\n        ...").body
    assert isinstance(written, (ast.FunctionDef, ast.ClassDef)) and written.name == public
    thing = getattr(attention, public)
    if isinstance(written, ast.ClassDef):
        if "__init__" not in vars(thing):
            return  # it is its parent's
        written, thing = written.body[0], thing.__init__
    seen = inspect.signature(thing)
    assert [argument.arg for argument in arguments(written)] == list(seen.parameters)
    defaults = [*written.args.defaults, *filter(None, written.args.kw_defaults)]
    given = [p.default for p in seen.parameters.values() if p.default is not p.empty]
    assert [ast.literal_eval(default) for default in defaults] == given


def arguments(function: ast.FunctionDef) -> list[ast.arg]:
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [*named, function.args.kwarg] if function.args.kwarg else named
