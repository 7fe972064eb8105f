"""Physical memory as a core sees it, and the last check before a request leaves the core.

TSME is not decided here: the memory controller puts the host's key wherever there would be none (§4.1), so
that cores and devices meet under the same cache tag.

Paper: memory-encryption.md §4.1 (MMIO), §6 (tagged copies).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cbit.cpu.faults import EncryptedMmio
from cbit.memory.physical import PhysicalMemory
from cbit.spec.address import Spa
from cbit.spec.key_id import UNENCRYPTED, KeyId


class CachedMemory(PhysicalMemory, Protocol):
    """DRAM behind its cache and its inline AES engine.

    Copies are tagged with the key id; tags of one page are mutually incoherent unless ``coherent``.
    """

    @property
    def coherent(self) -> bool:
        """Whether hardware keeps copies of different tags coherent."""
        ...

    def wbinvd(self) -> int:
        """Write back and drop every copy; return how many were written back."""
        ...

    def invd(self) -> int:
        """Drop every copy without writing it back; return how many."""
        ...

    def clflush(self, spa: Spa, key_id: KeyId) -> int:
        """Write back and drop the copy under this tag, on coherent parts under every tag.

        Returns:
            How many were dirty.
        """
        ...

    def vmpage_flush(self, spa: Spa, asid: int) -> int:
        """Write back and drop the private copy of this ASID; return how many were dirty."""
        ...


class PhysicalPort:
    """The core's door to physical memory.

    Args:
        memory: what lies behind it.
        mmio: address ranges that are device registers and not DRAM.
    """

    def __init__(self, memory: CachedMemory, *, mmio: Sequence[range] = ()) -> None:
        self.memory = memory
        self._mmio = tuple(mmio)

    def read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        """Read bytes that do not leave their page.

        Raises:
            EncryptedMmio: a key is asked for on a device's registers.
            AddressError: there is no memory.
        """
        if key_id != UNENCRYPTED:
            self.check(spa, length, key_id)
        return self.memory.read(spa, length, key_id)

    def write(self, spa: Spa, data: bytes, key_id: KeyId) -> None:
        """Write bytes that do not leave their page (errors as `read`)."""
        if key_id != UNENCRYPTED:
            self.check(spa, len(data), key_id)
        self.memory.write(spa, data, key_id)

    def check(self, spa: Spa, length: int, key_id: KeyId) -> None:
        """Refuse a key on a device's registers.

        Paper: memory-encryption.md §4.1, row "MMIO pages".
        """
        if key_id == UNENCRYPTED:
            return
        if any(spa < device.stop and device.start < spa + length for device in self._mmio):
            # MODEL CHOICE: a device has no key; hardware leaves the result undefined.
            raise EncryptedMmio(f"C=1 access (key id {key_id}) to device registers at {spa:#x}")
