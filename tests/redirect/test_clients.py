"""A handle belongs to one process and one file; a descriptor is what its inode says."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cbit.driver.caller_memory import CallerMemory
from cbit.redirect.clients import Clients
from cbit.redirect.descriptors import Descriptors
from cbit.redirect.device import Client
from cbit.redirect.files import SEV, SEV_GUEST, DescriptorKind, DeviceFile, Files
from cbit.redirect.linux import PR_SET_DUMPABLE, prctl

TIMER = "anon_inode:[eventfd]"
FILES = Files(
    (DeviceFile(SEV, (1,)), DeviceFile(SEV_GUEST, (2,), stand_in="/dev/zero")),
    foreign=(DescriptorKind(TIMER, (3,)),),
)


class Book:
    """A device that writes down what happens to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fails: set[str] = set()

    def open(self, client: Client, *, writable: bool) -> str:
        if "open" in self.fails:
            raise OSError(errno.EBUSY, "busy")
        self.lines.append(f"open {len(self.lines)}" + ("" if writable else " to read"))
        return self.lines[-1]

    def ioctl(self, handle: str, request: int, argument: int, memory: CallerMemory) -> int:
        return 0

    def close(self, handle: str) -> None:
        self.lines.append(f"close of {handle}")
        if "close" in self.fails:
            raise RuntimeError("the device has a fault")


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def faults() -> list[BaseException]:
    return []


@pytest.fixture
def begun() -> list[int]:
    """The descriptors by which the clients that began are watched."""
    return []


@pytest.fixture
def clients(book: Book, begun: list[int], faults: list[BaseException]) -> Iterator[Clients]:
    devices = dict.fromkeys(FILES.served, book)
    all_of_them = Clients(devices, Descriptors(FILES), begun=begun.append, failed=faults.append)
    yield all_of_them
    all_of_them.close()


@pytest.fixture
def sev() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def me() -> int:
    return threading.get_native_id()


