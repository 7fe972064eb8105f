"""The stubs are compiled from readable source, once, and a missing compiler is named."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cbit.cpu.engine.build import NATIVE, compiled_stubs, sources
from cbit.cpu.engine.errors import LayoutError, NoEngine
from cbit.cpu.engine.interpose import REPLACED
from cbit.cpu.engine.library import check_platform, checked_version, library


def test_a_missing_compiler_is_named_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(NoEngine, match=r"no C compiler: no-such-cc is not there.*package gcc"):
        compiled_stubs(tmp_path, compiler="no-such-cc")
    assert [] == list(tmp_path.iterdir())


def test_make_can_build_it_and_hears_where_it_is() -> None:
    command = [sys.executable, "-m", "cbit.cpu.engine.build"]
    environment = os.environ | {"PYTHONPATH": str(NATIVE.parents[3])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(ended.stdout.strip()).is_file()


def test_every_replaced_function_says_why() -> None:
    source = "\n".join(path.read_text() for path in sources() if path.suffix == ".c")
    stubs = re.findall(r"^\w+ (stub_\w+)\(", source, re.MULTILINE)
    reasons = re.findall(r"/\* Why(?:(?!\*/).)*\*/\n\w+ (stub_\w+)\(", source, re.DOTALL)
    assert {*REPLACED.values()} == {*stubs}
    assert stubs == reasons


@pytest.mark.parametrize(
    ("system", "machine"), [("darwin", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")]
)
def test_another_platform_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(NoEngine, match="guests execute on Linux for x86-64 only"):
        check_platform()


@pytest.mark.parametrize("version", ["2.0.1", "2.1.0", "2.1.5", "3.0.0"])
def test_a_wheel_that_was_never_tried_is_refused(version: str) -> None:
    with pytest.raises(LayoutError, match=f"version: this is {version}; supported are the wheels 2.1.1 to"):
        checked_version(version)


def test_a_function_that_is_not_exported_is_named() -> None:
    with pytest.raises(LayoutError, match="no_such_function_x86_64: this library does not export it"):
        library().internal("no_such_function")
