"""What a command writes back, and when: the buffer classes of sev-api.md §2.1, the address rules of §2.2."""

from __future__ import annotations

import pytest

from cbit.secure_processor.memory_port import AddressRules, MemoryPort
from cbit.secure_processor.refusal import Refused
from cbit.spec import buffers
from cbit.spec.address import MIB, Spa
from cbit.spec.command import Command
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from secure_processor.worlds import FIRST, MEMORY, World

CERT, CHAIN = 0x824, 0x186C


# ---- length queries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 0x823])
def test_pek_csr_tells_its_length(world: World, length: int) -> None:
    asked = buffers.PekCsr(paddr=0, length=length)
    status, _, after = world.init().desk.attempt(Command.PEK_CSR, asked)
    assert (Status.INVALID_LENGTH, asked.replace(length=CERT)) == (status, after)


@pytest.mark.parametrize("length", [0, 1, 63])
def test_get_id_tells_its_length_even_before_init(world: World, length: int) -> None:
    asked = buffers.GetId(paddr=0, length=length)
    status, _, after = world.desk.attempt(Command.GET_ID, asked)
    assert (Status.INVALID_LENGTH, asked.replace(length=64)) == (status, after)


@pytest.mark.parametrize(
    ("pdh", "certs"), [(0, 0), (CERT - 1, CHAIN), (CERT, CHAIN - 1), (0, CHAIN), (CERT, 0)]
)
def test_pdh_cert_export_tells_both_lengths(world: World, pdh: int, certs: int) -> None:
    asked = buffers.PdhCertExport(pdh_paddr=0, pdh_len=pdh, certs_paddr=0, certs_len=certs)
    status, _, after = world.init().desk.attempt(Command.PDH_CERT_EXPORT, asked)
    assert (Status.INVALID_LENGTH, asked.replace(pdh_len=CERT, certs_len=CHAIN)) == (status, after)


@pytest.mark.parametrize("length", [0, 1, 0x2F])
def test_launch_measure_tells_its_length_and_can_be_asked_again(world: World, length: int) -> None:
    handle = world.init().launch(state=GuestState.LUPDATE)
    asked = buffers.LaunchMeasure(handle=handle, measure_paddr=0, measure_len=length)
    status, _, after = world.desk.attempt(Command.LAUNCH_MEASURE, asked)
    assert (Status.INVALID_LENGTH, asked.replace(measure_len=0x30)) == (status, after)
    assert GuestState.LUPDATE == world.desk.guest(handle).state
    world.measure(handle)
    assert GuestState.LSECRET == world.desk.guest(handle).state


def test_a_buffer_that_is_read_only_is_not_corrected(world: World) -> None:
    handle = world.init().launch(state=GuestState.LUPDATE)
    asked = buffers.LaunchUpdateData(handle=handle, paddr=world.desk.room(16), length=8)
    assert (Status.INVALID_LENGTH, asked) == world.desk.attempt(Command.LAUNCH_UPDATE_DATA, asked)[::2]


# ---- success -----------------------------------------------------------------------------------------------


def test_room_to_spare_is_answered_with_the_true_length(world: World) -> None:
    desk = world.init().desk
    paddr = desk.room(2 * CERT)
    assert buffers.PekCsr(paddr=paddr, length=CERT) == desk.do(
        Command.PEK_CSR, buffers.PekCsr(paddr=paddr, length=2 * CERT)
    )
    assert buffers.GetId(paddr=paddr, length=64) == desk.do(
        Command.GET_ID, buffers.GetId(paddr=paddr, length=128)
    )
    certs = desk.room(2 * CHAIN)
    asked = buffers.PdhCertExport(pdh_paddr=paddr, pdh_len=9999, certs_paddr=certs, certs_len=9999)
    assert asked.replace(pdh_len=CERT, certs_len=CHAIN) == desk.do(Command.PDH_CERT_EXPORT, asked)


