"""The compiled passes and the plain ones, against the formulas; and what happens without a compiler."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cbit.compiler import NoCompiler
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.passes import PLAIN, Passes, compiled_passes, passes
from crypto.slow_modes import xor

PAGE = 4096
both = pytest.mark.parametrize("way", [compiled_passes(), PLAIN], ids=["compiled", "plain"])
blocks = st.binary(min_size=16, max_size=16)


@both
@given(st.integers(0, 260), st.integers(0, 15), blocks, st.booleans())
def test_the_xor_is_the_formula_wherever_things_lie(
    way: Passes, count: int, shift: int, constant: bytes, in_place: bool
) -> None:
    length = 16 * count
    data, tweaks, around = (SeededEntropy(f"{what} {count}").draw(length + 64) for what in ("d", "t", "a"))
    given_data, given_tweaks = ctypes.create_string_buffer(data), ctypes.create_string_buffer(tweaks)
    room = given_data if in_place else ctypes.create_string_buffer(around)
    data_at, tweaks_at = shift, 16 - shift
    out_at = data_at if in_place else 7
    before, behind = room.raw[:out_at], room.raw[out_at + length :]
    out = ctypes.addressof(room) + out_at
    way.xor(
        out,
        ctypes.addressof(given_data) + data_at,
        ctypes.addressof(given_tweaks) + tweaks_at,
        constant,
        length,
    )
    expected = [
        xor(data[data_at + at :][:16], tweaks[tweaks_at + at :][:16], constant) for at in range(0, length, 16)
    ]
    assert before + b"".join(expected) + behind == room.raw


def alpha_powers(t: bytes) -> bytes:
    """IEEE Std 1619, 5.2, byte by byte as it is written there."""
    result, now = b"", list(t)
    for _ in range(256):
        result += bytes(now)
        carries = [byte >> 7 for byte in now]
        now = [(byte << 1 & 0xFF) | carry for byte, carry in zip(now, [0, *carries[:-1]], strict=True)]
        if carries[-1]:
            now[0] ^= 0x87
    return result


@both
@given(st.lists(blocks, min_size=1, max_size=4))
@example([bytes(15) + b"\x80", b"\xff" * 16])
def test_the_tweaks_of_xts_are_those_of_the_standard(way: Passes, first: list[bytes]) -> None:
    room = ctypes.create_string_buffer(b"\xee" * (PAGE * len(first) + 32), PAGE * len(first) + 32)
    way.xts_tweaks(ctypes.addressof(room) + 16, b"".join(first), len(first))
    assert b"\xee" * 16 + b"".join(map(alpha_powers, first)) + b"\xee" * 16 == room.raw


def test_what_is_compiled_is_preferred() -> None:
    assert passes() is not PLAIN


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor file; do :; done\necho nonsense > "$file"\n')
    compiler.chmod(0o755)
    with pytest.raises(NoCompiler, match=r"tweaks-.*\.so cannot be loaded"):
        compiled_passes(folder=tmp_path, compiler=str(compiler))


def test_without_a_compiler_the_same_is_done_plainly() -> None:
    program = (
        "from cbit.crypto import passes as p\n"
        "assert p.passes() is p.PLAIN\n"
        "from cbit.crypto.key import Key\n"
        "from cbit.crypto.memory_modes import Mode, Tweak, memory_cipher\n"
        "for mode, key in ((Mode.XEX, bytes(16)), (Mode.XTS, bytes(range(32)))):\n"
        "    tweak = Tweak.zen1() if mode is Mode.XEX else None\n"
        "    print(memory_cipher(mode, Key(key), tweak).encrypt(0x7000, bytes(8192)).hex())\n"
    )
    results = [
        subprocess.run(
            [sys.executable, "-c", program if cc else program.replace("is p.PLAIN", "is not p.PLAIN")],
            env=os.environ | cc,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for cc in ({"CC": "no-such-cc"}, {})
    ]
    assert results[0] == results[1] != ""
