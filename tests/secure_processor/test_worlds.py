"""The builders that users get: a guest in every state of a launch, a desk that survives what it does."""

from __future__ import annotations

import pytest

from cbit.spec.command import Command
from cbit.spec.errors import NotModelled
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState
from cbit.testing.guests import IMAGE, IMAGE_AT, a_guest
from cbit.testing.worlds import a_host
from secure_processor.worlds import World

LAUNCH = (GuestState.LUPDATE, GuestState.LSECRET, GuestState.RUNNING)


@pytest.mark.parametrize("state", LAUNCH)
def test_a_guest_comes_in_any_state_of_a_launch(world: World, state: GuestState) -> None:
    host = a_host(world.machine)
    alice = a_guest(host, state=state, policy=Policy.NODBG)
    status = alice.guest.status()
    assert (state, Policy.NODBG) == (status.state, status.policy)
    assert (alice.receipt is None) == (state is GuestState.LUPDATE)
    assert IMAGE not in host.read(alice.guest.vm.spa(IMAGE_AT), len(IMAGE))


def test_its_owner_can_seal_for_it(world: World) -> None:
    host = a_host(world.machine)
    alice = a_guest(host)
    header, payload = alice.seal(b"sixteen bytes ok")
    alice.guest.inject(IMAGE_AT, header, payload)
    with pytest.raises(ValueError, match="measure first"):
        a_guest(host, state=GuestState.LUPDATE, seed=2).seal(b"sixteen bytes ok")


@pytest.mark.parametrize("state", [state for state in GuestState if state not in LAUNCH])
def test_a_state_that_no_launch_reaches_is_said_to_be_so(world: World, state: GuestState) -> None:
    with pytest.raises(NotModelled, match=state.name):
        a_guest(a_host(world.machine), state=state)


def test_a_desk_works_where_no_page_table_does(world: World) -> None:
    """Memory is reached past the host's tables, which a command may have destroyed."""
    host = a_host(world.machine)
    handle = world.start()
    world.desk.flush()
    world.activate(handle, 5)
    world.update(handle, 0x1000, 0x8000)  # where a host keeps its tables, and the desk its page
    assert 2 == world.desk.platform().state
    assert world.desk.status_of(Command.NOP) == 0
    assert host.machine is world.machine
