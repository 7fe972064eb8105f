"""What CPUID Fn0000_0001 EAX says about a virtual CPU: its family, model and stepping.

    27 … 20 ext. family | 19 … 16 ext. model | 11 … 8 family | 7 … 4 model | 3 … 0 stepping

Paper: launch-inputs.md §6.1 (signatures used, formula).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class Cpu(NamedTuple):
    """Family and model with their extensions added in, and stepping."""

    family: int
    model: int
    stepping: int

    @property
    def signature(self) -> int:
        """CPUID Fn1 EAX.

        Raises:
            ValueError: a number that its field does not hold.
        """
        if not (0 <= self.family <= 0xF + 0xFF and 0 <= self.model <= 0xFF and 0 <= self.stepping <= 0xF):
            raise ValueError(f"{self}: family 0..270, model 0..255 and stepping 0..15 can be written")
        extension = max(self.family - 0xF, 0)
        return (
            self.stepping
            | (self.model & 0xF) << 4
            | min(self.family, 0xF) << 8
            | (self.model >> 4) << 16
            | extension << 20
        )

    @classmethod
    def of(cls, signature: int) -> Cpu:
        """Take a signature apart."""
        family = signature >> 8 & 0xF
        if family == 0xF:
            family += signature >> 20 & 0xFF
        return cls(family, signature >> 4 & 0xF | (signature >> 16 & 0xF) << 4, signature & 0xF)

    def __str__(self) -> str:
        return f"family {self.family} model {self.model} stepping {self.stepping}"


#: QEMU's name of a CPU to its signature; every version (``-v4``) of a name has the same one.
CPUS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "EPYC": 0x00800F12,  # Naples
        "EPYC-IBPB": 0x00800F12,
        "EPYC-Rome": 0x00830F10,
        "EPYC-Milan": 0x00A00F11,
        "EPYC-Genoa": 0x00A10F10,
        "EPYC-Turin": 0x00B00F00,
    }
)

_TRIPLE: Final = r"([0-9]+)[:/,.]([0-9]+)[:/,.]([0-9]+)$"


def _unversioned(name: str) -> str:
    """Take the version (``-v4``) from a name that has one."""
    base, _, version = name.rpartition("-v")
    counts = version.isascii() and version.isdecimal() and not version.startswith("0")
    return base if counts else name


def signature_of(text: str) -> int:
    """Read a CPU type: a name, a signature (0x00A00F11), or family:model:stepping (25:1:1).

    Raises:
        ValueError: none of these.
    """
    names = {name.lower(): signature for name, signature in CPUS.items()}
    name = _unversioned(text.strip().lower())
    if name in names:
        return names[name]
    if triple := re.match(_TRIPLE, text.strip()):
        return Cpu(*map(int, triple.groups())).signature
    try:
        signature = int(text, 0)
    except ValueError:
        signature = -1
    if not 0 <= signature < 1 << 32:
        raise ValueError(
            f"{text!r} is no CPU type: one of {', '.join(CPUS)}, a signature such as 0x00A00F11 "
            "(CPUID function 1, EAX, as the guest sees it), or family:model:stepping"
        )
    return signature


def name_of(signature: int) -> str:
    """Say a signature with the name it has, if it has one."""
    names = "/".join(name for name, known in CPUS.items() if known == signature and name != "EPYC-IBPB")
    return f"{signature:#010x} ({names or Cpu.of(signature)})"
