"""KVM's memory-encryption requests: launches as a client makes them, the memory rule, and what is refused."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import pytest

from cbit.crypto import packet
from cbit.crypto.measurement import measurement
from cbit.driver.client_pages import MemoryRule
from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_OP,
    KvmAttestationReport,
    KvmDebug,
    KvmGuestStatus,
    KvmInit2,
    KvmLaunchMeasure,
    KvmLaunchStart,
    KvmLaunchUpdateData,
    KvmPacket,
    KvmReceiveStart,
    KvmSendStart,
    VmType,
)
from cbit.driver.kvm_structs import KvmSevCommand as K
from cbit.spec.address import PAGE
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.policy import ApiVersion, Policy
from cbit.spec.session import CONTEXT_SECRET
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from cbit.testing.guests import a_session
from driver.kvm_worlds import BLOBS, GUEST, OTHER_FD, SIZE, UNTOUCHED, Desk, Program, a_desk
from secure_processor.worlds import Chips

IMAGE = b"an image that is measured".ljust(2 * PAGE + 48, b"\xf4")
EIO = "EIO"


rules = pytest.mark.parametrize("rule", list(MemoryRule))


@rules
@pytest.mark.parametrize("profile", ["naples", "milan", "genoa"])
def test_an_owners_launch_from_init_to_finish(chips: Chips, profile: str, rule: MemoryRule) -> None:
    with a_desk(chips, profile) as desk:
        program = desk.program(rule)
        policy = int(Policy.NOKS)
        program.do(K.SEV_INIT)
        session, keys = a_session(desk.host.export_chain()[:CERT_SIZE], policy=policy)
        handle = program.start(policy, bytes(session.godh), bytes(session.blob))
        program.load(IMAGE)
        blob = program.measure()
        is_ = desk.host.status()
        assert blob.measure == measurement(
            keys.tik,
            api=ApiVersion(is_.api_major, is_.api_minor),
            build=is_.build,
            policy=policy,
            digest=hashlib.sha256(IMAGE).digest(),
            mnonce=blob.mnonce,
        )
        held = program.read(GUEST, len(IMAGE))
        assert (held == IMAGE) is (rule is MemoryRule.PLAIN)

        secret = b"the disk's key".ljust(64, b"!")
        header, payload = packet.seal(
            keys, secret, context=CONTEXT_SECRET, iv=bytes(16), measure=blob.measure
        )
        at = GUEST + 0x8010
        program.must(K.LAUNCH_SECRET, program.packet(bytes(header), payload, at=at))
        assert (program.read(at, 64) == secret) is (rule is MemoryRule.PLAIN)
        assert payload != program.read(at, 64)
        program.do(K.LAUNCH_FINISH)
        status = program.must(K.GUEST_STATUS, KvmGuestStatus())
        assert (handle, policy, GuestState.RUNNING) == (status.handle, status.policy, status.state)

        for where, what in ((GUEST, IMAGE[:PAGE]), (at, secret)):
            program.must(K.DBG_DECRYPT, KvmDebug(src_uaddr=where, dst_uaddr=BLOBS, len=len(what)))
            assert what == program.read(BLOBS, len(what))


def test_the_digest_does_not_care_how_an_image_is_cut(desk: Desk) -> None:
    measures = []
    for cuts in ([0, len(IMAGE)], [0, 16, PAGE, PAGE + 32, len(IMAGE)]):
        program = desk.program()
        program.do(K.SEV_INIT)
        program.start()
        for start, end in pairwise(cuts):
            program.load(IMAGE[start:end], GUEST + start)
        program.measure()
        report = program.must(
            K.GET_ATTESTATION_REPORT, KvmAttestationReport(mnonce=bytes(16), uaddr=BLOBS, len=0xD0)
        )
        assert 0xD0 == report.len
        measures.append(program.read(BLOBS + 0x10, 32))
    assert [hashlib.sha256(IMAGE).digest()] * 2 == measures


@rules
def test_a_debugger_reads_and_writes_at_any_address(desk: Desk, rule: MemoryRule) -> None:
    program = desk.program(rule)
    program.running(IMAGE)
    expected = bytearray(IMAGE)
    for start, length in ((0, 16), (3, 5), (15, 2), (PAGE - 7, 30), (1, 2 * PAGE)):
        program.must(K.DBG_DECRYPT, KvmDebug(src_uaddr=GUEST + start, dst_uaddr=BLOBS + 9, len=length))
        assert bytes(expected[start : start + length]) == program.read(BLOBS + 9, length)
        new = bytes(range(200)) * (length // 200 + 1)
        program.write(BLOBS + 5, new[:length])
        program.must(K.DBG_ENCRYPT, KvmDebug(src_uaddr=BLOBS + 5, dst_uaddr=GUEST + start, len=length))
        expected[start : start + length] = new[:length]
    program.must(K.DBG_DECRYPT, KvmDebug(src_uaddr=GUEST, dst_uaddr=BLOBS, len=len(IMAGE)))
    assert bytes(expected) == program.read(BLOBS, len(IMAGE))
    assert (bytes(expected) == program.read(GUEST, len(IMAGE))) is (rule is MemoryRule.PLAIN)


def test_what_a_guest_without_an_engine_stored_is_what_a_debugger_reads(desk: Desk) -> None:
    program = desk.program(MemoryRule.PLAIN)
    program.running(IMAGE)
    program.write(GUEST + 100, b"stored by a real virtual CPU")
    program.must(K.DBG_DECRYPT, KvmDebug(src_uaddr=GUEST + 96, dst_uaddr=BLOBS, len=32))
    assert b"stored by a real virtual CPU" == program.read(BLOBS + 4, 28)


@pytest.mark.parametrize(("sender", "receiver"), [(a, b) for a in MemoryRule for b in MemoryRule])
def test_a_guest_is_sent_and_received(desk: Desk, sender: MemoryRule, receiver: MemoryRule) -> None:
    source, target = desk.program(sender), desk.program(receiver)
    source.running(IMAGE)
    target.do(K.SEV_INIT)
    exported = desk.host.export_chain()
    pdh, platform = exported[:CERT_SIZE], exported[CERT_SIZE:]
    source.write(BLOBS, pdh)
    source.write(BLOBS + PAGE, platform)
    source.write(BLOBS + 3 * PAGE, bytes(0xC80))
    ask = KvmSendStart(
        pdh_cert_uaddr=BLOBS,
        pdh_cert_len=len(pdh),
        plat_certs_uaddr=BLOBS + PAGE,
        plat_certs_len=len(platform),
        amd_certs_uaddr=BLOBS + 3 * PAGE,
        amd_certs_len=0xC80,
        session_uaddr=BLOBS + 4 * PAGE,
        session_len=0,
    )
    said, error, answer = source.give(K.SEND_START, ask)
    assert (EIO, Status.INVALID_LENGTH, 0x80) == (said, error, answer.session_len)
    source.must(K.SEND_START, ask.replace(session_len=0x80))
    target.write(BLOBS, pdh)
    target.write(BLOBS + PAGE, source.read(BLOBS + 4 * PAGE, 0x80))
    start = KvmReceiveStart(
        policy=0, pdh_uaddr=BLOBS, pdh_len=CERT_SIZE, session_uaddr=BLOBS + PAGE, session_len=0x80
    )
    assert target.must(K.RECEIVE_START, start).handle

    said, error, lengths = source.give(
        K.SEND_UPDATE_DATA,
        KvmPacket(hdr_uaddr=0, hdr_len=0, guest_uaddr=0, guest_len=0, trans_uaddr=0, trans_len=0),
    )
    assert (EIO, Status.INVALID_LENGTH, 0x34) == (said, error, lengths.hdr_len)
    for offset in range(0, len(IMAGE), PAGE):
        length = min(PAGE, len(IMAGE) - offset)
        request = KvmPacket(
            hdr_uaddr=BLOBS,
            hdr_len=0x34,
            guest_uaddr=GUEST + offset,
            guest_len=length,
            trans_uaddr=BLOBS + PAGE,
            trans_len=length,
        )
        source.must(K.SEND_UPDATE_DATA, request)
        header, data = source.read(BLOBS, 0x34), source.read(BLOBS + PAGE, length)
        assert IMAGE[offset : offset + length] != data
        target.must(K.RECEIVE_UPDATE_DATA, target.packet(header, data, at=GUEST + offset))
    broken = target.packet(header, data, at=GUEST)
    target.write(BLOBS + PAGE, bytes([data[0] ^ 1]))
    assert (EIO, Status.BAD_MEASUREMENT) == target.give(K.RECEIVE_UPDATE_DATA, broken)[:2]
    source.do(K.SEND_FINISH)
    target.do(K.RECEIVE_FINISH)
    target.must(K.DBG_DECRYPT, KvmDebug(src_uaddr=GUEST, dst_uaddr=BLOBS, len=len(IMAGE)))
    assert IMAGE == target.read(BLOBS, len(IMAGE))
    assert GuestState.SENT == source.must(K.GUEST_STATUS, KvmGuestStatus()).state


def test_a_sending_that_is_cancelled_lets_the_guest_run_on(desk: Desk) -> None:
    program = desk.program()
    program.running(IMAGE)
    assert (EIO, Status.INVALID_GUEST_STATE) == program.op(K.SEND_CANCEL)
    assert GuestState.RUNNING == program.must(K.GUEST_STATUS, KvmGuestStatus()).state


# ---- INIT ----


def test_a_null_argument_asks_whether_encryption_is_there(program: Program) -> None:
    assert "ok" == program.call(KVM_MEMORY_ENCRYPT_OP, 0)


def test_init_comes_once_and_before_the_first_processor(desk: Desk) -> None:
    program = desk.program()
    program.do(K.SEV_INIT)
    assert ("EINVAL", UNTOUCHED) == program.op(K.SEV_INIT)
    late = desk.program()
    late.vm.create_vcpu(0)
    assert ("EINVAL", UNTOUCHED) == late.op(K.SEV_INIT)


def test_init_takes_an_asid_of_the_kind(desk: Desk) -> None:
    programs = desk.program(), desk.program()
    programs[0].do(K.SEV_INIT)
    programs[1].do(K.SEV_ES_INIT)
    assert {programs[0].vm.asid} == desk.host.asids.in_use
    assert {programs[1].vm.asid} == desk.host.es_asids.in_use
    assert programs[1].vm.asid < 5 <= programs[0].vm.asid


def test_machines_without_an_asid_are_busy(desk: Desk) -> None:
    for _ in range(11):
        desk.program().do(K.SEV_INIT)
    assert "EBUSY" == desk.program().op(K.SEV_INIT)[0]
    desk.programs[0].vm.close()
    desk.program().do(K.SEV_INIT)


def test_a_host_without_es_has_no_es_init(chips: Chips) -> None:
    with a_desk(chips, es=False) as desk:
        assert ("ENOTTY", UNTOUCHED) == desk.program().op(K.SEV_ES_INIT)
        desk.program().do(K.SEV_INIT)


@pytest.mark.parametrize(
    ("kind", "request_", "said"),
    [
        (VmType.SEV, KvmInit2(), "ok"),
        (VmType.SEV_ES, KvmInit2(), "ok"),
        (VmType.SEV_ES, KvmInit2(ghcb_version=2, vmsa_features=1 << 5), "ok"),
        (VmType.SEV_ES, KvmInit2(ghcb_version=3), "EINVAL"),
        (VmType.SEV, KvmInit2(ghcb_version=1), "EINVAL"),
        (VmType.SEV, KvmInit2(vmsa_features=1 << 5), "EINVAL"),
        (VmType.SEV_ES, KvmInit2(vmsa_features=1), "EINVAL"),
        (VmType.SEV, KvmInit2(flags=1), "EINVAL"),
        (VmType.DEFAULT, KvmInit2(), "EINVAL"),
    ],
)
def test_init2_is_for_its_types(desk: Desk, kind: VmType, request_: KvmInit2, said: str) -> None:
    assert said == desk.program(kind=kind).give(K.INIT2, request_)[0]


@pytest.mark.parametrize("kind", [VmType.SEV, VmType.SEV_ES])
def test_the_old_init_is_for_the_default_type(desk: Desk, kind: VmType) -> None:
    assert ("EINVAL", UNTOUCHED) == desk.program(kind=kind).op(K.SEV_INIT)


# ---- what is refused ----


@pytest.mark.parametrize(
    "command", sorted(set(K) - {K.SEV_INIT, K.SEV_ES_INIT, K.INIT2, K.LAUNCH_UPDATE_VMSA})
)
def test_without_init_nothing_is_a_sev_machines(program: Program, command: K) -> None:
    absent = {K.SEND_UPDATE_VMSA, K.RECEIVE_UPDATE_VMSA, K.CERT_EXPORT}
    invalid = absent | {K.RECEIVE_UPDATE_DATA}  # of those that exist the only one
    assert ("EINVAL" if command in invalid else "ENOTTY", UNTOUCHED) == program.op(command)


@pytest.mark.parametrize("command", [23, 100, 0xFFFFFFFF])
def test_an_unknown_sub_command_is_invalid(program: Program, command: int) -> None:
    assert ("EINVAL", UNTOUCHED) == program.op(command)


def test_another_request_is_none_of_ours(program: Program) -> None:
    assert "ENOTTY" == program.call(0xAE80, 0)


def test_sev_fd_must_be_the_secure_processors(program: Program) -> None:
    program.do(K.SEV_INIT)
    for descriptor in (OTHER_FD, 99):
        program.sev_fd = descriptor
        assert "EBADF" == program.give(K.LAUNCH_START, KvmLaunchStart(policy=0))[0]


def start(**changes: int) -> KvmLaunchStart:
    good = KvmLaunchStart(policy=0, dh_uaddr=BLOBS, dh_len=0x824, session_uaddr=BLOBS, session_len=0x80)
    return good.replace(**changes)


@pytest.mark.parametrize(
    ("request_", "said", "error"),
    [
        (start(dh_len=0), "EINVAL", UNTOUCHED),
        (start(dh_len=0x4001), "EINVAL", UNTOUCHED),
        (start(session_len=0x4001), "EINVAL", UNTOUCHED),
        (start(dh_uaddr=8), "EFAULT", UNTOUCHED),
        (start(session_len=0x7F), EIO, Status.INVALID_LENGTH),
        (start(dh_len=0x823), EIO, Status.INVALID_LENGTH),
        (start(), EIO, Status.INVALID_CERTIFICATE),
        (KvmLaunchStart(policy=1 << 6), EIO, Status.POLICY_FAILURE),
        (KvmLaunchStart(policy=int(Policy.ES)), EIO, Status.INVALID_ASID),
        (KvmLaunchStart(policy=0, handle=9), EIO, Status.INVALID_GUEST),
    ],
)
def test_a_start_that_is_refused_leaves_no_guest(
    desk: Desk, request_: KvmLaunchStart, said: str, error: int
) -> None:
    program = desk.program()
    program.do(K.SEV_INIT)
    answer = program.give(K.LAUNCH_START, request_)
    assert (said, error, request_) == answer
    assert 0 == desk.host.status().guest_count
    program.start()


def test_a_handle_that_cannot_be_told_is_forgotten(desk: Desk) -> None:
    program = desk.program()
    program.do(K.SEV_INIT)
    program.write(BLOBS, bytes(KvmLaunchStart(policy=0)))
    program.read_only = range(BLOBS, BLOBS + 0x28)
    assert "EFAULT" == program.op(K.LAUNCH_START, BLOBS)[0]
    assert 0 == desk.host.status().guest_count
    assert 0 == program.vm.handle


@pytest.mark.parametrize(
    ("address", "length", "said", "error"),
    [
        (GUEST, 0, "EINVAL", UNTOUCHED),
        (2**64 - 16, 32, "EINVAL", UNTOUCHED),
        (GUEST, SIZE, "ENOMEM", UNTOUCHED),
        (8, 16, "ENOMEM", UNTOUCHED),
        (GUEST, 0xFFFFFFF0, "ENOMEM", UNTOUCHED),
        (GUEST + 8, 16, EIO, Status.INVALID_ADDRESS),
        (GUEST, 24, EIO, Status.INVALID_LENGTH),
    ],
)
def test_an_image_that_is_refused_is_left_as_it_was(
    program: Program, address: int, length: int, said: str, error: int
) -> None:
    program.do(K.SEV_INIT)
    program.start()
    before = program.read(GUEST, PAGE)
    answer = program.give(K.LAUNCH_UPDATE_DATA, KvmLaunchUpdateData(uaddr=address, len=length))
    assert (said, error) == answer[:2]
    assert before == program.read(GUEST, PAGE)


def test_memory_that_cannot_be_written_is_not_pinned(program: Program) -> None:
    program.do(K.SEV_INIT)
    program.start()
    program.read_only = range(GUEST + PAGE, GUEST + PAGE + 1)
    request = KvmLaunchUpdateData(uaddr=GUEST, len=2 * PAGE)
    assert "ENOMEM" == program.give(K.LAUNCH_UPDATE_DATA, request)[0]


def test_lengths_are_asked_for_with_nothing(program: Program) -> None:
    program.do(K.SEV_INIT)
    program.start()
    for command, request, needed in (
        (K.LAUNCH_MEASURE, KvmLaunchMeasure(uaddr=BLOBS, len=0), 0x30),
        (K.LAUNCH_MEASURE, KvmLaunchMeasure(uaddr=0, len=0), 0x30),
    ):
        said, error, after = program.give(command, request)
        assert (EIO, Status.INVALID_LENGTH, needed) == (said, error, after.len)
    short = KvmLaunchMeasure(uaddr=BLOBS, len=0x2F)
    assert (EIO, Status.INVALID_LENGTH, short) == program.give(K.LAUNCH_MEASURE, short)
    long = KvmLaunchMeasure(uaddr=BLOBS, len=0x4001)
    assert ("EINVAL", UNTOUCHED, long) == program.give(K.LAUNCH_MEASURE, long)
    program.measure()
    empty: Any = KvmAttestationReport(mnonce=bytes(16), uaddr=0, len=0)
    said, error, report = program.give(K.GET_ATTESTATION_REPORT, empty)
    assert (EIO, Status.INVALID_LENGTH, 0xD0) == (said, error, report.len)


def test_a_secret_with_a_wrong_header_changes_no_memory(program: Program) -> None:
    program.do(K.SEV_INIT)
    program.start()
    program.load(IMAGE)
    program.measure()
    before = program.read(GUEST, PAGE)
    request = program.packet(bytes(0x34), bytes(64))
    assert (EIO, Status.BAD_MEASUREMENT) == program.give(K.LAUNCH_SECRET, request)[:2]
    assert before == program.read(GUEST, PAGE)
    for change in ({"hdr_len": 0}, {"trans_len": 0}, {"guest_len": 0}, {"trans_len": 0x4001}):
        assert "EINVAL" == program.give(K.LAUNCH_SECRET, request.replace(**change))[0]


def test_a_policy_without_debugging_has_none(program: Program) -> None:
    program.running(IMAGE, policy=int(Policy.NODBG))
    request = KvmDebug(src_uaddr=GUEST, dst_uaddr=BLOBS, len=16)
    assert (EIO, Status.POLICY_FAILURE) == program.give(K.DBG_DECRYPT, request)[:2]
    for change in ({"len": 0}, {"dst_uaddr": 0}, {"src_uaddr": 2**64 - 1}):
        assert "EINVAL" == program.give(K.DBG_DECRYPT, request.replace(**change))[0]


@pytest.mark.parametrize("command", [K.SEND_UPDATE_DATA, K.RECEIVE_UPDATE_DATA])
def test_a_packet_stays_inside_a_page(program: Program, command: K) -> None:
    program.do(K.SEV_INIT)
    program.start()
    good = program.packet(bytes(0x34), bytes(64), at=GUEST + PAGE - 32)
    assert "EINVAL" == program.give(command, good)[0]
    for name in ("trans_uaddr", "guest_uaddr", "guest_len", "hdr_uaddr"):
        assert "EINVAL" == program.give(command, good.replace(**{"guest_uaddr": GUEST, name: 0}))[0]
    assert EIO == program.give(command, good.replace(guest_uaddr=GUEST))[0]


def test_sending_wants_every_certificate(program: Program) -> None:
    program.running(IMAGE)
    good = KvmSendStart(
        pdh_cert_uaddr=BLOBS,
        pdh_cert_len=CERT_SIZE,
        plat_certs_uaddr=BLOBS,
        plat_certs_len=16,
        amd_certs_uaddr=BLOBS,
        amd_certs_len=16,
        session_uaddr=BLOBS,
        session_len=0x80,
    )
    for name in (
        "pdh_cert_uaddr",
        "pdh_cert_len",
        "session_uaddr",
        "plat_certs_uaddr",
        "plat_certs_len",
        "amd_certs_uaddr",
        "amd_certs_len",
    ):
        assert "EINVAL" == program.give(K.SEND_START, good.replace(**{name: 0}))[0]
    assert "EINVAL" == program.give(K.SEND_START, good.replace(session_len=0x4001))[0]
    assert (EIO, Status.INVALID_CERTIFICATE) == program.give(K.SEND_START, good)[:2]
