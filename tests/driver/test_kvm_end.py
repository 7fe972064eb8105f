"""Registered regions, and how the memory encryption of a machine ends: nothing is left, whenever it does."""

from __future__ import annotations

from collections.abc import Callable

from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
    EncRegion,
    KvmLaunchStart,
)
from cbit.driver.kvm_structs import KvmSevCommand as K
from cbit.spec.address import PAGE
from cbit.spec.command import Command
from cbit.spec.status import Status
from driver.kvm_worlds import BLOBS, GUEST, Desk, Program

IMAGE = b"an image".ljust(2 * PAGE, b"\xf4")
EIO = "EIO"


def test_regions_are_registered_and_forgotten_exactly(program: Program) -> None:
    def region(request: int, address: int, size: int) -> str:
        program.write(BLOBS, bytes(EncRegion(addr=address, size=size)))
        return program.call(request, BLOBS)

    add, drop = KVM_MEMORY_ENCRYPT_REG_REGION, KVM_MEMORY_ENCRYPT_UNREG_REGION
    assert "ENOTTY" == region(add, GUEST, PAGE)
    assert "ENOTTY" == region(drop, GUEST, PAGE)
    program.do(K.SEV_INIT)
    assert "ok" == region(add, GUEST, 2 * PAGE)
    assert "EINVAL" == region(drop, GUEST, PAGE)
    assert "ok" == region(drop, GUEST, 2 * PAGE)
    assert "EINVAL" == region(drop, GUEST, 2 * PAGE)
    assert "EINVAL" == region(add, GUEST, 0)
    assert "ENOMEM" == region(add, 16 * PAGE, PAGE)
    assert "EFAULT" == program.call(add, 1)


def test_the_end_of_a_machine_in_any_state_leaves_nothing(desk: Desk) -> None:
    before = desk.in_use()
    for stop in range(5):
        program = desk.program()
        steps: list[Callable[[Program], object]] = [
            lambda p: p.do(K.SEV_INIT),
            lambda p: p.start(),
            lambda p: p.load(IMAGE),
            lambda p: p.measure(),
            lambda p: p.do(K.LAUNCH_FINISH),
        ]
        for step in steps[: stop + 1]:
            step(program)
        program.vm.close()
        assert before == desk.in_use()
        program.vm.close()  # twice is once
    assert 0 == desk.host.status().guest_count


def test_a_machine_whose_platform_was_shut_down_ends_all_the_same(desk: Desk) -> None:
    program = desk.program()
    program.running(IMAGE)
    desk.host.ccp.issue(Command.SHUTDOWN)
    assert (EIO, Status.INVALID_PLATFORM_STATE) == program.op(K.LAUNCH_FINISH)


def test_every_refusal_is_explained_in_the_trace(desk: Desk) -> None:
    program = desk.program()
    with desk.host.machine.trace.recorded() as events:
        program.op(K.LAUNCH_START)
        program.do(K.SEV_INIT)
        program.give(K.LAUNCH_START, KvmLaunchStart(policy=1 << 7))
    told = [(event.what, event.why) for event in events if event.part == "driver"]
    assert ("KVM LAUNCH_START", "the machine has no SEV: INIT comes first") == told[0]
    assert "KVM LAUNCH_START" == told[-1][0]
    assert "sets reserved bits 0x80" in told[-1][1]
