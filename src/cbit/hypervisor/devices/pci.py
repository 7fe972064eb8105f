"""PCI: configuration mechanism 1, one bus, functions with one I/O window each, shared interrupt lines.

    0xCF8 address: 31 enable | 23..16 bus | 15..11 device | 10..8 function | 7..2 register    0xCFC data

No function has memory windows: a hypervisor cannot read the instructions of a guest with SEV, so it could not
know what an access to such a window wants.  Accesses to ports come with all that is to know.

Source: PCI Local Bus Specification 3.0, chapters 3.2.2.3 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cbit.hypervisor.devices.pic import Interrupts
from cbit.hypervisor.devices.ports import ALL_PORTS, Ports, ReadWide, WriteWide
from cbit.spec.acpi.board import PCI_CONFIG_ADDRESS, PCI_CONFIG_DATA, PCI_LINES, PCI_SLOTS, pci_line
from cbit.trace import SILENT, Trace

WINDOW: Final = 0x100  #: bytes of a function's window; PCI allows no more in I/O space
FIRST_WINDOW: Final = 0xC000  #: where firmware would put the window of slot 0

_VENDOR, _DEVICE, _COMMAND, _STATUS, _REVISION, _CLASS = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09
_BAR0, _SUBSYSTEM_VENDOR, _SUBSYSTEM, _CAPABILITIES, _LINE, _PIN = 0x10, 0x2C, 0x2E, 0x34, 0x3C, 0x3D
_FIRST_CAPABILITY: Final = 0x40
_HAS_CAPABILITIES: Final = 1 << 4
_INTERRUPT_STATUS: Final = 1 << 3
_IO_SPACE: Final = 1


COMMAND_IO: Final = 1 << 0
COMMAND_BUS_MASTER: Final = 1 << 2
COMMAND_INTX_DISABLE: Final = 1 << 10


class Function:
    """Function 0 of one slot: its configuration space; a subclass answers in its window.

    Mutable.

    Args:
        vendor: who made it.
        device: what it is.
        class_code: base class, sub-class and interface, as one number of 24 bits.
        revision: of the device.
        subsystem: vendor and device of the board.
        capabilities: their bytes from the length on, by id; linked in this order.
        window: whether it has an I/O window, and with it an interrupt pin.
    """

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        capabilities: tuple[tuple[int, bytes], ...] = (),
        window: bool = True,
    ) -> None:
        self.config = bytearray(256)
        self._writable = bytearray(256)
        self._put(_VENDOR, 2, vendor)
        self._put(_DEVICE, 2, device)
        self._put(_REVISION, 1, revision)
        self._put(_CLASS, 3, class_code)
        self._put(_SUBSYSTEM_VENDOR, 2, subsystem[0])
        self._put(_SUBSYSTEM, 2, subsystem[1])
        self._put(_COMMAND, 2, 0, writable=COMMAND_IO | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE)
        self._has_window = window
        if window:
            self._put(_BAR0, 4, _IO_SPACE, writable=~(WINDOW - 1) & 0xFFFF_FFFF)
            self._put(_LINE, 1, 0, writable=0xFF)
            self._put(_PIN, 1, 1)
        self._link(capabilities)
        self.wire = Wire()

    def _link(self, capabilities: tuple[tuple[int, bytes], ...]) -> None:
        self.capability_at: list[int] = []
        at, link = _FIRST_CAPABILITY, _CAPABILITIES
        for kind, body in capabilities:
            self._put(link, 1, at)
            self._put(at, 1, kind)
            self.config[at + 2 : at + 2 + len(body)] = body
            self.capability_at.append(at)
            at, link = at + (2 + len(body) + 3) // 4 * 4, at + 1
        if capabilities:
            self._put(_STATUS, 2, _HAS_CAPABILITIES)

    def _put(self, at: int, size: int, value: int, *, writable: int = 0) -> None:
        self.config[at : at + size] = value.to_bytes(size, "little")
        self._writable[at : at + size] = writable.to_bytes(size, "little")

    def make_writable(self, at: int, size: int) -> None:
        """Let software write to bytes of configuration space."""
        self._writable[at : at + size] = b"\xff" * size

    def place(self, slot: int, wire: Wire) -> None:
        """Do what firmware does: assign window and interrupt line."""
        self.wire = wire
        if self._has_window:
            self._put(
                _BAR0, 4, FIRST_WINDOW + WINDOW * slot | _IO_SPACE, writable=~(WINDOW - 1) & 0xFFFF_FFFF
            )
            self.config[_LINE] = pci_line(slot)

    @property
    def command(self) -> int:
        """The command register."""
        return int.from_bytes(self.config[_COMMAND : _COMMAND + 2], "little")

    @property
    def window(self) -> range | None:
        """The ports at which it answers now."""
        base = int.from_bytes(self.config[_BAR0 : _BAR0 + 4], "little") & ~(WINDOW - 1)
        if not self._has_window or not self.command & COMMAND_IO or not 0 < base <= ALL_PORTS - WINDOW:
            return None
        return range(base, base + WINDOW)

    def interrupt(self) -> bool:
        """Whether it asks for attention."""
        return False

    def drive_wire(self) -> None:
        """Let INTA# follow what the function wants and what the command register permits."""
        self.wire.drive(high=self.interrupt() and not self.command & COMMAND_INTX_DISABLE)

    def read_config(self, at: int, size: int) -> int:
        """Read configuration space inside one double word."""
        self.config[_STATUS] = (
            self.config[_STATUS] & ~_INTERRUPT_STATUS | _INTERRUPT_STATUS * self.interrupt()
        )
        return int.from_bytes(self.config[at : at + size], "little")

    def write_config(self, at: int, size: int, value: int) -> None:
        """Write configuration space inside one double word: bits that are not writable stay."""
        for i in range(size):
            free = self._writable[at + i]
            self.config[at + i] = self.config[at + i] & ~free | value >> 8 * i & free
        self.drive_wire()

    def read(self, offset: int, size: int) -> int:
        """Read in the window."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write in the window."""


