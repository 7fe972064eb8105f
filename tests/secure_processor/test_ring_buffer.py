"""Ring-buffer mode: what the registers mean, in which order commands run, and how it ends."""

from __future__ import annotations

import pytest

from cbit.secure_processor.mailbox import Register
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.rings import Rings
from secure_processor.worlds import World

PAGE = 4096
ACTIVE, CONTROL = 1 << 30, 1 << 31
RESUME_LO, RESUME_HI, CLEAR = 1 << 8, 1 << 9, 1 << 29
LO_EMPTY, HI_EMPTY = 1 << 0, 1 << 1
EMPTY, DONE, PAUSED, FREE = 1 << 28, 1 << 29, 1 << 30, 1 << 31
INTERRUPT, GO_ON = 1, 2
NOP, NONE = Command.NOP, 0x7F


@pytest.fixture
def rings(world: World) -> Rings:
    return Rings(world.init(es=True)).begin()


def answered(status: int) -> bytes:
    return status.to_bytes(2, "little") + bytes(14)


def test_commands_run_in_order_and_leave_their_statuses(rings: Rings) -> None:
    assert ACTIVE | CONTROL == rings.read(Register.CMD_RESP)
    rings.queue(Command.LAUNCH_START, buffers.LaunchStart(policy=0))
    rings.queue(NONE, flags=GO_ON)
    rings.queue(Command.ACTIVATE, buffers.Activate(handle=1, asid=5))
    assert (0, 0) == rings.heads
    rings.ring()
    assert (3, 0) == rings.heads
    assert [answered(0), answered(0x11), answered(0)] == [rings.status(index) for index in range(3)]
    assert 0 == rings.happened
    rings.ring()  # nothing new: nothing runs again
    assert (3, 0) == rings.heads
    assert 5 == rings.world.firmware.platform.guests[1].asid


def test_the_high_queue_goes_first(rings: Rings) -> None:
    rings.queue(Command.DECOMMISSION, buffers.GuestHandle(handle=1), flags=GO_ON)
    rings.queue(Command.LAUNCH_START, buffers.LaunchStart(policy=0), high=True)
    rings.ring()
    assert (1, 1) == rings.heads
    assert (answered(0), answered(0)) == (rings.status(0), rings.status(0, high=True))


def test_a_queue_is_a_ring(rings: Rings) -> None:
    for _ in range(3):
        for _ in range(200):
            rings.queue(NOP)
        rings.ring()
        assert rings.tails[0] == rings.heads[0]
    assert 600 % 256 == rings.heads[0]


def test_a_command_that_fails_pauses_its_queue_and_no_other(rings: Rings) -> None:
    rings.queue(NONE)
    rings.queue(NOP)
    rings.queue(NOP, high=True)
    rings.ring()
    assert ((1, 1), PAUSED) == (rings.heads, rings.happened)
    assert (answered(0x11), bytes(16)) == (rings.status(0), rings.status(1))
    rings.queue(NOP, high=True)
    rings.ring()  # the other goes on
    assert (1, 2) == rings.heads
    rings.control(RESUME_HI)
    assert (1, 2) == rings.heads
    rings.control(RESUME_LO | CLEAR)
    assert ((2, 2), 0) == (rings.heads, rings.happened)


def test_the_high_queue_pauses_too(rings: Rings) -> None:
    rings.queue(NONE, high=True)
    rings.queue(NOP, high=True)
    rings.ring()
    assert (0, 1) == rings.heads
    rings.control(RESUME_HI)
    assert (0, 2) == rings.heads


def test_who_asked_is_told_that_a_command_is_done(rings: Rings) -> None:
    rings.write(Register.INTEN, 2)
    rings.queue(NOP)
    rings.ring()
    assert (0, False) == (rings.happened, rings.world.machine.mailbox.interrupt_pending)
    rings.queue(NOP, flags=INTERRUPT)
    rings.ring()
    assert (DONE, True) == (rings.happened, rings.world.machine.mailbox.interrupt_pending)
    rings.write(Register.INTSTS, 2)
    rings.control(CLEAR)
    assert (0, False) == (rings.happened, rings.world.machine.mailbox.interrupt_pending)


