"""The activation model of sev-api.md §4.1: dirty, clean, allocated, in use, by ASID and core complex."""

from __future__ import annotations

import pytest

from cbit.crypto.entropy import SeededEntropy
from cbit.secure_processor.asid_table import AsidState
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.command import Command
from cbit.spec.key_id import guest as key_of
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from secure_processor.worlds import FIRST, LAST, Chips, World

DIRTY, CLEAN, ALLOCATED, IN_USE = AsidState.DIRTY, AsidState.CLEAN, AsidState.ALLOCATED, AsidState.IN_USE


def asid_state(world: World, asid: int = FIRST) -> tuple[AsidState, ...]:
    return world.firmware.platform.asids.snapshot()[asid]


def activate(world: World, handle: int, asid: int = FIRST) -> int:
    return world.desk.status_of(Command.ACTIVATE, buffers.Activate(handle=handle, asid=asid))


def df_flush(world: World) -> int:
    return world.desk.status_of(Command.DF_FLUSH)


# ---- INIT, WBINVD, DF_FLUSH --------------------------------------------------------------------------------


def test_init_makes_every_asid_dirty_and_forgets_every_wbinvd(world: World) -> None:
    world.machine.wbinvd_on_all_cores()
    world.desk.do(Command.INIT, buffers.Init())
    assert [False, False] == [core.wbinvd_done for core in world.machine.cores]
    asids = world.firmware.platform.asids.snapshot()
    assert set(range(1, LAST + 1)) == set(asids)
    assert {(DIRTY, DIRTY)} == set(asids.values())
    assert Status.DFFLUSH_REQUIRED == activate(world, world.start())


def test_a_flush_without_wbinvd_cleans_nothing(world: World) -> None:
    world.desk.do(Command.INIT, buffers.Init())
    status, why, _ = world.desk.attempt(Command.DF_FLUSH)
    assert (Status.WBINVD_REQUIRED, "core complex 0, 1 did not execute WBINVD") == (status, why)
    assert (DIRTY, DIRTY) == asid_state(world)


@pytest.mark.parametrize("first", [0, 1])
def test_a_flush_keeps_the_complexes_that_were_done(world: World, first: int) -> None:
    world.desk.do(Command.INIT, buffers.Init())
    handle = world.start()
    world.machine.cores[first].wbinvd()
    assert Status.WBINVD_REQUIRED == df_flush(world)
    assert {CLEAN, DIRTY} == set(asid_state(world))
    assert CLEAN is asid_state(world)[first]
    assert Status.DFFLUSH_REQUIRED == activate(world, handle)
    world.machine.cores[1 - first].wbinvd()
    assert Status.SUCCESS == df_flush(world)
    assert (CLEAN, CLEAN) == asid_state(world)
    assert Status.SUCCESS == activate(world, handle)


def test_wbinvd_without_a_flush_does_not_clean(world: World) -> None:
    world.desk.do(Command.INIT, buffers.Init())
    world.machine.wbinvd_on_all_cores()
    assert Status.DFFLUSH_REQUIRED == activate(world, world.start())


def test_shutdown_and_init_make_clean_asids_dirty_again(world: World) -> None:
    world.init()
    world.desk.do(Command.SHUTDOWN)
    world.desk.do(Command.INIT, buffers.Init())
    assert Status.DFFLUSH_REQUIRED == activate(world, world.start())
    assert Status.WBINVD_REQUIRED == df_flush(world)


# ---- pending and active ------------------------------------------------------------------------------------


def test_before_running_an_activation_is_pending(world: World) -> None:
    handle = world.init().start()
    world.activate(handle, FIRST)
    assert (ALLOCATED, ALLOCATED) == asid_state(world)
    assert set() == world.usable_asids()  # VMRUN would be refused
    world.measure(handle)
    assert set() == world.usable_asids()
    world.finish(handle)
    assert (IN_USE, IN_USE) == asid_state(world)
    assert {FIRST} == world.usable_asids()


@pytest.mark.parametrize("state", [GuestState.RUNNING, GuestState.SUPDATE])
def test_a_guest_that_runs_goes_straight_to_in_use(world: World, state: GuestState) -> None:
    handle = world.init().launch()
    world.deactivate(handle)
    world.desk.flush()
    world.force(handle, state)
    world.activate(handle, LAST)
    assert (IN_USE, IN_USE) == asid_state(world, LAST)
    assert {LAST} == world.usable_asids()


