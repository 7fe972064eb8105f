"""Where the library keeps things is proven, field by field, or refused by name."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from cbit.cpu.engine import layout as module
from cbit.cpu.engine.errors import LayoutError, NoEngine
from cbit.cpu.engine.layout import Layout, Scratch, find_all, layout, one
from cbit.cpu.engine.library import REQUIREMENT, SUPPORTED, library, peek

ON_EVERY_WHEEL = (
    *("memory_rules", "exits", "stale_code", "determinism", "strings"),
    *("safety", "layout", "eviction", "least_cache", "overflush"),
)


def test_what_pip_is_asked_for_is_what_is_supported() -> None:
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = (each for each in project["optional-dependencies"]["machine"] if each.startswith("unicorn"))
    assert f"unicorn{REQUIREMENT}" == wanted
    allowed = SpecifierSet(REQUIREMENT)
    assert all(version in allowed for version in SUPPORTED)
    assert not any(version in allowed for version in ("2.1.0", "2.1.5", "2.2.0", "3.0.0"))
    locked = (root / "requirements" / "machine.txt").read_text(encoding="utf-8")
    assert any(f"unicorn=={version} " in locked for version in SUPPORTED)


def test_without_the_package_the_hint_names_the_supported_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    monkeypatch.setitem(sys.modules, "unicorn.x86_const", None)
    library.cache_clear()
    with pytest.raises(NoEngine, match=re.escape("pip install 'unicorn>=2.1.1,<=2.1.4'")):
        library()
    monkeypatch.undo()
    library.cache_clear()


def test_everything_is_found_and_lies_in_the_cpu_object() -> None:
    layout.cache_clear()
    found = layout()
    size = found.env + Scratch(library()).env_size
    assert all(0 <= getattr(found, field.name) < size for field in fields(Layout))


def test_a_second_derivation_gives_the_same() -> None:
    first = layout()
    layout.cache_clear()
    assert first == layout()


def test_an_engine_in_a_larger_block_of_the_heap_is_laid_out_the_same_and_knows_its_own_size() -> None:
    """In a process of its own, whose heap nobody else has shaped."""
    here = Path(__file__).with_name("larger_block.py")
    ended = subprocess.run([sys.executable, here], capture_output=True, text=True, check=False)
    assert (0, "16 bytes more\n") == (ended.returncode, ended.stdout), ended.stderr


@pytest.mark.parametrize(("candidates", "count"), [([], 0), ([8, 16], 2)])
def test_none_or_a_choice_is_refused_with_the_fields_name(candidates: list[int], count: int) -> None:
    with pytest.raises(LayoutError, match=f"unicorn's hflags: {count} candidates instead of one") as raised:
        one("hflags", candidates)
    assert "hflags" == raised.value.field


def test_only_aligned_matches_count() -> None:
    hay = struct.pack("<QQQ", 1, 2, 1)
    assert [0, 16] == find_all(hay, struct.pack("<Q", 1), 8)
    assert [16] == find_all(b"\0" + hay[1:], struct.pack("<Q", 1), 8)
    assert [] == find_all(b"\0\0" + hay, struct.pack("<Q", 1), 16)


def test_a_field_that_cannot_be_proven_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    layout.cache_clear()
    real, looks = peek, []

    def altered(at: int, length: int) -> bytes:
        """Code is looked at twice, 64 bytes each: cpu_vmexit, and the reader of no_exit_request."""
        looks.append(length)
        return b"\x90" * 64 if length == 64 and looks.count(64) == 2 else real(at, length)

    monkeypatch.setattr(module, "peek", altered)
    with pytest.raises(LayoutError, match="no_exit_request: its reader begins with no comparison"):
        layout()
    monkeypatch.undo()
    assert layout().hflags


def test_an_address_that_is_not_mapped_gives_nothing() -> None:
    assert b"" == peek(0x10, 8)


def test_the_library_calls_itself_through_its_relocations() -> None:
    slots = library().slots
    for name in ("tlb_flush_x86_64", "cpu_vmexit_x86_64", "abort"):
        assert slots[name]
        assert all(8 == len(peek(slot, 8)) for slot in slots[name])


@pytest.mark.slow
@pytest.mark.parametrize("version", SUPPORTED)
def test_every_supported_wheel_runs_the_rules_of_memory(version: str, tmp_path: Path) -> None:
    """Installs the wheel beside the environment; skips aloud without a network."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
    installed = subprocess.run(
        [*pip, "install", "--no-deps", "--target", tmp_path, f"unicorn=={version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"the wheel {version} cannot be had: {installed.stderr.strip().splitlines()[-1]}")
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(tmp_path), str(root / "src"), str(root / "tests")])
    here = Path(__file__).parent
    tests = [here / f"test_{name}.py" for name in ON_EVERY_WHEEL]
    check = f"""
from cbit.cpu.engine.library import library
assert library().version == {version!r}, library().version
import pytest, sys
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not slow", *{[str(test) for test in tests]!r}]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", check],
        cwd=root,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == ended.returncode, ended.stdout + ended.stderr
