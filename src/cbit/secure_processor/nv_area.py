"""The non-volatile store in memory that the host gives (INIT_EX) and keeps on a disk of its own.

The host holds it, and cannot read or forge it: it is sealed like the flash.  It can hand back an older one;
that is the price of this command.

Paper: sev-api.md §5, INIT_EX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cbit.crypto.entropy import Entropy
from cbit.secure_processor.fuses import Fuses
from cbit.secure_processor.memory_port import MemoryPort
from cbit.secure_processor.nv_store import EMPTY, SIZE, NvStore
from cbit.spec.address import KIB

AREA_SIZE: Final = 32 * KIB


class NvArea(NvStore):
    """The store at the start of 32 KiB of host memory; what follows it is left alone."""

    def __init__(self, memory: MemoryPort, paddr: int, fuses: Fuses, entropy: Entropy) -> None:
        super().__init__(Path(), fuses, entropy)
        self._memory, self._paddr = memory, paddr

    def _read(self) -> bytes:
        blob = self._memory.read_host(self._paddr, SIZE, "NV area")
        return EMPTY if blob[:4] == EMPTY else blob

    def _replace(self, blob: bytes) -> None:
        self._memory.write_host(self._paddr, blob, "NV area")