def test_a_guest_may_finish_without_an_asid_and_get_one_later(world: World) -> None:
    handle = world.init().start()
    world.measure(handle)  # no activity check
    world.finish(handle)
    assert set() == world.usable_asids()
    world.activate(handle, FIRST)
    assert {FIRST} == world.usable_asids()


def test_receiving_guests_wait_too(world: World) -> None:
    handle = world.init().start()
    world.force(handle, GuestState.RUPDATE)
    world.activate(handle, FIRST)
    assert (ALLOCATED, ALLOCATED) == asid_state(world)


def test_deactivating_a_pending_guest_needs_no_flush(world: World) -> None:
    world.init()
    handle = world.launch(state=GuestState.LSECRET)
    world.deactivate(handle)
    assert (CLEAN, CLEAN) == asid_state(world)
    assert [True, True] == [core.wbinvd_done for core in world.machine.cores]
    assert Status.SUCCESS == activate(world, world.start())


def test_deactivating_a_running_guest_needs_wbinvd_and_flush(world: World) -> None:
    world.init()
    handle = world.launch()
    world.deactivate(handle)
    assert (DIRTY, DIRTY) == asid_state(world)
    assert [False, False] == [core.wbinvd_done for core in world.machine.cores]
    assert set() == world.usable_asids()
    assert Status.DFFLUSH_REQUIRED == activate(world, handle)
    assert Status.WBINVD_REQUIRED == df_flush(world)  # DEACTIVATE cleared the flags
    world.desk.flush()
    assert Status.SUCCESS == activate(world, handle)


def test_one_guests_end_does_not_stop_another(world: World) -> None:
    world.init()
    alice, bob = world.launch(asid=FIRST), world.launch(asid=LAST)
    world.deactivate(alice)
    assert {LAST} == world.usable_asids()
    world.decommission(alice)
    assert GuestState.RUNNING == world.desk.guest(bob).state
    assert 1 == world.desk.platform().guest_count


# ---- whose ASID it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [GuestState.LUPDATE, GuestState.LSECRET, GuestState.RUNNING])
def test_an_asid_has_one_guest(world: World, state: GuestState) -> None:
    world.init()
    world.launch(state=state)
    other = world.start()
    assert Status.ASID_OWNED == activate(world, other)
    assert Status.SUCCESS == activate(world, other, FIRST + 1)


def test_the_owner_itself_is_told_that_the_asid_is_taken(world: World) -> None:
    handle = world.init().launch()
    assert Status.ASID_OWNED == activate(world, handle)  # before ACTIVE
    assert Status.ACTIVE == activate(world, handle, FIRST + 1)


@pytest.mark.parametrize(("asid", "es", "status"), [
    (1, True, Status.SUCCESS),
    (FIRST - 1, True, Status.SUCCESS),
    (FIRST, True, Status.INVALID_ASID),
    (LAST, True, Status.INVALID_ASID),
    (1, False, Status.INVALID_ASID),
    (FIRST - 1, False, Status.INVALID_ASID),
    (FIRST, False, Status.SUCCESS),
    (LAST, False, Status.SUCCESS),
    (LAST + 1, False, Status.INVALID_ASID),
    (0, False, Status.INVALID_ASID),
    (0, True, Status.INVALID_ASID),
])  # fmt: skip
def test_es_guests_have_the_low_asids_and_others_the_high_ones(
    world: World, asid: int, es: bool, status: Status
) -> None:
    world.init(es=True)
    assert status == activate(world, world.start(4 if es else 0), asid)


def test_a_dirty_asid_of_the_wrong_range_is_dirty_first(world: World) -> None:
    world.desk.do(Command.INIT, buffers.Init())
    handle = world.start()
    assert Status.DFFLUSH_REQUIRED == activate(world, handle, FIRST - 1)
    world.desk.flush()
    assert Status.INVALID_ASID == activate(world, handle, FIRST - 1)


