"""Where a program's pages lie in the machine, while the secure processor works on them.

A virtual machine's memory is the program's own.  The first command that names a page gives it a frame of the
machine's memory, and it keeps that one: the engine's tweak is the frame's address.  For the time of a command
the bytes are in the frame; what is in the program's page afterwards is the memory rule's matter:

    encrypted   what the frame holds: ciphertext                         the model's own KVM
    plain       what the guest would read there                          a real KVM, whose processor has no
                                                                         AES engine between itself and memory
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from cbit.driver.caller_memory import CallerMemory
from cbit.memory.physical import PhysicalMemory
from cbit.spec.address import GIB, MIB, PAGE, Spa
from cbit.spec.errors import CbitError
from cbit.spec.key_id import UNENCRYPTED, KeyId

#: MODEL CHOICE: the largest region that can be registered; Linux asks the caller's limit of locked memory.
REGION_MAX: Final = 64 * GIB


class MemoryRule(StrEnum):
    """What a program's pages hold after a command has encrypted them."""

    ENCRYPTED = "encrypted"
    PLAIN = "plain"


class FreeFrames(Protocol):
    """Free memory of the machine."""

    def take(self, length: int) -> range:
        """Take contiguous frames for ``length`` bytes."""
        ...

    def give_back(self, frames: range) -> None:
        """Return frames taken before."""
        ...


class Run(NamedTuple):
    """A piece of the program's memory whose frames are neighbours."""

    address: int
    spa: Spa
    length: int


class ClientPages:
    """The frames of one virtual machine; more with every page that a command names.

    Args:
        memory: the machine's, as its cores see it.
        frames: where frames come from.
        limit: bytes of memory that the machine has.
        rule: what the program's pages hold.
    """

    def __init__(self, memory: PhysicalMemory, frames: FreeFrames, *, limit: int, rule: MemoryRule) -> None:
        self._memory, self._frames, self._limit, self.rule = memory, frames, limit, rule
        self._places: dict[int, Spa] = {}
        self._taken: list[range] = []

    def pin(self, caller: CallerMemory, address: int, length: int, *, to_write: bool = True) -> bytes:
        """Insist on memory that can be read and written, as the kernel does before it asks the firmware.

        Args:
            caller: whose memory.
            address: where it starts.
            length: bytes.
            to_write: False for memory that is only read from.

        Returns:
            What is in it.

        Raises:
            OSError: EINVAL no bytes, or an address that wraps around; ENOMEM memory that is not all there, or
                more than the machine has.
        """
        if length == 0 or address + length > 1 << 64:
            raise OSError(errno.EINVAL, f"{length:#x} bytes at {address:#x} cannot be pinned")
        if length > self._limit:
            raise OSError(errno.ENOMEM, f"{length:#x} bytes, and the machine has {self._limit:#x}")
        try:
            data = caller.read(address, length)
            if to_write:
                caller.write(address, data)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            raise OSError(errno.ENOMEM, f"{length:#x} bytes at {address:#x} are not all there") from None
        return data

    def insist(self, caller: CallerMemory, address: int, length: int) -> None:
        """Insist on memory that can be read, of any length: guest memory that is registered, all of it.

        It is looked at once in every MiB: copying gigabytes, or writing to memory that others write to, is
        not for a registration.  A smaller hole is found by the command that uses it.

        Raises:
            OSError: EINVAL no bytes, or an address that wraps around; ENOMEM memory that is not there.
        """
        if length == 0 or address + length > 1 << 64:
            raise OSError(errno.EINVAL, f"{length:#x} bytes at {address:#x} cannot be pinned")
        if length > REGION_MAX:
            raise OSError(errno.ENOMEM, f"{length:#x} bytes are more than {REGION_MAX:#x}")
        try:
            caller.read(address + length - 1, 1)
            for at in range(address, address + length, MIB):
                caller.read(at, 1)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            raise OSError(errno.ENOMEM, f"{length:#x} bytes at {address:#x} are not all there") from None

    def place(self, address: int, length: int) -> list[Run]:
        """Return where a range lies, giving frames to the pages that have none.

        Raises:
            OSError: ENOMEM, the machine has no more free memory.
        """
        pages = range(address & -PAGE, address + length, PAGE)
        missing = [page for page in pages if page not in self._places]
        try:
            for first, count in _neighbours(missing):
                frames = self._frames.take(count * PAGE)
                self._taken.append(frames)
                self._places |= {first + at * PAGE: Spa(frame) for at, frame in enumerate(frames)}
        except CbitError as error:
            raise OSError(errno.ENOMEM, str(error)) from None
        runs: list[Run] = []
        for page in pages:
            start, stop = max(page, address), min(page + PAGE, address + length)
            spa = Spa(self._places[page] + start - page)
            last = runs[-1] if runs else None
            if last is not None and last.spa + last.length == spa:
                runs[-1] = last._replace(length=last.length + stop - start)
            else:
                runs.append(Run(start, spa, stop - start))
        return runs

    def bring(self, data: bytes, runs: list[Run], key: KeyId) -> None:
        """Put what the program's pages hold of the guest's memory into the frames; ``key`` is the guest's."""
        self._store(data, runs, self._key(key))

    def bring_image(self, data: bytes, runs: list[Run]) -> None:
        """Put plaintext that is yet to be encrypted into the frames."""
        self._store(data, runs, UNENCRYPTED)

    def take(self, caller: CallerMemory, runs: list[Run], key: KeyId) -> None:
        """Put what is in the frames into the program's pages, as the rule has it."""
        stored = self._key(key)
        for run in runs:
            caller.write(run.address, self._memory.read(run.spa, run.length, stored))

    def take_image(self, caller: CallerMemory, runs: list[Run]) -> None:
        """Put an image that was encrypted in its frames into the program's pages, which have it plain."""
        if self.rule is MemoryRule.ENCRYPTED:
            self.take(caller, runs, UNENCRYPTED)

    def _store(self, data: bytes, runs: list[Run], key: KeyId) -> None:
        done = 0
        for run in runs:
            self._memory.write(run.spa, data[done : done + run.length], key)
            done += run.length

    def release(self) -> None:
        """Give all frames back."""
        for frames in self._taken:
            self._frames.give_back(frames)
        self._taken.clear()
        self._places.clear()

    def _key(self, guest: KeyId) -> KeyId:
        """With which key the program's own view of a page is the frame's content."""
        return UNENCRYPTED if self.rule is MemoryRule.ENCRYPTED else guest


def _neighbours(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Group pages that follow one another: (first, count)."""
    start = 0
    for i, page in enumerate(pages):
        if i + 1 == len(pages) or pages[i + 1] != page + PAGE:
            yield pages[start], i + 1 - start
            start = i + 1
