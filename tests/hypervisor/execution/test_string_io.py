"""INS and OUTS: data go between ports and the memory that the software's own tables name."""

from __future__ import annotations

from itertools import islice

import pytest

from cbit.hypervisor.execution import string_io
from cbit.hypervisor.execution.exits import Next, Stop
from cbit.hypervisor.execution.monitor import run
from cbit.hypervisor.execution.string_io import MOST, StringIo
from cbit.hypervisor.host import Host, Protection
from cbit.spec.address import PAGE, Gpa
from cpu.engine.worlds import assemble
from hypervisor.execution.worlds import CODE_AT, IDT_AT, Room, a_room

assert string_io.__doc__
PORT, TEXT_AT, TABLES = 0x80, 0x21000, 0x5000
END = "cli; hlt"
_REP, _STR, _IN = 1 << 3, 1 << 2, 1


def a_guest(host: Host, source: str, *, text: bytes = b"", at: int = TEXT_AT) -> Room:
    room = a_room(host, f"mov dx, {PORT}; {source}; {END}")
    room.vm.load(Gpa(at), text)
    return room


def ran(room: Room) -> Room:
    run([room.monitor])
    assert isinstance(room.monitor.stop, Stop)
    assert room.monitor.stop.next is Next.HALTED, room.monitor.stop.why
    return room


def memory(room: Room, gpa: int, length: int) -> bytes:
    return room.vm.host.read(room.vm.spa(Gpa(gpa)), length)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_repeated_out_sends_what_is_in_memory(host: Host, size: int) -> None:
    text = bytes(range(1, 13))
    letter = {1: "b", 2: "w", 4: "d"}[size]
    room = ran(a_guest(host, f"mov esi, {TEXT_AT}; mov ecx, {12 // size}; rep outs{letter}", text=text))
    parts = [int.from_bytes(text[at : at + size], "little") for at in range(0, 12, size)]
    assert [(PORT, size, part) for part in parts] == room.desk.written
    state = room.vcpu.save_area()
    assert (TEXT_AT + 12, 0) == (state.rsi, state.rcx)
    assert room.exits.counts == {0x7B: 1, 0x78: 1}
    room.end()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_repeated_in_stores_what_the_port_gives(host: Host, size: int) -> None:
    letter = {1: "b", 2: "w", 4: "d"}[size]
    room = a_guest(host, f"mov edi, {TEXT_AT}; mov ecx, 3; rep ins{letter}", text=bytes(16))
    room.desk.answers[PORT] = 0xDDCC_BBAA
    state = ran(room).vcpu.save_area()
    assert bytes.fromhex("aabbccdd")[:size] * 3 + bytes(16 - 3 * size) == memory(room, TEXT_AT, 16)
    assert (TEXT_AT + 3 * size, 0) == (state.rdi, state.rcx)
    room.end()


@pytest.mark.parametrize(
    ("source", "sent", "rsi", "rcx"),
    [
        ("mov ecx, 7; outsb", b"C", 0x21003, 7),  # alone: no count
        ("mov ecx, 2; std; rep outsb", b"CB", 0x21000, 0),
        ("xor ecx, ecx; rep outsb", b"", 0x21002, 0),
    ],
)
def test_direction_and_count_are_the_instructions(
    host: Host, source: str, sent: bytes, rsi: int, rcx: int
) -> None:
    room = ran(a_guest(host, f"mov esi, {TEXT_AT + 2}; {source}", text=b"ABCDE"))
    state = room.vcpu.save_area()
    assert (sent, rsi, rcx) == (room.output(PORT), state.rsi, state.rcx)
    room.end()


def test_a_long_one_is_done_in_portions_and_each_is_an_exit(host: Host) -> None:
    text = bytes(n % 251 for n in range(2 * MOST + 7))
    room = ran(a_guest(host, f"mov esi, {TEXT_AT}; mov ecx, {len(text)}; rep outsb", text=text))
    assert text == room.output(PORT)
    assert room.exits.counts[0x7B] == 3
    room.end()


#: Paging on: linear pages are what they are, but 0x22000 is 0x30000, 0x23000 read-only, 0x24000 absent.
PAGED = f"""mov edi, {TABLES}; mov dword ptr [edi], {TABLES + PAGE + 3}
    mov edi, {TABLES + PAGE}; mov eax, 3; mov ecx, 256
    fill: mov [edi], eax; add eax, 0x1000; add edi, 4; dec ecx; jnz fill
    mov edi, {TABLES + PAGE}; mov dword ptr [edi + 4*0x22], 0x30003
    mov dword ptr [edi + 4*0x23], 0x23001; mov dword ptr [edi + 4*0x24], 0
    mov eax, {TABLES}; mov cr3, eax; mov eax, cr0; or eax, 0x80010000; mov cr0, eax; lidt [table];"""
