"""A guest moves in the middle of its work: it goes on where it stood, with what it knew, and here no more."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cbit.cpu.faults import VmexitInvalid
from cbit.crypto.entropy import SeededEntropy
from cbit.driver.errors import FirmwareError
from cbit.guest.builtin.interface import PUBLISHED, SHARED, SHARED_PAGE, Request
from cbit.hypervisor import migration
from cbit.hypervisor.channel import Channel, ChannelError, Kind, OtherSide
from cbit.hypervisor.devices.requests import Asked
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.migration import Moved, Papers
from cbit.hypervisor.running_state import Head, pack, unpack
from cbit.hypervisor.small_guest import SmallGuest, Turn
from cbit.hypervisor.vm import Vm
from cbit.spec.address import MIB, PAGE, Gpa
from cbit.spec.errors import CbitError
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState
from cbit.spec.vmsa import Vmsa
from cbit.testing.worlds import a_host
from engine_here import missing
from scenarios.builtin_world import KEY, PASSPHRASE, BuiltIn
from secure_processor.worlds import Chips

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

TOKEN = b"both hosts know this"
NUMBER, PRIMES = 100_000, 9592
LETTER = b"Meet me where the third lamp burns."


@dataclass
class Sides:
    """Two hosts of one vendor, and a guest on the first."""

    guest: BuiltIn
    target: Host
    papers: Papers


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return Chips(tmp_path_factory.mktemp("chips"))


@pytest.fixture
def sides(chips: Chips) -> Iterator[Sides]:
    size = 16 * MIB
    with chips.world(seed=1, memory_size=size) as here, chips.world(seed=2, memory_size=size) as there:
        source, target = a_host(here.machine), a_host(there.machine)
        cek, ask_ark = ((there.state.certs / name).read_bytes() for name in ("cek.cert", "ask_ark.cert"))
        papers = Papers.of(target, cek=cek, ask_ark=ask_ark)
        guest = BuiltIn(source, Protection.SEV)
        assert Turn.HALTED is guest.guest.turn()
        yield Sides(guest, target, papers)


@dataclass
class Journey:
    """What became of both ends."""

    sent: Moved | BaseException | None = None
    received: tuple[SevGuest, Moved] | BaseException | None = None
    guest: SmallGuest | None = None
    unfinished: list[Asked] = field(default_factory=list)
    frames: list[tuple[Kind, bytes]] = field(default_factory=list)


class Written(Channel):
    """A sender whose frames are kept."""

    frames: list[tuple[Kind, bytes]]

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self.frames.append((kind, payload))
        super().send(kind, payload)


def travel(sides: Sides, *, state: bytes | None = None, runs: bool = True) -> Journey:
    """Move the guest as it stands."""
    journey, sev = Journey(), sides.guest.sev
    assert sev is not None
    luggage = pack(sides.guest.guest) if state is None else state
    here, there = socket.socketpair()

    def settle(arrived: SevGuest, luggage: bytes) -> None:
        journey.guest, journey.unfinished = unpack(arrived.vm, luggage)

    def send() -> None:
        try:
            channel = Written.connected(here, TOKEN, SeededEntropy("sender"))
            channel.frames = journey.frames
            journey.sent = migration.send(sev, channel, state=luggage, shared=(SHARED,))
        except (CbitError, OSError) as error:
            journey.sent = error
        finally:
            here.close()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        channel = Channel.accepted(there, TOKEN, SeededEntropy("receiver"))
        take = settle if runs else None
        journey.received = migration.receive(sides.target, channel, sides.papers, settle=take)
    except (CbitError, OSError) as error:
        journey.received = error
    thread.join(60)
    there.close()
    return journey


def begin(guest: SmallGuest, number: int, *arguments: int, blocks: int) -> Asked:
    """Ask for something, and let the guest work on it for a while."""
    asked = guest.requests.ask(number, *arguments)
    assert Turn.INTERRUPTED is guest.turn(blocks)
    assert asked.status is None, "it is in the middle of it"
    return asked


def test_it_goes_on_computing_where_it_arrives_and_here_no_more(sides: Sides) -> None:
    here = sides.guest.guest
    who = here.ask(Request.WHO).answers
    here.ask(Request.COMPUTE, 100)
    begin(here, Request.COMPUTE, NUMBER, blocks=20_000)
    journey = travel(sides)
    assert isinstance(journey.received, tuple), journey.received
    there, (arrived, moved) = journey.guest, journey.received
    assert there is not None
    assert journey.sent == moved
    assert (2, True) == (moved.shared, moved.ran)
    here.leave()
    assert Turn.ENDED is here.turn()
    assert "it runs on another machine" in here.stopped
    assert sides.guest.sev is not None
    assert (GuestState.SENT, GuestState.RUNNING) == (sides.guest.sev.status().state, arrived.status().state)
    published = sides.guest.vm.host.read(sides.guest.vm.spa(PUBLISHED), 64)
    assert published == arrived.vm.host.read(arrived.vm.spa(PUBLISHED), 64), "the shared page came as it was"
    (computing,) = journey.unfinished
    there.finish([computing])
    assert (0, [PRIMES]) == (computing.status, computing.answers)
    assert who == there.ask(Request.WHO).answers, "it is the same guest, with a number that nobody else knows"
    sides.guest.sev.deactivate()
    with pytest.raises(FirmwareError, match="INVALID_GUEST_STATE"):
        sides.guest.sev.activate()
    arrived.end()


# ---- a source that lies afterwards ----


def sent(sides: Sides) -> tuple[SmallGuest, SevGuest, bytes]:
    """Move the guest, which has been asked something; return it as it arrived, and the luggage it had."""
    here = sides.guest.guest
    here.ask(Request.COMPUTE, 100)
    luggage = pack(here)
    journey = travel(sides, state=luggage)
    assert isinstance(journey.received, tuple), journey.received
    assert journey.guest is not None
    return journey.guest, journey.received[0], luggage


def test_a_source_that_does_not_deactivate_runs_it_on(sides: Sides) -> None:
    """SEND_FINISH takes neither the key from its slot nor the ASID from the guest: hardware makes a clone."""
    here, sev = sides.guest.guest, sides.guest.sev
    assert sev is not None
    there, arrived, _ = sent(sides)
    assert GuestState.SENT is sev.status().state
    assert here.ask(Request.WHO).answers == there.ask(Request.WHO).answers, (
        "with the number nobody else knows"
    )
    assert [PRIMES] == here.ask(Request.COMPUTE, NUMBER).answers
    with pytest.raises(FirmwareError, match="INVALID_GUEST_STATE"):  # but it does not move a second time
        migration._send_start(sev, sides.papers)
    sev.deactivate()
    here.requests.ask(Request.WHO)
    with pytest.raises(VmexitInvalid, match="no usable key"):
        here.turn()
    arrived.end()


def test_a_key_that_may_be_shared_lets_the_source_run_it_even_then(sides: Sides) -> None:
    """A guest of the host's own that shares the key is another guest: its state is not SENT."""
    sev, vm = sides.guest.sev, sides.guest.vm
    assert sev is not None
    there, arrived, luggage = sent(sides)
    sev.deactivate()
    helper = helper_of(sev)
    vm.asid = helper.asid
    clone, _ = unpack(vm, luggage)
    assert clone.ask(Request.WHO).answers == there.ask(Request.WHO).answers
    helper.release()
    sev.decommission()
    with pytest.raises(
        FirmwareError, match="INVALID_GUEST"
    ):  # what the processor has forgotten is not shared
        helper_of(sev)
    arrived.end()


