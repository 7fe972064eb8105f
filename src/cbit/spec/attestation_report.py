"""The report of the SEV command ATTESTATION (0xD0 bytes): which launch runs here, signed by the PEK.

Paper: sev-crypto.md §12.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.certificate import Algo, Usage
from cbit.spec.wire import Wire, at

REPORT_SIZE: Final = 0xD0
SIGNED_SIZE: Final = 0x34  #: what the signature covers


class AttestationReport(Wire, size=REPORT_SIZE):
    """An attestation report of SEV or SEV-ES.

    Paper: sev-crypto.md §12.
    """

    mnonce: bytes = at(0x00, 16)  # the caller's: what makes the report fresh
    launch_digest: bytes = at(0x10, 32)
    policy: int = at(0x30, 4)
    sig_usage: Usage = at(0x34, 4, default=Usage.PEK)
    sig_algo: Algo = at(0x38, 4, default=Algo.ECDSA_SHA256)
    r: int = at(0x40, 72)  # little-endian, as in certificates
    s: int = at(0x88, 72)
