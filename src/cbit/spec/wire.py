"""Wire structures, declared once: offsets visible, gaps must be zero, direction marked.

    class LaunchMeasure(Wire, size=0x14):
        handle: int = at(0x00, 4)
        measure_paddr: int = at(0x08, 8)  # 0x04..0x07 are reserved
        measure_len: int = at(0x10, 4, Dir.IN_OUT)

A field is a little-endian unsigned integer, an ``IntEnum`` or ``IntFlag``, raw ``bytes``, or another
``Wire``.  Parsing, emitting and the reference pages all follow the one declaration.
"""

from __future__ import annotations

import enum
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, Self, dataclass_transform

from cbit.spec.errors import WireError
from cbit.spec.wire_codec import Codec


class Dir(enum.Enum):
    """Who writes a field: the caller, the callee, or both."""

    IN = "in"
    OUT = "out"
    IN_OUT = "in/out"


class MustBeZero(enum.IntEnum):
    """Kind of a reserved field whose bytes count: a signature covers them.

    A plain gap is forgotten by a lenient parse; this field keeps what was there.
    """

    ZERO = 0


_NO_DEFAULT: Final = object()


class _Declared(NamedTuple):
    """What stands behind the name of a field until its class is made."""

    offset: int
    size: int
    direction: Dir
    default: Any


def at(offset: int, size: int, direction: Dir = Dir.IN, *, default: Any = _NO_DEFAULT) -> Any:
    """Declare a field of ``size`` bytes at ``offset``."""
    return _Declared(offset, size, direction, default)


class Field(NamedTuple):
    """One declared field: name, offset and size in bytes, Python type, direction."""

    name: str
    offset: int
    size: int
    kind: type
    direction: Dir

    @property
    def end(self) -> int:
        """Offset of the first byte after the field."""
        return self.offset + self.size

    def decode(self, raw: bytes, *, canonical: bool) -> Any:
        """Turn the field's bytes into its value."""
        if issubclass(self.kind, bytes):
            return raw
        if issubclass(self.kind, Wire):
            return self.kind.parse(raw, canonical=canonical)
        number = int.from_bytes(raw, "little")
        return self.judge(number, canonical=canonical) if issubclass(self.kind, enum.Enum) else number

    def judge(self, number: int, *, canonical: bool) -> Any:
        """Turn the number of an enumeration's field into its value."""
        try:
            return self.kind(number)
        except ValueError:
            if canonical:
                raise WireError(f"{self.name}: {number:#x} is not a {self.kind.__name__}") from None
            return number  # the firmware reads what is there and judges later

    def encode(self, value: Any) -> bytes:
        """Turn a value into the field's bytes."""
        # A number outside its enumeration is emitted as it is: what was parsed leniently can be handed on.
        if issubclass(self.kind, int):
            if isinstance(value, int):
                return self._encode_number(value)
        elif isinstance(value, bytes | Wire) and isinstance(value, self.kind):
            raw = bytes(value)
            if len(raw) != self.size:
                raise WireError(f"{self.name}: {len(raw)} bytes given, the field has {self.size}")
            return raw
        raise TypeError(f"{self.name}: {type(value).__name__} given, must be {self.kind.__name__}")

    def _encode_number(self, value: int) -> bytes:
        try:
            return int(value).to_bytes(self.size, "little")
        except OverflowError:
            raise WireError(f"{self.name}: {int(value):#x} does not fit {self.size} bytes") from None

    def check_declaration(self) -> None:
        """Refuse a declaration that could never be parsed."""
        if not isinstance(self.kind, type) or not issubclass(self.kind, int | bytes | Wire):
            raise TypeError(f"{self.name}: {self.kind} is no number, enumeration, bytes or Wire")
        if issubclass(self.kind, Wire) and self.size != self.kind.SIZE:
            raise TypeError(f"{self.name}: {self.kind.__name__} has {self.kind.SIZE} bytes, not {self.size}")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(at,))
