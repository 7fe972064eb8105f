"""Any requests of many programs, in this process: what answers them raises OSError alone, and leaks nothing.

The same storm as ``cli/test_fuzz.py``, whose million goes through a kernel.  Here it is known what each was
answered, so that an answer that no driver gives is found out.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import pytest

from cbit.driver.caller_memory import write_each
from cbit.driver.client_pages import MemoryRule
from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
)
from cbit.driver.sev_structs import SEV_ISSUE_CMD
from cbit.redirect.backend import Backend
from cbit.redirect.clients import AnyDevice
from cbit.redirect.device import Client, Give
from cbit.redirect.files import SEV
from cbit.redirect.kvm import SuppliedKvm
from cbit.redirect.kvm_requests import (
    KVM,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_RUN,
    KVM_SET_USER_MEMORY_REGION,
    KVM_VCPU,
    KVM_VM,
    requests_on,
)
from cbit.redirect.kvm_requests import REQUESTS as KVM_REQUESTS
from cbit.redirect.process_memory import Buffer, Write
from cbit.trace import Trace
from secure_processor.worlds import Chips

PAGE: Final = 4096
BASE: Final = 0x7F12_3450_0000
ARENA: Final = 16 * PAGE
READ_ONLY: Final = ARENA - PAGE  # the last page; a hole follows
LENGTHS: Final = (
    0,
    1,
    16,
    32,
    48,
    52,
    63,
    64,
    0x824,
    4096,
    0x186C,
    0x2000,
    0x4000,
    0x4001,
    0x10000,
    0x7FFFFFFF,
)
ODD: Final = (0, 8, 0xFFFFFFFF81000000, (1 << 64) - 1, BASE - 1, BASE + ARENA - 7, 1 << 47)
PROGRAMS: Final = 16
MOST: Final = 12  # descriptors of a program
LOOK: Final = 500  # calls between two looks of somebody who only asks for the status
EXPECTED: Final = frozenset(
    {
        "E2BIG",
        "EBADF",
        "EBUSY",
        "EEXIST",
        "EFAULT",
        "EINVAL",
        "EIO",
        "ENODEV",
        "ENOENT",
        "ENOMEM",
        "ENOTTY",
        "ENOTSUP",
        "ENXIO",
        "EPERM",
    }
)


@dataclass
class Memory:
    """A program's: some pages, the last of which may not be written."""

    cells: bytearray = field(default_factory=lambda: bytearray(ARENA))

    def read(self, address: int, length: int) -> bytes:
        at = address - BASE
        if at < 0 or at + length > ARENA:
            raise OSError(errno.EFAULT, "no such memory")
        return bytes(self.cells[at : at + length])

    def write(self, address: int, data: Buffer) -> None:
        at = address - BASE
        if at < 0 or at + len(data) > READ_ONLY:
            raise OSError(errno.EFAULT, "no such memory, or only to be read")
        self.cells[at : at + len(data)] = data

    def write_all(self, writes: Sequence[Write]) -> None:
        write_each(self.write, writes)


@dataclass(eq=False)
class Opened:
    """An open file description; descriptors share it."""

    kind: str
    handle: Any
    names: int = 1
    type: int = 0  # of a machine
    done: int = 0  # steps of a launch