@pytest.mark.parametrize(
    ("asked", "control", "high", "told"),
    [
        (0, 0, False, 0),
        (1, 0, False, EMPTY),
        (1, 0, True, EMPTY),
        (0, LO_EMPTY, False, EMPTY),
        (0, LO_EMPTY, True, 0),
        (0, HI_EMPTY, True, EMPTY),
        (0, HI_EMPTY, False, 0),
    ],
)
def test_who_asked_is_told_that_all_is_done(
    world: World, asked: int, control: int, high: bool, told: int
) -> None:
    rings = Rings(world.init(), int_on_empty=asked).begin()
    rings.control(control)
    rings.queue(NOP, high=high)
    rings.ring()
    assert told == rings.happened


def test_a_threshold_is_told_when_it_is_reached(world: World) -> None:
    rings = Rings(world.init(), lo_threshold=2).begin()
    for _ in range(2):
        rings.queue(NOP)
    rings.ring()
    assert 0 == rings.happened  # never more than one waited
    for _ in range(5):
        rings.queue(NOP)
    rings.ring()
    assert FREE == rings.happened


def test_without_a_high_queue_its_half_of_the_tail_is_nothing(world: World) -> None:
    rings = Rings(world.init(), hi_size=0, hi_cmd_paddr=3, hi_stat_paddr=1 << 60).begin()
    rings.queue(NOP)
    rings.tails[1] = 9
    rings.ring()
    assert (1, 0) == rings.heads


def test_entries_come_from_where_the_c_bit_says(world: World) -> None:
    desk = world.init().desk
    at = desk.room(PAGE)
    desk.write(at, NOP.to_bytes(2, "little") + bytes(14), c=True)
    rings = Rings(world, lo_cmd_paddr=desk.with_c(at)).begin()
    rings.tails[0] = 1
    rings.ring()
    assert answered(0) == rings.status(0)


def test_the_pages_are_no_commands_business(rings: Rings) -> None:
    for page in (rings.asked.lo_cmd_paddr, rings.asked.hi_stat_paddr):
        index = rings.queue(Command.GET_ID, buffers.GetId(paddr=page, length=64), flags=GO_ON)
        rings.ring()
        assert answered(Status.INVALID_ADDRESS) == rings.status(index)
    index = rings.queue(Command.GET_ID, buffers.GetId(paddr=0x200000, length=64))
    rings.ring()
    assert answered(0) == rings.status(index)


def test_there_is_one_at_a_time(rings: Rings) -> None:
    index = rings.queue(Command.RING_BUFFER, rings.asked)
    rings.ring()
    assert answered(Status.INVALID_PARAM) == rings.status(index)


@pytest.mark.parametrize(
    "value", [NOP << 16, ACTIVE, CONTROL], ids=["a command", "bit 31 clear", "bit 30 clear"]
)
def test_a_usual_write_leaves_the_mode_and_runs_nothing(rings: Rings, value: int) -> None:
    world = rings.world
    rings.write(Register.CMD_RESP, value)
    assert 0x8000001F == rings.read(Register.CMD_RESP)
    assert Status.SUCCESS == world.desk.status_of(Command.PLATFORM_STATUS, buffers.PlatformStatus())
    asked = buffers.GetId(paddr=rings.asked.lo_cmd_paddr, length=64)
    assert Status.SUCCESS == world.desk.status_of(Command.GET_ID, asked)  # the pages are memory again
    world.desk.do(Command.RING_BUFFER, rings.asked)


def test_shutdown_ends_it_and_what_is_behind_it_does_not_run(rings: Rings) -> None:
    world = rings.world
    rings.queue(NOP)
    rings.queue(Command.SHUTDOWN)
    index = rings.queue(NOP)
    rings.ring()
    assert (answered(0), bytes(16)) == (rings.status(1), rings.status(index))
    assert 0x80000000 == rings.read(Register.CMD_RESP)
    assert 0 == world.desk.platform().state
    assert Status.INVALID_PLATFORM_STATE == world.desk.status_of(Command.RING_BUFFER, rings.asked)


def test_the_head_is_the_secure_processors(rings: Rings) -> None:
    rings.queue(NOP)
    rings.ring()
    rings.write(Register.CMD_BUF_ADDR_LO, 0xFFFFFFFF)
    assert ((1, 0), 0) == (rings.heads, rings.happened)


def test_a_reset_ends_it(rings: Rings) -> None:
    rings.world.machine.reset()
    assert 0 == rings.world.desk.platform().state
