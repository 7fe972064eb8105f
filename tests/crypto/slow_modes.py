"""The memory modes as §9 and IEEE Std 1619 write them down, block by block, on `cryptography`'s AES."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PAGE = 4096


def xor(*parts: bytes) -> bytes:
    total = 0
    for part in parts:
        total ^= int.from_bytes(part, "big")
    return total.to_bytes(len(parts[0]), "big")


def slow_t(constants: Mapping[int, bytes], spa: int) -> bytes:
    """T(p): the XOR of t_i over the bits i that are set in p."""
    return xor(bytes(16), *(constant for bit, constant in constants.items() if spa >> bit & 1))


def slow_encrypt(mode: str, key: bytes, constants: Mapping[int, bytes], *, spa: int, data: bytes) -> bytes:
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update
    result = b""
    for at in range(0, len(data), 16):
        t = slow_t(constants, spa + at)
        block = aes(xor(data[at : at + 16], t))
        result += xor(block, t) if mode == "xex" else block
    return result


def slow_decrypt(mode: str, key: bytes, constants: Mapping[int, bytes], *, spa: int, data: bytes) -> bytes:
    aes = Cipher(algorithms.AES(key), modes.ECB()).decryptor().update
    result = b""
    for at in range(0, len(data), 16):
        t = slow_t(constants, spa + at)
        block = data[at : at + 16]
        result += xor(aes(xor(block, t) if mode == "xex" else block), t)
    return result


def openssl_xts(key: bytes, *, spa: int, data: bytes, decrypt: bool = False) -> bytes:
    """OpenSSL's own XTS over whole pages; the tweak is the page number, little-endian."""
    assert spa % PAGE == len(data) % PAGE == 0
    result = b""
    for at in range(0, len(data), PAGE):
        unit = ((spa + at) // PAGE).to_bytes(16, "little")
        cipher = Cipher(algorithms.AES(key), modes.XTS(unit))
        way = cipher.decryptor() if decrypt else cipher.encryptor()
        result += way.update(data[at : at + PAGE]) + way.finalize()
    return result
