"""``cbit capabilities``: what a program asks first, and what it may rely on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cbit import __version__
from cbit.cli import main
from cbit.compiler import place
from cbit.cpu.engine.build import FLAGS, NAME, SUFFIX, can_have_stubs, compiled_stubs, sources
from cbit.machine.profiles import PROFILES
from cbit.secure_processor.dispatch import COMMANDS
from engine_here import missing


def capabilities(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["capabilities", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    result: dict[str, Any] = found["result"]
    return result


def test_it_says_what_this_build_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    found = capabilities(capsys)
    assert found["version"] == __version__
    assert {"demo", "setup", "owner", "capabilities"} <= set(found["commands"])
    assert {"run", "memory", "attack"} <= set(found["commands"])
    assert found["executes_guests"] is (not missing())
    assert found["owner"] is True
    assert found["machine"] is True
    assert found["guest_modes"] == ([] if missing() else ["none", "sme", "sev"])
    assert [command.name for command in COMMANDS] == found["firmware_commands"]


@pytest.mark.skipif(bool(missing()), reason=str(missing()))
@pytest.mark.parametrize(
    ("compiler", "compiled_before"),
    [
        ("cc", False),
        ("cc", True),
        ("false", False),
        ("/no/such/compiler", False),
        ("/no/such/compiler", True),
    ],
)
def test_guests_execute_where_the_engine_is_compiled_or_can_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    compiled_before: bool,
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr("cbit.compiler.cache_folder", lambda: tmp_path)
    if compiled_before:
        place(sources(), FLAGS, name=NAME, suffix=SUFFIX).touch()
    before = list(tmp_path.iterdir())
    found, executes = capabilities(capsys), compiled_before or compiler == "cc"
    assert executes is found["executes_guests"]
    assert (["none", "sme", "sev"] if executes else []) == found["guest_modes"]
    assert before == list(tmp_path.iterdir())  # nothing is compiled for the question


@pytest.mark.skipif(bool(missing()), reason=str(missing()))
def test_the_file_that_is_asked_for_is_the_one_that_the_engine_takes() -> None:
    assert compiled_stubs() == place(sources(), FLAGS, name=NAME, suffix=SUFFIX)
    assert can_have_stubs()


def test_it_gives_the_profiles_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = capabilities(capsys)["profiles"]
    assert list(PROFILES) == list(profiles)
    assert profiles["naples"] == {
        "c_bit": 47,
        "physical_address_reduction": 5,
        "max_asid": 15,
        "min_sev_no_es_asid": 5,
        "api": "0.17",
        "build": 48,
        "modes": ["xe", "xex"],
    }


def test_without_numpy_the_owners_half_is_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "numpy" else find_spec(name, *rest)
    )
    found = capabilities(capsys)
    assert found["machine"] is False
    assert found["owner"] is True
    assert found["guest_modes"] == []
    assert found["profiles"] == {}
    assert found["firmware_commands"] == []


@pytest.mark.parametrize("words", [["demo"], ["setup", "--state", "machine"]], ids=["demo", "setup"])
@pytest.mark.parametrize("lacking", ["numpy", "rich", "fcntl", "resource"])
def test_the_machines_commands_say_what_they_lack(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    lacking: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, lacking, None)  # as if it were not installed
    assert main([*words, "--json"]) == 2
    (reason,) = json.loads(capsys.readouterr().out)["reasons"]
    assert f"the machine needs {lacking}: " in reason
    assert ("cbit[machine]" in reason) is (lacking in {"numpy", "rich"})
    assert ("a Unix system" in reason) is (lacking in {"fcntl", "resource"})
    assert list(tmp_path.iterdir()) == []


def test_a_person_reads_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capabilities"]) == 0
    out = capsys.readouterr().out
    assert "naples, rome, milan, genoa" in out
    assert len(out.splitlines()) == len(capabilities(capsys))
