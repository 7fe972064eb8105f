"""The code inside a bzImage: what anybody can read who has the same distribution.

    setup | loader | payload: an ELF file, packed, its length behind it        the first segment is the code

Packed with gzip, xz, LZMA, bzip2 or LZ4: read here; with zstd: by the program of that name.

Source: Linux, Documentation/arch/x86/boot.rst (payload_offset, payload_length); LZ4's lz4_Block_format.md and
lz4_Frame_format.md ("Legacy frame"); ELF-64.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cbit.spec.errors import CbitError
from cbit.spec.linux_boot.kernel_image import KernelImage

_LEGACY_FRAME: Final = 4  # bytes of its magic number
_ELF: Final = b"\x7fELF\x02\x01"
_SEGMENT: Final = struct.Struct("<2I 6Q")
_LOAD: Final = 1
_UNPACK_SECONDS: Final = 60
_ENOUGH: Final = 32 << 20  # bytes of the ELF file that are unpacked: its code comes first


class NoCode(CbitError):
    """The code of a kernel cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class KernelCode:
    """The first segment of a kernel.

    Attributes:
        linked_at: linear address that it is linked for; a kernel that randomises its address moves.
        code: its bytes.
    """

    linked_at: int
    code: bytes


def kernel_code(kernel: bytes) -> KernelCode:
    """Unpack a bzImage as far as its code.

    Raises:
        NoCode: not one, or packed in a way that cannot be read here.
    """
    image = KernelImage.parse(kernel)
    start = image.setup_size + image.params.payload_offset
    payload = kernel[start : start + image.params.payload_length]
    for magic, unpack in _WAYS:
        if payload.startswith(magic):
            try:
                return _first_segment(unpack(payload))
            except (OSError, EOFError, IndexError, lzma.LZMAError, zlib.error, struct.error) as error:
                raise NoCode(f"the kernel cannot be unpacked: {error}") from error
    raise NoCode(f"the kernel is packed in an unknown way: its payload begins with {payload[:4].hex()}")


def _first_segment(elf: bytes) -> KernelCode:
    if not elf.startswith(_ELF):
        raise NoCode("the kernel's payload is no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    kind, _, offset, linear, _, size, _, _ = _SEGMENT.unpack_from(elf, table)
    code = elf[offset : offset + size]
    if kind != _LOAD or len(code) < size:
        raise NoCode("the first segment of the kernel is not all there")
    return KernelCode(linear, code)


def _gzip(payload: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(payload, _ENOUGH)  # what is behind its end is ignored


def _xz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(payload, _ENOUGH)


def _bzip2(payload: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(payload, _ENOUGH)


def _zstd(payload: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise NoCode("the kernel is packed with zstd: install the program zstd")
    words = [program, "--decompress", "--stdout", "--quiet"]
    try:
        # It complains of the length behind the end, after everything has been written.
        ended = subprocess.run(
            words, input=payload, capture_output=True, timeout=_UNPACK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoCode("zstd does not come to an end") from None
    return ended.stdout


def _lz4(payload: bytes) -> bytes:
    out, at = bytearray(), _LEGACY_FRAME
    while at + 4 <= len(payload) and len(out) < _ENOUGH:
        (size,) = struct.unpack_from("<I", payload, at)
        if at + 4 + size > len(payload):
            break  # the length behind the end
        out += lz4_block(payload[at + 4 : at + 4 + size])
        at += 4 + size
    return bytes(out)


def lz4_block(block: bytes) -> bytes:
    """Unpack one block of LZ4.

    Raises:
        NoCode: it refers to what was before it.
        IndexError: it is cut off.
    """
    out, at = bytearray(), 0
    while at < len(block):
        token = block[at]
        literals, at = _length(block, at + 1, token >> 4)
        out += block[at : at + literals]
        at += literals
        if at >= len(block):
            break  # the last sequence has no match
        back = block[at] | block[at + 1] << 8
        match, at = _length(block, at + 2, token & 15)
        match, start = match + 4, len(out) - back
        if start < 0 or not back:
            raise NoCode(f"the kernel cannot be unpacked: a match {back} bytes back, of {len(out)}")
        if back >= match:
            out += out[start : start + match]
        else:  # the match overlaps itself: what it copies repeats
            piece = out[start:]
            out += (piece * (match // back + 1))[:match]
    return bytes(out)


def _length(block: bytes, at: int, nibble: int) -> tuple[int, int]:
    """Read what a length of 15 goes on with: (length, where the next thing is)."""
    if nibble < 15:
        return nibble, at
    while (byte := block[at]) == 255:
        nibble, at = nibble + byte, at + 1
    return nibble + byte, at + 1


_WAYS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ", _xz),
    (b"\x5d\x00\x00", _xz),  # LZMA alone
    (b"BZh", _bzip2),
    (b"\x02\x21\x4c\x18", _lz4),
    (b"\x28\xb5\x2f\xfd", _zstd),
)
