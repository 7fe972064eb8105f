"""The VMCB between the machine's memory and QEMU: what a hypervisor wrote, and what QEMU gets to see of it.

QEMU reads a copy: the addresses in it (nested tables, permission maps) are the engine's own, its intercepts
are the hypervisor's and the engine's.  After #VMEXIT what hardware writes goes back, and no other byte.

Paper: memory-encryption.md §10.1; the layout is the AMD64 architecture's own.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final, NamedTuple

from cbit.cpu.engine.processor import IOPM, IOPM_SIZE, MSRPM, MSRPM_SIZE
from cbit.cpu.physical import PhysicalPort
from cbit.spec.address import PAGE, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import KeyId


class Intercept(IntFlag):
    """The intercept words at 0x00C and 0x010 as one number; exit code is 0x60 plus the bit."""

    INTR = 1 << 0
    CR0_SEL_WRITE = 1 << 5
    CPUID = 1 << 0x12
    INVD = 1 << 0x16
    HLT = 1 << 0x18
    INVLPGA = 1 << 0x1A
    IOIO = 1 << 0x1B
    MSR = 1 << 0x1C
    TASK_SWITCH = 1 << 0x1D
    FERR_FREEZE = 1 << 0x1E
    SHUTDOWN = 1 << 0x1F
    VMRUN = 1 << 0x20
    VMMCALL = 1 << 0x21
    VMLOAD = 1 << 0x22
    VMSAVE = 1 << 0x23
    STGI = 1 << 0x24
    CLGI = 1 << 0x25
    SKINIT = 1 << 0x26
    RDTSCP = 1 << 0x27
    ICEBP = 1 << 0x28
    WBINVD = 1 << 0x29
    MWAIT_ARMED = 1 << 0x2C
    XSETBV = 1 << 0x2D
    EFER_WRITE_TRAP = 1 << 0x2F


#: A processor without these would go on alone; this engine has no devices, no MSRs and no CPUID of its own.
REQUIRED: Final = (
    Intercept.INTR | Intercept.CPUID | Intercept.HLT | Intercept.IOIO | Intercept.MSR | Intercept.SHUTDOWN
)
#: What QEMU does not look at: a hypervisor that asked for these would wait for ever.
LACKING: Final = (
    Intercept.CR0_SEL_WRITE
    | Intercept.TASK_SWITCH
    | Intercept.FERR_FREEZE
    | Intercept.RDTSCP
    | Intercept.ICEBP
    | Intercept.MWAIT_ARMED
    | Intercept.XSETBV
    | Intercept.EFER_WRITE_TRAP
)
#: Instructions of a hypervisor.  QEMU would execute them on the engine's own memory.
OF_HYPERVISORS: Final = (
    Intercept.INVLPGA
    | Intercept.VMLOAD
    | Intercept.VMSAVE
    | Intercept.STGI
    | Intercept.CLGI
    | Intercept.SKINIT
)
#: What the engine looks at first.  QEMU reports INVD as WBINVD.
OURS: Final = OF_HYPERVISORS | Intercept.WBINVD | Intercept.MSR

UD_INTERCEPT: Final = 1 << 6  # of the exception intercepts at 0x008
SEV_STATUS: Final = 0xC001_0131
_SEV_STATUS_BITS: Final = 2 * (0x2000 * 2 + (SEV_STATUS - 0xC001_0000))  # in the MSR permission map
#: What #VMEXIT writes.
SAVED: Final = (slice(0x060, 0x090), slice(0x0A8, 0x0B0), slice(0x0C8, 0x0D0), slice(0x400, 0x700))
#: Intercepts, ASID and TLB_CONTROL, enables, nCR3; and the control registers: everything that VMRUN looks at.
_CONTROL: Final = (slice(0x000, 0x014), slice(0x058, 0x060), slice(0x090, 0x098), slice(0x0B0, 0x0B8))
_CHECKED: Final = (*_CONTROL, slice(0x4D0, 0x4D8), slice(0x548, 0x560))


class At:
    """Offsets in the VMCB."""

    EXCEPTIONS: Final = 0x008
    INTERCEPTS: Final = 0x00C
    IOPM: Final = 0x040
    MSRPM: Final = 0x048
    EXIT_CODE: Final = 0x070
    EXIT_INFO_1: Final = 0x078
    EXIT_INFO_2: Final = 0x080
    ASID: Final = 0x058
    EVENT: Final = 0x0A8
    NCR3: Final = 0x0B0
    NEXT_RIP: Final = 0x0C8


class Exit(NamedTuple):
    """#VMEXIT as the VMCB reports it.

    Attributes:
        code: EXITCODE.
        info_1: EXITINFO1.
        info_2: EXITINFO2.
    """

    code: int
    info_1: int
    info_2: int


class ControlBlock:
    """A VMCB in the machine's memory, and the copy that QEMU reads."""

    def __init__(self, port: PhysicalPort, spa: Spa, key: KeyId) -> None:
        """Read it.

        Raises:
            AddressError: no such memory.
        """
        self._port, self._spa, self._key = port, spa, key
        self._look(port.read(spa, PAGE, key))

    def _look(self, contents: bytes) -> None:
        self.bytes = contents
        (self.intercepts,) = struct.unpack_from("<Q", self.bytes, At.INTERCEPTS)
        (self.exceptions,) = struct.unpack_from("<I", self.bytes, At.EXCEPTIONS)
        (self.event,) = struct.unpack_from("<Q", self.bytes, At.EVENT)
        (self.asid,) = struct.unpack_from("<I", self.bytes, At.ASID)

    @property
    def checked_fields(self) -> bytes:
        """Everything that decides whether VMRUN accepts this VMCB, and how it begins."""
        return b"".join(self.bytes[part] for part in _CHECKED)

    @property
    def control_fields(self) -> bytes:
        """The part of it that no guest changes: as ``cbit_unchanged`` of native/stubs.c compares it."""
        return b"".join(self.bytes[part] for part in _CONTROL)

    def require_modelled(self) -> None:
        """Refuse a guest that would need what this engine has not.

        Raises:
            NotModelled: names the intercepts that are missing, or that there are none of.
        """
        if missing := REQUIRED & ~self.intercepts:
            raise NotModelled(f"executing a guest without intercepting {_names(missing)}")
        if lacking := LACKING & self.intercepts:
            raise NotModelled(f"intercepting {_names(lacking)}")

    def intercepts_exit(self, code: int) -> bool:
        """Whether the hypervisor asked for an exit of 0x60 … 0x9F."""
        return bool(self.intercepts >> (code - 0x60) & 1)

    def permission_maps(self, mask: int) -> dict[int, bytes]:
        """Read the I/O and MSR permission maps; reading SEV_STATUS cannot be intercepted and is the engine's.

        Args:
            mask: the address bits that exist.
        """
        iopm, msrpm = struct.unpack_from("<QQ", self.bytes, At.IOPM)
        msrs = bytearray(self._read(msrpm & mask, MSRPM_SIZE))
        msrs[_SEV_STATUS_BITS // 8] |= 3 << _SEV_STATUS_BITS % 8
        return {IOPM: self._read(iopm & mask, IOPM_SIZE), MSRPM: bytes(msrs)}

    def save(self, page: memoryview) -> Exit:
        """Write what #VMEXIT changes to the machine's memory."""
        for part in SAVED:
            self._port.write(Spa(self._spa + part.start), bytes(page[part]), self._key)
        return Exit(*struct.unpack_from("<QQQ", page, At.EXIT_CODE))

    def refuse(self) -> None:
        """Write VMEXIT_INVALID."""
        self._port.write(Spa(self._spa + At.EXIT_CODE), b"\xff" * 8, self._key)

    def _read(self, start: int, length: int) -> bytes:
        pages = range(start & -PAGE, start + length, PAGE)
        return b"".join(self._port.read(Spa(page), PAGE, self._key) for page in pages)[:length]


def _names(bits: int) -> str:
    return ", ".join(bit.name or "" for bit in Intercept if bit & bits)


class BareRegisters(ControlBlock):
    """Registers of software on the bare machine, in the form of a VMCB and in no memory of the machine.

    What exits is what the board answers: ports, CPUID, MSRs, HLT.
    """

    def __init__(self, page: memoryview, msrpm: bytes) -> None:
        """Look at the registers.

        Args:
            page: where the core keeps them.
            msrpm: which MSRs the core keeps itself.
        """
        self._page, self._msrpm = page, msrpm
        self._look(bytes(page))

    def permission_maps(self, mask: int) -> dict[int, bytes]:
        """Every port is the board's; of the MSRs those that the map says."""
        return {IOPM: b"\xff" * IOPM_SIZE, MSRPM: self._msrpm}

    def save(self, page: memoryview) -> Exit:
        """Keep what the exit changed."""
        for part in SAVED:
            self._page[part] = page[part]
        return Exit(*struct.unpack_from("<QQQ", page, At.EXIT_CODE))
