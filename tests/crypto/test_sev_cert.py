from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa as openssl
from hypothesis import given, settings
from hypothesis import strategies as st

from cbit.crypto import amd_cert, ec, rsa, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import (
    BODY_SIZE,
    UNUSED_SLOT,
    Algo,
    EcdsaSignature,
    EcPublicKey,
    RsaPublicKey,
    SevCert,
    Usage,
)
from cbit.spec.errors import BadSignature, InvalidCertificate, WireError
from cbit.spec.policy import ApiVersion
from crypto.published import amd, platform

PRODUCTS = ["naples", "milan"]
API = ApiVersion(0, 24)
EC_USAGES = [Usage.OCA, Usage.PEK, Usage.PDH, Usage.CEK]
KEYS = {usage: ec.random_key(SeededEntropy(usage.name)) for usage in EC_USAGES}
ALGOS = {usage: Algo.ECDH_SHA256 if usage is Usage.PDH else Algo.ECDSA_SHA256 for usage in EC_USAGES}
RSA_KEY = openssl.generate_private_key(65537, 2048)  # random: no test below depends on which key it is


def unsigned(usage: Usage) -> SevCert:
    return sev_cert.build(usage=usage, algo=ALGOS[usage], key=KEYS[usage].public_key(), api=API)


def signed(usage: Usage, by: Usage, *, slot: int = 1) -> SevCert:
    return sev_cert.sign(unsigned(usage), slot=slot, signer=KEYS[by], usage=by)


def root(usage: Usage, key: openssl.RSAPrivateKey = RSA_KEY) -> AmdCert:
    return amd_cert.issue(
        key=key.public_key(), usage=usage, key_id=bytes(16), signer=key, signer_key_id=bytes(16)
    )


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


PEK, OCA, CEK = (unsigned(usage) for usage in (Usage.PEK, Usage.OCA, Usage.CEK))
GOOD = (Usage.OCA, Algo.ECDSA_SHA256, bytes(ec.sign(KEYS[Usage.OCA], PEK.body, hashes.SHA256())))
BAD = (Usage.OCA, Algo.ECDSA_SHA256, bytes(ec.sign(KEYS[Usage.CEK], PEK.body, hashes.SHA256())))
FOREIGN = (Usage.CEK, Algo.ECDSA_SHA256, bytes(ec.sign(KEYS[Usage.CEK], PEK.body, hashes.SHA256())))


def slots(cert: SevCert, one: tuple[Usage, Algo, bytes], two: tuple[Usage, Algo, bytes]) -> SevCert:
    return sev_cert.with_slot(sev_cert.with_slot(cert, 1, one), 2, two)


# ---- real platforms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_real_chain_verifies(product: str) -> None:
    # origin = vectors/sev-chain-*/README.md
    pdh, pek, oca, cek = (platform(product, name) for name in ("pdh", "pek", "oca", "cek"))
    ask = amd(f"ask_{product}")
    sev_cert.verify(oca, oca)
    sev_cert.verify(pek, oca)
    sev_cert.verify(pek, cek)
    sev_cert.verify(pdh, pek)
    sev_cert.verify(cek, ask)
    amd_cert.verify(ask, amd(f"ark_{product}"))


@pytest.mark.parametrize("product", PRODUCTS)
def test_what_a_real_chain_says_of_itself(product: str) -> None:
    certs = {name: platform(product, name) for name in ("pdh", "pek", "oca", "cek")}
    version = ApiVersion(0, 16) if product == "naples" else ApiVersion(1, 28)
    for name, cert in certs.items():
        assert cert.version == 1
        assert cert.pubkey_usage is Usage[name.upper()]
        assert cert.pubkey_algo is ALGOS[cert.pubkey_usage]
        assert (cert.api_major, cert.api_minor) == (ApiVersion(0, 14) if name == "cek" else version)
        assert EcPublicKey.parse(cert.pubkey).curve == 2
        assert len(cert.body) == BODY_SIZE
    ask_algo = Algo.RSA_SHA256 if product == "naples" else Algo.RSA_SHA384
    assert certs["pek"].slots()[0][:2] == (Usage.OCA, Algo.ECDSA_SHA256)
    assert certs["pek"].slots()[1][:2] == (Usage.CEK, Algo.ECDSA_SHA256)
    assert certs["cek"].slots()[0][:2] == (Usage.ASK, ask_algo)
    for name in ("pdh", "oca", "cek"):
        assert certs[name].slots()[1] == UNUSED_SLOT


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_wrong_parent_does_not_verify(product: str) -> None:
    pdh, pek, oca, cek = (platform(product, name) for name in ("pdh", "pek", "oca", "cek"))
    for cert, parent in ((pdh, oca), (pdh, cek), (oca, pek), (cek, pek), (pek, pdh), (pdh, pdh)):
        with pytest.raises(InvalidCertificate, match="no signature slot names"):
            sev_cert.verify(cert, parent)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_ask_of_another_product_does_not_verify(product: str) -> None:
    cek = platform(product, "cek")
    for other in {"naples", "milan", "genoa"} - {product}:
        with pytest.raises((InvalidCertificate, BadSignature)):
            sev_cert.verify(cek, amd(f"ask_{other}"))
    with pytest.raises(InvalidCertificate):
        sev_cert.verify(cek, amd(f"ark_{product}"))


