"""Everything that a directly booted Linux guest starts from, as bytes at guest-physical addresses.

    0x00000  a page of zeros (where a PC has its BIOS data)
    0x01000  descriptor table
    0x02000  zero page
    0x10000  command line
    0x80000  ACPI tables                  } only if there are some
    pref     kernel, unpacks itself up to pref + init_size
    …        initrd, then a page with a hole for the secret; both end where memory ends

The hypervisor loads and measures these regions in this order; the owner computes the same ones from its own
copies of the files.  A launch digest covers contents and no addresses: the layout is a function of the
contents and the memory size, both sides follow it, and each region is padded to whole pages.

Source: Linux, Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cbit.spec.address import GIB, MIB, PAGE, Gpa
from cbit.spec.linux_boot.boot_params import BootParams, MemoryRange, MemoryType, memory_map
from cbit.spec.linux_boot.entry import GDT, EntryState
from cbit.spec.linux_boot.kernel_image import KernelImage, Unbootable
from cbit.spec.linux_boot.secret_page import SECRET_AT, secret_page
from cbit.spec.vmsa import Segment

DEFAULT_MEMORY: Final = 256 * MIB  #: bytes
MOST_MEMORY: Final = 3 * GIB  #: above begins what a PC keeps for devices
ACPI_BASE: Final = Gpa(0x80000)  #: where the ACPI tables go: they contain their own addresses

_GDT_AT, _PARAMS_AT, _CMDLINE_AT = Gpa(0x1000), Gpa(0x2000), Gpa(0x10000)
_LOW_END: Final = 0x9F000  # conventional memory ends here
_HIGH: Final = MIB
_UNKNOWN_LOADER: Final = 0xFF


@dataclass(frozen=True, slots=True)
class BootRegion:
    """Whole pages of guest memory.

    Attributes:
        gpa: where.
        data: what, padded with zeros.
        what: what to call it.
        size: bytes before the padding.
    """

    gpa: Gpa
    data: bytes
    what: str
    size: int

    @classmethod
    def of(cls, gpa: Gpa, data: bytes, what: str) -> BootRegion:
        """Pad some bytes."""
        return cls(gpa, data + bytes(-len(data) % PAGE), what, len(data))

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.gpa + len(self.data)


@dataclass(frozen=True, slots=True)
class BootImage:
    """What to load, what to measure, and how to start.

    Attributes:
        regions: in the order of loading and measuring, which is that of their addresses.
        entry: the virtual CPU's registers.
        memory_size: bytes of guest memory, from 0 on.
        secret_gpa: where LAUNCH_SECRET puts a packet of up to `SECRET_SIZE` bytes.
        acpi: whether there are ACPI tables.
    """

    regions: tuple[BootRegion, ...]
    entry: EntryState
    memory_size: int
    secret_gpa: Gpa
    acpi: bool

    def digest(self) -> bytes:
        """Compute the launch digest of plain SEV: SHA-256 over all regions.

        Paper: launch-inputs.md §1.
        """
        whole = hashlib.sha256()
        for region in self.regions:
            whole.update(region.data)
        return whole.digest()


def boot_image(
    kernel: bytes,
    initrd: bytes = b"",
    *,
    cmdline: str,
    memory_size: int = DEFAULT_MEMORY,
    acpi: bytes = b"",
    secret: bytes = b"",
) -> BootImage:
    """Lay a kernel out in guest memory.

    Args:
        kernel: a bzImage.
        initrd: its initramfs, compressed or not; may be empty.
        cmdline: the whole command line.
        memory_size: bytes of guest memory.
        acpi: ACPI tables made for `ACPI_BASE`; the root pointer (RSDP) stands first.
        secret: what to put into the secret's hole at once: for guests without SEV only.

    Raises:
        Unbootable: no such kernel, or it does not all fit; the message says what and by how much.
        ValueError: a secret that does not fit.
    """
    image = KernelImage.parse(kernel)
    if memory_size % PAGE or not 0 < memory_size <= MOST_MEMORY:
        raise Unbootable(
            f"{memory_size} bytes of memory: whole pages of {PAGE} are wanted, {MOST_MEMORY // MIB}M at most"
        )
    line = _command_line(image, cmdline)
    page = secret_page(secret)
    ramdisk = BootRegion.of(_ramdisk_base(image, len(initrd), memory_size), initrd, "initrd")
    secrets = BootRegion(Gpa(ramdisk.end), page, "secret page", len(page))
    if ACPI_BASE + len(acpi) > _LOW_END:
        raise Unbootable(f"{len(acpi)} bytes of ACPI tables: {_LOW_END - ACPI_BASE} fit")
    tables = BootRegion.of(ACPI_BASE, acpi, "ACPI tables")
    params = _zero_page(image, ramdisk=(ramdisk.gpa, secrets.end), tables=tables, memory_size=memory_size)
    regions = (
        BootRegion.of(Gpa(0), bytes(PAGE), "zeros"),
        BootRegion.of(_GDT_AT, GDT, "descriptor table"),
        BootRegion.of(_PARAMS_AT, params, "zero page"),
        BootRegion.of(_CMDLINE_AT, line, "command line"),
        tables,
        BootRegion.of(Gpa(image.load_address), image.code, "kernel"),
        ramdisk,
        secrets,
    )
    gdtr = Segment(limit=len(GDT) - 1, base=_GDT_AT)
    return BootImage(
        regions=tuple(region for region in regions if region.data),
        entry=EntryState(rip=image.load_address, rsi=_PARAMS_AT, gdtr=gdtr),
        memory_size=memory_size,
        secret_gpa=Gpa(secrets.gpa + SECRET_AT),
        acpi=bool(acpi),
    )


def _command_line(image: KernelImage, cmdline: str) -> bytes:
    line = cmdline.encode(errors="surrogateescape")
    most = min(image.params.cmdline_size, ACPI_BASE - _CMDLINE_AT - 1)
    if len(line) > most:
        raise Unbootable(f"the command line has {len(line)} bytes; this kernel takes {most}")
    if b"\x00" in line:
        raise Unbootable("the command line holds a NUL, which would end it")
    return line + b"\x00"


def _ramdisk_base(image: KernelImage, length: int, memory_size: int) -> Gpa:
    """Place initrd and secret page as high as they may be, and not where the kernel unpacks itself."""
    if memory_size < image.end_address:
        raise Unbootable(
            f"too little memory: the kernel needs {_mib(image.end_address)}M while it starts, "
            f"the guest has {memory_size // MIB}M"
        )
    room = -(-length // PAGE) * PAGE + PAGE
    limit = min(memory_size, image.params.initrd_addr_max + 1) & -PAGE
    base = limit - room
    if base < image.end_address:
        raise Unbootable(
            f"the initrd of {length} bytes does not fit: the kernel needs memory up to "
            f"{image.end_address:#x} and the initrd may reach up to {limit:#x}; "
            f"{_mib(image.end_address + room)}M of memory are the least"
        )
    return Gpa(base)


def _mib(size: int) -> int:
    return -(-size // MIB)


def _zero_page(
    image: KernelImage, *, ramdisk: tuple[int, int], tables: BootRegion, memory_size: int
) -> bytes:
    at, header = image.setup_header
    raw = bytes(at) + header + bytes(BootParams.SIZE - at - len(header))
    ranges = list(_memory_ranges(tables, memory_size))
    start, end = ramdisk
    changes = {
        "acpi_rsdp_addr": tables.gpa if tables.data else 0,
        "e820_entries": len(ranges),
        "e820_table": memory_map(ranges),
        "type_of_loader": _UNKNOWN_LOADER,
        "code32_start": image.load_address,
        "cmd_line_ptr": _CMDLINE_AT,
        "ramdisk_image": start,
        "ramdisk_size": end - start,
    }
    params = BootParams.parse(raw, canonical=False).replace(**changes)
    return params.patched(raw, *changes)


def _memory_ranges(tables: BootRegion, memory_size: int) -> Iterator[MemoryRange]:
    if tables.data:
        yield MemoryRange(base=0, length=ACPI_BASE, kind=MemoryType.RAM)
        # As ACPI memory, and not as reserved: an SEV guest maps these ranges with C=1.
        yield MemoryRange(base=ACPI_BASE, length=len(tables.data), kind=MemoryType.ACPI)
    low = tables.end if tables.data else 0
    yield MemoryRange(base=low, length=_LOW_END - low, kind=MemoryType.RAM)
    yield MemoryRange(base=_HIGH, length=memory_size - _HIGH, kind=MemoryType.RAM)
