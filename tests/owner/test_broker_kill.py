"""A broker that is killed: nothing is released twice, no release is without its record, the log stays whole.

Every place between two steps of a change is met in turn, in a process of its own that ends itself there with
SIGKILL, on the real database file.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cbit.crypto.key import Key
from cbit.owner.broker import AlreadyReleased, Refused, verify_records
from cbit.owner.broker.packet import public_bytes
from cbit.owner.broker.rules import Challenge
from cbit.owner.broker.sqlite import SqliteStore
from owner.broker_worlds import (
    CREATED,
    SEV_WISHES,
    SNP_WISHES,
    Clock,
    Office,
    a_report,
    exported,
    guest_key,
    leaf_pem,
    reported,
    sev_policy,
    snp_policy,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ends processes with SIGKILL: POSIX only")

Act = Callable[[Office], object]


class Killer:
    """Ends its own process at the nth place that it is called at."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.places: list[str] = []

    def __call__(self, place: str) -> None:
        self.places.append(place)
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def in_a_process(folder: Path, act: Act, *, kill_at: int) -> tuple[bool, bool]:
    """Do something in a forked process: (it was killed, its answer had left)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            office = Office(folder, step=Killer(kill_at))
            act(office)
            os.write(write, b"answer")
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answered = pipe.read() == b"answer"
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or 0 == os.waitstatus_to_exitcode(status)
    return os.WIFSIGNALED(status), answered


def check(folder: Path) -> dict[str, int]:
    """What must hold whenever a broker was killed; returns the releases."""
    with closing(SqliteStore(folder / "broker.db")) as store:
        records = list(store.records())
        assert verify_records(records) is not None
        released = store.releases()
        written = {r.event.launch: r.number for r in records if r.event.what == "release"}
        assert released == written, "each release has its record, each record its release"
        assert len(written) == sum(r.event.what == "release" for r in records)
        for launch, number in released.items():
            kept = store.launch(launch)
            assert kept is not None
            assert (number, None) == (kept.released, kept.keys)
        return released


def places(act: Act, folder: Path) -> int:
    """Count the places at which an act can be killed."""
    killer = Killer(-1)
    office = Office(folder, step=killer)
    with closing(office.store):
        act(office)
    return len(killer.places)


def sev(folder: Path) -> tuple[str, Act]:
    office = Office(folder)
    with closing(office.store):
        session = office.broker.open_session("web", exported())
    evidence = reported(session)
    return session.launch, lambda office: office.broker.take_receipt(session.launch, evidence)


def snp(folder: Path) -> tuple[str, Act]:
    office = Office(folder)
    with closing(office.store):
        challenge = office.broker.open_challenge("db")
    report = a_report(challenge, guest_key(), report_id=bytes.fromhex(challenge.launch) * 2)
    return challenge.launch, lambda office: take_report(office, challenge, report)


def take_report(office: Office, challenge: Challenge, report: bytes) -> object:
    key = public_bytes(guest_key().public_key())
    return office.broker.take_report(challenge.launch, report=report, certificates=leaf_pem(), public_key=key)


@pytest.mark.parametrize("make", [sev, snp])
def test_a_kill_between_any_two_steps_of_a_release(
    make: Callable[[Path], tuple[str, Act]], tmp_path: Path
) -> None:
    with closing(Office(tmp_path).with_policies().store):
        pass
    count = places(make(tmp_path)[1], tmp_path)
    assert count >= 5
    outcomes = set()
    for at in range(count):
        launch, act = make(tmp_path)
        killed, answered = in_a_process(tmp_path, act, kill_at=at)
        released = launch in check(tmp_path)
        assert killed
        assert not answered
        outcomes.add(released)
        office = Office(tmp_path)
        with closing(office.store):  # the same evidence once more, from a broker that was started anew
            if released:
                with pytest.raises(AlreadyReleased):
                    act(office)
            else:
                act(office)
        assert launch in check(tmp_path)
    assert {True, False} == outcomes, "some kills come before the release is on disk, and one after"


# ---- another process at work between the judgement and the release


def removed(office: Office) -> None:
    for name in ("web", "db"):
        office.broker.remove_policy(name)


def changed(office: Office) -> None:
    removed(office)
    office.broker.add_policy(sev_policy(wishes=SEV_WISHES + "build = 1\n"))
    office.broker.add_policy(snp_policy(wishes="vmpl = 0\n" + SNP_WISHES))


def another_secret(office: Office) -> None:
    removed(office)
    for policy in (sev_policy(), snp_policy()):
        office.broker.add_policy(replace(policy, secret=Key(b"new")))


def expired(office: Office) -> None:
    office.clock.pass_(hours=1)


def the_same_again(office: Office) -> None:
    removed(office)
    for policy in (sev_policy(), snp_policy()):
        office.broker.add_policy(policy)


class Meddler:
    """Lets another process do something at one place of a change."""

    def __init__(self, folder: Path, clock: Clock, act: Callable[[Office], None]) -> None:
        self.folder, self.clock, self.act = folder, clock, act

    def __call__(self, place: str) -> None:
        if place == "release: before":
            other = Office(self.folder, clock=self.clock)
            with closing(other.store):
                self.act(other)


@pytest.mark.parametrize("make", [sev, snp])
@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        (removed, "changed or removed"),
        (changed, "changed or removed"),
        (another_secret, "secret of policy '.*' was replaced"),
        (expired, "to bring its evidence before"),
    ],
)
def test_nothing_is_released_that_was_withdrawn_since_it_was_judged(
    make: Callable[[Path], tuple[str, Act]], meddle: Callable[[Office], None], reason: str, tmp_path: Path
) -> None:
    with closing(Office(tmp_path).with_policies().store):
        pass
    launch, act = make(tmp_path)
    clock = Clock()
    office = Office(tmp_path, step=Meddler(tmp_path, clock, meddle), clock=clock)
    with closing(office.store):
        with pytest.raises(Refused, match=reason):
            act(office)
        kept = office.store.launch(launch)
        assert kept is not None
        assert kept.released is None
        last = list(office.store.records())[-1]
        assert ("refusal", launch) == (last.event.what, last.event.launch)
    assert {} == check(tmp_path)


@pytest.mark.parametrize("make", [sev, snp])
def test_a_policy_that_came_back_as_it_was_releases(
    make: Callable[[Path], tuple[str, Act]], tmp_path: Path
) -> None:
    with closing(Office(tmp_path).with_policies().store):
        pass
    launch, act = make(tmp_path)
    office = Office(tmp_path, step=Meddler(tmp_path, Clock(), the_same_again))
    with closing(office.store):
        act(office)
    assert {launch} == set(check(tmp_path))


def open_session(office: Office) -> object:
    return office.broker.open_session("web", exported())


def add_policy(office: Office) -> object:
    return office.broker.add_policy(sev_policy("new"))


def remove_policy(office: Office) -> object:
    return office.broker.remove_policy("web")


def refuse(office: Office) -> object:
    with pytest.raises(Refused):
        office.broker.open_session("web", exported()[:-1] + b"\x01")
    return None


@pytest.mark.parametrize("act", [open_session, add_policy, remove_policy, refuse])
def test_a_kill_between_any_two_steps_of_anything_else(act: Act, tmp_path: Path) -> None:
    def number_and_state(folder: Path) -> tuple[int, list[str]]:
        check(folder)
        with closing(SqliteStore(folder / "broker.db")) as store:
            return len(list(store.records())), [policy.name for policy in store.policies()]

    (tmp_path / "count").mkdir()
    with closing(Office(tmp_path / "count").with_policies().store):
        pass
    for at in range(places(act, tmp_path / "count")):
        folder = tmp_path / str(at)
        folder.mkdir()
        with closing(Office(folder).with_policies().store):
            pass
        before = number_and_state(folder)
        killed, answered = in_a_process(folder, act, kill_at=at)
        assert killed
        after = number_and_state(folder)
        assert not answered
        assert (after[0] == before[0] + 1) or after == before, "the change and its record, or neither"


def test_a_kill_while_the_database_is_made(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.touch()  # the file was there, and nothing in it
    with pytest.raises(ValueError, match="not a database"):
        SqliteStore(path)
    path.unlink()
    SqliteStore.create(path, CREATED).close()


# ---- a campaign: brokers at work, killed at random moments


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_broker_that_is_killed_at_random_moments(tmp_path: Path) -> None:
    with closing(Office(tmp_path).with_policies().store):
        pass
    rng = random.Random(20260301)
    answered: set[str] = set()
    waiting: list[tuple[str, Act]] = []
    rounds = 0
    while len(answered) < 40 and rounds < 400:
        rounds += 1
        waiting += [make(tmp_path) for make in (sev, snp, sev)]
        child = _hammer(tmp_path, waiting)
        time.sleep(rng.uniform(0.0, 0.2))  # the campaign's own time, nobody's judgement
        os.kill(child.pid, signal.SIGKILL)
        answered |= set(child.answers())
        released = check(tmp_path)
        assert answered <= set(released)
        office = Office(tmp_path)
        with closing(office.store):
            for launch, act in waiting:
                if launch in released:
                    with pytest.raises(AlreadyReleased):
                        act(office)
        assert released == check(tmp_path)
        waiting = [(launch, act) for launch, act in waiting if launch not in released]
    assert 40 <= len(answered), "the campaign did release, and answers did leave before a kill"


class Child:
    """A forked broker that works through evidence, and tells what it answered."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self._pipe = pid, pipe

    def answers(self) -> Iterator[str]:
        with os.fdopen(self._pipe, "rb") as pipe:
            lines = pipe.read().split(b"\n")[:-1]  # a line that was cut short was no answer
        os.waitpid(self.pid, 0)
        return (line.decode() for line in lines)


def _hammer(folder: Path, work: list[tuple[str, Act]]) -> Child:
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return Child(child, read)
    try:
        os.close(read)
        office = Office(folder)
        for launch, act in work:
            try:
                act(office)
            except AlreadyReleased:
                continue
            os.write(write, f"{launch}\n".encode())
        time.sleep(1)
    finally:
        os._exit(0)
    raise AssertionError("not reached")
