from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.errors import WireError
from cbit.spec.firmware_table import (
    AP_RESET,
    FOOTER,
    HASH_TABLE,
    SEV_METADATA,
    SEV_SECRET,
    Area,
    FirmwareTable,
    build,
    parse,
)

entries = st.dictionaries(st.uuids(), st.binary(max_size=40), max_size=6)


def image(table: bytes, *, before: int = 64) -> bytes:
    """An image that ends with ``table`` and the 32 bytes of the reset vector."""
    return b"\x90" * before + table + b"\xcc" * 32


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


@pytest.mark.parametrize(
    ("file", "secret", "hashes", "metadata"),
    [
        # origin = launch-inputs.md §2, samples
        ("launch-digest/ovmf_AmdSev_suffix.bin", Area(0x810000, 0xC00), Area(0x810C00, 0x400), True),
        ("launch-digest/ovmf_OvmfX64_suffix.bin", Area(0, 0), Area(0, 0), True),
        (
            "launch-measurement/ovmf_el9_202201_last4k.bin",
            Area(0x80C000, 0xC00),
            Area(0x80CC00, 0x400),
            False,
        ),
    ],
)
def test_real_images(vectors: Path, file: str, secret: Area, hashes: Area, *, metadata: bool) -> None:
    table = parse((vectors / file).read_bytes())
    assert table.secret_area == secret
    assert table.hash_area == hashes
    assert bool(table.hash_area) is (hashes.size != 0)
    assert table.ap_reset == 0x0080B004
    assert (SEV_METADATA in table.entries) is metadata


@given(entries)
def test_entries_come_back_in_their_order(table: dict[UUID, bytes]) -> None:
    found = parse(image(build(table))).entries
    assert list(found.items()) == list(table.items())


def test_an_image_without_a_table_announces_nothing() -> None:
    for data in (b"", bytes(49), bytes(4096)):
        table = parse(data)
        assert table == FirmwareTable({})
        assert (table.secret_area, table.hash_area, table.ap_reset) == (Area(0, 0), Area(0, 0), None)


def test_the_layout_before_the_footer_existed() -> None:
    # origin = launch-inputs.md §2, "Older layout"
    entry = words(0x0080B004) + (22).to_bytes(2, "little") + AP_RESET.bytes_le
    table = parse(image(entry))
    assert table.ap_reset == 0x0080B004
    assert list(table.entries) == [AP_RESET]


@pytest.mark.parametrize("length", [0, 17, 200])
def test_the_older_layout_with_a_wrong_length_is_refused(length: int) -> None:
    entry = words(0x0080B004) + length.to_bytes(2, "little") + AP_RESET.bytes_le
    with pytest.raises(WireError, match=f"single entry of length {length}"):
        parse(image(entry))


@pytest.mark.parametrize("total", [0, 17, 200])
def test_a_total_length_that_leaves_the_image_is_refused(total: int) -> None:
    footer = total.to_bytes(2, "little") + FOOTER.bytes_le
    with pytest.raises(WireError, match=f"total length {total}"):
        parse(image(footer))


@pytest.mark.parametrize("length", [0, 17, 27, 0xFFFF])
def test_an_entry_length_that_leaves_the_table_is_refused(length: int) -> None:
    table = bytearray(build({SEV_SECRET: words(1, 2)}))
    table[8:10] = length.to_bytes(2, "little")
    with pytest.raises(WireError, match=f"has length {length}, 26 bytes are left"):
        parse(image(bytes(table)))


def test_bytes_left_over_are_refused() -> None:
    entry = words(1, 2) + (26).to_bytes(2, "little") + SEV_SECRET.bytes_le
    body = b"spare" + entry
    footer = (len(body) + 18).to_bytes(2, "little") + FOOTER.bytes_le
    with pytest.raises(WireError, match="5 bytes are left over"):
        parse(image(body + footer))


def test_an_entry_that_is_there_twice_is_refused() -> None:
    entry = words(1, 2) + (26).to_bytes(2, "little") + SEV_SECRET.bytes_le
    footer = (2 * 26 + 18).to_bytes(2, "little") + FOOTER.bytes_le
    with pytest.raises(WireError, match="there twice"):
        parse(image(entry + entry + footer))


@pytest.mark.parametrize("size", [0, 4, 7, 9])
def test_an_area_of_another_size_is_refused_when_it_is_asked_for(size: int) -> None:
    table = parse(image(build({SEV_SECRET: bytes(size), HASH_TABLE: bytes(size), AP_RESET: bytes(3)})))
    for read in ("secret_area", "hash_area"):
        with pytest.raises(WireError, match=f"has {size} bytes, must have 8"):
            getattr(table, read)
    with pytest.raises(WireError, match="has 3 bytes, must have 4"):
        _ = table.ap_reset


@given(st.binary(max_size=200), st.sampled_from([FOOTER, AP_RESET]), st.integers(0, 300))
def test_any_image_is_parsed_or_refused(data: bytes, last: UUID, length: int) -> None:
    for tail in (b"", length.to_bytes(2, "little") + last.bytes_le + bytes(32)):
        try:
            table = parse(data + tail)
            _ = table.secret_area, table.hash_area, table.ap_reset
        except WireError:
            continue


@given(st.integers(0, 4095), st.integers(0, 255))
def test_an_altered_real_image_is_parsed_or_refused(vectors: Path, offset: int, value: int) -> None:
    data = bytearray((vectors / "launch-digest/ovmf_AmdSev_suffix.bin").read_bytes())
    data[offset] = value
    try:
        table = parse(bytes(data))
        _ = table.secret_area, table.hash_area, table.ap_reset
    except WireError:
        return
