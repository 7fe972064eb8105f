"""A guest goes from one emulated machine to another: whole, to the right place only, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.spec import buffers
from cbit.spec.address import PAGE, Spa
from cbit.spec.command import Command
from cbit.spec.key_id import guest as key_of
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from secure_processor.import_faults import Organisation, import_from
from secure_processor.migrations import (
    Packet,
    Papers,
    leave,
    receive_start,
    receive_update,
    receiving,
    send_start,
    send_update,
    sending,
    take,
)
from secure_processor.worlds import FIRST, LAST, Chips, World, flipped

DATA = SeededEntropy("data").draw(4 * PAGE)  # no two blocks alike
LAST_BUT_ONE = LAST - 1
NEXT = FIRST + 1  # the receiver's ASID: nothing ties it to the sender's


@pytest.fixture
def there(chips: Chips) -> Iterator[World]:
    """A second machine of the same vendor, with randomness of its own."""
    with chips.world(seed=2, entropy=SeededEntropy("there")) as world:
        yield world.init()


@pytest.fixture
def here(world: World) -> World:
    return world.init()


def memory_of(world: World, asid: int, data: bytes) -> Spa:
    at = world.desk.room(len(data))
    world.machine.memory.write(at, data, key_of(asid))
    return at


def put(world: World, handle: int, packet: Packet) -> tuple[int, int]:
    """RECEIVE_UPDATE_DATA; return status and where it went."""
    asked = receive_update(world, handle, packet)
    return world.desk.status_of(Command.RECEIVE_UPDATE_DATA, asked), asked.guest_paddr


# ---- the way over ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [0, Policy.NODBG, Policy.SEV, 17 << 24 | 0x20], ids=hex)
def test_a_guest_arrives_byte_for_byte(here: World, there: World, policy: int) -> None:
    handle = here.launch(policy)
    source = memory_of(here, FIRST, DATA)
    journey = leave(here, handle, Papers.of(there))
    assert policy == journey.policy
    arrived = receiving(there, journey, asid=NEXT)
    assert GuestState.RUPDATE == there.desk.guest(arrived).state
    target = there.desk.room(len(DATA))
    for offset in range(0, len(DATA), PAGE):
        packet = take(here, handle, source + offset, PAGE)
        assert DATA[offset : offset + PAGE] not in (packet.data, here.desk.read(source + offset, PAGE))
        asked = receive_update(there, arrived, packet).replace(guest_paddr=target + offset)
        there.desk.do(Command.RECEIVE_UPDATE_DATA, asked)
    here.desk.do(Command.SEND_FINISH, buffers.GuestHandle(handle=handle))
    assert not there.firmware.is_asid_usable(NEXT)
    there.desk.do(Command.RECEIVE_FINISH, buffers.GuestHandle(handle=arrived))
    assert DATA == there.machine.memory.read(target, len(DATA), key_of(NEXT))
    assert DATA != there.desk.read(target, len(DATA))
    assert (GuestState.SENT, policy) == (here.desk.guest(handle).state, here.desk.guest(handle).policy)
    assert (GuestState.RUNNING, policy) == (there.desk.guest(arrived).state, there.desk.guest(arrived).policy)
    assert there.firmware.is_asid_usable(NEXT)
    for world, number in ((here, handle), (there, arrived)):
        assert world.firmware.platform.guests[number].transport is None


def test_rome_to_rome_has_roots_of_4096_bits(chips: Chips) -> None:
    with chips.world("rome") as first, chips.world("rome", seed=2, entropy=SeededEntropy("there")) as second:
        handle = first.init().launch(Policy.SEV, asid=100)
        papers = Papers.of(second.init())
        assert 0xC80 == len(papers.amd)
        leave(first, handle, papers)


def test_a_sent_guest_is_attested_and_never_activated_again(here: World, there: World) -> None:
    handle = here.launch()
    leave(here, handle, Papers.of(there))
    here.desk.do(Command.SEND_FINISH, buffers.GuestHandle(handle=handle))
    here.deactivate(handle)
    here.desk.flush()
    asked = buffers.Activate(handle=handle, asid=FIRST)
    assert Status.INVALID_GUEST_STATE == here.desk.status_of(Command.ACTIVATE, asked)
    here.decommission(handle)


def test_a_received_guest_reports_no_launch_digest(here: World, there: World) -> None:
    journey = leave(here, here.launch(), Papers.of(there))
    arrived = receiving(there, journey)
    assert there.firmware.platform.guests[arrived].digest is None
    there.desk.do(Command.RECEIVE_FINISH, buffers.GuestHandle(handle=arrived))
    at = there.desk.room(0xD0)
    asked = buffers.Attestation(handle=arrived, paddr=at, mnonce=bytes(16), length=0xD0)
    there.desk.do(Command.ATTESTATION, asked)
    assert bytes(32) == there.desk.read(at + 0x10, 32)


def test_a_cancelled_journey_leaves_the_guest_running_and_it_may_leave_again(
    here: World, there: World
) -> None:
    handle = here.launch()
    first = leave(here, handle, Papers.of(there))
    here.desk.do(Command.SEND_CANCEL, buffers.GuestHandle(handle=handle))
    assert GuestState.RUNNING == here.desk.guest(handle).state
    assert here.firmware.platform.guests[handle].transport is None
    second = leave(here, handle, Papers.of(there))
    source = memory_of(here, FIRST, DATA[:64])
    packet = take(here, handle, source, 64)
    # the second journey's keys are others
    assert Status.BAD_MEASUREMENT == put(there, receiving(there, first), packet)[0]
    assert Status.SUCCESS == put(there, receiving(there, second, asid=NEXT + 1), packet)[0]


def test_the_same_page_is_another_packet_each_time(here: World) -> None:
    handle = sending(here).handle
    source = memory_of(here, FIRST, DATA[:PAGE])
    first, second = (take(here, handle, source, PAGE) for _ in range(2))
    assert first.data != second.data
    assert first.header[4:0x14] != second.header[4:0x14]


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("byte", range(0x34), ids=hex)
def test_no_bit_of_a_header_can_be_changed(here: World, byte: int) -> None:
    journey = sending(here)
    arrived = receiving(here, journey)
    packet = take(here, journey.handle, memory_of(here, FIRST, DATA[:64]), 64)
    status, at = put(here, arrived, replace(packet, header=flipped(packet.header, 8 * byte + byte % 8)))
    assert (Status.UNSUPPORTED if byte == 0 else Status.BAD_MEASUREMENT) == status
    assert bytes(64) == here.desk.read(at, 64)
    assert Status.SUCCESS == put(here, arrived, packet)[0]


def test_no_bit_of_a_payload_can_be_changed_and_no_block_cut(here: World) -> None:
    journey = sending(here)
    arrived = receiving(here, journey)
    packet = take(here, journey.handle, memory_of(here, FIRST, DATA[:64]), 64)
    for byte in range(64):
        bad = replace(packet, data=flipped(packet.data, 8 * byte + byte % 8))
        assert Status.BAD_MEASUREMENT == put(here, arrived, bad)[0]
    for data in (packet.data[:48], packet.data + bytes(16)):
        assert Status.BAD_MEASUREMENT == put(here, arrived, replace(packet, data=data))[0]
    assert Status.SUCCESS == put(here, arrived, packet)[0]


def test_a_packet_of_one_guest_does_not_open_in_another(here: World, there: World) -> None:
    alice, bob = (leave(here, here.launch(asid=asid), Papers.of(there)) for asid in (FIRST, NEXT))
    packet = take(here, alice.handle, memory_of(here, FIRST, DATA[:64]), 64)
    arrived = [receiving(there, journey, asid=NEXT + i) for i, journey in enumerate((alice, bob))]
    status, at = put(there, arrived[1], packet)
    assert Status.BAD_MEASUREMENT == status
    assert bytes(64) == there.desk.read(at, 64)
    assert Status.SUCCESS == put(there, arrived[0], packet)[0]


def test_a_secret_for_a_launch_is_no_packet_of_a_migration(here: World) -> None:
    """The same keys, another context byte."""
    journey = sending(here)
    arrived = receiving(here, journey)
    transport = here.firmware.platform.guests[arrived].transport
    launched = here.launch(asid=LAST_BUT_ONE, state=GuestState.LSECRET)
    secret = here.secret(launched, bytes(64), keys=transport)
    packet = Packet(here.desk.read(secret.hdr_paddr, 0x34), here.desk.read(secret.trans_paddr, 64))
    assert Status.BAD_MEASUREMENT == put(here, arrived, packet)[0]


def test_a_session_is_for_one_platform(here: World, there: World) -> None:
    """Sent to one platform, presented to another, and to the right one after it changed its key."""
    journey = leave(here, here.launch(), Papers.of(there))
    asked = receive_start(here, journey)
    assert Status.BAD_MEASUREMENT == here.desk.status_of(Command.RECEIVE_START, asked)
    there.desk.do(Command.PDH_GEN)
    assert Status.BAD_MEASUREMENT == there.desk.status_of(
        Command.RECEIVE_START, receive_start(there, journey)
    )


@pytest.mark.parametrize("bit", [*range(6), 16, 24, 31])
def test_a_policy_cannot_change_on_the_way(here: World, there: World, bit: int) -> None:
    journey = leave(here, here.launch(), Papers.of(there))
    changed = replace(journey, policy=journey.policy ^ 1 << bit)
    status = there.desk.status_of(Command.RECEIVE_START, receive_start(there, changed))
    assert Status.BAD_MEASUREMENT == status
    assert 0 == there.desk.platform().guest_count


def refused(world: World, policy: int, papers: Papers) -> int:
    """SEND_START of a fresh guest; return the status; a refused guest runs on."""
    handle = world.launch(policy)
    status = world.desk.status_of(Command.SEND_START, send_start(world, handle, papers))
    expected = GuestState.SUPDATE if status == Status.SUCCESS else GuestState.RUNNING
    assert expected == world.desk.guest(handle).state
    return status


def test_nosend_stays(here: World, there: World) -> None:
    assert Status.POLICY_FAILURE == refused(here, Policy.NOSEND, Papers.of(there))


def test_without_policy_nobody_need_have_signed_the_receiver(here: World) -> None:
    """The bad twin of POLICY.SEV: any key at all will do."""
    made, _ = here.owner()
    assert Status.SUCCESS == refused(here, 0, Papers(bytes(made.godh), b"", b""))


def test_under_sev_a_receiver_without_the_fused_root_is_refused(here: World, chips: Chips) -> None:
    made, _ = here.owner()
    own = Papers.of(here)
    with chips.world("rome", entropy=SeededEntropy("there")) as stranger:
        other = Papers.of(stranger.init())
        assert Status.INVALID_CERTIFICATE == refused(here, Policy.SEV, other)
    here.deactivate(1)
    here.desk.flush()
    # the right platform's chain with somebody else's PDH
    assert Status.INVALID_CERTIFICATE == refused(here, Policy.SEV, replace(own, pdh=bytes(made.godh)))


def test_under_sev_a_chip_without_a_fused_root_trusts_nobody(here: World) -> None:
    here.firmware.fuses = replace(here.firmware.fuses, ark_hash=bytes(48))
    assert Status.INVALID_CERTIFICATE == refused(here, Policy.SEV, Papers.of(here))


def test_under_domain_the_owner_must_be_the_same(here: World, there: World) -> None:
    assert Status.POLICY_FAILURE == refused(here, Policy.DOMAIN, Papers.of(there))
    for world in (here, there):
        world.desk.do(Command.SHUTDOWN)
        assert Status.SUCCESS == import_from(world.init(), Organisation())
    assert Status.SUCCESS == refused(here, Policy.DOMAIN, Papers.of(there))


def test_domain_wants_no_root_and_the_right_lengths(here: World) -> None:
    papers = Papers.of(here)
    assert Status.INVALID_LENGTH == refused(here, Policy.DOMAIN, replace(papers, chain=papers.chain[:-1]))
    here.deactivate(1)
    here.desk.flush()
    assert Status.SUCCESS == refused(here, Policy.DOMAIN, replace(papers, amd=b""))


def test_a_receiver_with_older_firmware_is_refused(chips: Chips) -> None:
    """Two generations under one root, so that nothing but the version speaks."""
    with chips.world("rome") as new, chips.world("naples", entropy=SeededEntropy("there")) as old:
        handle = new.init().launch(18 << 24 | 0x20, asid=100)
        papers = Papers.of(old.init())
        fused = replace(new.firmware.fuses, ark_hash=old.state.fuses().ark_hash)
        new.firmware.fuses = fused
        asked = send_start(new, handle, papers)
        status, why, _ = new.desk.attempt(Command.SEND_START, asked)
        assert Status.POLICY_FAILURE == status
        assert "0.18" in why
        assert "0.17" in why


# ---- lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 0x7F, 0x81])
def test_send_start_tells_the_sessions_length(here: World, length: int) -> None:
    asked = send_start(here, here.launch(), Papers.of(here)).replace(session_len=length)
    status, _, after = here.desk.attempt(Command.SEND_START, asked)
    assert (Status.INVALID_LENGTH, asked.replace(session_len=0x80)) == (status, after)


@pytest.mark.parametrize("length", [0, 1, 0x33])
def test_send_update_tells_the_headers_length_even_without_a_guest(here: World, length: int) -> None:
    sending(here)
    asked = send_update(here, 99, 0, 64).replace(hdr_len=length)
    status, _, after = here.desk.attempt(Command.SEND_UPDATE_DATA, asked)
    assert (Status.INVALID_LENGTH, asked.replace(hdr_len=0x34)) == (status, after)


def test_room_to_spare_is_left_alone(here: World) -> None:
    handle = sending(here).handle
    asked = send_update(here, handle, memory_of(here, FIRST, DATA[:64]), 64)
    asked = asked.replace(hdr_len=0x80, trans_len=PAGE)
    here.desk.write(asked.trans_paddr, b"\xee" * 80)
    assert asked.replace(hdr_len=0x34) == here.desk.do(Command.SEND_UPDATE_DATA, asked)
    assert b"\xee" * 16 == here.desk.read(asked.trans_paddr + 64, 16)


def test_the_largest_packet_arrives(here: World) -> None:
    journey = sending(here)
    packet = take(here, journey.handle, memory_of(here, FIRST, DATA), 16384)
    status, at = put(here, receiving(here, journey), packet)
    assert Status.SUCCESS == status
    assert DATA == here.machine.memory.read(Spa(at), len(DATA), key_of(NEXT))
