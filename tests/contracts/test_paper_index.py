"""Code says which section of the dossier it implements, the section exists, and a test names the code."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.name for path in (ROOT / "src/cbit").iterdir() if (path / "__init__.py").is_file())

#: Modules of the rooms that are made from the dossier, and yet cite nothing.
OUR_OWN = {
    "cbit.crypto.entropy": "randomness as an argument is our own idea",
    "cbit.crypto.key": "as is a key that does not print itself",
    "cbit.secure_processor.call": "what a handler is given is our own arrangement",
    "cbit.secure_processor.image": "AMD does not publish the format of its boot images: this one is ours",
    "cbit.secure_processor.refusal": "a status with its reason; the statuses are in cbit.spec.status",
    "cbit.spec.acpi.aml": "ACPI's own specification",
    "cbit.spec.acpi.board": "where our board's devices answer",
    "cbit.spec.acpi.tables": "as the language of its tables",
    "cbit.spec.errors": "our classes of errors",
    "cbit.spec.frozen": "values that load at once are our own machinery",
    "cbit.spec.linux_boot.boot_params": "Linux documents its boot protocol itself",
    "cbit.spec.linux_boot.command_line": "which options this machine gives to Linux is its own matter",
    "cbit.spec.linux_boot.entry": "as the boot protocol",
    "cbit.spec.linux_boot.kernel_image": "as the boot protocol",
    "cbit.spec.linux_boot.newc": "as the boot protocol",
    "cbit.spec.wire": "the machinery of declarations",
    "cbit.spec.wire_codec": "the same, compiled",
}


@pytest.fixture(scope="module")
def index() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs/_ext")
        yield importlib.import_module("paper_index")


@pytest.mark.parametrize(
    ("paper", "expected"),
    [
        ("sev-crypto.md §3.", ["sev-crypto.md §3"]),
        ("sev-crypto.md §2.3 (keys), §2.4.", ["sev-crypto.md §2.3", "sev-crypto.md §2.4"]),
        ("sev-api.md §5–§7", ["sev-api.md §5", "sev-api.md §6", "sev-api.md §7"]),
        ("sev-api.md §8-10", ["sev-api.md §8", "sev-api.md §9", "sev-api.md §10"]),
        ("memory-encryption.md §6.1–6.3", [f"memory-encryption.md §6.{n}" for n in (1, 2, 3)]),
        ("sev-api.md §3 (a), §4; sev-crypto.md §8", ["sev-api.md §3", "sev-api.md §4", "sev-crypto.md §8"]),
        ("attacks.md, and sev-api.md §1", ["attacks.md", "sev-api.md §1"]),
        ("APM vol. 2 §15.34", []),
    ],
)
def test_a_paper_line_is_read_as_a_reader_would(index: Any, paper: str, expected: list[str]) -> None:
    assert expected == [str(section) for section in index.citations(paper)]


def test_every_section_that_code_cites_exists(index: Any) -> None:
    wrong = {
        f"{symbol} cites {section}"
        for symbol, sections in index.cited().items()
        for section in sections
        if section not in index.dossier()
    }
    assert set() == wrong


def test_every_paper_line_cites_something(index: Any) -> None:
    assert set() == {str(symbol) for symbol, sections in index.cited().items() if not sections}


@pytest.mark.parametrize("room", ["crypto", "secure_processor", "spec"])
def test_what_is_made_from_the_dossier_says_so(index: Any, room: str) -> None:
    modules = {index.module_name(path) for path in (ROOT / "src/cbit" / room).rglob("[!_]*.py")}
    citing = {symbol.module for symbol in index.cited()}
    assert set() == modules - citing - set(OUR_OWN)
    assert set() == set(OUR_OWN) & citing, "no longer an exception"


@pytest.mark.parametrize("room", ROOMS)
def test_a_test_names_whatever_cites_the_dossier(index: Any, room: str) -> None:
    if not (ROOT / "tests" / room).is_dir():
        pytest.skip(f"there is no tests/{room} yet: nothing can name what {room} implements")
    mine = [symbol for symbol in index.cited() if symbol.module.split(".")[1] == room]
    assert [] == sorted(str(symbol) for symbol in mine if not index.tests_of(symbol))
