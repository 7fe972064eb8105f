"""A chain is accepted when every byte of it is right, and refused by name when one is not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from cbit.crypto import amd_cert, ec, sev_cert
from cbit.owner.errors import Untrusted
from cbit.owner.verify.chain import Chain
from cbit.owner.verify.roots import AMD_ROOTS, amd_root, read_root
from cbit.owner.verify.verdict import (
    SIGNATURES,
    UnverifiedPlatform,
    VerifiedPlatform,
    inspect,
    verify_chain,
)
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import Algo, SevCert, Usage
from cbit.spec.errors import InvalidCertificate, WireError
from owner.remembered import remember_good_signatures
from owner.worlds import ROLES, VECTORS, changed, emulated, flipped, real, scalar

REAL = ("naples", "milan")


@pytest.mark.parametrize("product", REAL)
def test_a_real_platform_verifies_under_the_pinned_root(product: str) -> None:
    platform = verify_chain(real(product))
    assert f"AMD {product.capitalize()} (pinned)" == platform.root
    assert not platform.simulated
    assert bytes(platform.pdh) == real(product).pdh.raw
    assert [(True, "")] * len(SIGNATURES) == [(s.good, s.reason) for s in platform.inspection.signatures]


@pytest.mark.parametrize("product", ["naples", "milan", "genoa"])
def test_the_published_roots_have_the_pins_and_key_ids_of_the_table(product: str) -> None:
    ark = AmdCert.parse((VECTORS / "amd-root" / f"ark_{product}.cert").read_bytes())
    root = amd_root(ark)
    assert root is not None
    assert (product.capitalize(), ark.header.key_id.hex()) == (root.product, root.key_id)


def test_five_roots_are_pinned() -> None:
    assert ["Naples", "Rome", "Milan", "Genoa", "Turin"] == [root.product for root in AMD_ROOTS]
    assert 5 == len({root.pin for root in AMD_ROOTS}) == len({root.key_id for root in AMD_ROOTS})


def refused(chain: Chain, trust: tuple[AmdCert, ...] = ()) -> str:
    with pytest.raises(Untrusted) as caught:
        verify_chain(chain, trust=trust)
    assert caught.value.reasons
    return " | ".join(caught.value.reasons)


@pytest.mark.parametrize("product", REAL)
@pytest.mark.parametrize("role", ROLES)
def test_no_flipped_bit_is_accepted(product: str, role: str) -> None:
    # A prime stride meets every field and every bit position of a byte; the slow test takes every bit.
    chain = real(product)
    raw = getattr(chain, role).raw
    for bit in range(0, 8 * len(raw), 211):
        assert inspect(changed(chain, role, flipped(raw, bit))).problems, f"{role}: bit {bit} was not noticed"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("role", ROLES)
def test_no_bit_of_a_chain_can_be_flipped_unnoticed(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_good_signatures(monkeypatch)
    chain = real("milan")
    raw = getattr(chain, role).raw
    for bit in range(8 * len(raw)):
        assert inspect(changed(chain, role, flipped(raw, bit))).problems, f"{role}: bit {bit} was not noticed"


@pytest.mark.parametrize("product", REAL)
def test_an_ask_of_another_product_is_refused(product: str) -> None:
    for other in {"naples", "milan", "genoa"} - {product}:
        raw = (VECTORS / "amd-root" / f"ask_{other}.cert").read_bytes()
        why = refused(changed(real(product), "ask", raw))
        assert "CEK signed by ASK" in why
        assert "ASK signed by ARK: ASK: says it is certified by key" in why


def test_both_amd_certificates_of_another_product_are_refused_at_the_cek() -> None:
    chain = real("milan")
    for role in ("ask", "ark"):
        chain = changed(chain, role, (VECTORS / "amd-root" / f"{role}_genoa.cert").read_bytes())
    assert "CEK signed by ASK: signature slot 1 (ASK): the RSA-PSS signature does not verify" == refused(
        chain
    )


def test_certificates_of_two_machines_do_not_mix() -> None:
    for role in ("pdh", "pek", "oca", "cek"):
        assert refused(changed(real("milan"), role, getattr(real("naples"), role).raw))


@pytest.mark.parametrize(("place", "holds"), [("pek", "oca"), ("oca", "pek"), ("pdh", "pek"), ("cek", "oca")])
def test_a_certificate_in_the_place_of_another_is_named(place: str, holds: str) -> None:
    chain = real("milan")
    why = refused(changed(chain, place, getattr(chain, holds).raw))
    assert f"the key's usage is {holds.upper()}, here stands a {place.upper()}" in why


def test_the_early_naples_ark_is_reported_as_unsigned() -> None:
    raw = (VECTORS / "sev-chain-naples" / "ark_no_signature.bin").read_bytes()
    why = refused(changed(real("naples"), "ark", raw))
    assert "ARK signed by ARK: ARK: the certificate carries no signature" == why


def test_the_exported_cek_is_reported_as_unsigned() -> None:
    chain = emulated().chain
    raw = bytes(sev_cert.without_signatures(chain.cek.sev()))
    assert "carries no signature by the ASK" in refused(changed(chain, "cek", raw), (emulated().ark,))


def test_an_emulated_root_is_refused_unless_it_is_named() -> None:
    assert "not one of AMD's pinned roots" in refused(emulated().chain)
    platform = verify_chain(emulated().chain, trust=[emulated().ark])
    assert platform.simulated
    assert platform.root.startswith("SIMULATED")


def test_trusting_one_root_trusts_no_other() -> None:
    other = AmdCert.parse((VECTORS / "amd-root" / "ark_genoa.cert").read_bytes())
    assert "not one of AMD's pinned roots" in refused(emulated().chain, (other,))


def test_a_root_that_borrows_amds_key_id_is_called_out() -> None:
    world = emulated()
    milan = bytes.fromhex(AMD_ROOTS[2].key_id)
    ark, ask = (
        amd_cert.issue(
            key=key.public_key(), usage=usage, key_id=own, signer=world.ark_key, signer_key_id=milan
        )
        for key, usage, own in (
            (world.ark_key, Usage.ARK, milan),
            (world.ask_key, Usage.ASK, b"K" * 16),
        )
    )
    chain = changed(changed(world.chain, "ark", bytes(ark)), "ask", bytes(ask))
    assert "carries the key id of AMD's Milan root, but is not that key" in refused(chain)
    assert verify_chain(chain, trust=[ark]).simulated  # named, it is an emulator's root like any other


def signed(cert: SevCert, slot: int, signer: str) -> SevCert:
    usage = Usage[signer.upper()]
    return sev_cert.sign(cert, slot=slot, signer=scalar(signer), usage=usage)


def test_after_an_import_the_two_signatures_of_the_pek_may_stand_either_way() -> None:
    bare = sev_cert.without_signatures(emulated().chain.pek.sev())
    pek = signed(signed(bare, 1, "cek"), 2, "oca")
    platform = verify_chain(changed(emulated().chain, "pek", bytes(pek)), trust=[emulated().ark])
    assert platform.inspection.ownership.startswith("external")
    assert [(1, "CEK"), (2, "OCA")] == [
        (s.slot, s.signer.name) for s in platform.inspection.signatures if s.certificate is Usage.PEK
    ]


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        (("oca", "oca"), "signature slot 2 names the key usage OCA, which does not sign here"),
        (("cek", "cek"), "carries no signature by the OCA"),
        (("oca",), "carries no signature by the CEK"),
        (("oca", "pdh"), "names the key usage PDH, which does not sign here"),
    ],
)
def test_a_pek_without_one_signature_of_each_is_refused(slots: tuple[str, ...], reason: str) -> None:
    pek = sev_cert.without_signatures(emulated().chain.pek.sev())
    for number, signer in enumerate(slots, 1):
        pek = signed(pek, number, signer)
    assert reason in refused(changed(emulated().chain, "pek", bytes(pek)), (emulated().ark,))


def patched(role: str, offset: int, content: bytes) -> Callable[[], Chain]:
    def make() -> Chain:
        raw = bytearray(getattr(emulated().chain, role).raw)
        raw[offset : offset + len(content)] = content
        return changed(emulated().chain, role, bytes(raw))

    return make


N = ec.ORDER.to_bytes(72, "little")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (patched("pdh", 0x000, b"\x02"), "version 2, must be 1"),
        (patched("pdh", 0x006, b"\x01"), "certificate: reserved bytes 0x6..0x7 are not zero"),
        (patched("pdh", 0x008, b"\x99"), "the key's usage is 0x1099, here stands a PDH"),
        (patched("pdh", 0x00C, b"\x02"), "the key's algorithm is ECDSA_SHA256, must be ECDH_SHA256"),
        (patched("pdh", 0x010, b"\x01"), "public key: curve 1, must be 2 (P-384)"),
        (patched("pdh", 0x014, b"\xff" * 72), "public key: a coordinate is not below the prime of P-384"),
        (patched("pdh", 0x413, b"\x01"), "public key: reserved bytes 0x94..0x403 are not zero"),
        (patched("pdh", 0x41C, bytes(72)), "signature slot 1: R or S is not between 0 and the order"),
        (patched("pdh", 0x41C, N), "signature slot 1: R or S is not between 0 and the order"),
        (patched("pdh", 0x61B, b"\x01"), "signature slot 1: reserved bytes 0x90..0x1ff are not zero"),
        (
            patched("pdh", 0x61C, bytes(4)),
            "signature slot 2 names the key usage ARK, which does not sign here",
        ),
        (patched("pdh", 0x620, b"\x02"), "signature slot 2 is unused, but its algorithm and bytes are not 0"),
        (patched("pdh", 0x823, b"\x01"), "signature slot 2 is unused, but its algorithm and bytes are not 0"),
        (
            patched("oca", 0x418, b"\x03"),
            "signature slot 1: the algorithm is ECDH_SHA256, must be",
        ),
        (patched("cek", 0x61B, b"\x01"), "signature slot 1: the bytes after the 256 of the RSA signature"),
        (patched("cek", 0x419, b"\x01"), "signature slot 1: the algorithm is RSA_SHA384, must be RSA_SHA256"),
        (patched("ark", 0x28, b"\x01"), "reserved bytes 0x28..0x37 are not zero"),
        (patched("ark", 0x24, b"\x13"), "here stands an ARK"),
        (patched("ark", 0x40, b"\x03\x00\x00"), "the RSA exponent is 0x3, must be 65537"),
        (patched("ask", 0x240 - 1, b"\x00"), "the RSA modulus is not an odd number of 2048 bits"),
        (patched("ask", 0x39, b"\x07"), "ASK (ask.cert): AMD certificate: 2048/1792-bit key"),
        (
            patched("ask", 0x38, (4096).to_bytes(4, "little")),
            "have fields of 4096 and 2048 bits",
        ),
    ],
)
def test_every_rule_of_the_format_is_named_when_it_is_broken(make: Callable[[], Chain], reason: str) -> None:
    assert reason in refused(make(), (emulated().ark,))


SIGNERS = {"pdh": ("pek",), "pek": ("oca", "cek"), "oca": ("oca",)}


def with_sha384(*wide: str, slots: str | None = None) -> Chain:
    """The emulated platform's chain with SHA-384; ``slots``: who is signed with SHA-256 all the same."""
    chain, ec_algos = emulated().chain, {"pdh": Algo.ECDH_SHA384}
    algos = {role: ec_algos.get(role, Algo.ECDSA_SHA384) for role in wide}
    for role in ROLES[3::-1]:  # what is signed by a key comes after it
        cert = getattr(chain, role).sev()
        cert = sev_cert.without_signatures(cert.replace(pubkey_algo=algos.get(role, cert.pubkey_algo)))
        if role == "cek":
            cert = sev_cert.sign_by_ask(cert, signer=emulated().ask_key)
        for number, signer in enumerate(SIGNERS.get(role, ()), 1):
            algo = Algo.ECDSA_SHA384 if signer in wide and role != slots else Algo.ECDSA_SHA256
            signature = ec.sign(scalar(signer), cert.body, sev_cert.digest_of(algo))
            content = (Usage[signer.upper()], algo, bytes(signature))
            cert = sev_cert.with_slot(cert, number, content)
        chain = changed(chain, role, bytes(cert))
    return chain


