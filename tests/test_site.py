"""The site: all pages are in it, their links work there and on GitHub, and the reference holds what is public."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import biggan_hf


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
# The parts of the project that `make docs` copies.
PUBLISHED = (ROOT / "Makefile").read_text(encoding="utf-8").partition("SITE := ")[2].splitlines()[0].split()
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
CONVERSION = (ROOT / "docs" / "reference-conversion.md").read_text(encoding="utf-8")


def pages(nav: list[Any]) -> Iterator[str]:
    for item in nav:
        if isinstance(item, str):
            yield item
        else:
            yield from pages([page for part in item.values() for page in (part if isinstance(part, list) else [part])])


PAGES = list(pages(PROJECT["nav"]))


def test_every_page_is_in_the_navigation() -> None:
    there = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("conversion/*.md"),
        *ROOT.glob("examples/*.md"),
    ]
    assert sorted(PAGES) == sorted(path.relative_to(ROOT).as_posix() for path in there)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    # zensical looks after links to pages and to their headings, and not after those to pictures and to other files.
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        link = "".join(target).partition("#")[0]
        if not link or re.match(r"https?:|hf:", link):
            continue
        file = (ROOT / page).parent.joinpath(link).resolve()
        assert file.is_file(), f"{page} links to {link}, which is no file"
        top = file.relative_to(ROOT).parts[0]
        assert any(fnmatch(top, part) for part in PUBLISHED), f"{page} links to {link}, which is not in the site"


def test_every_public_name_is_in_the_reference() -> None:
    assert {name for name in biggan_hf.__all__ if f"\n::: biggan_hf.{name}\n" not in REFERENCE} == set()


def public_functions() -> Iterator[tuple[str, Any]]:
    """What the reference shows: functions, classes, and their methods."""
    for path, chosen in re.findall(r"^::: (\S+)\n(?:(?: +.*\n)*? +members: \[(.*)\])?", REFERENCE, re.MULTILINE):
        module, _, name = path.rpartition(".")
        thing = getattr(import_module(module), name)
        yield name, thing
        members = (
            chosen.split(", ") if chosen else [n for n in vars(thing) if n == "__call__" or not n.startswith("_")]
        )
        for member in members if inspect.isclass(thing) else []:
            method = inspect.getattr_static(thing, member)
            yield f"{name}.{member}", method.fget if isinstance(method, property) else getattr(thing, member)


@pytest.mark.parametrize(("name", "function"), [*public_functions()])
def test_docstrings_tell_of_every_argument(name: str, function: Any) -> None:
    text = inspect.getdoc(function)
    assert text
    parameters = {} if inspect.isclass(function) else inspect.signature(function).parameters
    told = re.findall(r"^    \*{0,2}(\w+): ", text.partition("Args:\n")[2], re.MULTILINE)
    assert parameters.keys() - {"self", "cls"} <= set(told)


# conversion/


def test_every_module_of_conversion_is_in_the_reference() -> None:
    modules = {path.stem for path in (ROOT / "conversion").glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"\n::: biggan_hf.conversion.{name}\n" not in CONVERSION} == set()


def undocumented(parent: ast.Module | ast.ClassDef, place: str) -> Iterator[str]:
    """Public functions and classes without a docstring."""
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name = f"{place}.{node.name}"
            yield from [] if ast.get_docstring(node) else [name]
            yield from undocumented(node, name) if isinstance(node, ast.ClassDef) else []


def test_public_functions_of_conversion_have_docstrings() -> None:
    modules = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "conversion").glob("*.py")}
    assert [name for stem, module in modules.items() for name in undocumented(module, stem)] == []
