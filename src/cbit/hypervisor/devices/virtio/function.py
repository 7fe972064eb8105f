"""A virtio device behind PCI: the modern transport alone, every register in one window of I/O space.

    window   0x00 common   0x40 notification   0x44 interrupt status   0x50 the device's own configuration

Features that every device here insists on: VERSION_1 (no legacy interface), ACCESS_PLATFORM (addresses are
the platform's: under SEV the driver bounces its data through pages that it shares).

Source: virtio 1.1 (OASIS), chapters 2.1, 2.2, 3.1, 4.1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Final, Protocol

from cbit.hypervisor.devices import pci
from cbit.hypervisor.devices.virtio.queue import Dma, Malformed, Queue
from cbit.spec.errors import CbitError
from cbit.trace import SILENT, Trace

VENDOR: Final = 0x1AF4
FIRST_DEVICE: Final = 0x1040
INDIRECT_DESC: Final = 1 << 28
VERSION_1: Final = 1 << 32
ACCESS_PLATFORM: Final = 1 << 33
REQUIRED: Final = VERSION_1 | ACCESS_PLATFORM

COMMON: Final = 0x00
COMMON_SIZE: Final = 0x38
NOTIFY: Final = 0x40
ISR: Final = 0x44
DEVICE: Final = 0x50
_VENDOR_SPECIFIC: Final = 0x09
_NO_VECTOR: Final = 0xFFFF


class CapabilityType(IntEnum):
    """What a virtio capability locates."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5


