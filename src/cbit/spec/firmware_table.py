"""The GUIDed table at the end of a guest firmware image: what the image tells the hypervisor about itself.

Paper: launch-inputs.md §2.  The table ends 32 bytes before the end of the image and is walked backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from cbit.spec.errors import WireError
from cbit.spec.frozen import Frozen

FOOTER: Final = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
AP_RESET: Final = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SEV_SECRET: Final = UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
HASH_TABLE: Final = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_METADATA: Final = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")

_RESET_VECTOR: Final = 32  # bytes after the table
_TAIL: Final = 18  # 16-bit length and GUID behind the data of each entry


class Area(Frozen):
    """A range of guest-physical memory that the image announces; size 0: this build does not support it."""

    base: int
    size: int

    def __bool__(self) -> bool:
        return self.size != 0


class FirmwareTable(Frozen):
    """The entries of the table, GUID to data."""

    entries: Mapping[UUID, bytes]

    @property
    def secret_area(self) -> Area:
        """Where LAUNCH_SECRET should put the secret table."""
        return self._area(SEV_SECRET)

    @property
    def hash_area(self) -> Area:
        """Where the kernel-hash table goes."""
        return self._area(HASH_TABLE)

    @property
    def ap_reset(self) -> int | None:
        """EIP of every vCPU but the first, or None if the image does not say."""
        return self._words(AP_RESET, 1)[0] if AP_RESET in self.entries else None

    def _area(self, guid: UUID) -> Area:
        return Area(*self._words(guid, 2)) if guid in self.entries else Area(0, 0)

    def _words(self, guid: UUID, count: int) -> list[int]:
        data = self.entries[guid]
        if len(data) != 4 * count:
            raise WireError(f"firmware table: entry {guid} has {len(data)} bytes, must have {4 * count}")
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def parse(image: bytes) -> FirmwareTable:
    """Read the table of an image.

    An image without one gives an empty table.

    Raises:
        WireError: a table is there, and its lengths do not add up or an entry is there twice.
    """
    guid_at = len(image) - _RESET_VECTOR - 16
    if guid_at < 2:
        return FirmwareTable({})
    last = UUID(bytes_le=bytes(image[guid_at : guid_at + 16]))
    length = int.from_bytes(image[guid_at - 2 : guid_at], "little")
    if last == AP_RESET:  # the layout before the footer existed: one entry, its own footer
        start = guid_at + 16 - length
        if length < _TAIL or start < 0:
            raise WireError(f"firmware table: single entry of length {length}")
        return FirmwareTable({AP_RESET: bytes(image[start : guid_at - 2])})
    if last != FOOTER:
        return FirmwareTable({})
    end = guid_at - 2
    start = guid_at + 16 - length
    if length < _TAIL or start < 0:
        raise WireError(f"firmware table: total length {length} does not fit the image")
    return FirmwareTable(_walk(image, start, end))


def _walk(image: bytes, start: int, end: int) -> dict[UUID, bytes]:
    entries: dict[UUID, bytes] = {}
    while end - start >= _TAIL:
        guid = UUID(bytes_le=bytes(image[end - 16 : end]))
        length = int.from_bytes(image[end - _TAIL : end - 16], "little")
        if not _TAIL <= length <= end - start:
            raise WireError(f"firmware table: entry {guid} has length {length}, {end - start} bytes are left")
        if guid in entries:  # which one counts is not said anywhere: refuse rather than guess
            raise WireError(f"firmware table: entry {guid} is there twice")
        entries[guid] = bytes(image[end - length : end - _TAIL])
        end -= length
    if end != start:
        raise WireError(f"firmware table: {end - start} bytes are left over")
    return entries


def build(entries: Mapping[UUID, bytes]) -> bytes:
    """Lay out a table; it goes 32 bytes before the end of an image."""
    body = b"".join(
        data + (len(data) + _TAIL).to_bytes(2, "little") + guid.bytes_le
        for guid, data in reversed(list(entries.items()))
    )
    return body + (len(body) + _TAIL).to_bytes(2, "little") + FOOTER.bytes_le
