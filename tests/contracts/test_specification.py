"""SPECIFICATION.md names a test for each promise; what it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from docblocks import blocks

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (?!promise |---)(?P<promise>.+?) \| (?P<tests>.+) \|$", re.MULTILINE)


def promises() -> list[tuple[str, list[str]]]:
    page = (ROOT / "SPECIFICATION.md").read_text(encoding="utf-8")
    return [(row["promise"], re.findall(r"`([^`]+)`", row["tests"])) for row in ROW.finditer(page)]


@cache
def defined_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))


def exists(name: str) -> bool:
    """Say whether a test, or a page whose examples are run, is there."""
    path, _, test = name.partition("::")
    if not test:
        page = ROOT / path
        return page.is_file() and bool(blocks(path, page.read_text(encoding="utf-8")))
    file = ROOT / "tests" / path
    return file.is_file() and test in defined_in(file)


@pytest.mark.parametrize(("promise", "tests"), promises())
def test_a_promise_names_tests_that_exist(promise: str, tests: list[str]) -> None:
    assert tests, "no test is named"
    assert [] == [name for name in tests if not exists(name)]


def test_tests_that_other_pages_name_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {
        name
        for page in pages
        if "_build" not in page.parts
        for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))
    }
    there = frozenset[str]().union(*(defined_in(file) for file in (ROOT / "tests").rglob("test_*.py")))
    assert named, "the page about plaintext names tests"
    assert set() == named - there


def test_no_row_of_a_table_stands_alone() -> None:
    page = (ROOT / "SPECIFICATION.md").read_text(encoding="utf-8")
    assert [] == re.findall(r"\|\n\n(\|.*)", page)


def test_promises_are_found_on_the_page() -> None:
    assert len(promises()) > 50
    assert len({promise for promise, _ in promises()}) == len(promises())


@pytest.mark.parametrize(
    "name",
    [
        "contracts/test_specification.py::test_that_is_not_there",
        "contracts/no_such_file.py::test_promises_are_found_on_the_page",
        "docs/no-such-page.md",
        "LICENSE",
    ],
)
def test_what_is_not_there_is_noticed(name: str) -> None:
    assert not exists(name)


@pytest.mark.parametrize(
    "name",
    [
        "contracts/test_specification.py::test_what_is_there_is_found",
        "docs/tutorial/first-encrypted-guest.md",
    ],
)
def test_what_is_there_is_found(name: str) -> None:
    assert exists(name)
