"""A program's pages are pinned as the kernel pins them: to be written, to be read, or only to be there."""

from __future__ import annotations

import errno

import pytest

from cbit.driver.client_pages import ClientPages, MemoryRule
from cbit.memory.physical import PhysicalMemory
from cbit.spec.address import GIB, MIB
from driver.callers import EachWrite


class Mapped(EachWrite):
    """Memory that is there from 1 GiB to 5 GiB, and cannot be written."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def read(self, address: int, length: int) -> bytes:
        self.read_bytes += length
        if not GIB <= address <= address + length <= 5 * GIB:
            raise OSError(errno.EFAULT, "not mapped")
        return bytes(length)

    def write(self, address: int, data: bytes) -> None:
        raise OSError(errno.EFAULT, "not writable")


@pytest.fixture
def pages() -> ClientPages:
    nothing: PhysicalMemory = None  # type: ignore[assignment]  # pinning does not reach the machine
    return ClientPages(nothing, None, limit=64 * MIB, rule=MemoryRule.PLAIN)  # type: ignore[arg-type]  # as above


def test_memory_that_is_only_read_need_not_be_writable(pages: ClientPages) -> None:
    memory = Mapped()
    assert bytes(32) == pages.pin(memory, GIB, 32, to_write=False)
    with pytest.raises(OSError, match="not all there") as refused:
        pages.pin(memory, GIB, 32)
    assert errno.ENOMEM == refused.value.errno


def test_guest_memory_may_be_larger_than_the_machine_and_is_not_copied(pages: ClientPages) -> None:
    memory = Mapped()
    pages.insist(memory, GIB, 4 * GIB)
    assert 4 * GIB // MIB + 1 == memory.read_bytes


@pytest.mark.parametrize(
    ("address", "length", "code"),
    [
        (GIB, 0, errno.EINVAL),
        ((1 << 64) - 1, 2, errno.EINVAL),
        (GIB, 4 * GIB + 1, errno.ENOMEM),
        (GIB, 1 << 62, errno.ENOMEM),
        (GIB - 1, 2, errno.ENOMEM),
        (5 * GIB - MIB, 2 * MIB, errno.ENOMEM),
    ],
)
def test_guest_memory_that_is_not_there_is_refused(
    pages: ClientPages, address: int, length: int, code: int
) -> None:
    with pytest.raises(OSError, match=r"cannot be pinned|not all there|are more than") as refused:
        pages.insist(Mapped(), address, length)
    assert code == refused.value.errno
