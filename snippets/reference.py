"""The API reference: the docstrings of the package as Markdown, for mkdocstrings and the tests.

On a page, `::: attention.softmax` stands for a module: its docstring, and the signature and the
docstring of each of its public names. MkDocs shows it with mkdocstrings, which gets each docstring
as Markdown from `Docstrings`; the tests read the page with `expand`, from the source alone. The
gate then holds one against the other. So examples are run as those of any page are, and a signature
is what the source says.
"""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import griffe

ROOT = Path(__file__).parents[1]
PACKAGE = "attention"
SIGNATURE = "pyi"  # the language of a signature's block: that of stubs, which are never run
DIRECTIVE = re.compile(rf"^::: (?P<module>{PACKAGE}(?:\.\w+)+)$(?!\n.)", re.M)
SECTION = re.compile(
    r"^(?P<title>Args|Attributes|Returns|Raises|Source|Example):\n(?=[ ]{4})", re.M
)
TITLES = {"Args": "Arguments"}
ITEM = re.compile(r"^(?P<names>\w+(?:, \w+)*):\s+(?P<text>.*(?:\n(?:[ ].*)?)*)", re.M)
INDENTED = re.compile(r"(?:^[ ]{4}.*(?:\n|\Z)(?:[ ]*\n(?=[ ]{4}))*)+", re.M)
PROMPTS = re.compile(r"^>>> .*(?:\n.+)*", re.M)
CODE = re.compile(r"(`[^`]+`)")
MARKUP = re.compile(r"[\\*<\[]|(?<!\w)_|_(?!\w)")

Definition: TypeAlias = ast.FunctionDef | ast.ClassDef


@functools.cache
def public(root: Path = ROOT) -> dict[str, str]:
    """Each public name of the package, with the module that defines it."""
    tree = ast.parse((root / PACKAGE / "__init__.py").read_text("utf-8"))
    found = {
        item.name: node.module or ""
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for item in node.names
    }
    exported = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    return {name: found[name] for name in ast.literal_eval(exported)}


def expand(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A page with each module in the place of the line that asks for it, and where they stand."""
    out, spans, at = "", [], 0
    for directive in DIRECTIVE.finditer(text):
        if not _file(directive["module"]).exists():
            continue  # the page's parser says so
        out += text[at : directive.start()]
        start, at = len(out), directive.end()
        out += module_markdown(directive["module"])
        spans.append((start, len(out)))
    return out + text[at:], spans


def _file(module: str) -> Path:
    return ROOT / Path(*module.split(".")).with_suffix(".py")


def module_markdown(module: str) -> str:
    """A module's docstring and its public names, in the order of its source."""
    source = _file(module).read_text("utf-8")
    parts = [f"## `{module}`", as_markdown(ast.get_docstring(ast.parse(source)) or "")]
    for name, node in definitions(source).items():
        if public().get(name) == module:
            parts += [f"### `{name}`", described(_segment(source, node))]
            parts += [
                part
                for method in methods(node)
                for part in (f"#### `{method.name}`", described(_segment(source, method)))
            ]
    return "\n\n".join(parts)


def definitions(source: str) -> dict[str, Definition]:
    """What a module defines; of an overloaded function the last, which is its code."""
    body = ast.parse(source).body
    found = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: node for node in sorted(found, key=lambda node: node.lineno)}


def methods(node: Definition) -> Iterator[ast.FunctionDef]:
    """The public methods of a class that say what they do."""
    for inner in node.body if isinstance(node, ast.ClassDef) else []:
        if (
            isinstance(inner, ast.FunctionDef)
            and not inner.name.startswith("_")
            and ast.get_docstring(inner)
        ):
            yield inner


def _segment(source: str, node: Definition) -> str:
    lines = source.split("\n")[node.lineno - 1 : node.end_lineno]
    return textwrap.dedent("\n".join(lines))


def described(source: str) -> str:
    """The signature and the docstring of a function or a class, from its source."""
    (node,) = ast.parse(source).body
    assert isinstance(node, Definition)
    text = as_markdown(ast.get_docstring(node) or "")
    return f"```{SIGNATURE}\n{signature(source, node)}\n```\n\n{text}"


def signature(source: str, node: Definition) -> str:
    """The lines above a body; of a class, those of its `__init__` too."""
    lines = source.split("\n")
    out = lines[node.lineno - 1 : node.body[0].lineno - 1]
    for inner in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            out += lines[inner.lineno - 1 : inner.body[0].lineno - 1]
    return "\n".join(line for line in out if line.strip())


def as_markdown(docstring: str) -> str:
    """A docstring in the form of this package: its sections titled, its code in fences."""
    head, *rest = SECTION.split(docstring)
    parts = [_prose(head)]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        parts.append(f"**{TITLES.get(title, title)}**")
        body = textwrap.dedent(body)
        parts.append(_items(body) if title in ("Args", "Attributes", "Raises") else _prose(body))
    return "\n\n".join(part for part in parts if part)


def _items(text: str) -> str:
    """Names and what is said of each, as a list of definitions."""
    made = []
    for item in ITEM.finditer(text):
        names = ", ".join(f"`{name}`" for name in item["names"].split(", "))
        said = _escaped(inspect.cleandoc(item["text"])).replace("\n", "\n    ")
        made.append(f"{names}\n:   {said}")
    return "\n\n".join(made)


def _prose(text: str) -> str:
    """Paragraphs, with the examples and the formulas between them in fences."""
    text, out, at = text.strip("\n"), "", 0
    fenced = [(m, "pycon") for m in PROMPTS.finditer(text)]
    fenced += [(m, "text") for m in INDENTED.finditer(text)]
    for match, lang in sorted(fenced, key=lambda pair: pair[0].start()):
        if match.start() < at:
            continue  # what an example shows may be indented
        block = textwrap.dedent(match[0]).strip("\n")
        out += f"{_escaped(text[at : match.start()]).rstrip()}\n\n```{lang}\n{block}\n```\n"
        at = match.end()
    return (out + _escaped(text[at:])).strip("\n")


def _escaped(text: str) -> str:
    """Words that Markdown shows as they are, code between backticks apart."""
    parts = CODE.split(text)
    return "".join(p if i % 2 else MARKUP.sub(r"\\\g<0>", p) for i, p in enumerate(parts))


class Docstrings(griffe.Extension):
    """Hands mkdocstrings each docstring as Markdown, under its signature."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        if isinstance(obj, (griffe.Function, griffe.Class)):
            obj.docstring.value = described(obj.source)
        else:
            obj.docstring.value = as_markdown(obj.docstring.value)
