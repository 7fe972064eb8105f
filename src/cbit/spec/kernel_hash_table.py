"""The kernel-hash table as a wire structure, from hashes that were computed already.

``kernel_hashes.kernel_hash_table`` gives the same bytes from the files; here a 64 MiB initrd is hashed once.

Paper: launch-inputs.md §3.
"""

from __future__ import annotations

from cbit.spec.kernel_hashes import CMDLINE, INITRD, KERNEL, TABLE, TABLE_SIZE
from cbit.spec.wire import Wire, at


class KernelHashTable(Wire, size=TABLE_SIZE):
    """Three GUIDed SHA-256 values; its length field does not count the padding.

    Paper: launch-inputs.md §3.
    """

    guid: bytes = at(0x00, 16, default=TABLE.bytes_le)
    length: int = at(0x10, 2, default=0xA8)
    cmdline_guid: bytes = at(0x12, 16, default=CMDLINE.bytes_le)
    cmdline_length: int = at(0x22, 2, default=50)
    cmdline_hash: bytes = at(0x24, 32)
    initrd_guid: bytes = at(0x44, 16, default=INITRD.bytes_le)
    initrd_length: int = at(0x54, 2, default=50)
    initrd_hash: bytes = at(0x56, 32)
    kernel_guid: bytes = at(0x76, 16, default=KERNEL.bytes_le)
    kernel_length: int = at(0x86, 2, default=50)
    kernel_hash: bytes = at(0x88, 32)
