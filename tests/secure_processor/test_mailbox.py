"""The mailbox's registers, as sev-api.md §2 draws them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.secure_processor.mailbox import OFFSETS, Mailbox, Register
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.worlds import Chips, World

#: §2, typed from the table: CmdResp, Lo, Hi, INTEN, INTSTS.
V1 = (0x10580, 0x105E0, 0x105E4, 0x10610, 0x10614)
V2 = (0x10980, 0x109E0, 0x109E4, 0x10690, 0x10694)
GENERATIONS = {"sevv1": V1, "sevv2": V2}
both = pytest.mark.parametrize("generation", GENERATIONS)


class Firmware:
    """Answers every command with one status and remembers what it was asked."""

    def __init__(self, status: Status = Status.SUCCESS) -> None:
        self.status = status
        self.asked: list[tuple[int, int]] = []

    def __call__(self, command: int, address: int) -> Status:
        self.asked.append((command, address))
        return self.status


@both
def test_the_offsets_are_the_generations(generation: str) -> None:
    names = (
        Register.CMD_RESP,
        Register.CMD_BUF_ADDR_LO,
        Register.CMD_BUF_ADDR_HI,
        Register.INTEN,
        Register.INTSTS,
    )
    mailbox = Mailbox(generation, Firmware())
    assert GENERATIONS[generation] == tuple(mailbox.offset_of(name) for name in names)
    assert set(GENERATIONS) == set(OFFSETS)


@both
def test_a_command_is_answered_with_the_response_bit_and_the_status(generation: str) -> None:
    resp, low, high, _, _ = GENERATIONS[generation]
    firmware = Firmware(Status.BAD_MEASUREMENT)
    mailbox = Mailbox(generation, firmware)
    assert 0 == mailbox.read(resp)
    mailbox.write(low, 0x89ABCDE0)
    mailbox.write(high, 0x00080012)
    assert [] == firmware.asked
    mailbox.write(resp, 0x33 << 16)
    assert [(0x33, 0x00080012_89ABCDE0)] == firmware.asked
    assert 0x8000000B == mailbox.read(resp)
    assert (0x89ABCDE0, 0x00080012) == (mailbox.read(low), mailbox.read(high))  # left as they were


@both
def test_the_firmware_looks_at_bits_23_to_16(generation: str) -> None:
    resp = GENERATIONS[generation][0]
    firmware = Firmware()
    mailbox = Mailbox(generation, firmware)
    for written in (0x04 << 16, 0x104 << 16, 0x704 << 16, 0x04 << 16 | 0xFFFE):
        mailbox.write(resp, written)
    assert [0x04] * 4 == [command for command, _ in firmware.asked]
    assert 0x80000000 == mailbox.read(resp)


@both
@pytest.mark.parametrize("value", [0x80000000, 0x80040000, 0x80040001, 0xFFFFFFFF])
def test_a_write_with_the_response_bit_runs_nothing(generation: str, value: int) -> None:
    resp, _, _, inten, intsts = GENERATIONS[generation]
    firmware = Firmware()
    mailbox = Mailbox(generation, firmware)
    mailbox.write(inten, 2)
    mailbox.write(resp, value)
    assert [] == firmware.asked
    assert (0, False) == (mailbox.read(intsts), mailbox.interrupt_pending)


@both
def test_completion_interrupts_only_who_asked_and_enabled_it(generation: str) -> None:
    resp, _, _, inten, intsts = GENERATIONS[generation]
    mailbox = Mailbox(generation, Firmware())
    mailbox.write(resp, 0x0E << 16)
    assert (0, False) == (mailbox.read(intsts), mailbox.interrupt_pending)
    mailbox.write(resp, 0x0E << 16 | 1)
    assert (2, False) == (mailbox.read(intsts), mailbox.interrupt_pending)
    mailbox.write(inten, 2)
    assert mailbox.interrupt_pending
    mailbox.write(inten, 0xFFFFFFFD)
    assert not mailbox.interrupt_pending


@both
def test_a_refused_command_completes_too(generation: str) -> None:
    resp, _, _, _, intsts = GENERATIONS[generation]
    mailbox = Mailbox(generation, Firmware(Status.INVALID_COMMAND))
    mailbox.write(resp, 0x7F << 16 | 1)
    assert (0x80000011, 2) == (mailbox.read(resp), mailbox.read(intsts))


@both
def test_the_interrupt_status_is_cleared_by_writing_ones(generation: str) -> None:
    resp, _, _, inten, intsts = GENERATIONS[generation]
    mailbox = Mailbox(generation, Firmware())
    mailbox.write(inten, 2)
    mailbox.write(resp, 1)
    for value in (0, 1, 0xFFFFFFFD):
        mailbox.write(intsts, value)
        assert mailbox.interrupt_pending
    mailbox.write(intsts, 2)
    assert (0, False) == (mailbox.read(intsts), mailbox.interrupt_pending)
    mailbox.write(intsts, 2)  # nothing to clear
    assert 0 == mailbox.read(intsts)


@both
def test_the_other_generations_offsets_are_nothing(generation: str) -> None:
    other = V2 if generation == "sevv1" else V1
    firmware = Firmware()
    mailbox = Mailbox(generation, firmware)
    for offset in (*other, 0, 4, 0x10581, 0x10984):
        mailbox.write(offset, 0x04 << 16)
        assert 0xFFFFFFFF == mailbox.read(offset)
    assert [] == firmware.asked


@both
def test_a_processor_that_is_off_reads_all_ones_and_hears_nothing(generation: str) -> None:
    mailbox = Mailbox(generation, None)
    for offset in GENERATIONS[generation]:
        mailbox.write(offset, 0x04 << 16 | 1)
        assert 0xFFFFFFFF == mailbox.read(offset)
    assert not mailbox.interrupt_pending


def test_registers_keep_32_bits() -> None:
    mailbox = Mailbox("sevv1", Firmware())
    mailbox.write(V1[1], 0x1_2345_6789)
    assert 0x23456789 == mailbox.read(V1[1])


@pytest.mark.parametrize(("profile", "resp"), [("naples", 0x10580), ("rome", 0x10980), ("genoa", 0x10980)])
def test_a_machine_has_its_generations_mailbox(chips: Chips, profile: str, resp: int) -> None:
    with chips.world(profile) as world:
        world.machine.mailbox.write(resp, Command.NOP << 16)
        assert 0x80000000 == world.machine.mailbox.read(resp)


def test_a_real_command_interrupts(world: World) -> None:
    at = world.desk.put(bytes(buffers.Init()))
    world.machine.mailbox.write(V1[3], 2)
    assert Status.SUCCESS == world.desk.ring(Command.INIT, at, interrupt=True)
    assert world.machine.mailbox.interrupt_pending
    world.machine.mailbox.write(V1[4], 2)
    assert Status.SUCCESS == world.desk.ring(Command.NOP, at)
    assert not world.machine.mailbox.interrupt_pending


def test_a_command_with_spare_id_bits_is_the_command(world: World) -> None:
    assert Status.SUCCESS == world.desk.ring(0x700 | Command.NOP, 0)
    assert Status.INVALID_COMMAND == world.desk.ring(0x700, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(V1),
            st.integers(0, 2**32 - 1) | st.integers(0, 0x7F).map(lambda number: number << 16),
        ),
        max_size=30,
    )
)
def test_any_writes_leave_a_mailbox_that_works(chips: Chips, writes: list[tuple[int, int]]) -> None:
    with chips.world() as world:
        mailbox = world.machine.mailbox
        for offset, value in writes:
            mailbox.write(offset, value)
            assert 0 <= mailbox.read(offset) <= 0xFFFFFFFF
        assert 0 <= world.desk.platform().state <= 2
