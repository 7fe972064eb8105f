"""The commands as sev-api.md §2.1, §3 and §5–§10 print them, typed from the paper and not from the code."""

from __future__ import annotations

from dataclasses import dataclass

from cbit.spec.command import Command

C = Command
UNINIT, INIT, WORKING = 0, 1, 2
LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT = range(1, 7)
GUEST_STATES = (LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT)


@dataclass(frozen=True)
class Printed:
    """One command: number, buffer size, buffer class, platform states it may be called in."""

    number: int
    size: int
    buffer: str
    platform: frozenset[int]


ANY, UP = {UNINIT, INIT, WORKING}, {INIT, WORKING}
PAPER: dict[Command, Printed] = {
    command: Printed(number, size, buffer, frozenset(states))
    for command, number, size, buffer, states in (
        (C.INIT, 0x01, 0x14, "in", {UNINIT}),
        (C.SHUTDOWN, 0x02, 0, "none", ANY),
        (C.PLATFORM_RESET, 0x03, 0, "none", {UNINIT}),
        (C.PLATFORM_STATUS, 0x04, 0x0C, "out", ANY),
        (C.PEK_GEN, 0x05, 0, "none", {INIT}),
        (C.PEK_CSR, 0x06, 0x0C, "in/out+err", UP),
        (C.PEK_CERT_IMPORT, 0x07, 0x1C, "in", {INIT}),
        (C.PDH_CERT_EXPORT, 0x08, 0x1C, "in/out+err", UP),
        (C.PDH_GEN, 0x09, 0, "none", UP),
        (C.DF_FLUSH, 0x0A, 0, "none", UP),
        (C.DOWNLOAD_FIRMWARE, 0x0B, 0x0C, "in", {UNINIT}),
        (C.INIT_EX, 0x0D, 0x24, "in", {UNINIT}),
        (C.RING_BUFFER, 0x0F, 0x28, "in", UP),
        (C.DOWNLOAD_FIRMWARE_EX, 0xCA, 0x18, "in", {UNINIT}),
        (C.SWAP_OUT, 0x70, 0x28, "in/out+err", {WORKING}),
        (C.SWAP_IN, 0x71, 0x20, "in", {WORKING}),
        (C.ACTIVATE_EX, 0x25, 0x18, "in", {WORKING}),
        (C.LAUNCH_UPDATE_VMSA, 0x32, 0x14, "in", {WORKING}),
        (C.SEND_UPDATE_VMSA, 0x42, 0x34, "in/out+err", {WORKING}),
        (C.RECEIVE_UPDATE_VMSA, 0x52, 0x34, "in", {WORKING}),
        (C.GET_ID, 0x0C, 0x0C, "in/out+err", ANY),
        (C.NOP, 0x0E, 0, "none", ANY),
        (C.DECOMMISSION, 0x20, 0x04, "in", {WORKING}),
        (C.ACTIVATE, 0x21, 0x08, "in", {WORKING}),
        (C.DEACTIVATE, 0x22, 0x04, "in", {WORKING}),
        (C.GUEST_STATUS, 0x23, 0x0D, "in/out", UP),
        (C.COPY, 0x24, 0x18, "in", {WORKING}),
        (C.LAUNCH_START, 0x30, 0x24, "in/out", UP),
        (C.LAUNCH_UPDATE_DATA, 0x31, 0x14, "in", {WORKING}),
        (C.LAUNCH_MEASURE, 0x33, 0x14, "in/out+err", {WORKING}),
        (C.LAUNCH_SECRET, 0x34, 0x34, "in", {WORKING}),
        (C.LAUNCH_FINISH, 0x35, 0x04, "in", {WORKING}),
        (C.ATTESTATION, 0x36, 0x24, "in/out+err", {WORKING}),
        (C.SEND_START, 0x40, 0x44, "in/out+err", {WORKING}),
        (C.SEND_UPDATE_DATA, 0x41, 0x34, "in/out+err", {WORKING}),
        (C.SEND_FINISH, 0x43, 0x04, "in", {WORKING}),
        (C.SEND_CANCEL, 0x44, 0x04, "in", {WORKING}),
        (C.RECEIVE_START, 0x50, 0x24, "in/out", UP),
        (C.RECEIVE_UPDATE_DATA, 0x51, 0x34, "in", {WORKING}),
        (C.RECEIVE_FINISH, 0x53, 0x04, "in", {WORKING}),
        (C.DBG_DECRYPT, 0x60, 0x1C, "in", {WORKING}),
        (C.DBG_ENCRYPT, 0x61, 0x1C, "in", {WORKING}),
    )
}

#: Guest states a command may be called in (§4); commands that are not here do not care.
GUEST: dict[Command, frozenset[int]] = {
    C.ACTIVATE: frozenset({LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE}),
    C.ACTIVATE_EX: frozenset({LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE}),
    C.LAUNCH_UPDATE_VMSA: frozenset({LUPDATE}),
    C.SEND_UPDATE_VMSA: frozenset({SUPDATE}),
    C.RECEIVE_UPDATE_VMSA: frozenset({RUPDATE}),
    C.LAUNCH_UPDATE_DATA: frozenset({LUPDATE}),
    C.LAUNCH_MEASURE: frozenset({LUPDATE}),
    C.LAUNCH_SECRET: frozenset({LSECRET}),
    C.LAUNCH_FINISH: frozenset({LSECRET}),
    C.SEND_START: frozenset({RUNNING}),
    C.SEND_UPDATE_DATA: frozenset({SUPDATE}),
    C.SEND_FINISH: frozenset({SUPDATE}),
    C.SEND_CANCEL: frozenset({SUPDATE}),
    C.RECEIVE_UPDATE_DATA: frozenset({RUPDATE}),
    C.RECEIVE_FINISH: frozenset({RUPDATE}),
    C.ATTESTATION: frozenset({LSECRET, RUNNING, SUPDATE, SENT}),
}

#: §11: a SEV-only firmware answers INVALID_COMMAND to all of these; 0xCA is above.
SNP = (
    *range(0x81, 0x87),
    *range(0x90, 0x96),
    *(0xA0, 0xA1, 0xA2, 0xB0, 0xB1, 0xC0, 0xC1, 0xC2, 0xC3, 0xC6, 0xC7, 0xC8, 0xC9, 0xCB, 0xCD, 0xCE),
    *range(0xD0, 0xD6),
)
#: Numbers that no section gives to any command.
UNKNOWN = (0x00, 0x10, 0x1F, 0x26, 0x2F, 0x37, 0x3F, 0x45, 0x54, 0x62, 0x72, 0x80, 0xFF)
