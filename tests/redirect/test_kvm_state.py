"""What the supplied KVM keeps of a machine and its processors, request by request of its table."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest

from cbit.redirect.device import Client, Give
from cbit.redirect.kvm import EXTENSIONS, SLOT_PAGES, SuppliedKvm
from cbit.redirect.kvm_cpu import MCE_BANKS, MOST_LEAVES, MOST_MSRS, MSRS, SUPPORTED_CPUID
from cbit.redirect.kvm_requests import (
    CHIPS,
    ENCRYPTION_REQUESTS,
    KVM,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_GET_CPUID2,
    KVM_GET_DIRTY_LOG,
    KVM_GET_IRQCHIP,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSRS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_SET_CPUID2,
    KVM_SET_GSI_ROUTING,
    KVM_SET_IRQCHIP,
    KVM_SET_MSRS,
    KVM_SET_USER_MEMORY_REGION,
    KVM_VCPU,
    KVM_VM,
    KVM_X86_SETUP_MCE,
    REQUESTS,
    Cap,
    Does,
    argument_size,
    gives,
)
from cbit.redirect.process_memory import Buffer, Write
from cbit.trace import Event, Trace
from redirect.echo import Behind

NUMBERS: Final = {row.name: number for number, row in REQUESTS.items()}
KEPT: Final = {row.about for row in REQUESTS.values() if row.does is Does.KEEPS}
SIZE: Final = 0x4000
NOWHERE: Final = SIZE


class Memory:
    """A program's: what it has at 0 … SIZE."""

    def __init__(self) -> None:
        self.cells = bytearray(SIZE)

    def read(self, address: int, length: int) -> bytes:
        if address + length > SIZE:
            raise OSError(errno.EFAULT, f"no memory at {address:#x}")
        return bytes(self.cells[address : address + length])

    def write(self, address: int, data: Buffer) -> None:
        self.read(address, len(data))
        self.cells[address : address + len(data)] = data

    def write_all(self, writes: Sequence[Write]) -> None:
        for address, data in writes:
            self.write(address, data)


class Asker:
    """One program with a machine of a supplied KVM, and what it is told."""

    def __init__(self, trace: Trace) -> None:
        self.memory = Memory()
        self.behind = Behind()
        self.devices = SuppliedKvm(self.behind, trace).devices
        self.system = self.devices[KVM].open(Client(1, lambda _: None), writable=True)
        self.vm = self._made(self.devices[KVM], self.system, KVM_CREATE_VM, 0)
        self.cpus: list[Any] = []

    def another(self) -> Asker:
        self.vm = self._made(self.devices[KVM], self.system, KVM_CREATE_VM, 0)
        return self

    def with_chips(self) -> Asker:
        assert 0 == self.on(KVM_VM, KVM_CREATE_IRQCHIP)
        return self

    def with_cpu(self) -> Asker:
        number = len(self.cpus)
        self.cpus.append(self._made(self.devices[KVM_VM], self.vm, KVM_CREATE_VCPU, number))
        return self

    def _made(self, device: Any, handle: Any, request: int, argument: int) -> Any:
        made = device.ioctl(handle, request, argument, self.memory)
        assert isinstance(made, Give)
        return made.handle

    def on(self, link: str, request: int, argument: int | bytes = 0, *, cpu: int = -1) -> int | str:
        """Return the result or the error's name; bytes are put at 0."""
        if isinstance(argument, bytes):
            self.memory.cells[: len(argument)] = argument
            argument = 0
        handle = {KVM: self.system, KVM_VM: self.vm}.get(link) or self.cpus[cpu]
        try:
            answer = self.devices[link].ioctl(handle, request, argument, self.memory)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        assert isinstance(answer, int)
        return answer

    def got(self, length: int) -> bytes:
        return bytes(self.memory.cells[:length])


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def asker(told: list[Event]) -> Iterator[Asker]:
    trace = Trace()
    with trace.watched_by(told.append):
        yield Asker(trace)


def ready(asker: Asker) -> Asker:
    assert asker.with_chips().on(KVM_VM, NUMBERS["KVM_CREATE_PIT2"], bytes(64)) == 0
    return asker.with_cpu()


def pairs() -> list[tuple[str, int, int]]:
    """The requests that set, with those that get the same."""
    kept = {number: row for number, row in REQUESTS.items() if row.does is Does.KEEPS}
    return [
        (row.name, number, other)
        for number, row in kept.items()
        for other, getter in kept.items()
        if getter.about == row.about and gives(number) and not gives(other)
    ]


