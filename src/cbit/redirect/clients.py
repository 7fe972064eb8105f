"""Who calls: client processes, from their first command to their end, with what they have open."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from cbit.redirect.descriptor_limit import NO_MORE, Spare
from cbit.redirect.descriptors import Descriptors
from cbit.redirect.device import Client, Device
from cbit.redirect.linux import same_file, same_memory

AnyDevice = Device[Any]
Key = tuple[str, int, bool]

#: Threads of one process that are remembered; past it all are forgotten and asked for again.
_THREADS: Final = 4096
_NO_NUMBER: Final = -1


class Session:
    """One client process with its open handles.

    Attributes:
        client: it.
        pidfd: hears of its end; None where there was no descriptor left for that.
        begun: when it began, in clock ticks since the computer did: whoever has its number later began later.
        handles: what it has open.
        threads: those of its threads that have called.
    """

    def __init__(self, client: Client, pidfd: int | None, begun: int) -> None:
        self.client = client
        self.pidfd = pidfd
        self.begun = begun
        self.handles: dict[Key, Any] = {}
        self.threads: set[int] = set()


class Clients:
    """All client processes, from their first command to their end.

    Args:
        devices: what they use.
        descriptors: what their numbers stand for.
        begun: told of each new one by a descriptor that becomes readable when it has ended, for ``ended``;
            also of one whose first command is good for nothing.
        failed: told of faults of ours.
    """

    def __init__(
        self,
        devices: Mapping[str, AnyDevice],
        descriptors: Descriptors,
        *,
        begun: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._devices = devices
        self._descriptors = descriptors
        self._begun = begun
        self._failed = failed
        self._sessions: dict[int, Session] = {}
        self._process_of: dict[int, int] = {}
        self._unwatched: dict[int, None] = {}  # in the order in which they came
        self._spare = Spare()
        self._process = self._thread = 0  # the one being served: its view of descriptors counts

    def __len__(self) -> int:
        return len(self._sessions)

    def named(self, thread: int, number: int) -> tuple[Session, str | None]:
        """Return the session of a calling thread, and what its number stands for; raises OSError."""
        self._thread = thread
        process = self._process_of.get(thread)
        if process in self._unwatched:
            self._sweep_unwatched([process])
            process = self._process_of.get(thread)
        if process is not None:
            self._process = process
            try:
                return self._sessions[process], self._descriptors.name(process, thread, number)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise
        # New to us, or the number has passed to a thread of another process.
        session = self._session(self._spare.look(partial(process_of, thread)))
        self._remember(session, thread)
        self._process = session.client.pid
        return session, self._descriptors.name(session.client.pid, thread, number)

    def handle(self, session: Session, name: str, number: int) -> Any:
        """Return the session's handle on a device, opened if need be; raises what the device raises."""
        if self._descriptors.is_given(name):
            return self._descriptors.given(session.client.pid, self._thread, number)
        writable = self._descriptors.is_writable(session.client.pid, self._thread, number)
        key = (name, number if self._descriptors.is_foreign(name) else _NO_NUMBER, writable)
        if key not in session.handles:
            shared = self._of_another_number(session, name, number) if key[1] != _NO_NUMBER else None
            opened = self._devices[name].open(session.client, writable=writable) if shared is None else shared
            session.handles[key] = opened
        return session.handles[key]

    def _of_another_number(self, session: Session, name: str, number: int) -> Any | None:
        """Find the handle of a foreign descriptor under another number, which dup gave it.

        Raises:
            OSError: EIO if it is another process's, by fork or however it came: a virtual machine belongs
                to one memory, and so KVM answers.
        """
        asked = session.client.pid, number
        for other in sorted(self._sessions.values(), key=lambda other: other is not session):
            process = other.client.pid
            for (link, known, _), handle in other.handles.items():
                if link != name or not same_file(asked, (process, known)):
                    continue
                if other is session or same_memory(asked[0], process):
                    return handle
                raise OSError(errno.EIO, f"descriptor {number} is a virtual machine of another process")
        return None

    def pidfds(self) -> Iterable[int]:
        """Return the descriptors that become readable when a client has ended."""
        return [session.pidfd for session in self._sessions.values() if session.pidfd is not None]

    def ended(self, pidfd: int) -> None:
        """Close what an ended client had open, the latest first."""
        self._end(next(one for one in self._sessions.values() if one.pidfd == pidfd))
        os.close(pidfd)

    def _end(self, session: Session) -> None:
        del self._sessions[session.client.pid]
        self._unwatched.pop(session.client.pid, None)
        for thread in session.threads:
            self._process_of.pop(thread, None)
        while session.handles:
            (name, _, _), handle = session.handles.popitem()
            if not any(handle is one for one in session.handles.values()):
                self._close(name, handle)
        self._descriptors.left(session.client.pid)

    def sweep(self, session: Session) -> None:
        """Close the handles of foreign descriptors that a process does not have any more.

        A number that is closed and given out again is another object, and nothing tells but this, asked
        before the kernel makes the next one.
        """
        process = session.client.pid
        for key in [key for key in session.handles if self._descriptors.is_foreign(key[0])]:
            try:
                there = self._descriptors.name(process, self._thread, key[1])
            except OSError:
                there = None
            if there != key[0]:
                self._close(key[0], session.handles.pop(key))

    def close(self) -> None:
        """End all clients."""
        for pidfd in self.pidfds():
            self.ended(pidfd)
        for session in list(self._sessions.values()):
            self._end(session)
        self._descriptors.close()
        self._spare.close()

    def _close(self, name: str, handle: Any) -> None:
        """Close a handle, unless it is somebody's under another number."""
        if self._descriptors.is_foreign(name) and any(
            handle is one for other in self._sessions.values() for one in other.handles.values()
        ):
            return
        try:
            self._devices[name].close(handle)
        except Exception as error:  # the other handles are to be closed all the same
            self._failed(error)

    def _session(self, process: int) -> Session:
        if process not in self._sessions:

            def name_of(number: int) -> str | None:
                # Of whoever is being served: a virtual machine may be another process's by now.
                return self._descriptors.name(self._process, self._thread, number)

            self._sweep_unwatched(list(self._unwatched))
            pidfd = self._watch(process)
            begun = self._spare.look(partial(begun_at, process)) if pidfd is None else 0
            self._sessions[process] = Session(Client(process, name_of), pidfd, begun)
            if pidfd is None:
                self._unwatched[process] = None
            else:
                self._begun(pidfd)
        return self._sessions[process]

    def _watch(self, process: int) -> int | None:
        """Make a descriptor that hears of a process's end; None if there is no room for one."""
        for _ in range(2):
            try:
                return os.pidfd_open(process)
            except OSError as error:
                if error.errno not in NO_MORE:
                    raise
            self._descriptors.close()  # what is held open only because it is quicker
        return None

    def _sweep_unwatched(self, processes: Iterable[int]) -> None:
        """End those whose end nobody hears of, and who are gone: before their numbers mean somebody else."""
        for process in processes:
            session = self._sessions[process]
            try:
                begun = self._spare.look(partial(begun_at, process))
            except OSError:
                begun = -1
            if begun != session.begun:
                self._end(session)

    def _remember(self, session: Session, thread: int) -> None:
        previous = self._process_of.get(thread)
        if previous in self._sessions:
            self._sessions[previous].threads.discard(thread)
        if len(session.threads) >= _THREADS:
            for forgotten in session.threads:
                del self._process_of[forgotten]
            session.threads.clear()
        session.threads.add(thread)
        self._process_of[thread] = session.client.pid


def process_of(thread: int) -> int:
    """Return the number of the process that a thread belongs to; raises ESRCH."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{thread}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Tgid:"):
                return int(line.split()[1])
    raise OSError(errno.ESRCH, "the caller is gone")


def begun_at(process: int) -> int:
    """Return when a process began, in clock ticks since the computer did; raises ESRCH if it is gone.

    One that has ended, and whose parent has not heard of it, is gone too.
    """
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        fields = [b"X"]
    if fields[0] in {b"X", b"Z"}:
        raise OSError(errno.ESRCH, "the caller is gone")
    return int(fields[19])
