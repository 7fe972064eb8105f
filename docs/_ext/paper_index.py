"""Which symbol implements which section of the dossier, and which tests touch the symbol.

A docstring names its sections on a ``Paper:`` line: "Paper: sev-api.md §2.1 (dispatch rules), §5–§7."
Code and tests are read, not run.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from prose import table

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "src" / "cbit"
TESTS: Final = ROOT / "tests"

_TOKEN: Final = re.compile(r"([a-z][a-z-]*\.md)|§(\d+(?:\.\d+)*)(?:\s*[–-]\s*§?(\d+(?:\.\d+)*))?")
_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, order=True)
class Section:
    """One section of the dossier; number () is the whole file."""

    file: str
    number: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.file} §{'.'.join(map(str, self.number))}" if self.number else self.file


@dataclass(frozen=True, order=True)
class Symbol:
    """A module, class or function of the package; name is "" for the module itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@cache
def dossier() -> Mapping[Section, str]:
    """Every section that exists, with its title."""
    files = tomllib.loads((Path(__file__).parent / "dossier.toml").read_text(encoding="utf-8"))
    sections = {
        Section(file, _number(n)): title for file, titles in files.items() for n, title in titles.items()
    }
    return sections | {Section(file, ()): "" for file in files}


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def citations(paper: str) -> list[Section]:
    """Read the sections on one ``Paper:`` line; what is not a file of the dossier is passed over."""
    sections: list[Section] = []
    file = ""
    for match in _TOKEN.finditer(paper):
        if match[1]:
            file = match[1]
            if not _followed_by_section(paper, match.end()):
                sections.append(Section(file, ()))
        elif file:
            first, last = _number(match[2]), _number(match[3] or match[2])
            ends = range(first[-1], last[-1] + 1) if len(first) == len(last) else ()
            sections += [Section(file, (*first[:-1], n)) for n in ends] or [
                Section(file, first),
                Section(file, last),
            ]
    return sections


def _followed_by_section(paper: str, at: int) -> bool:
    following = _TOKEN.search(paper, at)
    return following is not None and following[1] is None


@cache
def cited() -> Mapping[Symbol, tuple[Section, ...]]:
    """Every symbol with a ``Paper:`` line, and what it cites."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = module_name(path)
        for name, node in _definitions(ast.parse(path.read_text(encoding="utf-8")), ""):
            lines = [p for p in (ast.get_docstring(node) or "").split("\n\n") if p.startswith("Paper:")]
            if lines:
                found[Symbol(module, name)] = tuple(
                    dict.fromkeys(s for line in lines for s in citations(line))
                )
    return found


def module_name(path: Path) -> str:
    """Dotted name of a source file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _definitions(node: _Definition, prefix: str) -> Iterator[tuple[str, _Definition]]:
    yield prefix, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child, f"{prefix}.{child.name}".lstrip("."))


@cache
def touched() -> Mapping[Symbol, tuple[str, ...]]:
    """Every symbol that a test names, and the tests that do.

    A test touches a module by importing it or from it, a symbol by importing it or by naming it behind the
    module's name.
    """
    found: dict[Symbol, set[str]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        test = path.relative_to(ROOT).as_posix()
        for symbol in _touched_by(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(symbol, set()).add(test)
    return {symbol: tuple(sorted(tests)) for symbol, tests in found.items()}


def _touched_by(tree: ast.Module) -> Iterator[Symbol]:
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cbit":
            yield Symbol(str(node.module), "")
            for name in node.names:
                yield Symbol(str(node.module), name.name)
                yield Symbol(f"{node.module}.{name.name}", "")
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            yield from (Symbol(name.name, "") for name in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            owner = aliases[node.value.id]
            yield Symbol(owner, node.attr)
            module, _, cls = owner.rpartition(".")
            yield Symbol(module, f"{cls}.{node.attr}")


@cache
def importers() -> Mapping[str, tuple[str, ...]]:
    """Every module, and the modules of the same room that import it; a package "imports" its modules."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = module_name(path)
        for symbol in _touched_by(ast.parse(path.read_text(encoding="utf-8"))):
            if not symbol.name and _room(symbol.module) == _room(module):
                found.setdefault(symbol.module, set()).add(module)
        found.setdefault(module.rpartition(".")[0], set()).add(module)
    return {module: tuple(sorted(names)) for module, names in found.items()}


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def tests_of(symbol: Symbol) -> tuple[str, ...]:
    """The tests that touch a symbol, else its class, its module, or what uses the module in its room."""
    name = symbol.name
    while name:
        if tests := touched().get(Symbol(symbol.module, name)):
            return tests
        name = name.rpartition(".")[0]
    seen, ring = {symbol.module}, [symbol.module]
    while ring:
        if tests := tuple(dict.fromkeys(t for module in ring for t in touched().get(Symbol(module, ""), ()))):
            return tests
        ring = sorted({user for module in ring for user in importers().get(module, ())} - seen)
        seen.update(ring)
    return ()


def page() -> str:
    """Tables of section, symbol and tests, one for each file of the dossier."""
    by_section: dict[Section, list[Symbol]] = {}
    for symbol, sections in cited().items():
        for section in sections:
            by_section.setdefault(section, []).append(symbol)
    blocks = []
    for file in dict.fromkeys(section.file for section in dossier()):
        rows = [
            _row(section, symbol)
            for section in sorted(s for s in by_section if s.file == file)
            for symbol in sorted(by_section[section])
        ]
        if rows:
            blocks += [f"## {file}", table(["section", "symbol", "tests"], rows)]
    return "\n\n".join(blocks)


def _row(section: Section, symbol: Symbol) -> list[str]:
    number = "§" + ".".join(map(str, section.number)) if section.number else "whole"
    title = dossier().get(section, "")
    shown = str(symbol).removeprefix("cbit.")
    tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in tests_of(symbol))
    return [f"{number} {title}".strip(), f"`{shown}`", tests]
