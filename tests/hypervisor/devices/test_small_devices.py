"""The device that copies memory, and the box of requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.devices import copier as copying
from cbit.hypervisor.devices import requests
from cbit.hypervisor.devices.copier import GIVE, TAKE, Copier
from cbit.hypervisor.devices.ports import Ports
from cbit.hypervisor.devices.requests import MOST_ANSWERS, RequestBox
from cbit.hypervisor.vm import NoSuchMemory
from cbit.spec.address import PAGE, Gpa

MEMORY = 4 * PAGE
LOW, HIGH, LENGTH, DO = range(copying.BASE, copying.BASE + 16, 4)
REQUEST, ARGUMENT, ANSWER, END = range(requests.BASE, requests.BASE + 16, 4)
ONES = 0xFFFF_FFFF


class Memory:
    """Four pages, as a device reaches them."""

    def __init__(self) -> None:
        self.cells = bytearray(bytes(range(256)) * (MEMORY // 256))

    def read(self, gpa: Gpa, length: int) -> bytes:
        self._check(gpa, length)
        return bytes(self.cells[gpa : gpa + length])

    def write(self, gpa: Gpa, data: bytes) -> None:
        self._check(gpa, len(data))
        self.cells[gpa : gpa + len(data)] = data

    def _check(self, gpa: Gpa, length: int) -> None:
        if gpa + length > MEMORY:
            raise NoSuchMemory(f"{gpa:#x}")


def _device() -> tuple[Copier, Memory, Ports]:
    memory, ports = Memory(), Ports()
    return Copier(memory, ports), memory, ports


def _transfer(ports: Ports, what: int, gpa: int, length: int) -> int:
    for port, value in ((LOW, gpa & ONES), (HIGH, gpa >> 32), (LENGTH, length), (DO, what)):
        ports.write(port, 4, value)
    return ports.read(DO, 4)


def test_it_takes_and_gives() -> None:
    device, memory, ports = _device()
    assert 0 == _transfer(ports, TAKE, 0x1010, 16)
    assert bytes(range(16, 32)) == device.buffer[:16]
    assert not any(device.buffer[16:])
    device.load(b"from the device")
    assert 0 == _transfer(ports, GIVE, 0x2FF8, 15)  # across a page
    assert b"from the device" == memory.cells[0x2FF8:][:15]


@pytest.mark.parametrize(
    ("what", "gpa", "length"),
    [
        (TAKE, MEMORY - 8, 9),
        (GIVE, MEMORY - 8, 9),
        (TAKE, 1 << 40, 1),
        (TAKE, 0, PAGE + 1),
        (GIVE, 0, ONES),
        (0, 0, 16),
        (3, 0, 16),
        (ONES, 0, 16),
    ],
)
def test_a_copy_that_cannot_be_done_moves_nothing_and_says_so(what: int, gpa: int, length: int) -> None:
    device, memory, ports = _device()
    device.load(b"kept")
    before = bytes(memory.cells)
    assert 1 == _transfer(ports, what, gpa, length)
    assert before == memory.cells
    assert b"kept" == device.buffer[:4]
    assert 0 == _transfer(ports, TAKE, 0, 4)  # and the next one succeeds


def test_it_holds_one_page() -> None:
    device, _, _ = _device()
    device.load(bytes(PAGE))
    with pytest.raises(ValueError, match="4097 bytes"):
        device.load(bytes(PAGE + 1))


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(copying.BASE - 2, requests.BASE + 18),
            st.sampled_from((1, 2, 4)),
            st.integers(0, ONES) | st.integers(0, 3),
        ),
        max_size=40,
    )
)
def test_any_access_is_harmless(accesses: list[tuple[bool, int, int, int]]) -> None:
    _, _, ports = _device()
    box = RequestBox(ports)
    box.ask(1, 2, 3)
    for write, port, size, value in accesses:
        if write:
            ports.write(port, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= ports.read(port, size) < 1 << 8 * size


def test_a_request_is_fetched_answered_and_ended() -> None:
    ports = Ports()
    box = RequestBox(ports)
    assert 0 == ports.read(REQUEST, 4)
    asked, second = box.ask(7, 11, 12), box.ask(8)
    assert not box.idle
    assert [7, 11, 12, 0] == [ports.read(REQUEST, 4), *(ports.read(ARGUMENT, 4) for _ in range(3))]
    ports.write(ANSWER, 4, 0x64636261)
    assert [None] == [asked.status]
    ports.write(END, 4, 1)
    assert [1] == [asked.status]
    assert ([0x64636261], b"abcd") == (asked.answers, asked.data)
    ports.write(ANSWER, 4, 5)  # nobody asked
    ports.write(END, 4, 0)
    assert [1, 1] == [asked.status, len(asked.answers)]
    assert [8, 0] == [ports.read(REQUEST, 4), ports.read(ARGUMENT, 4)]
    ports.write(END, 4, 0)
    assert 0 == second.status
    assert box.idle


def test_a_guest_that_looks_for_the_next_request_has_given_up_the_last() -> None:
    ports = Ports()
    box = RequestBox(ports)
    asked = box.ask(7)
    assert [7, 0] == [ports.read(REQUEST, 4), ports.read(REQUEST, 4)]
    ports.write(END, 4, 0)
    assert asked.status is None


def test_what_a_guest_says_by_itself_is_heard() -> None:
    ports = Ports()
    said = RequestBox(ports).listen(21, 22)
    assert [21, 22, 0] == [ports.read(ARGUMENT, 4) for _ in range(3)]
    ports.write(ANSWER, 4, 0x01020304)
    ports.write(END, 4, 0)
    assert ([0x01020304], 0) == (said.answers, said.status)


def test_a_guest_that_talks_for_ever_is_not_kept() -> None:
    ports = Ports()
    said = RequestBox(ports).listen()
    for _ in range(MOST_ANSWERS + 10):
        ports.write(ANSWER, 4, 1)
    assert MOST_ANSWERS == len(said.answers)