def test_a_platform_of_another_product_did_not_sign() -> None:
    for name, parent in (("pdh", "pek"), ("pek", "oca"), ("pek", "cek"), ("oca", "oca")):
        with pytest.raises(BadSignature, match="does not verify"):
            sev_cert.verify(platform("milan", name), platform("naples", parent))


@pytest.mark.parametrize(
    ("name", "parent"), [("oca", "oca"), ("pek", "oca"), ("pek", "cek"), ("pdh", "pek"), ("cek", "ask")]
)
@pytest.mark.parametrize("product", PRODUCTS)
@given(data=st.data())
@settings(max_examples=60)
def test_a_flipped_bit_is_refused(product: str, name: str, parent: str, data: st.DataObject) -> None:
    """Every bit under the signature, and every bit of the slot that the parent signs."""
    good = platform(product, name)
    signer = amd(f"ask_{product}") if parent == "ask" else platform(product, parent)
    number = next(n for n, slot in enumerate(good.slots(), 1) if slot[0] == Usage[parent.upper()])
    slot = SevCert.FIELDS[f"sig{number}_usage"].offset
    used = signer.header.modulus_size // 8 if isinstance(signer, AmdCert) else 2 * 72
    bit = data.draw(st.integers(0, 8 * BODY_SIZE - 1) | st.integers(8 * slot, 8 * (slot + 8 + used) - 1))
    raw = bytearray(flipped(bytes(good), bit))
    with pytest.raises((BadSignature, InvalidCertificate)):
        sev_cert.verify(SevCert.parse(bytes(raw), canonical=False), signer)


# ---- who may sign whom -------------------------------------------------------------------------------------

# origin = sev-crypto.md §2.5 step 4
ALLOWED = {
    (Usage.PDH, Usage.PEK),
    (Usage.PEK, Usage.OCA),
    (Usage.PEK, Usage.CEK),
    (Usage.OCA, Usage.OCA),
    (Usage.CEK, Usage.ASK),
}


@pytest.mark.parametrize("parent", [*EC_USAGES, Usage.ASK, Usage.ARK])
@pytest.mark.parametrize("usage", EC_USAGES)
def test_who_may_sign_whom(usage: Usage, parent: Usage) -> None:
    signer: SevCert | AmdCert
    if parent in {Usage.ASK, Usage.ARK}:
        cert = sev_cert.sign_by_ask(unsigned(usage), signer=RSA_KEY).replace(sig1_usage=parent)
        signer = root(parent)
    else:
        signature = bytes(ec.sign(KEYS[parent], unsigned(usage).body, hashes.SHA256()))
        cert = sev_cert.with_slot(unsigned(usage), 1, (parent, ALGOS[parent], signature))
        signer = unsigned(parent)
    if (usage, parent) in ALLOWED:
        sev_cert.verify(cert, signer)
    else:  # the signature itself is good
        with pytest.raises(InvalidCertificate, match=f"usage {parent.name} may not sign one of usage"):
            sev_cert.verify(cert, signer)


def test_the_table_in_the_code_is_the_papers() -> None:
    assert {(usage, p) for usage, parents in sev_cert.PARENTS.items() for p in parents} == ALLOWED


