"""A device's port: addresses as the device drives them, C-bit inside, and never an ASID.

Paper: memory-encryption.md §5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cbit.memory.cache import Cache
from cbit.memory.errors import AddressError
from cbit.memory.iommu import Iommu, Place, place
from cbit.memory.physical import Data
from cbit.spec.address import PAGE


class DmaPort:
    """Reads and writes memory for one device.

    C=1 in the address means the host's key, C=0 none (rule 1).  No request carries an ASID, so a guest's
    private page is ciphertext, or a host-key decrypt of it, and its cached plaintext is never hit (rule 4).

    Attributes:
        c_bit: position of the C-bit; None while SYSCFG.MemEncryptionModEn is 0 (§2.2): then it is an address
            bit like the others.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        c_bit: int | None,
        iommu: Iommu | None = None,
        device_id: int = 0,
        address_bits: int = 64,
    ) -> None:
        """Attach a device.

        Args:
            cache: memory, with the snoop that keeps devices coherent with host data.
            c_bit: position of the C-bit, or None.
            iommu: what translates the device's addresses; None: the device drives system addresses.
            device_id: index in the IOMMU's device table.
            address_bits: address lines that the device has; 32 cannot drive the C-bit (rule 2).
        """
        self._cache = cache
        self._iommu = iommu
        self._device_id = device_id
        self._address_bits: Final = address_bits
        self.c_bit = c_bit

    def read(self, address: int, length: int) -> bytes:
        """Read memory as the device sees it.

        Raises:
            AddressError: the device cannot drive this address, or it is not DRAM.
            IommuFault: the IOMMU's tables do not permit it.
        """
        pieces = self._pieces(address, length, write=False)
        return b"".join(self._cache.snoop_read(at.spa, count, at.key_id) for at, count in pieces)

    def write(self, address: int, data: Data) -> None:
        """Write memory; a request of which any page is refused writes nothing (errors as `read`)."""
        data = memoryview(data).cast("B")
        done = 0
        for at, count in self._pieces(address, len(data), write=True):
            self._cache.snoop_write(at.spa, data[done : done + count], at.key_id)
            done += count

    def _pieces(self, address: int, length: int, *, write: bool) -> list[tuple[Place, int]]:
        """Cut a request into what goes where, (place, count), all of it checked before any byte moves."""
        if address < 0 or length < 0 or address + max(length, 1) > 1 << self._address_bits:
            why = f"{length} bytes from here do not fit the device's {self._address_bits} address bits"
            raise AddressError(address, why)
        if self._iommu is None:
            pieces = [(place(address, self.c_bit), length)]
        else:
            pieces = list(self._translated(self._iommu, address, length, write=write))
        for at, count in pieces:
            self._cache.check(at.spa, count, at.key_id)
        return pieces

    def _translated(
        self, iommu: Iommu, address: int, length: int, *, write: bool
    ) -> Iterator[tuple[Place, int]]:
        end = address + length
        while address < end:
            count = min(PAGE - address % PAGE, end - address)
            yield iommu.translate(self._device_id, address, write=write), count
            address += count
