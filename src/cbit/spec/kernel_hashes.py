"""The kernel-hash table that the hypervisor puts into guest memory and the launch digest covers.

Paper: launch-inputs.md §3.
"""

from __future__ import annotations

import hashlib
from typing import Final
from uuid import UUID

TABLE: Final = UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
CMDLINE: Final = UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
INITRD: Final = UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
KERNEL: Final = UUID("4de79437-abd2-427f-b835-d5b172d2045b")
TABLE_SIZE: Final = 176  #: with its padding


def kernel_hash_table(*, kernel: bytes, initrd: bytes = b"", cmdline: str = "") -> bytes:
    """Build the 176 bytes.

    The command line is hashed *with* its trailing NUL and without trimming; no initrd is the hash of nothing.
    """
    line = cmdline.encode(errors="surrogateescape") + b"\x00"
    blobs = ((CMDLINE, line), (INITRD, initrd), (KERNEL, kernel))
    entries = b"".join(
        guid.bytes_le + (50).to_bytes(2, "little") + hashlib.sha256(blob).digest() for guid, blob in blobs
    )
    length = 18 + len(entries)
    return (TABLE.bytes_le + length.to_bytes(2, "little") + entries).ljust(TABLE_SIZE, b"\x00")
