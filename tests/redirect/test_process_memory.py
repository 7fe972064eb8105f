"""The memory of a caller: all of it or a fault, never more than is there, and nothing of who came after."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from cbit.redirect.process_memory import ClientMemory, Fault, Gone, ProcessMemory

PAGE = mmap.PAGESIZE
ROOM = 4 * PAGE
CALL = 7


class Callers:
    """Calls that wait: one, until it is gone."""

    def __init__(self) -> None:
        self.here = True

    def is_current(self, id_: int) -> bool:
        return self.here and id_ == CALL


def put(at: int, data: bytes) -> None:
    ctypes.memmove(at, data, len(data))


@pytest.fixture
def callers() -> Callers:
    return Callers()


@pytest.fixture
def memory(callers: Callers) -> ClientMemory:
    return ProcessMemory(callers).of(id_=CALL, tid=os.getpid())


@pytest.fixture
def area() -> Iterator[tuple[int, ctypes.Array[ctypes.c_char]]]:
    """Four pages, the last of which is not there; the third may only be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    private_anonymous = 0x22
    at = libc.mmap(None, ctypes.c_size_t(ROOM), 3, private_anonymous, -1, ctypes.c_long(0))
    assert at not in {None, ctypes.c_void_p(-1).value}
    assert 0 == libc.munmap(ctypes.c_void_p(at + 3 * PAGE), ctypes.c_size_t(PAGE))
    content = (ctypes.c_char * (3 * PAGE)).from_address(at)
    put(at, bytes(i * 7 % 251 for i in range(3 * PAGE)))
    assert 0 == libc.mprotect(ctypes.c_void_p(at + 2 * PAGE), ctypes.c_size_t(PAGE), 1)
    yield at, content
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(3 * PAGE))


Area = tuple[int, "ctypes.Array[ctypes.c_char]"]


@pytest.mark.parametrize("length", [0, 1, 16, PAGE, PAGE + 1, 3 * PAGE])
def test_what_is_there_is_read(memory: ClientMemory, area: Area, length: int) -> None:
    at, content = area
    assert content.raw[:length] == memory.read(at, length)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 3 * PAGE + 1), (3 * PAGE - 8, 9), (3 * PAGE, 1), (PAGE, 1 << 60)]
)
def test_one_byte_too_many_is_a_fault(memory: ClientMemory, area: Area, offset: int, length: int) -> None:
    with pytest.raises(Fault):
        memory.read(area[0] + offset, length)


@pytest.mark.parametrize("address", [0, 8, (1 << 47) - 1, 1 << 63, (1 << 64) - 8])
def test_no_memory_is_a_fault(memory: ClientMemory, address: int) -> None:
    with pytest.raises(Fault):
        memory.read(address, 16)
    with pytest.raises(Fault):
        memory.write(address, bytes(16))
    with pytest.raises(Fault):
        memory.string(address)


@pytest.mark.parametrize("length", [0, 3, PAGE, PAGE + 5, 2 * PAGE])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_what_is_written_is_there(memory: ClientMemory, area: Area, length: int, kind: type[bytes]) -> None:
    at, content = area
    before = content.raw
    data = os.urandom(length)
    memory.write(at, kind(data))
    assert data + before[length:] == content.raw


def test_what_may_not_be_written_is_not(memory: ClientMemory, area: Area) -> None:
    at, content = area
    before = content.raw
    with pytest.raises(Fault) as fault:
        memory.write(at + 2 * PAGE, b"new")
    assert (errno.EFAULT, before) == (fault.value.errno, content.raw)
    with pytest.raises(Fault):
        memory.write(at + 2 * PAGE - 2, b"four")
    assert before[: 2 * PAGE - 2] == content.raw[: 2 * PAGE - 2]
    assert before[2 * PAGE :] == content.raw[2 * PAGE :]


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4000])
def test_a_string_ends_at_its_zero(memory: ClientMemory, area: Area, length: int) -> None:
    at, _ = area
    text = b"/" * length
    put(at, text + b"\0")
    assert text == memory.string(at)


def test_a_string_at_the_end_of_memory_is_read(memory: ClientMemory, area: Area) -> None:
    at, _ = area
    put(at + 2 * PAGE - 5, b"/sev\0")
    assert b"/sev" == memory.string(at + 2 * PAGE - 5)


def test_a_string_without_an_end_is_refused(memory: ClientMemory, area: Area) -> None:
    at, _ = area
    put(at, b"a" * (2 * PAGE))
    with pytest.raises(OSError, match="does not end") as refused:
        memory.string(at)
    assert errno.ENAMETOOLONG == refused.value.errno


def test_of_a_caller_that_is_gone_nothing_is_believed(
    memory: ClientMemory, callers: Callers, area: Area
) -> None:
    at, content = area
    callers.here = False
    before = content.raw
    with pytest.raises(Gone):
        memory.read(at, 16)
    with pytest.raises(Gone):
        memory.read(at, 3 * PAGE)
    with pytest.raises(Gone):
        memory.string(at)
    with pytest.raises(Gone):
        memory.write(at, b"for somebody else")
    assert before == content.raw


def test_a_process_that_is_gone_is_gone(callers: Callers) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(Gone):
        ProcessMemory(callers).of(id_=CALL, tid=child).read(0x1000, 8)
