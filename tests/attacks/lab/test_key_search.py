"""Keys are found at any offset, mended when bits have fallen, and not found in noise."""

from __future__ import annotations

import math
import random

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from cbit.attacks.lab.key_search import AES_128, AES_256, SBOX, Kind, aes_keys, schedule
from cbit.attacks.lab.rsa_search import find_modulus, read_numbers, rebuild

# FIPS 197, appendix A: the last words of the two example expansions
FIPS_128 = ("2b7e151628aed2a6abf7158809cf4f3c", "d014f9a8c9ee2589e13f0cc8b6630ca6")
FIPS_256 = (
    "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
    "fe4890d1e6188d0b046df344706c631e",
)


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def laid_out(kind: Kind, key: bytes) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in schedule(kind, words(key), 0))


def fade(data: bytes, share: float, seed: int) -> bytes:
    chance = random.Random(seed)
    faded = bytearray(data)
    for bit in range(8 * len(faded)):
        if faded[bit // 8] >> bit % 8 & 1 and chance.random() < share:
            faded[bit // 8] ^= 1 << bit % 8
    return bytes(faded)


@pytest.mark.parametrize(("kind", "example"), [(AES_128, FIPS_128), (AES_256, FIPS_256)])
def test_the_expansion_is_the_standards(kind: Kind, example: tuple[str, str]) -> None:
    assert bytes.fromhex(example[1]) == laid_out(kind, bytes.fromhex(example[0]))[-16:]
    full = schedule(kind, words(bytes.fromhex(example[0])), 0)
    assert all(full == schedule(kind, full[at : at + kind.words], at) for at in range(len(full) - kind.words))


def test_the_substitution_is_a_permutation_with_the_known_beginning() -> None:
    assert 256 == len(set(SBOX))
    assert bytes.fromhex("637c777bf26b6fc5") == SBOX[:8]


@pytest.mark.parametrize(
    ("kind", "decay", "offset"),
    [
        *((AES_128, decay, offset) for decay in (0.0, 0.05, 0.15) for offset in (0, 1003, 4097)),
        *((AES_256, 0.0, offset) for offset in (0, 1003, 4097)),
        (AES_256, 0.1, 1002),
    ],
)
def test_a_key_is_found_at_any_offset_and_mended(kind: Kind, decay: float, offset: int) -> None:
    key = random.Random(offset).randbytes(4 * kind.words)
    image = bytes(offset) + fade(laid_out(kind, key), decay, seed=offset) + bytes(9000)
    assert [(offset, key)] == list(aes_keys(image, kind))


@pytest.mark.parametrize("kind", [AES_128, AES_256])
def test_no_key_is_found_where_there_is_none(kind: Kind) -> None:
    key = random.Random(1).randbytes(4 * kind.words)
    encrypted = Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor()
    for image in (
        bytes(1 << 20),
        b"\xff" * (1 << 16),
        random.Random(2).randbytes(1 << 20),
        b"text, and nothing else. " * 4096,
        encrypted.update(laid_out(kind, key)[: kind.words * 16]) * 64,
        key * 1024,
        laid_out(kind, key)[: 4 * kind.words + 8] + bytes(4096),
        fade(laid_out(kind, key), 0.9, seed=1) + bytes(4096),
        b"",
        bytes(40),
    ):
        assert [] == list(aes_keys(image, kind))


@given(st.binary(max_size=600))
def test_any_bytes_are_searched(image: bytes) -> None:
    for kind in (AES_128, AES_256):
        for offset, key in aes_keys(image, kind):
            assert image[offset : offset + 4 * kind.words] != key or laid_out(kind, key) in image


def prime(seed: int) -> int:
    chance = random.Random(seed)
    while True:
        drawn = chance.getrandbits(512) | 3 << 510 | 1
        if all(pow(base, drawn - 1, drawn) == 1 for base in (2, 3, 5)) and drawn % 65537 != 1:
            return drawn


@pytest.mark.parametrize(("decay", "lcm"), [(0.0, False), (0.0, True), (0.1, True), (0.1, False)])
def test_an_rsa_key_is_rebuilt(decay: float, *, lcm: bool) -> None:
    p, q = prime(1), prime(3)
    n, phi = p * q, (p - 1) * (q - 1)
    assert 2 == math.gcd(p - 1, q - 1)
    d = pow(65537, -1, phi // 2 if lcm else phi)
    public = rsa.RSAPublicNumbers(65537, n)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    key = numbers.private_key()
    file = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    image = bytes(777) + fade(file, decay, seed=3) + bytes(2000)
    (offset,) = find_modulus(image, n.to_bytes(128, "big"))
    assert 777 < offset < 777 + 20
    assert {p, q} == set(rebuild(read_numbers(image, offset, 128), n, 65537) or ())


def test_another_modulus_is_not_found() -> None:
    key = rsa.generate_private_key(65537, 1024)
    file = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    other = random.Random(5).randbytes(128)
    assert [] == find_modulus(bytes(100) + file + bytes(100), other)
