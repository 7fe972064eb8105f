"""The trusted memory region (TMR): DRAM that the secure processor has taken for itself.

MODEL CHOICE: an access of a core, an engine or a device that reaches the region is refused as one to memory
that is not there, and moves nothing (the dossier says that the words are unreachable, and not what is read).
Not modelled: that microcode writes the upper half; nothing executes here that would.

Paper: memory-encryption.md §10.2; sev-api.md §5 (INIT: TMR_PADDR).
"""

from __future__ import annotations

from dataclasses import dataclass

from cbit.memory.errors import AddressError


@dataclass(frozen=True, slots=True)
class TrustedRegion:
    """A range of DRAM, from ``start`` up to ``end``; empty where nothing was taken."""

    start: int = 0
    end: int = 0

    def is_reached(self, spa: int, length: int) -> bool:
        """Say whether a request reaches the region."""
        return spa < self.end and self.start < spa + length

    def check(self, spa: int, length: int) -> None:
        """Refuse a request that reaches the region.

        Raises:
            AddressError: it does.
        """
        if self.is_reached(spa, length):
            place = f"the trusted memory region {self.start:#x}..{self.end - 1:#x}"
            raise AddressError(spa, f"{place} is the secure processor's alone")
