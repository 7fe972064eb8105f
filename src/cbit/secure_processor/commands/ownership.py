"""Identity and ownership: PEK, PDH, OCA.

Paper: sev-api.md §5 (PEK_GEN … PDH_CERT_EXPORT); sev-crypto.md §2.5, §4.
"""

from __future__ import annotations

from cbit.crypto import sev_cert
from cbit.secure_processor.call import Call
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.identity import Identity
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE, UNUSED_SLOT, SevCert, Usage
from cbit.spec.errors import BadSignature, InvalidCertificate
from cbit.spec.status import Status


def pek_gen(call: Call[None]) -> None:
    """PEK_GEN: new OCA, PEK and PDH; the machine owns itself again."""
    _adopt(call.firmware, Identity.self_owned(call.firmware.platform.issuer))


def pdh_gen(call: Call[None]) -> None:
    """PDH_GEN: a new PDH; running launches keep their transport keys."""
    platform = call.firmware.platform
    _adopt(call.firmware, platform.identity.with_new_pdh(platform.issuer))


def _adopt(firmware: Firmware, identity: Identity) -> None:
    firmware.save(identity)  # first: a failed write must leave the old identity in force
    firmware.platform.identity = identity


def pek_csr(call: Call[buffers.PekCsr]) -> buffers.PekCsr:
    """PEK_CSR: the PEK certificate with both signature slots unused, for an organisation to sign."""
    given = call.given
    if given.length < CERT_SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"length {given.length:#x}, needs {CERT_SIZE:#x}",
            corrected=given.replace(length=CERT_SIZE),
        )
    csr = sev_cert.without_signatures(call.firmware.platform.identity.pek_cert)
    call.firmware.memory.write_host(given.paddr, bytes(csr), "PEK_CSR buffer")
    return given.replace(length=CERT_SIZE)


def pek_cert_import(call: Call[buffers.PekCertImport]) -> None:
    """PEK_CERT_IMPORT: an organisation takes ownership."""
    firmware, given = call.firmware, call.given
    platform = firmware.platform
    # 1. only a machine that owns itself
    if platform.identity.externally_owned:
        raise Refused(
            Status.ALREADY_OWNED, "the platform is externally owned: PEK_GEN or PLATFORM_RESET first"
        )
    # 2. lengths
    if given.pek_len != CERT_SIZE or given.oca_len != CERT_SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"PEK {given.pek_len:#x} and OCA {given.oca_len:#x} bytes, both must be {CERT_SIZE:#x}",
        )
    pek = _read_cert(firmware, given.pek_paddr, "PEK certificate")
    oca = _read_cert(firmware, given.oca_paddr, "OCA certificate")
    # 3. OCA signs itself (which only an OCA may), and the PEK
    _check("OCA", oca, oca)
    _check("PEK", pek, oca)
    # 4. it must be *this* platform's PEK
    if pek.body != platform.identity.pek_cert.body:
        raise Refused(Status.INVALID_CERTIFICATE, "the imported PEK is not this platform's current PEK")
    # 5. the chip's endorsement moves into the first unused slot
    free = next((n for n, slot in enumerate(pek.slots(), 1) if slot[:2] == UNUSED_SLOT[:2]), None)
    if free is None:
        raise Refused(Status.INVALID_CERTIFICATE, "the imported PEK has no unused signature slot for the CEK")
    pek = platform.issuer.sign_by_cek(pek, slot=free)
    # 6. new PDH, all saved together
    _adopt(firmware, platform.identity.owned_by(oca, pek, platform.issuer))


def _read_cert(firmware: Firmware, address: int, what: str) -> SevCert:
    return SevCert.parse(firmware.memory.read_host(address, CERT_SIZE, what), canonical=False)


def _check(name: str, cert: SevCert, parent: SevCert) -> None:
    try:
        sev_cert.verify(cert, parent)
    except BadSignature as error:
        raise Refused(Status.BAD_SIGNATURE, f"{name}: {error}") from None
    except InvalidCertificate as error:
        raise Refused(Status.INVALID_CERTIFICATE, f"{name}: {error}") from None


def pdh_cert_export(call: Call[buffers.PdhCertExport]) -> buffers.PdhCertExport:
    """PDH_CERT_EXPORT: the PDH, and the chain PEK ‖ OCA ‖ CEK with an unsigned CEK."""
    firmware, given = call.firmware, call.given
    lengths = given.replace(pdh_len=CERT_SIZE, certs_len=CHAIN_SIZE)
    if given.pdh_len < CERT_SIZE or given.certs_len < CHAIN_SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"PDH {given.pdh_len:#x}, chain {given.certs_len:#x}: needs {CERT_SIZE:#x} and {CHAIN_SIZE:#x}",
            corrected=lengths,
        )
    platform = firmware.platform
    identity = platform.identity
    cek = platform.issuer.certificate(Usage.CEK, platform.issuer.cek)
    chain = bytes(identity.pek_cert) + bytes(identity.oca_cert) + bytes(cek)
    firmware.memory.host_range(given.certs_paddr, CHAIN_SIZE, "chain buffer")
    firmware.memory.write_host(given.pdh_paddr, bytes(identity.pdh_cert), "PDH buffer")
    firmware.memory.write_host(given.certs_paddr, chain, "chain buffer")
    return lengths
