"""Events: who hears them, and what they say."""

from __future__ import annotations

import pytest

from cbit.trace import SILENT, Event, Trace


def test_an_event_prints_its_facts_and_its_reason() -> None:
    trace = Trace()
    with trace.recorded() as events:
        trace.emit(
            "mailbox",
            "INIT",
            "the platform is WORKING",
            status="INVALID",
            asid=5,
            at=0x1000,
            c=True,
            x=b"\xab",
        )
        trace.emit("mailbox", "NOP")
    assert [str(event) for event in events] == [
        "mailbox: INIT status=INVALID asid=5 at=0x1000 c=True x=ab the platform is WORKING",
        "mailbox: NOP",
    ]


def test_facts_may_have_the_names_of_the_arguments() -> None:
    trace = Trace()
    with trace.recorded() as events:
        trace.emit("cpu", "walk", part=1, what=2, why=3)
    assert dict(events[0].facts) == {"part": 1, "what": 2, "why": 3}
    assert events[0].why == ""


def test_watchers_hear_only_what_happens_inside_their_block() -> None:
    trace = Trace()
    trace.emit("a", "before")
    with trace.recorded() as outer:
        trace.emit("a", "one")
        with trace.recorded() as inner:
            trace.emit("a", "two")
        trace.emit("a", "three")
    trace.emit("a", "after")
    assert [event.what for event in outer] == ["one", "two", "three"]
    assert [event.what for event in inner] == ["two"]


def test_a_watcher_is_let_go_when_its_block_fails() -> None:
    trace, heard = Trace(), list[Event]()
    with pytest.raises(KeyError), trace.watched_by(heard.append):
        raise KeyError
    trace.emit("a", "after")
    assert heard == []


def test_a_watcher_may_leave_while_an_event_is_handed_round() -> None:
    trace, heard = Trace(), list[str]()
    with trace.watched_by(lambda event: heard.append("first")):

        def leave(_event: Event) -> None:
            block.__exit__(None, None, None)

        block = trace.watched_by(leave)
        block.__enter__()
        with trace.watched_by(lambda event: heard.append("last")):
            trace.emit("a", "event")
    assert heard == ["first", "last"]


def test_an_event_is_frozen_with_its_facts() -> None:
    event = Event("a", "b")
    with pytest.raises(AttributeError):
        event.what = "c"  # type: ignore[misc]  # the point of the test
    with pytest.raises(TypeError):
        event.facts["d"] = 1  # type: ignore[index]  # the point of the test


def test_nobody_need_watch() -> None:
    SILENT.emit("a", "b", "c", d=1)


def test_a_trace_knows_whether_anybody_listens() -> None:
    trace = Trace()
    assert not trace.watched("a")
    with trace.recorded():
        assert trace.watched("a")
    assert not trace.watched("a")


def test_a_watcher_of_one_part_hears_of_no_other() -> None:
    trace, heard = Trace(), list[Event]()
    with trace.watched_by(heard.append, only="a"):
        trace.emit("a", "event")
        trace.emit("b", "event")
        assert (True, False) == (trace.watched("a"), trace.watched("b"))
    trace.emit("a", "after")
    assert [("a", "event")] == [(event.part, event.what) for event in heard]
