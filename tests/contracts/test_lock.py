"""The locked requirements are what pyproject.toml asks for, with hashes, and good for any machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PYPROJECT["dependency-groups"]
MACHINE = [
    *PYPROJECT["project"]["dependencies"],
    *PYPROJECT["project"]["optional-dependencies"]["machine"],
    *PYPROJECT["build-system"]["requires"],
    *GROUPS["build"],
]
WANTED = {
    "machine": MACHINE,
    "dev": [*MACHINE, *GROUPS["tests"], *GROUPS["lint"], *GROUPS["docs"]],
    "oracles": GROUPS["oracles"],
}


def text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text(name), re.MULTILINE))


@pytest.mark.parametrize("name", WANTED)
def test_every_requirement_is_pinned_to_a_version_it_allows(name: str) -> None:
    pinned = pins(name)
    for requirement in map(Requirement, WANTED[name]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


def test_the_developers_list_contains_the_machines() -> None:
    assert pins("machine").items() <= pins("dev").items()


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_holds_pins_and_hashes_and_nothing_else(name: str) -> None:
    # An option (an index, a folder of wheels) or a marker would make the list good for one machine only.
    lines = [line.strip() for line in text(name).splitlines() if not line.startswith("#")]
    odd = [
        line for line in lines if not re.fullmatch(r"[\w.-]+==\S+ \\|--hash=sha256:[0-9a-f]{64}( \\)?", line)
    ]
    assert [] == odd
