"""The attestation report: which launch runs here, signed by the platform.

Paper: sev-api.md §7, ATTESTATION; sev-crypto.md §12.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes

from cbit.crypto import ec
from cbit.secure_processor.call import Call
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.attestation_report import REPORT_SIZE, SIGNED_SIZE, AttestationReport
from cbit.spec.status import Status


def attestation(call: Call[buffers.Attestation]) -> buffers.Attestation:
    """ATTESTATION: the launch digest and the policy with the caller's nonce, signed by the PEK."""
    firmware, given = call.firmware, call.given
    guest = call.guest(given.handle)
    call.require_state(guest)
    if given.length < REPORT_SIZE:
        raise Refused(
            Status.INVALID_LENGTH,
            f"length {given.length:#x}, needs {REPORT_SIZE:#x}",
            corrected=given.replace(length=REPORT_SIZE),
        )
    unsigned = AttestationReport(
        mnonce=given.mnonce, launch_digest=guest.launch_digest, policy=guest.policy, r=0, s=0
    )
    signed = bytes(unsigned)[:SIGNED_SIZE]
    signature = ec.sign(firmware.platform.identity.pek_key, signed, hashes.SHA256())
    report = unsigned.replace(r=signature.r, s=signature.s)
    firmware.memory.write_host(given.paddr, bytes(report), "report buffer")
    return given
