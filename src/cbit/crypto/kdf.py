"""NIST SP 800-108 counter-mode KDF with HMAC-SHA256, as the firmware numbers its blocks.

Paper: sev-crypto.md §6.  Counter and length are *little-endian*, the length is in bits.
"""

from __future__ import annotations

import hmac
from typing import Final

MASTER_SECRET: Final = b"sev-master-secret"
KEK: Final = b"sev-kek"
KIK: Final = b"sev-kik"
CEK: Final = b"sev-chip-endorsement-key"


def kdf(length: int, key: bytes, label: bytes, context: bytes = b"") -> bytes:
    """Derive ``length`` bytes from ``key``; ``label`` comes without its terminating NUL."""
    bits = (8 * length).to_bytes(4, "little")
    blocks = [
        hmac.digest(key, i.to_bytes(4, "little") + label + b"\x00" + context + bits, "sha256")
        for i in range(1, -(-length // 32) + 1)
    ]
    return b"".join(blocks)[:length]
