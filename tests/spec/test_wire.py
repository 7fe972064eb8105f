"""The wire machinery, and the properties that hold for every structure by its declaration."""

from __future__ import annotations

import enum
import types
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.errors import WireError
from cbit.spec.wire import Dir, Wire, at
from spec.wires import WIRES, required, structures, values

every_wire = pytest.mark.parametrize("cls", WIRES, ids=lambda cls: cls.__name__)


class Colour(enum.IntEnum):
    RED = 1
    BLUE = 7


class Bits(enum.IntFlag, boundary=enum.STRICT):
    LOW = 1
    HIGH = 2


class Inner(Wire, size=4):
    x: int = at(0, 2)


class Sample(Wire, size=0x20):
    inner: Inner = at(0x10, 4)
    number: int = at(0x00, 4)
    colour: Colour = at(0x06, 1, Dir.OUT, default=Colour.RED)
    bits: Bits = at(0x08, 1, Dir.IN_OUT, default=Bits(0))
    raw: bytes = at(0x18, 3)


SAMPLE = Sample(number=0x01020304, raw=b"abc", inner=Inner(x=0x0A0B), colour=Colour.BLUE, bits=Bits.HIGH)
EMITTED = bytes.fromhex("04030201 0000 07 00 02 00000000000000 0b0a0000 00000000 616263 0000000000")


# ---- every structure ---------------------------------------------------------------------------------------


def test_there_are_structures_to_test() -> None:
    assert {"SevCert", "AmdCertHeader", "Session", "LaunchStart"} <= {cls.__name__ for cls in WIRES}


@every_wire
@given(data=st.data())
def test_what_is_emitted_is_parsed_back(cls: type[Wire], data: st.DataObject) -> None:
    structure = data.draw(structures(cls))
    assert len(bytes(structure)) == cls.SIZE
    assert cls.parse(bytes(structure)) == structure


@every_wire
@given(data=st.data())
def test_canonical_bytes_come_back_unchanged(cls: type[Wire], data: st.DataObject) -> None:
    raw = bytes(data.draw(structures(cls)))
    assert bytes(cls.parse(raw)) == raw


@every_wire
@given(data=st.data())
def test_every_reserved_byte_counts_canonically_and_is_tolerated_otherwise(
    cls: type[Wire], data: st.DataObject
) -> None:
    structure = data.draw(structures(cls))
    value = data.draw(st.integers(1, 255))
    for offset in (o for start, end in cls.gaps() for o in range(start, end)):
        raw = bytearray(bytes(structure))
        raw[offset] = value
        with pytest.raises(WireError, match="reserved bytes"):
            cls.parse(bytes(raw))
        assert cls.parse(bytes(raw), canonical=False) == structure


@every_wire
@given(length=st.integers(0, 0x900))
def test_any_other_length_is_refused(cls: type[Wire], length: int) -> None:
    for wrong in {length, cls.SIZE - 1, cls.SIZE + 1, 0} - {cls.SIZE}:
        for canonical in (True, False):
            with pytest.raises(WireError, match=f"{wrong} bytes, must be {cls.SIZE}"):
                cls.parse(bytes(wrong), canonical=canonical)


@every_wire
@given(data=st.data())
def test_any_bytes_are_parsed_or_refused_with_a_wire_error(cls: type[Wire], data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=cls.SIZE + 8) | st.binary(min_size=cls.SIZE, max_size=cls.SIZE))
    for canonical in (True, False):
        try:
            structure = cls.parse(raw, canonical=canonical)
        except WireError:
            continue
        if canonical:
            assert bytes(structure) == raw
        else:  # nothing is lost but the gaps
            assert structure.patched(raw, *cls.FIELDS) == raw


@every_wire
@given(data=st.data())
def test_one_field_changes_its_own_bytes_only(cls: type[Wire], data: st.DataObject) -> None:
    one = data.draw(structures(cls))
    field = data.draw(st.sampled_from(list(cls.FIELDS.values())))
    value = data.draw(values(field))
    changed = bytes(one.replace(**{field.name: value}))
    assert changed[: field.offset] == bytes(one)[: field.offset]
    assert changed[field.offset : field.end] == field.encode(value)
    assert changed[field.end :] == bytes(one)[field.end :]
    assert cls.parse(changed).patched(bytes(one), field.name) == changed


@every_wire
def test_fields_and_gaps_tile_the_structure(cls: type[Wire]) -> None:
    ranges = sorted([*cls.gaps(), *((f.offset, f.end) for f in cls.FIELDS.values())])
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == cls.SIZE


@every_wire
@given(data=st.data())
def test_a_structure_is_frozen_and_hashable_and_keyword_only(cls: type[Wire], data: st.DataObject) -> None:
    structure = data.draw(structures(cls))
    name = next(iter(cls.FIELDS))
    with pytest.raises(AttributeError, match="frozen"):
        setattr(structure, name, getattr(structure, name))
    with pytest.raises(AttributeError, match="frozen"):
        delattr(structure, name)
    assert hash(structure) == hash(cls.parse(bytes(structure)))
    with pytest.raises(TypeError):
        cls(*(getattr(structure, field) for field in cls.FIELDS))
    if required(cls):
        with pytest.raises(TypeError):
            cls()


