"""A device that copies memory: the smallest one that needs DMA.

    offset    0             4              8            0xC
    write     address low   address high   length       1: memory to device, 2: device to memory
    read      -             -              -            0: the last copy succeeded; 1: it did not

It drives guest physical addresses and holds no key, so of a private page it gets ciphertext.
"""

from __future__ import annotations

from typing import Final, Protocol

from cbit.hypervisor.devices.ports import Ports
from cbit.spec.address import PAGE, Gpa
from cbit.spec.errors import CbitError

BASE: Final = 0xCB00
TAKE: Final = 1
GIVE: Final = 2
_LOW, _HIGH, _LENGTH, _DO, _SIZE = 0x0, 0x4, 0x8, 0xC, 0x10
_WORD: Final = 0xFFFF_FFFF


class Dma(Protocol):
    """Memory as the device sees it."""

    def read(self, gpa: Gpa, length: int) -> bytes:
        """Read guest physical memory."""
        ...

    def write(self, gpa: Gpa, data: bytes) -> None:
        """Write guest physical memory."""
        ...


class Copier:
    """The device.

    Mutable.

    Attributes:
        buffer: its own memory: what it took last, or what it will give; zeros follow.
        failed: whether the last copy failed.
    """

    def __init__(self, dma: Dma, ports: Ports) -> None:
        """Attach it to a guest's memory and ports."""
        self.buffer = b""
        self.failed = False
        self._dma = dma
        self._words = {_LOW: 0, _HIGH: 0, _LENGTH: 0}
        ports.wide(range(BASE, BASE + _SIZE), self._read, self._write)

    def load(self, data: bytes) -> None:
        """Put something into the device that it will give.

        Raises:
            ValueError: more than it holds.
        """
        if len(data) > PAGE:
            raise ValueError(f"{len(data)} bytes: the device holds {PAGE}")
        self.buffer = data

    @property
    def registers(self) -> tuple[int, int, int]:
        """Address low, address high, length."""
        return self._words[_LOW], self._words[_HIGH], self._words[_LENGTH]

    def resume(self, registers: tuple[int, int, int], *, buffer: bytes, failed: bool) -> None:
        """Be the device that another one was (errors as ``load``)."""
        self._words = dict(zip((_LOW, _HIGH, _LENGTH), registers, strict=True))
        self.load(buffer)
        self.failed = failed

    def _read(self, port: int, size: int) -> int:
        return int(self.failed) if (port - BASE, size) == (_DO, 4) else (1 << 8 * size) - 1

    def _write(self, port: int, size: int, value: int) -> None:
        at = port - BASE
        if size != 4:
            return
        if at in self._words:
            self._words[at] = value & _WORD
        elif at == _DO:
            self.failed = not self._copy(value)

    def _copy(self, what: int) -> bool:
        """Copy, all or nothing; return whether that could be done."""
        length = self._words[_LENGTH]
        gpa = Gpa(self._words[_LOW] | self._words[_HIGH] << 32)
        if length > PAGE:
            return False
        try:
            if what == TAKE:
                self.load(self._dma.read(gpa, length))
            elif what == GIVE:
                self._dma.write(gpa, self.buffer[:length].ljust(length, b"\0"))
            else:
                return False
        except CbitError:
            return False
        return True
