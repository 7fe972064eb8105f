"""Sources are compiled once, into a cache; what cannot be compiled says why and leaves nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cbit.compiler import NoCompiler, cache_folder, compiled, has_compiler

FLAGS = ["-c"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "answer.c"
    file.write_text("int answer(void) { return 42; }\n")
    return file


def test_what_is_compiled_once_is_used_again(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    first = compiled([source], FLAGS, name="answer", suffix=".o", folder=folder)
    stamp = first.stat().st_mtime_ns
    assert first == compiled([source], FLAGS, name="answer", suffix=".o", folder=folder)
    assert stamp == first.stat().st_mtime_ns
    assert [first] == list(folder.iterdir())
    assert b"\x7fELF" == first.read_bytes()[:4] or sys.platform != "linux"


def test_another_source_another_header_and_other_flags_are_compiled_anew(
    tmp_path: Path, source: Path
) -> None:
    header, folder = tmp_path / "answer.h", tmp_path / "cache"
    header.write_text("")
    results = {compiled([source], FLAGS, name="answer", included=[header], folder=folder)}
    header.write_text("/* changed */\n")
    results.add(compiled([source], FLAGS, name="answer", included=[header], folder=folder))
    results.add(compiled([source], [*FLAGS, "-O1"], name="answer", included=[header], folder=folder))
    source.write_text("int answer(void) { return 43; }\n")
    results.add(compiled([source], FLAGS, name="answer", included=[header], folder=folder))
    assert 4 == len(results) == len(list(folder.iterdir()))


def test_the_cache_is_inside_the_virtual_environment() -> None:
    if sys.prefix == sys.base_prefix:
        pytest.skip("not in a virtual environment")
    assert cache_folder().is_relative_to(sys.prefix)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_virtual_environment_of_somebody_else_leaves_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "venv"
    theirs.mkdir(mode=0o500)
    monkeypatch.setattr(sys, "prefix", str(theirs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    assert tmp_path / "ours" / "cbit" == cache_folder()
    theirs.chmod(0o700)
    assert theirs / "var" / "cbit" == cache_folder()


def test_a_missing_compiler_is_named_with_what_to_install(tmp_path: Path, source: Path) -> None:
    with pytest.raises(NoCompiler, match=r"no C compiler: no-such-cc is not there.*package gcc"):
        compiled([source], FLAGS, name="answer", folder=tmp_path / "cache", compiler="no-such-cc")
    assert not (tmp_path / "cache").exists()


def test_the_environments_compiler_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_compiler()
    monkeypatch.setenv("CC", "no-such-cc -m64")
    assert not has_compiler()


def test_a_compiler_that_refuses_is_quoted_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    source.write_text("no C at all\n")
    with pytest.raises(NoCompiler, match=r"cannot compile .*answer\.c:\n(.|\n)*error"):
        compiled([source], FLAGS, name="answer", folder=tmp_path / "cache")
    assert [] == list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "cache").write_text("a file\n")
    with pytest.raises(NoCompiler, match=r"cannot keep what is compiled in .*cache/inside: Not a directory"):
        compiled([source], FLAGS, name="answer", folder=tmp_path / "cache" / "inside")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o500)
    with pytest.raises(NoCompiler, match=r"cannot keep what is compiled in .*: Permission denied"):
        compiled([source], FLAGS, name="answer", folder=folder)
