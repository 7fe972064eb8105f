"""What a program hands to /dev/sev: the user structures of the Linux interface, and its command numbers.

They are packed and have no reserved words, unlike the firmware's own buffers (``spec.buffers``).

Paper: sev-api.md §12.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from cbit.spec.wire import Dir, Wire, at


class SevCommand(IntEnum):
    """Commands of SEV_ISSUE_CMD; the numbers are Linux's own, not the mailbox's.

    Paper: sev-api.md §12.
    """

    FACTORY_RESET = 0
    PLATFORM_STATUS = 1
    PEK_GEN = 2
    PEK_CSR = 3
    PDH_GEN = 4
    PDH_CERT_EXPORT = 5
    PEK_CERT_IMPORT = 6
    GET_ID = 7  #: deprecated: use GET_ID2
    GET_ID2 = 8
    SNP_PLATFORM_STATUS = 9
    SNP_COMMIT = 10
    SNP_SET_CONFIG = 11
    SNP_VLEK_LOAD = 12


class IssueCmd(Wire, size=0x10):
    """Argument of SEV_ISSUE_CMD, ``struct sev_issue_cmd``.

    Paper: sev-api.md §12.
    """

    cmd: int = at(0x00, 4)
    data: int = at(0x04, 8, default=0)  # address of the command's own structure
    error: int = at(0x0C, 4, Dir.OUT, default=0)  # status of the last firmware command


#: _IOWR('S', 0x00, struct sev_issue_cmd): both directions, the size, the type, the number.
SEV_ISSUE_CMD: Final = 3 << 30 | IssueCmd.SIZE << 16 | ord("S") << 8 | 0x00

#: The most that a certificate or an id may be long; the driver makes no room for more.
BLOB_MAX: Final = 0x4000


class UserStatus(Wire, size=0x0C):
    """Answer of PLATFORM_STATUS, ``struct sev_user_data_status``.

    Paper: sev-api.md §12.
    """

    api_major: int = at(0x00, 1, Dir.OUT, default=0)
    api_minor: int = at(0x01, 1, Dir.OUT, default=0)
    state: int = at(0x02, 1, Dir.OUT, default=0)
    flags: int = at(0x03, 4, Dir.OUT, default=0)  # bit 0 externally owned, bit 8 ES initialised
    build: int = at(0x07, 1, Dir.OUT, default=0)
    guest_count: int = at(0x08, 4, Dir.OUT, default=0)


class UserPekCsr(Wire, size=0x0C):
    """Request of PEK_CSR, ``struct sev_user_data_pek_csr``: address or length 0 asks for the length.

    Paper: sev-api.md §12.
    """

    address: int = at(0x00, 8)
    length: int = at(0x08, 4, Dir.IN_OUT)


class UserPdhCertExport(Wire, size=0x18):
    """Request of PDH_CERT_EXPORT, ``struct sev_user_data_pdh_cert_export``; any 0 asks for the lengths.

    Paper: sev-api.md §12.
    """

    pdh_address: int = at(0x00, 8)
    pdh_len: int = at(0x08, 4, Dir.IN_OUT)
    chain_address: int = at(0x0C, 8)
    chain_len: int = at(0x14, 4, Dir.IN_OUT)


class UserPekCertImport(Wire, size=0x18):
    """Request of PEK_CERT_IMPORT, ``struct sev_user_data_pek_cert_import``.

    Paper: sev-api.md §12.
    """

    pek_address: int = at(0x00, 8)
    pek_len: int = at(0x08, 4)
    oca_address: int = at(0x0C, 8)
    oca_len: int = at(0x14, 4)


class UserGetId(Wire, size=0x80):
    """Answer of GET_ID, ``struct sev_user_data_get_id``: an absent second socket's half is not written.

    Paper: sev-api.md §12.
    """

    socket1: bytes = at(0x00, 0x40, Dir.OUT, default=bytes(0x40))
    socket2: bytes = at(0x40, 0x40, Dir.OUT, default=bytes(0x40))


class UserGetId2(Wire, size=0x0C):
    """Request of GET_ID2, ``struct sev_user_data_get_id2``: address or length 0 asks for the length.

    Paper: sev-api.md §12.
    """

    address: int = at(0x00, 8)
    length: int = at(0x08, 4, Dir.IN_OUT)
