"""The machine as a daemon: one socket, many launchers and control clients, one thread.

    serving(path)  ──  listening socket ──┬── control client: a line in, a line out
                        │                 └── after "attach": a launcher (``attached``), frames
    on_the_machine(path) ── /dev/fuse      ── every program that opens the file (``machine_file``)

Commands of all programs run one after another, as behind the driver's own lock.  While one runs the daemon
waits for its launcher alone, and not for long: one that is silent for ``PATIENCE_S`` is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cbit.driver.client_pages import MemoryRule
from cbit.redirect.attached import Attached, Reasons
from cbit.redirect.backend import Backend
from cbit.redirect.control import BadRequest, carry_out, parse, refuse_unknown, refused
from cbit.redirect.errors import RedirectError
from cbit.redirect.frames import Broken, Channel
from cbit.redirect.lingering import next_events
from cbit.redirect.machine_file import MachineFile
from cbit.spec.errors import CbitError

#: Seconds that a launcher may be silent in the middle of a command.
PATIENCE_S: Final = 5.0
_BACKLOG: Final = 128
_LONGEST_PATH: Final = 107  #: bytes of a socket's path


class SocketInUse(RedirectError):
    """Somebody listens there."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a path, for its owner alone (0600); what a dead daemon left there is replaced.

    The path is taken away at the end, unless somebody else has put another socket there meanwhile.

    Raises:
        SocketInUse: somebody listens there.
        RedirectError: there is something else, or the path is too long.
        OSError: the folder is missing or not writable.
    """
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    staging = path.with_name(f"{path.name}.{os.getpid()}")
    if len(os.fsencode(staging)) > _LONGEST_PATH:
        sock.close()
        raise RedirectError(f"{path}: a socket's path has at most {_LONGEST_PATH - 8} bytes")
    before = os.umask(0o177)
    try:
        sock.bind(str(staging))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.umask(before)
    try:
        sock.listen(_BACKLOG)
        ours = os.lstat(staging)
        os.rename(staging, path)  # whoever finds it can connect at once
    except BaseException:
        sock.close()
        staging.unlink(missing_ok=True)
        raise
    try:
        yield sock
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            there = os.lstat(path)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                path.unlink()


def _clear(path: Path) -> None:
    """Find out whether anybody listens there; what nobody listens on stays, to be replaced in one step."""
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise RedirectError(f"{path} exists and is no socket: remove it, or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.setblocking(False)
        try:
            knock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    raise SocketInUse(f"{path} is in use: another cbit listens there")


class Daemon:
    """Serves one machine until it is told to stop.

    Attributes:
        backend: the machine.
    """

    def __init__(
        self,
        backend: Backend,
        sock: socket.socket,
        reasons: Reasons,
        *,
        log: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """Take over a listening socket, which stays its owner's.

        Args:
            backend: the machine.
            sock: it listens.
            reasons: where the machine's trace puts why a command is refused.
            log: writes one line.
            clock: seconds that only go forward.
        """
        self.backend = backend
        self._socket, self._reasons, self._log, self._clock = sock, reasons, log, clock
        self._channels: dict[int, Channel] = {}
        self._attached: dict[int, Attached] = {}
        self._files: dict[int, MachineFile] = {}
        self._count = 0
        self._stopping = False
        self._poll = select.epoll()
        self._alarm, self._bell = socket.socketpair()
        self._alarm.setblocking(False)
        self._bell.setblocking(False)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        sock.setblocking(False)
        self._poll.register(sock.fileno(), select.EPOLLIN)
        self._poll.register(self._alarm.fileno(), select.EPOLLIN)

    @property
    def wake_up(self) -> int:
        """The descriptor that a signal handler writes to (``signal.set_wakeup_fd``)."""
        return self._bell.fileno()

    def serve_file(self, file: MachineFile) -> None:
        """Serve a file of the machine's too; it stays its owner's."""
        self._files[file.file.fileno()] = file
        self._poll.register(file.file.fileno(), select.EPOLLIN)

    def serves(self, path: Path) -> bool:
        """Tell whether a path leads to a file that this daemon serves."""
        return any(one.is_at(path) for one in self._files.values())

    def stop(self) -> None:
        """End ``run`` after what is being done; safe in a signal handler."""
        self._stopping = True

    def status(self) -> dict[str, object]:
        """Say what the machine is and who uses it."""
        clients = [
            {
                "name": one.name,
                "guest_memory": one.guest_memory,
                "handles": len(one.handles),
                "commands": one.commands,
            }
            for one in self._attached.values()
        ]
        return self.backend.status() | {
            "clients": clients,
            "devices": [one.status() for one in self._files.values()],
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    def run(self) -> None:
        """Serve until ``stop``."""
        door, alarm = self._socket.fileno(), self._alarm.fileno()
        while not self._stopping:
            for number, _ in next_events(self._poll):
                if number in self._files:
                    self._serve_file(number)
                elif number in self._channels:  # and not one that an earlier event closed
                    self._receive(number)
                elif number == door:
                    self._accept()
                elif number == alarm:
                    self._alarm.recv(4096)

    def close(self) -> None:
        """Close every connection, and what it had open."""
        for number in list(self._channels):
            self._end(number, "")
        self._poll.close()
        self._alarm.close()
        self._bell.close()
        os.close(self._spare)

    def _serve_file(self, number: int) -> None:
        if not self._files[number].file.serve():
            self._poll.unregister(number)
            path = self._files.pop(number).path
            self._log(f"{path} was unmounted: no program finds the machine there any more")

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            self._turn_away()
            return
        channel = Channel(sock, clock=self._clock, patience=PATIENCE_S)
        self._channels[channel.fileno()] = channel
        self._poll.register(channel.fileno(), select.EPOLLIN)

    def _turn_away(self) -> None:
        """Close a connection that there is no descriptor for, or it would ask for ever."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._socket.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._log("too many connections: one was turned away")

    def _receive(self, number: int) -> None:
        channel = self._channels[number]
        try:
            alive = channel.receive()
            while not self._stopping and self._step(number, channel):
                pass
        except Broken as broken:
            self._end(number, str(broken))
            return
        if not alive:
            self._end(number, "")

    def _step(self, number: int, channel: Channel) -> bool:
        """Do one thing that a client asks; False when nothing whole has arrived."""
        attached = self._attached.get(number)
        if attached is not None:
            frame = channel.frame()
            if frame is not None:
                attached.serve(frame)
            return frame is not None
        try:
            line = channel.line()
        except Broken as broken:  # the connection ends, and not without a word
            _tell(channel, refused(broken))
            raise
        if line is None:
            return False
        _tell(channel, self._answer(number, channel, line))
        return True

    def _answer(self, number: int, channel: Channel, line: bytes) -> dict[str, object]:
        try:
            given = parse(line)
            if given["do"] == "attach":
                return {"ok": True, "result": self._attach(number, channel, given)}
            result = carry_out(self, given)
            if given["do"] != "status":
                self._log(f"{given['do']}: done")
            return {"ok": True, "result": result}
        except (CbitError, OSError, ValueError) as error:
            answer = refused(error)
            self._log(f"a request is refused: {answer['reasons']}")
            return answer
        except Exception as error:
            self._log(f"fault of the emulator: {error!r}")
            return {"ok": False, "reasons": [f"fault of the emulator: {error!r}"]}

    def _attach(self, number: int, channel: Channel, given: dict[str, object]) -> dict[str, object]:
        refuse_unknown(given, ("files", "guest_memory"))
        files, rule = given.get("files"), given.get("guest_memory", MemoryRule.ENCRYPTED)
        if rule not in tuple(MemoryRule):
            raise BadRequest(f"guest_memory is {rule!r}: {' or '.join(MemoryRule)}")
        devices = self.backend.devices(MemoryRule(str(rule)))
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise BadRequest("files is a list of the paths that the launcher serves")
        if unknown := [name for name in files if name not in devices]:
            raise BadRequest(f"this machine does not serve {', '.join(unknown)}")
        self._count += 1
        name = f"client {self._count}"
        served = [(path, devices[path]) for path in files]
        self._attached[number] = Attached(name, channel, served, str(rule), self._reasons, self._log)
        self._log(f"{name} is there; guest memory: {rule}")
        return {"name": name, **self.backend.status()}

    def _end(self, number: int, why: str) -> None:
        channel = self._channels.pop(number)
        self._poll.unregister(number)
        attached = self._attached.pop(number, None)
        channel.close()
        name = attached.name if attached else "a connection"
        if attached is not None:
            attached.close()
        if why or attached:
            self._log(f"{name} is cut off: {why}" if why else f"{name} is gone")


def _tell(channel: Channel, answer: dict[str, object]) -> None:
    channel.send_bytes(json.dumps(answer).encode() + b"\n")
