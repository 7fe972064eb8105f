"""The broker's log: one text, whole from its beginning, and nothing in it that a broker cannot have done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cbit.owner.broker import AlreadyReleased, verify_records
from cbit.owner.broker.audit import FIRST, Event, Record
from cbit.owner.errors import Untrusted
from cbit.spec.errors import WireError
from owner.broker_worlds import CREATED, Office, ask, exported, reported


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    found = Office(tmp_path).with_policies()
    yield found
    found.store.close()


ADDED = replace(CREATED, what="policy added", policy="web", details={"digest": "aa"})
OTHER = replace(ADDED, details={"digest": "bb"})
REMOVED = replace(CREATED, what="policy removed", policy="web")
BEGUN = replace(CREATED, what="session", policy="web", launch="a", details={"policy digest": "aa"})
RELEASED = replace(CREATED, what="release", policy="web", launch="a")


def chained(*events: Event) -> list[Record]:
    """A log of these events that nobody has changed since."""
    records: list[Record] = []
    for number, event in enumerate(events):
        previous = records[-1].hash if records else FIRST
        records.append(Record(number=number, previous=previous, event=event))
    return records


def a_log(office: Office) -> list[Record]:
    office.broker.take_receipt(
        (session := office.broker.open_session("web", exported())).launch, reported(session)
    )
    ask(office)
    with pytest.raises(AlreadyReleased):
        ask(office)
    return list(office.store.records())


def test_the_log_is_one_text_and_comes_back(office: Office) -> None:
    records = a_log(office)
    assert records == [Record.from_line(record.line, what="line") for record in records]
    assert records[-1] == verify_records(records)
    for record in records:
        assert record == verify_records(records, head=record.hash) or record != records[-1]


def test_a_log_that_was_changed_is_found_out(office: Office) -> None:
    records = a_log(office)
    head = records[-1].hash
    twins: dict[str, list[list[Record]]] = {}
    for number, record in enumerate(records[:-1]):
        changed = replace(record, event=replace(record.event, policy="x"))
        twins.setdefault("one of them was changed", []).append(
            [*records[:number], changed, *records[number + 1 :]]
        )
        twins.setdefault("stands where", []).append([*records[:number], *records[number + 1 :]])
    twins["does not contain"] = [records[:-1], [*records[:-1], replace(records[-1], event=CREATED)], []]
    for reason, logs in twins.items():
        for log in logs:
            with pytest.raises(Untrusted, match=reason):
                verify_records(log, head=head)


def test_a_log_that_releases_twice_is_found_out() -> None:
    assert verify_records(chained(CREATED, ADDED, BEGUN, RELEASED))
    with pytest.raises(Untrusted, match="record 4 releases again what 3 released"):
        verify_records(chained(CREATED, ADDED, BEGUN, RELEASED, RELEASED))


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([ADDED, BEGUN, REMOVED, RELEASED], "record 4 releases under policy 'web', which record 3 removed"),
        ([BEGUN, RELEASED], "record 2 releases under policy 'web', which no record added"),
        ([ADDED, RELEASED], "record 2 releases to a launch that no record opened"),
        ([ADDED, BEGUN, REMOVED, OTHER, RELEASED], "'web', which is another one since record 4"),
    ],
)
def test_a_log_that_releases_under_no_policy_is_found_out(events: list[Event], reason: str) -> None:
    with pytest.raises(Untrusted, match=reason):
        verify_records(chained(CREATED, *events))


def test_the_same_policy_may_come_back() -> None:
    events = [CREATED, ADDED, BEGUN, REMOVED, ADDED, RELEASED, REMOVED]
    assert len(events) - 1 == getattr(verify_records(chained(*events)), "number", None)


@pytest.mark.parametrize("line", ["", "{}", "[]", '{"number": 0}', "\xff"])
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(WireError):
        Record.from_line(line, what="line 1")


def test_a_record_has_one_form() -> None:
    line = Record(number=0, previous=bytes(32).hex(), event=CREATED).line
    assert Record.from_line(line, what="line")
    for twin in (line.replace(",", ", "), line.replace('"created"', '"cr\\u0065ated"'), line.strip()):
        with pytest.raises(WireError, match="one form"):
            Record.from_line(twin, what="line")