class Wire:
    """One function's end of an interrupt line; at large until it is placed."""

    def __init__(self, line: Line | None = None, user: int = 0) -> None:
        self._line = line
        self._user = user

    def drive(self, *, high: bool) -> None:
        """Pull the line, or let it go."""
        if self._line is not None:
            self._line.drive(self._user, high=high)


class Line:
    """An interrupt line that several functions share: it is active while one of them pulls it.

    Mutable.
    """

    def __init__(self, interrupts: Interrupts, line: int) -> None:
        self._interrupts = interrupts
        self._number = line
        self._users = 0

    def drive(self, user: int, *, high: bool) -> None:
        """Pull the line for one of its users, or let it go."""
        users = self._users | 1 << user if high else self._users & ~(1 << user)
        if users != self._users:
            self._users = users
            self._interrupts.set_line(self._number, high=bool(users))


class PciBus:
    """Bus 0 and the way to its configuration spaces.

    Mutable.

    Args:
        functions: by slot.
        interrupts: where the lines end.
        trace: who watches.
    """

    def __init__(
        self, functions: Mapping[int, Function], *, interrupts: Interrupts, trace: Trace = SILENT
    ) -> None:
        if any(not 0 <= slot < PCI_SLOTS for slot in functions):
            raise ValueError(f"a PCI bus has slots 0 to {PCI_SLOTS - 1}")
        self.functions = dict(functions)
        self._address = 0
        self._trace = trace
        self._ports: Ports | None = None
        self._mapped: dict[int, range] = {}
        lines = {number: Line(interrupts, number) for number in PCI_LINES}
        for slot, function in self.functions.items():
            function.place(slot, Wire(lines[pci_line(slot)], slot))

    def attach(self, ports: Ports) -> None:
        """Answer at 0xCF8 … 0xCFF, and in the windows as they are set."""
        self._ports = ports
        ports.wide(range(PCI_CONFIG_ADDRESS, PCI_CONFIG_DATA + 4), self._read, self._write)
        self._map()

    def _found(self, port: int, size: int) -> tuple[Function, int] | None:
        """What an access to the data port means: (function, register)."""
        address, offset = self._address, port - PCI_CONFIG_DATA
        if not address >> 31 or address >> 16 & 0xFFF or address >> 8 & 7 or offset < 0 or offset + size > 4:
            return None
        function = self.functions.get(address >> 11 & 0x1F)
        return None if function is None else (function, (address & 0xFC) + offset)

    def _read(self, port: int, size: int) -> int:
        if port == PCI_CONFIG_ADDRESS and size == 4:
            return self._address
        found = self._found(port, size)
        return (1 << 8 * size) - 1 if found is None else found[0].read_config(found[1], size)

    def _write(self, port: int, size: int, value: int) -> None:
        if port == PCI_CONFIG_ADDRESS and size == 4:
            self._address = (
                value & 0x8FFF_FFFC
            )  # 27..24: more of the register, on northbridges that extend it
            return
        found = self._found(port, size)
        if found is not None:
            found[0].write_config(found[1], size, value)
            self._map()

    def _map(self) -> None:
        """Let every window answer where it is now; of two in one place, the lower slot's."""
        wanted = {
            slot: window
            for slot, function in sorted(self.functions.items())
            if (window := function.window) is not None
        }
        if wanted == self._mapped or self._ports is None:
            return
        for window in self._mapped.values():
            self._ports.release(window)
        self._mapped = {}
        for slot, window in wanted.items():
            if self._ports.is_free(window):
                self._ports.wide(window, *_answers(self.functions[slot], window.start))
                self._mapped[slot] = window
            else:
                self._trace.emit(
                    "hypervisor.devices", "PCI window hidden", "ports are taken", port=window.start
                )


class HostBridge(Function):
    """Slot 0: what makes software believe that there is a bus."""

    def __init__(self) -> None:
        # MODEL CHOICE: the identity of a host bridge that drivers know and leave alone.
        super().__init__(vendor=0x1B36, device=0x0008, class_code=0x060000, window=False)


def _answers(function: Function, base: int) -> tuple[ReadWide, WriteWide]:
    def read(port: int, size: int) -> int:
        return function.read(port - base, size)

    def write(port: int, size: int, value: int) -> None:
        function.write(port - base, size, value)

    return read, write