# ---- the two slots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "verdict"),
    [
        (GOOD, UNUSED_SLOT, None),
        (UNUSED_SLOT, GOOD, None),
        (GOOD, FOREIGN, None),
        (FOREIGN, GOOD, None),
        (GOOD, GOOD, None),
        (BAD, GOOD, None),  # the last matching slot decides …
        (GOOD, BAD, BadSignature),  # … both ways
        (BAD, UNUSED_SLOT, BadSignature),
        (BAD, FOREIGN, BadSignature),
        (UNUSED_SLOT, UNUSED_SLOT, InvalidCertificate),
        (FOREIGN, FOREIGN, InvalidCertificate),
    ],
)
def test_the_last_matching_slot_decides(
    one: tuple[Usage, Algo, bytes], two: tuple[Usage, Algo, bytes], verdict: type[Exception] | None
) -> None:
    cert = slots(PEK, one, two)
    if verdict is None:
        sev_cert.verify(cert, OCA)
    else:
        with pytest.raises(verdict):
            sev_cert.verify(cert, OCA)


@pytest.mark.parametrize(
    "malformed",
    [
        (Usage.INVALID, Algo.ECDSA_SHA256, GOOD[2]),
        (Usage.OCA, Algo.INVALID, GOOD[2]),
        (Usage.ARK, Algo.INVALID, bytes(512)),  # a slot of all zeros
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_malformed_slot_is_a_bad_signature_whatever_the_other_says(
    number: int, malformed: tuple[Usage, Algo, bytes]
) -> None:
    for other in (GOOD, FOREIGN, UNUSED_SLOT):
        pair = (malformed, other) if number == 1 else (other, malformed)
        with pytest.raises(BadSignature, match=f"signature slot {number} is malformed"):
            sev_cert.verify(slots(PEK, *pair), OCA)


def test_a_malformed_second_slot_comes_before_a_bad_first_one() -> None:
    malformed = (Usage.OCA, Algo.INVALID, bytes(512))
    with pytest.raises(BadSignature, match="malformed"):
        sev_cert.verify(slots(PEK, BAD, malformed), OCA)


def test_slots_with_unknown_numbers_are_passed_over() -> None:
    raw = bytearray(bytes(slots(PEK, FOREIGN, GOOD)))
    raw[0x414:0x41C] = (0x7777).to_bytes(4, "little") + (0x8888).to_bytes(4, "little")
    sev_cert.verify(SevCert.parse(bytes(raw), canonical=False), OCA)


def test_another_algorithm_does_not_match_the_parents() -> None:
    signature = bytes(ec.sign(KEYS[Usage.OCA], PEK.body, hashes.SHA384()))
    cert = sev_cert.with_slot(PEK, 1, (Usage.OCA, Algo.ECDSA_SHA384, signature))
    with pytest.raises(InvalidCertificate, match="no signature slot names"):
        sev_cert.verify(cert, OCA)
    sev_cert.verify(cert, OCA.replace(pubkey_algo=Algo.ECDSA_SHA384))


def test_the_firmware_does_not_look_behind_the_numbers_of_a_signature() -> None:
    # §2.5 names no such check: padding is for the owner's canonical rules.
    padded = GOOD[2][:-1] + b"\x01"
    sev_cert.verify(sev_cert.with_slot(PEK, 1, (*GOOD[:2], padded)), OCA)


# ---- body and keys -----------------------------------------------------------------------------------------


def resigned(cert: SevCert) -> SevCert:
    return sev_cert.sign(cert, slot=1, signer=KEYS[Usage.OCA], usage=Usage.OCA)


@pytest.mark.parametrize("version", [0, 2, 0xFFFFFFFF])
def test_another_version_is_invalid_though_well_signed(version: int) -> None:
    with pytest.raises(InvalidCertificate, match=f"version {version}, must be 1"):
        sev_cert.verify(resigned(PEK.replace(version=version)), OCA)


def test_a_bad_signature_comes_before_a_bad_body() -> None:
    cert = slots(PEK, BAD, UNUSED_SLOT).replace(version=2)
    with pytest.raises(BadSignature):
        sev_cert.verify(cert, OCA)


OFF_CURVE = bytes(EcPublicKey(qx=1, qy=1))
OTHER_CURVE = bytes(ec.encode_public(KEYS[Usage.PEK].public_key()).replace(curve=1))


@pytest.mark.parametrize("pubkey", [bytes(0x404), OFF_CURVE, OTHER_CURVE])
def test_a_malformed_key_is_invalid_in_the_certificate_and_in_its_parent(pubkey: bytes) -> None:
    with pytest.raises(InvalidCertificate):
        sev_cert.verify(resigned(PEK.replace(pubkey=pubkey)), OCA)
    with pytest.raises(InvalidCertificate):
        sev_cert.verify(slots(PEK, GOOD, UNUSED_SLOT), OCA.replace(pubkey=pubkey))


@pytest.mark.parametrize("change", [{"pubkey_usage": Usage.INVALID}, {"pubkey_algo": Algo.INVALID}])
def test_a_parent_without_usage_or_algorithm_is_invalid(change: dict[str, int]) -> None:
    with pytest.raises(InvalidCertificate, match="INVALID"):
        sev_cert.verify(slots(PEK, GOOD, UNUSED_SLOT), OCA.replace(**change))


@pytest.mark.parametrize("field", ["pubkey_usage", "pubkey_algo"])
def test_a_parent_with_an_unknown_number_is_invalid(field: str) -> None:
    with pytest.raises(InvalidCertificate, match=r"0x7777|30583"):
        sev_cert.verify(slots(PEK, GOOD, UNUSED_SLOT), OCA.replace(**{field: 0x7777}))


@pytest.mark.parametrize("offset", [6, 7])
def test_the_reserved_bytes_are_signed_as_they_are(offset: int) -> None:
    raw = bytearray(bytes(slots(PEK, GOOD, UNUSED_SLOT)))
    raw[offset] = 1
    with pytest.raises(WireError, match="reserved"):
        SevCert.parse(bytes(raw))
    cert = SevCert.parse(bytes(raw), canonical=False)
    assert bytes(cert) == bytes(raw)  # nothing that is signed is forgotten
    with pytest.raises(BadSignature):
        sev_cert.verify(cert, OCA)
    sev_cert.verify(resigned(cert), OCA)  # the firmware does not check that they are zero


def test_the_api_version_is_not_checked() -> None:
    sev_cert.verify(resigned(PEK.replace(api_major=255, api_minor=255)), OCA)


# ---- an organisation with an RSA key -----------------------------------------------------------------------


def rsa_oca(key: openssl.RSAPrivateKey, algo: Algo) -> SevCert:
    numbers = key.public_key().public_numbers()
    pubkey = RsaPublicKey(modulus_size=key.key_size, pubexp=numbers.e, modulus=numbers.n)
    cert = SevCert(api_major=0, api_minor=0, pubkey_usage=Usage.OCA, pubkey_algo=algo, pubkey=bytes(pubkey))
    return rsa_signed(cert, key, algo)


def rsa_signed(cert: SevCert, key: openssl.RSAPrivateKey, algo: Algo) -> SevCert:
    signature = rsa.sign(key, cert.body, sev_cert.digest_of(algo)).ljust(512, b"\x00")
    return sev_cert.with_slot(cert, 1, (Usage.OCA, algo, signature))


@pytest.mark.parametrize("algo", [Algo.RSA_SHA256, Algo.RSA_SHA384])
def test_an_rsa_owner_signs_the_pek(algo: Algo) -> None:
    oca = rsa_oca(RSA_KEY, algo)
    sev_cert.verify(oca, oca)
    pek = rsa_signed(PEK, RSA_KEY, algo)
    sev_cert.verify(pek, oca)
    with pytest.raises(BadSignature):
        sev_cert.verify(pek.replace(sig1=flipped(pek.sig1, 0)), oca)
    with pytest.raises(BadSignature):
        sev_cert.verify(pek.replace(api_major=9), oca)
    other = Algo.RSA_SHA384 if algo is Algo.RSA_SHA256 else Algo.RSA_SHA256
    with pytest.raises(InvalidCertificate, match="no signature slot names"):
        sev_cert.verify(pek, oca.replace(pubkey_algo=other))


@pytest.mark.parametrize("bits", [4097, 8192, 0xFFFFFFFF])
def test_an_rsa_key_above_4096_bits_is_invalid(bits: int) -> None:
    oca = rsa_oca(RSA_KEY, Algo.RSA_SHA256)
    pubkey = RsaPublicKey.parse(oca.pubkey).replace(modulus_size=bits)
    with pytest.raises(InvalidCertificate, match=f"{bits} bits, 4096 at most"):
        sev_cert.verify(oca, oca.replace(pubkey=bytes(pubkey)))


@pytest.mark.parametrize("bits", [0, 8, 2047, 4096])
def test_an_rsa_key_that_lies_about_its_size_verifies_nothing(bits: int) -> None:
    oca = rsa_oca(RSA_KEY, Algo.RSA_SHA256)
    pubkey = RsaPublicKey.parse(oca.pubkey).replace(modulus_size=bits)
    with pytest.raises((BadSignature, InvalidCertificate)):
        sev_cert.verify(oca, oca.replace(pubkey=bytes(pubkey)))


def test_an_rsa_key_of_nothing_is_invalid() -> None:
    oca = rsa_oca(RSA_KEY, Algo.RSA_SHA256)
    with pytest.raises(InvalidCertificate, match="RSA"):
        sev_cert.verify(oca, oca.replace(pubkey=bytes(0x404)))


# ---- making ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [1, 2])
def test_a_made_chain_verifies_and_comes_back(slot: int) -> None:
    oca = signed(Usage.OCA, Usage.OCA, slot=slot)
    pek = sev_cert.sign(
        signed(Usage.PEK, Usage.OCA, slot=slot), slot=3 - slot, signer=KEYS[Usage.CEK], usage=Usage.CEK
    )
    pdh = signed(Usage.PDH, Usage.PEK, slot=slot)
    cek = sev_cert.sign_by_ask(CEK, signer=RSA_KEY)
    for cert, parent in ((oca, oca), (pek, oca), (pek, cek), (pdh, pek), (cek, root(Usage.ASK))):
        sev_cert.verify(SevCert.parse(bytes(cert)), parent)
    assert sev_cert.without_signatures(pek) == PEK
    assert sev_cert.without_signatures(cek).slots() == (UNUSED_SLOT, UNUSED_SLOT)


def test_a_signature_is_padded_with_zeros() -> None:
    assert EcdsaSignature.parse(GOOD[2])  # canonical: 368 zero bytes behind R and S
    assert sev_cert.sign_by_ask(CEK, signer=RSA_KEY).sig1[256:] == bytes(256)


def test_the_signature_does_not_cover_the_slots() -> None:
    assert slots(PEK, GOOD, FOREIGN).body == PEK.body == bytes(PEK)[:0x414]


@pytest.mark.parametrize("slot", [0, 3])
def test_there_are_two_slots(slot: int) -> None:
    with pytest.raises(TypeError):
        sev_cert.with_slot(PEK, slot, GOOD)


# ---- a peer's Diffie-Hellman certificate -------------------------------------------------------------------


def test_a_peers_certificate_needs_no_signature() -> None:
    sev_cert.check_sanity(unsigned(Usage.PDH), usage=Usage.PDH, algo=Algo.ECDH_SHA256)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"pubkey_usage": Usage.PEK},
        {"pubkey_usage": Usage.INVALID},
        {"pubkey_usage": 0x7777},
        {"pubkey_algo": Algo.ECDSA_SHA256},
        {"pubkey_algo": Algo.ECDH_SHA384},
        {"pubkey_algo": 0x7777},
        {"pubkey": bytes(0x404)},
        {"pubkey": OFF_CURVE},
        {"pubkey": OTHER_CURVE},
    ],
    ids=str,
)
def test_a_peers_certificate_is_well_formed(change: dict[str, int | bytes]) -> None:
    with pytest.raises(InvalidCertificate):
        sev_cert.check_sanity(unsigned(Usage.PDH).replace(**change), usage=Usage.PDH, algo=Algo.ECDH_SHA256)


