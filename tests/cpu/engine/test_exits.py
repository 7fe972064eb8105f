"""What a hypervisor sees: real exit codes in the real VMCB, and nothing of the engine's own faults."""

from __future__ import annotations

import struct

import pytest

from cbit.cpu.engine.control_block import At, Exit, Intercept
from cbit.cpu.faults import ExitCode, VmexitInvalid
from cbit.spec.address import PAGE, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import HOST, UNENCRYPTED
from cpu.engine.worlds import (
    CODE,
    CPUID,
    DATA,
    GDT,
    HLT,
    INTR,
    IOIO,
    MSR,
    NPF,
    R8,
    R11,
    RBX,
    RCX,
    RDX,
    RSI,
    SHARED,
    SHUTDOWN,
    STACK,
    VMMCALL,
    C,
    Guest,
    Machine,
    assemble,
)
from cpu.tables import NX, P, U, W
from cpu.worlds import BOB

OUT_BYTE, IN_DWORD = 0x03F8_0010, 0x0CFC_0041  # EXITINFO1: port, operand size, direction
VALID, HAS_ERROR = 1 << 31, 1 << 11
TYPE_INTERRUPT, TYPE_NMI, TYPE_EXCEPTION, TYPE_SOFTWARE = 0 << 8, 2 << 8, 3 << 8, 4 << 8


@pytest.mark.parametrize(
    ("source", "code", "info_1"),
    [
        ("cpuid", CPUID, 0),
        ("hlt", HLT, 0),
        ("vmmcall", VMMCALL, 0),
        ("mov ecx, 0xC0000100; rdmsr", MSR, 0),
        ("mov ecx, 0xC0000100; wrmsr", MSR, 1),
        ("mov dx, 0x3F8; out dx, al", IOIO, OUT_BYTE),
        ("mov dx, 0xCFC; in eax, dx", IOIO, IN_DWORD),
    ],
)
def test_an_intercepted_instruction_is_an_exit_with_its_own_code(source: str, code: int, info_1: int) -> None:
    g = Guest()
    g.program(source)
    left = g.run()
    size = len(assemble(source, CODE))
    last = len(assemble(source.rpartition("; ")[2], CODE))
    assert (code, info_1) == (left.code, left.info_1 & (0xFFFF_00F1 if code == IOIO else -1))
    assert CODE + size - last == g.get(0x578)  # rIP is that of the instruction
    assert left == Exit(g.get(At.EXIT_CODE), g.get(At.EXIT_INFO_1), g.get(At.EXIT_INFO_2))
    if code == IOIO:
        assert CODE + size == left.info_2  # the next rIP


@pytest.mark.parametrize(
    ("source", "info"),
    [
        ("out 0x80, eax", 0x0080_0240),
        ("mov dx, 0x1F0; rep outsw", 0x01F0_0E2C),
        ("mov dx, 0x1F0; rep outsb dx, byte ptr fs:[rsi]", 0x01F0_121C),
        ("mov dx, 0x1F0; insd", 0x01F0_0245),
        ("mov dx, 0x60; in al, dx", 0x0060_0211),
        ("mov dx, 0x60; in ax, dx", 0x0060_0221),
    ],
)
def test_an_io_exit_describes_its_instruction(source: str, info: int) -> None:
    g = Guest()
    g.program(f"mov rcx, 4; mov rsi, {DATA}; mov rdi, {DATA}; {source}")
    left = g.run()
    assert (IOIO, info) == (left.code, left.info_1)
    assert (
        CODE + len(assemble(f"mov rcx, 4; mov rsi, {DATA}; mov rdi, {DATA}; {source}", CODE)) == left.info_2
    )


@pytest.mark.parametrize(("iopl", "code"), [(0, 0x40 + 13), (3, IOIO)])
def test_a_user_program_needs_the_privilege_for_io(iopl: int, code: int) -> None:
    g = Guest()
    g.write(GDT + 0x20, struct.pack("<2Q", 0x00CFF3000000FFFF, 0x00AFFB000000FFFF))
    g.write(0x50000, b"\xe6\x80")  # out 0x80, al
    g.set("Q", 0x600, 0x13 << 48)
    g.set("I", At.EXCEPTIONS, 1 << 13)
    g.program(f"mov rcx, 0x50000; mov r11, {2 | iopl << 12}; sysretq")
    assert code == g.run().code