def test_get_id_writes_one_socket(world: World) -> None:
    desk = world.desk
    paddr = desk.put(b"\xee" * 128)
    desk.do(Command.GET_ID, buffers.GetId(paddr=paddr, length=128))
    assert world.state.fuses().chip_id() + b"\xee" * 64 == desk.read(paddr, 128)


def test_launch_measure_leaves_its_length_alone(world: World) -> None:
    handle = world.init().launch(state=GuestState.LUPDATE)
    paddr = world.desk.put(b"\xee" * 64)
    asked = buffers.LaunchMeasure(handle=handle, measure_paddr=paddr, measure_len=64)
    assert asked == world.desk.do(Command.LAUNCH_MEASURE, asked)
    assert b"\xee" * 16 == world.desk.read(paddr, 64)[48:]


def test_an_output_goes_where_its_own_c_bit_says(world: World) -> None:
    desk = world.desk
    paddr = desk.room(64)
    desk.do(Command.GET_ID, buffers.GetId(paddr=desk.with_c(paddr), length=64))
    chip_id = world.state.fuses().chip_id()
    assert chip_id == desk.read(paddr, 64, c=True)
    world.machine.memory.wbinvd()
    assert chip_id != world.machine.probe.read(paddr, 64)


def test_an_input_comes_from_where_its_own_c_bit_says(world: World) -> None:
    desk = world.init().desk
    made, _ = world.owner()
    godh, blob = desk.put(bytes(made.godh), c=True), desk.put(bytes(made.blob))
    asked = buffers.LaunchStart(
        policy=0, dh_cert_paddr=desk.with_c(godh), dh_cert_len=CERT, session_paddr=blob, session_len=0x80
    )
    assert Status.SUCCESS == desk.status_of(Command.LAUNCH_START, asked)
    assert Status.INVALID_CERTIFICATE == desk.status_of(
        Command.LAUNCH_START, asked.replace(dh_cert_paddr=godh)
    )


def test_only_a_platform_status_that_succeeds_is_written(world: World) -> None:
    at = world.desk.put(b"\xee" * 16)
    assert Status.SUCCESS == world.desk.ring(Command.PLATFORM_STATUS, at)
    assert bytes([0, 17, 0, 0, 0, 0, 0, 48, 0, 0, 0, 0]) + b"\xee" * 4 == world.desk.read(at, 16)


def test_guest_status_of_a_guest(world: World) -> None:
    handle = world.init().launch(0b1001, state=GuestState.LSECRET)
    expected = buffers.GuestStatus(handle=handle, policy=0b1001, asid=FIRST, state=GuestState.LSECRET)
    assert expected == world.desk.guest(handle)
    world.deactivate(handle)
    assert expected.replace(asid=0) == world.desk.guest(handle)


@pytest.mark.parametrize("handle", [0, 2, 1024, 1025, 0xFFFFFFFF])
def test_guest_status_of_nobody_is_success_and_changes_the_state_alone(world: World, handle: int) -> None:
    world.init().launch()
    asked = buffers.GuestStatus(handle=handle, policy=0xAAAA, asid=0xBBBB, state=GuestState.SENT)
    status, why, after = world.desk.attempt(Command.GUEST_STATUS, asked)
    assert (Status.SUCCESS, "") == (status, why)
    assert asked.replace(state=GuestState.UNINIT) == after


# ---- addresses ---------------------------------------------------------------------------------------------


def port(world: World) -> MemoryPort:
    """The rules of a machine with a lot of memory."""
    return MemoryPort(world.firmware.memory.fabric, AddressRules(c_bit=47, dram_size=1 << 40))


@pytest.mark.parametrize("c", [0, 1 << 47])
def test_a_transfer_may_cross_one_boundary_of_64_mib_and_not_two(world: World, c: int) -> None:
    memory = port(world)
    memory.host_range(c | 64 * MIB - 1, 64 * MIB + 1, "a transfer")  # from the last byte to the next but one
    with pytest.raises(Refused) as refusal:
        memory.host_range(c | 64 * MIB - 1, 64 * MIB + 2, "a transfer")
    assert Status.INVALID_PARAM == refusal.value.status
    memory.host_range(c | 64 * MIB, 128 * MIB, "a transfer")
    with pytest.raises(Refused):
        memory.host_range(c | 64 * MIB, 128 * MIB + 1, "a transfer")