@pytest.mark.parametrize(("name", "set_", "get"), pairs(), ids=str)
def test_what_was_set_is_what_is_got(asker: Asker, name: str, set_: int, get: int) -> None:
    link, size = REQUESTS[set_].on[0], argument_size(set_)
    assert (REQUESTS[get].on[0], argument_size(get)) == (link, size)
    ready(asker).with_cpu()
    before = bytes(size) if asker.on(link, get) else asker.got(size)
    value = bytes((at * 7 + 1) % 251 for at in range(size))
    assert 0 == asker.on(link, set_, value, cpu=0)
    asker.memory.cells[:] = bytes(SIZE)
    assert 0 == asker.on(link, get, cpu=0)
    assert value == asker.got(size)
    if link == KVM_VCPU:
        assert 0 == asker.on(link, get, cpu=1)
        assert before == asker.got(size), "the other processor has its own"


def test_whatever_the_table_says_is_done(asker: Asker) -> None:
    """No row is without its code: there is an answer to each, and ENOTTY for what is refused."""
    ready(asker)
    for number, row in REQUESTS.items():
        for link in row.on if number not in (KVM_CREATE_VM, KVM_CREATE_VCPU) else ():
            assert ("ENOTTY" == asker.on(link, number)) is (row.does is Does.REFUSES), row.name


def test_whoever_makes_save_areas_is_told_of_registers(asker: Asker) -> None:
    asker.with_cpu().with_cpu()
    asker.behind.lines.clear()
    for name, first in (("KVM_SET_REGS", 1), ("KVM_SET_FPU", 2), ("KVM_SET_SREGS", 3)):
        value = struct.pack("<II", first, 9).ljust(argument_size(NUMBERS[name]), b"\0")
        assert 0 == asker.on(KVM_VCPU, NUMBERS[name], value, cpu=1)
    assert "EFAULT" == asker.on(KVM_VCPU, NUMBERS["KVM_SET_REGS"], NOWHERE, cpu=1)
    assert [
        "1: 0x4090ae82 1 01000000 09000000",
        "1: 0x4138ae84 1 03000000 09000000",
    ] == asker.behind.lines


def test_every_state_that_can_be_got_can_be_set() -> None:
    gettable = {REQUESTS[get].about for _, _, get in pairs()}
    assert 11 == len(gettable)
    only_set = {"task segment's place", "identity map's place", "line", "timer", "whom to notify"}
    only_set |= {"whom to hear", "message", "reports of priority", "page of priority"}
    assert gettable | only_set == KEPT


POINTED: Final = [
    number
    for number, row in REQUESTS.items()
    if argument_size(number) and row.does is not Does.REFUSES and number not in ENCRYPTION_REQUESTS
]


@pytest.mark.parametrize("request_", POINTED, ids=hex)
def test_a_bad_pointer_is_efault_and_says_so(asker: Asker, told: list[Event], request_: int) -> None:
    row = REQUESTS[request_]
    if row.once:
        asker.with_chips()
    else:
        ready(asker)
    told.clear()
    assert "EFAULT" == asker.on(row.on[0], request_, NOWHERE)
    assert [(row.name, f"no memory at {NOWHERE:#x}")] == [(event.what, event.why) for event in told]
    size = argument_size(request_)
    assert "EFAULT" == asker.on(row.on[0], request_, SIZE - size + 1), "the last byte is missing"


@pytest.mark.parametrize("number", [number for number, row in REQUESTS.items() if row.need], ids=hex)
def test_what_comes_first_is_asked_for(asker: Asker, told: list[Event], number: int) -> None:
    row = REQUESTS[number]
    assert row.need
    asker.with_cpu()
    told.clear()
    assert errno.errorcode[row.need.error] == asker.on(row.on[0], number)
    assert [(row.name, f"the machine has no {row.need.state}")] == [(event.what, event.why) for event in told]


def test_controllers_come_before_processors_and_once(asker: Asker, told: list[Event]) -> None:
    asker.with_chips()
    assert "EEXIST" == asker.on(KVM_VM, KVM_CREATE_IRQCHIP)
    pit = NUMBERS["KVM_CREATE_PIT2"]
    assert [0, "EEXIST"] == [asker.on(KVM_VM, pit, bytes(64)) for _ in range(2)]
    asker.another().with_cpu()
    assert "EINVAL" == asker.on(KVM_VM, KVM_CREATE_IRQCHIP)
    assert [f"the machine has its {CHIPS} already", "the machine has its timer already"] == [
        event.why for event in told if event.why
    ][:2]
    assert "1 processors are there: they come after it" == told[-1].why


