"""The launcher's side of a served machine: its devices, answered through the daemon's socket.

with RemoteMachine(Path("cbit.sock"), trace=trace, clock=time.monotonic) as machine:
    target.serve(machine.devices)
"""

from __future__ import annotations

import errno
import json
import select
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cbit.driver.caller_memory import CallerMemory
from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
)
from cbit.redirect.device import Client
from cbit.redirect.errors import RedirectError
from cbit.redirect.files import SEV_ISSUE_CMD
from cbit.redirect.frames import (
    ANSWER,
    HANDLE,
    IOCTL,
    NUMBER,
    OPEN,
    RANGE,
    Broken,
    Channel,
    Interruptible,
    Kind,
    unpack_done,
)
from cbit.trace import SILENT, Trace

#: What the argument of a request points at, sent along so that nobody has to ask for it.
ARGUMENT_BYTES: Final = {
    SEV_ISSUE_CMD: 16,
    KVM_MEMORY_ENCRYPT_OP: 24,
    KVM_MEMORY_ENCRYPT_REG_REGION: 16,
    KVM_MEMORY_ENCRYPT_UNREG_REGION: 16,
}
_DURING: Final = (Kind.DONE, Kind.READ, Kind.WRITE, Kind.NAME)  #: what a daemon says in a command
PART: Final = "driver"
#: Seconds that the daemon may take to say who it is: it may be busy with a long command.
PATIENCE_S: Final = 60.0
_PAUSE_MS: Final = 50  #: between two attempts to connect to one whose queue is full


class NoMachineThere(RedirectError):
    """Nothing that speaks cbit answers on the socket."""


def ask(path: Path, request: Mapping[str, object], *, clock: Callable[[], float]) -> dict[str, Any]:
    """Send one request to the control channel and return its answer.

    Raises:
        NoMachineThere: nobody answers.
    """
    channel = _connect(path, clock)
    try:
        return _ask(channel, path, request)
    finally:
        channel.close()


class RemoteMachine:
    """A served machine that a launcher is attached to.

    Attributes:
        answer: what the daemon says about the machine: its profile, its guest-memory mode.
        devices: one for each of the wanted files.
    """

    def __init__(
        self,
        path: Path,
        served: tuple[str, ...],
        *,
        clock: Callable[[], float],
        options: Mapping[str, object] | None = None,
        trace: Trace = SILENT,
        launcher: Interruptible | None = None,
    ) -> None:
        """Attach.

        Args:
            path: the daemon's socket.
            served: the paths and links that need a device.
            clock: seconds that only go forward.
            options: what else the daemon is told (guest_memory).
            trace: told why commands are refused, as a local machine tells it.
            launcher: once it is asked to end a daemon that does not answer is not waited for; the machine is
                lost then.

        Raises:
            NoMachineThere: nobody answers.
            RedirectError: the daemon refuses.
        """
        self._channel = _connect(path, clock, launcher)
        self._handles = 0
        self._trace = trace
        self.lost = ""
        try:
            answer = _ask(self._channel, path, {"do": "attach", "files": list(served), **(options or {})})
            if not answer.get("ok"):
                raise RedirectError("; ".join(map(str, answer.get("reasons", ["it gives no reason"]))))
        except BaseException:
            self._channel.close()
            raise
        self._channel.patience = None  # a command takes as long as it takes
        self.answer: dict[str, Any] = answer["result"]
        self.devices = {name: RemoteDevice(self, index) for index, name in enumerate(served)}

    def close(self) -> None:
        """Detach: the daemon closes what this launcher's programs had open."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, index: int, client: Client, *, writable: bool) -> _Handle:
        """Open one of the files for a process."""
        self._handles += 1
        handle = _Handle(self._handles, client)
        body = OPEN.pack(handle.number, client.pid, index, writable)
        try:
            self._channel.send(Kind.OPEN, body)
            result, _, _ = unpack_done(self._channel.wait(Kind.DONE).body)
        except Broken as broken:
            raise self._lose(broken) from None
        if result < 0:
            why = "the machine does not open it"
            self._trace.emit(PART, "the device", why, errno=errno.errorcode.get(-result, ""))
            raise OSError(-result, why)
        return handle

    def ioctl(self, handle: _Handle, request: int, argument: int, memory: CallerMemory) -> int:
        """Let the daemon run one command; it reads and writes the program's memory through us."""
        try:
            return self._ioctl(handle, request, argument, memory)
        except Broken as broken:
            raise self._lose(broken) from None

    def close_handle(self, handle: _Handle) -> None:
        """Say that the process has ended."""
        try:
            self._channel.send(Kind.CLOSE, HANDLE.pack(handle.number))
        except Broken as broken:
            self._lose(broken)

    def _ioctl(self, handle: _Handle, request: int, argument: int, memory: CallerMemory) -> int:
        begun = b""
        if (length := ARGUMENT_BYTES.get(request, 0)) and argument:
            try:
                begun = memory.read(argument, length)
            except OSError as error:
                if error.errno != errno.EFAULT:  # the command itself finds the fault, if it looks there
                    raise
        self._channel.send(Kind.IOCTL, IOCTL.pack(handle.number, request, argument), begun)
        while True:
            kind, body = self._channel.wait(*_DURING)
            if kind == Kind.DONE:
                return self._finish(body, memory)
            self._channel.send(Kind.ANSWER, *_answer(handle, kind, body, memory))

    def _finish(self, body: bytes, memory: CallerMemory) -> int:
        result, writes, reasons = unpack_done(body)
        for what, why in reasons:
            self._trace.emit(PART, what, why)
        try:
            memory.write_all(writes)
        except OSError as fault:
            if result >= 0:
                self._trace.emit(PART, "the answer", fault.strerror or "cannot be written")
                raise
        return result

    def _lose(self, broken: Broken) -> OSError:
        if not self.lost:
            self.lost = str(broken)
            self._channel.close()  # an answer that comes late is no answer to the next command
            self._trace.emit(PART, "the served machine is lost", self.lost)
        return OSError(errno.ENODEV, "the served machine is lost")


