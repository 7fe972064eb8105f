"""A guest moves: memory arrives, the source runs it no more, and whoever meddles is found out."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from cbit.cli.migrate import _digest
from cbit.crypto.entropy import SeededEntropy
from cbit.driver.errors import FirmwareError
from cbit.hypervisor import migration
from cbit.hypervisor.channel import MAC, NONCE, Channel, ChannelError, FrameHead, Kind, OtherSide
from cbit.hypervisor.frames import OutOfMemory
from cbit.hypervisor.host import Host
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.migration import Moved, Papers
from cbit.spec.address import KIB, MIB, PAGE
from cbit.spec.errors import CbitError, NotModelled
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from cbit.testing.guests import a_guest
from cbit.testing.worlds import a_host
from secure_processor.worlds import Chips

TOKEN = b"both hosts know this"
IMAGE = bytes(range(256)) * (44 * KIB // 256)  # three pieces, the last of them short


@dataclass
class Sides:
    """Two hosts of one vendor."""

    source: Host
    target: Host
    papers: Papers


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return Chips(tmp_path_factory.mktemp("chips"))


@pytest.fixture
def sides(chips: Chips) -> Iterator[Sides]:
    with (
        chips.world(seed=1, memory_size=16 * MIB) as here,
        chips.world(seed=2, memory_size=16 * MIB) as there,
    ):
        source, target = a_host(here.machine), a_host(there.machine)
        cek, ask_ark = ((there.state.certs / name).read_bytes() for name in ("cek.cert", "ask_ark.cert"))
        yield Sides(source, target, Papers.of(target, cek=cek, ask_ark=ask_ark))


Meddle = Callable[[int, bytes], list[bytes]]


@dataclass
class Journey:
    """What became of both ends."""

    sent: Moved | BaseException | None = None
    received: tuple[SevGuest, Moved] | BaseException | None = None
    frames: list[bytes] = field(default_factory=list)


def travel(
    sides: Sides,
    guest: SevGuest,
    *,
    meddle: Meddle = lambda number, frame: [frame],
    token: bytes = TOKEN,
    papers: Papers | None = None,
    sender: type[Channel] = Channel,
) -> Journey:
    """Send and receive, with somebody between who may do anything to the sender's frames."""
    journey = Journey()
    here, near = socket.socketpair()
    far, there = socket.socketpair()
    for link in (here, near, far, there):
        link.settimeout(20)

    def receive() -> None:
        try:
            channel = Channel.accepted(there, token, SeededEntropy("receiver"))
            journey.received = migration.receive(sides.target, channel, papers or sides.papers)
        except (CbitError, OSError) as error:
            journey.received = error
        finally:
            there.close()

    def forward() -> None:
        try:
            far.sendall(exactly(near, NONCE))
            far.sendall(exactly(near, MAC))
            number = 0
            while True:
                head = exactly(near, FrameHead.SIZE)
                frame = head + exactly(near, FrameHead.parse(head).length + MAC)
                journey.frames.append(frame)
                for piece in meddle(number, frame):
                    far.sendall(piece)
                number += 1
        except (ChannelError, OSError):
            with suppress(OSError):
                far.shutdown(socket.SHUT_WR)

    def back() -> None:
        try:
            while data := far.recv(1 << 16):
                near.sendall(data)
        except OSError:
            pass
        with suppress(OSError):
            near.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=target, daemon=True) for target in (receive, forward, back)]
    for thread in threads:
        thread.start()
    try:
        journey.sent = migration.send(guest, sender.connected(here, TOKEN, SeededEntropy("sender")))
    except (CbitError, OSError) as error:
        journey.sent = error
    finally:
        here.close()
    for thread in threads:
        thread.join(30)
    for link in (near, far, there):
        link.close()
    return journey