def test_under_noks_what_was_sent_and_deactivated_is_gone(chips: Chips, sides: Sides) -> None:
    sides = Sides(
        BuiltIn(sides.guest.vm.host, Protection.SEV, policy=Policy.NOKS), sides.target, sides.papers
    )
    here, sev = sides.guest.guest, sides.guest.sev
    assert sev is not None
    assert Turn.HALTED is here.turn()
    there, arrived, luggage = sent(sides)
    sev.deactivate()
    sev.vm.host.flush()
    with pytest.raises(FirmwareError, match="POLICY_FAILURE"):
        helper_of(sev)
    with pytest.raises(FirmwareError, match="INVALID_GUEST_STATE"):
        sev.activate()
    clone, _ = unpack(sides.guest.vm, luggage)
    with pytest.raises(VmexitInvalid, match="no usable key"):
        clone.turn()
    assert [PRIMES] == there.ask(Request.COMPUTE, NUMBER).answers
    arrived.end()


def helper_of(sev: SevGuest) -> SevGuest:
    """Launch an empty guest with another's key, which takes no owner."""
    vm = Vm(sev.vm.host, Protection.SEV)
    vm.add_memory(Gpa(0), PAGE)
    helper = SevGuest.start(vm, policy=sev.policy, share_with=sev)
    helper.measure_alone()
    helper.finish()
    return helper


