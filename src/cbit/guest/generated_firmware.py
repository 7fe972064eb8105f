"""A small firmware image made here, for machines where no OVMF is to be had.

It has a valid firmware GUID table that announces a secret area and a hash area, a reset vector that halts,
and otherwise recognisable text.  It is launched and measured like any other image.

Paper: launch-inputs.md §2.
"""

from __future__ import annotations

from typing import Final

from cbit.spec import firmware_table
from cbit.spec.address import KIB

SIZE: Final = 256 * KIB
SECRET_AREA: Final = (0x80F000, 0xC00)
HASH_AREA: Final = (0x80FC00, 0x400)
AP_RESET_EIP: Final = 0x0080B004
_TEXT: Final = b"cbit's own test firmware: not OVMF, boots nothing, and is measured all the same. "
_HALT: Final = bytes.fromhex("f4ebfd")  # hlt; jmp to it


def generate() -> bytes:
    """Build the image: the same bytes every time."""
    pair = b"".join(number.to_bytes(4, "little") for number in (*SECRET_AREA, *HASH_AREA))
    table = firmware_table.build(
        {
            firmware_table.AP_RESET: AP_RESET_EIP.to_bytes(4, "little"),
            firmware_table.SEV_SECRET: pair[:8],
            firmware_table.HASH_TABLE: pair[8:],
        }
    )
    reset_vector = bytes(16) + _HALT.ljust(16, b"\x90")  # the CPU starts 16 bytes before the end
    # Text, then zeros: both kinds of page in one picture.
    text = (_TEXT * (SIZE // len(_TEXT) + 1))[: SIZE // 2]
    return text.ljust(SIZE - len(table) - len(reset_vector), b"\x00") + table + reset_vector
