"""Offsets, sizes and directions, typed from the dossier's tables and not from the code.

origin = sev-api.md §5–§7, sev-crypto.md §2, §2.3, §2.4, §3, §7.1, §9, §10.  A line is: offset and size in
hex, name, direction ("in" is left out).
"""

from __future__ import annotations

import pytest

from cbit.spec import amd_certificate, buffers, certificate, session
from cbit.spec.certificate import BODY_SIZE, CERT_SIZE, CHAIN_SIZE
from cbit.spec.wire import Wire
from spec.wires import WIRES

PAPER: dict[type[Wire], tuple[int, str]] = {
    # sev-api.md §5
    buffers.Init: (
        0x14,
        """
        00 4 flags
        08 8 tmr_paddr
        10 4 tmr_length
        """,
    ),
    buffers.PlatformStatus: (
        0x0C,
        """
        00 1 api_major out
        01 1 api_minor out
        02 1 state out
        03 1 owner out
        04 2 config out
        07 1 build out
        08 4 guest_count out
        """,
    ),
    buffers.PekCsr: (
        0x0C,
        """
        00 8 paddr
        08 4 length in/out
        """,
    ),
    buffers.PekCertImport: (
        0x1C,
        """
        00 8 pek_paddr
        08 4 pek_len
        10 8 oca_paddr
        18 4 oca_len
        """,
    ),
    buffers.PdhCertExport: (
        0x1C,
        """
        00 8 pdh_paddr
        08 4 pdh_len in/out
        10 8 certs_paddr
        18 4 certs_len in/out
        """,
    ),
    buffers.GetId: (
        0x0C,
        """
        00 8 paddr
        08 4 length in/out
        """,
    ),
    # sev-api.md §6
    buffers.GuestHandle: (0x04, "00 4 handle"),
    buffers.Activate: (
        0x08,
        """
        00 4 handle
        04 4 asid
        """,
    ),
    buffers.GuestStatus: (
        0x0D,
        """
        00 4 handle
        04 4 policy out
        08 4 asid out
        0C 1 state out
        """,
    ),
    # sev-api.md §7
    buffers.LaunchStart: (
        0x24,
        """
        00 4 handle in/out
        04 4 policy
        08 8 dh_cert_paddr
        10 4 dh_cert_len
        18 8 session_paddr
        20 4 session_len
        """,
    ),
    buffers.LaunchUpdateData: (
        0x14,
        """
        00 4 handle
        08 8 paddr
        10 4 length
        """,
    ),
    buffers.LaunchMeasure: (
        0x14,
        """
        00 4 handle
        08 8 measure_paddr
        10 4 measure_len in/out
        """,
    ),
    buffers.LaunchSecret: (
        0x34,
        """
        00 4 handle
        08 8 hdr_paddr
        10 4 hdr_len
        18 8 guest_paddr
        20 4 guest_len
        28 8 trans_paddr
        30 4 trans_len
        """,
    ),
    # sev-crypto.md §2, §2.3, §2.4
    certificate.SevCert: (
        0x824,
        """
        000 4   version
        004 1   api_major
        005 1   api_minor
        006 2   reserved
        008 4   pubkey_usage
        00C 4   pubkey_algo
        010 404 pubkey
        414 4   sig1_usage
        418 4   sig1_algo
        41C 200 sig1
        61C 4   sig2_usage
        620 4   sig2_algo
        624 200 sig2
        """,
    ),
    certificate.EcPublicKey: (
        0x404,
        """
        00 4  curve
        04 48 qx
        4C 48 qy
        """,
    ),
    certificate.RsaPublicKey: (
        0x404,
        """
        000 4   modulus_size
        004 200 pubexp
        204 200 modulus
        """,
    ),
    certificate.EcdsaSignature: (
        0x200,
        """
        00 48 r
        48 48 s
        """,
    ),
    # sev-crypto.md §3
    amd_certificate.AmdCertHeader: (
        0x40,
        """
        00 4  version
        04 10 key_id
        14 10 certifying_key_id
        24 4  key_usage
        38 4  pubexp_size
        3C 4  modulus_size
        """,
    ),
    # sev-crypto.md §7.1, §9, §10
    session.Session: (
        0x80,
        """
        00 10 nonce
        10 20 wrap_tk
        30 10 wrap_iv
        40 20 wrap_mac
        60 20 policy_mac
        """,
    ),
    session.MeasureBlob: (
        0x30,
        """
        00 20 measure
        20 10 mnonce
        """,
    ),
    session.PacketHeader: (
        0x34,
        """
        00 4  flags
        04 10 iv
        14 20 mac
        """,
    ),
}


def fields_of(table: str) -> dict[str, tuple[int, int, str]]:
    rows = (line.split() for line in table.strip().splitlines())
    return {name: (int(at, 16), int(size, 16), *(rest or ["in"])) for at, size, name, *rest in rows}  # type: ignore[misc]  # a row has three or four words


def test_every_structure_is_pinned_here() -> None:
    assert set(WIRES) == set(PAPER)


@pytest.mark.parametrize("cls", WIRES, ids=lambda cls: cls.__name__)
def test_layout_is_the_papers(cls: type[Wire]) -> None:
    size, table = PAPER[cls]
    found = {f.name: (f.offset, f.size, f.direction.value) for f in cls.FIELDS.values()}
    assert fields_of(table) == found
    assert size == cls.SIZE


def test_certificate_sizes() -> None:
    assert (CERT_SIZE, BODY_SIZE, CHAIN_SIZE) == (0x824, 0x414, 0x186C)
