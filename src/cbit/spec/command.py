"""Command numbers of the mailbox.

Paper: sev-api.md §5–§10 (SEV), §11 (SNP: a SEV-only firmware answers INVALID_COMMAND to these).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Command(IntEnum):
    """Every SEV command of the paper, and of SEV-SNP's the one that serves SEV alone too."""

    INIT = 0x01
    SHUTDOWN = 0x02
    PLATFORM_RESET = 0x03
    PLATFORM_STATUS = 0x04
    PEK_GEN = 0x05
    PEK_CSR = 0x06
    PEK_CERT_IMPORT = 0x07
    PDH_CERT_EXPORT = 0x08
    PDH_GEN = 0x09
    DF_FLUSH = 0x0A
    DOWNLOAD_FIRMWARE = 0x0B
    GET_ID = 0x0C
    INIT_EX = 0x0D
    NOP = 0x0E
    RING_BUFFER = 0x0F

    DECOMMISSION = 0x20
    ACTIVATE = 0x21
    DEACTIVATE = 0x22
    GUEST_STATUS = 0x23
    COPY = 0x24
    ACTIVATE_EX = 0x25

    LAUNCH_START = 0x30
    LAUNCH_UPDATE_DATA = 0x31
    LAUNCH_UPDATE_VMSA = 0x32
    LAUNCH_MEASURE = 0x33
    LAUNCH_SECRET = 0x34
    LAUNCH_FINISH = 0x35
    ATTESTATION = 0x36

    SEND_START = 0x40
    SEND_UPDATE_DATA = 0x41
    SEND_UPDATE_VMSA = 0x42
    SEND_FINISH = 0x43
    SEND_CANCEL = 0x44

    RECEIVE_START = 0x50
    RECEIVE_UPDATE_DATA = 0x51
    RECEIVE_UPDATE_VMSA = 0x52
    RECEIVE_FINISH = 0x53

    DBG_DECRYPT = 0x60
    DBG_ENCRYPT = 0x61
    SWAP_OUT = 0x70
    SWAP_IN = 0x71

    DOWNLOAD_FIRMWARE_EX = 0xCA


#: What firmware of the first two generations does not have: swapping is later than API 0.24 (§10), and
#: DOWNLOAD_FIRMWARE_EX is a command of SEV-SNP (§5).
#: MODEL CHOICE: ring buffers too; no source says since when there are any.
SINCE_API_1: Final = frozenset(
    {Command.RING_BUFFER, Command.SWAP_OUT, Command.SWAP_IN, Command.DOWNLOAD_FIRMWARE_EX}
)


def name_of(command: int) -> str:
    """Name a command as the paper does; an unknown one by its number."""
    try:
        return Command(command).name
    except ValueError:
        return f"command {command:#04x}"
