"""The metadata entry that goes with a page which was swapped out.

Paper: sev-crypto.md §13.
"""

from __future__ import annotations

from typing import Final

from cbit.spec.wire import Wire, at

LARGE: Final = 1 << 0  #: PAGE_SIZE: 2 MiB instead of 4 KiB
TYPE: Final = 0b11 << 1  #: PAGE_TYPE
TYPE_DATA: Final = 0 << 1
TYPE_VMSA: Final = 2 << 1
IN_PLACE: Final = 1 << 3  #: SWAP_IN only


class SwapMetadata(Wire, size=0x40):
    """What SWAP_OUT says about a page; all of it but the tag is what the tag authenticates.

    Paper: sev-crypto.md §13.
    """

    software_data: int = at(0x00, 8)
    iv: int = at(0x08, 8)
    auth_tag: bytes = at(0x10, 16, default=bytes(16))
    page: int = at(0x3C, 4)  # bit 0 PAGE_SIZE, bits 2:1 PAGE_TYPE
