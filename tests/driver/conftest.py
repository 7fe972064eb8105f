"""A machine behind /dev/sev, and a program's memory to call it from."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TypeVar

import pytest

from cbit.driver.sev_ioctl import ROOM, TMR_SIZE, Opening, SevDevice
from cbit.driver.sev_structs import SEV_ISSUE_CMD, IssueCmd, SevCommand
from cbit.spec.address import Spa
from cbit.spec.wire import Wire
from cbit.trace import Event
from driver.callers import EachWrite
from driver.kvm_worlds import Desk, Program, a_desk
from secure_processor.worlds import TMR, Chips, World

AnyWire = TypeVar("AnyWire", bound=Wire)
BASE = 0x7F00_0000_0000
SIZE = 0x20000
UNTOUCHED = 0xAB  #: what the error field and all memory hold before a command
BLOB_A, BLOB_B = BASE + 0x8000, BASE + 0x10000


class Caller(EachWrite):
    """A program: memory of its own, part of which may not be written, and calls as libc makes them."""

    def __init__(self, device: SevDevice, *, writable: bool = True) -> None:
        self.device = device
        self.opening = device.open(None) if writable else Opening(writable=False)
        self.cells = bytearray(bytes([UNTOUCHED]) * SIZE)
        self.read_only: range = range(0)

    def read(self, address: int, length: int) -> bytes:
        if not BASE <= address <= address + length <= BASE + SIZE:
            raise OSError(errno.EFAULT, "no such memory")
        return bytes(self.cells[address - BASE : address - BASE + length])

    def write(self, address: int, data: bytes) -> None:
        self.read(address, len(data))
        if any(address < end and start < address + len(data) for start, end in self._locked()):
            raise OSError(errno.EFAULT, "memory that may not be written")
        self.cells[address - BASE : address - BASE + len(data)] = data

    def _locked(self) -> list[tuple[int, int]]:
        return [(self.read_only.start, self.read_only.stop)] if self.read_only else []

    def issue(self, command: int, data: int = 0) -> tuple[str, int]:
        """Return (errno's name or "ok", the error field)."""
        self.write(BASE, bytes(IssueCmd(cmd=command, data=data, error=UNTOUCHED)))
        try:
            result = self.device.ioctl(self.opening, SEV_ISSUE_CMD, BASE, self)
        except OSError as error:
            said = errno.errorcode[error.errno or 0]
        else:
            assert result == 0
            said = "ok"
        after = IssueCmd.parse(self.read(BASE, IssueCmd.SIZE))
        assert (command, data) == (after.cmd, after.data)
        return said, after.error

    def give(self, command: int, structure: AnyWire) -> tuple[str, int, AnyWire]:
        """Issue a command with a structure; also return the structure as it came back."""
        at = BASE + 0x100
        self.write(at, bytes(structure))
        said, error = self.issue(command, at)
        return said, error, type(structure).parse(self.read(at, structure.SIZE))

    def status(self) -> tuple[str, int]:
        return self.issue(SevCommand.PLATFORM_STATUS, BASE + 0x200)


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return Chips(tmp_path_factory.mktemp("chips"))


@pytest.fixture
def world(chips: Chips) -> Iterator[World]:
    with chips.world() as world:
        yield world


def a_device(world: World, *, es: bool = True) -> SevDevice:
    assert TMR % TMR_SIZE == 0
    desk = world.desk
    return SevDevice(world.machine, desk.ccp, room=desk.room(ROOM), tmr=Spa(TMR) if es else None)


@pytest.fixture
def caller(world: World) -> Caller:
    return Caller(a_device(world))


@pytest.fixture
def refused(world: World) -> Iterator[list[str]]:
    """What the driver gave as reasons, in order."""
    reasons: list[str] = []

    def hear(event: Event) -> None:
        if event.part == "driver":
            assert event.why
            reasons.append(f"{event.what}: {event.why}")

    with world.trace.watched_by(hear):
        yield reasons


@pytest.fixture
def desk(chips: Chips) -> Iterator[Desk]:
    with a_desk(chips) as desk:
        yield desk


@pytest.fixture
def program(desk: Desk) -> Program:
    return desk.program()