def test_a_port_that_nobody_watches_answers_with_ones() -> None:
    g = Guest()
    g.machine.cache.write(Spa(g.get(At.IOPM)), b"\0" * PAGE, UNENCRYPTED)
    g.program("in eax, 0x60; mov ebx, eax; out 0x60, al; hlt")
    assert HLT == g.run().code
    assert 0xFFFF_FFFF == g.register(RBX)


def test_the_guest_goes_on_where_the_hypervisor_lets_it() -> None:
    g = Guest()
    g.program("mov rbx, 1; cpuid; add rbx, rax; cpuid; add rbx, rcx; hlt")
    for _ in range(2):
        assert CPUID == g.run().code
        g.set("Q", 0x5F8, 20)
        g.context.registers[RCX] = 300
        g.skip(2)
    assert HLT == g.run().code
    assert 321 == g.register(RBX)
    assert {CPUID: 2, HLT: 1} == g.machine.engine.exits


def test_registers_and_vector_state_of_two_guests_stay_apart() -> None:
    first = Guest()
    second = Guest(first.machine, asid=BOB, at=0xC0_0000)
    for number, g in enumerate((first, second), 1):
        source = f"mov rbx, {number}; movq xmm3, rbx; wrfsbase rbx; cpuid; movq rsi, xmm3; rdfsbase r8; hlt"
        g.program(source)
        g.set("Q", 0x548, 0x106A0)  # CR4.FSGSBASE
    assert [CPUID, CPUID] == [g.run().code for g in (first, second)]
    for number, g in enumerate((first, second), 1):
        g.skip(2)
        assert HLT == g.run().code
        assert [number] * 3 == [g.register(r) for r in (RBX, RSI, R8)]


def test_a_deadline_is_a_physical_interrupt() -> None:
    g = Guest()
    g.program("again: add rbx, 1; jmp again")
    left = g.run(blocks=1000)
    assert (INTR, 0) == (left.code, left.info_1)
    assert 1000 == g.machine.engine.blocks
    seen = g.register(RBX)
    assert 1000 == seen
    g.run(blocks=500)
    assert seen + 500 == g.register(RBX)


# ---- nested faults


def hole(g: Guest, gpa: int) -> int:
    """Make a page absent in the hypervisor's tables, and return where its entry is."""
    where = g.nested.map(gpa, g.at + gpa, flags=0)
    return where


@pytest.mark.parametrize(
    ("source", "info"),
    [
        (f"mov rbx, [{DATA}]", 1 << 32 | 4),
        (f"mov [{DATA}], rbx", 1 << 32 | 6),
        (f"mov rax, {DATA}; jmp rax", 1 << 32 | 0x14),
    ],
)
def test_a_page_that_the_hypervisor_does_not_map_is_its_nested_fault(source: str, info: int) -> None:
    g = Guest()
    where = hole(g, DATA)
    g.program(source + "; hlt")
    left = g.run()
    assert (NPF, info, DATA | C) == (left.code, left.info_1, left.info_2)
    g.nested.tables.write_entry(where, g.at + DATA | P | W | U, size=8, c=False)  # no flush is due
    g.write(DATA, b"\xf4")
    assert HLT == g.run().code


def test_shared_and_private_faults_differ_in_the_c_bit_that_they_report() -> None:
    g = Guest()
    hole(g, DATA)
    g.program(f"mov rbx, [{SHARED + DATA}]")
    assert Exit(NPF, 1 << 32 | 4, DATA) == g.run()


