"""The processors that cbit can be: their numbers, in two tables.

Paper: memory-encryption.md §2.1 (published values), §9 (modes).  What is not there is a MODEL CHOICE, marked
below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cbit.cpu.cpuid import EncryptionFeatures
from cbit.crypto.entropy import Entropy
from cbit.crypto.memory_modes import Mode, Tweak
from cbit.spec.errors import CbitError
from cbit.spec.policy import ApiVersion


class UnknownProfile(CbitError):
    """There is no such profile; the message lists those that exist."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One processor generation.

    Attributes:
        name: its name on the command line.
        features: what CPUID reports about memory encryption.
        api: firmware interface version.
        build: firmware build number.
        modes: engine modes that the part may have; the first is the default.
        fixed_tweaks: whether the published Zen 1 constants are used, instead of fresh ones per boot.
        mailbox: register generation.
        root_bits: size of AMD's root keys of this generation.
    """

    name: str
    features: EncryptionFeatures
    api: ApiVersion
    build: int
    modes: tuple[Mode, ...]
    fixed_tweaks: bool
    mailbox: str
    root_bits: int

    def tweak(self, mode: Mode, entropy: Entropy) -> Tweak | None:
        """Return the address constants of one boot; XTS has none."""
        if mode is Mode.XTS:
            return None
        return Tweak.zen1() if self.fixed_tweaks else Tweak.random(entropy)


def _features(
    c_bit: int, lost: int, guests: int, first: int, *, bits: int, coherent: bool
) -> EncryptionFeatures:
    return EncryptionFeatures(
        c_bit=c_bit,
        address_reduction=lost,
        guests=guests,
        min_sev_no_es_asid=first,
        physical_bits=bits,
        coherent=coherent,
    )


# MODEL CHOICE: Rome's C-bit is 51 (sources disagree, §2.1); coherent caches (CPUID bit 10) from Milan on,
# where the sources name no generation; first ASIDs without ES of Rome, Milan and Genoa; Genoa's 52 address
# bits.
# fmt: off
_CPUID: Final = MappingProxyType({
    #              C-bit, bits lost, guests, first ASID without ES, address bits, coherent caches
    "naples": _features(47, 5,   15,   5, bits=48, coherent=False),
    "rome":   _features(51, 5,  509, 100, bits=48, coherent=False),
    "milan":  _features(51, 5,  509, 100, bits=48, coherent=True),
    "genoa":  _features(51, 6, 1006, 100, bits=52, coherent=True),
})
_FIRMWARE: Final = MappingProxyType({
    #          API,                build, modes,                Zen 1 constants, mailbox, root key bits
    "naples": (ApiVersion(0, 17),  48,    (Mode.XE, Mode.XEX),  True,            "sevv1", 2048),
    "rome":   (ApiVersion(0, 24),  15,    (Mode.XEX,),          False,           "sevv2", 4096),
    "milan":  (ApiVersion(1, 51),   3,    (Mode.XEX,),          False,           "sevv2", 4096),
    "genoa":  (ApiVersion(1, 55),  25,    (Mode.XTS,),          False,           "sevv2", 4096),
})
# fmt: on
PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {name: Profile(name, _CPUID[name], *row) for name, row in _FIRMWARE.items()}
)

DEFAULT: Final = "milan"


def profile(name: str) -> Profile:
    """Find a profile.

    Raises:
        UnknownProfile: there is none of this name.
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise UnknownProfile(f"no profile {name!r}: choose from {', '.join(PROFILES)}") from None
