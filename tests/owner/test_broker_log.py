"""The broker's log: one text, whole from its beginning, and nothing in it that a broker cannot have done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
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


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], "the log is empty"),
        ([ADDED, BEGUN], "record 0 is 'policy added': a log begins with 'created'"),
        ([CREATED, ADDED, CREATED], "record 2 is 'created'"),
    ],
)
def test_a_log_begins_with_the_making_of_its_broker(events: list[Event], reason: str) -> None:
    with pytest.raises(Untrusted, match=reason):
        verify_records(chained(*events))


@pytest.mark.parametrize(
    ("releases", "reason"),
    [
        ({}, "record 3 releases launch a, and the database does not have it"),
        ({"a": 3, "b": 2}, "the database has launch b as released, and the log does not"),
        ({"a": 2}, "launch a was released by record 3, not by 2"),
    ],
)
def test_the_log_and_the_database_tell_the_same_releases(releases: dict[str, int], reason: str) -> None:
    records = chained(CREATED, ADDED, BEGUN, RELEASED)
    assert records[-1] == verify_records(records, releases={"a": 3})
    with pytest.raises(Untrusted, match=reason):
        verify_records(records, releases=releases)


def test_what_is_released_during_an_audit_waits_for_the_next(office: Office, tmp_path: Path) -> None:
    with closing(Office(tmp_path, clock=office.clock).store) as auditor, auditor.standing_still():
        releases = auditor.releases()
        ask(office)
        assert verify_records(auditor.records(), releases=releases).event.what != "release"
    assert "release" == verify_records(office.store.records(), releases=office.store.releases()).event.what


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
