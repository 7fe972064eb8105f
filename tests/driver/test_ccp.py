"""The driver: a status comes back as it is, a reason comes with it, a dead mailbox is no status."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cbit.driver.ccp import Ccp
from cbit.driver.errors import FirmwareError, MailboxTimeout
from cbit.spec import buffers
from cbit.spec.address import PAGE, Spa
from cbit.spec.command import Command
from cbit.spec.errors import CbitError
from cbit.spec.status import Status
from secure_processor.worlds import Chips, World

PAGE_AT = Spa(0x8000)


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return Chips(tmp_path_factory.mktemp("chips"))


@pytest.fixture
def world(chips: Chips) -> Iterator[World]:
    with chips.world() as world:
        yield world


@pytest.fixture
def ccp(world: World) -> Ccp:
    return Ccp(world.machine, PAGE_AT)


def test_a_command_that_succeeds_returns_its_buffer(ccp: Ccp) -> None:
    ccp.call(Command.INIT, buffers.Init())
    assert buffers.LaunchStart(handle=1, policy=8) == ccp.call(
        Command.LAUNCH_START, buffers.LaunchStart(policy=8)
    )


def test_a_command_without_a_buffer_is_issued(ccp: Ccp) -> None:
    ccp.issue(Command.NOP)


def test_a_refusal_names_command_status_and_reason(ccp: Ccp) -> None:
    with pytest.raises(FirmwareError) as refusal:
        ccp.issue(Command.PEK_GEN)
    assert (Command.PEK_GEN, Status.INVALID_PLATFORM_STATE) == (refusal.value.command, refusal.value.status)
    assert "the platform is UNINIT, needs INIT" == refusal.value.why
    expected = "PEK_GEN: INVALID_PLATFORM_STATE (0x0001): the platform is UNINIT, needs INIT"
    assert expected == str(refusal.value)
    with pytest.raises(FirmwareError, match="INIT: INVALID_CONFIG"):
        ccp.call(Command.INIT, buffers.Init(flags=2))


def test_an_attempt_reports_every_status(ccp: Ccp) -> None:
    asked = buffers.GetId(paddr=0, length=0)
    status, why, after = ccp.attempt(Command.GET_ID, asked)
    assert (Status.INVALID_LENGTH, "length 0, needs 64") == (status, why)
    assert asked.replace(length=64) == after
    assert (Status.SUCCESS, "") == ccp.attempt(Command.PLATFORM_STATUS, buffers.PlatformStatus())[:2]


def test_an_unknown_command_has_a_reason_too(ccp: Ccp) -> None:
    status, why, _ = ccp.attempt(0x7F, buffers.GuestHandle(handle=0))
    assert (Status.INVALID_COMMAND, "command 0x7f is not implemented by this firmware") == (status, why)


def test_the_reason_is_of_this_command_and_not_of_an_earlier_one(ccp: Ccp) -> None:
    assert ccp.attempt(Command.INIT, buffers.Init(flags=2))[1]
    assert (Status.SUCCESS, "") == ccp.attempt(Command.INIT, buffers.Init())[:2]


def test_a_machine_keeps_the_last_reason_and_forgets_it_with_the_next_command(ccp: Ccp, world: World) -> None:
    ccp.attempt(Command.INIT, buffers.Init(flags=2))
    assert "only bit 0 (ES) is defined" in world.machine.why
    ccp.issue(Command.NOP)
    assert "" == world.machine.why
    world.machine.power_off()
    assert "" == world.machine.why


def test_the_driver_adds_nothing_to_the_trace(ccp: Ccp, world: World) -> None:
    with world.trace.recorded() as events:
        ccp.issue(Command.NOP)
    assert ["NOP"] == [event.what for event in events]
    ccp.issue(Command.NOP)
    assert 1 == len(events)


def test_an_unknown_status_survives(ccp: Ccp, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.machine.mailbox, "_execute", lambda command, address: 0x1234)
    with pytest.raises(FirmwareError, match=r"NOP: unknown status \(0x1234\)") as refusal:
        ccp.issue(Command.NOP)
    assert (0x1234, "") == (refusal.value.status, refusal.value.why)


def test_only_the_drivers_page_is_touched(ccp: Ccp, world: World) -> None:
    machine = world.machine
    machine.memory.wbinvd()
    before = machine.probe.read(Spa(0), machine.memory_size)
    ccp.call(Command.INIT, buffers.Init())
    ccp.call(Command.PLATFORM_STATUS, buffers.PlatformStatus())
    machine.memory.wbinvd()
    after = machine.probe.read(Spa(0), machine.memory_size)
    assert before[:PAGE_AT] == after[:PAGE_AT]
    assert before[PAGE_AT + PAGE :] == after[PAGE_AT + PAGE :]


def test_a_machine_that_is_off_does_not_answer(ccp: Ccp, world: World) -> None:
    world.machine.power_off()
    for use in (
        lambda: ccp.issue(Command.NOP),
        lambda: ccp.call(Command.INIT, buffers.Init()),
        lambda: ccp.attempt(Command.INIT, buffers.Init()),
    ):
        with pytest.raises(MailboxTimeout, match="is the machine on"):
            use()
    world.machine.power_on()
    ccp.issue(Command.NOP)


def test_a_timeout_is_no_refusal() -> None:
    assert not issubclass(MailboxTimeout, FirmwareError)
    assert issubclass(MailboxTimeout, CbitError)


@pytest.mark.parametrize("profile", ["naples", "rome", "genoa"])
def test_every_generation_of_the_mailbox_is_driven(chips: Chips, profile: str) -> None:
    with chips.world(profile) as world:
        ccp = Ccp(world.machine, PAGE_AT)
        ccp.call(Command.INIT, buffers.Init())
        assert 1 == ccp.call(Command.PLATFORM_STATUS, buffers.PlatformStatus()).state


def test_the_page_may_lie_above_4_gib(chips: Chips) -> None:
    with chips.world(memory_size=5 << 30) as world:
        ccp = Ccp(world.machine, Spa(0x1_2345_6000))
        ccp.call(Command.INIT, buffers.Init())
        assert 1 == ccp.call(Command.PLATFORM_STATUS, buffers.PlatformStatus()).state


def test_init_after_a_damaged_store_succeeds_the_second_time(ccp: Ccp, world: World) -> None:
    """What a driver relies on (sev-api.md §12): SECURE_DATA_INVALID once, and the next INIT is good."""
    ccp.call(Command.INIT, buffers.Init())
    ccp.issue(Command.SHUTDOWN)
    world.nv.write_bytes(world.nv.read_bytes()[:-1])
    with pytest.raises(FirmwareError, match="SECURE_DATA_INVALID") as refusal:
        ccp.call(Command.INIT, buffers.Init())
    assert Status.SECURE_DATA_INVALID == refusal.value.status
    ccp.call(Command.INIT, buffers.Init())