class Program:
    """One client of the devices: descriptors, memory, and calls drawn from a seed."""

    def __init__(self, devices: dict[str, AnyDevice], random: Random) -> None:
        self.devices, self.random, self.memory = devices, random, Memory()
        self.descriptors: dict[int, Opened] = {}
        client = Client(1, self.names)
        for number, kind in enumerate((SEV, KVM), 3):
            self.descriptors[number] = Opened(kind, devices[kind].open(client, writable=True))

    def names(self, number: int) -> str:
        """What the devices ask about a descriptor of ours."""
        if number not in self.descriptors:
            raise OSError(errno.EBADF, "no such descriptor")
        return self.descriptors[number].kind

    def ioctl(self, number: int, request: int, argument: int) -> int | str:
        """As the kernel would: return the result, or the error's name."""
        opened = self.descriptors.get(number)
        if opened is None:
            return "EBADF"
        if request not in REQUESTS[opened.kind]:
            return "ENOTTY"  # not one of those that the programs' requests are caught for
        try:
            result = self.devices[opened.kind].ioctl(opened.handle, request, argument, self.memory)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        if isinstance(result, Give):
            self.keep(Opened(result.link, result.handle, type=argument if opened.kind == KVM else 0))
            return 0
        return result if isinstance(result, int) else 0

    def keep(self, opened: Opened) -> None:
        """Give it a number; one of the others goes, if there are many."""
        if len(self.descriptors) >= MOST:
            self.close(self.random.choice([number for number in self.descriptors if number > 4] or [3]))
        self.descriptors[max(self.descriptors, default=2) + 1] = opened

    def close(self, number: int) -> None:
        opened = self.descriptors.pop(number)
        opened.names -= 1
        if not opened.names:
            self.devices[opened.kind].close(opened.handle)

    def end(self) -> None:
        for number in list(self.descriptors):
            self.close(number)

    # ---- what may be asked for

    def a_descriptor(self, few: int) -> int:
        """Mostly one that has something to say to a request of memory encryption; sometimes none of ours."""
        if not few & 15:
            return few >> 4
        good = [number for number, opened in self.descriptors.items() if opened.kind == KVM_VM]
        return self.random.choice(good if good and few & 7 else list(self.descriptors) or [3])

    def pointer(self) -> int:
        bits = self.random.getrandbits(16)
        if bits & 7 == 0:
            return ODD[bits % len(ODD)]
        if bits & 7 == 1:
            return self.random.getrandbits(64)
        return BASE + (bits >> 4) * 16

    def structure(self) -> int:
        """96 bytes of pointers, lengths and noise."""
        random, at = self.random, self.random.getrandbits(4) % 14 * PAGE
        length = LENGTHS[random.getrandbits(4)]
        words = [self.pointer() if random.getrandbits(2) else length for _ in range(5)]
        if random.getrandbits(1):  # handle 0, and a policy that there may be
            words[0] = random.getrandbits(3) << 32
        struct.pack_into("<5Q", self.memory.cells, at, *words)
        if random.getrandbits(1):  # packed structures have their pointers elsewhere
            struct.pack_into("<QIQI", self.memory.cells, at, self.pointer(), length, self.pointer(), length)
        return BASE + at

    def argument(self, layout: str, *values: int) -> int:
        at = READ_ONLY - PAGE
        struct.pack_into(layout, self.memory.cells, at, *values)
        return BASE + at

    def call(self) -> int | str:
        random = self.random
        bits = random.getrandbits(24)
        what, few = bits & 15, bits >> 4 & 255
        number = self.a_descriptor(few)
        data = self.structure() if few & 7 else self.pointer()
        if what < 6:
            command = COMMANDS[bits >> 12 & 15] if few else random.getrandbits(3)
            return self.ioctl(3, SEV_ISSUE_CMD, self.argument("<IQI", command, data, 7))
        if what < 12:
            command = bits >> 12 & 31 if few else random.getrandbits(32)
            descriptor = 3 if few & 31 else random.getrandbits(31)
            where = self.argument("<IIQII", command, 0, data, 7, descriptor)
            return self.ioctl(number, KVM_MEMORY_ENCRYPT_OP, where)
        return self.call_rarely(what, bits >> 12, number=number, few=few, data=data)

    def call_rarely(self, what: int, bits: int, *, number: int, few: int, data: int) -> int | str:
        if what == 12 and few & 64:
            return self.go_on(number, few)
        if what == 12:
            asked = RARE[bits & 7] if bits & 8 else EVERY[(bits >> 4) % len(EVERY)]
            return self.ioctl(number, asked, data if few & 3 else self.pointer())
        if what == 13:
            self.rename(number, few)
            return 0
        if what == 14:
            return self.ioctl(4, KVM_CREATE_VM, few & 3)
        return self.ioctl(number, KVM_CREATE_VCPU, bits & 127)

    def go_on(self, number: int, few: int) -> int | str:
        """Do what comes next in a launch, that there be some that get anywhere."""
        opened = self.descriptors.get(number)
        if opened is None or opened.kind != KVM_VM:
            return "EBADF"
        command, words = LAUNCH[opened.done % len(LAUNCH)]
        if opened.done == 0 and opened.type in TYPES:
            command = INIT2
        policy = (4 if opened.type == TYPES[1] else 0) | few & 1
        words = tuple(policy << 32 if word is POLICY else word for word in words)
        data = BASE + 14 * PAGE - 64
        struct.pack_into("<6Q", self.memory.cells, data - BASE, *words, *[0] * (6 - len(words)))
        answer = self.ioctl(number, KVM_MEMORY_ENCRYPT_OP, self.argument("<IIQII", command, 0, data, 7, 3))
        opened.done += answer == 0
        return answer

    def rename(self, number: int, few: int) -> None:
        """Duplicate a descriptor, or close one."""
        if number not in self.descriptors or number < 5:
            return
        if few & 64:
            self.close(number)
        else:
            self.descriptors[number].names += 1
            self.keep(self.descriptors[number])