def test_each_controller_has_registers_of_its_own(asker: Asker) -> None:
    asker.with_chips()
    chip = struct.Struct("<II512s")
    for which in range(3):
        assert 0 == asker.on(KVM_VM, KVM_SET_IRQCHIP, chip.pack(which, 0, bytes([which + 1]) * 512))
    for which in range(3):
        assert 0 == asker.on(KVM_VM, KVM_GET_IRQCHIP, chip.pack(which, 0, b""))
        assert (which, 0, bytes([which + 1]) * 512) == chip.unpack(asker.got(chip.size))
    assert {"EINVAL"} == {
        asker.on(KVM_VM, request, chip.pack(3, 0, b"")) for request in (KVM_GET_IRQCHIP, KVM_SET_IRQCHIP)
    }


def test_a_routing_table_is_looked_at(asker: Asker) -> None:
    asker.with_chips()
    answers = [asker.on(KVM_VM, KVM_SET_GSI_ROUTING, struct.pack("<II", *head)) for head in ((2, 0), (0, 1))]
    most = EXTENSIONS[Cap.IRQ_ROUTING]
    answers.append(asker.on(KVM_VM, KVM_SET_GSI_ROUTING, struct.pack("<II", most + 1, 0)))
    answers.append(asker.on(KVM_VM, KVM_SET_GSI_ROUTING, struct.pack("<II", most, 0)))
    assert [0, "EINVAL", "EINVAL", "EFAULT"] == answers, "of the longest table the end is missing"


def msrs(*entries: tuple[int, int]) -> bytes:
    return struct.pack("<II", len(entries), 0) + b"".join(struct.pack("<I4xQ", *entry) for entry in entries)


def test_registers_are_kept_up_to_the_first_that_there_is_none_of(asker: Asker, told: list[Event]) -> None:
    asker.with_cpu()
    star, lstar, nothing = 0xC0000081, 0xC0000082, 0x12345
    assert 2 == asker.on(KVM_VCPU, KVM_SET_MSRS, msrs((star, 7), (lstar, 8)))
    assert 1 == asker.on(KVM_VCPU, KVM_SET_MSRS, msrs((star, 9), (nothing, 1), (lstar, 1)))
    assert ("KVM_SET_MSRS", "register 0x12345 is not kept: 1 of 3 are done") == (told[-1].what, told[-1].why)
    asked = msrs((lstar, 0), (star, 0), (0x277, 0), (nothing, 0), (lstar, 5))
    assert 3 == asker.on(KVM_VCPU, KVM_GET_MSRS, asked)
    expected = msrs((lstar, 8), (star, 9), (0x277, 0x0007040600070406), (nothing, 0), (lstar, 5))
    assert expected == asker.got(len(expected)), "what comes after it is left alone"
    assert "E2BIG" == asker.on(KVM_VCPU, KVM_GET_MSRS, struct.pack("<II", MOST_MSRS + 1, 0))
    assert 0 == asker.on(KVM_VCPU, KVM_SET_MSRS, msrs())


def test_lists_say_where_there_is_no_room(asker: Asker) -> None:
    assert "E2BIG" == asker.on(KVM, KVM_GET_MSR_INDEX_LIST, struct.pack("<I", len(MSRS) - 1))
    assert len(MSRS) == int.from_bytes(asker.got(4), "little"), "how many there are is said all the same"
    assert 0 == asker.on(KVM, KVM_GET_MSR_INDEX_LIST, struct.pack("<I", len(MSRS)))
    assert (len(MSRS), *MSRS) == struct.unpack(f"<{1 + len(MSRS)}I", asker.got(4 + 4 * len(MSRS)))
    count = len(SUPPORTED_CPUID)
    assert "E2BIG" == asker.on(KVM, KVM_GET_SUPPORTED_CPUID, struct.pack("<II", count - 1, 0))
    assert 0 == asker.on(KVM, KVM_GET_SUPPORTED_CPUID, struct.pack("<II", 100, 0))
    assert count == int.from_bytes(asker.got(4), "little")
    leaves = [struct.unpack_from("<7I", asker.memory.cells, 8 + 40 * at) for at in range(count)]
    assert list(SUPPORTED_CPUID) == [(leaf, index) for leaf, index, *_ in leaves]
    assert {7, 0xD} == {leaf for leaf, _, flags, *_ in leaves if flags == 1}
    assert b"AuthenticAMD" == struct.pack("<III", *(leaves[0][at] for at in (4, 6, 5)))


