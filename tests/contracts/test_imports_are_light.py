"""Importing does no work, and the owner's half needs ``cryptography`` alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import cbit

PARENT = Path(cbit.__file__).parents[1]
OWNERS_HALF = {"owner", "spec", "crypto"}

#: Makes every import of the names in `shut` fail, as on a computer that does not have them.
SHUT = """
import importlib.abc, sys
class Shut(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in shut):
            raise ModuleNotFoundError(f"{name} is not on this computer", name=name)
sys.meta_path.insert(0, Shut())
"""

IMPORT_ALL = """
import importlib, pkgutil
def import_all(name):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def python(program: str, folder: Path) -> str:
    """Run a program in a fresh interpreter and an empty folder; return what it prints.

    It sees the path to cbit and nothing else of this environment, must end well, and must not complain.
    """
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(PARENT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (ended.returncode, ended.stderr), ended.stderr
    return ended.stdout


def present(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def skip_without(name: str) -> None:
    if not present(name):
        pytest.skip(f"{name} is not there yet")


def rooms() -> list[str]:
    return sorted(path.stem for path in Path(cbit.__file__).parent.iterdir() if not path.name.startswith("_"))


def shut_for_the_owner(*, but: set[str]) -> str:
    names = [
        "numpy",
        "rich",
        "unicorn",
        *(f"cbit.{room}" for room in rooms() if room not in OWNERS_HALF | but),
    ]
    return f"shut = {names!r}\n{SHUT}"


def test_the_owners_half_imports_with_cryptography_alone(tmp_path: Path) -> None:
    skip_without("cbit.owner")
    assert "" == python(shut_for_the_owner(but=set()) + IMPORT_ALL + 'import_all("cbit.owner")\n', tmp_path)


@pytest.mark.parametrize("command", [[], ["verify"], ["session"], ["measure"], ["secret"]])
def test_the_owners_commands_explain_themselves_with_cryptography_alone(
    command: list[str], tmp_path: Path
) -> None:
    skip_without("cbit.cli")
    call = f"sys.argv[1:] = {['owner', *command, '--help']!r}\nsys.exit(main())\n"
    printed = python(shut_for_the_owner(but={"cli"}) + "from cbit.cli import main\n" + call, tmp_path)
    assert "usage" in printed.lower()


@pytest.mark.parametrize("name", ["cbit", "cbit.cli"])
def test_the_door_is_light(name: str, tmp_path: Path) -> None:
    # `cbit --help` does not wait for what a sub-command needs.
    skip_without(name)
    loaded = set(python(f"import sys, {name}\nprint(*sys.modules)\n", tmp_path).split())
    assert set() == loaded & {"asyncio", "cryptography", "numpy", "rich", "unicorn"}
    rooms_loaded = {module.split(".")[1] for module in loaded if module.startswith("cbit.")}
    assert set() == rooms_loaded - {"cli", "spec", "trace"}


def test_importing_every_module_does_nothing_to_be_seen(tmp_path: Path) -> None:
    alone = "import threading\nassert threading.active_count() == 1, threading.enumerate()\n"
    assert "" == python(IMPORT_ALL + 'import_all("cbit")\n' + alone, tmp_path)
    assert [] == list(tmp_path.iterdir())