FAULT = f"""table: .word 0x7FF; .long {IDT_AT}
    handler: pop ebx; mov ebp, cr2; cli; hlt
    .org {IDT_AT - CODE_AT + 8 * 6}; .word (handler - {CODE_AT}) + {CODE_AT}, 8, 0x8E00, 0
    .org {IDT_AT - CODE_AT + 8 * 14}; .word (handler - {CODE_AT}) + {CODE_AT}, 8, 0x8E00, 0"""


def test_the_guests_own_tables_decide_and_an_element_may_lie_in_two_pages(host: Host) -> None:
    room = a_guest(host, f"{PAGED} mov esi, 0x21FFE; outsd; {END}; {FAULT}")
    for at, data in ((0x21FFE, b"ab"), (0x22000, b"no"), (0x30000, b"cd")):
        room.vm.load(Gpa(at), data)
    assert [(PORT, 4, int.from_bytes(b"abcd", "little"))] == ran(room).desk.written
    room.end()


def test_a_page_fault_comes_after_what_was_done_before_it(host: Host) -> None:
    room = a_guest(host, f"{PAGED} mov esi, 0x23FFE; mov ecx, 5; rep outsb; {END}; {FAULT}")
    room.vm.load(Gpa(0x23FFE), b"xyz")
    state = ran(room).vcpu.save_area()
    assert (b"xy", 0x24000, 3) == (room.output(PORT), state.rsi, state.rcx)
    assert (0, 0x24000) == (state.rbx, state.rbp)  # error code: absent, read, supervisor; CR2
    room.end()


def test_a_port_is_not_read_for_a_page_that_may_not_be_written(host: Host) -> None:
    room = a_guest(host, f"{PAGED} mov edi, 0x23000; mov ecx, 1; rep insb; {END}; {FAULT}")
    reads: list[int] = []
    room.desk.read = lambda port, size: reads.append(port) or 0  # type: ignore[method-assign, func-returns-value]  # as brief as can be
    state = ran(room).vcpu.save_area()
    assert ([], 0x23000, 1) == (reads, state.rdi, state.rcx)
    assert (3, 0x23000) == (state.rbx, state.rbp)  # error code: present, write
    room.end()


def test_an_encrypted_guest_gets_an_invalid_opcode_for_its_hypervisor_reads_ciphertext(host: Host) -> None:
    source = f"lidt [table]; mov dx, {PORT}; mov esi, {CODE_AT}; mov ecx, 1; rep outsb; {END}; {FAULT}"
    room = a_room(host, source, protection=Protection.SEV)
    state = ran(room).vcpu.save_area()
    assert ([], CODE_AT, 1) == (room.desk.written, state.rsi, state.rcx)
    assert {PORT: 1} == room.exits.refused_strings
    at = state.rbx - CODE_AT  # what the handler took from the stack: #UD has no error code, so it is EIP
    assert b"\xf3\x6e" == assemble(source, CODE_AT, 32)[at : at + 2]
    room.end()


def test_registers_are_as_wide_as_addresses() -> None:
    for bits, index, expected in (
        (1, 0x1234_FFFF, [0x1234_0000, 0x1234_0001]),
        (2, 0x1_FFFF_FFFF, [0, 1]),
        (4, 0xFFFF_FFFF, [0x1_0000_0000, 0x1_0000_0001]),
    ):
        what = StringIo(_STR | _REP | bits << 7 | 1 << 4, long=True, backwards=False)
        assert expected == [at for at, _ in islice(what.steps(index, 0x10_0005), 2)]
        assert what.count(0x10_0005) == (5 if bits == 1 else 0x10_0005)
    assert 1 == StringIo(_STR | 4 << 7 | 1 << 4, long=True, backwards=False).count(0)


@pytest.mark.parametrize(
    ("info", "long", "segment", "has_base"),
    [
        (_STR | 3 << 10, True, 3, False),
        (_STR | 5 << 10, True, 5, True),
        (_STR | 3 << 10, False, 3, True),
        (_STR | _IN | 5 << 10, True, 0, False),  # INS has no override
        (_STR | _IN | 5 << 10, False, 0, True),
    ],
)
def test_which_base_counts(info: int, *, long: bool, segment: int, has_base: bool) -> None:
    what = StringIo(info, long=long, backwards=False)
    assert (segment, has_base) == (what.segment, what.has_base)