def exactly(link: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = link.recv(length - len(data))
        if not piece:
            raise ChannelError("closed")
        data += piece
    return data


def running(sides: Sides, policy: int = 0) -> SevGuest:
    return a_guest(sides.source, state=GuestState.RUNNING, policy=policy, image=IMAGE).guest


def in_use(host: Host) -> tuple[int, frozenset[int], int]:
    return host.frames.free_bytes, host.asids.in_use, host.status().guest_count


def test_memory_arrives_and_the_source_runs_it_no_more(sides: Sides) -> None:
    guest = running(sides)
    before = _digest(guest)
    journey = travel(sides, guest)
    assert Moved(3, len(IMAGE), 0) == journey.sent
    assert isinstance(journey.received, tuple)
    arrived, moved = journey.received
    assert Moved(3, len(IMAGE), 0) == moved
    assert (GuestState.SENT, GuestState.RUNNING) == (guest.status().state, arrived.status().state)
    assert before == _digest(arrived) == hashlib.sha256(IMAGE).hexdigest()
    everything = b"".join(journey.frames)
    assert not any(IMAGE[at : at + 64] in everything for at in range(0, len(IMAGE), PAGE))
    guest.deactivate()
    with pytest.raises(FirmwareError, match="INVALID_GUEST_STATE"):
        guest.activate()


@pytest.mark.parametrize("policy", [Policy.SEV, Policy.NODBG | Policy.SEV])
def test_a_policy_that_wants_proof_gets_the_vendors_chain(sides: Sides, policy: Policy) -> None:
    journey = travel(sides, running(sides, int(policy)))
    assert isinstance(journey.sent, Moved)
    assert isinstance(journey.received, tuple)
    assert int(policy) == journey.received[0].policy
    assert (_digest(journey.received[0]) is None) is bool(policy & Policy.NODBG)


def test_a_guest_that_may_not_leave_runs_on(sides: Sides) -> None:
    guest, before = running(sides, int(Policy.NOSEND)), in_use(sides.target)
    journey = travel(sides, guest)
    assert isinstance(journey.sent, FirmwareError)
    assert Status.POLICY_FAILURE == journey.sent.status
    assert isinstance(journey.received, OtherSide)
    assert "NOSEND" in str(journey.received)
    assert GuestState.RUNNING == guest.status().state
    assert before == in_use(sides.target)


def test_a_receiver_without_the_vendors_proof_is_refused(sides: Sides) -> None:
    guest = running(sides, int(Policy.SEV))
    forged = Papers(sides.papers.pdh, sides.papers.platform, sides.papers.vendor[:-1] + b"x")
    journey = travel(sides, guest, papers=forged)
    assert isinstance(journey.sent, FirmwareError)
    assert GuestState.RUNNING == guest.status().state


def altered(frame: bytes, at: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]


HELD: list[bytes] = []


def swap(first: int) -> Meddle:
    """Let a frame overtake another."""

    def meddle(number: int, frame: bytes) -> list[bytes]:
        if number == first:
            HELD.append(frame)
            return []
        return [frame, HELD.pop()] if number == first + 1 else [frame]

    return meddle


# START is the sender's frame 0; packets are 1, 2, 3; END is 4.
MEDDLING: dict[str, tuple[Meddle, str]] = {
    "a page tampered": (lambda n, f: [altered(f, 200) if n == 2 else f], "frame 2 was altered"),
    "a header tampered": (lambda n, f: [altered(f, FrameHead.SIZE + 20) if n == 1 else f], "altered"),
    "a place tampered": (lambda n, f: [altered(f, FrameHead.SIZE + 2) if n == 1 else f], "altered"),
    "a policy tampered": (lambda n, f: [altered(f, FrameHead.SIZE) if n == 0 else f], "altered"),
    "a MAC tampered": (lambda n, f: [altered(f, len(f) - 1) if n == 3 else f], "altered"),
    "a page replayed": (lambda n, f: [f, f] if n == 2 else [f], "frame 2 was repeated"),
    "a page dropped": (lambda n, f: [] if n == 2 else [f], "frame 2 was dropped"),
    "pages reordered": (swap(1), "frame 1 was dropped, or comes later"),
    "the end dropped": (lambda n, f: [] if n == 4 else [f], ""),
}


@pytest.mark.parametrize("what", MEDDLING)
def test_whoever_meddles_on_the_way_is_found_out(sides: Sides, what: str) -> None:
    meddle, reason = MEDDLING[what]
    if what == "the end dropped":
        meddle = _then_close(4)
        reason = "connection ended"
    guest, before = running(sides), in_use(sides.target)
    journey = travel(sides, guest, meddle=meddle)
    assert isinstance(journey.received, ChannelError)
    assert reason in str(journey.received)
    assert isinstance(journey.sent, ChannelError | OSError)
    assert GuestState.RUNNING == guest.status().state, "it runs on where it was"
    assert before == in_use(sides.target), "and nothing of it is left where it should have gone"


def _then_close(last: int) -> Meddle:
    def meddle(number: int, frame: bytes) -> list[bytes]:
        if number >= last:
            raise ChannelError("the line is cut")
        return [frame]

    return meddle


def test_a_host_that_does_not_know_the_token_gets_nothing(sides: Sides) -> None:
    guest = running(sides)
    journey = travel(sides, guest, token=b"another host's token")
    assert isinstance(journey.sent, ChannelError)
    assert "does not know the token" in str(journey.sent)
    assert [] == journey.frames
    assert GuestState.RUNNING == guest.status().state


@pytest.mark.parametrize("token", [b"", b"fifteen bytes!!"])
def test_a_token_that_can_be_guessed_is_refused(token: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes(NONCE + MAC))
        with pytest.raises(ValueError, match="can be guessed"):
            Channel.connected(ours, token, SeededEntropy(1))


@pytest.mark.parametrize("said", [b"", bytes(NONCE), bytes(NONCE + MAC - 1)], ids=len)
def test_whoever_takes_too_long_to_prove_it_is_left(said: bytes) -> None:
    """However the pieces come: what counts is the time until the proof."""
    left = iter([3.0, 2.0, 1.0, 0.01, 0.0, -1.0, -2.0])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        with pytest.raises(TimeoutError):
            Channel.accepted(ours, TOKEN, SeededEntropy(1), left=lambda: next(left) / 1000)


def test_what_another_receiver_was_shown_is_no_proof() -> None:
    here, near = socket.socketpair()
    with here, near:
        threading.Thread(
            target=Channel.connected, args=(here, TOKEN, SeededEntropy("sender")), daemon=True
        ).start()
        hello = exactly(near, NONCE)
        first = Receiver("receiver", hello)
        near.sendall(first.answer)
        proof = exactly(near, MAC)
    assert first.given(proof) is None, "the good twin"
    error = Receiver("another", hello).given(proof)
    assert "does not know the token" in str(error)
    error = Receiver("receiver", hello).given(altered(proof, 31))
    assert "does not know the token" in str(error)


class Receiver:
    """One that has been greeted and waits for the proof."""

    def __init__(self, seed: str, hello: bytes) -> None:
        self._link, there = socket.socketpair()
        self._errors: list[Exception] = []

        def accept() -> None:
            with there:
                try:
                    Channel.accepted(there, TOKEN, SeededEntropy(seed))
                except ChannelError as error:
                    self._errors.append(error)

        self._thread = threading.Thread(target=accept, daemon=True)
        self._thread.start()
        self._link.sendall(hello)
        self.answer = exactly(self._link, NONCE + MAC)

    def given(self, proof: bytes) -> Exception | None:
        """Say why it refuses this proof."""
        with self._link:
            self._link.sendall(proof)
            self._thread.join(30)
        return self._errors[0] if self._errors else None


# ---- a source host that lies: it knows the token ----


class Liar(Channel):
    """A sender that changes what it sends, frames and MACs being right."""

    change: Callable[[list[tuple[Kind, bytes]]], list[tuple[Kind, bytes]]]

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        held: list[tuple[Kind, bytes]] = self.__dict__.setdefault("held", [])
        held.append((kind, payload))
        if kind is Kind.END:
            for one, data in self.change(held):
                super().send(one, data)
            held.clear()
        elif kind is Kind.GO:
            super().send(kind, payload)


def tampered(frames: list[tuple[Kind, bytes]]) -> list[tuple[Kind, bytes]]:
    kind, payload = frames[2]
    return [*frames[:2], (kind, altered(payload, len(payload) - 5)), *frames[3:]]


def replayed(frames: list[tuple[Kind, bytes]]) -> list[tuple[Kind, bytes]]:
    kind, payload = frames[2]
    return [*frames[:2], (kind, payload[:16] + frames[1][1][16:]), *frames[3:]]


def twice(frames: list[tuple[Kind, bytes]]) -> list[tuple[Kind, bytes]]:
    return [*frames[:2], frames[1], *frames[2:]]


def dropped(frames: list[tuple[Kind, bytes]]) -> list[tuple[Kind, bytes]]:
    return [*frames[:3], (Kind.END, (2).to_bytes(8, "little"))]


def elsewhere(frames: list[tuple[Kind, bytes]]) -> list[tuple[Kind, bytes]]:
    kind, payload = frames[1]
    return [frames[0], (kind, (1 << 30).to_bytes(8, "little") + payload[8:]), *frames[2:]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tampered, "RECEIVE_UPDATE_DATA: BAD_MEASUREMENT"),
        (replayed, "came before: replayed"),
        (twice, "came before: replayed"),
        (dropped, "1 pieces of the guest's memory are missing"),
        (elsewhere, "is none of the guest's"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_lying_source_does_is_found_out(
    sides: Sides,
    change: Callable[[list[tuple[Kind, bytes]]], list[tuple[Kind, bytes]]],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest, before = running(sides), in_use(sides.target)
    monkeypatch.setattr(Liar, "change", staticmethod(change), raising=False)
    journey = travel(sides, guest, sender=Liar)
    assert isinstance(journey.received, CbitError)
    assert reason in str(journey.received)
    assert reason in str(journey.sent), "the source is told"
    assert GuestState.RUNNING == guest.status().state
    assert before == in_use(sides.target)


def test_a_guest_that_is_larger_than_the_target_is_refused(sides: Sides) -> None:
    guest = running(sides)
    frames, size = sides.target.frames, 16 * MIB
    while frames.free_bytes > 64 * KIB:
        try:
            frames.take(min(size, frames.free_bytes - 32 * KIB))
        except OutOfMemory:
            size //= 2
    journey = travel(sides, guest)
    assert isinstance(journey.received, CbitError)
    assert isinstance(journey.sent, OtherSide)
    assert GuestState.RUNNING == guest.status().state


def test_a_guest_with_es_is_not_modelled(sides: Sides) -> None:
    guest = running(sides)
    guest.policy = int(Policy.ES)
    with pytest.raises(NotModelled, match="save areas"):
        migration.send(guest, None)  # type: ignore[arg-type]  # nothing is said before that
