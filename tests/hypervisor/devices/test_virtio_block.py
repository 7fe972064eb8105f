"""A disk behind the modern transport: what a driver does, and what a malicious one does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.hypervisor.devices.disk import BadDisk, Disk, FileDisk, MemoryDisk
from cbit.hypervisor.devices.virtio.block import FEATURE_READ_ONLY
from cbit.trace import Trace
from hypervisor.devices.driver import (
    ACCEPT,
    AVAIL,
    BUFFERS,
    DESC,
    SIZE,
    USED,
    DiskDriver,
    Piece,
    config_read,
    config_write,
)
from hypervisor.devices.worlds import Desk

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2
NEEDS_RESET = 64
SECTORS = bytes(i // 512 for i in range(16 * 512))


def a_driver(disk: Disk | None = None, *, trace: Trace | None = None) -> DiskDriver:
    desk = Desk(disks=[disk or MemoryDisk(SECTORS)], trace=trace or Trace())
    desk.start_pics()
    return DiskDriver(desk)


# ---- what a driver does


def test_every_register_is_in_one_window_of_ports() -> None:
    driver = a_driver()
    assert {1, 2, 3, 4, 5} == set(driver.capabilities)
    assert 1 == config_read(driver.desk, 1, 0x10, 4) & 3  # I/O space
    for window, offset, length in driver.capabilities.values():
        assert 0 == window
        assert offset + length <= 0x100
    assert 1 == config_read(driver.desk, 1, 8, 1)  # revision 1: no legacy interface
    assert 0 == config_read(driver.desk, 1, 0x14, 4)  # no other window


def test_what_it_offers() -> None:
    driver = a_driver()
    assert ACCEPT | 1 << 28 | 1 << 9 | 1 << 6 | 1 << 2 | 1 << 1 == driver.features()
    assert driver.features() | FEATURE_READ_ONLY == a_driver(MemoryDisk(SECTORS, read_only=True)).features()
    driver.set(0, 4, 2)
    assert 0 == driver.get(4, 4)
    assert 0 == driver.desk.chipset.read(driver.port(2), 2)  # notification is for writing


def test_configuration() -> None:
    driver = a_driver()
    raw = b"".join(
        driver.desk.chipset.read(driver.port(4, i), 4).to_bytes(4, "little") for i in range(0, 24, 4)
    )
    assert (16, 1 << 20, 126, 512) == struct.unpack("<QII4xI", raw)
    assert 0 == driver.desk.chipset.read(driver.port(4, 0x60), 4)


@pytest.mark.parametrize("accept", [0, 1 << 32, 1 << 33, ACCEPT | 1 << 29, ACCEPT | 1])
def test_features_that_it_cannot_do_or_must_have_are_refused(accept: int) -> None:
    driver = a_driver()
    assert not driver.negotiate(accept)
    driver.set(0x14, 1, 15)
    assert not driver.status & 4
    driver.set_up_queue()
    assert 0 == driver.get(0x1C, 2)


def test_features_stand_once_they_are_accepted() -> None:
    driver = a_driver()
    assert driver.negotiate()
    driver.set(8, 4, 1)
    driver.set(0xC, 4, 0)
    assert 3 == driver.get(0xC, 4)


def test_a_disk_is_read_and_written() -> None:
    disk = MemoryDisk(SECTORS)
    driver = a_driver(disk).start()
    assert (OK, SECTORS[512:2048], 1537) == driver.request(IN, 1, room=1536)
    assert (OK, b"", 1) == driver.request(OUT, 15, b"new!" * 128)
    assert (OK, b"new!" * 128, 513) == driver.request(IN, 15, room=512)
    assert SECTORS[:-512] + b"new!" * 128 == disk.data
    assert (OK, b"", 1) == driver.request(FLUSH, 0)
    assert (OK, b"cbit-disk-1".ljust(20, b"\0"), 21) == driver.request(GET_ID, 0, room=20)


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room", "status"),
    [
        (IN, 16, b"", 512, IOERR),
        (IN, 15, b"", 1024, IOERR),
        (IN, (1 << 64) - 1, b"", 512, IOERR),
        (IN, 0, b"", 511, IOERR),
        (OUT, 16, bytes(512), 0, IOERR),
        (OUT, 0, bytes(100), 0, IOERR),
        (OUT, 1 << 60, bytes(512), 0, IOERR),
        (11, 0, bytes(16), 0, UNSUPP),  # discard, which it does not offer
        (0xFFFFFFFF, 0, b"", 0, UNSUPP),
    ],
)
def test_what_the_disk_does_not_have_is_an_error_and_moves_nothing(
    kind: int, sector: int, data: bytes, room: int, status: int
) -> None:
    disk = MemoryDisk(SECTORS)
    driver = a_driver(disk).start()
    assert (status, bytes(room), 1) == driver.request(kind, sector, data, room=room)
    assert SECTORS == disk.data
    assert 15 == driver.status


def test_a_read_only_disk_is_not_written() -> None:
    disk = MemoryDisk(SECTORS, read_only=True)
    driver = a_driver(disk).start(accept=ACCEPT | FEATURE_READ_ONLY)
    assert (IOERR, b"", 1) == driver.request(OUT, 0, bytes(512))
    assert (OK, SECTORS[:512], 513) == driver.request(IN, 0, room=512)
    assert SECTORS == disk.data


@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=8),
    st.lists(st.integers(1, 700), min_size=1, max_size=8),
)
def test_how_a_request_is_cut_into_pieces_does_not_matter(first: list[int], second: list[int]) -> None:
    disk = MemoryDisk(SECTORS)
    driver = a_driver(disk).start()
    memory, text = driver.desk.memory, bytes(range(256)) * 4
    memory.write(BUFFERS, struct.pack("<IIQ", OUT, 0, 3) + text)
    memory.write(BUFFERS + 0x800, struct.pack("<IIQ", IN, 0, 3))
    out = [*_cut(BUFFERS, 16 + 1024, first), Piece(BUFFERS + 0x700, 1, writable=True)]
    back = [*_cut(BUFFERS + 0x800, 16, first), *_cut(BUFFERS + 0x1000, 1025, second, writable=True)]
    assert 1 == driver.ask(out)
    assert 1025 == driver.ask(back)
    assert text + b"\0" == memory.read(BUFFERS + 0x1000, 1025)


def _cut(gpa: int, length: int, sizes: list[int], *, writable: bool = False) -> list[Piece]:
    pieces = []
    for size in sizes:
        here = min(size, length)
        if here:
            pieces.append(Piece(gpa, here, writable=writable))
        gpa, length = gpa + here, length - here
    return [*pieces, Piece(gpa, length, writable=writable)] if length else pieces


def test_an_indirect_table_is_a_chain_too() -> None:
    driver = a_driver().start(accept=ACCEPT | 1 << 28)
    memory = driver.desk.memory
    memory.write(BUFFERS, struct.pack("<IIQ", IN, 0, 2))
    table = BUFFERS + 0x8000
    pieces = [Piece(BUFFERS, 16), Piece(BUFFERS + 0x1000, 513, writable=True)]
    driver.descriptors(pieces, at=table)
    memory.write(DESC, struct.pack("<QIHH", table, 32, 4, 0))
    driver.offer(0)
    driver.kick()
    assert [(0, 513)] == driver.used()
    assert SECTORS[1024:1536] + b"\0" == memory.read(BUFFERS + 0x1000, 513)


def test_many_requests_at_one_kick_are_answered_in_order_around_the_ring() -> None:
    driver = a_driver().start()
    memory = driver.desk.memory
    for round_ in range(5):
        for head in range(0, 120, 3):
            at = BUFFERS + 0x1000 * (head // 3)
            memory.write(at, struct.pack("<IIQ", IN, 0, head % 16))
            pieces = [
                Piece(at, 16),
                Piece(at + 0x200, 512, writable=True),
                Piece(at + 0x100, 1, writable=True),
            ]
            driver.descriptors(pieces, first=head)
            driver.offer(head)
        driver.kick()
        assert [(head, 513) for head in range(0, 120, 3)] == driver.used()[40 * round_ :]
    assert all(
        SECTORS[512 * (h % 16) :][:512] == memory.read(BUFFERS + 0x1000 * (h // 3) + 0x200, 512)
        for h in range(0, 120, 3)
    )


def test_interrupts_come_unless_the_driver_wants_none() -> None:
    driver = a_driver().start()
    interrupts = driver.desk.chipset.interrupts
    driver.request(FLUSH, 0)
    assert interrupts.pending
    assert 1 == driver.isr()
    assert 0 == driver.isr()
    assert not interrupts.pending
    driver.desk.memory.write(AVAIL, struct.pack("<H", 1))
    driver.request(FLUSH, 0)
    assert not interrupts.pending
    driver.kick()  # nothing waits
    assert not interrupts.pending


def test_a_device_that_may_not_be_master_reads_no_memory() -> None:
    driver = a_driver().start()
    config_write(driver.desk, 1, 4, 2, 1)
    driver.descriptors([Piece(BUFFERS, 16), Piece(BUFFERS + 16, 1, writable=True)])
    driver.offer(0)
    reads = driver.desk.memory.reads
    driver.kick()
    assert reads == driver.desk.memory.reads
    config_write(driver.desk, 1, 4, 2, 5)
    driver.kick()
    assert [0] == [head for head, _ in driver.used()]


def test_the_window_can_be_reached_through_configuration_space() -> None:
    driver = a_driver()
    at = config_read(driver.desk, 1, 0x34, 1)
    while config_read(driver.desk, 1, at + 3, 1) != 5:
        at = config_read(driver.desk, 1, at + 1, 1)
    config_write(driver.desk, 1, at + 4, 1, 0)

    def through(offset: int, length: int) -> int:
        config_write(driver.desk, 1, at + 8, 4, offset)
        config_write(driver.desk, 1, at + 12, 4, length)
        return config_read(driver.desk, 1, at + 16, 4)

    assert 1 == through(0x12, 2)
    through(0x14, 1)
    config_write(driver.desk, 1, at + 16, 1, 3)
    assert 3 == driver.status
    for offset, length in ((0x12, 3), (0x13, 2), (0x100, 1), (0xFFFF_FFFC, 4), (0, 0)):
        config_write(driver.desk, 1, at + 16, 4, 0x0F)
        through(offset, length)
    config_write(driver.desk, 1, at + 4, 1, 1)  # a window that it does not have
    config_write(driver.desk, 1, at + 16, 4, 0)
    assert 3 == driver.status


def test_a_reset_forgets_everything() -> None:
    driver = a_driver().start()
    driver.request(FLUSH, 0)
    driver.set(0x14, 1, 0)
    assert not driver.desk.chipset.interrupts.pending
    driver.set(8, 4, 1)
    assert (0, 0, 0, 0) == (driver.status, driver.get(0x1C, 2), driver.get(0x20, 4), driver.get(0xC, 4))
    driver.desk.memory.write(USED, bytes(4))
    driver.desk.memory.write(AVAIL, bytes(4))
    assert OK == driver.start().request(FLUSH, 0)[0]


# ---- what a malicious driver does


def head(driver: DiskDriver, *descriptors: tuple[int, int, int, int]) -> None:
    """Write raw descriptors, and offer the first."""
    raw = b"".join(struct.pack("<QIHH", *each) for each in descriptors)
    driver.desk.memory.write(DESC, raw)
    driver.offer(0)


def ring(driver: DiskDriver, *, idx: int) -> None:
    driver.desk.memory.write(AVAIL + 2, struct.pack("<H", idx))


def beyond(driver: DiskDriver) -> None:
    """A well-formed read whose data piece is not memory."""
    driver.desk.memory.write(BUFFERS, struct.pack("<IIQ", IN, 0, 0))
    head(driver, (BUFFERS, 16, 1, 1), (1 << 40, 512, 3, 2), (BUFFERS + 16, 1, 2, 0))


def status_beyond(driver: DiskDriver) -> None:
    driver.desk.memory.write(BUFFERS, struct.pack("<IIQ", FLUSH, 0, 0))
    head(driver, (BUFFERS, 16, 1, 1), (1 << 40, 1, 2, 0))


TABLE = BUFFERS + 0x8000


def indirect(driver: DiskDriver, descriptor: tuple[int, int, int, int]) -> None:
    """An indirect table of one descriptor."""
    driver.desk.memory.write(TABLE, struct.pack("<QIHH", *descriptor))
    head(driver, (TABLE, 16, 4, 0))


MALICE: dict[str, Callable[[DiskDriver], None]] = {
    "a head that is no descriptor": lambda d: d.offer(SIZE),
    "a chain that points to no descriptor": lambda d: head(d, (BUFFERS, 16, 1, SIZE)),
    "a chain in a circle": lambda d: head(d, (BUFFERS, 16, 1, 1), (BUFFERS, 16, 1, 0)),
    "a descriptor that follows itself": lambda d: head(d, (BUFFERS, 16, 1, 0)),
    "a header beyond memory": lambda d: head(d, (1 << 40, 16, 1, 1), (BUFFERS, 1, 2, 0)),
    "a length that leaves the address space": lambda d: head(
        d, ((1 << 64) - 8, 16, 1, 1), (BUFFERS, 1, 2, 0)
    ),
    "data beyond memory": beyond,
    "a status beyond memory": status_beyond,
    "something to read behind something to write": lambda d: head(
        d, (BUFFERS, 16, 3, 1), (BUFFERS, 16, 0, 0)
    ),
    "no status": lambda d: head(d, (BUFFERS, 16, 0, 0)),
    "no header": lambda d: head(d, (BUFFERS, 1, 2, 0)),
    "a short header": lambda d: head(d, (BUFFERS, 15, 1, 1), (BUFFERS, 1, 2, 0)),
    "an empty piece alone": lambda d: head(d, (BUFFERS, 0, 0, 0)),
    "more requests than the queue holds": lambda d: ring(d, idx=SIZE + 1),
    "an index that went back": lambda d: ring(d, idx=0xFFFF),
    "an empty indirect table": lambda d: head(d, (TABLE, 0, 4, 0)),
    "an indirect table of half a descriptor": lambda d: head(d, (TABLE, 24, 4, 0)),
    "an endless indirect table": lambda d: head(d, (TABLE, 0xFFFF_FFF0, 4, 0)),
    "an indirect table beyond memory": lambda d: head(d, (1 << 40, 32, 4, 0)),
    "an indirect table that goes on": lambda d: head(d, (TABLE, 16, 5, 1)),
    "an indirect table in an indirect table": lambda d: indirect(d, (TABLE, 16, 4, 0)),
    "an indirect table in a circle": lambda d: indirect(d, (BUFFERS, 16, 1, 0)),
}


@pytest.mark.parametrize("malice", MALICE)
def test_malice_ends_in_a_device_that_needs_a_reset(malice: str) -> None:
    trace, disk = Trace(), MemoryDisk(SECTORS)
    driver = a_driver(disk, trace=trace).start()
    interrupts = driver.desk.chipset.interrupts
    with trace.recorded() as events:
        MALICE[malice](driver)
        driver.kick()
    assert NEEDS_RESET | 15 == driver.status
    assert ["virtio device needs a reset"] == [event.what for event in events]
    assert events[0].why
    assert interrupts.pending
    assert 2 == driver.isr() & 2  # the configuration has changed
    assert SECTORS == disk.data
    reads = driver.desk.memory.reads
    driver.kick()
    assert reads == driver.desk.memory.reads  # it is dead
    for place in (USED, AVAIL):
        driver.desk.memory.write(place, bytes(4))
    assert OK == driver.start().request(FLUSH, 0)[0]  # and comes back


@pytest.mark.parametrize(("size", "desc"), [(3, DESC), (0, DESC), (256, DESC), (SIZE, DESC + 8)])
def test_a_queue_that_cannot_be_breaks_the_device(size: int, desc: int) -> None:
    driver = a_driver()
    driver.negotiate()
    driver.set_up_queue(size=size, desc=desc)
    assert 0 == driver.get(0x1C, 2)
    assert driver.status & NEEDS_RESET


@pytest.mark.parametrize("place", [AVAIL, USED])
def test_rings_beyond_memory_break_the_device(place: int) -> None:
    driver = a_driver()
    driver.negotiate()
    driver.set(0x16, 2, 0)
    for offset, at in ((0x20, DESC), (0x28, AVAIL), (0x30, USED)):
        driver.set(offset, 4, at)
        driver.set(offset + 4, 4, at == place)
    driver.set(0x1C, 2, 1)
    driver.set(0x14, 1, 15)
    driver.tail[0] = 0
    driver.desk.memory.write(BUFFERS, struct.pack("<IIQ", FLUSH, 0, 0))
    head(driver, (BUFFERS, 16, 1, 1), (BUFFERS + 16, 1, 2, 0))
    driver.kick()
    assert driver.status & NEEDS_RESET


def test_a_request_that_overwrites_the_ring_does_not_keep_the_device_busy() -> None:
    """The data of a read land on the driver's ring, and say that more waits."""
    sector = struct.pack("<HH", 0, 100) + bytes(508)
    driver = a_driver(MemoryDisk(sector * 16)).start()
    driver.desk.memory.write(BUFFERS, struct.pack("<IIQ", IN, 0, 0))
    head(driver, (BUFFERS, 16, 1, 1), (AVAIL, 512, 3, 2), (BUFFERS + 16, 1, 2, 0))
    driver.kick()
    assert 1 == len(driver.used())
    driver.kick()  # now it believes the ring: 99 times the same request, once each
    assert 100 == len(driver.used())