def test_a_processor_is_told_what_it_is(asker: Asker) -> None:
    asker.with_cpu()
    entries = struct.pack("<II", 2, 0) + bytes(range(80))
    assert 0 == asker.on(KVM_VCPU, KVM_SET_CPUID2, entries)
    assert "E2BIG" == asker.on(KVM_VCPU, KVM_GET_CPUID2, struct.pack("<II", 1, 0))
    assert 0 == asker.on(KVM_VCPU, KVM_GET_CPUID2, struct.pack("<II", 3, 0))
    assert entries == asker.got(len(entries))
    assert "E2BIG" == asker.on(KVM_VCPU, KVM_SET_CPUID2, struct.pack("<II", MOST_LEAVES + 1, 0))
    assert 0 == asker.on(KVM_VCPU, KVM_GET_CPUID2, struct.pack("<II", 2, 0)), "a refused list changes nothing"


def test_machine_checks_are_registers(asker: Asker) -> None:
    asker.with_cpu()
    answers = [
        asker.on(KVM_VCPU, KVM_X86_SETUP_MCE, struct.pack("<Q", wanted)) for wanted in (0, 33, 1 << 9 | 4)
    ]
    assert ["EINVAL"] * 3 == answers
    assert 0 == asker.on(KVM_VCPU, KVM_X86_SETUP_MCE, struct.pack("<Q", 1 << 24 | 10))
    assert 1 == asker.on(KVM_VCPU, KVM_GET_MSRS, msrs((0x179, 0)))
    assert msrs((0x179, 1 << 24 | 10)) == asker.got(24)
    last = 0x400 + 4 * MCE_BANKS - 1
    assert 1 == asker.on(KVM_VCPU, KVM_SET_MSRS, msrs((last, 1), (last + 1, 1)))


def test_no_page_is_dirty_for_nobody_runs(asker: Asker) -> None:
    region = struct.Struct("<IIQQQ")
    pages = 130
    for slot, flags in ((0, 1), (1, 0)):
        where = slot << 32, pages * 4096, 0x10000
        assert 0 == asker.on(KVM_VM, KVM_SET_USER_MEMORY_REGION, region.pack(slot, flags, *where))
    asker.memory.cells[0x100:0x200] = b"\xff" * 0x100
    assert 0 == asker.on(KVM_VM, KVM_GET_DIRTY_LOG, struct.pack("<IIQ", 0, 0, 0x100))
    bitmap = -(-pages // 64) * 8
    assert bytes(bitmap) + b"\xff" * (0x100 - bitmap) == asker.memory.cells[0x100:0x200]
    assert "EFAULT" == asker.on(KVM_VM, KVM_GET_DIRTY_LOG, struct.pack("<IIQ", 0, 0, NOWHERE))
    huge = 1 << 40, SLOT_PAGES * 4096, 0
    assert 0 == asker.on(KVM_VM, KVM_SET_USER_MEMORY_REGION, region.pack(2, 1, *huge))
    assert "EFAULT" == asker.on(KVM_VM, KVM_GET_DIRTY_LOG, struct.pack("<IIQ", 2, 0, 0x1000))
    larger = 1 << 50, (SLOT_PAGES + 1) * 4096, 0
    assert "EINVAL" == asker.on(KVM_VM, KVM_SET_USER_MEMORY_REGION, region.pack(3, 1, *larger))
    for slot in (1, 3):
        assert "ENOENT" == asker.on(KVM_VM, KVM_GET_DIRTY_LOG, struct.pack("<IIQ", slot, 0, 0x100))


def test_the_second_processor_waits_where_there_are_controllers(asker: Asker) -> None:
    get = NUMBERS["KVM_GET_MP_STATE"]
    asker.with_chips().with_cpu().with_cpu()
    states = []
    for cpu in range(2):
        assert 0 == asker.on(KVM_VCPU, get, cpu=cpu)
        states.append(int.from_bytes(asker.got(4), "little"))
    assert [0, 1] == states