POLICY: Final = -1  # in a word of ``LAUNCH``: the policy goes there
TYPES: Final = (2, 3)  # of machines that begin with INIT2: SEV, SEV-ES
INIT2: Final = 22
#: INIT, START, UPDATE_DATA twice, MEASURE, FINISH, GET_ATTESTATION_REPORT, GUEST_STATUS: their structures.
LAUNCH: Final[tuple[tuple[int, tuple[int, ...]], ...]] = (
    (0, ()),
    (2, (POLICY,)),
    (3, (BASE + 2 * PAGE, 4096)),
    (3, (BASE + 5 * PAGE + 16, 48)),
    (6, (BASE + PAGE, 48)),
    (7, ()),
    (20, (0, 0, BASE + PAGE, 0xD0)),
    (16, ()),
)
#: Commands of /dev/sev; those that make keys or forget them are slow, and rare (``Program.call``).
COMMANDS: Final = (1, 1, 1, 1, 5, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 0x80000001)
RARE: Final = (
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION,
    KVM_MEMORY_ENCRYPT_OP,
    SEV_ISSUE_CMD,
    KVM_CHECK_EXTENSION,
    KVM_RUN,
)
EVERY: Final = tuple(KVM_REQUESTS)
REQUESTS: Final = {SEV: {SEV_ISSUE_CMD, KVM_RUN}} | {
    link: set(requests_on(link)) for link in (KVM, KVM_VM, KVM_VCPU)
}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return Chips(tmp_path_factory.mktemp("chips"))


@contextmanager
def a_backend(chips: Chips, rule: MemoryRule) -> Iterator[tuple[Backend, dict[str, AnyDevice]]]:
    with chips.world(power_on=False) as world:
        backend = Backend(world.state, Trace())
        behind = backend.devices(rule)
        yield backend, {SEV: behind[SEV], **SuppliedKvm(behind[KVM_VM], backend.machine.trace).devices}


def storm(chips: Chips, *, seed: int, calls: int, rule: MemoryRule) -> dict[str, int]:
    """Ask, and end programs in the middle; return how often there was which answer, and the most guests."""
    random, said = Random(seed), dict[str, int]()
    with a_backend(chips, rule) as (backend, devices):
        bystander = Program(devices, random)
        bystander.ioctl(3, SEV_ISSUE_CMD, bystander.argument("<IQI", 4, 0, 0))  # PDH_GEN: it is initialised
        before = backend.status()
        programs = [Program(devices, random) for _ in range(PROGRAMS)]
        for count in range(calls):
            answer = programs[count % PROGRAMS].call()
            name = answer if isinstance(answer, str) else "ok"
            said[name] = said.get(name, 0) + 1
            if count % LOOK == 0:
                look(bystander)
                said["guests"] = max(said.get("guests", 0), backend.host.status().guest_count)
                programs[which := random.randrange(PROGRAMS)].end()
                programs[which] = Program(devices, random)
        for program in programs:
            program.end()
        look(bystander)
        after = backend.status()
        assert {**before, "state": None, "owner": None} == {**after, "state": None, "owner": None}
    assert set(said) <= EXPECTED | {"ok", "guests"}, said
    return said


def look(bystander: Program) -> None:
    """Somebody else asks for the status and gets it."""
    at = BASE + 2 * PAGE
    asked = bystander.argument("<IQI", 1, at, 0xFF)
    assert 0 == bystander.ioctl(3, SEV_ISSUE_CMD, asked)
    assert bytes([0, 17]) == bystander.memory.read(at, 2)


BATCHES: Final = 4
MILLION: Final = 1_000_000


def test_whatever_is_asked_there_is_an_answer_and_nothing_leaks(chips: Chips) -> None:
    for seed, rule in enumerate(MemoryRule):
        said = storm(chips, seed=seed, calls=4000, rule=rule)
        assert {"ok", "EFAULT", "EINVAL", "EIO", "ENOTTY"} <= set(said)
        assert said["guests"] > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_million_requests(chips: Chips, batch: int) -> None:
    rule = list(MemoryRule)[batch % 2]
    storm(chips, seed=100 + batch, calls=MILLION // BATCHES, rule=rule)
