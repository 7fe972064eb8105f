"""Address kinds, the units of memory, and the one place where the C-bit is stripped.

Paper: memory-encryption.md §1 rule 3 (units), §3 (C-bit and physical-address reduction).
"""

from __future__ import annotations

from typing import Final, NewType

Spa = NewType("Spa", int)  #: system physical address, C-bit stripped: selects DRAM and the tweak
Gpa = NewType("Gpa", int)  #: guest physical address, C-bit stripped
Gva = NewType("Gva", int)  #: guest linear address
Hva = NewType("Hva", int)  #: host linear address

BLOCK: Final = 16  #: bytes the AES engine encrypts independently of their neighbours
LINE: Final = 64  #: bytes of one DRAM transfer and of one hardware cache line
PAGE: Final = 4096  #: bytes of the smallest page, and of one fill of the modelled cache

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30


def strip_c_bit(address: int, position: int) -> tuple[int, bool]:
    """Split an address as software writes it into (address without the C-bit, C).

    The C-bit never selects DRAM; it only says "use a key" (§3 rule 5).
    """
    c = 1 << position
    return address & ~c, bool(address & c)
