"""The daemon's side of one launcher: frames in, commands run on the machine's devices, answers out."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cbit.driver.caller_memory import write_each
from cbit.redirect.clients import AnyDevice
from cbit.redirect.device import Client
from cbit.redirect.files import SEV
from cbit.redirect.frames import (
    ANSWER,
    HANDLE,
    IOCTL,
    NUMBER,
    OPEN,
    PIECE,
    RANGE,
    Broken,
    Channel,
    Frame,
    Kind,
    pack_done,
)
from cbit.redirect.process_memory import Buffer, Fault, Gone, Write

#: Handles of one launcher: as many processes and virtual machines may use the machine through it at once.
MOST_HANDLES: Final = 65536
_LATE: Final = 1 << 16  #: bytes of writes that wait for the answer

Reasons = list[tuple[str, str]]


class RemoteMemory:
    """A program's memory, reached through its launcher; raises what ``process_memory.ClientMemory`` raises.

    Args:
        channel: to the launcher.
        argument: where the command's own structure is.
        begun: what is there, as the launcher sent it along.
        late: let writes travel with the answer.  A write that faults is then found out after the command;
            that is for commands that undo nothing when their answer cannot be delivered.
    """

    def __init__(self, channel: Channel, argument: int, begun: bytes, *, late: bool) -> None:
        self._channel = channel
        self._argument, self._begun = argument, begun
        self._late_allowed = late
        self._late: list[Write] = []

    def read(self, address: int, length: int) -> bytes:
        """Read exactly ``length`` bytes."""
        if address == self._argument and length == len(self._begun) and not self._late:
            return self._begun
        self._deliver()
        if length > PIECE:
            self._piece(address + length - 1, 1)  # before room is made for it
        room = bytearray()
        for start in range(0, length, PIECE):
            room += self._piece(address + start, min(PIECE, length - start))
        return bytes(room)

    def write(self, address: int, data: Buffer) -> None:
        """Write all of ``data``."""
        self._begun = b""
        if self._late_allowed and len(data) + sum(len(late) for _, late in self._late) <= _LATE:
            self._late.append((address, bytes(data)))
            return
        self._deliver()
        self._write(address, data)

    def write_all(self, writes: Sequence[Write]) -> None:
        """Make several writes; all are tried, and the first fault is raised."""
        write_each(self.write, writes)

    def late(self) -> list[Write]:
        """Take the writes that go along with the answer."""
        late, self._late = self._late, []
        return late

    def _deliver(self) -> None:
        for address, data in self.late():
            self._write(address, data)

    def _write(self, address: int, data: Buffer) -> None:
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            self._channel.send(Kind.WRITE, RANGE.pack(address + start, len(piece)), piece)
            self._checked(address + start)

    def _piece(self, address: int, length: int) -> bytes:
        if address + length > 1 << 64:
            raise Fault(address)
        self._channel.send(Kind.READ, RANGE.pack(address, length))
        data = self._checked(address)
        if len(data) != length:
            raise Broken(f"{len(data)} bytes of memory where {length} were asked for")
        return data

    def _checked(self, address: int) -> bytes:
        number, data = unpack_answer(self._channel.wait(Kind.ANSWER))
        if number == errno.EFAULT:
            raise Fault(address)
        if number == errno.ESRCH:
            raise Gone
        if number:
            raise OSError(number, f"the caller's memory: {os.strerror(number)}")
        return data


def unpack_answer(frame: Frame) -> tuple[int, bytes]:
    """Take errno and bytes apart; raises ``Broken``."""
    try:
        return ANSWER.unpack_from(frame.body)[0], frame.body[ANSWER.size :]
    except struct.error:
        raise Broken("an answer without an errno") from None


@dataclass(slots=True)
class _Open:
    device: AnyDevice
    handle: Any
    client: Client
    late: bool


@dataclass
class Attached:
    """One launcher with what its programs have open; changes with every frame.

    Attributes:
        name: what the log calls it.
        channel: its connection.
        devices: the devices that its files stand for, in its own order.
        guest_memory: what the pages of its virtual machines hold after they have been encrypted.
        reasons: gathers why the command being run is refused; the daemon's trace fills it.
        log: writes one line.
    """

    name: str
    channel: Channel
    devices: Sequence[tuple[str, AnyDevice]]
    guest_memory: str
    reasons: Reasons
    log: Callable[[str], None]
    handles: dict[int, _Open] = field(default_factory=dict)
    commands: int = 0

    def serve(self, frame: Frame) -> None:
        """Do what one frame asks.

        Raises:
            Broken: it makes no sense, or the launcher went away meanwhile.
        """
        try:
            _SERVES[frame.kind](self, frame.body)
        except (KeyError, struct.error, IndexError) as error:
            raise Broken(f"a frame of kind {frame.kind} that makes no sense: {error!r}") from None

    def close(self) -> None:
        """Close what is open, the latest first; whatever goes wrong with one, the others are closed."""
        for number in reversed(list(self.handles)):
            self._close(number)

    def _open(self, body: bytes) -> None:
        number, pid, index, writable = OPEN.unpack(body)
        if number in self.handles or len(self.handles) >= MOST_HANDLES:
            raise Broken(f"handle {number} is open already, or one too many")
        name, device = self.devices[index]
        client = Client(pid, self._name_of)
        result = 0
        try:
            handle = device.open(client, writable=bool(writable))
            self.handles[number] = _Open(device, handle, client, late=name == SEV)
        except OSError as error:
            result = -(error.errno or errno.EIO)
        self.channel.send(Kind.DONE, *pack_done(result, [], []))

    def _ioctl(self, body: bytes) -> None:
        number, request, argument = IOCTL.unpack_from(body)
        opened = self.handles[number]
        memory = RemoteMemory(self.channel, argument, body[IOCTL.size :], late=opened.late)
        self.commands += 1
        self.reasons.clear()
        try:
            answer = opened.device.ioctl(opened.handle, request, argument, memory)
            assert isinstance(answer, int), "a served device gives nothing out: launchers do"
            result = answer
        except Broken:
            raise
        except OSError as error:
            result = -(error.errno or errno.EIO)
        except Exception as error:  # a fault of ours is one client's EIO, not everybody's end
            self.log(f"{self.name}: fault of the emulator: {error!r}")
            result = -errno.EIO
        for what, why in self.reasons:
            self.log(f"{self.name}, process {opened.client.pid}: {what}: {why}")
        self.channel.send(Kind.DONE, *pack_done(result, memory.late(), self.reasons))

    def _close_handle(self, body: bytes) -> None:
        (number,) = HANDLE.unpack(body)
        if number not in self.handles:
            raise Broken(f"handle {number} is not open")
        self._close(number)

    def _close(self, number: int) -> None:
        opened = self.handles.pop(number)
        try:
            opened.device.close(opened.handle)
        except Exception as error:  # the other handles are to be closed all the same
            self.log(f"{self.name}: fault of the emulator: {error!r}")

    def _name_of(self, descriptor: int) -> str | None:
        self.channel.send(Kind.NAME, NUMBER.pack(descriptor & 0xFFFFFFFF))
        number, name = unpack_answer(self.channel.wait(Kind.ANSWER))
        if number:
            raise OSError(number, os.strerror(number))
        return name.decode(errors="replace") or None


_SERVES: Final[Mapping[int, Callable[[Attached, bytes], None]]] = {
    Kind.OPEN: Attached._open,
    Kind.IOCTL: Attached._ioctl,
    Kind.CLOSE: Attached._close_handle,
}
