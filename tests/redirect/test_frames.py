"""What travels between launcher and daemon: whole frames or none, and nonsense ends the connection."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.redirect.frames import DONE, LINE, LONGEST, Broken, Channel, Frame, Kind, pack_done, unpack_done


class Clock:
    """Advances by a second with each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, clock=Clock(), patience=2.0)
    yield channel, theirs
    channel.close()
    theirs.close()


WRITES = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=40)), max_size=4)
REASONS = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=3)


@given(result=st.integers(-(2**63), 2**63 - 1), writes=WRITES, reasons=REASONS)
def test_an_answer_comes_back_as_it_was(
    result: int, writes: list[tuple[int, bytes]], reasons: list[tuple[str, str]]
) -> None:
    body = b"".join(pack_done(result, writes, reasons))
    assert (result, writes, reasons) == unpack_done(body)


@given(st.binary(max_size=64))
def test_any_bytes_are_an_answer_or_broken(body: bytes) -> None:
    with contextlib.suppress(Broken):
        unpack_done(body)


def test_an_answer_that_promises_more_writes_than_it_has_is_broken() -> None:
    with pytest.raises(Broken):
        unpack_done(DONE.pack(0, 2**32 - 1))


def test_a_frame_is_taken_when_all_of_it_is_there(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    whole = struct.pack("<IB", 3, Kind.OPEN) + b"abc"
    for byte in whole[:-1]:
        other.send(bytes([byte]))
        assert channel.receive()
        assert channel.frame() is None
    other.send(whole[-1:] + whole)
    assert channel.receive()
    assert Frame(Kind.OPEN, b"abc") == channel.frame() == channel.frame()
    assert channel.frame() is None


def test_lines_come_before_frames_and_do_not_eat_them(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.send(b'{"do": "attach"}\n' + struct.pack("<IB", 0, Kind.CLOSE))
    assert channel.receive()
    assert b'{"do": "attach"}' == channel.line()
    assert Frame(Kind.CLOSE, b"") == channel.frame()


def test_what_is_too_long_is_broken(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.send(struct.pack("<IB", LONGEST + 1, Kind.ANSWER))
    assert channel.receive()
    with pytest.raises(Broken, match="a frame of 0x400001 bytes"):
        channel.frame()


def test_a_line_without_an_end_is_broken(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.send(b"x" * (LINE + 1))
    for _ in range(LINE // 4096):
        assert channel.receive()
        assert channel.line() is None
    assert channel.receive()
    with pytest.raises(Broken, match="a line of more than"):
        channel.line()


def test_a_long_frame_is_put_together(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    long = bytes(range(256)) * 300
    other.send(struct.pack("<IB", len(long), Kind.ANSWER) + long + struct.pack("<IB", 1, Kind.DONE) + b"x")
    frames: list[Frame] = []
    while len(frames) < 2:
        assert channel.receive()
        while (frame := channel.frame()) is not None:
            frames.append(frame)
    assert [Frame(Kind.ANSWER, long), Frame(Kind.DONE, b"x")] == frames


def test_a_frame_of_another_kind_is_broken(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.send(struct.pack("<IB", 0, 77))
    with pytest.raises(Broken, match="kind 77 where ANSWER is due"):
        channel.wait(Kind.ANSWER)


def test_the_other_sides_silence_has_an_end(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    with pytest.raises(Broken, match=r"has not answered for 2\.0 s"):
        channel.wait(Kind.ANSWER)


def test_a_side_that_trickles_does_not_win_time(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.send(struct.pack("<IB", 10, Kind.ANSWER)[:3])
    with pytest.raises(Broken, match="has not answered"):
        channel.wait(Kind.ANSWER)


@dataclass
class Asked:
    """Who has been asked to end."""

    ending: int
    times: int = 0

    def interrupted(self) -> None:
        self.times += 1


@pytest.fixture
def ending() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel with all the patience there is, whose owner has been asked to end."""
    ours, theirs = socket.socketpair()
    asked, asking = socket.socketpair()
    asking.send(b"!")
    channel = Channel(ours, clock=Clock(), owner=Asked(asked.fileno()))
    yield channel, theirs
    channel.close()
    for sock in (theirs, asked, asking):
        sock.close()


def test_who_is_asked_to_end_does_not_wait_for_ever(ending: tuple[Channel, socket.socket]) -> None:
    channel, _ = ending
    with pytest.raises(Broken, match="a signal ends us"):
        channel.wait(Kind.ANSWER)
    with pytest.raises(Broken, match="a signal ends us"):
        channel.send(Kind.WRITE, bytes(8 << 20))


def test_who_is_asked_to_end_takes_what_is_there(ending: tuple[Channel, socket.socket]) -> None:
    channel, other = ending
    other.send(struct.pack("<IB", 1, Kind.ANSWER) + b"x")
    assert Frame(Kind.ANSWER, b"x") == channel.wait(Kind.ANSWER)


def test_a_side_that_does_not_read_does_not_hold_us(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    with pytest.raises(Broken, match="has not answered"):
        channel.send(Kind.WRITE, bytes(8 << 20))


def test_a_closed_side_is_broken(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.close()
    with pytest.raises(Broken, match="closed the connection"):
        channel.wait_line()
    with pytest.raises(Broken, match="gone"):
        channel.send(Kind.READ, b"")
    assert not channel.receive()
