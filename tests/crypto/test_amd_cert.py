from __future__ import annotations

import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa as openssl
from hypothesis import given, settings
from hypothesis import strategies as st

from cbit.crypto import amd_cert, rsa
from cbit.spec.amd_certificate import AmdCert, AmdCertHeader
from cbit.spec.certificate import Usage
from cbit.spec.errors import BadSignature, CbitError, InvalidCertificate, WireError
from crypto.published import VECTORS, amd

PRODUCTS = ["naples", "milan", "genoa"]

# origin = sev-crypto.md §3: ARK and ASK key ids, bytes in file order
KEY_IDS = {
    "naples": ("1bb987c359494606b174945601c9ea5b", "e139970cfc464377ae61b289e2f9e96e"),
    "milan": ("94c38e4177d0479292a7ae671d083fb6", "73478c05cc174bfeb06e718fa75dc3c8"),
    "genoa": ("9f9d4a8fe761456599f6946c4c010f3a", "acbb4ad21acc436fb3e932f812cd01b0"),
}
# origin = vectors/amd-root/README.md
PINS = {
    "naples": "5f452a21949dbb87cf60a8d02278b74a63ba40d4420a47ac34463c43de6a8379",
    "milan": "857596e66a0dc486d69f4459554c56f96c3f83f3365984650d1aab5f7b215b2a",
    "genoa": "33f0787614fd429b048d621d962950df6147063ce5c21410c6b7fa1431a6cea2",
}
KEY = openssl.generate_private_key(65537, 2048)  # random: no test below depends on which key it is
OTHER = openssl.generate_private_key(65537, 2048)
ROOT_ID, SUB_ID = b"test root key id", b"test sub key id."


def root(key: openssl.RSAPrivateKey = KEY) -> AmdCert:
    return amd_cert.issue(
        key=key.public_key(), usage=Usage.ARK, key_id=ROOT_ID, signer=key, signer_key_id=ROOT_ID
    )


def sub(signer: openssl.RSAPrivateKey = KEY) -> AmdCert:
    return amd_cert.issue(
        key=OTHER.public_key(), usage=Usage.ASK, key_id=SUB_ID, signer=signer, signer_key_id=ROOT_ID
    )


# ---- AMD's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", PRODUCTS)
def test_amds_roots_verify(product: str) -> None:
    ark, ask = amd(f"ark_{product}"), amd(f"ask_{product}")
    amd_cert.verify(ark, ark)
    amd_cert.verify(ask, ark)
    assert (ark.header.key_usage, ask.header.key_usage) == (Usage.ARK, Usage.ASK)
    assert (ark.header.key_id.hex(), ask.header.key_id.hex()) == KEY_IDS[product]
    assert ark.header.certifying_key_id == ask.header.certifying_key_id == ark.header.key_id
    bits = 2048 if product == "naples" else 4096
    for cert in (ark, ask):
        assert cert.pubexp == 65537
        assert cert.header.modulus_size == cert.header.pubexp_size == cert.modulus.bit_length() == bits
        assert amd_cert.public_key(cert).key_size == bits
        assert len(cert.signature) == bits // 8


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["ark", "ask"])
def test_amds_files_come_back_unchanged(name: str, product: str) -> None:
    data = (VECTORS / f"amd-root/{name}_{product}.cert").read_bytes()
    cert = AmdCert.parse(data)
    assert bytes(cert) == data
    assert len(data) == (0x340 if product == "naples" else 0x640)
    assert AmdCert.size_at(data) == AmdCert.size_at(data + b"more") == len(data)


@pytest.mark.parametrize("product", PRODUCTS)
def test_pins(product: str) -> None:
    assert amd_cert.pin(amd(f"ark_{product}")) == PINS[product]
    text = (VECTORS / "amd-root/README.md").read_text()
    assert re.search(rf"{KEY_IDS[product][0]} \| {PINS[product]}", text)


@pytest.mark.parametrize("product", ["milan", "genoa"])
def test_one_key_serves_amds_format_and_x509(product: str) -> None:
    # sev-crypto.md §3: the SNP chain (ASK, then ARK) has the same keys
    pem = (VECTORS / f"snp-chain/ask_ark_{product}.pem").read_bytes()
    for name, cert in zip(("ask", "ark"), x509.load_pem_x509_certificates(pem), strict=True):
        assert cert.public_key() == amd_cert.public_key(amd(f"{name}_{product}"))


@pytest.mark.parametrize(("product", "other"), [(p, o) for p in PRODUCTS for o in PRODUCTS if p != o])
def test_the_root_of_another_product_does_not_verify(product: str, other: str) -> None:
    for name in ("ark", "ask"):
        cert, signer = amd(f"{name}_{product}"), amd(f"ark_{other}")
        with pytest.raises(InvalidCertificate, match="says it is certified by key"):
            amd_cert.verify(cert, signer)
        # … nor when the ids are made to agree: the mathematics has the last word
        header = cert.header.replace(certifying_key_id=signer.header.key_id)
        relabelled = AmdCert(header, cert.pubexp, cert.modulus, cert.signature)
        with pytest.raises((BadSignature, InvalidCertificate)):
            amd_cert.verify(relabelled, signer)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["ark", "ask"])
