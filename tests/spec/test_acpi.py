"""The tables hold together, and Intel's compiler reads them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.acpi import aml, board, tables
from cbit.spec.linux_boot import ACPI_BASE

Program = Callable[..., list[str]]


def found(base: int) -> dict[str, bytes]:
    """Every table, reached as an operating system reaches it: from the root pointer on."""
    image = tables(base)

    def at(address: int) -> bytes:
        data = image[address - base :]
        return data[: int.from_bytes(data[4:8], "little")]

    rsdt, xsdt = struct.unpack_from("<I", image, 16)[0], struct.unpack_from("<Q", image, 24)[0]
    (fadt,) = struct.unpack_from("<Q", at(xsdt), 36)
    facs, dsdt = struct.unpack_from("<II", at(fadt), 36)
    assert at(fadt) == at(*struct.unpack_from("<I", at(rsdt), 36))
    assert dsdt == struct.unpack_from("<Q", at(fadt), 140)[0]
    where = {"RSDT": rsdt, "XSDT": xsdt, "FACP": fadt, "DSDT": dsdt, "FACS": facs}
    return {name: at(address) for name, address in where.items()}


@pytest.mark.parametrize("base", [ACPI_BASE, 0, 0x40, 0xE0000, 0xFFFF_B000])
def test_an_operating_system_finds_every_table(base: int) -> None:
    image = tables(base)
    assert 0 == len(image) % 0x1000
    assert b"RSD PTR " == image[:8]
    assert 0 == sum(image[:20]) & 0xFF
    assert 0 == sum(image[:36]) & 0xFF
    for name, table in found(base).items():
        assert name == table[:4].decode()
        assert name == "FACS" or 0 == sum(table) & 0xFF


@pytest.mark.parametrize("base", [1, 0x20, -64, 1 << 32, 0xFFFF_F000])
def test_no_tables_where_none_can_be(base: int) -> None:
    with pytest.raises(ValueError, match="ACPI tables at"):
        tables(base)


def test_the_fixed_table_says_where_the_board_answers() -> None:
    fadt = found(ACPI_BASE)["FACP"]
    assert (244, 3) == (len(fadt), fadt[8])
    assert board.SCI == struct.unpack_from("<H", fadt, 46)[0]
    assert 0 == struct.unpack_from("<I", fadt, 48)[0]  # no SMI command: always in ACPI mode
    assert board.PM1A_EVENT == struct.unpack_from("<I", fadt, 56)[0]
    assert board.PM1A_CONTROL == struct.unpack_from("<I", fadt, 64)[0]
    assert board.PM_TIMER == struct.unpack_from("<I", fadt, 76)[0]
    assert board.RTC_CENTURY == fadt[108]
    assert 0 == struct.unpack_from("<H", fadt, 109)[0] & 2  # no keyboard controller
    assert struct.unpack_from("<I", fadt, 112)[0] & 1 << 10  # a reset register
    assert (1, 8, board.RESET_PORT, board.RESET_VALUE) == struct.unpack_from("<BB2xQB", fadt, 116)


@pytest.mark.oracle
def test_the_acpi_compiler_reads_every_table(tmp_path: Path, require_program: Program) -> None:
    iasl = require_program("iasl", "apt install acpica-tools")
    for name, table in found(ACPI_BASE).items():
        (tmp_path / f"{name}.aml").write_bytes(table)
        ended = subprocess.run(
            [*iasl, "-d", f"{name}.aml"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        said = ended.stdout + ended.stderr
        assert 0 == ended.returncode, said
        assert not [
            line for line in said.splitlines() if "error" in line.lower() or "warning" in line.lower()
        ]
    text = (tmp_path / "DSDT.dsl").read_text()
    for line in ('EisaId ("PNP0A03")', 'EisaId ("PNP0501")', "Name (_S5, Package (0x04)", "0x0001FFFF,"):
        assert line in text


@pytest.mark.oracle
def test_what_the_compiler_read_it_compiles_to_the_same_bytes(
    tmp_path: Path, require_program: Program
) -> None:
    iasl = require_program("iasl", "apt install acpica-tools")
    dsdt = found(ACPI_BASE)["DSDT"]
    (tmp_path / "before.aml").write_bytes(dsdt)
    for arguments in (["-d", "before.aml"], ["-p", "after", "before.dsl"]):
        ended = subprocess.run([*iasl, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert "0 Errors, 0 Warnings, 0 Remarks" in ended.stdout
    after = (tmp_path / "after.aml").read_bytes()
    assert dsdt[36:] == after[36:]  # the header names its compiler


@pytest.mark.parametrize(
    ("made", "bytes_"),
    [
        (aml.integer(0), "00"),
        (aml.integer(1), "01"),
        (aml.integer(2), "0a02"),
        (aml.integer(0x100), "0b0001"),
        (aml.integer(0x10000), "0c00000100"),
        (aml.integer(1 << 32), "0e0000000001000000"),
        (aml.eisa_id("PNP0A03"), "0c41d00a03"),
        (aml.name_string("\\_SB.PCI0"), "5c2e5f53425f50434930"),
        (aml.name_string("\\"), "5c00"),
        (aml.name_string("A.B.C"), "2f03415f5f5f425f5f5f435f5f5f"),
        (aml.name("_S5", aml.integer(5)), "085f53355f0a05"),
        (aml.package(aml.integer(0), aml.integer(1)), "1204020001"),
        (aml.buffer(b"ab"), "11050a026162"),
        (aml.io_ports(0x3F8, 8), "4701f803f8030108"),
        (aml.isa_irq(4), "221000"),
    ],
)
def test_the_language_is_the_specification_s(made: bytes, bytes_: str) -> None:
    assert bytes_ == made.hex()


@given(st.integers(0, 5000))
def test_a_length_counts_itself(size: int) -> None:
    made = aml.buffer(bytes(size))
    extra = made[1] >> 6
    length = (
        made[1] & 0x3F if not extra else made[1] & 0xF | int.from_bytes(made[2 : 2 + extra], "little") << 4
    )
    assert len(made) - 1 == length


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: aml.name_string("lower"),
        lambda: aml.name_string("LONGER"),
        lambda: aml.name_string("A..B"),
        lambda: aml.eisa_id("PNP0A0"),
        lambda: aml.eisa_id("pnp0A03"),
        lambda: aml.integer(-1),
        lambda: aml.integer(1 << 64),
        lambda: aml.buffer(bytes(1 << 28)),
    ],
)
def test_what_the_language_cannot_say_is_refused(wrong: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong()
