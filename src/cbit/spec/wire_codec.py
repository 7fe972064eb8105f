"""A wire structure's declaration, compiled once: one ``struct`` call where a loop went over the fields.

The fields stay the declaration, and every odd value is still theirs to judge; this is the way of the ordinary
ones, which a firmware command has by the dozen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from operator import itemgetter
from typing import Any, Final, Protocol

_ASK: Final = (None, 0)  #: no value is of this type: the field is asked
_NUMBERS: Final[Mapping[int, str]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class WireField(Protocol):
    """What is asked of a field."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def offset(self) -> int:
        """Its first byte."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    @property
    def kind(self) -> type:
        """Its Python type."""
        ...

    def decode(self, raw: bytes, *, canonical: bool) -> Any:
        """Turn the field's bytes into its value."""
        ...

    def judge(self, number: int, *, canonical: bool) -> Any:
        """Turn an enumeration's number into its value."""
        ...

    def encode(self, value: Any) -> bytes:
        """Turn a value into the field's bytes, or refuse it."""
        ...


class Codec:
    """How to take one kind of structure apart and put it together.

    Args:
        fields: in the order of their offsets.
        size: of the structure, in bytes.
    """

    __slots__ = (
        "_decoded",
        "_encoded",
        "_fields",
        "_kinds",
        "_known",
        "_limits",
        "_row",
        "_stretches",
        "_struct",
        "gaps",
    )

    def __init__(self, fields: Sequence[WireField], size: int) -> None:
        self._fields = {field.name: field for field in fields}
        #: the reserved ranges as (start, end) offsets
        self.gaps = _gaps(fields, size)
        form = {start: f"{end - start}x" for start, end in self.gaps}
        numbers = [field for field in fields if issubclass(field.kind, int) and field.size in _NUMBERS]
        names = {field.name for field in numbers}
        for field in fields:
            form[field.offset] = _NUMBERS[field.size] if field.name in names else f"{field.size}s"
        self._struct = struct.Struct("<" + "".join(form[offset] for offset in sorted(form)))
        self._encoded = tuple(f for f in fields if f.kind is not bytes and f.name not in names)
        self._decoded = self._encoded
        self._known = tuple((f.name, _members(f.kind)) for f in numbers if issubclass(f.kind, Enum))
        # What is of exactly the declared type needs one comparison; the rest is asked of its field.
        self._limits = {f.name: (f.kind, 1 << 8 * f.size) for f in fields if issubclass(f.kind, int)}
        # All numbers: their kinds in a row, for one comparison of all; otherwise what no row is equal to.
        self._kinds = tuple(f.kind for f in fields) if len(numbers) == len(fields) else None
        self._row = _row(list(self._fields))
        self._stretches: dict[tuple[str, ...], list[tuple[int, int]]] = {}

    def unpack(self, data: bytes, *, canonical: bool) -> dict[str, Any]:
        """Return the value of every field by its name; ``data`` has the right size."""
        values: dict[str, Any] = dict(zip(self._fields, self._struct.unpack(data), strict=True))
        for name, known in self._known:
            value = known.get(values[name])
            if value is None:  # a number that the enumeration does not know
                value = self._fields[name].judge(values[name], canonical=canonical)
            values[name] = value
        for field in self._decoded:
            raw = data[field.offset : field.offset + field.size]
            values[field.name] = field.decode(bytes(raw), canonical=canonical)
        return values

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """Return the bytes of checked values, zero in every gap."""
        if self._encoded:
            values = {**values, **{field.name: field.encode(values[field.name]) for field in self._encoded}}
        return self._struct.pack(*self._row(values))

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Tell at a glance that all values of a structure fit; False says nothing: `check` has to look."""
        row = self._row(values)
        if (*map(type, row),) != self._kinds:
            return False
        try:
            self._struct.pack(*row)
        except struct.error:
            return False
        return True

    def check(self, values: Mapping[str, Any]) -> None:
        """Let the field of every value that does not fit refuse it."""
        limits = self._limits
        for name, value in values.items():
            kind, limit = limits.get(name, _ASK)
            if type(value) is not kind or not 0 <= value < limit:
                self._fields[name].encode(value)

    def stretches(self, names: tuple[str, ...]) -> list[tuple[int, int]]:
        """Return where the named fields are, neighbours as one: (start, end); found once for each choice."""
        found = self._stretches.get(names)
        if found is None:
            found = []
            for field in sorted((self._fields[name] for name in names), key=lambda field: field.offset):
                end = field.offset + field.size
                if found and found[-1][1] == field.offset:
                    found[-1] = found[-1][0], end
                else:
                    found.append((field.offset, end))
            self._stretches[names] = found
        return found


def _row(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Return what takes the values of these names, in this order."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)


def _members(kind: type[Enum]) -> dict[int, Enum]:
    return {member.value: member for member in kind}


def _gaps(fields: Sequence[WireField], size: int) -> tuple[tuple[int, int], ...]:
    gaps, end = [], 0
    for field in fields:
        if field.offset > end:
            gaps.append((end, field.offset))
        end = field.offset + field.size
    if end < size:
        gaps.append((end, size))
    return tuple(gaps)
