"""The unicorn library as it lies in this process: its functions, its memory, its relocations.

Nothing here changes anything; `interpose` does.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cbit.cpu.engine.errors import LayoutError, NoEngine

SUPPORTED: Final = ("2.1.1", "2.1.2", "2.1.3", "2.1.4")
REQUIREMENT: Final = f">={SUPPORTED[0]},<={SUPPORTED[-1]}"  #: of the package, as pip reads it
SUFFIX: Final = "_x86_64"  # of every internal function of the x86-64 half of the library
_PT_DYNAMIC: Final = 2
_R_64, _R_GLOB_DAT, _R_JUMP_SLOT = 1, 6, 7
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_POINTERS: Final = (_DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_JMPREL)


def check_platform() -> None:
    """Refuse a computer that cannot execute guests.

    Raises:
        NoEngine: with one sentence.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        raise NoEngine(
            f"guests execute on Linux for x86-64 only: this is {platform.system()} on {platform.machine()}"
        )


class _Range(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def peek(address: int, length: int) -> bytes:
    """Read this process's memory; an address that is not mapped gives fewer bytes, not a crash.

    Not by /proc/self/mem: in a process that must not be dumped that file is root's.
    """
    read = ctypes.CDLL(None, use_errno=True).process_vm_readv
    read.restype = ctypes.c_ssize_t
    ranges, count = ctypes.POINTER(_Range), ctypes.c_ulong
    read.argtypes = [ctypes.c_int, ranges, count, ranges, count, ctypes.c_ulong]
    room = ctypes.create_string_buffer(length)
    there = _Range(address, length)
    here = _Range(ctypes.addressof(room), length)
    got = read(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return room.raw[: max(got, 0)]


class Library:
    """One loaded libunicorn.

    Attributes:
        version: the wheel's.
        package: the Python package, which declares hardly any types.
        dll: for calls through the public interface.
    """

    def __init__(self, path: str, base: int, *, package: Any, version: str) -> None:
        self.version: Final = version
        self.package: Final = package
        self.dll: Final = ctypes.CDLL(path)
        self._base = base

    def address(self, name: str) -> int:
        """Address of an exported function.

        Raises:
            LayoutError: the library does not export it.
        """
        try:
            function = getattr(self.dll, name)
        except AttributeError:
            raise LayoutError(name, "this library does not export it") from None
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    def internal(self, name: str) -> int:
        """Address of an internal function of the x86-64 half (errors as `address`)."""
        return self.address(name + SUFFIX)

    def calls(self, name: str) -> bool:
        """Whether the x86-64 half has an internal function and calls it through its relocations."""
        return bool(self.slots.get(name + SUFFIX))

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return an internal function as a Python callable (errors as `address`)."""
        return ctypes.CFUNCTYPE(result, *arguments)(self.internal(name))

    @functools.cached_property
    def slots(self) -> Mapping[str, tuple[int, ...]]:
        """By symbol, the words in memory through which the library itself uses it.

        All internal calls go through these words: the library is not linked with -Bsymbolic.
        """
        dynamic = dict(self._dynamic())
        table = {
            tag: value if value >= self._base else self._base + value
            for tag, value in dynamic.items()
            if tag in _POINTERS
        }
        relocations = peek(table[_DT_RELA], dynamic[_DT_RELASZ])
        relocations += peek(table[_DT_JMPREL], dynamic[_DT_PLTRELSZ])
        found: dict[int, list[int]] = {}
        for offset, info, _addend in struct.iter_unpack("<QQq", relocations):
            if info & 0xFFFF_FFFF in (_R_64, _R_GLOB_DAT, _R_JUMP_SLOT):
                found.setdefault(info >> 32, []).append(self._base + offset)
        return MappingProxyType(
            {self._symbol(table, index): tuple(words) for index, words in found.items() if index}
        )

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        header = peek(self._base, 64)
        (start,) = struct.unpack_from("<Q", header, 32)
        (count,) = struct.unpack_from("<H", header, 56)
        for index in range(count):
            kind, _flags, _offset, address = struct.unpack("<IIQQ", peek(self._base + start + 56 * index, 24))
            if kind == _PT_DYNAMIC:
                at = self._base + address
                while (entry := struct.unpack("<QQ", peek(at, 16)))[0]:
                    yield entry
                    at += 16

    @staticmethod
    def _symbol(table: Mapping[int, int], index: int) -> str:
        (name,) = struct.unpack("<I", peek(table[_DT_SYMTAB] + 24 * index, 4))
        return peek(table[_DT_STRTAB] + name, 128).split(b"\0")[0].decode()


@functools.cache
def library() -> Library:
    """Load libunicorn.

    Raises:
        NoEngine: wrong platform, or the package is not installed.
        LayoutError: the package is there and its library is not where the loader says.
    """
    check_platform()
    try:
        import unicorn.x86_const  # noqa: PLC0415  # everything but execution must work without it
    except ImportError as error:
        wanted = f"pip install 'unicorn{REQUIREMENT}'"
        raise NoEngine(f"guests need the package unicorn ({error}): {wanted}") from None
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = [line.split() for line in maps if "libunicorn" in line]
    if not mapped:
        raise LayoutError("library", "the loader has not mapped it")
    base = min(int(line[0].split("-")[0], 16) for line in mapped)
    version = checked_version(_version(unicorn))
    return Library(mapped[0][-1], base, package=unicorn, version=version)


def _version(package: Any) -> str:
    try:
        return metadata.version("unicorn")  # the wheel 2.1.1 calls itself 2.1.0; its metadata do not
    except metadata.PackageNotFoundError:
        return str(package.__version__)


def checked_version(version: str) -> str:
    """Refuse a version that was never tried: what lies where may be provable, what it does is not.

    Raises:
        LayoutError: outside `SUPPORTED`.
    """
    if version not in SUPPORTED:
        raise LayoutError("version", f"this is {version}")
    return version
