"""Layouts of the mailbox's parameter buffers, typed from the dossier's tables and not from the code.

origin = sev-api.md §5–§10.  A line is: offset and size in hex, name, direction ("in" is left out).
"""

from __future__ import annotations

from cbit.spec import buffers, ring_buffer, swap
from cbit.spec.wire import Wire

BUFFERS: dict[type[Wire], tuple[int, str]] = {
    # sev-api.md §5
    buffers.Init: (
        0x14,
        """
        00 4 flags
        08 8 tmr_paddr
        10 4 tmr_length
        """,
    ),
    buffers.InitEx: (
        0x24,
        """
        00 4 length
        04 4 flags
        08 8 tmr_paddr
        10 4 tmr_length
        18 8 nv_paddr
        20 4 nv_length
        """,
    ),
    buffers.DownloadFirmware: (
        0x0C,
        """
        00 8 paddr
        08 4 length
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
    buffers.ActivateEx: (
        0x18,
        """
        00 4 length
        04 4 handle
        08 4 asid
        0C 4 numids
        10 8 ids_paddr
        """,
    ),
    # sev-api.md §7: the same layout as LAUNCH_UPDATE_DATA
    buffers.LaunchUpdateVmsa: (
        0x14,
        """
        00 4 handle
        08 8 paddr
        10 4 length
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
    buffers.Copy: (
        0x18,
        """
        00 4 handle
        04 4 length
        08 8 src
        10 8 dst
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
    buffers.Attestation: (
        0x24,
        """
        00 4  handle
        08 8  paddr
        10 10 mnonce
        20 4  length in/out
        """,
    ),
    # sev-api.md §8
    buffers.SendStart: (
        0x44,
        """
        00 4 handle
        04 4 policy out
        08 8 pdh_cert_paddr
        10 4 pdh_cert_len
        18 8 plat_certs_paddr
        20 4 plat_certs_len
        28 8 amd_certs_paddr
        30 4 amd_certs_len
        38 8 session_paddr
        40 4 session_len in/out
        """,
    ),
    buffers.SendUpdateData: (
        0x34,
        """
        00 4 handle
        08 8 hdr_paddr
        10 4 hdr_len in/out
        18 8 guest_paddr
        20 4 guest_len
        28 8 trans_paddr
        30 4 trans_len
        """,
    ),
    # sev-api.md §9
    buffers.ReceiveStart: (
        0x24,
        """
        00 4 handle in/out
        04 4 policy
        08 8 pdh_cert_paddr
        10 4 pdh_cert_len
        18 8 session_paddr
        20 4 session_len
        """,
    ),
    buffers.ReceiveUpdateData: (
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
    # sev-api.md §5
    buffers.DownloadFirmwareEx: (
        0x18,
        """
        00 4 length
        08 8 paddr
        10 4 fw_length
        14 4 flags
        """,
    ),
    buffers.RingBuffer: (
        0x28,
        """
        00 8 lo_cmd_paddr
        08 8 lo_stat_paddr
        10 8 hi_cmd_paddr
        18 8 hi_stat_paddr
        20 1 lo_size
        21 1 hi_size
        22 2 lo_threshold
        24 2 hi_threshold
        26 2 int_on_empty
        """,
    ),
    ring_buffer.CommandEntry: (
        0x10,
        """
        00 2 command
        02 2 flags
        04 4 software_data
        08 8 paddr
        """,
    ),
    ring_buffer.StatusEntry: (
        0x10,
        """
        00 2 status
        08 8 error_stack
        """,
    ),
    # sev-api.md §10; the metadata sev-crypto.md §13
    buffers.SwapOut: (
        0x28,
        """
        00 4 handle
        04 4 page
        08 8 src
        10 8 dst
        18 8 mdata
        20 8 software_data
        """,
    ),
    buffers.SwapIn: (
        0x20,
        """
        00 4 handle
        04 4 page
        08 8 src
        10 8 dst
        18 8 mdata
        """,
    ),
    swap.SwapMetadata: (
        0x40,
        """
        00 8  software_data
        08 8  iv
        10 10 auth_tag
        3C 4  page
        """,
    ),
    buffers.Debug: (
        0x1C,
        """
        00 4 handle
        08 8 src
        10 8 dst
        18 4 length
        """,
    ),
}