@pytest.mark.parametrize("profile", ["naples", "rome", "genoa"])
def test_the_highest_asid_is_the_profiles(chips: Chips, profile: str) -> None:
    with chips.world(profile) as world:
        highest = {"naples": 15, "rome": 509, "genoa": 1006}[profile]
        handle = world.init().start()
        assert Status.INVALID_ASID == activate(world, handle, highest + 1)
        assert Status.SUCCESS == activate(world, handle, highest)


# ---- the key -----------------------------------------------------------------------------------------------


def test_activation_puts_the_guests_key_into_the_slot_and_deactivation_leaves_it(world: World) -> None:
    world.init()
    plain = b"sixteen bytes ok"
    at = world.desk.put(plain)
    handle = world.start()
    world.activate(handle, FIRST)
    world.update(handle, at, 16)
    cipher = world.machine.probe.read(at, 16)
    assert plain != cipher
    read = world.machine.controller.read
    assert plain == read(at, 16, key_of(FIRST))
    assert plain != read(at, 16, key_of(LAST))
    world.deactivate(handle)
    assert plain == read(at, 16, key_of(FIRST))
    world.activate(handle, LAST)
    assert plain == read(at, 16, key_of(LAST))  # the same key, in another slot


def test_the_next_owner_of_an_asid_brings_another_key(world: World) -> None:
    world.init()
    at = world.desk.put(b"sixteen bytes ok")
    alice = world.launch()
    assert alice
    world.firmware.memory.fabric.write(at, b"sixteen bytes ok", key_of(FIRST))
    world.deactivate(alice)
    world.decommission(alice)
    world.desk.flush()
    world.launch()
    assert b"sixteen bytes ok" != world.machine.controller.read(at, 16, key_of(FIRST))


def test_every_reset_draws_other_keys(chips: Chips) -> None:
    seen = set()
    with chips.world(entropy=SeededEntropy("resets")) as world:
        for _ in range(3):
            at = Spa(0x200000)
            world.desk.write(at, bytes(16))
            world.init()
            handle = world.start()
            world.activate(handle, FIRST)
            world.update(handle, at, 16)
            seen.add(world.machine.probe.read(at, 16))
            world.machine.reset()
    assert 3 == len(seen)


# ---- DECOMMISSION ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [GuestState.LUPDATE, GuestState.LSECRET, GuestState.RUNNING])
def test_an_active_guest_is_not_decommissioned(world: World, state: GuestState) -> None:
    handle = world.init().launch(state=state)
    order = buffers.GuestHandle(handle=handle)
    assert Status.ACTIVE == world.desk.status_of(Command.DECOMMISSION, order)
    world.deactivate(handle)
    assert Status.SUCCESS == world.desk.status_of(Command.DECOMMISSION, order)
    assert Status.INVALID_PLATFORM_STATE == world.desk.status_of(Command.DECOMMISSION, order)


def test_the_platform_works_until_the_last_guest_is_gone(world: World) -> None:
    world.init()
    alice, bob = world.start(), world.start()
    assert (2, 2) == (world.desk.platform().state, world.desk.platform().guest_count)
    world.decommission(alice)
    assert (2, 1) == (world.desk.platform().state, world.desk.platform().guest_count)
    world.decommission(bob)
    assert (1, 0) == (world.desk.platform().state, world.desk.platform().guest_count)


def test_the_lowest_free_handle_is_given(world: World) -> None:
    world.init()
    assert [1, 2, 3, 4] == [world.start() for _ in range(4)]
    world.decommission(3)
    world.decommission(2)
    assert [2, 3, 5] == [world.start() for _ in range(3)]


def test_there_are_1024_handles(world: World) -> None:
    world.init()
    assert list(range(1, 1025)) == [world.start() for _ in range(1024)]
    assert 1024 == world.desk.platform().guest_count
    before = world.snapshot()
    asked = buffers.LaunchStart(policy=0)
    status, why, after = world.desk.attempt(Command.LAUNCH_START, asked)
    assert (Status.RESOURCE_LIMIT, asked) == (status, after), why
    shared = buffers.LaunchStart(handle=7, policy=0)
    assert Status.RESOURCE_LIMIT == world.desk.status_of(Command.LAUNCH_START, shared)
    assert before == world.snapshot()
    world.decommission(1000)
    assert 1000 == world.start()