def test_it_moves_while_it_uses_its_key(sides: Sides) -> None:
    """Its vector registers go with it: half of a message was opened with them."""
    sides.guest.deliver(LETTER)
    asked = sides.guest.guest.requests.ask(Request.OPEN)
    while not any(sides.guest.guest.vcpu.everything().xmm):
        assert Turn.INTERRUPTED is sides.guest.guest.turn(8)
    assert asked.status is None
    journey = travel(sides)
    assert isinstance(journey.received, tuple), journey.received
    assert journey.guest is not None
    journey.guest.finish(journey.unfinished)
    assert f"the message says: {LETTER.decode()}" == journey.guest.console.lines[-1]
    everything = b"".join(payload for _, payload in journey.frames)
    assert PASSPHRASE not in everything
    journey.received[0].end()


def test_the_vector_registers_are_what_they_were(sides: Sides) -> None:
    vcpu = sides.guest.guest.vcpu
    state = vcpu.everything().replace(
        xmm=bytes(range(256)),
        ymm_high=bytes(range(255, -1, -1)),
        x87_registers=bytes(range(80)),
        x87_fsw=3 << 11,
        x87_ftw=0xAAAA,  # all of them special, which is what their contents are
        x87_fcw=0x27F,
        mxcsr=0x1FA0,
    )
    vcpu.take_vectors(state)
    after = vcpu.everything()
    assert [] == [name for name in Vmsa.FIELDS if getattr(state, name) != getattr(after, name)]


@pytest.mark.parametrize("why", ["nobody takes it", "another C-bit", "a cut state", "a long state"])
def test_a_state_that_cannot_be_taken_over_leaves_the_guest_where_it_is(sides: Sides, why: str) -> None:
    asked = begin(sides.guest.guest, Request.COMPUTE, NUMBER, blocks=20_000)
    state = pack(sides.guest.guest)
    head = Head.parse(state[: Head.SIZE])
    states = {
        "nobody takes it": state,
        "another C-bit": bytes(head.replace(c_bit=51)) + state[Head.SIZE :],
        "a cut state": state[:-4],
        "a long state": state + b"x",
    }
    free = sides.target.frames.free_bytes
    journey = travel(sides, state=states[why], runs=why != "nobody takes it")
    assert isinstance(journey.received, ChannelError)
    assert isinstance(journey.sent, OtherSide), journey.sent
    assert str(journey.received) == str(journey.sent), "the source is told"
    assert free == sides.target.frames.free_bytes
    sides.guest.guest.finish([asked])
    assert [PRIMES] == asked.answers, "it runs on where it was"


def test_what_is_shared_is_whole_pages_of_the_guests(sides: Sides) -> None:
    assert sides.guest.sev is not None
    for pages in (
        range(SHARED_PAGE, SHARED_PAGE + 1),
        range(SHARED_PAGE + 8, SHARED_PAGE + 8 + PAGE),
        range(0),
    ):
        with pytest.raises(ValueError, match="whole pages"):
            migration.send(sides.guest.sev, None, shared=[pages])  # type: ignore[arg-type]  # nothing is said
    with pytest.raises(CbitError, match="has nothing at"):
        migration.send(sides.guest.sev, None, shared=[range(PAGE)])  # type: ignore[arg-type]  # nor here


def test_the_key_is_the_guests_alone(sides: Sides) -> None:
    assert KEY not in pack(sides.guest.guest), "at rest, between two requests"
