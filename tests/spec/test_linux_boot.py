"""The layout of a directly booted Linux: what is loaded, where, and what is refused with which words."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.address import GIB, MIB, PAGE
from cbit.spec.linux_boot import (
    ACPI_BASE,
    SECRET_AT,
    SECRET_SIZE,
    BootImage,
    KernelImage,
    Unbootable,
    boot_image,
    command_line,
    secret_page,
)
from cbit.spec.linux_boot.boot_params import BootParams, LoadFlags, MemoryRange, MemoryType, XLoadFlags
from cbit.testing.kernels import SETUP_SECTORS, a_kernel

CODE = b"startup_32" + bytes(range(256)) * 16


def an_image(**changes: Any) -> BootImage:
    words: dict[str, Any] = {
        "kernel": a_kernel(code=CODE),
        "initrd": b"initrd" * 1000,
        "cmdline": "console=ttyS0",
        "acpi": b"RSD PTR " + bytes(5000),
    }
    return boot_image(**(words | changes))


def memory(image: BootImage) -> dict[str, tuple[int, bytes]]:
    return {region.what: (region.gpa, region.data) for region in image.regions}


def zero_page(image: BootImage) -> BootParams:
    return BootParams.parse(memory(image)["zero page"][1], canonical=False)


def memory_map(image: BootImage) -> list[MemoryRange]:
    page = zero_page(image)
    size = MemoryRange.SIZE
    return [
        MemoryRange.parse(page.e820_table[at : at + size]) for at in range(0, size * page.e820_entries, size)
    ]


def test_the_kernel_stands_where_it_wants_to_be_and_is_entered_there() -> None:
    image = an_image()
    at, data = memory(image)["kernel"]
    assert 16 * MIB == at == image.entry.rip == zero_page(image).code32_start
    assert CODE == data[: len(CODE)]
    assert not any(data[len(CODE) :])


def test_the_registers_are_those_of_the_32_bit_boot_protocol() -> None:
    entry = an_image().entry
    assert (0x11, 0, 0x2, 0) == (entry.cr0, entry.cr4, entry.rflags, entry.efer)  # paging and interrupts off
    assert (0x10, 0x18) == (entry.cs.selector, entry.data.selector)
    assert entry.cs.base == entry.data.base == 0
    assert 0xFFFF_FFFF == entry.cs.limit == entry.data.limit


def test_the_save_area_holds_these_registers_and_otherwise_those_of_reset() -> None:
    entry = an_image().entry
    area = entry.save_area()
    assert (entry.rip, entry.rsi, entry.cr0, entry.rflags) == (area.rip, area.rsi, area.cr0, area.rflags)
    assert [entry.data] * 5 == [area.ds, area.es, area.ss, area.fs, area.gs]
    assert (entry.cs, entry.gdtr) == (area.cs, area.gdtr)
    assert (0xFFFF0FF0, 0x400, 0x0007040600070406) == (
        area.dr6,
        area.dr7,
        area.g_pat,
    )  # launch-inputs.md §6.1
    assert area.rax == area.rbx == area.rbp == area.rdi == area.rsp == area.cr3 == area.cr4 == 0


def test_the_segments_are_those_of_the_table_in_memory() -> None:
    # What is in the cached registers and what a reload would fetch must agree.
    image = an_image()
    at, table = memory(image)["descriptor table"]
    assert at == image.entry.gdtr.base
    assert image.entry.gdtr.limit == 31
    for segment in (image.entry.cs, image.entry.data):
        descriptor = int.from_bytes(table[segment.selector : segment.selector + 8], "little")
        attributes = (descriptor >> 40) & 0xFF | (descriptor >> 44) & 0xF00
        assert attributes == segment.attributes
        limit = descriptor & 0xFFFF | (descriptor >> 32) & 0xF0000
        assert (limit << 12 | 0xFFF) == segment.limit


def test_esi_points_at_a_zero_page_with_the_kernels_own_header() -> None:
    kernel = a_kernel(code=CODE, kernel_version=0x1234, handover_offset=0x77)
    image = an_image(kernel=kernel)
    at, data = memory(image)["zero page"]
    assert at == image.entry.rsi
    page = zero_page(image)
    assert (0x1234, 0x77) == (page.kernel_version, page.handover_offset)
    ours = {"type_of_loader", "code32_start", "cmd_line_ptr", "ramdisk_image", "ramdisk_size"}
    theirs = BootParams.parse(kernel[:PAGE], canonical=False)
    header = [name for name, field in BootParams.FIELDS.items() if 0x1F1 <= field.offset < 0x26C]
    assert {n: getattr(theirs, n) for n in header if n not in ours} == {
        n: getattr(page, n) for n in header if n not in ours
    }
    assert 0xFF == page.type_of_loader
    assert not any(data[0x26C:0x2D0])


def test_of_a_shorter_header_no_byte_of_code_is_taken_for_a_field() -> None:
    kernel = bytearray(a_kernel(code=CODE))
    kernel[0x201] = 0x264 - 0x202  # the header of protocol 2.12 ends here
    kernel[0x264:0x2D0] = b"\xcc" * (0x2D0 - 0x264)
    assert 0 == zero_page(an_image(kernel=bytes(kernel))).handover_offset


def test_the_kernel_finds_its_command_line_initrd_and_tables() -> None:
    image = an_image()
    page, where = zero_page(image), memory(image)
    assert (page.cmd_line_ptr, b"console=ttyS0\x00") == (
        where["command line"][0],
        where["command line"][1][:14],
    )
    assert where["initrd"][0] == page.ramdisk_image
    assert where["initrd"][1].startswith(b"initrd" * 1000)
    assert 256 * MIB == page.ramdisk_image + page.ramdisk_size
    assert where["ACPI tables"][0] == ACPI_BASE == page.acpi_rsdp_addr


def test_the_secret_page_follows_the_initrd_inside_the_ramdisk() -> None:
    image = an_image()
    where, page = memory(image), zero_page(image)
    at, data = where["secret page"]
    assert secret_page() == data
    assert at == where["initrd"][0] + len(where["initrd"][1]) == page.ramdisk_image + page.ramdisk_size - PAGE
    assert at + SECRET_AT == image.secret_gpa


def test_a_guest_without_sev_finds_its_secret_in_the_same_place() -> None:
    sealed, plain = an_image(), an_image(secret=b"open sesame")
    assert sealed.secret_gpa == plain.secret_gpa
    differing = [a.what for a, b in zip(sealed.regions, plain.regions, strict=True) if a != b]
    assert ["secret page"] == differing
    hole = memory(plain)["secret page"][1][SECRET_AT : SECRET_AT + SECRET_SIZE]
    assert b"open sesame" == hole.rstrip(b"\x00")


@pytest.mark.parametrize(("size", "fits"), [(SECRET_SIZE, True), (SECRET_SIZE + 1, False)])
def test_a_secret_fits_its_hole_or_is_refused(size: int, *, fits: bool) -> None:
    if fits:
        assert PAGE == len(secret_page(b"s" * size))
    else:
        with pytest.raises(ValueError, match="fit into /secret/table"):
            secret_page(b"s" * size)


def test_the_memory_map_covers_the_memory_once_and_tables_are_of_the_acpi_kind() -> None:
    image = an_image()
    ranges = memory_map(image)
    assert [(0, ACPI_BASE, MemoryType.RAM), (ACPI_BASE, 2 * PAGE, MemoryType.ACPI)] == [
        (r.base, r.length, r.kind) for r in ranges[:2]
    ]
    assert all(a.base + a.length <= b.base for a, b in itertools.pairwise(ranges))
    assert 256 * MIB == ranges[-1].base + ranges[-1].length


def test_without_tables_the_kernel_is_told_of_none() -> None:
    image = an_image(acpi=b"")
    assert not image.acpi
    assert "ACPI tables" not in memory(image)
    assert 0 == zero_page(image).acpi_rsdp_addr
    assert [MemoryType.RAM] * 2 == [r.kind for r in memory_map(image)]


def test_without_an_initrd_the_secret_page_is_the_ramdisk() -> None:
    image = an_image(initrd=b"")
    assert "initrd" not in memory(image)
    assert PAGE == zero_page(image).ramdisk_size


def test_the_digest_is_that_of_everything_in_the_order_of_addresses() -> None:
    image = an_image()
    assert sorted(r.gpa for r in image.regions) == [r.gpa for r in image.regions]
    assert hashlib.sha256(b"".join(r.data for r in image.regions)).digest() == image.digest()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": flipped(a_kernel(code=CODE), -1 % len(a_kernel(code=CODE)))},
        {"kernel": flipped(a_kernel(code=CODE), 0x20E)},
        {"initrd": flipped(b"initrd" * 1000, 5999)},
        {"initrd": b"initrd" * 999},
        {"cmdline": "console=ttyS1"},
        {"cmdline": "console=ttyS0 "},
        {"acpi": b"RSD PTR " + bytes(4999) + b"\x01"},
        {"acpi": b""},
        {"memory_size": 255 * MIB},
    ],
    ids=[
        "kernel code",
        "kernel header",
        "initrd",
        "initrd shorter",
        "command line",
        "a blank",
        "ACPI",
        "no ACPI",
        "memory",
    ],
)
def test_whatever_is_otherwise_is_measured_otherwise(change: dict[str, Any]) -> None:
    assert an_image().digest() != an_image(**change).digest()


@given(
    initrd=st.binary(max_size=3 * PAGE),
    cmdline=st.text(st.characters(codec="ascii", exclude_characters="\x00"), max_size=200),
    acpi=st.binary(max_size=2 * PAGE),
    pages=st.integers(0, 1000),
)
def test_regions_are_whole_pages_inside_memory_that_never_meet(
    initrd: bytes, cmdline: str, acpi: bytes, pages: int
) -> None:
    image = an_image(initrd=initrd, cmdline=cmdline, acpi=acpi, memory_size=64 * MIB + pages * PAGE)
    assert all(r.gpa % PAGE == 0 and len(r.data) % PAGE == 0 and r.data for r in image.regions)
    assert all(a.end <= b.gpa for a, b in zip(image.regions, image.regions[1:], strict=False))
    assert image.regions[-1].end == image.memory_size
    kernel_end = image.entry.rip + zero_page(image).init_size
    assert all(r.gpa >= kernel_end or r.end <= image.entry.rip or r.what == "kernel" for r in image.regions)


# ---- what is refused ---------------------------------------------------------------------------------------

TRUNCATED = a_kernel(code=CODE)[:-17]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": b""}, "not a Linux kernel: a file of 0 bytes"),
        ({"kernel": b"\x7fELF".ljust(9000, b"\x00")}, "not a Linux kernel: no setup header.*vmlinux"),
        ({"kernel": b"\x1f\x8b".ljust(9000, b"\x00")}, "it is a gzip file"),
        ({"kernel": b"070701".ljust(9000, b"0")}, "cpio archive: is it the initrd"),
        ({"kernel": a_kernel(header=b"HdrT")}, "no setup header"),
        ({"kernel": a_kernel(boot_flag=0xAA54)}, "no setup header"),
        ({"kernel": a_kernel(version=0x20B)}, "boot protocol 2.11; 2.12 .* is the oldest"),
        ({"kernel": a_kernel(loadflags=LoadFlags(0))}, "zImage"),
        ({"kernel": a_kernel(xloadflags=XLoadFlags(0))}, "a 32-bit kernel"),
        ({"kernel": a_kernel(relocatable_kernel=0)}, "not relocatable"),
        ({"kernel": a_kernel(kernel_alignment=0)}, "not a power of two"),
        ({"kernel": a_kernel(kernel_alignment=3 << 20)}, "not a power of two"),
        (
            {"kernel": a_kernel(pref_address=0, kernel_alignment=1)},
            "wants to be at 0x0: a page from 1 MiB on",
        ),
        ({"kernel": a_kernel(pref_address=(1 << 20) + 8, kernel_alignment=8)}, "wants to be at 0x100008"),
        ({"kernel": a_kernel(init_size=0)}, "init_size is 0"),
        ({"kernel": a_kernel(syssize=0)}, "truncated"),
        ({"kernel": TRUNCATED}, f"truncated: {len(TRUNCATED)} bytes of "),
        ({"memory_size": 35 * MIB}, "too little memory: the kernel needs 36M .* has 35M"),
        ({"memory_size": 36 * MIB}, "initrd of 6000 bytes does not fit.*37M of memory are the least"),
        ({"kernel": a_kernel(initrd_addr_max=37 * MIB - 1), "initrd": bytes(2 * MIB)}, "does not fit"),
        ({"memory_size": 0}, "0 bytes of memory"),
        ({"memory_size": 256 * MIB + 1}, "whole pages"),
        ({"memory_size": 3 * GIB + PAGE}, "3072M at most"),
        ({"cmdline": "x" * 2048}, "has 2048 bytes; this kernel takes 2047"),
        ({"cmdline": "a\x00b"}, "NUL"),
        ({"acpi": bytes(0x1F001)}, "ACPI tables"),
    ],
)
def test_what_cannot_boot_is_refused_with_its_reason(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Unbootable, match=words):
        an_image(**change)


@pytest.mark.parametrize(
    "change", [{"cmdline": "x" * 2047}, {"memory_size": 37 * MIB}, {"acpi": bytes(0x1F000)}]
)
def test_what_just_fits_is_not_refused(change: dict[str, Any]) -> None:
    assert an_image(**change).regions


@given(st.binary(max_size=9000))
def test_any_bytes_are_a_kernel_or_refused(data: bytes) -> None:
    with pytest.raises(Unbootable):
        KernelImage.parse(data)


@given(at=st.integers(0x1F1, 0x26B), value=st.integers(0, 255))
def test_a_header_with_any_byte_changed_gives_an_image_or_a_reason(at: int, value: int) -> None:
    kernel = bytearray(a_kernel(code=CODE))
    kernel[at] = value
    try:
        image = an_image(kernel=bytes(kernel))
    except Unbootable:
        return
    assert all(a.end <= b.gpa for a, b in zip(image.regions, image.regions[1:], strict=False))


def test_a_kernel_of_the_oldest_setup_sector_count_is_read() -> None:
    assert (SETUP_SECTORS + 1) * 512 == KernelImage.parse(a_kernel()).setup_size
    assert 5 * 512 == KernelImage.parse(a_kernel(setup_sects=0)).setup_size


# ---- command line ------------------------------------------------------------------------------------------


def test_what_is_appended_comes_last_so_that_it_wins() -> None:
    assert command_line("console=hvc0").startswith(command_line() + " ")
    assert "console=hvc0" == command_line("console=hvc0").split()[-1]
    assert command_line("") == command_line()


@pytest.mark.parametrize("append", ["a\nb", "a\rb", "a\x00b"])
def test_a_command_line_is_one_line(append: str) -> None:
    with pytest.raises(Unbootable, match="one line of text"):
        command_line(append)
