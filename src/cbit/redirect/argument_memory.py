"""A caller's memory where the kernel itself moves what the ioctl's argument points at.

    argument .. argument + n      the bytes came with the request, and go back with the answer
    everywhere else               process_memory, while the caller waits

At the end the kernel copies the bytes that go back over the argument; so whatever a command wrote there
meanwhile has to be in them, and what was never written there is not sent at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from cbit.driver.caller_memory import CallerMemory
from cbit.redirect.process_memory import Buffer


class ArgumentMemory:
    """The memory of the caller of one command; raises what ``process_memory.ClientMemory`` raises.

    Args:
        memory: all of it.
        argument: where the command's own structure is.
        data: what is there, as the kernel copied it.
        out_size: bytes that the kernel copies back.
    """

    __slots__ = ("_argument", "_data", "_dirty", "_end", "_memory", "_out_end")

    def __init__(self, memory: CallerMemory, argument: int, data: Buffer, *, out_size: int) -> None:
        self._memory, self._argument, self._data = memory, argument, bytearray(data)
        self._end = argument + len(data)
        self._out_end = argument + min(out_size, len(data))
        self._dirty = False

    @property
    def out(self) -> bytes:
        """What the kernel is to copy over the argument; nothing if the command wrote nothing there."""
        return bytes(self._data[: self._out_end - self._argument]) if self._dirty else b""

    def read(self, address: int, length: int) -> bytes:
        """Read exactly ``length`` bytes."""
        at = address - self._argument
        if at >= 0 and address + length <= self._end:
            return bytes(self._data[at : at + length])
        data = self._memory.read(address, length)
        if self._dirty and self._overlaps(address, length):
            data = self._laid_over(address, bytearray(data))
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``."""
        if not self._keep(address, data):
            self._memory.write(address, data)

    def write_all(self, writes: Sequence[tuple[int, bytes]]) -> None:
        """Make several writes; all are tried, and the first fault is raised."""
        # In their order: a later one may lie over an earlier one, in the argument.
        if others := [write for write in writes if not self._keep(*write)]:
            self._memory.write_all(others)

    def _keep(self, address: int, data: bytes) -> bool:
        """Remember what of it lies in the argument; True if that is all of it, and the kernel brings it."""
        end = address + len(data)
        first, last = max(address, self._argument), min(end, self._end)
        if first >= last:
            return False
        at = self._argument
        self._data[first - at : last - at] = memoryview(data)[first - address : last - address]
        self._dirty = self._dirty or first < self._out_end
        return address >= at and end <= self._out_end

    def _overlaps(self, address: int, length: int) -> bool:
        return address < self._out_end and address + length > self._argument

    def _laid_over(self, address: int, room: bytearray) -> bytes:
        """Show in what was read what has been written and is still on its way."""
        first, last = max(address, self._argument), min(address + len(room), self._out_end)
        at = self._argument
        room[first - address : last - address] = self._data[first - at : last - at]
        return bytes(room)