def test_a_huge_request_is_an_error_and_takes_no_time() -> None:
    class Endless(MemoryDisk):
        def __init__(self) -> None:
            super().__init__(bytes(512))
            self.size = 1 << 50

        def read(self, offset: int, length: int) -> bytes:
            raise AssertionError("nothing is read for a request that is too long")

    driver = a_driver(Endless()).start()
    driver.desk.memory.write(BUFFERS, struct.pack("<IIQ", IN, 0, 0))
    head(driver, (BUFFERS, 16, 1, 1), (BUFFERS, 0xFFFF_FE00, 3, 2), (BUFFERS + 16, 1, 2, 0))
    driver.kick()
    assert [(0, 1)] == driver.used()
    assert bytes([IOERR]) == driver.desk.memory.read(BUFFERS + 16, 1)


@given(st.data())
def test_no_content_of_a_queue_raises_or_hangs(data: st.DataObject) -> None:
    driver = a_driver().start(accept=ACCEPT | 1 << 28)
    word = st.one_of(
        st.sampled_from([0, 1, 2, 15, 16, 512, BUFFERS, DESC, AVAIL, USED, 1 << 20]), st.integers(0)
    )
    for slot in range(8):
        gpa, length, flags, following = (data.draw(word) for _ in range(4))
        raw = struct.pack("<QIHH", gpa & 0xFFFF_FFFF, length & 0xFFFF, flags & 7, following & 7)
        driver.desk.memory.write(DESC + 16 * slot, raw)
    driver.desk.memory.write(BUFFERS, struct.pack("<IIQ", data.draw(word) & 0xF, 0, data.draw(word) & 0x1F))
    for each in data.draw(st.lists(st.integers(0, 7), max_size=5)):
        driver.offer(each)
        driver.kick()
    assert driver.status in (15, NEEDS_RESET | 15)