def test_a_guest_page_table_that_is_not_mapped_says_so_in_bit_33() -> None:
    g = Guest()
    hole(g, 0x4000)
    g.program("hlt")
    assert Exit(NPF, 1 << 33 | 6, 0x4000 + 8 * (CODE // PAGE) | C) == g.run()


def test_a_page_that_the_hypervisor_maps_read_only_refuses_stores_alone() -> None:
    g = Guest()
    g.nested.map(DATA, g.at + DATA, flags=P | U)
    g.write(DATA, b"readonly")
    g.program(f"mov rbx, [{DATA}]; mov [{DATA}], rsi; hlt")
    assert Exit(NPF, 1 << 32 | 7, DATA | C) == g.run()
    assert int.from_bytes(b"readonly", "little") == g.register(RBX)


def test_a_page_that_the_hypervisor_maps_without_execution_refuses_fetches_alone() -> None:
    g = Guest()
    g.nested.map(DATA, g.at + DATA, flags=P | W | U | NX)
    g.write(DATA, b"\xf4" * 8)
    g.program(f"mov rbx, [{DATA}]; mov [{DATA}], rbx; mov rax, {DATA}; jmp rax")
    assert Exit(NPF, 1 << 32 | 0x15, DATA | C) == g.run()
    assert 0xF4F4F4F4F4F4F4F4 == g.register(RBX)


def test_accessed_and_dirty_are_set_in_the_hypervisors_tables_as_hardware_sets_them() -> None:
    g = Guest()
    entries = {gpa: g.nested.map(gpa, g.at + gpa) for gpa in (DATA, DATA + PAGE, DATA + 2 * PAGE)}
    g.program(f"mov rbx, [{DATA}]; mov [{DATA + PAGE}], rbx; hlt")
    g.run()
    used = [g.nested.tables.read_entry(where, size=8, c=False) & 0x60 for where in entries.values()]
    assert [0x20, 0x60, 0] == used


def test_a_store_through_another_mapping_of_a_dirty_page_marks_its_own_entry() -> None:
    g = Guest()
    g.nested.map(DATA + PAGE, g.at + DATA)  # two guest pages, one system page
    where = g.nested.map(DATA, g.at + DATA)
    g.program(f"mov [{DATA + PAGE}], rbx; mov rbx, [{DATA}]; cpuid; mov [{DATA}], rbx; hlt")
    for expected in (0x20, 0x60):
        g.run()
        g.skip(2)
        assert expected == g.nested.tables.read_entry(where, size=8, c=False) & 0x60


@pytest.mark.parametrize("control", [0, 1, 3, 7])
def test_an_edit_of_the_nested_tables_is_seen_when_the_tlb_was_told(control: int) -> None:
    g = Guest()
    g.write(DATA, b"first...")
    g.write(DATA + PAGE, b"second..")
    g.program(f"again: mov rbx, [{DATA}]; cpuid; jmp again")
    assert CPUID == g.run().code
    g.skip(2)
    g.nested.map(DATA, g.at + DATA + PAGE)
    g.set("B", 0x05C, control)
    assert CPUID == g.run().code
    expected = b"first..." if control == 0 else b"second.."
    assert int.from_bytes(expected, "little") == g.register(RBX)


# ---- events


def with_handlers(g: Guest, **handlers: tuple[int, str]) -> None:
    for index, (vector, source) in enumerate(handlers.values()):
        at = 0x40000 + 0x100 * index
        g.write(at, assemble(source, at))
        g.gate(vector, at)


@pytest.mark.parametrize(
    ("event", "vector", "pushes"),
    [
        (VALID | TYPE_EXCEPTION | HAS_ERROR | 13, 13, True),
        (VALID | TYPE_EXCEPTION | 0, 0, False),
        (VALID | TYPE_INTERRUPT | 0x30, 0x30, False),
        (VALID | TYPE_NMI | 2, 2, False),
        (VALID | TYPE_SOFTWARE | 0x31, 0x31, False),
    ],
)
def test_an_injected_event_runs_the_guests_handler(event: int, vector: int, *, pushes: bool) -> None:
    g = Guest()
    pop = "pop r11; " if pushes else ""
    with_handlers(g, one=(vector, f"{pop}mov rbx, [rsp]; mov rsi, 7; iretq"))
    g.program("add rdx, 1; hlt")
    g.set("Q", 0x0A8, event | 0x5678 << 32)
    assert HLT == g.run().code
    assert [1, CODE, 7] == [g.register(r) for r in (RDX, RBX, RSI)]
    assert not pushes or 0x5678 == g.register(R11)
    assert 0 == g.get(0x0A8) & VALID
    assert STACK == g.register(4)


@pytest.mark.parametrize("event", [VALID | TYPE_INTERRUPT | 0x30, VALID | TYPE_NMI | 2])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_an_injected_event_arrives_once_although_the_turn_ends_soon(event: int, blocks: int) -> None:
    """QEMU leaves an interrupt's vector behind as an exception: whatever stops it next would raise it."""
    g = Guest()
    with_handlers(g, one=(event & 0xFF, "inc rsi; nop; jmp 1f; 1: jmp 2f; 2: jmp 3f; 3: iretq"))
    g.program("xor rsi, rsi; again: jmp on; on: cpuid; jmp again")
    assert CPUID == g.run().code
    g.skip(2)
    g.set("Q", 0x0A8, event)
    while (code := g.run(blocks=blocks).code) != CPUID:
        assert INTR == code
    assert 1 == g.register(RSI)


def test_an_invalid_event_is_not_injected() -> None:
    g = Guest()
    g.program("hlt")
    g.set("Q", 0x0A8, TYPE_INTERRUPT | 0x30)
    assert HLT == g.run().code


def test_a_virtual_interrupt_waits_until_the_guest_allows_interrupts() -> None:
    g = Guest()
    with_handlers(g, one=(0x30, "mov rbx, rdx; iretq"))
    g.program("mov rdx, 1; cpuid; mov rdx, 2; sti; nop; mov rdx, 3; hlt")
    g.set("Q", 0x060, 0x30 << 32 | 1 << 24 | 1 << 16 | 1 << 8)  # vector, V_INTR_MASKING, a priority, V_IRQ
    assert CPUID == g.run().code
    assert 1 << 8 == g.get(0x060) & 1 << 8  # still pending
    g.skip(2)
    assert HLT == g.run().code
    assert 2 == g.register(RBX)
    assert 0 == g.get(0x060) & 1 << 8


def test_an_exit_while_an_event_is_delivered_reports_the_event() -> None:
    g = Guest()
    with_handlers(g, one=(0x30, "iretq"))
    hole(g, STACK - PAGE)
    g.program("hlt")
    g.set("Q", 0x0A8, VALID | TYPE_INTERRUPT | 0x30)
    left = g.run()
    assert (NPF, (STACK - PAGE) | C) == (left.code, left.info_2 & -PAGE)
    assert VALID | TYPE_INTERRUPT | 0x30 == g.get(0x088) & 0xFFFF_FFFF
    assert 0 == g.get(0x0A8) & VALID


def test_an_intercepted_exception_is_an_exit_with_its_error_code() -> None:
    g = Guest()
    g.program("mov rbx, [0x600000]")
    g.set("I", At.EXCEPTIONS, 1 << 14)
    left = g.run()
    assert (0x40 + 14, 0, 0x600000) == (left.code, left.info_1, left.info_2)


def test_the_guest_handles_its_own_page_faults() -> None:
    g = Guest()
    with_handlers(g, one=(14, "pop r11; mov rbx, cr2; hlt"))
    g.program("mov rax, 0x600008; mov [rax], rax")
    assert HLT == g.run().code
    assert [0x600008, 2] == [g.register(r) for r in (RBX, R11)]


def test_without_handlers_an_exception_shuts_the_guest_down() -> None:
    g = Guest()
    g.set("Q", 0x488, 0)
    struct.pack_into("<I", g.vmcb, 0x484, 0)
    g.program("ud2")
    assert SHUTDOWN == g.run().code


# ---- instructions that the engine does itself


def test_syscall_and_sysret_change_the_ring() -> None:
    g = Guest()
    g.write(
        GDT,
        struct.pack(
            "<6Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
        ),
    )
    for at, value in (
        (0x600, 0x10 << 32 | 0x13 << 48),
        (0x608, 0x40000),
        (0x618, 0x200),
    ):  # STAR, LSTAR, SFMASK
        g.set("Q", at, value)
    g.write(0x40000, assemble("mov rbx, rcx; mov rsi, r11; mov rdx, cr0; cpuid; sysretq", 0x40000))
    user = 0x50000
    g.write(user, assemble("mov eax, 5; syscall; mov r8, 9; mov rax, cr0", user))
    g.program(f"mov rcx, {user}; mov r11, 0x202; sysretq")
    assert CPUID == g.run().code
    assert [user + 7, 0x202] == [g.register(r) for r in (RBX, RSI)]
    assert 0 == g.get(0x4CB, "B")
    assert 0 == g.get(0x570) & 0x200  # masked
    g.skip(2)
    g.set("I", At.EXCEPTIONS, 1 << 13)
    assert 0x40 + 13 == g.run().code  # MOV from CR0 is not for users
    assert [9, 3] == [g.register(R8), g.get(0x4CB, "B")]


@pytest.mark.parametrize("source", ["vmload rax", "vmsave rax", "stgi", "clgi", "invlpga rax, ecx"])
def test_a_guest_is_no_hypervisor(source: str) -> None:
    g = Guest()
    g.set("I", At.EXCEPTIONS, 0)
    with_handlers(g, one=(6, "mov rbx, [rsp]; hlt"))
    g.program(f"mov rax, 0x20000; {source}")
    assert HLT == g.run().code
    assert CODE + 7 == g.register(RBX)


def test_a_guests_vmrun_is_intercepted_always() -> None:
    g = Guest()
    g.program("vmrun rax")
    assert 0x80 == g.run().code


def test_wbinvd_and_invd_are_told_apart_when_intercepted() -> None:
    for source, bit, code in (("wbinvd", 0x29, 0x89), ("invd", 0x16, 0x76)):
        g = Guest()
        g.set("Q", At.INTERCEPTS, g.get(At.INTERCEPTS) | 1 << bit)
        g.program(source)
        assert code == g.run().code


# ---- VMRUN refuses


@pytest.mark.parametrize(
    ("form", "at", "value", "why"),
    [
        ("I", 0x058, 0, "ASID 0 is the host's"),
        ("I", 0x058, 3, "ASID 3"),
        ("Q", 0x4D0, 0x0D01, "EFER.SVME"),
        ("Q", 0x550, 1 << 51 | 0x1000, "CR3"),
        ("Q", 0x558, 0x8000_0032, "paging without protected mode"),
        ("Q", At.NCR3, 1 << 45, "nCR3"),
    ],
)
def test_a_bad_vmcb_is_refused_and_says_so(form: str, at: int, value: int, why: str) -> None:
    g = Guest()
    g.program("hlt")
    before = bytes(g.vmcb)
    g.set(form, at, value)
    with pytest.raises(VmexitInvalid, match=why):
        g.run()
    assert int(ExitCode.INVALID) == g.get(At.EXIT_CODE)
    assert {} == g.machine.engine.exits
    g.vmcb[:] = before
    assert HLT == g.run().code


def test_a_key_that_is_taken_away_between_two_runs_is_noticed() -> None:
    g = Guest()
    g.program("cpuid; hlt")
    assert CPUID == g.run().code
    g.machine.unusable.add(g.asid)
    with pytest.raises(VmexitInvalid, match="no usable key"):
        g.run()
    g.machine.unusable.clear()
    g.skip(2)
    assert HLT == g.run().code


def test_an_intercept_that_the_engine_needs_is_named() -> None:
    g = Guest()
    g.set("Q", At.INTERCEPTS, g.get(At.INTERCEPTS) & ~int(Intercept.IOIO | Intercept.HLT))
    with pytest.raises(NotModelled, match="without intercepting HLT, IOIO"):
        g.run()


def test_the_vmcb_is_read_and_written_with_the_key_that_its_address_asks_for() -> None:
    g = Guest()
    g.program("mov rbx, 3; hlt")
    encrypted = Spa(g.vmcb_at | 1 << 47)
    g.machine.cache.write(g.vmcb_at, bytes(g.vmcb), HOST)
    left = g.machine.engine.run(encrypted, g.context, g.machine.side())
    assert HLT == left.code
    g.machine.cache.wbinvd()
    assert HLT == int.from_bytes(g.machine.cache.read(Spa(g.vmcb_at + At.EXIT_CODE), 8, HOST), "little")
    raw = g.machine.cache.read(Spa(g.vmcb_at + At.EXIT_CODE), 8, UNENCRYPTED)
    assert HLT != int.from_bytes(raw, "little")


def test_the_vmcb_is_held_where_it_lies_until_it_leaves_the_cache() -> None:
    """What its owner stores there is in memory as soon as the cache lets it go; after that it is not held."""
    g = Guest()
    g.program("mov eax, 7; cpuid; hlt")
    assert CPUID == g.run().code
    held, at = g.machine.engine.held_block, 0x5F8
    assert held.words is not None
    assert 7 == held.words[at // 8]
    held.words[at // 8] = 9
    assert 9 == int.from_bytes(g.machine.cache.read(Spa(g.vmcb_at + at), 8, UNENCRYPTED), "little")
    g.machine.cache.wbinvd()
    assert held.words is None
    assert 9 == int.from_bytes(g.machine.probe.read(Spa(g.vmcb_at + at), 8), "little")


def test_a_held_vmcb_is_not_another_guests() -> None:
    machine = Machine()
    one, other = Guest(machine), Guest(machine, asid=BOB, at=0xC0_0000)
    for g, value in ((one, 1), (other, 2)):
        g.program(f"mov eax, {value}; cpuid; hlt")
        assert CPUID == g.run().code
        held = machine.engine.held_block
        assert held.words is not None
        assert value == held.words[0x5F8 // 8]
        if g is one:
            first = held
    assert first.words is None