# ---- anything ----------------------------------------------------------------------------------------------


@given(st.data())
def test_altered_certificates_raise_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(bytes(slots(PEK, GOOD, FOREIGN)))
    edges = [0x000, 0x008, 0x00C, 0x010, 0x414, 0x418, 0x61C, 0x620]
    for _ in range(data.draw(st.integers(1, 6))):
        offset = data.draw(st.sampled_from(edges) | st.integers(0, len(raw) - 1))
        raw[offset] = data.draw(st.integers(0, 255))
    cert = SevCert.parse(bytes(raw), canonical=False)
    for parent in (OCA, CEK, cert, root(Usage.ASK)):
        try:
            sev_cert.verify(cert, parent)
        except (BadSignature, InvalidCertificate):
            continue
        assert cert.body == PEK.body


@given(st.binary(min_size=0x404, max_size=0x404), st.sampled_from(list(Algo)), st.sampled_from(list(Usage)))
def test_any_parent_key_raises_nothing_else(pubkey: bytes, algo: Algo, usage: Usage) -> None:
    parent = OCA.replace(pubkey=pubkey, pubkey_algo=algo, pubkey_usage=usage)
    cert = sev_cert.with_slot(PEK, 1, (usage, algo, GOOD[2]))
    with pytest.raises((BadSignature, InvalidCertificate)):
        sev_cert.verify(cert, parent)