@dataclass(frozen=True, slots=True)
class _Handle:
    number: int
    client: Client


class RemoteDevice:
    """One file of the served machine."""

    def __init__(self, machine: RemoteMachine, index: int) -> None:
        self._machine, self._index = machine, index

    def open(self, client: Client, *, writable: bool) -> _Handle:
        """Begin to serve a process."""
        return self._machine.open(self._index, client, writable=writable)

    def ioctl(self, handle: _Handle, request: int, argument: int, memory: CallerMemory) -> int:
        """Run one command."""
        return self._machine.ioctl(handle, request, argument, memory)

    def close(self, handle: _Handle) -> None:
        """The process has ended."""
        self._machine.close_handle(handle)


def _answer(handle: _Handle, kind: int, body: bytes, memory: CallerMemory) -> tuple[bytes, ...]:
    """Do what the command needs done to the program: errno, then bytes."""
    try:
        if kind == Kind.NAME:
            name = handle.client.names(NUMBER.unpack(body)[0])
            return ANSWER.pack(0), (name or "").encode()
        address, length = RANGE.unpack_from(body)
        if kind == Kind.READ:
            return ANSWER.pack(0), memory.read(address, length)
        memory.write(address, body[RANGE.size :])
        return (ANSWER.pack(0),)
    except OSError as error:
        return (ANSWER.pack(error.errno or errno.EIO),)


def _connect(path: Path, clock: Callable[[], float], owner: Interruptible | None = None) -> Channel:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    pause = select.poll()
    if owner is not None:
        pause.register(owner.ending, select.POLLIN)
    until = clock() + PATIENCE_S
    try:
        while not _is_connected(sock, path):
            if pause.poll(_PAUSE_MS) or clock() >= until:
                raise NoMachineThere(f"{path}: whoever listens there lets nobody in")
    except BaseException:
        sock.close()
        raise
    return Channel(sock, clock=clock, patience=PATIENCE_S, owner=owner)


def _is_connected(sock: socket.socket, path: Path) -> bool:
    """Try to connect; False if the daemon has a queue, and it is full."""
    try:
        sock.connect(str(path))
    except BlockingIOError:
        return False
    except OSError as error:
        why = error.strerror or str(error)
        raise NoMachineThere(
            f"{path}: {why}; 'cbit serve --socket {shlex.quote(str(path))}' makes one listen there"
        ) from None
    return True


def _ask(channel: Channel, path: Path, request: Mapping[str, object]) -> dict[str, Any]:
    try:
        channel.send_bytes(json.dumps(request).encode() + b"\n")
        answer = json.loads(channel.wait_line())
    except (Broken, ValueError) as error:
        raise NoMachineThere(f"{path}: whoever listens there is no machine of cbit: {error}") from None
    if not isinstance(answer, dict):
        raise NoMachineThere(f"{path}: whoever listens there is no machine of cbit")
    return answer