class Wire:
    """Base of all wire structures: frozen, keyword-only, fixed size.

    A structure that exists can be emitted: a value that does not fit is refused where it is given.

    Raises:
        WireError: wrong length, a value that does not fit, or (when parsing canonically) a reserved byte
            that is not zero or a number that its enumeration does not know.
        TypeError: a value of another kind than declared; at import, a declaration that overlaps itself,
            leaves its size or has a kind that is not supported.
    """

    SIZE: ClassVar[int]
    FIELDS: ClassVar[Mapping[str, Field]]
    _CODEC: ClassVar[Codec]
    DEFAULTS: ClassVar[Mapping[str, Any]]
    _WRITTEN_BACK: ClassVar[tuple[str, ...]]
    _NAMES: ClassVar[frozenset[str]]

    def __init_subclass__(cls, *, size: int) -> None:
        # No dataclass: its methods, written anew for each class, would take half of all start-up.
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, _Declared)}
        kinds = _kinds(cls, declared)
        fields = [Field(name, d.offset, d.size, kinds[name], d.direction) for name, d in declared.items()]
        fields.sort(key=lambda field: field.offset)
        end = 0
        for field in fields:
            field.check_declaration()
            if field.offset < end or field.end > size:
                raise TypeError(f"{cls.__name__}.{field.name} overlaps its neighbour or leaves the structure")
            end = field.end
        cls.SIZE = size
        cls.FIELDS = MappingProxyType({field.name: field for field in fields})
        cls._CODEC = Codec(fields, size)
        cls._NAMES = frozenset(cls.FIELDS)
        # Itself, not a view of it, which takes three times as long to unpack at every structure that is made.
        cls.DEFAULTS = {name: d.default for name, d in declared.items() if d.default is not _NO_DEFAULT}
        cls._CODEC.check(cls.DEFAULTS)
        for name in declared:
            delattr(cls, name)  # a structure has values, its class has none
        cls._WRITTEN_BACK = tuple(field.name for field in fields if field.direction is not Dir.IN)

    def __init__(self, **values: Any) -> None:
        given = {**self.DEFAULTS, **values}
        if given.keys() != self._NAMES:
            odd = ", ".join(sorted(given.keys() ^ self.FIELDS.keys()))
            raise TypeError(f"{type(self).__name__}: no such field, or no value for it: {odd}")
        if not self._CODEC.fits(given):
            self._CODEC.check(values)
        self.__dict__.update(given)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self.FIELDS)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r}: a structure is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete field {name!r}: a structure is frozen")

    @classmethod
    def parse(cls, data: bytes, *, canonical: bool = True) -> Self:
        """Read the structure from exactly ``SIZE`` bytes.

        Args:
            data: the bytes.
            canonical: insist on zero in every gap and on known enumeration values.  The firmware's side
                says False where the API names no such check.
        """
        if len(data) != cls.SIZE:
            raise WireError(f"{cls.__name__}: {len(data)} bytes, must be {cls.SIZE}")
        if canonical:
            for start, end in cls._CODEC.gaps:
                if any(data[start:end]):
                    raise WireError(f"{cls.__name__}: reserved bytes {start:#x}..{end - 1:#x} are not zero")
        return cls._of(cls._CODEC.unpack(data, canonical=canonical))  # what came off the wire fits it

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self:
        """Make a structure of values that are known to fit."""
        structure = object.__new__(cls)
        structure.__dict__.update(values)
        return structure

    def __bytes__(self) -> bytes:
        return self._CODEC.pack(self.__dict__)

    def patched(self, raw: bytes, *names: str) -> bytes:
        """Return ``raw`` with the named fields replaced by this structure's values."""
        if len(raw) != self.SIZE:
            raise WireError(f"{type(self).__name__}: {len(raw)} bytes to patch, must be {self.SIZE}")
        out, whole = bytearray(raw), bytes(self)
        for start, end in self._CODEC.stretches(names):
            out[start:end] = whole[start:end]
        return bytes(out)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        if unknown := changes.keys() - self.FIELDS.keys():
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        self._CODEC.check(changes)
        return self._of({**self.__dict__, **changes})

    @classmethod
    def gaps(cls) -> list[tuple[int, int]]:
        """The reserved ranges as (start, end) offsets."""
        return list(cls._CODEC.gaps)

    @classmethod
    def written_back(cls) -> tuple[str, ...]:
        """Names of the fields that the callee writes."""
        return cls._WRITTEN_BACK

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={_show(getattr(self, n))}' for n in self.FIELDS)})"


def _kinds(cls: type[Wire], names: Iterable[str]) -> dict[str, Any]:
    """Return the type of each field; a structure has many fields of few types, and each is looked up once."""
    named = {name: cls.__annotations__[name] for name in names}
    once = types.SimpleNamespace(__annotations__={str(kind): kind for kind in named.values()})
    found = typing.get_type_hints(once, vars(sys.modules[cls.__module__]))
    return {name: found[str(kind)] for name, kind in named.items()}


def _show(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{value[:16].hex()}… ({len(value)} bytes)"
    if isinstance(value, enum.Enum):
        return value.name or "0"
    return f"{value:#x}" if isinstance(value, int) else repr(value)
