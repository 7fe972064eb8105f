"""What Linux does and its interface does not say: whose /dev/sev, what the error field hears, what is pinned.

Each of these is a fact of arch/x86/kvm/svm/sev.c.
"""

from __future__ import annotations

import pytest

from cbit.driver.kvm_structs import KvmDebug, KvmGuestStatus, KvmLaunchStart, KvmLaunchUpdateData
from cbit.driver.kvm_structs import KvmSevCommand as K
from cbit.spec.address import PAGE
from cbit.spec.command import Command
from cbit.spec.status import Status
from driver.kvm_worlds import BASE, BLOBS, GUEST, OTHER_FD, SEV_FD, SIZE, UNTOUCHED, Desk, Program

IMAGE = b"an image".ljust(2 * PAGE, b"\xf4")
NOWHERE = BASE + SIZE
STATUS = KvmGuestStatus(handle=0, policy=0, state=0)


# ---- whose /dev/sev


@pytest.mark.parametrize("named", [0, OTHER_FD, 99, 0xFFFFFFFF])
def test_after_the_start_nobody_looks_at_the_descriptor_that_a_command_names(
    program: Program, named: int
) -> None:
    program.do(K.SEV_INIT)
    program.start()
    program.sev_fd = named
    program.load(IMAGE)
    program.must(K.GUEST_STATUS, STATUS)
    program.measure()
    program.do(K.LAUNCH_FINISH)


def test_a_descriptor_that_was_closed_ends_the_launch_and_its_number_given_out_again_goes_on(
    desk: Desk, program: Program
) -> None:
    program.do(K.SEV_INIT)
    program.start()
    del desk.descriptors[SEV_FD]
    desk.descriptors[9] = True
    program.sev_fd = 9
    program.write(GUEST, IMAGE)
    asked = KvmLaunchUpdateData(uaddr=GUEST, len=len(IMAGE))
    assert ("EBADF", UNTOUCHED, asked) == program.give(K.LAUNCH_UPDATE_DATA, asked)
    assert IMAGE == program.read(GUEST, len(IMAGE))
    desk.descriptors[SEV_FD] = True
    program.load(IMAGE)


def test_before_the_start_descriptor_0_is_taken_for_it(desk: Desk, program: Program) -> None:
    program.do(K.SEV_INIT)
    with desk.host.machine.trace.recorded() as events:
        assert ("EBADF", UNTOUCHED) == program.give(K.GUEST_STATUS, STATUS)[:2]
    (why,) = (event.why for event in events if event.part == "driver")
    assert "LAUNCH_START or RECEIVE_START comes first" in why
    desk.descriptors[0] = True
    assert ("ok", Status.SUCCESS) == program.give(K.GUEST_STATUS, STATUS)[:2]


@pytest.mark.parametrize("named", [OTHER_FD, 99])
def test_a_start_through_another_file_leaves_no_guest(desk: Desk, program: Program, named: int) -> None:
    program.do(K.SEV_INIT)
    program.sev_fd = named
    asked = KvmLaunchStart(policy=0)
    assert ("EBADF", UNTOUCHED, asked) == program.give(K.LAUNCH_START, asked)
    assert 0 == desk.host.status().guest_count


# ---- INIT


def test_init_says_what_went_wrong_and_of_what_went_well_nothing(desk: Desk, program: Program) -> None:
    assert ("ok", UNTOUCHED) == program.op(K.SEV_INIT)
    assert ("EINVAL", UNTOUCHED) == program.op(K.SEV_INIT)
    assert 1 == desk.host.status().state


def test_without_an_asid_the_platform_is_not_initialised(desk: Desk) -> None:
    for _ in range(11):
        desk.program().do(K.SEV_INIT)
    desk.host.ccp.issue(Command.SHUTDOWN)
    assert ("EBUSY", UNTOUCHED) == desk.program().op(K.SEV_INIT)
    assert 0 == desk.host.status().state


# ---- debugging


@pytest.mark.parametrize("command", [K.DBG_DECRYPT, K.DBG_ENCRYPT])
def test_both_sides_of_a_debug_command_are_pinned_before_the_firmware_is_asked(
    desk: Desk, program: Program, command: K
) -> None:
    program.running(IMAGE)
    program.read_only = range(BLOBS, BLOBS + PAGE)
    if command == K.DBG_ENCRYPT:
        program.read_only = range(GUEST, GUEST + PAGE)
    inside, outside = (GUEST, BLOBS) if command == K.DBG_DECRYPT else (BLOBS, GUEST)
    before = program.read(GUEST, len(IMAGE))
    for source, target in ((inside, outside), (inside, NOWHERE), (NOWHERE, outside)):
        with desk.host.machine.trace.recorded() as events:
            asked = KvmDebug(src_uaddr=source, dst_uaddr=target, len=32)
            assert ("ENOMEM", UNTOUCHED, asked) == program.give(command, asked)
        assert "secure_processor" not in [event.part for event in events]
    assert before == program.read(GUEST, len(IMAGE))


def test_guest_memory_that_is_only_readable_can_be_decrypted(program: Program) -> None:
    program.running(IMAGE)
    program.read_only = range(GUEST, GUEST + 2 * PAGE)
    program.must(K.DBG_DECRYPT, KvmDebug(src_uaddr=GUEST, dst_uaddr=BLOBS, len=32))
    assert IMAGE[:32] == program.read(BLOBS, 32)
