"""The GUIDed table of secrets, plaintext of a LAUNCH_SECRET packet.

Paper: launch-inputs.md §4.  A writer stores the unpadded length; a reader accepts both habits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from cbit.spec.address import BLOCK
from cbit.spec.errors import WireError

TABLE: Final = UUID("1e74f542-71dd-4d66-963e-ef4287ff173b")
DISK_PASSPHRASE: Final = UUID("736869e5-84f0-4973-92ec-06879ce3da0b")

_HEADER: Final = 20  # GUID and 32-bit length, for the table and for each entry


def build(entries: Sequence[tuple[UUID, bytes]]) -> bytes:
    """Lay out the entries and pad the whole with zeros to a multiple of 16 bytes.

    Raises:
        ValueError: an entry has the zero GUID, at which readers stop.
    """
    if any(guid.int == 0 for guid, _ in entries):
        raise ValueError("secret table: an entry needs a GUID other than zero")
    body = b"".join(
        guid.bytes_le + (_HEADER + len(data)).to_bytes(4, "little") + data for guid, data in entries
    )
    table = TABLE.bytes_le + (_HEADER + len(body)).to_bytes(4, "little") + body
    return table + bytes(-len(table) % BLOCK)


def parse(data: bytes) -> list[tuple[UUID, bytes]]:
    """Read the entries: walk until the total length or a zero entry.

    Raises:
        WireError: no table at the start, or a length that leaves the data.
    """
    if len(data) < _HEADER or data[:16] != TABLE.bytes_le:
        raise WireError("secret table: the table GUID is not at the start")
    total = int.from_bytes(data[16:20], "little")
    if not _HEADER <= total <= len(data):
        raise WireError(f"secret table: length {total} does not fit {len(data)} bytes")
    entries, at = [], _HEADER
    while total - at >= _HEADER:
        guid = UUID(bytes_le=bytes(data[at : at + 16]))
        length = int.from_bytes(data[at + 16 : at + _HEADER], "little")
        if guid.int == 0 or length == 0:
            break
        if not _HEADER <= length <= total - at:
            raise WireError(
                f"secret table: entry at {at:#x} has length {length}, {total - at} bytes are left"
            )
        entries.append((guid, bytes(data[at + _HEADER : at + length])))
        at += length
    return entries
