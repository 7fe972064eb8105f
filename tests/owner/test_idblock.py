"""ID blocks: the published one, our own, and what the firmware would refuse."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec as curves
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import ec
from cbit.owner import idblock
from cbit.owner.errors import Untrusted
from cbit.spec.errors import WireError
from cbit.spec.id_block import IdAuth, IdBlock
from owner.worlds import VECTORS, flipped

FOLDER = VECTORS / "snp-idblock"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
ID_KEY, AUTHOR_KEY = ec.private_key(12345), ec.private_key(67890)
DIGEST = bytes(range(48))


def file(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def published() -> tuple[IdBlock, IdAuth]:
    return IdBlock.parse(file("id_block.bin")), IdAuth.parse(file("test_auth_block.bin"))


def test_the_published_block_is_made_from_its_values() -> None:
    block = idblock.create(
        bytes.fromhex(EXPECTED["launch_digest"]),
        policy=int(EXPECTED["policy"], 0),
        family_id=bytes.fromhex(EXPECTED["family_id"]),
        image_id=bytes.fromhex(EXPECTED["image_id"]),
        guest_svn=EXPECTED["guest_svn"],
    )
    assert file("id_block.bin") == bytes(block)
    assert EXPECTED["id_block_base64"] == base64.b64encode(bytes(block)).decode()


def test_the_published_page_is_accepted_and_its_keys_have_their_digests() -> None:
    block, auth = published()
    digests = idblock.verify(block, auth, digest=bytes.fromhex(EXPECTED["launch_digest"]), policy=0x30000)
    assert digests.author_key is not None
    assert EXPECTED["id_key_digest"] == digests.id_key.hex()
    assert EXPECTED["author_key_digest"] == digests.author_key.hex()


def test_the_parts_of_the_published_page_are_where_the_paper_says() -> None:
    _, auth = published()
    assert file("id_pubkey_amd.bin") == auth.id_key
    assert file("author_pubkey_amd.bin") == auth.author_key
    assert file("test_id_sig.bin") == auth.id_block_sig
    assert file("test_auth_sig.bin") == auth.id_key_sig


def test_the_published_keys_and_signatures_make_the_published_page() -> None:
    auth = IdAuth(
        author_key_algo=1,
        id_block_sig=file("test_id_sig.bin"),
        id_key=file("id_pubkey_amd.bin"),
        id_key_sig=file("test_auth_sig.bin"),
        author_key=file("author_pubkey_amd.bin"),
    )
    assert file("test_auth_block.bin") == bytes(auth)


def ours(**author: Any) -> tuple[IdBlock, IdAuth]:
    block = idblock.create(DIGEST, policy=0x30000, family_id=b"f" * 16, image_id=b"i" * 16, guest_svn=7)
    return block, idblock.sign(block, id_key=ID_KEY, **author)


def test_what_we_sign_is_accepted_with_and_without_an_author() -> None:
    block, auth = ours(author_key=AUTHOR_KEY)
    assert None is not idblock.verify(block, auth, digest=DIGEST, policy=0x30000).author_key
    block, auth = ours()
    assert None is idblock.verify(block, auth).author_key
    assert (1, 0) == (auth.id_key_algo, auth.author_key_algo)


@given(st.integers(0, 8 * IdBlock.SIZE - 1))
def test_no_bit_of_the_block_may_change(bit: int) -> None:
    block, auth = published()
    with pytest.raises(Untrusted, match=r"BAD_SIGNATURE|INVALID_PARAM|POLICY_FAILURE"):
        idblock.verify(IdBlock.parse(flipped(bytes(block), bit)), auth)


def test_no_byte_of_the_page_may_change() -> None:
    block, auth = published()
    for at in range(IdAuth.SIZE):
        with pytest.raises((Untrusted, WireError)):
            idblock.verify(block, IdAuth.parse(flipped(bytes(auth), 8 * at)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id_key_algo": 0}, "ID key has algorithm 0, must be 1 .INVALID_PARAM"),
        ({"author_key_algo": 2}, "author key has algorithm 2"),
        ({"author_key_algo": 0}, "author key has algorithm 0"),
        ({"id_block_sig": bytes(512)}, "ID key did not sign the ID block.*BAD_SIGNATURE"),
        ({"id_key_sig": bytes(512)}, "author key did not sign the ID key.*BAD_SIGNATURE"),
        ({"id_key": bytes(0x404)}, "curve 0"),
        ({"author_key": b"\x02" + bytes(0x403)}, "not a point on P-384"),
    ],
    ids=str,
)
def test_a_page_that_the_firmware_would_refuse(change: dict[str, Any], reason: str) -> None:
    block, auth = published()
    with pytest.raises(Untrusted, match=reason):
        idblock.verify(block, auth.replace(**change))


def test_another_launch_gets_every_reason_at_once() -> None:
    block, auth = ours()
    with pytest.raises(Untrusted) as refused:
        idblock.verify(block.replace(version=2), auth, digest=bytes(48), policy=0x30001)
    words = "; ".join(refused.value.reasons)
    for status in ("INVALID_PARAM", "BAD_MEASUREMENT", "POLICY_FAILURE", "BAD_SIGNATURE"):
        assert status in words


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"policy": 0x10000}, "bit 17 must be 1"),
        ({"policy": 0x30000 | 1 << 40}, "reserved bits"),
        ({"policy": 1 << 64 | 0x30000}, "reserved bits"),
        ({"digest": bytes(32)}, "32 bytes given, the field has 48"),
        ({"family_id": b"short"}, "5 bytes given, the field has 16"),
        ({"guest_svn": 1 << 32}, "does not fit"),
    ],
    ids=str,
)
def test_a_block_that_cannot_be_is_not_made(change: dict[str, Any], why: str) -> None:
    words: dict[str, Any] = {"digest": DIGEST, "policy": 0x30000} | change
    with pytest.raises(WireError, match=why):
        idblock.create(words.pop("digest"), **words)


def pem(key: Any, encryption: Any = None) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )
    return data


def test_private_keys_are_read_as_pem_and_der() -> None:
    der = ID_KEY.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data in (pem(ID_KEY), der):
        assert 12345 == ec.scalar_of(idblock.read_private_key(data, source="id.pem"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        (pem(curves.generate_private_key(curves.SECP256R1())), "not an elliptic-curve key on P-384"),
        (pem(rsa.generate_private_key(65537, 2048)), "not an elliptic-curve key on P-384"),
        (pem(ID_KEY, serialization.BestAvailableEncryption(b"password")), "is encrypted"),
    ],
    ids=["nothing", "rubbish", "P-256", "RSA", "encrypted"],
)
def test_what_is_no_usable_key_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(WireError, match=f"id.pem: .*{why}"):
        idblock.read_private_key(data, source="id.pem")


def test_a_key_on_another_curve_signs_nothing() -> None:
    with pytest.raises(ValueError, match="P-384"):
        idblock.sign(ours()[0], id_key=curves.generate_private_key(curves.SECP256R1()))