class Status(IntFlag):
    """The device status."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Isr(IntFlag):
    """Why the device interrupts."""

    QUEUE = 1
    CONFIG = 2


class Device(Protocol):
    """What stands behind the transport.

    Attributes:
        kind: virtio's number for it.
        class_code: PCI's.
        features: what it offers of its own.
        queues: how many it has.
    """

    kind: int
    class_code: int
    features: int
    queues: int

    def config(self) -> bytes:
        """Its configuration, as the driver reads it."""
        ...

    def serve(self, index: int, queue: Queue, dma: Dma) -> None:
        """Do what waits in a queue (errors as ``Queue.chains``)."""
        ...


def _capability(kind: CapabilityType, offset: int, length: int, extra: bytes = b"") -> tuple[int, bytes]:
    """A vendor-specific capability that locates registers in window 0: (id, bytes from its length on)."""
    body = struct.pack("<BBB3xII", 16 + len(extra), kind, 0, offset, length)
    return _VENDOR_SPECIFIC, body + extra


class VirtioFunction(pci.Function):
    """One device on the bus.

    Mutable.

    Attributes:
        status: the device status.
        why_broken: what made the device ask for a reset, if it did.
    """

    def __init__(self, device: Device, dma: Dma, trace: Trace = SILENT) -> None:
        self._device = device
        self._dma = dma
        self._trace = trace
        self._queues = [Queue(dma) for _ in range(device.queues)]
        self._offered = device.features | REQUIRED | INDIRECT_DESC
        self._isr = 0
        self._reset()
        config_size = max(len(device.config()), 4)
        super().__init__(
            vendor=VENDOR,
            device=FIRST_DEVICE + device.kind,
            class_code=device.class_code,
            revision=1,
            subsystem=(VENDOR, FIRST_DEVICE + device.kind),
            capabilities=(
                _capability(CapabilityType.COMMON_CFG, COMMON, COMMON_SIZE),
                _capability(CapabilityType.NOTIFY_CFG, NOTIFY, 4, extra=bytes(4)),  # one port for all queues
                _capability(CapabilityType.ISR_CFG, ISR, 1),
                _capability(CapabilityType.DEVICE_CFG, DEVICE, config_size),
                _capability(CapabilityType.PCI_CFG, 0, 0, extra=bytes(4)),
            ),
        )
        self._access_at = self.capability_at[-1]
        for offset, size in ((4, 1), (8, 4), (12, 4), (16, 4)):  # bar, offset, length, data
            self.make_writable(self._access_at + offset, size)

    @property
    def queues(self) -> Sequence[Queue]:
        """Its queues: the driver has told where they lie."""
        return self._queues

    # ---- the bus

    def interrupt(self) -> bool:
        """Whether it asks for attention."""
        return bool(self._isr)

    def read_config(self, at: int, size: int) -> int:
        """Read configuration space; the access capability's data is the window's."""
        data = self._access_at + 16
        access = self._access() if data <= at < data + 4 else None
        if access is not None:
            self.config[data : data + 4] = self.read(*access).to_bytes(4, "little")
        return super().read_config(at, size)

    def write_config(self, at: int, size: int, value: int) -> None:
        """Write configuration space; the access capability's data goes to the window."""
        super().write_config(at, size, value)
        data = self._access_at + 16
        access = self._access() if data <= at < data + 4 else None
        if access is not None:
            offset, width = access
            self.write(offset, width, int.from_bytes(self.config[data : data + width], "little"))

    def _access(self) -> tuple[int, int] | None:
        """What the access capability names: (offset, size)."""
        at = self._access_at
        offset, length = struct.unpack_from("<II", self.config, at + 8)
        if self.config[at + 4] or length not in (1, 2, 4) or offset % length or offset >= pci.WINDOW:
            return None
        return offset, length

    # ---- the window

    def read(self, offset: int, size: int) -> int:
        """Read a register."""
        if offset == ISR:
            isr, self._isr = self._isr, 0
            self.drive_wire()
            return isr
        if offset < COMMON + COMMON_SIZE:
            return _slice(self._common(), offset - COMMON, size)
        if offset >= DEVICE:
            return _slice(self._device.config(), offset - DEVICE, size)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        if offset == NOTIFY:
            self.notify(value)
        elif offset < COMMON + COMMON_SIZE:
            self._write_common(offset - COMMON, size, value)

    def notify(self, index: int) -> None:
        """Look into a queue: the driver says that something waits, or the device has something to give.

        What is wrong with the queue breaks the device, not the machine.
        """
        alive = self.status & Status.DRIVER_OK and not self.status & Status.NEEDS_RESET
        if not alive or index >= len(self._queues) or not self._queues[index].enabled:
            return
        if not self.command & pci.COMMAND_BUS_MASTER:
            return  # the bus does not let it read memory
        queue = self._queues[index]
        try:
            self._device.serve(index, queue, self._dma)
            if queue.take_interrupt():
                self._raise(Isr.QUEUE)
        except CbitError as error:
            self._break(str(error))

    def _break(self, why: str) -> None:
        self.status |= Status.NEEDS_RESET
        self.why_broken = why
        self._trace.emit("hypervisor.devices", "virtio device needs a reset", why, kind=self._device.kind)
        if self.status & Status.DRIVER_OK:
            self._raise(Isr.CONFIG)

    def _raise(self, reason: Isr) -> None:
        self._isr |= reason
        self.drive_wire()

    def _reset(self) -> None:
        self.status = Status(0)
        self.why_broken = ""
        self._accepted = 0
        self._device_select = self._driver_select = self._queue_select = 0
        self._isr = 0
        for queue in self._queues:
            queue.reset()

    # ---- common configuration

    def _selected(self) -> Queue | None:
        return self._queues[self._queue_select] if self._queue_select < len(self._queues) else None

    def _common(self) -> bytes:
        queue = self._selected()
        return struct.pack(
            "<IIIIHHBBHHHHHQQQ",
            self._device_select,
            _half(self._offered, self._device_select),
            self._driver_select,
            _half(self._accepted, self._driver_select),
            _NO_VECTOR,
            len(self._queues),
            self.status,
            0,  # the configuration never changes
            self._queue_select,
            queue.size if queue else 0,
            _NO_VECTOR,
            queue.enabled if queue else 0,
            0,
            queue.desc if queue else 0,
            queue.driver if queue else 0,
            queue.device if queue else 0,
        )

    def _write_common(self, offset: int, size: int, value: int) -> None:
        """Write a field of its own width; addresses come in halves."""
        match offset, size:
            case 0x00, 4:
                self._device_select = value
            case 0x08, 4:
                self._driver_select = value
            case 0x0C, 4 if self._driver_select < 2 and not self.status & Status.FEATURES_OK:
                shift = 32 * self._driver_select
                self._accepted = self._accepted & ~(0xFFFF_FFFF << shift) | value << shift
            case 0x14, 1:
                self._write_status(value)
            case 0x16, 2:
                self._queue_select = value
            case _:
                self._write_queue(offset, size, value)

    def _write_status(self, value: int) -> None:
        if not value:
            self._reset()
            self.drive_wire()
            return
        asked = Status(value & 0x8F)
        newly = asked & ~self.status
        if newly & Status.FEATURES_OK and (self._accepted & ~self._offered or REQUIRED & ~self._accepted):
            asked &= ~Status.FEATURES_OK  # the driver reads this back
            self._trace.emit("hypervisor.devices", "virtio features refused", features=self._accepted)
        if newly & Status.DRIVER_OK and not (self.status | asked) & Status.FEATURES_OK:
            asked &= ~Status.DRIVER_OK
        self.status |= asked

    def _write_queue(self, offset: int, size: int, value: int) -> None:
        queue = self._selected()
        if queue is None or queue.enabled or not self.status & Status.FEATURES_OK:
            return
        match offset, size:
            case 0x18, 2:
                queue.size = value
            case 0x1C, 2 if value == 1:
                try:
                    queue.enable()
                except Malformed as error:
                    self._break(str(error))
            case ((0x20 | 0x24), 4):
                queue.desc = _with_half(queue.desc, value, high=offset == 0x24)
            case ((0x28 | 0x2C), 4):
                queue.driver = _with_half(queue.driver, value, high=offset == 0x2C)
            case ((0x30 | 0x34), 4):
                queue.device = _with_half(queue.device, value, high=offset == 0x34)


def _slice(data: Sequence[int], offset: int, size: int) -> int:
    return int.from_bytes(bytes(data[offset : offset + size]), "little")


def _half(value: int, select: int) -> int:
    return value >> 32 * select & 0xFFFF_FFFF if select < 2 else 0


def _with_half(value: int, half: int, *, high: bool) -> int:
    return value & 0xFFFF_FFFF | half << 32 if high else value & ~0xFFFF_FFFF | half
