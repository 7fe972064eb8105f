"""A pipe of bytes behind the transport."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.devices.chipset import CHANNEL_SLOT, Chipset
from cbit.hypervisor.devices.disk import MemoryDisk
from cbit.hypervisor.devices.virtio.console import RECEIVE, TRANSMIT
from hypervisor.devices.driver import BUFFERS, DESC, Driver, Piece, config_read
from hypervisor.devices.worlds import Clock, Desk, Line, Memory

NEEDS_RESET = 64


class Pipe:
    """The host's end."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.coming = bytearray()

    def write(self, data: bytes) -> None:
        self.sent += data

    def read(self) -> bytes:
        here = bytes(self.coming)
        self.coming.clear()
        return here


def a_driver() -> tuple[Driver, Pipe]:
    pipe = Pipe()
    desk = Desk(channel=pipe)
    desk.start_pics()
    return Driver(desk, CHANNEL_SLOT).start(queues=2), pipe


def room(driver: Driver, *lengths: int, first: int = 0) -> None:
    """Offer room to receive, one request a length."""
    for i, length in enumerate(lengths, first):
        driver.descriptors([Piece(BUFFERS + 0x100 * i, length, writable=True)], first=i)
        driver.offer(i, RECEIVE)
    driver.kick(RECEIVE)


def test_it_is_a_console() -> None:
    driver, _ = a_driver()
    assert 0x1043_1AF4 == config_read(driver.desk, CHANNEL_SLOT, 0, 4)
    assert 2 == driver.get(0x12, 2)
    assert 1 == driver.desk.chipset.read(driver.port(4, 4), 4)  # one port


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5))
def test_what_the_guest_sends_arrives(texts: list[bytes]) -> None:
    driver, pipe = a_driver()
    place = DESC + driver.rings + (TRANSMIT << 14)
    for i, text in enumerate(texts):
        driver.desk.memory.write(BUFFERS + 0x400 * i, text)
        half = len(text) // 2
        pieces = [Piece(BUFFERS + 0x400 * i, half), Piece(BUFFERS + 0x400 * i + half, len(text) - half)]
        driver.descriptors(pieces, first=2 * i, at=place)
        driver.offer(2 * i, TRANSMIT)
    driver.kick(TRANSMIT)
    assert b"".join(texts) == pipe.sent
    assert [(2 * i, 0) for i in range(len(texts))] == driver.used(TRANSMIT)


def test_what_comes_fills_the_room_that_is_offered() -> None:
    driver, pipe = a_driver()
    room(driver, 5, 100)
    assert [] == driver.used(RECEIVE)
    pipe.coming += b"hello world"
    driver.desk.until(10**6)
    assert [(0, 5), (1, 6)] == driver.used(RECEIVE)
    assert b"hello" == driver.desk.memory.read(BUFFERS, 5)
    assert b" world" == driver.desk.memory.read(BUFFERS + 0x100, 6)
    assert driver.desk.chipset.interrupts.pending
    assert 1 == driver.isr()


def test_without_room_it_waits_and_is_delivered_with_the_next_kick() -> None:
    driver, pipe = a_driver()
    pipe.coming += b"early"
    driver.desk.chipset.poll()
    assert [] == driver.used(RECEIVE)
    room(driver, 3, 3, 3)
    assert [(0, 3), (1, 2)] == driver.used(RECEIVE)
    pipe.coming += b"late"
    driver.desk.chipset.poll()
    assert [(2, 3)] == driver.used(RECEIVE)[2:]


def test_before_the_driver_is_there_it_waits() -> None:
    pipe = Pipe()
    desk = Desk(channel=pipe)
    pipe.coming += b"first words"
    desk.chipset.poll()
    driver = Driver(desk, CHANNEL_SLOT).start(queues=2)
    room(driver, 64)
    assert [(0, 11)] == driver.used(RECEIVE)


def test_a_guest_that_does_not_read_stops_the_host() -> None:
    driver, pipe = a_driver()
    pipe.coming += bytes(100_000)
    driver.desk.chipset.poll()
    pipe.coming += b"x"
    driver.desk.chipset.poll()
    assert b"x" == pipe.coming  # not even fetched


@pytest.mark.parametrize("malice", ["no room to write", "beyond memory", "too much to send"])
def test_malice_ends_in_a_device_that_needs_a_reset(malice: str) -> None:
    driver, pipe = a_driver()
    if malice == "too much to send":
        raw = b"".join(struct.pack("<QIHH", 0, 1 << 19, i < 2, i + 1) for i in range(3))
        driver.desk.memory.write(DESC + driver.rings + (TRANSMIT << 14), raw)
        driver.offer(0, TRANSMIT)
        driver.kick(TRANSMIT)
    else:
        piece = Piece(BUFFERS, 16) if malice == "no room to write" else Piece(1 << 40, 16, writable=True)
        driver.descriptors([piece])
        driver.offer(0, RECEIVE)
        pipe.coming += b"text"
        driver.desk.chipset.poll()
    assert NEEDS_RESET | 15 == driver.status
    assert b"" == pipe.sent
    driver.desk.chipset.poll()


def test_it_needs_a_way_to_memory_and_its_slot() -> None:
    with pytest.raises(ValueError, match="DMA"):
        Chipset(Clock(), console=Line(), epoch=0, channel=Pipe())
    disks = [MemoryDisk(bytes(512))] * CHANNEL_SLOT
    with pytest.raises(ValueError, match="31 disks: 30 at most"):
        Chipset(Clock(), console=Line(), epoch=0, disks=disks, dma=Memory())