@pytest.mark.parametrize(
    "wide", [("pdh",), ("pek",), ("oca",), ("cek",), ("pdh", "pek", "oca", "cek")], ids=str
)
def test_keys_may_be_those_of_sha_384(wide: tuple[str, ...]) -> None:
    chain = with_sha384(*wide)
    platform = verify_chain(chain, trust=[emulated().ark])
    assert 0x100 == (platform.inspection.chain.pdh.sev().pubkey_algo & 0x100) or "pdh" not in wide
    assert UnverifiedPlatform.dangerously_trust(platform.pdh).pdh == platform.pdh
    for role in ROLES[:4]:
        for at in (0x00D, 0x419, 0x621):  # the byte in which the two hashes differ
            if role == "cek" and at == 0x621:
                continue
            assert refused(changed(chain, role, flipped(getattr(chain, role).raw, 8 * at)), (emulated().ark,))


@pytest.mark.parametrize(("role", "signer"), [("pdh", "pek"), ("pek", "oca"), ("oca", "oca")])
def test_a_slot_names_the_algorithm_of_the_key_that_signed(role: str, signer: str) -> None:
    """Good signatures with SHA-256, by keys whose own certificates say SHA-384 (sev-crypto.md §2.5)."""
    why = refused(with_sha384(signer, slots=role), (emulated().ark,))
    assert f"no signature slot names a key of usage {signer.upper()} and algorithm ECDSA_SHA384" in why


