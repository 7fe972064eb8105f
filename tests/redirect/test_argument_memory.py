"""The kernel copies the argument, we reach the rest: a command sees one memory, and leaves one behind."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.redirect.argument_memory import ArgumentMemory
from cbit.redirect.process_memory import Buffer, Fault, Write

BASE, SIZE = 0x10000, 64
AT, LENGTH = BASE + 24, 16  # of the argument, in the middle


@dataclass
class Pages:
    """All of a caller's memory."""

    cells: bytearray = field(default_factory=lambda: bytearray(range(SIZE)))
    reads: int = 0

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        if address < BASE or address + length > BASE + SIZE:
            raise Fault(address)
        return bytes(self.cells[address - BASE : address - BASE + length])

    def write(self, address: int, data: Buffer) -> None:
        self.read(address, len(data))
        self.cells[address - BASE : address - BASE + len(data)] = data

    def write_all(self, writes: Sequence[Write]) -> None:
        for address, data in writes:
            self.write(address, data)


def of(pages: Pages, *, out_size: int = LENGTH) -> ArgumentMemory:
    data = bytes(pages.cells[AT - BASE : AT - BASE + LENGTH])
    return ArgumentMemory(pages, AT, data, out_size=out_size)


def test_the_argument_is_not_read_again(fresh: Pages) -> None:
    memory = of(fresh)
    assert bytes(range(24, 40)) == memory.read(AT, 16)
    assert bytes(range(28, 36)) == memory.read(AT + 4, 8)
    assert 0 == fresh.reads


@pytest.fixture
def fresh() -> Pages:
    return Pages()


def test_what_nobody_wrote_does_not_go_back(fresh: Pages) -> None:
    memory = of(fresh)
    memory.write(BASE, b"elsewhere")
    assert b"" == memory.out
    assert b"elsewhere" == fresh.cells[:9]


def test_what_was_written_goes_back_and_is_seen_meanwhile(fresh: Pages) -> None:
    memory = of(fresh)
    memory.write_all([(BASE, b"data"), (AT + 12, b"told")])
    assert bytes(range(24, 36)) + b"told" == memory.out
    assert b"told" == memory.read(AT + 12, 4)
    assert bytes(range(34, 36)) + b"told" + bytes([40]) == memory.read(AT + 10, 7)
    assert b"data" == fresh.cells[:4]


def test_the_later_of_two_writes_holds(fresh: Pages) -> None:
    memory = of(fresh)
    memory.write_all([(AT, b"the answer"), (AT, b"THE"), (AT + 8, b"zz")])
    assert b"THE answzz" == memory.out[:10]


@pytest.mark.parametrize("address", [BASE - 1, BASE + SIZE - 2])
def test_a_fault_elsewhere_is_raised_and_what_went_before_stays(fresh: Pages, address: int) -> None:
    memory = of(fresh)
    with pytest.raises(OSError, match="no such memory") as fault:
        memory.write_all([(AT + 12, b"told"), (address, b"data")])
    assert errno.EFAULT == fault.value.errno
    assert b"told" == memory.out[12:]
    with pytest.raises(OSError, match="no such memory"):
        memory.read(address, 4)


def test_what_does_not_go_back_is_written_at_once(fresh: Pages) -> None:
    memory = of(fresh, out_size=0)
    memory.write(AT, b"told")
    assert (b"", b"told") == (memory.out, bytes(fresh.cells[24:28]))
    assert b"told" == memory.read(AT, 4)


STEPS = st.lists(
    st.tuples(st.integers(BASE, BASE + SIZE - 1), st.binary(min_size=1, max_size=20), st.booleans()),
    max_size=8,
)


@given(STEPS, st.sampled_from([0, 4, LENGTH]))
def test_it_is_as_one_memory(steps: list[tuple[int, bytes, bool]], out_size: int) -> None:
    pages, plain = Pages(), Pages()
    memory = of(pages, out_size=out_size)
    for address, more, together in steps:
        data = more[: BASE + SIZE - address]
        plain.write(address, data)
        if together:
            memory.write_all([(address, data)])
        else:
            memory.write(address, data)
        assert plain.cells == memory.read(BASE, SIZE)
        assert plain.read(address, len(data)) == memory.read(address, len(data))
    out = memory.out
    pages.cells[AT - BASE : AT - BASE + len(out)] = out  # as the kernel does at the end
    assert plain.cells == pages.cells
