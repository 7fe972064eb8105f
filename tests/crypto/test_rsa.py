from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric import rsa as openssl
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import rsa
from cbit.spec.errors import BadSignature, InvalidCertificate

KEY = openssl.generate_private_key(65537, 2048)  # random: no test below depends on which key it is
SHA256, SHA384 = hashes.SHA256(), hashes.SHA384()
GOOD = rsa.sign(KEY, b"message", SHA256)


def pss(digest: hashes.HashAlgorithm, salt: int) -> padding.PSS:
    return padding.PSS(padding.MGF1(digest), salt_length=salt)


@pytest.mark.parametrize("digest", [SHA256, SHA384], ids=lambda digest: digest.name)
def test_a_signature_is_little_endian_pss_with_a_salt_as_long_as_the_hash(
    digest: hashes.HashAlgorithm,
) -> None:
    signature = rsa.sign(KEY, b"message", digest)
    assert len(signature) == 256
    rsa.verify(KEY.public_key(), signature, b"message", digest)
    KEY.public_key().verify(signature[::-1], b"message", pss(digest, digest.digest_size), digest)
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(signature, b"message", pss(digest, digest.digest_size), digest)


@pytest.mark.parametrize("salt", [0, 20, 48, 222])
def test_another_salt_length_is_refused(salt: int) -> None:
    signature = KEY.sign(b"message", pss(SHA256, salt), SHA256)[::-1]
    with pytest.raises(BadSignature):
        rsa.verify(KEY.public_key(), signature, b"message", SHA256)


def test_another_mask_or_padding_is_refused() -> None:
    mixed = padding.PSS(padding.MGF1(SHA384), salt_length=32)
    for other in (mixed, padding.PKCS1v15()):
        signature = KEY.sign(b"message", other, SHA256)[::-1]
        with pytest.raises(BadSignature):
            rsa.verify(KEY.public_key(), signature, b"message", SHA256)


@given(st.integers(0, 2047))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    bad = bytearray(GOOD)
    bad[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        rsa.verify(KEY.public_key(), bytes(bad), b"message", SHA256)


@pytest.mark.parametrize(
    "signature", [b"", GOOD[:-1], GOOD + b"\x00", b"\x00" + GOOD, GOOD[::-1], b"\xff" * 256]
)
def test_a_signature_of_another_size_or_order_is_refused(signature: bytes) -> None:
    with pytest.raises(BadSignature):
        rsa.verify(KEY.public_key(), signature, b"message", SHA256)


def test_another_message_or_hash_is_noticed() -> None:
    for message, digest in ((b"massage", SHA256), (b"message", SHA384)):
        with pytest.raises(BadSignature):
            rsa.verify(KEY.public_key(), GOOD, message, digest)


@pytest.mark.parametrize(
    ("modulus", "exponent"),
    [(0, 65537), (1, 3), (2**2047 + 1, 0), (2**2047 + 1, 1), (2**2047 + 1, 2), (15, 17)],
)
def test_numbers_that_are_no_key_are_refused(modulus: int, exponent: int) -> None:
    with pytest.raises(InvalidCertificate, match="not an RSA public key"):
        rsa.public_key(modulus, exponent)


@given(st.integers(0, 2**2048 - 1), st.integers(0, 2**2048 - 1) | st.sampled_from([3, 65537]))
def test_any_numbers_are_refused_or_verify_nothing(modulus: int, exponent: int) -> None:
    try:
        key = rsa.public_key(modulus, exponent)
    except InvalidCertificate:
        return
    with pytest.raises(BadSignature):
        rsa.verify(key, GOOD, b"message", SHA256)