@given(data=st.data())
@settings(max_examples=60)
def test_any_flipped_bit_is_refused(name: str, product: str, data: st.DataObject) -> None:
    raw = bytearray((VECTORS / f"amd-root/{name}_{product}.cert").read_bytes())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((WireError, InvalidCertificate, BadSignature)):
        amd_cert.verify(AmdCert.parse(bytes(raw)), amd(f"ark_{product}"))


def test_the_early_ark_without_a_signature_counts_as_unsigned() -> None:
    folder = VECTORS / "sev-chain-naples"
    body = (folder / "ark_no_signature.bin").read_bytes()
    signature = (folder / "ark_signature_only.bin").read_bytes()
    unsigned = AmdCert.parse(body)
    assert unsigned.signature == b""
    assert bytes(unsigned) == body == amd("ark_naples").signed_bytes
    assert amd_cert.pin(unsigned) == PINS["naples"]
    with pytest.raises(InvalidCertificate, match="carries no signature"):
        amd_cert.verify(unsigned, unsigned)
    assert AmdCert.parse(body + signature) == amd("ark_naples")
    amd_cert.verify(amd("ask_naples"), unsigned)  # its key is the key all the same


# ---- our own -----------------------------------------------------------------------------------------------


def test_issued_certificates_verify_and_come_back() -> None:
    ark, ask = root(), sub()
    amd_cert.verify(ark, ark)
    amd_cert.verify(ask, ark)
    assert AmdCert.parse(bytes(ark)) == ark
    assert AmdCert.parse(bytes(ask)) == ask
    assert amd_cert.pin(ark) not in PINS.values()


def test_a_signature_by_another_key_of_the_same_id_is_bad() -> None:
    with pytest.raises(BadSignature, match=r"ASK: .*does not verify"):
        amd_cert.verify(sub(signer=OTHER), root())
    with pytest.raises(BadSignature, match="ARK"):
        amd_cert.verify(root(OTHER), root())


def test_only_a_root_signs() -> None:
    with pytest.raises(InvalidCertificate, match="must be ARK"):
        amd_cert.verify(sub(), sub())


def test_a_root_signs_itself() -> None:
    crossed = amd_cert.issue(
        key=OTHER.public_key(), usage=Usage.ARK, key_id=SUB_ID, signer=KEY, signer_key_id=ROOT_ID
    )
    with pytest.raises(InvalidCertificate, match="a root signs itself"):
        amd_cert.verify(crossed, root())


# ---- the format --------------------------------------------------------------------------------------------

HEADER_TWINS = [
    (AmdCertHeader.FIELDS["version"].offset, 2, "version 2"),
    (AmdCertHeader.FIELDS["key_usage"].offset, 0x10, "0x10 is not a Usage"),
    (0x28, 1, "reserved bytes 0x28..0x37"),
    (0x37, 1, "reserved bytes 0x28..0x37"),
    (0x38, 8, "2048 or 4096 wanted"),
    (0x3C, 8, "2048 or 4096 wanted"),
]


@pytest.mark.parametrize(("offset", "value", "reason"), HEADER_TWINS)
def test_a_malformed_header_is_refused(offset: int, value: int, reason: str) -> None:
    data = bytearray(bytes(root()))
    data[offset] = value
    with pytest.raises(WireError, match=reason):
        AmdCert.parse(bytes(data))


def test_a_usage_that_is_no_roots_is_refused() -> None:
    data = bytearray(bytes(root()))
    data[0x24:0x28] = int(Usage.CEK).to_bytes(4, "little")
    with pytest.raises(WireError, match="neither ARK nor ASK"):
        AmdCert.parse(bytes(data))


@pytest.mark.parametrize("length", [0, 0x3F, 0x40, 575, 577, 831, 833, 0x640])
def test_another_length_is_refused(length: int) -> None:
    data = bytes(root()).ljust(length, b"\x00")[:length]
    with pytest.raises(WireError, match=f"{length} bytes"):
        AmdCert.parse(data)


@given(st.binary(max_size=0x700) | st.tuples(st.just(bytes(root())[:0x40]), st.binary()).map(b"".join))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for read in (AmdCert.parse, AmdCert.size_at):
        try:
            read(data)
        except WireError:
            continue


@given(st.data())
def test_altered_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    good = bytes(root())
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        cert = AmdCert.parse(bytes(raw))
        assert bytes(cert) == bytes(raw)
        amd_cert.verify(cert, cert)
    except CbitError:
        return
    assert bytes(raw) == good


def test_hashes_follow_the_size_of_the_key() -> None:
    assert amd_cert.digest_for(2048).name == "sha256"
    assert amd_cert.digest_for(4096).name == "sha384"
    assert len(rsa.sign(KEY, b"", amd_cert.digest_for(2048))) == 256
