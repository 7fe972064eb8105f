"""Who encrypts: the truth tables that turn C-bits into a key id.

The two tables below are the whole rule; the functions only look up.

Paper: memory-encryption.md §4.1 (host), §4.2 (SEV guest), §4.3 (guest C-bit and nested C-bit).
Not modelled: vTOM (§4.4).  TSME and MMIO are decided last, at the `PhysicalPort`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest


class Use(Enum):
    """What an access is for."""

    FETCH = "instruction fetch"
    TABLE = "page-table walk: reads, and updates of accessed and dirty"
    DATA = "data"


class HostSituation(Enum):
    """Rows of the host's table."""

    OFF = "MemEncryptionModEn=0, anything"
    WITHOUT_PAE = "paging off, or 32-bit paging without PAE"
    WITH_PAE = "legacy PAE or long mode"
    GUEST_WITHOUT_SEV = "guest mode without SEV: the C-bit is the nested one"


class Owner(Enum):
    """Whose key an access of a SEV guest uses."""

    NOBODY = "not encrypted"
    HOST = "host key"
    GUEST = "guest key"


# fmt: off
HOST_TABLE: Final[Mapping[HostSituation, Mapping[bool, KeyId]]] = MappingProxyType({
    # situation                            C=0                  C=1
    HostSituation.OFF:               {False: UNENCRYPTED, True: UNENCRYPTED},  # no C-bit exists
    HostSituation.WITHOUT_PAE:       {False: UNENCRYPTED, True: UNENCRYPTED},  # no room for a C-bit
    # Fetches, data and tables alike.  MODEL CHOICE: the page-directory-pointer table of legacy PAE is C=0
    # here, because a 32-bit CR3 has no bit to say otherwise; its entries can carry C.
    HostSituation.WITH_PAE:          {False: UNENCRYPTED, True: HOST},
    HostSituation.GUEST_WITHOUT_SEV: {False: UNENCRYPTED, True: HOST},
})

SEV_TABLE: Final[Mapping[tuple[bool, bool], Owner]] = MappingProxyType({
    # guest C, nested C
    (False, False): Owner.NOBODY,
    (False, True):  Owner.HOST,
    (True,  False): Owner.GUEST,
    (True,  True):  Owner.GUEST,  # the guest wins
})
# fmt: on


def host_key(situation: HostSituation, *, c: bool) -> KeyId:
    """Look up the key of a host access, or of a guest without SEV.

    Args:
        situation: the row.
        c: C-bit of the entry used (CR3 for the top table; the nested entry in guest mode).

    Paper: memory-encryption.md §4.1.
    """
    return HOST_TABLE[situation][c]


def treated_as_private(use: Use, *, guest_c: bool, has_c_bit: bool, vte: bool) -> bool:
    """Say what the guest's C-bit counts as in a SEV guest.

    Code and page tables are private whatever the bit says: otherwise the host could forge either through a
    shared page.  Without PAE there is no C-bit, and a guest that cannot ask for encryption gets it.

    Args:
        use: what the access is for.
        guest_c: C-bit of the guest's leaf.
        has_c_bit: the guest pages with PAE or in long mode.
        vte: virtual transparent encryption: the guest does not know that it is encrypted.

    Paper: memory-encryption.md §4.2.
    """
    return use is not Use.DATA or vte or not has_c_bit or guest_c


def sev_key(asid: int, *, private: bool, nested_c: bool) -> KeyId:
    """Look up the key of a SEV guest's access.

    Args:
        asid: the guest's ASID, which selects its key.
        private: result of `treated_as_private`.
        nested_c: C-bit of the nested leaf.

    Paper: memory-encryption.md §4.3.
    """
    owner = SEV_TABLE[private, nested_c]
    return {Owner.NOBODY: UNENCRYPTED, Owner.HOST: HOST, Owner.GUEST: guest(asid)}[owner]