# ---- the machinery -----------------------------------------------------------------------------------------


def test_offsets_are_those_declared_whatever_the_order_of_the_lines() -> None:
    assert bytes(SAMPLE) == EMITTED
    assert list(Sample.FIELDS) == ["number", "colour", "bits", "inner", "raw"]
    assert Sample.gaps() == [(4, 6), (7, 8), (9, 0x10), (0x14, 0x18), (0x1B, 0x20)]
    assert Sample.written_back() == ("colour", "bits")


def test_an_inner_structure_is_as_strict_as_its_parent() -> None:
    raw = bytearray(EMITTED)
    raw[0x12] = 1  # reserved inside Inner
    with pytest.raises(WireError, match="Inner: reserved bytes"):
        Sample.parse(bytes(raw))
    assert Sample.parse(bytes(raw), canonical=False) == SAMPLE


@pytest.mark.parametrize(("offset", "value", "name"), [(6, 2, "colour"), (8, 4, "bits")])
def test_an_unknown_number_survives_only_leniently(offset: int, value: int, name: str) -> None:
    raw = bytearray(EMITTED)
    raw[offset] = value
    with pytest.raises(WireError, match=f"{name}: {value:#x} is not a"):
        Sample.parse(bytes(raw))
    lenient = Sample.parse(bytes(raw), canonical=False)
    assert getattr(lenient, name) == value
    assert bytes(lenient) == bytes(raw)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"number": 1 << 32}, WireError),
        ({"number": -1}, WireError),
        ({"raw": b"ab"}, WireError),
        ({"raw": b"abcd"}, WireError),
        ({"number": b"abcd"}, TypeError),
        ({"number": "7"}, TypeError),
        ({"number": 1.0}, TypeError),
        ({"raw": 7}, TypeError),
        ({"raw": bytearray(b"abc")}, TypeError),  # mutable: the structure would not be frozen
        ({"inner": b"abcd"}, TypeError),
        ({"inner": SAMPLE}, TypeError),
        ({"colour": "RED"}, TypeError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_a_value_that_does_not_fit_is_refused_where_it_is_given(
    change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        SAMPLE.replace(**change)


@pytest.mark.parametrize("length", [0, 0x1F, 0x21])
def test_bytes_of_another_size_are_not_patched(length: int) -> None:
    with pytest.raises(WireError, match="to patch, must be 32"):
        SAMPLE.patched(bytes(length), "number")


def test_a_declaration_that_overlaps_itself_is_refused_at_import() -> None:
    with pytest.raises(TypeError, match="overlaps its neighbour"):

        class Overlap(Wire, size=8):
            a: int = at(0, 4)
            b: int = at(3, 4)


@pytest.mark.parametrize("offset", [-1, 5, 8])
def test_a_field_outside_its_structure_is_refused_at_import(offset: int) -> None:
    with pytest.raises(TypeError, match="leaves the structure"):

        class Outside(Wire, size=8):
            a: int = at(offset, 4)


def test_a_size_is_part_of_the_declaration() -> None:
    with pytest.raises(TypeError, match="size"):

        class Sizeless(Wire):  # type: ignore[call-arg]  # the point of the test
            a: int = at(0, 4)


def test_an_inner_structure_of_another_size_is_refused_at_import() -> None:
    with pytest.raises(TypeError, match="Inner has 4 bytes, not 8"):

        class Outer(Wire, size=8):
            inner: Inner = at(0, 8)


@pytest.mark.parametrize("annotation", ["float", "str", "int | None", "list[int]"])
def test_a_kind_that_cannot_be_on_the_wire_is_refused_at_import(annotation: str) -> None:
    body = {"__annotations__": {"a": annotation}, "a": at(0, 4), "__module__": __name__}
    with pytest.raises(TypeError, match="is no number"):
        types.new_class("Odd", (Wire,), {"size": 4}, lambda namespace: namespace.update(body))


def test_class_variables_are_no_fields() -> None:
    class WithConstant(Wire, size=4):
        MAGIC: ClassVar[int] = 7
        a: int = at(0, 4)

    assert list(WithConstant.FIELDS) == ["a"]


def test_a_structure_prints_itself_with_names_and_hex() -> None:
    assert (
        repr(SAMPLE) == "Sample(number=0x1020304, colour=BLUE, bits=HIGH, inner=Inner(x=0xa0b), raw=616263)"
    )
    assert "bits=0," in repr(SAMPLE.replace(bits=Bits(0)))


def test_long_bytes_are_cut_when_printed() -> None:
    class Long(Wire, size=64):
        a: bytes = at(0, 64)

    assert repr(Long(a=b"\xab" * 64)) == f"Long(a={'ab' * 16}… (64 bytes))"