def test_reads_and_writes_obey_the_boundary_rule(world: World) -> None:
    memory = port(world)
    with pytest.raises(Refused) as refusal:
        memory.read_host(64 * MIB - 1, 64 * MIB + 2, "a transfer")
    assert Status.INVALID_PARAM == refusal.value.status
    with pytest.raises(Refused) as refusal:
        memory.write_host(0, bytes(MEMORY), "a transfer")  # and ASEG is found first
    assert Status.INVALID_ADDRESS == refusal.value.status


def test_the_last_byte_of_dram_and_the_neighbours_of_aseg_are_memory(world: World) -> None:
    desk = world.init().desk
    for at in (MEMORY - 0x0C, 0x9FFF4, 0xC0000):
        assert Status.SUCCESS == desk.ring(Command.PLATFORM_STATUS, at)
    for at in (MEMORY - 0x0B, 0x9FFF5, 0xBFFFF):  # one byte of it is not
        assert Status.INVALID_ADDRESS == desk.ring(Command.PLATFORM_STATUS, at)


def test_the_tmr_is_ordinary_memory_without_es_and_after_shutdown(world: World) -> None:
    tmr = 3 * MIB
    desk = world.init().desk
    assert Status.SUCCESS == desk.ring(Command.PLATFORM_STATUS, tmr)
    desk.do(Command.SHUTDOWN)
    world.init(es=True)
    for at in (tmr, tmr - 1, tmr + MIB - 1):
        assert Status.INVALID_ADDRESS == desk.ring(Command.PLATFORM_STATUS, at)
    desk.do(Command.SHUTDOWN)
    assert Status.SUCCESS == desk.ring(Command.PLATFORM_STATUS, tmr)


def test_the_tmrs_address_may_carry_the_c_bit(world: World) -> None:
    desk = world.desk
    desk.do(Command.INIT, buffers.Init(flags=1, tmr_paddr=desk.with_c(3 * MIB), tmr_length=MIB))
    assert Status.INVALID_ADDRESS == desk.ring(Command.PLATFORM_STATUS, 3 * MIB)


def test_the_tmr_is_ignored_without_es(world: World) -> None:
    world.desk.do(Command.INIT, buffers.Init(flags=0, tmr_paddr=12345, tmr_length=67))
    assert 0 == world.desk.platform().config


# ---- LAUNCH_UPDATE_DATA over a bad page --------------------------------------------------------------------

CHUNK = 20 * 1024


@pytest.mark.parametrize("good_chunks", [0, 1, 3])
def test_chunks_before_a_bad_one_are_measured_and_encrypted(world: World, good_chunks: int) -> None:
    """The range is checked chunk by chunk: 20 KiB each, from PADDR on."""
    desk = world.init().desk
    handle = world.launch(state=GuestState.LUPDATE)
    image = bytes(range(256)) * (good_chunks * CHUNK // 256)
    start = MEMORY - good_chunks * CHUNK - 4096
    desk.write(start, image + b"\xf4" * 4096)
    before = world.firmware.platform.guests[handle].digest
    assert before is not None
    expected = before.copy()
    expected.update(image)
    asked = buffers.LaunchUpdateData(handle=handle, paddr=start, length=good_chunks * CHUNK + 8192)
    status, why, _ = desk.attempt(Command.LAUNCH_UPDATE_DATA, asked)
    assert Status.INVALID_ADDRESS == status, why
    assert expected.digest() == before.digest()
    raw = world.machine.probe.read
    world.machine.memory.wbinvd()
    assert good_chunks == 0 or image[:64] != raw(Spa(start), 64)
    assert b"\xf4" * 4096 == raw(Spa(MEMORY - 4096), 4096)  # part of the bad chunk
    assert GuestState.LUPDATE == desk.guest(handle).state
