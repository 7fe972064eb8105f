from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.ctr import aes_ctr
from cbit.crypto.key import Key

# origin = NIST SP 800-38A, F.5.1 CTR-AES128.Encrypt
KEY = Key(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))
IV = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHER = bytes.fromhex(
    "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
    "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
)

keys = st.binary(min_size=16, max_size=16).map(Key)
ivs = st.binary(min_size=16, max_size=16)


def test_nist() -> None:
    assert aes_ctr(KEY, IV, PLAIN) == CIPHER
    assert aes_ctr(KEY, IV, CIPHER) == PLAIN
    assert aes_ctr(KEY, IV, PLAIN[:21]) == CIPHER[:21]


@given(keys, ivs, st.binary(max_size=100))
def test_the_counter_is_a_128_bit_big_endian_integer(key: Key, iv: bytes, data: bytes) -> None:
    ecb = Cipher(algorithms.AES(key.material()), modes.ECB()).encryptor()
    start = int.from_bytes(iv, "big")
    stream = b"".join(ecb.update(((start + i) % (1 << 128)).to_bytes(16, "big")) for i in range(7))
    assert aes_ctr(key, iv, data) == bytes(a ^ b for a, b in zip(data, stream, strict=False))


def test_the_counter_carries_through_all_sixteen_bytes() -> None:
    zeros = bytes(32)
    last = b"\xff" * 16
    assert aes_ctr(KEY, last, zeros)[16:] == aes_ctr(KEY, bytes(16), zeros)[:16]


@pytest.mark.parametrize("length", [0, 12, 15, 17])
def test_an_iv_of_another_size_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="nonce size"):
        aes_ctr(KEY, bytes(length), b"data")
