"""LAUNCH_START to LAUNCH_FINISH: who may start what, what is measured, what reaches the guest."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.ctr import aes_ctr
from cbit.crypto.key import Key
from cbit.secure_processor.commands import launch
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.command import Command
from cbit.spec.key_id import guest as key_of
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from secure_processor.worlds import FIRST, LAST, Chips, World

ES, NOKS, NOSEND = 4, 2, 8


def expected_measure(world: World, tik: bytes, *, policy: int, data: bytes, mnonce: bytes) -> bytes:
    """sev-crypto.md §9, computed here and not by cbit.crypto."""
    status = world.desk.platform()
    message = bytes([4, status.api_major, status.api_minor, status.build]) + policy.to_bytes(4, "little")
    return hmac.digest(tik, message + hashlib.sha256(data).digest() + mnonce, "sha256")


# ---- policy and sharing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (0, Status.SUCCESS),
        (0b111011, Status.SUCCESS),
        (17 << 24, Status.SUCCESS),  # this firmware is 0.17
        (18 << 24, Status.POLICY_FAILURE),
        (1 << 16, Status.POLICY_FAILURE),
        (255 << 24 | 255 << 16, Status.POLICY_FAILURE),
        (1 << 6, Status.POLICY_FAILURE),
        (1 << 15, Status.POLICY_FAILURE),
        (ES, Status.UNSUPPORTED),
        (18 << 24 | ES, Status.POLICY_FAILURE),
    ],
)
@pytest.mark.parametrize("owned", [False, True])
def test_the_policy_is_checked_with_and_without_a_session(
    world: World, policy: int, status: Status, owned: bool
) -> None:
    desk = world.init().desk
    asked = buffers.LaunchStart(policy=policy)
    if owned:
        # The owner's tool refuses reserved bits itself, so the session is made by hand.
        made, keys = world.owner(policy=0)
        mac = hmac.digest(keys.tik.material(), policy.to_bytes(4, "little"), "sha256")
        godh, blob = desk.put(bytes(made.godh)), desk.put(bytes(made.blob.replace(policy_mac=mac)))
        asked = asked.replace(dh_cert_paddr=godh, dh_cert_len=0x824, session_paddr=blob, session_len=0x80)
    assert status == desk.status_of(Command.LAUNCH_START, asked)


def test_a_newer_major_version_satisfies_any_minor(chips: Chips) -> None:
    with chips.world("rome") as world:
        assert world.init().start(24 << 24) == 1
    with chips.world("genoa") as world:  # 1.55
        assert [1, 2] == [world.init().start(255 << 24), world.start(55 << 24 | 1 << 16)]
        asked = buffers.LaunchStart(policy=56 << 24 | 1 << 16)
        assert Status.POLICY_FAILURE == world.desk.status_of(Command.LAUNCH_START, asked)


def test_es_wants_a_platform_with_es(world: World) -> None:
    assert 1 == world.init(es=True).start(ES)
    assert 1 == world.desk.platform().config


def test_guests_that_share_a_key_read_each_other(world: World) -> None:
    world.init()
    alice = world.start(NOSEND)
    bob, carol = world.start(NOSEND, share=alice), world.start(NOSEND)
    for handle, asid in ((alice, FIRST), (bob, FIRST + 1), (carol, LAST)):
        world.activate(handle, asid)
    at = world.desk.put(b"sixteen bytes ok")
    world.update(alice, at, 16)
    read = world.machine.controller.read
    assert b"sixteen bytes ok" == read(at, 16, key_of(FIRST + 1))
    assert b"sixteen bytes ok" != read(at, 16, key_of(LAST))


def test_a_shared_key_survives_its_first_guest(world: World) -> None:
    world.init()
    alice = world.start()
    bob = world.start(share=alice)
    world.decommission(alice)
    world.activate(bob, FIRST)
    at = world.desk.put(b"sixteen bytes ok")
    world.update(bob, at, 16)
    world.activate(world.start(share=bob), LAST)
    assert b"sixteen bytes ok" == world.machine.controller.read(at, 16, key_of(LAST))


@pytest.mark.parametrize(("first", "second"), [(0, NOSEND), (NOSEND, 0), (NOKS, 0), (NOKS, NOKS), (0, NOKS)])
def test_no_key_is_shared_against_a_policy(world: World, first: int, second: int) -> None:
    handle = world.init().start(first)
    asked = buffers.LaunchStart(handle=handle, policy=second)
    before = world.snapshot()
    assert Status.POLICY_FAILURE == world.desk.status_of(Command.LAUNCH_START, asked)
    assert before == world.snapshot()


def test_without_a_certificate_the_session_fields_are_ignored(world: World) -> None:
    asked = buffers.LaunchStart(policy=0, dh_cert_len=1, session_paddr=1 << 45, session_len=7)
    assert Status.SUCCESS == world.init().desk.status_of(Command.LAUNCH_START, asked)


def test_a_session_is_for_one_platform_key(world: World) -> None:
    world.init()
    made, _ = world.owner()
    world.desk.do(Command.PDH_GEN)
    godh, blob = world.desk.put(bytes(made.godh)), world.desk.put(bytes(made.blob))
    asked = buffers.LaunchStart(
        policy=0, dh_cert_paddr=godh, dh_cert_len=0x824, session_paddr=blob, session_len=0x80
    )
    status, why, _ = world.desk.attempt(Command.LAUNCH_START, asked)
    assert Status.BAD_MEASUREMENT == status
    assert "made for another platform key" in why


# ---- digest and measurement --------------------------------------------------------------------------------


@given(pieces=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.binary(min_size=1, max_size=8))
def test_the_measurement_covers_the_data_and_not_how_it_was_split(
    chips: Chips, pieces: list[int], seed: bytes
) -> None:
    blocks = sum(pieces)
    data = (seed * (16 * blocks))[: 16 * blocks]
    with chips.world() as world:
        made, keys = world.init().owner(policy=1)
        handle = world.start_for(made, 1)
        world.activate(handle, FIRST)
        at = world.desk.put(data)
        for piece in pieces:
            world.update(handle, at, 16 * piece)
            at = Spa(at + 16 * piece)
        blob = world.measure(handle)
        tik = keys.tik.material()
        assert blob.measure == expected_measure(world, tik, policy=1, data=data, mnonce=blob.mnonce)


def test_a_launch_without_data_measures_nothing(world: World) -> None:
    handle = world.init().start()
    blob = world.measure(handle)
    assert blob.measure == expected_measure(world, bytes(16), policy=0, data=b"", mnonce=blob.mnonce)


def test_every_measurement_has_its_own_nonce(world: World) -> None:
    world.init()
    assert 3 == len({world.measure(world.start()).mnonce for _ in range(3)})


def test_a_measurement_that_cannot_be_written_can_be_asked_again(world: World) -> None:
    handle = world.init().start()
    asked = buffers.LaunchMeasure(handle=handle, measure_paddr=1 << 45, measure_len=48)
    assert Status.INVALID_ADDRESS == world.desk.status_of(Command.LAUNCH_MEASURE, asked)
    blob = world.measure(handle)
    assert blob.measure == expected_measure(world, bytes(16), policy=0, data=b"", mnonce=blob.mnonce)


def test_update_encrypts_in_place_and_again_on_top(world: World) -> None:
    """A second update of a range hashes and encrypts the ciphertext: nothing remembers what was done."""
    handle = world.init().start()
    world.activate(handle, FIRST)
    at = world.desk.put(b"sixteen bytes ok")
    world.update(handle, at, 16)
    once = world.desk.read(at, 16)
    world.update(handle, at, 16)
    blob = world.measure(handle)
    expected = expected_measure(
        world, bytes(16), policy=0, data=b"sixteen bytes ok" + once, mnonce=blob.mnonce
    )
    assert expected == blob.measure
    assert once == world.machine.controller.read(at, 16, key_of(FIRST))


def test_an_image_under_the_hosts_key_is_measured_in_the_clear(world: World) -> None:
    handle = world.init().start()
    world.activate(handle, FIRST)
    at = world.desk.put(b"sixteen bytes ok", c=True)
    world.update(handle, world.desk.with_c(at), 16)
    blob = world.measure(handle)
    expected = expected_measure(world, bytes(16), policy=0, data=b"sixteen bytes ok", mnonce=blob.mnonce)
    assert expected == blob.measure
    assert b"sixteen bytes ok" == world.machine.controller.read(at, 16, key_of(FIRST))


def test_dirty_lines_of_the_cores_are_measured(world: World) -> None:
    handle = world.init().start()
    world.activate(handle, FIRST)
    at = world.desk.put(bytes(16))
    world.machine.memory.wbinvd()
    world.desk.write(at, b"still in a cache")
    assert bytes(16) == world.machine.probe.read(at, 16)
    world.update(handle, at, 16)
    blob = world.measure(handle)
    expected = expected_measure(world, bytes(16), policy=0, data=b"still in a cache", mnonce=blob.mnonce)
    assert expected == blob.measure


# ---- secret ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 64, 4096 + 16, 16384])
def test_a_secret_arrives_encrypted_and_may_be_followed_by_another(world: World, length: int) -> None:
    made, keys = world.init().owner(policy=1)
    handle = world.start_for(made, 1)
    world.activate(handle, FIRST)
    world.measure(handle)
    for text in (b"the first secret", b"and another one!"):
        plain = text * (length // 16)
        asked = world.secret(handle, plain, keys=keys)
        assert Status.SUCCESS == world.desk.status_of(Command.LAUNCH_SECRET, asked)
        at = Spa(asked.guest_paddr)
        assert plain == world.machine.controller.read(at, length, key_of(FIRST))
        assert text not in world.machine.probe.read(at, length)
        assert GuestState.LSECRET == world.desk.guest(handle).state


def test_the_c_bit_of_the_targets_address_is_ignored(world: World) -> None:
    handle = world.init().launch(state=GuestState.LSECRET)
    asked = world.secret(handle, b"sixteen bytes ok")
    at = Spa(asked.guest_paddr)
    asked = asked.replace(guest_paddr=world.desk.with_c(at))
    assert Status.SUCCESS == world.desk.status_of(Command.LAUNCH_SECRET, asked)
    assert b"sixteen bytes ok" == world.machine.controller.read(at, 16, key_of(FIRST))


def test_the_portable_limit_of_a_secret(world: World) -> None:
    handle = world.init().launch(state=GuestState.LSECRET)
    asked = world.secret(handle, bytes(launch.SECRET_MAX + 16))
    assert Status.INVALID_LENGTH == world.desk.status_of(Command.LAUNCH_SECRET, asked)


def test_a_secret_of_another_launch_is_refused(world: World) -> None:
    world.init()
    one, other = world.launch(state=GuestState.LSECRET), world.launch(asid=LAST, state=GuestState.LSECRET)
    asked = world.secret(one, b"sixteen bytes ok").replace(handle=other)  # same keys, another measurement
    assert Status.BAD_MEASUREMENT == world.desk.status_of(Command.LAUNCH_SECRET, asked)


def test_a_packet_of_another_context_is_refused(world: World) -> None:
    """Only the first byte of the MAC's message differs: 2 is a migration's packet."""
    handle = world.init().launch(state=GuestState.LSECRET)
    data = aes_ctr(Key(bytes(16)), bytes(16), bytes(16))
    measure = world.firmware.platform.guests[handle].measure
    lengths = (16).to_bytes(4, "little") * 2
    for context, status in ((2, Status.BAD_MEASUREMENT), (1, Status.SUCCESS)):
        message = bytes([context]) + bytes(4) + bytes(16) + lengths + data + measure
        header = bytes(4) + bytes(16) + hmac.digest(bytes(16), message, "sha256")
        asked = buffers.LaunchSecret(
            handle=handle,
            hdr_paddr=world.desk.put(header),
            hdr_len=0x34,
            guest_paddr=world.desk.room(16),
            guest_len=16,
            trans_paddr=world.desk.put(data),
            trans_len=16,
        )
        assert status == world.desk.status_of(Command.LAUNCH_SECRET, asked)


# ---- finish ------------------------------------------------------------------------------------------------


def test_finish_forgets_the_owners_keys_and_keeps_the_digest(world: World) -> None:
    handle = world.init().launch()
    context = world.firmware.platform.guests[handle]
    assert (None, None, b"") == (context.transport, context.digest, context.measure)
    assert 32 == len(context.launch_digest)


def test_a_refused_launch_leaves_no_guest(world: World) -> None:
    asked = buffers.LaunchStart(policy=1 << 16)
    assert Status.POLICY_FAILURE == world.init().desk.status_of(Command.LAUNCH_START, asked)
    assert (1, 0) == (world.desk.platform().state, world.desk.platform().guest_count)


def test_a_running_launch_survives_a_new_pdh(world: World) -> None:
    made, keys = world.init().owner(policy=1)
    handle = world.start_for(made, 1)
    world.activate(handle, FIRST)
    world.desk.do(Command.PDH_GEN)
    blob = world.measure(handle)
    tik = keys.tik.material()
    assert blob.measure == expected_measure(world, tik, policy=1, data=b"", mnonce=blob.mnonce)
    asked = world.secret(handle, b"sixteen bytes ok", keys=keys)
    assert Status.SUCCESS == world.desk.status_of(Command.LAUNCH_SECRET, asked)
