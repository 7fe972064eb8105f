"""Kernel modules with what they depend on, in the order in which they can be inserted.

A package's modules come without modules.dep: depmod writes it when the package is installed.  But each module
says in its section .modinfo what it needs, and that is enough.

Source: ELF-64; Linux, include/linux/module.h (MODULE_INFO, MODULE_SOFTDEP).
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cbit.spec.errors import CbitError

_ELF: Final = b"\x7fELF\x02\x01"  # 64-bit, little-endian
_HEADER: Final = struct.Struct("<16x 2H I 3Q I 6H")
_SECTION: Final = struct.Struct("<2I 4Q 2I 2Q")
_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
_UNPACK_SECONDS: Final = 30


class NoModule(CbitError):
    """A kernel module is not there, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Module:
    """One module.

    Attributes:
        name: as the kernel says it, with underscores.
        data: the ELF file, uncompressed.
        needs: modules that must be inserted before.
    """

    name: str
    data: bytes
    needs: tuple[str, ...]


class ModuleFolder:
    """The modules of one kernel: a folder /lib/modules/RELEASE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {_name(path): path for path in sorted(folder.rglob("*.ko*"))}
        builtin = folder / "modules.builtin"
        lines = builtin.read_text(encoding="utf-8").split() if builtin.is_file() else []
        self._builtin = {_name(Path(line)) for line in lines}

    def in_order(self, *wanted: str) -> list[Module]:
        """Read the modules wanted and all that they need; each stands behind what it needs.

        What is built into the kernel is left out.

        Raises:
            NoModule: one is neither there nor built in, or cannot be read.
        """
        found: dict[str, Module] = {}
        for name in wanted:
            self._gather(name.replace("-", "_"), found, ())
        return list(found.values())

    def _gather(self, name: str, found: dict[str, Module], way: tuple[str, ...]) -> None:
        if name in found or name in self._builtin:
            return
        if name in way:
            raise NoModule(f"kernel modules need each other: {' → '.join((*way, name))}")
        path = self._files.get(name)
        if path is None:
            needed = f", which {way[-1]} needs" if way else ""
            raise NoModule(f"no kernel module {name}{needed} in {self.folder}, and it is not built in")
        data = _read(path)
        needs = tuple(_needs(data, path))
        for other in needs:
            self._gather(other, found, (*way, name))
        found[name] = Module(name, data, needs)


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    if not path.name.endswith(_SUFFIXES):
        raise NoModule(f"{path.name}: modules are read as they are, or packed with xz, gzip or zstd")
    try:
        data = path.read_bytes()
        if path.name.endswith(".xz"):
            return lzma.decompress(data)
        if path.name.endswith(".zst"):
            return _unzstd(path)
        return gzip.decompress(data) if path.name.endswith(".gz") else data
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise NoModule(f"{path.name}: {error}") from error


def _unzstd(path: Path) -> bytes:
    """Unpack with the program zstd: Python has a module for it from 3.14 on only."""
    program = shutil.which("zstd")
    if program is None:
        raise NoModule(f"{path.name} is packed with zstd: install the program zstd")
    words = [program, "--decompress", "--stdout", "--quiet", str(path)]
    try:
        ended = subprocess.run(words, capture_output=True, timeout=_UNPACK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoModule(f"{path.name}: zstd does not come to an end") from None
    if ended.returncode:
        raise NoModule(f"{path.name}: {ended.stderr.decode(errors='replace').strip()}")
    return ended.stdout


def _needs(data: bytes, path: Path) -> Iterator[str]:
    """Give what a module names as its dependencies, soft ones first."""
    try:
        info = modinfo(data)
    except (ValueError, struct.error) as error:
        raise NoModule(f"{path.name} is no kernel module: {error}") from error
    for soft in info.get("softdep", []):
        words = iter(soft.replace("pre:", "pre: ").replace("post:", "post: ").split())
        before = False
        for word in words:
            if word in {"pre:", "post:"}:
                before = word == "pre:"
            elif before:
                yield word.replace("-", "_")
    for line in info.get("depends", []):
        yield from (name.replace("-", "_") for name in line.split(",") if name)


def modinfo(data: bytes) -> dict[str, list[str]]:
    """Read the section .modinfo: every key with its values.

    Raises:
        ValueError: no 64-bit ELF file, or one without the section.
        struct.error: a truncated one.
    """
    if data[:6] != _ELF:
        raise ValueError("not a 64-bit ELF file")
    *_, sections_at, _, _, _, _, size, count, names = _HEADER.unpack_from(data)
    if sections_at + size * count > len(data):
        raise ValueError("its section table is cut off")
    table = [_SECTION.unpack_from(data, sections_at + size * i) for i in range(count)]
    if names >= count:
        raise ValueError("its section names are nowhere")
    strings_at = table[names][4]
    for name, _, _, _, at, length, *_ in table:
        if data.startswith(b".modinfo\x00", strings_at + name):
            if at + length > len(data):
                raise ValueError("its section .modinfo is cut off")
            found: dict[str, list[str]] = {}
            for line in data[at : at + length].decode(errors="replace").split("\x00"):
                key, equals, value = line.partition("=")
                if equals:
                    found.setdefault(key, []).append(value)
            return found
    raise ValueError("it has no section .modinfo")
