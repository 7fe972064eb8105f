"""The IOMMU: a device's address becomes a system address, by tables in DRAM that may be encrypted.

      device table --(device id)--> entry: root, levels --> table --> … --> leaf
           |C                          |C                     |C              |C   -> the request's C-bit

Each pointer carries its own C-bit, and C means the host's key: there is no ASID on this path (§5 rules 3, 4).

Entry layouts (general knowledge, not in the dossier):

      device-table entry, 32 bytes   V 0 | TV 1 | mode = levels 11:9 | root 51:12 | IR 61 | IW 62
      page-table entry, 8 bytes      PR 0 | next level 11:9 (0: leaf) | address 51:12 | IR 61 | IW 62

MODEL CHOICE: an entry with V=0 or TV=0 refuses the device (fail closed).
Not modelled: next level 7 (leaf of another size) and skipped levels (`NotModelled`); accessed and dirty bits,
interrupt remapping, the IOTLB (every access walks) and the event log (a fault is an exception and an event).

Paper: memory-encryption.md §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.memory.cache import Cache
from cbit.memory.errors import AddressError, IommuFault
from cbit.spec.address import PAGE, Spa, strip_c_bit
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from cbit.trace import SILENT, Trace

DTE_BYTES: Final = 32
DTE_VALID: Final = 1 << 0
DTE_TRANSLATION_VALID: Final = 1 << 1
PTE_PRESENT: Final = 1 << 0
READ: Final = 1 << 61  #: IR, in both kinds of entry
WRITE: Final = 1 << 62  #: IW, in both kinds of entry
LEVEL_SHIFT: Final = 9  #: mode of a device-table entry, next level of a page-table entry: bits 11:9

_ADDRESS: Final = ((1 << 52) - 1) & -PAGE
_MAX_LEVELS: Final = 6
_OTHER_SIZE: Final = 7


@dataclass(frozen=True, slots=True)
class Place:
    """Where an I/O request goes, and with which key."""

    spa: Spa
    key_id: KeyId


def place(address: int, c_bit: int | None) -> Place:
    """Read an address as a device or a table gives it: C=1 is the host's key, C=0 none (§5 rule 1).

    Args:
        address: the address.
        c_bit: position of the C-bit; None while SYSCFG.MemEncryptionModEn is 0 (§2.2): every bit is address.
    """
    if c_bit is None:
        return Place(Spa(address), UNENCRYPTED)
    spa, encrypted = strip_c_bit(address, c_bit)
    return Place(Spa(spa), HOST if encrypted else UNENCRYPTED)


class _Refused(Exception):
    """Why a walk ended without a translation."""


class Iommu:
    """Walks the device table and I/O page tables in DRAM for every access.

    Attributes:
        c_bit: position of the C-bit, or None (see `place`).
    """

    def __init__(
        self, cache: Cache, *, device_table: int, devices: int, c_bit: int | None, trace: Trace = SILENT
    ) -> None:
        """Point the IOMMU at its device table.

        Args:
            cache: memory; the walk is an I/O request and never hits a guest's copies.
            device_table: its address, with the C-bit if the table is encrypted.
            devices: number of entries in the table.
            c_bit: position of the C-bit, or None.
            trace: who hears of faults.
        """
        self._cache = cache
        self._device_table = device_table
        self._devices = devices
        self._trace = trace
        self.c_bit = c_bit

    def translate(self, device_id: int, address: int, *, write: bool) -> Place:
        """Translate one access inside one page.

        Raises:
            IommuFault: no entry, not present, not permitted, malformed tables, or tables outside DRAM.
            NotModelled: a table uses what this model lacks.
        """
        wanted = WRITE if write else READ
        try:
            if address < 0:
                raise _Refused("address is negative")
            entry = self._device(device_id, wanted)
            if not _level(entry):
                return place(address, self.c_bit)  # no tables: the device's own C-bit decides
            return self._walk(entry, address, wanted)
        except (_Refused, AddressError) as refusal:
            reason = f"table outside DRAM: {refusal}" if isinstance(refusal, AddressError) else str(refusal)
            self._trace.emit("memory.iommu", "fault", reason, device_id=device_id, address=address)
            raise IommuFault(device_id, address, reason) from refusal

    def _device(self, device_id: int, wanted: int) -> int:
        """Return the first quadword of a device's entry, once it permits the access."""
        if not 0 <= device_id < self._devices:
            raise _Refused(f"the device table has {self._devices} entries")
        entry = self._entry(self._device_table, DTE_BYTES * device_id)
        if not entry & DTE_VALID or not entry & DTE_TRANSLATION_VALID:
            raise _Refused("the device table entry is not valid")
        _permit(entry, wanted, "the device table entry")
        if _level(entry) > _MAX_LEVELS:
            raise _Refused(f"the device table entry asks for {_level(entry)} levels")
        return entry

    def _walk(self, entry: int, address: int, wanted: int) -> Place:
        """Follow the tables from a device-table entry down to a leaf."""
        below = _level(entry)
        if address >> _shift(below + 1):
            raise _Refused(f"the address is beyond the reach of {below} levels")
        while below:
            level = below
            index = address >> _shift(level) & 0x1FF
            what = f"level {level} entry {index}"
            entry = self._entry(entry & _ADDRESS, 8 * index)
            if not entry & PTE_PRESENT:
                raise _Refused(f"{what} is not present")
            _permit(entry, wanted, what)
            below = _level(entry)
            if below == _OTHER_SIZE or 0 < below < level - 1:
                raise NotModelled(f"I/O page table: next level {below} in {what}")
            if below >= level:
                raise _Refused(f"{what} does not point down but to level {below}")
        leaf = place(entry & _ADDRESS, self.c_bit)
        inside = (1 << _shift(level)) - 1
        if leaf.spa & inside:
            raise _Refused(f"{what} is a leaf that is not aligned to its size")
        return Place(Spa(leaf.spa | address & inside), leaf.key_id)

    def _entry(self, table: int, offset: int) -> int:
        """Read an entry of a table; the pointer's C-bit says whether the table is encrypted."""
        at = place(table, self.c_bit)
        return int.from_bytes(self._cache.snoop_read(Spa(at.spa + offset), 8, at.key_id), "little")


def _permit(entry: int, wanted: int, what: str) -> None:
    if not entry & wanted:
        raise _Refused(f"{what} forbids {'writing' if wanted == WRITE else 'reading'}")


def _level(entry: int) -> int:
    return entry >> LEVEL_SHIFT & 7


def _shift(level: int) -> int:
    """Lowest address bit that a table of this level translates."""
    return 12 + 9 * (level - 1)
