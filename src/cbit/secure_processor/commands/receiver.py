"""Is the platform that shall receive a guest one that the guest's policy allows?

    POLICY.SEV      ARK (fused) → ASK → CEK → PEK → PDH     an AMD processor, and new enough firmware
    POLICY.DOMAIN   OCA (ours) → PEK → PDH                  the same owner
    neither         any sane PDH certificate, signed by nobody

Paper: sev-api.md §8 SEND_START; sev-crypto.md §1 (policy), §2.5 (validation), §3 (roots), §4 (blobs).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cbit.crypto import amd_cert, sev_cert
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE, SevCert, Usage
from cbit.spec.errors import BadSignature, InvalidCertificate, WireError
from cbit.spec.policy import ApiVersion, Policy, required_api
from cbit.spec.status import Status

#: ASK ‖ ARK with keys of 2048 or of 4096 bits.  The published firmware has two mixed values beside these,
#: from a formula that does not equal the true sizes; no product mixes them (sev-crypto.md §4).
AMD_CERTS_SIZES: Final = (0x680, 0xC80)


def check_receiver(firmware: Firmware, given: buffers.SendStart, *, policy: int) -> SevCert:
    """Check what the policy asks for and return the receiver's PDH certificate.

    Raises:
        Refused: INVALID_LENGTH, INVALID_ADDRESS, BAD_SIGNATURE, INVALID_CERTIFICATE or POLICY_FAILURE.
    """
    sev, domain = bool(policy & Policy.SEV), bool(policy & Policy.DOMAIN)
    # 1. lengths
    if (sev or domain) and given.plat_certs_len != CHAIN_SIZE:
        raise _bad_length("PLAT_CERTS_LEN", given.plat_certs_len)
    if given.pdh_cert_len != CERT_SIZE:
        raise _bad_length("PDH_CERT_LEN", given.pdh_cert_len)
    if sev and given.amd_certs_len not in AMD_CERTS_SIZES:
        raise _bad_length("AMD_CERTS_LEN", given.amd_certs_len)
    # 2. read everything once
    read = firmware.memory.read_host
    pdh = SevCert.parse(read(given.pdh_cert_paddr, CERT_SIZE, "PDH certificate"), canonical=False)
    if not (sev or domain):
        return pdh
    chain = read(given.plat_certs_paddr, CHAIN_SIZE, "platform certificates")
    pek, oca, cek = (
        SevCert.parse(chain[at : at + CERT_SIZE], canonical=False) for at in range(0, CHAIN_SIZE, CERT_SIZE)
    )
    # 3. the proofs
    if sev:
        amd = read(given.amd_certs_paddr, given.amd_certs_len, "AMD certificates")
        with _refusing():
            sev_cert.verify(cek, _trusted_ask(firmware, amd))
            sev_cert.verify(pek, cek)
            sev_cert.verify(pdh, pek)
        _check_version(pek, policy)
    if domain:
        with _refusing():
            sev_cert.verify(oca, oca)
            sev_cert.verify(pek, oca)
            sev_cert.verify(pdh, pek)
        if bytes(oca) != bytes(firmware.platform.identity.oca_cert):
            raise Refused(Status.POLICY_FAILURE, "the receiver's OCA is not ours: another domain (DOMAIN)")
    return pdh


def _bad_length(what: str, length: int) -> Refused:
    return Refused(Status.INVALID_LENGTH, f"{what} {length:#x} is no length of these certificates")


def _check_version(pek: SevCert, policy: int) -> None:
    found, wanted = ApiVersion(pek.api_major, pek.api_minor), required_api(policy)
    if found < wanted:
        raise Refused(
            Status.POLICY_FAILURE, f"the policy wants API {wanted} or later, the receiver's PEK says {found}"
        )


def _trusted_ask(firmware: Firmware, amd: bytes) -> AmdCert:
    """Check ASK ‖ ARK against the root in the fuses, and return the ASK."""
    half = len(amd) // 2
    ask, ark = AmdCert.parse(amd[:half]), AmdCert.parse(amd[half:])
    if (ask.header.key_usage, ark.header.key_usage) != (Usage.ASK, Usage.ARK):
        raise InvalidCertificate("AMD certificates: must be an ASK, then an ARK")
    amd_cert.verify(ark, ark)
    if not firmware.fuses.trusts(ark.signed_bytes):
        raise InvalidCertificate(f"ARK {ark.header.key_id.hex()} is not the root in this chip's fuses")
    amd_cert.verify(ask, ark)
    return ask


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what is wrong with a certificate into its status."""
    try:
        yield
    except BadSignature as error:
        raise Refused(Status.BAD_SIGNATURE, str(error)) from None
    except (InvalidCertificate, WireError) as error:
        raise Refused(Status.INVALID_CERTIFICATE, str(error)) from None
