"""Other forms of a file: unpacked, packed, padded, cut.

What is unpacked is the owner's own file, and still bounded: an archive may claim any size.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib.util
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from cbit.spec.address import BLOCK, PAGE

LARGEST_UNPACKED: Final = 1 << 30
_FED: Final = 1 << 16  #: bytes of a packed file that are given to zlib at once
_STEP: Final = 1 << 22  #: bytes that are unpacked between two looks at the clock
LARGEST_PACKED: Final = 1 << 24  #: larger files are not packed anew: that takes longer than all the rest

_GZIP, _BZIP2, _XZ, _LZMA = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00\x00"
_ZSTD, _LZ4 = b"\x28\xb5\x2f\xfd", (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18")
_VOLUME: Final = b"_FVH"  # at 0x28 of a firmware volume, whose length stands at 0x20


Watch = Callable[[], None]


def unwatched() -> None:
    """Look at no clock."""


def other_forms(data: bytes, watch: Watch = unwatched) -> Iterator[tuple[str, bytes]]:
    """Give the forms in which a kernel or an initrd may have been loaded instead."""
    yield from decompressed(data, watch)
    yield from compressed(data, watch)
    for unit in (4, 512, PAGE):
        if len(data) % unit:
            yield f"padded with zeros to a multiple of {unit}", data + bytes(-len(data) % unit)
    stripped = data.rstrip(b"\x00")
    if stripped != data:
        yield "without the zeros at its end", stripped


def decompressed(data: bytes, watch: Watch = unwatched) -> Iterator[tuple[str, bytes]]:
    """Unpack a file, if it is packed in a way that this Python knows."""
    for magic, (name, unpack) in _UNPACK.items():
        if data.startswith(magic):
            with contextlib.suppress(OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, ImportError):
                yield f"decompressed ({name})", unpack(data, watch)


def not_decompressed(data: bytes) -> str | None:
    """Name the compression of a file that this Python cannot unpack."""
    if data.startswith(_LZ4):
        return "lz4"
    if data.startswith(_ZSTD) and importlib.util.find_spec("compression") is None:
        return "zstd"
    return None


def compressed(data: bytes, watch: Watch = unwatched) -> Iterator[tuple[str, bytes]]:
    """Pack a file as the usual programs do, without names and dates."""
    if len(data) > LARGEST_PACKED or any(data.startswith(magic) for magic in _UNPACK):
        return
    for level in (6, 9):
        watch()
        packed = gzip.compress(data, level, mtime=0)
        for extra, system in ((0, 3), (2 if level == 9 else 0, 3), (2 if level == 9 else 0, 255)):
            # The header's last two bytes say how hard it was tried, and on which system.
            yield f"compressed (gzip -{level})", packed[:8] + bytes((extra, system)) + packed[10:]
    if len(data) <= LARGEST_PACKED >> 3:
        for name, check in (("crc64", lzma.CHECK_CRC64), ("crc32", lzma.CHECK_CRC32)):
            watch()
            yield f"compressed (xz, {name})", lzma.compress(data, check=check)


def padded(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Give an image with padding added, or taken away, at either end."""
    for unit in (PAGE, 1 << 16, 1 << 20, 1 << (len(data) - 1).bit_length() if data else 1, 1 << 22):
        missing = -len(data) % unit
        for name, fill in (("zeros", b"\x00"), ("0xFF", b"\xff")):
            if missing and len(data) + missing <= 1 << 26:
                yield f"padded with {name} in front, to {len(data) + missing} bytes", fill * missing + data
                yield f"padded with {name} at its end, to {len(data) + missing} bytes", data + fill * missing
    for name, fill in (("zeros", b"\x00"), ("0xFF", b"\xff")):
        for unit in (BLOCK, PAGE, 1 << 16):
            kept = _whole(len(data.rstrip(fill)), unit)
            if 0 < kept < len(data):
                yield f"without the {name} at its end: {kept} bytes", data[:kept]
            kept = _whole(len(data.lstrip(fill)), unit)
            if 0 < kept < len(data):
                yield f"without the {name} in front: {kept} bytes", data[-kept:]


def first_volume(image: bytes) -> int:
    """Size of the firmware volume that an image begins with; 0 if it is not followed by anything."""
    if image[0x28:0x2C] != _VOLUME:
        return 0
    size = int.from_bytes(image[0x20:0x28], "little")
    return size if 0 < size < len(image) else 0


def _whole(size: int, unit: int) -> int:
    return size + -size % unit


def _gunzip(data: bytes, watch: Watch) -> bytes:
    out, at = bytearray(), 0
    while data.startswith(_GZIP, at):  # an initrd may be several members, with zeros between them
        engine = zlib.decompressobj(wbits=31)
        while not engine.eof:
            part = engine.unconsumed_tail
            if not part:
                part = data[at : at + _FED]
                at += len(part)
            _add(out, engine.decompress(part, _STEP), ended=not part, watch=watch)
        rest = data[at - len(engine.unused_data) :].lstrip(b"\x00")
        at = len(data) - len(rest)
    return bytes(out) + data[at:]


def _bounded(engine: Callable[[], Any]) -> Callable[[bytes, Watch], bytes]:
    def unpack(data: bytes, watch: Watch) -> bytes:
        stream, out, part = engine(), bytearray(), data
        while not stream.eof:
            _add(out, stream.decompress(part, _STEP), ended=not part, watch=watch)
            part = b""  # the stream keeps what it was given
        return bytes(out)

    return unpack


def _add(out: bytearray, piece: bytes, *, ended: bool, watch: Watch) -> None:
    """Take a piece of what is unpacked, and look at the clock.

    Raises:
        EOFError: the file ends within its stream, or it is too large.
    """
    watch()
    out += piece
    if len(out) > LARGEST_UNPACKED or (ended and not piece):
        raise EOFError("truncated, or too large")


def _zstd() -> Any:
    return importlib.import_module("compression.zstd").ZstdDecompressor()  # Python 3.14 has it


_UNPACK: Final[Mapping[bytes, tuple[str, Callable[[bytes, Watch], bytes]]]] = {
    _GZIP: ("gzip", _gunzip),
    _BZIP2: ("bzip2", _bounded(bz2.BZ2Decompressor)),
    _XZ: ("xz", _bounded(lzma.LZMADecompressor)),
    _LZMA: ("lzma", _bounded(lzma.LZMADecompressor)),
    _ZSTD: ("zstd", _bounded(_zstd)),
}
