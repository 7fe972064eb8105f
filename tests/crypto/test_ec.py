from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec as openssl
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import ec
from cbit.crypto.entropy import SeededEntropy
from cbit.spec.certificate import EcdsaSignature, EcPublicKey, SevCert
from cbit.spec.errors import BadSignature, InvalidCertificate
from crypto.published import FLOWS, Flow

KEY = ec.random_key(SeededEntropy("a key"))
OTHER = ec.random_key(SeededEntropy("another key"))
SHA256 = hashes.SHA256()


class Draws:
    """An entropy that gives what it was told to give."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = iter(numbers)

    def draw(self, length: int) -> bytes:
        return next(self._numbers).to_bytes(length, "little")


# ---- keys --------------------------------------------------------------------------------------------------


def test_a_public_key_comes_back() -> None:
    encoded = ec.encode_public(KEY.public_key())
    numbers = KEY.public_key().public_numbers()
    raw = bytes(encoded)
    assert raw[:4] == bytes([2, 0, 0, 0])
    assert raw[0x04:0x34] == numbers.x.to_bytes(48, "big")[::-1]
    assert raw[0x4C:0x7C] == numbers.y.to_bytes(48, "big")[::-1]
    assert raw[0x34:0x4C] + raw[0x7C:] == bytes(24 + 0x404 - 0x7C)
    assert ec.decode_public(encoded).public_numbers() == numbers


@pytest.mark.parametrize("curve", [0, 1, 3, 1 << 31])
def test_another_curve_is_refused(curve: int) -> None:
    with pytest.raises(InvalidCertificate, match=f"curve {curve} in a certificate"):
        ec.decode_public(ec.encode_public(KEY.public_key()).replace(curve=curve))


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (1, 1)])
def test_coordinates_off_the_curve_are_refused(dx: int, dy: int) -> None:
    good = ec.encode_public(KEY.public_key())
    with pytest.raises(InvalidCertificate, match="not a point on P-384"):
        ec.decode_public(good.replace(qx=good.qx + dx, qy=good.qy + dy))


@pytest.mark.parametrize(
    ("dx", "dy"),
    [(ec.PRIME, 0), (0, ec.PRIME), (ec.PRIME, ec.PRIME), (1 << 384, 0), (0, 1 << 575)],
)
def test_a_second_encoding_of_the_same_point_is_refused(dx: int, dy: int) -> None:
    good = ec.encode_public(KEY.public_key())
    with pytest.raises(InvalidCertificate, match="outside the field"):
        ec.decode_public(good.replace(qx=good.qx + dx, qy=good.qy + dy))


def test_the_numbers_of_the_curve() -> None:
    # The base point is a point (so PRIME is right), and ORDER times it is infinity (so ORDER is right).
    assert ec.PRIME.bit_length() == ec.ORDER.bit_length() == 384
    one, last = (ec.private_key(d).public_key().public_numbers() for d in (1, ec.ORDER - 1))
    assert last.x == one.x
    assert last.y == ec.PRIME - one.y


def test_the_point_at_infinity_is_refused() -> None:
    with pytest.raises(InvalidCertificate, match="not a point"):
        ec.decode_public(EcPublicKey(qx=0, qy=0))


@given(st.binary(min_size=0x404, max_size=0x404))
def test_any_bytes_are_a_key_or_refused(raw: bytes) -> None:
    with pytest.raises(InvalidCertificate):
        ec.decode_public(EcPublicKey.parse(raw, canonical=False))


def test_candidates_out_of_range_are_drawn_again() -> None:
    assert ec.scalar_of(ec.random_key(Draws(0, ec.ORDER, 2**384 - 1, 5))) == 5
    assert ec.scalar_of(ec.random_key(Draws(ec.ORDER - 1))) == ec.ORDER - 1


@given(st.integers(1, ec.ORDER - 1))
def test_a_scalar_comes_back(scalar: int) -> None:
    assert ec.scalar_of(ec.private_key(scalar)) == scalar


@pytest.mark.parametrize("scalar", [0, -1, ec.ORDER])
def test_a_scalar_out_of_range_is_refused(scalar: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        ec.private_key(scalar)


def test_a_seed_gives_one_key() -> None:
    assert ec.scalar_of(ec.random_key(SeededEntropy(1))) == ec.scalar_of(ec.random_key(SeededEntropy(1)))
    assert ec.scalar_of(ec.random_key(SeededEntropy(1))) != ec.scalar_of(ec.random_key(SeededEntropy(2)))


def test_a_private_key_does_not_print_itself() -> None:
    scalar = ec.scalar_of(KEY)
    assert f"{scalar:x}"[:8] not in repr(KEY)
    assert str(scalar)[:8] not in str(KEY)


# ---- Diffie-Hellman ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_synthetic_shared_secrets(flow: Flow) -> None:
    for own, peer, file, expected in (
        ("godh", "pdh", "pdh.cert", flow.values["ecdh_z_godh_pdh_be"]),
        ("pdh", "godh", "godh.cert", flow.values["ecdh_z_godh_pdh_be"]),
        ("pdh", "receiver_pdh", "receiver_pdh.cert", flow.values["send"]["ecdh_z_pdh_receiverpdh_be"]),
        ("receiver_pdh", "pdh", "pdh.cert", flow.values["send"]["ecdh_z_pdh_receiverpdh_be"]),
    ):
        certified = ec.decode_public(EcPublicKey.parse(SevCert.parse(flow.file(file)).pubkey))
        assert certified.public_numbers() == flow.key(peer).public_key().public_numbers()
        assert ec.shared_secret(flow.key(own), certified).hex() == expected


def test_both_ends_share_48_bytes() -> None:
    one = ec.shared_secret(KEY, OTHER.public_key())
    assert len(one) == 48
    assert one == ec.shared_secret(OTHER, KEY.public_key())


def test_a_small_secret_keeps_its_leading_zeros() -> None:
    # Z is a fixed 48 bytes.  Search a few scalars for an X coordinate that begins with a zero byte.
    one = ec.private_key(1)
    for scalar in range(2, 4000):
        x = ec.private_key(scalar).public_key().public_numbers().x
        if x >> 376 == 0:
            z = ec.shared_secret(ec.private_key(scalar), one.public_key())
            assert z == x.to_bytes(48, "big")
            return
    pytest.fail("no such scalar below 4000")


# ---- signatures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384()], ids=lambda digest: digest.name)
def test_a_signature_is_verified_here_and_by_openssl(digest: hashes.HashAlgorithm) -> None:
    signature = ec.sign(KEY, b"message", digest)
    ec.verify(KEY.public_key(), signature, b"message", digest)
    der = encode_dss_signature(signature.r, signature.s)
    KEY.public_key().verify(der, b"message", openssl.ECDSA(digest))
    raw = bytes(signature)
    assert len(raw) == 512
    assert raw[:72] == signature.r.to_bytes(72, "little")
    assert raw[72:144] == signature.s.to_bytes(72, "little")
    assert not any(raw[144:])


def test_a_signature_repeats() -> None:
    assert ec.sign(KEY, b"message", SHA256) == ec.sign(KEY, b"message", SHA256)
    assert ec.sign(KEY, b"message", SHA256) != ec.sign(KEY, b"another", SHA256)


def test_the_deterministic_nonce_is_rfc_6979s() -> None:
    # origin = RFC 6979, A.2.6 (P-384), SHA-256, message "sample"
    key = ec.private_key(
        int(
            "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D8"
            "96D5724E4C70A825F872C9EA60D2EDF5",
            16,
        )
    )
    signature = ec.sign(key, b"sample", SHA256)
    assert f"{signature.r:096X}" == (
        "21B13D1E013C7FA1392D03C5F99AF8B30C570C6F98D4EA8E354B63A21D3DAA33BDE1E888E63355D92FA2B3C36D8FB2CD"
    )
    assert f"{signature.s:096X}" == (
        "F3AA443FB107745BF4BD77CB3891674632068A10CA67E3D45DB2266FA7D1FEEBEFDC63ECCD1AC42EC0CB8668A4FA0AB0"
    )


@given(st.integers(0, 2 * 384 - 1))
def test_a_flipped_bit_of_a_signature_is_noticed(bit: int) -> None:
    signature = ec.sign(KEY, b"message", SHA256)
    changed = signature.replace(
        r=signature.r ^ (1 << bit if bit < 384 else 0), s=signature.s ^ (1 << bit - 384 if bit >= 384 else 0)
    )
    with pytest.raises(BadSignature):
        ec.verify(KEY.public_key(), changed, b"message", SHA256)


@pytest.mark.parametrize(
    ("r", "s"), [(0, 0), (0, 1), (1, 0), (ec.ORDER, 1), (1, ec.ORDER), (2**576 - 1, 2**576 - 1)]
)
def test_numbers_out_of_range_are_no_signature(r: int, s: int) -> None:
    with pytest.raises(BadSignature):
        ec.verify(KEY.public_key(), EcdsaSignature(r=r, s=s), b"message", SHA256)


def test_a_signature_plus_the_order_is_no_signature() -> None:
    good = ec.sign(KEY, b"message", SHA256)
    for bad in (good.replace(r=good.r + ec.ORDER), good.replace(s=good.s + ec.ORDER)):
        with pytest.raises(BadSignature):
            ec.verify(KEY.public_key(), bad, b"message", SHA256)


def test_another_key_message_or_hash_is_noticed() -> None:
    signature = ec.sign(KEY, b"message", SHA256)
    for key, message, digest in (
        (OTHER, b"message", SHA256),
        (KEY, b"massage", SHA256),
        (KEY, b"message", hashes.SHA384()),
    ):
        with pytest.raises(BadSignature):
            ec.verify(key.public_key(), signature, message, digest)
