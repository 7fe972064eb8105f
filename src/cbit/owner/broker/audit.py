"""The broker's log: records that can be added and never changed, each holding the hash of the one before.

Whoever rewrites a record must rewrite all that follow, and then the hash of the last is another.  Every
answer of the broker carries that hash (``head``): who keeps one can show later that the log still contains
it.  A chain of hashes proves nothing to somebody who has kept none.

No record holds a secret or a key: hashes, names, reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Self

from cbit.owner.errors import Untrusted
from cbit.spec.errors import WireError
from cbit.spec.receipt import Fields, canonical_json, read_object

FIRST: Final = bytes(32).hex()  #: what stands before the first record


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened: what goes into a record.

    Attributes:
        time: moment, ISO 8601 with its zone.
        what: "created", "policy added", "policy removed", "session", "challenge", "release" or "refusal".
        policy: the policy's name, if one is concerned.
        launch: the launch's id, likewise.
        details: more, in words.
    """

    time: str
    what: str
    policy: str = ""
    launch: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An event in its place in the log.

    Attributes:
        number: from 0, without a gap.
        previous: hash of the record before it.
        event: what happened.
    """

    number: int
    previous: str
    event: Event

    @property
    def line(self) -> str:
        """The one text of this record."""
        return canonical_json(
            {
                "number": self.number,
                "previous": self.previous,
                **asdict(self.event),
                "details": dict(self.event.details),
            }
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.line.encode()).hexdigest()

    @classmethod
    def from_line(cls, line: str | bytes, *, what: str) -> Self:
        """Read a record from its text.

        Raises:
            WireError: not a record, or not in its one form.
        """
        keys = ("number", "previous", "time", "what", "policy", "launch", "details")
        fields = Fields(read_object(line, what=what), *keys, what=what)
        details = read_details(fields, what=what)
        record = cls(
            number=fields.number("number", below=1 << 63),
            previous=fields.hex("previous", size=32).hex(),
            event=Event(
                **{name: fields.text(name) for name in ("time", "what", "policy", "launch")}, details=details
            ),
        )
        if record.line.encode() != (line if isinstance(line, bytes) else line.encode()):
            raise WireError(f"{what}: the record is not in its one form")
        return record


def read_details(fields: Fields, *, what: str) -> dict[str, str]:
    """Take the details out of a record: texts by name."""
    details = fields.object("details")
    if not all(isinstance(value, str) for value in details.values()):
        raise WireError(f"{what}: details must be texts")
    return details


def verify_records(
    records: Iterable[Record], *, head: str | None = None, releases: Mapping[str, int] | None = None
) -> Record:
    """Check that records are a whole log from its beginning.

    Args:
        records: all of them, in order.
        head: a hash that somebody kept; the log must contain its record.
        releases: which record each launch was released by, as the database has it; None if only the log is
            there.

    Returns:
        The last record.

    Raises:
        Untrusted: a record is missing, out of place or changed, the log does not begin with the making of a
            broker, a launch was released twice or under a policy that did not stand, the log says other
            releases than the database, or the kept hash is not in it.
    """
    reasons = []
    previous, expected, last, met = FIRST, 0, None, head in {None, FIRST}
    story = _Story()
    for record in records:
        if record.number != expected:
            reasons.append(f"record {record.number} stands where {expected} belongs")
        if record.previous != previous:
            reasons.append(
                f"record {record.number} does not follow the one before it: one of them was changed"
            )
        reasons += story.contradictions(record)
        previous, expected, last = record.hash, record.number + 1, record
        met = met or previous == head
    if not met:
        reasons.append(f"the log does not contain the record with hash {head}: it was cut or made anew")
    reasons += story.disagreements(releases)
    if last is None:
        reasons.append(
            "the log is empty: a broker's begins with the record of its making, so this one was cut"
        )
    if reasons or last is None:
        raise Untrusted(reasons)
    return last


class _Story:
    """What a log has told so far: with it, what a broker cannot have done is found out."""

    def __init__(self) -> None:
        self._policies: dict[str, tuple[int, str]] = {}  # since which record, and its digest; "" when removed
        self._launches: dict[str, str] = {}  # digest of the policy that each began under
        self._released: dict[str, int] = {}
        self._launches_released: dict[str, int] = {}

    def disagreements(self, releases: Mapping[str, int] | None) -> Iterator[str]:
        """Hold the log's releases against the database's."""
        if releases is None:
            return
        written = self._launches_released
        for launch in sorted({*releases, *written}):
            if launch not in written:
                yield f"the database has launch {launch} as released, and the log does not"
            elif launch not in releases:
                yield f"record {written[launch]} releases launch {launch}, and the database does not have it"
            elif written[launch] != releases[launch]:
                yield f"launch {launch} was released by record {written[launch]}, not by {releases[launch]}"

    def contradictions(self, record: Record) -> Iterator[str]:
        """Take the next record, and name what does not go with those before it."""
        event, details = record.event, record.event.details
        if (event.what == "created") is not (record.number == 0):
            yield f"record {record.number} is {event.what!r}: a log begins with 'created', and nowhere else"
        match event.what:
            case "policy added" | "policy removed":
                self._policies[event.policy] = (record.number, details.get("digest", ""))
            case "session" | "challenge":
                self._launches[event.launch] = details.get("policy digest", "")
            case "release":
                yield from self._release(record)

    def _release(self, record: Record) -> Iterator[str]:
        event, what = record.event, f"record {record.number} releases"
        self._launches_released[event.launch] = record.number
        for name in (event.launch, event.details.get("identity", "")):
            if name and name in self._released:
                yield f"{what} again what {self._released[name]} released"
            self._released.setdefault(name, record.number)
        since, digest = self._policies.get(event.policy, (-1, ""))
        began = self._launches.get(event.launch)
        if began is None:
            yield f"{what} to a launch that no record opened"
        elif since < 0:
            yield f"{what} under policy {event.policy!r}, which no record added"
        elif not digest:
            yield f"{what} under policy {event.policy!r}, which record {since} removed"
        elif digest != began:
            yield f"{what} under policy {event.policy!r}, which is another one since record {since}"
