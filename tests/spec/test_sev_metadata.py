from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec import firmware_table, sev_metadata
from cbit.spec.errors import WireError
from cbit.spec.firmware_table import SEV_METADATA, FirmwareTable
from cbit.spec.sev_metadata import MetadataSection, SectionType, parse
from spec.wires import structures

sections = st.lists(structures(MetadataSection), max_size=9).map(tuple)

#: origin = launch-inputs.md §7.3
AMD_SEV = [
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4),
    (0x810000, 0x1000, 0x10),
    (0x811000, 0xF000, 1),
]
OVMF_X64 = [*AMD_SEV[:5], (0x810000, 0x10000, 1)]


def table_for(distance: int) -> FirmwareTable:
    return FirmwareTable({SEV_METADATA: distance.to_bytes(4, "little")})


@pytest.mark.parametrize(
    ("file", "expected"),
    [("ovmf_AmdSev_suffix.bin", AMD_SEV), ("ovmf_OvmfX64_suffix.bin", OVMF_X64)],
)
def test_real_images(vectors: Path, file: str, expected: list[tuple[int, int, int]]) -> None:
    image = (vectors / "launch-digest" / file).read_bytes()
    found = parse(image, firmware_table.parse(image)) or ()
    assert expected == [(section.base, section.size, section.kind) for section in found]


def test_an_image_without_metadata_is_no_error(vectors: Path) -> None:
    image = (vectors / "launch-measurement" / "ovmf_el9_202201_last4k.bin").read_bytes()
    assert None is parse(image, firmware_table.parse(image))


@given(sections, st.binary(max_size=32))
def test_sections_come_back(written: tuple[MetadataSection, ...], after: bytes) -> None:
    block = sev_metadata.build(written)
    image = b"before" + block + after
    assert written == parse(image, table_for(len(block) + len(after)))


GOOD = sev_metadata.build((MetadataSection(base=0x800000, size=0x1000, kind=SectionType.SECRETS),))


@pytest.mark.parametrize(
    ("block", "distance", "why"),
    [
        (b"ASEX" + GOOD[4:], 28, "must be 41534556"),
        (GOOD[:8] + b"\x02" + GOOD[9:], 28, "version 2"),
        (GOOD[:4] + b"\x1b" + GOOD[5:], 28, "length 27"),
        (GOOD[:12] + b"\x02" + GOOD[13:], 28, "2 sections"),
        (GOOD[:4] + b"\x28" + GOOD[5:12] + b"\x02" + GOOD[13:], 28, "fit the 28 bytes"),
        (GOOD[:12] + b"\xff\xff\xff\xff" + GOOD[16:], 28, "4294967295 sections"),
        (GOOD[:24] + b"\x07" + GOOD[25:], 28, "kind: 0x7 is not a SectionType"),
        (GOOD, 0, "0 bytes before the end"),
        (GOOD, 15, "15 bytes before the end"),
        (GOOD, 29, "29 bytes before the end"),
        (GOOD, 0xFFFFFFFF, "before the end"),
    ],
)
def test_a_malformed_block_is_refused(block: bytes, distance: int, why: str) -> None:
    with pytest.raises(WireError, match=why):
        parse(block, table_for(distance))


@pytest.mark.parametrize("size", [0, 3, 5, 8])
def test_an_entry_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"has {size} bytes, must have 4"):
        parse(GOOD, FirmwareTable({SEV_METADATA: bytes(size)}))


@given(st.binary(max_size=120), st.integers(0, 200), st.integers(0, 40))
def test_any_block_is_parsed_or_refused(data: bytes, distance: int, count: int) -> None:
    head = b"ASEV" + (16 + 12 * count).to_bytes(4, "little") + b"\x01\0\0\0" + count.to_bytes(4, "little")
    for image in (data, head + data):
        try:
            parse(image, table_for(distance))
            parse(image, table_for(len(image)))
        except WireError:
            continue


@given(st.integers(0, 4095), st.integers(0, 255))
def test_an_altered_real_image_is_parsed_or_refused(vectors: Path, offset: int, value: int) -> None:
    data = bytearray((vectors / "launch-digest/ovmf_AmdSev_suffix.bin").read_bytes())
    data[offset] = value
    try:
        parse(bytes(data), firmware_table.parse(bytes(data)))
    except WireError:
        return
