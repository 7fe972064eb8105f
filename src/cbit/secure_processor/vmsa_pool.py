"""Checksums of the save areas of ES guests, in the trusted memory region (TMR).

    TMR   lower half: index pool     upper half: word 0 | word 1 | …   8 bytes each, for one save area
    VMSA  0x380 zero                 0x388 address of its word
    word  CRC0 ^ CRC1 ^ CRC2         (high) CRC-32C of three lanes: every third 8 bytes, from 0, 8 and 16
          CRC(CRC0, CRC1, CRC2)      (low)

There is no key in it: its protection is that neither cores nor devices reach the region (`Cache.protect`), so
the host cannot put an older save area in place of a newer one.  Firmware sets the pool up at the first
DF_FLUSH; here it is there from INIT on, since nobody has an ASID before that flush.

MODEL CHOICE: which words are free is kept in the secure processor, and the index pool stays empty; words are
handed out from the first on and are free again when their guest is decommissioned; they are written under the
host's key; all numbers are little-endian.

Paper: memory-encryption.md §10.2; sev-api.md §5 (INIT: the pool), §7 LAUNCH_UPDATE_VMSA.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from cbit.memory.fabric import FabricPort
from cbit.secure_processor.refusal import Refused
from cbit.spec.address import Spa
from cbit.spec.key_id import HOST
from cbit.spec.status import Status
from cbit.spec.vmsa import Vmsa

if TYPE_CHECKING:
    from cbit.secure_processor.firmware import Firmware
    from cbit.secure_processor.guest import Guest

SLOT: Final = 8
COVERED: Final = 0xFC0  #: bytes of a save area that the checksum covers: whole rows of three lanes
LANE: Final = 8
LANES: Final = 3
_WORDS: Final = slice(Vmsa.FIELDS["firmware_zero"].offset, Vmsa.FIELDS["firmware_checksum_paddr"].end)
_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli's 0x1EDC6F41, reflected
_ALL: Final = (1 << 32) - 1


class VmsaPool:
    """Slots of one platform; changes with its guests."""

    def __init__(self, fabric: FabricPort, tmr: tuple[int, int]) -> None:
        self._fabric = fabric
        start, self._end = tmr
        self._next = (start + self._end) // 2  # slots that nobody had yet
        self._free: list[Spa] = []  # given back

    def take(self) -> Spa:
        """Take a slot.

        Raises:
            Refused: RESOURCE_LIMIT.
        """
        if self._free:
            return self._free.pop()
        if self._next + SLOT > self._end:
            raise Refused(Status.RESOURCE_LIMIT, "no slot for the checksum of another save area is left")
        slot, self._next = Spa(self._next), self._next + SLOT
        return slot

    def give_back(self, slots: list[Spa]) -> None:
        """Make a guest's slots free."""
        self._free += slots

    def seal(self, page: bytes, slot: Spa) -> bytes:
        """Put the firmware's two words into a save area and its checksum into the slot; return the page."""
        words = bytes(8) + slot.to_bytes(8, "little")
        sealed = page[: _WORDS.start] + words + page[_WORDS.stop :]
        self._fabric.write(slot, checksum(sealed), HOST)
        return sealed

    def is_good(self, page: bytes, slots: list[Spa]) -> bool:
        """Whether a save area names a slot of its guest, whose checksum it has."""
        slot = Spa(int.from_bytes(page[_WORDS][8:], "little"))
        return slot in slots and self._fabric.read(slot, SLOT, HOST) == checksum(page)


def require_es(firmware: Firmware, guest: Guest) -> VmsaPool:
    """Return the pool for a guest with ES.

    Raises:
        Refused: UNSUPPORTED, the guest is none.
    """
    pool = firmware.platform.vmsas
    if not guest.is_es or pool is None:
        raise Refused(Status.UNSUPPORTED, f"guest {guest.handle}'s policy is without ES: no save areas")
    return pool


def checksum(page: bytes) -> bytes:
    """Compute the word of a save area, as it lies in memory."""
    rows = range(0, COVERED, LANES * LANE)
    lanes = (
        b"".join([page[row + at : row + at + LANE] for row in rows]) for at in range(0, LANES * LANE, LANE)
    )
    first, second, third = crcs = [crc32c(lane) for lane in lanes]
    low = crc32c(b"".join(crc.to_bytes(4, "little") for crc in crcs))
    return ((first ^ second ^ third) << 32 | low).to_bytes(SLOT, "little")


def crc32c(data: bytes) -> int:
    """Compute the ordinary CRC-32C (Castagnoli; reflected, initial all ones, final complement)."""
    crc, table = _ALL, _table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ _ALL


@functools.cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)