def test_a_client_whose_first_command_is_good_for_nothing_is_watched_too(
    clients: Clients, sev: int, begun: list[int]
) -> None:
    """Else nobody hears of its end, and what it opens later stays open."""
    with pytest.raises(OSError, match="no descriptor"):
        clients.named(me(), 1 << 20)
    assert list(clients.pidfds()) == begun
    assert 1 == len(begun)
    assert SEV == clients.named(me(), sev)[1]
    assert 1 == len(begun), "it begins once"
    clients.ended(begun[0])
    assert 0 == len(clients)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No descriptor is left for watching a client."""
    asked: list[int] = []

    def refuse(process: int) -> int:
        asked.append(process)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    return asked


@contextmanager
def a_child() -> Iterator[int]:
    """A process with our descriptors, which ends with the block."""
    ready, stop = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        prctl(PR_SET_DUMPABLE, 1)  # whatever another test did to this process
        os.close(stop[1])
        os.write(ready[1], b".")
        os.read(stop[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        yield child
    finally:
        for end in (*ready, *stop):
            os.close(end)
        os.waitpid(child, 0)


def test_a_client_that_cannot_be_watched_is_served_and_its_end_is_found_out(
    clients: Clients, book: Book, sev: int, begun: list[int], full: list[int]
) -> None:
    with a_child() as first, a_child() as second:
        for child in (first, second):
            session, name = clients.named(child, sev)
            assert (child, SEV) == (session.client.pid, name)
            clients.handle(session, SEV, sev)
            assert session is clients.named(child, sev)[0]
        assert ([first] * 2 + [second] * 2, [], []) == (full, begun, list(clients.pidfds()))
        assert 2 == len(clients)
    assert 2 == len(clients), "nothing tells"
    with a_child() as third:
        clients.named(third, sev)
        assert 1 == len(clients), "but the next one finds out"
        assert ["open 0", "open 1", "close of open 0", "close of open 1"] == book.lines
    clients.close()
    assert 0 == len(clients)


def test_a_number_of_one_that_was_not_watched_may_be_anothers(
    clients: Clients, book: Book, sev: int, full: list[int]
) -> None:
    with a_child() as child:
        before, _ = clients.named(child, sev)
        clients.handle(before, SEV, sev)
        before.begun -= 1  # an earlier process had this number
        after, name = clients.named(child, sev)
        assert before is not after
        assert SEV == name
        assert ["open 0", "close of open 0"] == book.lines


def test_a_descriptor_is_what_its_inode_says(clients: Clients, sev: int) -> None:
    copy, null = os.dup(sev), os.open("/dev/null", os.O_RDWR)
    event = os.eventfd(0)
    try:
        assert SEV == clients.named(me(), copy)[1]
        assert TIMER == clients.named(me(), event)[1]
        session, name = clients.named(me(), null)
        assert name is None
        os.dup2(sev, null)
        assert SEV == session.client.names(null)
    finally:
        for descriptor in (copy, null, event):
            os.close(descriptor)
    with pytest.raises(OSError, match="no descriptor") as closed:
        clients.named(me(), copy)
    assert errno.EBADF == closed.value.errno


def test_a_descriptor_that_another_thread_closes_meanwhile_is_a_bad_one(clients: Clients, sev: int) -> None:
    """Between its name and its mode; the kernel knows no other errno for it."""
    closing = os.dup(sev)
    session, name = clients.named(me(), closing)
    assert SEV == name
    os.close(closing)
    with pytest.raises(OSError, match="no descriptor") as closed:
        clients.handle(session, SEV, closing)
    assert errno.EBADF == closed.value.errno


def test_all_threads_are_one_client(clients: Clients, sev: int) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(clients.named(me(), sev)[0].client.pid))
    thread.start()
    thread.join()
    assert seen == [clients.named(me(), sev)[0].client.pid] == [os.getpid()]
    assert 1 == len(clients)


def test_a_file_has_one_handle_for_each_mode_and_a_foreign_number_its_own(
    clients: Clients, book: Book, sev: int
) -> None:
    session, _ = clients.named(me(), sev)
    again, to_read = os.dup(sev), os.open("/dev/full", os.O_RDONLY)
    timers = [os.eventfd(0), os.eventfd(0)]
    try:
        assert "open 0" == clients.handle(session, SEV, sev) == clients.handle(session, SEV, again)
        assert "open 1" == clients.handle(session, SEV_GUEST, sev)
        assert (
            "open 2" == clients.handle(session, TIMER, timers[0]) == clients.handle(session, TIMER, timers[0])
        )
        assert "open 3" == clients.handle(session, TIMER, timers[1])
        assert "open 4 to read" == clients.handle(session, SEV, to_read)
    finally:
        for descriptor in (again, to_read, *timers):
            os.close(descriptor)
    with pytest.raises(OSError, match="no descriptor") as gone:
        clients.handle(session, SEV, again)
    assert errno.EBADF == gone.value.errno
    clients.close()
    names = ("4 to read", "3", "2", "1", "0")
    assert [f"close of open {number}" for number in names] == book.lines[5:]


def test_a_copy_of_a_foreign_descriptor_has_its_handle_until_the_last_is_closed(
    clients: Clients, book: Book, sev: int
) -> None:
    session, _ = clients.named(me(), sev)
    first, other = os.eventfd(0), os.eventfd(0)
    copy = os.dup(first)
    try:
        assert "open 0" == clients.handle(session, TIMER, first) == clients.handle(session, TIMER, copy)
        assert "open 1" == clients.handle(session, TIMER, other), "which is no copy"
        os.close(first)
        clients.sweep(session)
        assert "open 0" == clients.handle(session, TIMER, copy)
        assert ["open 0", "open 1"] == book.lines
        again = os.dup(copy)
        assert first == again
        assert "open 0" == clients.handle(session, TIMER, again)
    finally:
        for descriptor in (copy, other, first):
            os.close(descriptor)
    clients.sweep(session)
    assert ["close of open 0", "close of open 1"] == sorted(book.lines[2:]), "once each"


def test_an_ended_client_closes_a_handle_of_several_numbers_once(
    clients: Clients, book: Book, begun: list[int]
) -> None:
    event = os.eventfd(0)
    copy = os.dup(event)
    try:
        session, _ = clients.named(me(), event)
        for number in (event, copy):
            assert "open 0" == clients.handle(session, TIMER, number)
        clients.ended(begun[0])
    finally:
        os.close(event)
        os.close(copy)
    assert ["open 0", "close of open 0"] == book.lines


def test_a_foreign_descriptor_of_another_process_is_refused_as_kvm_does(
    clients: Clients, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = os.eventfd(0)
    try:
        mine, _ = clients.named(me(), event)
        assert "open 0" == clients.handle(mine, TIMER, event)
        with a_child() as child:
            theirs, name = clients.named(child, event)
            assert TIMER == name
            with pytest.raises(OSError, match="a virtual machine of another process") as refused:
                clients.handle(theirs, TIMER, event)
            assert errno.EIO == refused.value.errno
            assert ["open 0"] == book.lines
            monkeypatch.setattr("cbit.redirect.clients.same_memory", lambda one, other: True)
            assert "open 0" == clients.handle(theirs, TIMER, event), "a thread in all but name"
    finally:
        os.close(event)


def test_where_the_kernel_does_not_compare_each_number_has_its_handle(
    clients: Clients, sev: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int, *words: object) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("cbit.redirect.linux.syscall", refuse)
    session, _ = clients.named(me(), sev)
    event = os.eventfd(0)
    copy = os.dup(event)
    try:
        assert ("open 0", "open 1") == tuple(
            clients.handle(session, TIMER, number) for number in (event, copy)
        )
    finally:
        os.close(event)
        os.close(copy)


def test_an_open_that_is_refused_is_tried_again(clients: Clients, book: Book, sev: int) -> None:
    session, _ = clients.named(me(), sev)
    book.fails.add("open")
    for _ in range(2):
        with pytest.raises(OSError, match="busy"):
            clients.handle(session, SEV, sev)
    book.fails.clear()
    assert "open 0" == clients.handle(session, SEV, sev)


def test_a_fault_in_one_close_does_not_keep_the_others_open(
    clients: Clients, book: Book, faults: list[BaseException], sev: int
) -> None:
    session, _ = clients.named(me(), sev)
    clients.handle(session, SEV, sev)
    clients.handle(session, SEV_GUEST, sev)
    book.fails.add("close")
    clients.close()
    assert ["close of open 1", "close of open 0"] == book.lines[2:]
    assert 2 == len(faults)


def test_a_thread_that_is_gone_is_nobody(clients: Clients, sev: int) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="gone") as gone:
        clients.named(child, sev)
    assert errno.ESRCH == gone.value.errno


def test_a_number_that_passes_to_another_process_is_that_processs(clients: Clients, sev: int) -> None:
    """As after the end of a thread: its number, remembered, is now another process's."""
    stop, wait = os.pipe()
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        prctl(PR_SET_DUMPABLE, 1)  # whatever another test did to this process
        os.write(begins, b".")
        os.close(wait)
        os.read(stop, 1)
        os._exit(0)
    try:
        os.read(begun, 1)
        mine, _ = clients.named(me(), sev)
        clients._remember(mine, child)  # what was true before
        theirs, name = clients.named(child, sev)
        assert (child, SEV) == (theirs.client.pid, name)
        assert child not in mine.threads
    finally:
        for end in (wait, begun, begins):
            os.close(end)
        os.close(stop)
        os.waitpid(child, 0)
