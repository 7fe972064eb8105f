"""The guest policy: what the owner allows the platform to do with the guest.

    31 … 24 API_MINOR | 23 … 16 API_MAJOR | 15 … 6 reserved | 5 SEV 4 DOMAIN 3 NOSEND 2 ES 1 NOKS 0 NODBG

Paper: sev-crypto.md §1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import STRICT, IntFlag
from typing import Final, NamedTuple, Self

from cbit.spec.errors import WireError


class ApiVersion(NamedTuple):
    """Version of the firmware interface; compares as the policy check does (major first)."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Policy(IntFlag, boundary=STRICT):
    """The flag bits; an undefined bit raises by itself."""

    NODBG = 1 << 0  #: nobody may debug the guest
    NOKS = 1 << 1  #: its key may not be shared with another guest
    ES = 1 << 2  #: SEV-ES is required
    NOSEND = 1 << 3  #: it may not be sent to another platform
    DOMAIN = 1 << 4  #: it may be sent only within the owner's domain (same OCA)
    SEV = 1 << 5  #: it may be sent only to a platform that proves to be AMD SEV


RESERVED_BITS: Final = 0xFFC0
NO_FLAGS: Final = Policy(0)
ANY_VERSION: Final = ApiVersion(0, 0)


@dataclass(frozen=True, slots=True)
class GuestPolicy:
    """The whole 32-bit policy: flags and the minimum API version."""

    flags: Policy = NO_FLAGS
    min_api: ApiVersion = ANY_VERSION

    @classmethod
    def parse(cls, value: int) -> Self:
        """Take a policy word apart.

        Raises:
            WireError: a reserved bit (15:6) is set, or the value has more than 32 bits.
        """
        if not 0 <= value < 1 << 32:
            raise WireError(f"policy {value:#x} does not fit 32 bits")
        if value & RESERVED_BITS:
            raise WireError(
                f"policy {value:#x} sets reserved bits {value & RESERVED_BITS:#x} (15:6 must be 0)"
            )
        return cls(Policy(value & 0x3F), ApiVersion(value >> 16 & 0xFF, value >> 24))

    def __int__(self) -> int:
        return int(self.flags) | self.min_api.major << 16 | self.min_api.minor << 24

    def __str__(self) -> str:
        names = "|".join(flag.name or "" for flag in self.flags) or "none"
        return f"{int(self):#x} ({names}, API >= {self.min_api})"


def policy_bytes(policy: int) -> bytes:
    """The four little-endian bytes that MACs cover."""
    return policy.to_bytes(4, "little")


def required_api(policy: int) -> ApiVersion:
    """The minimum API version a policy word asks for, whatever its other bits."""
    return ApiVersion(policy >> 16 & 0xFF, policy >> 24 & 0xFF)
