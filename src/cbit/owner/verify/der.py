"""A strict reader of DER, as far as certificates and revocation lists need it.

Every element has one encoding: lengths and integers are minimal, nothing is indefinite, nothing is left over.
Then what is accepted cannot be changed outside the signed part without being noticed.

AMD gives every VCEK the serial number 0, which general-purpose parsers refuse or announce to refuse; hence a
reader of our own.

Paper: launch-inputs.md §9 (what is encoded so).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from cbit.spec.errors import WireError

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31


def explicit(number: int) -> int:
    """Return the tag of ``[number] EXPLICIT``."""
    return 0xA0 | number


class Der:
    """Reads the elements of one constructed value, one after the other.

    Raises:
        WireError: at whatever is not DER, or not what was asked for.
    """

    def __init__(self, data: bytes, *, what: str) -> None:
        self._data, self._at, self.what = data, 0, what

    @property
    def more(self) -> bool:
        """Whether something is left to read."""
        return self._at < len(self._data)

    def next_is(self, *tags: int) -> bool:
        """Whether the next element has one of these tags."""
        return self.more and self._data[self._at] in tags

    def take(self, *tags: int) -> bytes:
        """Read the next element, which must have one of these tags, and return its content."""
        return self.element(*tags)[1]

    def whole(self, *tags: int) -> bytes:
        """Read the next element and return all of it, tag and length included."""
        return self.element(*tags)[0]

    def element(self, *tags: int) -> tuple[bytes, bytes]:
        """Read the next element and return it and its content."""
        start = self._at
        if not self.next_is(*tags):
            found = f"{self._data[start]:#04x}" if self.more else "the end"
            raise self.wrong(f"{found} in place of tag {' or '.join(f'{tag:#04x}' for tag in tags)}")
        content = self._length_at(start + 1)
        end = content[0] + content[1]
        if end > len(self._data):
            raise self.wrong("an element is cut short")
        self._at = end
        return self._data[start:end], self._data[content[0] : end]

    def inside(self, *tags: int, what: str = "") -> Der:
        """Read the next element and return a reader of its content."""
        return Der(self.take(*tags), what=what or self.what)

    def each(self, *tags: int) -> Iterator[Der]:
        """Read all that is left, element by element."""
        while self.more:
            yield self.inside(*tags)

    def done(self) -> None:
        """Insist that nothing is left."""
        if self.more:
            raise self.wrong(f"{len(self._data) - self._at} bytes too many")

    def integer(self) -> int:
        """Read an integer in its shortest form."""
        raw = self.take(INTEGER)
        redundant = len(raw) > 1 and (raw[0], raw[1] >> 7) in ((0x00, 0), (0xFF, 1))
        if not raw or redundant:
            raise self.wrong("an integer is not in its shortest form")
        return int.from_bytes(raw, "big", signed=True)

    def boolean(self) -> bool:
        """Read a boolean."""
        raw = self.take(BOOLEAN)
        if raw not in (b"\x00", b"\xff"):
            raise self.wrong("a boolean is neither true nor false")
        return raw == b"\xff"

    def bits(self) -> bytes:
        """Read a bit string of whole bytes."""
        raw = self.take(BIT_STRING)
        if not raw or raw[0]:
            raise self.wrong("a bit string is not made of whole bytes")
        return raw[1:]

    def oid(self) -> str:
        """Read an object identifier, in dotted form."""
        raw = self.take(OID)
        if not raw or raw[-1] & 0x80:
            raise self.wrong("an object identifier is cut short")
        numbers, number, fresh = [], 0, True
        for byte in raw:
            if fresh and byte == 0x80:
                raise self.wrong("an object identifier is not in its shortest form")
            number, fresh = number << 7 | byte & 0x7F, not byte & 0x80
            if fresh:
                numbers.append(number)
                number = 0
        first = min(numbers[0] // 40, 2)
        return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))

    def time(self) -> datetime:
        """Read a UTCTime or GeneralizedTime in the one form that certificates use."""
        tag = self._data[self._at] if self.more else 0
        raw = self.take(UTC_TIME, GENERALIZED_TIME)
        digits, zone = raw[:-1], raw[-1:]
        if zone != b"Z" or not digits.isdigit() or len(digits) != (12 if tag == UTC_TIME else 14):
            raise self.wrong("a date is not in the form of certificates")
        text = digits.decode()
        if tag == UTC_TIME:  # RFC 5280 §4.1.2.5.1: two digits of the year mean 1950 to 2049
            text = ("19" if text >= "50" else "20") + text
        try:
            return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            raise self.wrong("a date that does not exist") from None

    def wrong(self, why: str) -> WireError:
        """Make the error that says what is being read."""
        return WireError(f"{self.what}: not DER as certificates use it ({why})")

    def _length_at(self, at: int) -> tuple[int, int]:
        """Return where the content starts and how long it is."""
        if at >= len(self._data):
            raise self.wrong("an element is cut short")
        first = self._data[at]
        if first < 0x80:
            return at + 1, first
        raw = self._data[at + 1 : at + 1 + (first & 0x7F)]
        if first in {0x80, 0xFF} or len(raw) != first & 0x7F or not raw[0] or len(raw) > 4:
            raise self.wrong("a length is not in its shortest form")
        length = int.from_bytes(raw, "big")
        if length < 0x80:
            raise self.wrong("a length is not in its shortest form")
        return at + 1 + len(raw), length


def split(data: bytes, *, what: str) -> list[bytes]:
    """Take concatenated SEQUENCEs apart.

    Raises:
        WireError: the bytes are not just that.
    """
    reader = Der(data, what=what)
    found = []
    while reader.more:
        found.append(reader.whole(SEQUENCE))
    return found