# ---- what holds the sectors


def test_a_disk_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(SECTORS)
    disk = FileDisk(path)
    driver = a_driver(disk).start()
    assert (OK, b"", 1) == driver.request(OUT, 1, b"file" * 128)
    assert (OK, b"", 1) == driver.request(FLUSH, 0)
    assert (OK, b"file" * 128, 513) == driver.request(IN, 1, room=512)
    assert SECTORS[:512] + b"file" * 128 + SECTORS[1024:] == path.read_bytes()
    disk.close()
    disk.close()
    assert IOERR == driver.request(IN, 1, room=512)[0]


def test_a_file_that_becomes_shorter_is_an_io_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(SECTORS)
    driver = a_driver(FileDisk(path)).start()
    path.write_bytes(b"")
    assert (IOERR, bytes(512), 1) == driver.request(IN, 1, room=512)
    assert 15 == driver.status


def test_a_file_is_opened_for_reading_only(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(SECTORS)
    path.chmod(0o400)
    driver = a_driver(FileDisk(path, read_only=True)).start(accept=ACCEPT | FEATURE_READ_ONLY)
    assert IOERR == driver.request(OUT, 0, bytes(512))[0]
    assert SECTORS == path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 511, 513])
def test_a_disk_is_whole_sectors(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(size))
    for make in (lambda: FileDisk(path), lambda: MemoryDisk(bytes(size))):
        with pytest.raises(BadDisk, match=f"{size} bytes"):
            make()


@pytest.mark.parametrize(
    ("first", "second", "refused"), [(0, 0, True), (0, 1, True), (1, 0, True), (1, 1, False)]
)
def test_one_machine_writes_or_several_read(tmp_path: Path, first: int, second: int, refused: bool) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(SECTORS)
    disk = FileDisk(path, read_only=bool(first))
    if refused:
        with pytest.raises(BadDisk, match="another machine"):
            FileDisk(path, read_only=bool(second))
        disk.close()
    FileDisk(path, read_only=bool(second)).close()


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.img", tmp_path):
        with pytest.raises(BadDisk, match=str(path)):
            FileDisk(path)


def test_a_disk_needs_a_way_to_memory() -> None:
    from cbit.hypervisor.devices.chipset import Chipset
    from hypervisor.devices.worlds import Clock, Line

    with pytest.raises(ValueError, match="DMA"):
        Chipset(Clock(), console=Line(), epoch=0, disks=[MemoryDisk(SECTORS)])
