"""ACPI tables of the guest's board, as firmware would leave them in memory.

    RSDP ── XSDT (and RSDT) ── FADT ── DSDT     ports, power; in AML: PCI bridge and its lines, ISA devices
                                 └── FACS

There is no MADT: the processor has no APIC, and interrupts go through the 8259A pair.

Source: ACPI specification 6.4, chapter 5.
"""

from __future__ import annotations

import struct
from typing import Final

from cbit.spec.acpi import aml, board
from cbit.spec.address import PAGE

_OEM: Final = b"CBIT  "
_TABLE_ID: Final = b"CBITBRD "
_CREATOR: Final = b"CBIT"
_FADT_LENGTH: Final = 244  # revision 3
_IO_SPACE: Final = 1  # address space of a generic address


def tables(base: int) -> bytes:
    """Build all tables for a place in memory.

    Args:
        base: where they will lie, below 4 GiB and on a 64-byte boundary; the RSDP is first.

    Returns:
        Their bytes, padded to whole pages: map them as ACPI data or reserved memory.

    Raises:
        ValueError: they cannot lie there.
    """
    if base % 64 or not 0 <= base <= (1 << 32) - 4 * PAGE:
        raise ValueError(f"ACPI tables at {base:#x}: below 4 GiB, on a boundary of 64 bytes")
    rsdp_size, facs_size = 64, 64
    facs_at = base + rsdp_size
    dsdt_at = facs_at + facs_size
    dsdt = _table(b"DSDT", 2, _dsdt())
    fadt_at = _aligned(dsdt_at + len(dsdt))
    fadt = _table(b"FACP", 3, _fadt(facs=facs_at, dsdt=dsdt_at))
    rsdt_at = _aligned(fadt_at + len(fadt))
    rsdt = _table(b"RSDT", 1, struct.pack("<I", fadt_at))
    xsdt_at = _aligned(rsdt_at + len(rsdt))
    xsdt = _table(b"XSDT", 1, struct.pack("<Q", fadt_at))
    image = bytearray(-(-(xsdt_at + len(xsdt) - base) // PAGE) * PAGE)
    for at, data in (
        (base, _rsdp(rsdt=rsdt_at, xsdt=xsdt_at)),
        (facs_at, struct.pack("<4sII", b"FACS", facs_size, 0).ljust(32, b"\0") + b"\x01"),
        (dsdt_at, dsdt),
        (fadt_at, fadt),
        (rsdt_at, rsdt),
        (xsdt_at, xsdt),
    ):
        image[at - base : at - base + len(data)] = data
    return bytes(image)


def _aligned(address: int) -> int:
    return -(-address // 64) * 64


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OEM, _TABLE_ID, 1, _CREATOR, 1
    )
    whole = bytearray(header + body)
    whole[9] = _checksum(whole)
    return bytes(whole)


def _rsdp(*, rsdt: int, xsdt: int) -> bytes:
    whole = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, rsdt, 36, xsdt, 0))
    whole[8] = _checksum(whole[:20])
    whole[32] = _checksum(whole)
    return bytes(whole)


def _generic(port: int, bits: int) -> bytes:
    """A generic address in I/O space; port 0: there is no such register."""
    access = 1 if bits == 8 else 3 if port == board.PM_TIMER else 2
    return struct.pack("<BBBBQ", _IO_SPACE, bits, 0, access, port) if port else bytes(12)


def _fadt(*, facs: int, dsdt: int) -> bytes:
    """The body after the header; offsets in the comments are the table's."""
    flags = (
        1 << 0  # WBINVD works
        | 1 << 2  # C1 on every processor
        | 1 << 5  # no fixed sleep button; the fixed power button is there
        | 1 << 10  # the reset register is there
    )
    boot = (
        1 << 0  # legacy devices on an ISA bus; bit 1 clear: no 8042 keyboard controller
        | 1 << 2  # no VGA
        | 1 << 3  # no message-signalled interrupts
    )
    body = struct.pack(
        "<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHBI12sBHB",
        *(facs, dsdt),
        *(0, 0, board.SCI),  # 44: reserved, profile unspecified, SCI_INT
        *(0, 0, 0, 0, 0),  # 48: SMI_CMD 0: always in ACPI mode
        *(board.PM1A_EVENT, 0, board.PM1A_CONTROL, 0, 0, board.PM_TIMER, 0, 0),  # 56
        *(4, 2, 0, 4, 0, 0, 0, 0),  # 88: lengths of these
        *(0xFFF, 0xFFF, 0, 0),  # 96: no C2, no C3
        *(0, 0, 0, 0, board.RTC_CENTURY),  # 104
        boot,  # 109
        0,
        flags,  # 112
        _generic(board.RESET_PORT, 8),  # 116
        board.RESET_VALUE,  # 128
        0,  # 129: ARM's boot flags
        0,
    )
    body += struct.pack("<QQ", 0, dsdt)  # 132: the FACS has one address only
    for port, bits in ((board.PM1A_EVENT, 32), (0, 8), (board.PM1A_CONTROL, 16), (0, 8), (0, 8)):
        body += _generic(port, bits)  # 148
    body += _generic(board.PM_TIMER, 32) + bytes(24)  # 208; no general-purpose events
    assert len(body) == _FADT_LENGTH - 36
    return body


def _dsdt() -> bytes:
    nothing = aml.integer(0)
    sleep = aml.integer(board.SLEEP_OFF)
    bridge = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_BBN", nothing),
        aml.name("_UID", nothing),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, 0),
                aml.io_ports(board.PCI_CONFIG_ADDRESS, 8),
                aml.io_window(0x0000, board.PCI_CONFIG_ADDRESS - 1),
                aml.io_window(board.PCI_CONFIG_DATA + 4, 0xFFFF),
            ),
        ),
        aml.name("_PRT", aml.package(*(_route(slot) for slot in range(1, board.PCI_SLOTS)))),
    )
    isa = (
        _isa("PIC", "PNP0000", aml.io_ports(0x20, 2), aml.io_ports(0xA0, 2), aml.io_ports(0x4D0, 2), line=2),
        _isa("TIMR", "PNP0100", aml.io_ports(0x40, 4), line=board.PIT_LINE),
        _isa("SPKR", "PNP0800", aml.io_ports(0x61, 1)),
        _isa("RTC", "PNP0B00", aml.io_ports(0x70, 2), line=board.RTC_LINE),
        _isa("COM1", "PNP0501", aml.io_ports(board.SERIAL_BASE, 8), line=board.SERIAL_LINE),
        _isa("MBRD", "PNP0C02", aml.io_ports(board.PM1A_EVENT, 12), aml.io_ports(0x92, 1)),
    )
    return aml.scope("_SB", bridge, *isa) + aml.name("_S5", aml.package(sleep, sleep, nothing, nothing))


def _route(slot: int) -> bytes:
    """The pin INTA# of a slot ends at a line of the 8259A pair, without a router between."""
    address = slot << 16 | 0xFFFF
    return aml.package(
        aml.integer(address), aml.integer(0), aml.integer(0), aml.integer(board.pci_line(slot))
    )


def _isa(path: str, hid: str, *ports: bytes, line: int | None = None) -> bytes:
    wires = () if line is None else (aml.isa_irq(line),)
    return aml.device(
        path, aml.name("_HID", aml.eisa_id(hid)), aml.name("_CRS", aml.resources(*ports, *wires))
    )
