from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.errors import WireError
from cbit.spec.secret_table import DISK_PASSPHRASE, TABLE, build, parse

# origin = launch-inputs.md §4, the example; confirmed there through the MAC of a published packet
EXAMPLE = bytes.fromhex(
    "42f5741edd71664d963eef4287ff173b 3a000000"
    "e5696873f084734992ec06879ce3da0b 26000000 4d592d4c554b532d50415353504852415345"
    "000000000000"
)
ENTRIES = [(DISK_PASSPHRASE, b"MY-LUKS-PASSPHRASE")]

guids = st.uuids().filter(lambda guid: guid.int != 0)
entries = st.lists(st.tuples(guids, st.binary(max_size=64)), max_size=5)


def with_u32(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + value.to_bytes(4, "little") + data[offset + 4 :]


def test_the_papers_example() -> None:
    assert build(ENTRIES) == EXAMPLE
    assert parse(EXAMPLE) == ENTRIES


def test_the_published_secret(vectors: Path) -> None:
    (case,) = json.loads((vectors / "launch-secret/secret.json").read_text())
    files = [(UUID(guid), (vectors / "launch-secret" / name).read_bytes()) for guid, name in case["entries"]]
    assert build(files) == EXAMPLE


@given(entries)
def test_entries_come_back(table: list[tuple[UUID, bytes]]) -> None:
    raw = build(table)
    assert len(raw) % 16 == 0
    assert parse(raw) == table


@given(entries, st.binary(max_size=40))
def test_what_follows_the_table_does_not_count(table: list[tuple[UUID, bytes]], rest: bytes) -> None:
    assert parse(build(table) + rest) == table


@given(entries)
def test_the_other_habit_of_counting_the_padding_is_read_too(table: list[tuple[UUID, bytes]]) -> None:
    raw = build(table)
    assert parse(with_u32(raw, 16, len(raw))) == table


def test_a_zero_entry_ends_the_table() -> None:
    raw = TABLE.bytes_le + (60).to_bytes(4, "little") + bytes(40)
    assert parse(raw) == []


def test_an_entry_without_a_name_is_not_written() -> None:
    with pytest.raises(ValueError, match="GUID other than zero"):
        build([(UUID(int=0), b"lost")])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not at the start"),
        (EXAMPLE[:19], "not at the start"),
        (b"\x00" + EXAMPLE[1:], "not at the start"),
        (with_u32(EXAMPLE, 16, 19), "length 19"),
        (with_u32(EXAMPLE, 16, 65), "length 65"),
        (with_u32(EXAMPLE, 36, 19), "has length 19"),
        (with_u32(EXAMPLE, 36, 39), "has length 39, 38 bytes are left"),
        (with_u32(EXAMPLE, 36, 0xFFFFFFFF), "has length 4294967295"),
        (EXAMPLE[:48], "does not fit 48 bytes"),
    ],
)
def test_a_length_that_leaves_the_data_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        parse(data)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda rest: TABLE.bytes_le + rest))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        parse(data)
    except WireError:
        return
    assert data.startswith(TABLE.bytes_le)


@given(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 255))
def test_an_altered_table_is_parsed_or_refused(offset: int, value: int) -> None:
    data = bytearray(EXAMPLE)
    data[offset] = value
    try:
        parse(bytes(data))
    except WireError:
        return
