"""The synthetic flows: every certificate and signature in them.

The MACs, wraps and packets of the same flows are in the tests of their own modules.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes

from cbit.crypto import ec, sev_cert
from cbit.spec.certificate import UNUSED_SLOT, Algo, EcdsaSignature, SevCert, Usage
from cbit.spec.errors import BadSignature, InvalidCertificate
from cbit.spec.policy import ApiVersion
from crypto.published import FLOWS, Flow

flows = pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)


def certificates(flow: Flow) -> dict[str, SevCert]:
    pek, oca, cek = flow.chain()
    files = ("pdh", "godh", "receiver_pdh")
    return {"pek": pek, "oca": oca, "cek": cek} | {f: SevCert.parse(flow.file(f"{f}.cert")) for f in files}


@flows
def test_each_certificate_carries_the_key_of_its_scalar(flow: Flow) -> None:
    for name, cert in certificates(flow).items():
        expected = bytes(ec.encode_public(flow.key(name).public_key()))
        assert cert.pubkey == expected


@flows
def test_the_chain_verifies(flow: Flow) -> None:
    certs = certificates(flow)
    sev_cert.verify(certs["oca"], certs["oca"])
    sev_cert.verify(certs["pek"], certs["oca"])
    sev_cert.verify(certs["pek"], certs["cek"])
    sev_cert.verify(certs["pdh"], certs["pek"])
    assert certs["cek"].slots() == (UNUSED_SLOT, UNUSED_SLOT)  # as PDH_CERT_EXPORT gives it
    with pytest.raises(InvalidCertificate):
        sev_cert.verify(certs["cek"], certs["pek"])


@flows
def test_the_exported_csr_is_the_pek_without_its_signatures(flow: Flow) -> None:
    pek, _, _ = flow.chain()
    assert bytes(sev_cert.without_signatures(pek)) == flow.file("pek_csr.cert")


@flows
def test_bodies_are_built_byte_for_byte(flow: Flow) -> None:
    for name, cert in certificates(flow).items():
        usage = Usage[name.rpartition("_")[2].upper()] if name != "godh" else Usage.PDH
        built = sev_cert.build(
            usage=usage,
            algo=Algo.ECDH_SHA256 if usage is Usage.PDH else Algo.ECDSA_SHA256,
            key=flow.key(name).public_key(),
            api=ApiVersion(cert.api_major, cert.api_minor),
        )
        assert built.body == cert.body


@flows
def test_peers_certificates_are_sane(flow: Flow) -> None:
    for name in ("godh", "receiver_pdh", "pdh"):
        sev_cert.check_sanity(certificates(flow)[name], usage=Usage.PDH, algo=Algo.ECDH_SHA256)


@flows
def test_the_attestation_report_is_signed_by_the_pek(flow: Flow) -> None:
    # origin = sev-crypto.md §12: signed bytes [0x00, 0x34), R and S of 72 bytes at 0x40
    report = flow.file("attestation_report.bin")
    assert report[:0x10].hex() == flow.values["attestation_mnonce"]
    assert report[0x10:0x30].hex() == flow.values["launch_digest"]
    assert int.from_bytes(report[0x30:0x34], "little") == flow.policy
    signature = EcdsaSignature.parse(report[0x40:0xD0].ljust(512, b"\x00"))
    key = sev_cert.public_key(flow.chain()[0])
    ec.verify(key, signature, report[:0x34], hashes.SHA256())
    for end in (0x33, 0x35, 0x40):
        with pytest.raises(BadSignature):
            ec.verify(key, signature, report[:end], hashes.SHA256())
