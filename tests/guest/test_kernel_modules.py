from __future__ import annotations

import contextlib
import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.guest.linux.kernel_modules import ModuleFolder, NoModule, modinfo
from guest.archives import a_module

RequireProgram = Callable[[str, str], list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kernel = tmp_path / "kernel"
    (kernel / "drivers").mkdir(parents=True)
    (kernel / "drivers/disk-a.ko").write_bytes(a_module("name=disk_a", "depends=bus,ring"))
    (kernel / "bus.ko").write_bytes(a_module("name=bus", "depends=ring"))
    (kernel / "ring.ko").write_bytes(a_module("name=ring", "depends="))
    (kernel / "mode.ko.xz").write_bytes(lzma.compress(a_module("depends=", "softdep=pre: ring post: bus")))
    (kernel / "packed.ko.gz").write_bytes(gzip.compress(a_module("depends=inside")))
    (tmp_path / "modules.builtin").write_text("kernel/fs/inside.ko\n")
    return tmp_path


def test_a_module_stands_behind_what_it_needs(folder: Path) -> None:
    names = [module.name for module in ModuleFolder(folder).in_order("disk-a")]
    assert ["ring", "bus", "disk_a"] == sorted(names, key=names.index)
    assert names.index("ring") < names.index("bus") < names.index("disk_a")


def test_nothing_is_inserted_twice_and_dashes_are_underscores(folder: Path) -> None:
    names = [module.name for module in ModuleFolder(folder).in_order("ring", "disk-a", "disk_a", "bus")]
    assert sorted(set(names)) == sorted(names)


def test_what_should_come_before_comes_before_and_what_comes_after_is_left_out(folder: Path) -> None:
    assert ["ring", "mode"] == [module.name for module in ModuleFolder(folder).in_order("mode")]


def test_what_is_built_in_is_not_looked_for(folder: Path) -> None:
    modules = ModuleFolder(folder).in_order("packed", "inside")
    assert ["packed"] == [module.name for module in modules]
    assert modules[0].data.startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("wants.ko", a_module("depends=nowhere"), "no kernel module nowhere, which wants needs"),
        ("circle.ko", a_module("depends=circle"), "need each other: circle → circle"),
        ("text.ko", b"not a module", "text.ko is no kernel module: not a 64-bit ELF"),
        ("short.ko", a_module("depends=")[:100], "short.ko is no kernel module"),
        ("none.ko", a_module("depends=").replace(b".modinfo", b".modinfa"), "no section .modinfo"),
        ("packed.ko.lz4", b"\x04\x22\x4d\x18", "packed with xz, gzip or zstd"),
        ("broken.ko.zst", b"\x28\xb5\x2f\xfd", "broken.ko.zst"),
        ("broken.ko.xz", b"\xfd7zXZ", "broken.ko.xz"),
        ("broken.ko.gz", b"\x1f\x8b", "broken.ko.gz"),
    ],
)
def test_a_module_that_cannot_be_had_is_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(NoModule, match=words):
        ModuleFolder(tmp_path).in_order(name.partition(".")[0])


@pytest.mark.oracle
def test_a_module_packed_with_zstd_is_read(require_program: RequireProgram, tmp_path: Path) -> None:
    zstd = require_program("zstd", "apt install zstd")
    (tmp_path / "packed.ko").write_bytes(a_module("depends="))
    subprocess.run([*zstd, "--quiet", "--rm", str(tmp_path / "packed.ko")], check=True)
    (module,) = ModuleFolder(tmp_path).in_order("packed")
    assert a_module("depends=") == module.data


def test_without_zstd_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packed.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoModule, match="install the program zstd"):
        ModuleFolder(tmp_path).in_order("packed")


def test_an_absent_module_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(NoModule, match=f"no kernel module absent in {folder}, and it is not built in"):
        ModuleFolder(folder).in_order("absent")


@given(st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef")), min_size=1))
def test_any_graph_is_ordered_or_refused(graph: dict[str, set[str]]) -> None:
    class Graph(ModuleFolder):
        def __init__(self) -> None:
            self.folder, self._builtin = Path(), set()
            self._files = {name: Path(f"{name}.ko") for name in graph}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "cbit.guest.linux.kernel_modules._read",
            lambda path: a_module(f"depends={','.join(sorted(graph[path.stem]))}"),
        )
        try:
            order = [module.name for module in Graph().in_order(*sorted(graph))]
        except NoModule:
            return
    assert sorted(graph) == sorted(order)
    assert all(order.index(need) < order.index(name) for name in order for need in graph[name])


@given(st.binary(max_size=300))
def test_any_bytes_behind_an_elf_header_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError, struct.error):
        assert isinstance(modinfo(a_module("depends=")[:40] + data), dict)
