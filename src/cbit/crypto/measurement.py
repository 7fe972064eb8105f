"""The launch measurement: what the secure processor signs with the session's TIK.

Paper: sev-crypto.md §9.
"""

from __future__ import annotations

import hmac

from cbit.crypto.key import Key
from cbit.spec.policy import ApiVersion, policy_bytes
from cbit.spec.session import CONTEXT_MEASURE


def measurement(tik: Key, *, api: ApiVersion, build: int, policy: int, digest: bytes, mnonce: bytes) -> bytes:
    """HMAC-SHA256(TIK; 0x04 ‖ API_MAJOR ‖ API_MINOR ‖ BUILD ‖ POLICY ‖ LD ‖ MNONCE), 32 bytes.

    Args:
        tik: the session's integrity key.
        api: the platform's API version.
        build: the platform's build number.
        policy: the guest's policy word.
        digest: the launch digest LD, 32 bytes.
        mnonce: the platform's nonce, 16 bytes.
    """
    if len(digest) != 32 or len(mnonce) != 16:
        raise ValueError(
            f"launch digest and nonce have {len(digest)} and {len(mnonce)} bytes, must have 32 and 16"
        )
    message = bytes([CONTEXT_MEASURE, api.major, api.minor, build]) + policy_bytes(policy) + digest + mnonce
    return hmac.digest(tik.material(), message, "sha256")
