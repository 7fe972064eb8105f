"""Numbers of the interface, typed from the dossier's tables and not from the code."""

from __future__ import annotations

from enum import Enum
from uuid import UUID

import pytest

from cbit.spec import command, firmware_table, kernel_hashes, secret_table, session, status
from cbit.spec.certificate import CURVE_P384, RSA_ALGOS, SHA384_ALGOS, Algo, Usage
from cbit.spec.command import Command
from cbit.spec.policy import RESERVED_BITS, Policy
from cbit.spec.states import GuestState, PlatformState
from cbit.spec.status import Status

# origin = sev-api.md §1
STATUSES = """
00 SUCCESS                 10 INVALID_GUEST
01 INVALID_PLATFORM_STATE  11 INVALID_COMMAND
02 INVALID_GUEST_STATE     12 ACTIVE
03 INVALID_CONFIG          13 HWERROR_PLATFORM
04 INVALID_LENGTH          14 HWERROR_UNSAFE
05 ALREADY_OWNED           15 UNSUPPORTED
06 INVALID_CERTIFICATE     16 INVALID_PARAM
07 POLICY_FAILURE          17 RESOURCE_LIMIT
08 INACTIVE                18 SECURE_DATA_INVALID
09 INVALID_ADDRESS         19 INVALID_PAGE_SIZE
0A BAD_SIGNATURE           1A INVALID_PAGE_STATE
0B BAD_MEASUREMENT         1B INVALID_MDATA_ENTRY
0C ASID_OWNED              1C INVALID_PAGE_OWNER
0D INVALID_ASID            1D AEAD_OFLOW
0E WBINVD_REQUIRED         1F EXIT_RING_BUFFER
0F DFFLUSH_REQUIRED        20 RMP_INIT_REQUIRED
21 BAD_SVN                 22 BAD_VERSION
23 SHUTDOWN_REQUIRED       24 UPDATE_FAILED
25 RESTORE_REQUIRED        26 RMP_INITIALIZATION_FAILED
27 INVALID_KEY
"""

# origin = sev-api.md §5–§10
COMMANDS = """
01 INIT                  02 SHUTDOWN             03 PLATFORM_RESET        04 PLATFORM_STATUS
05 PEK_GEN               06 PEK_CSR              07 PEK_CERT_IMPORT       08 PDH_CERT_EXPORT
09 PDH_GEN               0A DF_FLUSH             0B DOWNLOAD_FIRMWARE     0C GET_ID
0D INIT_EX               0E NOP                  0F RING_BUFFER
20 DECOMMISSION          21 ACTIVATE             22 DEACTIVATE            23 GUEST_STATUS
24 COPY                  25 ACTIVATE_EX
30 LAUNCH_START          31 LAUNCH_UPDATE_DATA   32 LAUNCH_UPDATE_VMSA    33 LAUNCH_MEASURE
34 LAUNCH_SECRET         35 LAUNCH_FINISH        36 ATTESTATION
40 SEND_START            41 SEND_UPDATE_DATA     42 SEND_UPDATE_VMSA      43 SEND_FINISH
44 SEND_CANCEL
50 RECEIVE_START         51 RECEIVE_UPDATE_DATA  52 RECEIVE_UPDATE_VMSA   53 RECEIVE_FINISH
60 DBG_DECRYPT           61 DBG_ENCRYPT          70 SWAP_OUT              71 SWAP_IN
CA DOWNLOAD_FIRMWARE_EX
"""

# origin = sev-api.md §3, §4
PLATFORM_STATES = "0 UNINIT 1 INIT 2 WORKING"
GUEST_STATES = "0 UNINIT 1 LUPDATE 2 LSECRET 3 RUNNING 4 SUPDATE 5 RUPDATE 6 SENT"

# origin = sev-crypto.md §1, §2.1, §2.2
POLICY = "1 NODBG 2 NOKS 4 ES 8 NOSEND 10 DOMAIN 20 SEV"
USAGES = "0 ARK 13 ASK 1000 INVALID 1001 OCA 1002 PEK 1003 PDH 1004 CEK"
ALGOS = """
000 INVALID     001 RSA_SHA256  002 ECDSA_SHA256  003 ECDH_SHA256
101 RSA_SHA384  102 ECDSA_SHA384  103 ECDH_SHA384
"""


def pairs(table: str) -> dict[str, int]:
    words = table.split()
    return {name: int(number, 16) for number, name in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize(
    ("enumeration", "table"),
    [
        (Status, STATUSES),
        (Command, COMMANDS),
        (PlatformState, PLATFORM_STATES),
        (GuestState, GUEST_STATES),
        (Policy, POLICY),
        (Usage, USAGES),
        (Algo, ALGOS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_enumeration_is_the_papers(enumeration: type[Enum], table: str) -> None:
    assert pairs(table) == {member.name: member.value for member in enumeration}


def test_groups_of_algorithms() -> None:
    assert {Algo.RSA_SHA256, Algo.RSA_SHA384} == RSA_ALGOS
    assert {algo for algo in Algo if algo.name.endswith("SHA384")} == SHA384_ALGOS
    assert CURVE_P384 == 2


def test_policy_has_ten_reserved_bits() -> None:
    assert RESERVED_BITS == 0b1111_1111_1100_0000


def test_mac_contexts() -> None:
    # origin = sev-crypto.md §9, §10; the VMSA's is the one that sources disagree about
    assert (session.CONTEXT_SECRET, session.CONTEXT_DATA, session.CONTEXT_MEASURE) == (1, 2, 4)
    assert session.CONTEXT_VMSA == 2
    assert session.COMPRESSED == 1


@pytest.mark.parametrize(
    ("found", "paper"),
    [
        # origin = launch-inputs.md §2
        (firmware_table.FOOTER, "96b582de-1fb2-45f7-baea-a366c55a082d"),
        (firmware_table.AP_RESET, "00f771de-1a7e-4fcb-890e-68c77e2fb44e"),
        (firmware_table.SEV_SECRET, "4c2eb361-7d9b-4cc3-8081-127c90d3d294"),
        (firmware_table.HASH_TABLE, "7255371f-3a3b-4b04-927b-1da6efa8d454"),
        (firmware_table.SEV_METADATA, "dc886566-984a-4798-a75e-5585a7bf67cc"),
        # origin = launch-inputs.md §3
        (kernel_hashes.TABLE, "9438d606-4f22-4cc9-b479-a793d411fd21"),
        (kernel_hashes.CMDLINE, "97d02dd8-bd20-4c94-aa78-e7714d36ab2a"),
        (kernel_hashes.INITRD, "44baf731-3a2f-4bd7-9af1-41e29169781d"),
        (kernel_hashes.KERNEL, "4de79437-abd2-427f-b835-d5b172d2045b"),
        # origin = launch-inputs.md §4
        (secret_table.TABLE, "1e74f542-71dd-4d66-963e-ef4287ff173b"),
        (secret_table.DISK_PASSPHRASE, "736869e5-84f0-4973-92ec-06879ce3da0b"),
    ],
)
def test_guid(found: UUID, paper: str) -> None:
    assert UUID(paper) == found


@pytest.mark.parametrize(
    ("number", "name"), [(0x0B, "BAD_MEASUREMENT (0x000b)"), (0x5A, "unknown status (0x005a)")]
)
def test_a_status_is_named_with_its_number(number: int, name: str) -> None:
    assert status.name_of(number) == name


@pytest.mark.parametrize(("number", "name"), [(0x33, "LAUNCH_MEASURE"), (0x81, "command 0x81")])
def test_a_command_is_named(number: int, name: str) -> None:
    assert command.name_of(number) == name
