"""The code in a bzImage, however it is packed; and files that are none."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import random
import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.guest.linux.kernel_code import KernelCode, NoCode, kernel_code, lz4_block
from cbit.testing.kernels import a_kernel

LINKED_AT = 0xFFFF_FFFF_8100_0000
CODE = b"\xfb\xf4" + random.Random(1).randbytes(5000) + b"again and again, " * 300


def elf(*, kind: int = 1, size: int = len(CODE)) -> bytes:
    header = bytearray(b"\x7fELF\x02\x01".ljust(64, b"\0"))
    struct.pack_into("<Q", header, 0x20, 64)
    segment = struct.pack("<2I6Q", kind, 5, 0x1000, LINKED_AT, 0x100_0000, size, size, 0x1000)
    return (bytes(header) + segment).ljust(0x1000, b"\0") + CODE


def packed(payload: bytes) -> bytes:
    """A bzImage with a payload behind its loader, and the length of what was packed behind that."""
    payload += struct.pack("<I", 0x1234)
    return a_kernel(code=b"loader" + payload, payload_offset=6, payload_length=len(payload))


def with_program(name: str, *words: str) -> bytes:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"needs {name}: apt install {name}")
    return subprocess.run([program, *words], input=elf(), capture_output=True, check=True).stdout


WAYS = {
    "gzip": lambda: gzip.compress(elf(), mtime=0),
    "xz": lambda: lzma.compress(elf()),
    "lzma": lambda: lzma.compress(elf(), format=lzma.FORMAT_ALONE),
    "bzip2": lambda: bz2.compress(elf()),
    "lz4": lambda: with_program("lz4", "-l", "-9", "-c"),
    "zstd": lambda: with_program("zstd", "-c"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_code_comes_out_whatever_packed_it(way: str) -> None:
    assert KernelCode(LINKED_AT, CODE) == kernel_code(packed(WAYS[way]()))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"nonsense", "packed in an unknown way: its payload begins with 6e6f6e73"),
        (gzip.compress(elf(), mtime=0)[:-3000], "not all there"),
        (gzip.compress(b"no ELF file", mtime=0), "no 64-bit ELF file"),
        (gzip.compress(elf(kind=6), mtime=0), "not all there"),
        (gzip.compress(elf(size=1 << 20), mtime=0), "not all there"),
        (gzip.compress(elf()[:70], mtime=0), "cannot be unpacked: "),
        (b"\x1f\x8b" + b"\xff" * 100, "cannot be unpacked: "),
        (b"\x02\x21\x4c\x18\x04\x00\x00\x00\x10A\x09\x00", "a match 9 bytes back, of 1"),
        (b"\x02\x21\x4c\x18\x02\x00\x00\x00\xf0\xff", "cannot be unpacked: "),
        (b"", "packed in an unknown way"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(NoCode, match=why):
        kernel_code(packed(payload))


def test_without_zstd_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoCode, match="install the program zstd"):
        kernel_code(packed(b"\x28\xb5\x2f\xfd"))


def test_a_match_that_overlaps_itself_repeats() -> None:
    assert b"abcabcabcabX" == lz4_block(bytes([0x34, *b"abc", 3, 0, 0x10, *b"X"]))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_block_or_refused(data: bytes) -> None:
    with contextlib.suppress(NoCode, IndexError):
        lz4_block(data)
