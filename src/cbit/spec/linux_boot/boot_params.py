"""The zero page of the Linux/x86 boot protocol, and the setup header inside it.

A bzImage begins with the same page: its setup header stands at the offset where the kernel will look for it.
Addresses and sizes are in bytes, unless a remark says otherwise.

Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.
"""

from __future__ import annotations

from enum import KEEP, IntEnum, IntFlag
from typing import Final

from cbit.spec.wire import Wire, at

HEADER_START: Final = 0x1F1  #: first byte of the setup header
HEADER_LENGTH_AT: Final = 0x201  #: how far past `HEADER_LENGTH_FROM` the header reaches
HEADER_LENGTH_FROM: Final = 0x202
BOOT_FLAG: Final = 0xAA55
MAGIC: Final = b"HdrS"
MOST_E820: Final = 128  #: entries of the memory map


class LoadFlags(IntFlag, boundary=KEEP):
    """Byte 0x211."""

    LOADED_HIGH = 1 << 0  #: a bzImage: its protected-mode part goes above 1 MiB
    KEEP_SEGMENTS = 1 << 6
    CAN_USE_HEAP = 1 << 7


class XLoadFlags(IntFlag, boundary=KEEP):
    """Word 0x236, from protocol 2.12 on."""

    KERNEL_64 = 1 << 0  #: a 64-bit kernel


class MemoryType(IntEnum):
    """What a range of the memory map is."""

    RAM = 1
    RESERVED = 2
    ACPI = 3  #: ACPI tables; an SEV guest reads them with C=1
    NVS = 4


class MemoryRange(Wire, size=20):
    """One entry of the memory map (e820)."""

    base: int = at(0x00, 8)
    length: int = at(0x08, 8)
    kind: MemoryType = at(0x10, 4)


class BootParams(Wire, size=0x1000):
    """The zero page: what a boot loader tells the kernel; ESI points to it."""

    acpi_rsdp_addr: int = at(0x070, 8, default=0)
    e820_entries: int = at(0x1E8, 1, default=0)
    setup_sects: int = at(0x1F1, 1, default=0)  # in sectors of 512 bytes; 0 means 4
    root_flags: int = at(0x1F2, 2, default=0)
    syssize: int = at(0x1F4, 4, default=0)  # in 16 bytes
    ram_size: int = at(0x1F8, 2, default=0)
    vid_mode: int = at(0x1FA, 2, default=0)
    root_dev: int = at(0x1FC, 2, default=0)
    boot_flag: int = at(0x1FE, 2, default=0)
    jump: int = at(0x200, 2, default=0)  # a short jump; its distance is the header's length
    header: bytes = at(0x202, 4, default=bytes(4))
    version: int = at(0x206, 2, default=0)
    realmode_swtch: int = at(0x208, 4, default=0)
    start_sys_seg: int = at(0x20C, 2, default=0)
    kernel_version: int = at(0x20E, 2, default=0)
    type_of_loader: int = at(0x210, 1, default=0)
    loadflags: LoadFlags = at(0x211, 1, default=LoadFlags(0))
    setup_move_size: int = at(0x212, 2, default=0)
    code32_start: int = at(0x214, 4, default=0)
    ramdisk_image: int = at(0x218, 4, default=0)
    ramdisk_size: int = at(0x21C, 4, default=0)
    bootsect_kludge: int = at(0x220, 4, default=0)
    heap_end_ptr: int = at(0x224, 2, default=0)
    ext_loader_ver: int = at(0x226, 1, default=0)
    ext_loader_type: int = at(0x227, 1, default=0)
    cmd_line_ptr: int = at(0x228, 4, default=0)
    initrd_addr_max: int = at(0x22C, 4, default=0)  # the last byte that may be the initrd's
    kernel_alignment: int = at(0x230, 4, default=0)
    relocatable_kernel: int = at(0x234, 1, default=0)
    min_alignment: int = at(0x235, 1, default=0)  # as a power of two
    xloadflags: XLoadFlags = at(0x236, 2, default=XLoadFlags(0))
    cmdline_size: int = at(0x238, 4, default=0)  # without the NUL
    hardware_subarch: int = at(0x23C, 4, default=0)
    hardware_subarch_data: int = at(0x240, 8, default=0)
    payload_offset: int = at(0x248, 4, default=0)
    payload_length: int = at(0x24C, 4, default=0)
    setup_data: int = at(0x250, 8, default=0)
    pref_address: int = at(0x258, 8, default=0)
    init_size: int = at(0x260, 4, default=0)  # memory that the kernel wants from its start on
    handover_offset: int = at(0x264, 4, default=0)
    kernel_info_offset: int = at(0x268, 4, default=0)
    e820_table: bytes = at(0x2D0, MemoryRange.SIZE * MOST_E820, default=bytes(MemoryRange.SIZE * MOST_E820))


def memory_map(ranges: list[MemoryRange]) -> bytes:
    """Lay out the table of a zero page."""
    return b"".join(map(bytes, ranges)).ljust(MemoryRange.SIZE * MOST_E820, b"\x00")
