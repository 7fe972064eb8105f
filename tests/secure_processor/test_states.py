"""Which command may be called when: the tables of sev-api.md §3 and §4, against every state there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cbit.machine.manufacture import SVN
from cbit.secure_processor.image import sev_firmware
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.policy import ApiVersion
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from cbit.spec.wire import Wire
from secure_processor.es_faults import es_sending, es_start, take_vmsa
from secure_processor.migrations import (
    Packet,
    Papers,
    receive_update,
    receiving,
    send_start,
    send_update,
    sending,
    take,
)
from secure_processor.paper import GUEST, GUEST_STATES, INIT, PAPER, SNP, UNINIT, UNKNOWN, WORKING
from secure_processor.worlds import FIRST, LAST, Chips, World, vendor_key

STATES = {UNINIT: "UNINIT", INIT: "INIT", WORKING: "WORKING"}


def in_state(world: World, state: int) -> World:
    if state != UNINIT:
        world.init()
    if state == WORKING:
        world.launch()
    assert state == world.desk.platform().state
    return world


@pytest.mark.parametrize("state", STATES, ids=STATES.get)
@pytest.mark.parametrize("command", PAPER, ids=lambda command: command.name)
def test_a_platform_state_that_is_not_in_the_table_refuses(
    world: World, command: Command, state: int
) -> None:
    in_state(world, state)
    row = PAPER[command]
    # A length is looked at before the state (§7, LAUNCH_UPDATE_VMSA): give a good one.
    good = bytes(buffers.LaunchUpdateVmsa(handle=0, paddr=0))
    at = world.desk.put(good if command is Command.LAUNCH_UPDATE_VMSA else bytes(max(row.size, 1)))
    before = world.snapshot()
    status = world.desk.ring(row.number, at)
    if state in row.platform:
        assert Status.INVALID_PLATFORM_STATE != status
    else:
        assert Status.INVALID_PLATFORM_STATE == status
        assert before == world.snapshot()


REQUESTS: Mapping[Command, Callable[[World, int], Wire]] = {
    Command.ACTIVATE: lambda world, handle: buffers.Activate(handle=handle, asid=LAST),
    Command.LAUNCH_UPDATE_DATA: lambda world, handle: buffers.LaunchUpdateData(
        handle=handle, paddr=world.desk.room(16), length=16
    ),
    Command.LAUNCH_MEASURE: lambda world, handle: buffers.LaunchMeasure(
        handle=handle, measure_paddr=world.desk.room(48), measure_len=48
    ),
    Command.LAUNCH_SECRET: lambda world, handle: world.secret(handle, bytes(16)),
    Command.ATTESTATION: lambda world, handle: buffers.Attestation(
        handle=handle, paddr=world.desk.room(0xD0), mnonce=bytes(16), length=0xD0
    ),
    Command.SEND_START: lambda world, handle: send_start(world, handle, Papers.of(world)),
    Command.SEND_UPDATE_DATA: lambda world, handle: send_update(world, handle, world.desk.room(64), 64),
    Command.RECEIVE_UPDATE_DATA: lambda world, handle: receive_update(
        world, handle, take(world, 1, world.desk.room(64), 64)
    ),
}


ES_REQUESTS: Mapping[Command, Callable[[World, int], Wire]] = {
    Command.ACTIVATE_EX: lambda world, handle: buffers.ActivateEx(
        handle=handle, asid=LAST, numids=1, ids_paddr=world.desk.room(4)
    ),
    Command.LAUNCH_UPDATE_VMSA: lambda world, handle: buffers.LaunchUpdateVmsa(
        handle=handle, paddr=world.desk.room(4096)
    ),
    Command.SEND_UPDATE_VMSA: lambda world, handle: send_update(world, handle, es_guests[world], 4096),
    Command.RECEIVE_UPDATE_VMSA: lambda world, handle: receive_update(world, handle, es_packets[world]),
}
#: Where a guest's save area is, and a packet of it: what `reach` left for the request.
es_guests: dict[World, int] = {}
es_packets: dict[World, Packet] = {}


def request(world: World, command: Command, handle: int) -> Wire:
    if command in REQUESTS:
        return REQUESTS[command](world, handle)
    if command in ES_REQUESTS:
        return ES_REQUESTS[command](world, handle)
    return buffers.GuestHandle(handle=handle)


def reach_with_es(world: World, command: Command) -> int:
    if command is Command.LAUNCH_UPDATE_VMSA:
        return es_start(world)
    journey, es_guests[world] = es_sending(world)
    if command is Command.SEND_UPDATE_VMSA:
        return journey.handle
    es_packets[world] = take_vmsa(world, journey.handle, es_guests[world])
    return receiving(world, journey, asid=2)


def reach(world: World, command: Command) -> int:
    """Bring a guest by commands to a state where it could take this one."""
    if command in (Command.LAUNCH_SECRET, Command.LAUNCH_FINISH, Command.ATTESTATION):
        return world.launch(state=GuestState.LSECRET)
    if command is Command.SEND_START:
        return world.launch()
    if command in ES_REQUESTS and command is not Command.ACTIVATE_EX:
        return reach_with_es(world, command)
    if command.name.startswith("SEND"):
        return sending(world).handle
    if command.name.startswith("RECEIVE"):
        return receiving(world, sending(world))
    return world.launch(state=GuestState.LUPDATE)


@pytest.mark.parametrize("state", GUEST_STATES, ids=lambda state: GuestState(state).name)
@pytest.mark.parametrize("command", GUEST, ids=lambda command: command.name)
def test_a_guest_state_that_is_not_in_the_table_refuses(world: World, command: Command, state: int) -> None:
    handle = reach(world.init(es="VMSA" in command.name), command)
    if command in (Command.ACTIVATE, Command.ACTIVATE_EX):
        world.deactivate(handle)
    order = request(world, command, handle)
    world.force(handle, GuestState(state))
    before = world.snapshot()
    status, why, _ = world.desk.attempt(command, order)
    if state in GUEST[command]:
        assert (Status.SUCCESS, "") == (status, why)
    else:
        assert Status.INVALID_GUEST_STATE == status
        assert f"guest {handle} is {GuestState(state).name}" in why
        assert before == world.snapshot()


@pytest.mark.parametrize("state", GUEST_STATES, ids=lambda state: GuestState(state).name)
@pytest.mark.parametrize(
    "command",
    [
        Command.DEACTIVATE,
        Command.GUEST_STATUS,
        Command.DECOMMISSION,
        Command.COPY,
        Command.DBG_DECRYPT,
        Command.DBG_ENCRYPT,
    ],
)
def test_what_does_not_care_about_the_guests_state_takes_every_one(
    world: World, command: Command, state: int
) -> None:
    handle = world.init().launch()
    if command is Command.DECOMMISSION:
        world.deactivate(handle)
    world.force(handle, GuestState(state))
    order: Wire = buffers.GuestHandle(handle=handle)
    if command is Command.GUEST_STATUS:
        order = buffers.GuestStatus(handle=handle)
    src, dst = world.desk.room(4096), world.desk.room(4096)
    if command is Command.COPY:
        order = buffers.Copy(handle=handle, length=4096, src=src, dst=dst)
    if command in (Command.DBG_DECRYPT, Command.DBG_ENCRYPT):
        order = buffers.Debug(handle=handle, length=16, src=src, dst=dst)
    assert Status.SUCCESS == world.desk.status_of(command, order)


# ---- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", PAPER, ids=lambda command: command.name)
def test_a_command_has_the_papers_number(command: Command) -> None:
    assert PAPER[command].number == command


@pytest.mark.parametrize("state", STATES, ids=STATES.get)
def test_an_snp_or_unknown_number_is_an_invalid_command(world: World, state: int) -> None:
    in_state(world, state)
    before = world.snapshot()
    for number in (*SNP, *UNKNOWN):
        assert (number, Status.INVALID_COMMAND) == (number, world.desk.ring(number, world.desk.page))
    assert before == world.snapshot()


def test_an_invalid_command_is_found_before_a_bad_address(world: World) -> None:
    assert Status.INVALID_COMMAND == world.desk.ring(0x83, 1 << 46)


@pytest.mark.parametrize("missing", PAPER, ids=lambda command: command.name)
def test_a_firmware_image_that_lists_fewer_commands_has_fewer(chips: Chips, missing: Command) -> None:
    def flash(folder: Path) -> None:
        listed = [command for command in PAPER if command is not missing]
        image = sev_firmware(vendor_key(folder), api=ApiVersion(0, 17), build=48, svn=SVN, commands=listed)
        (folder / "spi/sev_firmware.bin").write_bytes(image)

    with chips.world(prepare=flash) as world:
        assert Status.INVALID_COMMAND == world.desk.status_of(missing, buffers.Init())
        present = Command.NOP if missing is not Command.NOP else Command.PLATFORM_STATUS
        assert Status.SUCCESS == world.desk.status_of(present, buffers.PlatformStatus())


# ---- the command buffer ------------------------------------------------------------------------------------

WITH_BUFFER = [command for command, row in PAPER.items() if row.size]
FORBIDDEN = {
    "beyond DRAM": 4 << 20,
    "over the end of DRAM": (4 << 20) - 1,
    "an ASID's tag": 1 << 43,
    "all ones": (1 << 64) - 1,
    "ASEG": 0xA0000,
    "the last byte before ASEG": 0x9FFFF,
    "the last byte of ASEG": 0xBFFFF,
}


@pytest.mark.parametrize("command", WITH_BUFFER, ids=lambda command: command.name)
def test_a_buffer_at_a_bad_address_is_found_before_everything(world: World, command: Command) -> None:
    before = world.snapshot()
    for where, address in FORBIDDEN.items():
        status = world.desk.ring(PAPER[command].number, address)
        assert (where, Status.INVALID_ADDRESS) == (where, status)  # and not the state
    assert before == world.snapshot()


@pytest.mark.parametrize("command", WITH_BUFFER, ids=lambda command: command.name)
def test_a_buffer_in_the_trusted_memory_region_is_refused(world: World, command: Command) -> None:
    world.init(es=True)
    assert Status.INVALID_ADDRESS == world.desk.ring(PAPER[command].number, 3 << 20)
    assert Status.INVALID_ADDRESS == world.desk.ring(PAPER[command].number, (4 << 20) - 0x40)


@pytest.mark.parametrize(
    "command", [c for c, row in PAPER.items() if not row.size], ids=lambda command: command.name
)
def test_a_command_without_a_buffer_ignores_the_address(world: World, command: Command) -> None:
    good = {Command.PLATFORM_RESET: UNINIT}.get(command, INIT)
    in_state(world, good)
    assert Status.SUCCESS == world.desk.ring(PAPER[command].number, (1 << 64) - 1)


@pytest.mark.parametrize("offset", [0, 1, 3, 13])
def test_a_buffer_needs_no_alignment(world: World, offset: int) -> None:
    at = world.desk.room(64) + offset
    assert Status.SUCCESS == world.desk.ring(Command.INIT, at)
    assert Status.SUCCESS == world.desk.ring(Command.PLATFORM_STATUS, at)
    assert 1 == buffers.PlatformStatus.parse(world.desk.read(at, 0x0C)).state


def test_a_buffer_may_lie_in_memory_under_the_hosts_key(world: World) -> None:
    desk = world.init().desk
    at = desk.put(bytes(buffers.LaunchStart(policy=0)), c=True)
    assert Status.SUCCESS == desk.ring(Command.LAUNCH_START, desk.with_c(at))
    assert 1 == buffers.LaunchStart.parse(desk.read(at, 0x24, c=True)).handle
    assert bytes(buffers.LaunchStart(handle=1, policy=0)) != desk.read(at, 0x24)  # encrypted, as it came


def test_without_the_c_bit_the_firmware_reads_the_ciphertext(world: World) -> None:
    desk = world.desk
    at = desk.put(bytes(buffers.Init()), c=True)
    assert Status.INVALID_CONFIG == desk.ring(Command.INIT, at)
    assert Status.SUCCESS == desk.ring(Command.INIT, desk.with_c(at))


@pytest.mark.parametrize("reserved", range(0x04, 0x08), ids=hex)
def test_init_insists_on_its_reserved_word(world: World, reserved: int) -> None:
    raw = bytearray(0x14)
    raw[reserved] = 0x80
    at = world.desk.put(raw)
    before = world.snapshot()
    assert Status.INVALID_CONFIG == world.desk.ring(Command.INIT, at)
    assert before == world.snapshot()


def test_reserved_words_of_other_buffers_are_nobodys_business(world: World) -> None:
    handle = world.init().start()
    world.activate(handle, FIRST)
    raw = bytearray(bytes(buffers.LaunchUpdateData(handle=handle, paddr=world.desk.room(16), length=16)))
    raw[0x04:0x08] = b"\xff" * 4
    assert Status.SUCCESS == world.desk.ring(Command.LAUNCH_UPDATE_DATA, world.desk.put(raw))
