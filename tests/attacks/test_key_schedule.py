from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from cbit.attacks import key_schedule
from cbit.attacks.key_schedule import expand

RequireProgram = Callable[[str, str], list[str]]


@pytest.mark.parametrize(
    ("key", "last"),
    [  # FIPS 197, appendix A
        ("2b7e151628aed2a6abf7158809cf4f3c", "d014f9a8c9ee2589e13f0cc8b6630ca6"),
        ("8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", "e98ba06f448c773c8ecc720401002202"),
        (
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "fe4890d1e6188d0b046df344706c631e",
        ),
    ],
)
def test_the_last_round_key_is_the_standards(key: str, last: str) -> None:
    schedule = expand(bytes.fromhex(key))
    assert (key, last) == (schedule[: len(key) // 2].hex(), schedule[-16:].hex())
    assert 16 * ({32: 10, 48: 12, 64: 14}[len(key)] + 1) == len(schedule)


@given(st.binary(min_size=16, max_size=16))
def test_a_block_of_zeros_meets_the_same_keys_in_openssl(key: bytes) -> None:
    # The rounds by their definition, with these keys and this S-box.
    schedule = expand(key)
    encryptor = Cipher(AES(key), ECB()).encryptor()
    assert encryptor.update(bytes(16)) == encrypt_block(bytes(16), schedule)


def encrypt_block(block: bytes, schedule: bytes) -> bytes:
    box = key_schedule._s_box()
    state = bytes(a ^ b for a, b in zip(block, schedule[:16], strict=True))
    rounds = len(schedule) // 16 - 1
    for number in range(1, rounds + 1):
        state = bytes(box[byte] for byte in state)
        state = bytes(state[(at + 4 * (at % 4)) % 16] for at in range(16))
        if number < rounds:
            state = b"".join(mix(state[at : at + 4]) for at in range(0, 16, 4))
        key = schedule[16 * number : 16 * number + 16]
        state = bytes(a ^ b for a, b in zip(state, key, strict=True))
    return state


def mix(column: bytes) -> bytes:
    def twice(value: int) -> int:
        return (value << 1 ^ 0x1B) & 0xFF if value & 0x80 else value << 1

    a, b, c, d = column
    return bytes(
        twice(x) ^ twice(y) ^ y ^ z ^ w
        for x, y, z, w in ((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c))
    )


@pytest.mark.parametrize("size", [0, 15, 17, 31, 33, 64])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        expand(bytes(size))


@pytest.mark.oracle
def test_aeskeyfind_recognises_it_and_nothing_else(require_program: RequireProgram, tmp_path: Path) -> None:
    program = require_program("aeskeyfind", "apt install aeskeyfind")
    key = bytes(range(7, 39))
    dump = tmp_path / "dump"

    def found(data: bytes) -> bool:
        dump.write_bytes(bytes(4096) + data + bytes(4096))
        ended = subprocess.run([*program, "-q", str(dump)], capture_output=True, text=True, check=True)
        return key.hex() in ended.stdout.split()

    assert found(expand(key))
    assert not found(bytes(byte ^ 1 for byte in expand(key)))
