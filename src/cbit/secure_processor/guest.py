"""One guest context of the firmware.

Paper: sev-api.md §4; sev-crypto.md §5 (keys), §8 (launch digest).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys
from cbit.spec.address import Spa
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState

MAX_HANDLE: Final = 1024


@dataclass(slots=True)
class Guest:
    """A guest context; changes with its commands and lives in the secure processor's own memory.

    Attributes:
        handle: 1 … 1024.
        policy: the policy word as LAUNCH_START got it.
        vek: the memory key, also needed to ACTIVATE again and to share.
        transport: TEK and TIK while a launch or a migration goes on, else None.
        digest: running launch digest; None in a guest that is not being launched.
        launch_digest: the final digest, kept for ATTESTATION; zero in a received guest.
        measure: the 32 bytes that LAUNCH_SECRET's MAC covers.
        asid: the ASID it holds, or None.
        vmsa_slots: where the checksums of its save areas are.
        offline_key: what its pages are sealed with while they are swapped out; None until one is.
        swapped: how many were, which is the next one's IV.
    """

    handle: int
    policy: int
    vek: Key
    transport: TransportKeys | None
    state: GuestState = GuestState.UNINIT
    digest: hashlib._Hash | None = field(default_factory=hashlib.sha256, repr=False)
    launch_digest: bytes = bytes(32)
    measure: bytes = b""
    asid: int | None = None
    vmsa_slots: list[Spa] = field(default_factory=list)
    offline_key: Key | None = None
    swapped: int = 0

    @property
    def is_es(self) -> bool:
        """Whether the policy asks for SEV-ES."""
        return bool(self.policy & Policy.ES)

    def has(self, flag: Policy) -> bool:
        """Whether the policy sets a flag."""
        return bool(self.policy & flag)
