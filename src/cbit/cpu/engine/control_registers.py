"""Which bits of control registers the executing processor has: a MOV that sets another one is #GP.

Paper: memory-encryption.md §3 rule 6 (the C-bit is never reserved); the bits are the AMD64 architecture's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cbit.cpu.engine.tables import VIEW_BITS

_ALL: Final = (1 << 64) - 1
_EBX, _ECX, _EDX = 1, 2, 3
_ALWAYS: Final = 1 << 8  # PCE
# fmt: off
#: Bit of CR4 -> the CPUID bit without which it is reserved.
_CR4: Final = {
    # CR4 bit  leaf register bit
    0:        (1, _EDX, 1),    # VME
    1:        (1, _EDX, 1),    # PVI
    2:        (1, _EDX, 4),    # TSD
    3:        (1, _EDX, 2),    # DE
    4:        (1, _EDX, 3),    # PSE
    5:        (1, _EDX, 6),    # PAE
    6:        (1, _EDX, 7),    # MCE
    7:        (1, _EDX, 13),   # PGE
    9:        (1, _EDX, 24),   # OSFXSR
    10:       (1, _EDX, 25),   # OSXMMEXCPT
    11:       (7, _ECX, 2),    # UMIP
    16:       (7, _EBX, 0),    # FSGSBASE
    18:       (1, _ECX, 26),   # OSXSAVE
    20:       (7, _EBX, 7),    # SMEP
    21:       (7, _EBX, 20),   # SMAP
}
# fmt: on

#: Of CR3 in long mode.  All address bits that the engine walks exist, one of them as the C-bit or not.
CR3_RESERVED: Final = _ALL & ~((1 << (VIEW_BITS + 1)) - 1)


def cr4_reserved(cpuid: Callable[[int, int], tuple[int, int, int, int]]) -> int:
    """Say which bits of CR4 a processor with this CPUID does not have.

    What the model lacks, no processor of it reports: PCID, five levels, protection keys, shadow stacks.
    """
    there = _ALWAYS
    for bit, (leaf, register, feature) in _CR4.items():
        there |= (cpuid(leaf, 0)[register] >> feature & 1) << bit
    return _ALL & ~there