def test_all_problems_are_collected() -> None:
    chain = changed(emulated().chain, "pdh", flipped(emulated().chain.pdh.raw, 8 * 0x6))
    chain = changed(chain, "oca", flipped(chain.oca.raw, 8 * 0x430))
    found = inspect(chain)
    assert {"PDH", "OCA", "ARK"} == {problem.split()[0].strip(":") for problem in found.problems}
    assert not next(s for s in found.signatures if s.certificate is Usage.OCA).good


def test_a_verified_platform_cannot_be_made_by_hand() -> None:
    good = verify_chain(real("milan"))
    with pytest.raises(TypeError, match="verify_chain"):
        VerifiedPlatform(good.inspection, made_by=object())
    assert bytes(copy.copy(good).pdh) == bytes(good.pdh)


def test_an_unverified_platform_says_so_and_is_at_least_a_key() -> None:
    assert "dangerously unverified" in UnverifiedPlatform.dangerously_trust(real("milan").pdh.sev()).root
    with pytest.raises(InvalidCertificate):
        UnverifiedPlatform.dangerously_trust(real("milan").pek.sev())


@pytest.mark.parametrize("name", ["amd-root/ask_milan.cert", "sev-chain-milan/pek.cert"])
def test_a_trusted_root_is_an_ark(name: str) -> None:
    with pytest.raises(WireError, match="a trusted root is"):
        read_root((VECTORS / name).read_bytes(), source=name)


def test_the_algorithms_of_real_certificates_are_those_of_the_rules() -> None:
    for product in REAL:
        chain = real(product)
        assert Algo.ECDH_SHA256 == chain.pdh.sev().pubkey_algo
        assert {Algo.ECDSA_SHA256} == {piece.sev().pubkey_algo for piece in (chain.pek, chain.oca, chain.cek)}
