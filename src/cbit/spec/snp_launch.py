"""What SNP_LAUNCH_UPDATE adds to the launch digest for each page.

Paper: launch-inputs.md §7.1.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from cbit.spec.wire import Wire, at

DIGEST_SIZE: Final = 48  #: SHA-384
VMSA_GPA: Final = 0x0000_FFFF_FFFF_F000  #: the address under which KVM launches every VMSA


class PageType(IntEnum):
    """As what a page is launched; of the last four kinds the contents are not measured."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


class PageInfo(Wire, size=0x70):
    """One link of the chain: the digest so far becomes SHA-384 of this.

    The order of the permissions is that of AMD's firmware; other tools place them the other way round, one
    byte lower.  Every launch that is modelled has them zero.

    Paper: launch-inputs.md §7.1.
    """

    digest_cur: bytes = at(0x00, DIGEST_SIZE)
    contents: bytes = at(0x30, DIGEST_SIZE)
    length: int = at(0x60, 2, default=0x70)
    page_type: PageType = at(0x62, 1)
    imi_page: int = at(0x63, 1, default=0)
    vmpl1_permissions: int = at(0x65, 1, default=0)
    vmpl2_permissions: int = at(0x66, 1, default=0)
    vmpl3_permissions: int = at(0x67, 1, default=0)
    gpa: int = at(0x68, 8)
