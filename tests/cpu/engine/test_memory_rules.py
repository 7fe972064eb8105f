"""The rules of memory encryption, told by programs that execute: what a C-bit does, and what it cannot do."""

from __future__ import annotations

import struct

import pytest

from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED
from cpu.engine.worlds import (
    CODE,
    CPUID,
    DATA,
    HLT,
    MSR,
    NESTED_C,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBX,
    RDX,
    SHARED,
    SHUTDOWN,
    TABLES,
    VMMCALL,
    Guest,
    Machine,
    assemble,
)
from cpu.worlds import ALICE, BOB

OLD, NEW = b"old-old-", b"NEW-NEW-"


def word(data: bytes) -> int:
    return int.from_bytes(data, "little")


@pytest.fixture
def alice() -> Guest:
    """A SEV guest whose data page holds OLD, in DRAM too."""
    g = Guest()
    g.write(DATA, OLD * (PAGE // 8))
    g.machine.cache.wbinvd()
    return g


def test_a_private_store_is_seen_by_private_loads_and_by_nobody_else(alice: Guest) -> None:
    before = alice.cells(DATA)
    alice.program(
        f"""mov rsi, {DATA}; mov rdi, {SHARED + DATA}; mov rax, {word(NEW)}
            mov [rsi], rax; mov rbx, [rsi]; mov r8, [rdi]; hlt"""
    )
    assert HLT == alice.run().code
    assert word(NEW) == alice.register(RBX)
    assert word(before) == alice.register(R8)  # C=0 reads DRAM's old ciphertext
    assert before == alice.cells(DATA)
    assert before == alice.read(DATA, 8, UNENCRYPTED)  # so does the host
    assert NEW == alice.read(DATA, 8)


def test_wbinvd_brings_the_new_ciphertext_to_dram(alice: Guest) -> None:
    before = alice.cells(DATA)
    alice.program(
        f"""mov rsi, {DATA}; mov rdi, {SHARED + DATA}; mov rax, {word(NEW)}
            mov [rsi], rax; mov r8, [rdi]; wbinvd; mov r9, [rdi]; mov r10, [rsi]; hlt"""
    )
    assert HLT == alice.run().code
    assert word(before) == alice.register(R8)
    assert word(alice.cells(DATA)) == alice.register(R9) != word(before)
    assert word(NEW) == alice.register(R10)


@pytest.mark.parametrize("as_wbinvd", [False, True])
def test_invd_loses_what_was_not_written_back_unless_hwcr_makes_it_wbinvd(
    alice: Guest, *, as_wbinvd: bool
) -> None:
    alice.program(f"mov rsi, {DATA}; mov rax, {word(NEW)}; mov [rsi], rax; invd; mov rbx, [rsi]; hlt")
    alice.machine.cache.wbinvd()  # the program itself and its tables
    assert HLT == alice.run(invd_is_wbinvd=as_wbinvd).code
    assert word(NEW if as_wbinvd else OLD) == alice.register(RBX)


def test_a_shared_store_is_not_seen_by_a_cached_private_page_until_wbinvd(alice: Guest) -> None:
    alice.program(
        f"""mov rsi, {DATA}; mov rdi, {SHARED + DATA}; mov r11, [rsi]
            mov rax, 0x1111111111111111; mov [rdi], rax; mov r12, [rsi]; mov r13, [rdi]
            wbinvd; mov r14, [rsi]; mov r15, [rdi]; hlt"""
    )
    assert HLT == alice.run().code
    ones = 0x1111_1111_1111_1111
    assert [word(OLD), word(OLD), ones, ones] == [alice.register(r) for r in (R11, R12, R13, R15)]
    assert alice.register(R14) not in (word(OLD), ones)  # decrypted from what C=0 wrote
    assert ones.to_bytes(8, "little") == alice.cells(DATA)


def test_clflush_writes_back_the_tag_of_its_own_mapping_only(alice: Guest) -> None:
    before = alice.cells(DATA)
    alice.program(
        f"""mov rsi, {DATA}; mov rdi, {SHARED + DATA}; mov rax, {word(NEW)}
            mov [rsi], rax; clflush [rdi]; vmmcall; clflush [rsi+0x10]; vmmcall; hlt"""
    )
    assert VMMCALL == alice.run().code
    assert before == alice.cells(DATA)
    alice.skip(3)
    assert VMMCALL == alice.run().code
    assert before != alice.cells(DATA)
    alice.skip(3)
    assert HLT == alice.run().code
    assert NEW == alice.read(DATA, 8)


def test_one_flush_after_the_other_reaches_page_after_page(alice: Guest) -> None:
    pages = [DATA + number * PAGE for number in range(5)]
    before = [alice.cells(page) for page in pages]
    alice.program(
        f"""mov rax, {word(NEW)}; mov rsi, {DATA}; mov ecx, 5
        fill: mov [rsi], rax; add rsi, 0x1000; dec ecx; jnz fill
            mov rsi, {DATA}; mov ecx, {4 * PAGE // 64}
        flush: clflush [rsi+0x20]; add rsi, 64; dec ecx; jnz flush
            vmmcall"""
    )
    assert VMMCALL == alice.run().code
    assert [True, True, True, True, False] == [
        old != alice.cells(page) for old, page in zip(before, pages, strict=True)
    ]


def test_a_flush_that_has_become_another_is_done_as_it_reads_now(alice: Guest) -> None:
    """The guest changes the instruction's operand from RSI to RDI, at one address."""
    before = alice.cells(DATA), alice.cells(DATA + PAGE)
    alice.program(
        f"""mov rsi, {DATA}; mov rdi, {DATA + PAGE}; mov rax, {word(NEW)}; mov [rsi], rax; mov [rdi], rax
            lea rbx, [rip + flush + 2]; xor ecx, ecx; mov byte ptr [rbx], 0x3E
        flush: clflush [rsi]
            test ecx, ecx; jnz done; inc ecx; mov byte ptr [rbx], 0x3F; jmp flush
        done: vmmcall"""
    )
    assert VMMCALL == alice.run().code
    assert before[0] != alice.cells(DATA)
    assert before[1] != alice.cells(DATA + PAGE)


@pytest.mark.parametrize("coherent", [False, True])
def test_code_is_private_even_through_a_shared_mapping_and_its_data_are_not(*, coherent: bool) -> None:
    g = Guest(Machine(coherent=coherent))
    # The code page is executed through C=0 and loads a word of itself through C=0.
    g.write(0x30000, assemble("mov edx, 0x600D; mov rbx, [rip+0x100]; jmp rcx", 0x30000))
    g.write(0x30000 + 0x100, bytes(range(64)))
    g.machine.cache.wbinvd()
    g.program(f"mov rcx, {CODE + 0x40}; mov rax, {SHARED + 0x30000}; jmp rax; .org 0x40; mov r15, [rax]; hlt")
    assert HLT == g.run().code
    assert 0x600D == g.register(RDX)
    operand = 0x30000 + len(assemble("mov edx, 0x600D; mov rbx, [rip+0x100]", 0x30000)) + 0x100
    assert word(g.cells(operand)) == g.register(RBX)
    assert word(g.cells(0x30000)) == g.register(R15)


def test_page_tables_are_private_whatever_any_c_bit_says() -> None:
    g = Guest()
    g.tables(0x40000, tables_c=False)  # CR3 and every entry that points to a table: C=0
    g.machine.cache.wbinvd()
    g.set("Q", 0x550, 0x40000)
    g.write(DATA, OLD)
    g.program(f"mov rax, [{DATA}]; mov rdi, {SHARED + 0x43000}; mov r8, [rdi]; mov [{DATA + 8}], rax; hlt")
    assert HLT == g.run().code
    assert word(OLD) == g.register(RAX)
    assert OLD == g.read(DATA + 8, 8)
    assert word(g.cells(0x43000)) == g.register(R8)  # the same table as C=0 data: ciphertext
    assert g.read(0x43000, 8) != g.cells(0x43000)


@pytest.mark.parametrize("cr0", [0x11, 0x8000_0011], ids=["paging off", "32-bit paging without PAE"])
def test_without_a_c_bit_to_say_so_everything_is_private(cr0: int) -> None:
    g = Guest()
    for index in range(4):
        g.segment(index, 0x10 if index == 1 else 0x18, 0xC9B if index == 1 else 0xC93)
    for at, value in ((0x4D0, 0x1000), (0x548, 0x10), (0x550, 0x50000), (0x558, cr0), (0x5D8, 0x9000)):
        g.set("Q", at, value)
    g.write(0x50000, struct.pack("<1024I", *(0x87 for _ in range(1024))))  # 4 MiB pages, all of them page 0
    g.program(f"mov eax, 0x5EF00D; mov [{DATA}], eax; mov ebx, [{DATA}]; hlt", bits=32)
    g.machine.cache.wbinvd()
    assert HLT == g.run().code
    g.machine.cache.wbinvd()
    assert 0x5EF00D == g.register(RBX)
    assert (0x5EF00D).to_bytes(4, "little") == g.read(DATA, 4)
    assert g.cells(DATA, 4) != g.read(DATA, 4)


def test_a_guest_may_switch_paging_on_and_its_c_bit_begins_to_count() -> None:
    g = Guest()
    for index in range(4):
        g.segment(index, 0x10 if index == 1 else 0x18, 0xC9B if index == 1 else 0xC93)
    for at, value in ((0x4D0, 0x1000), (0x548, 0), (0x550, 0), (0x558, 0x11), (0x5D8, 0x9000)):
        g.set("Q", at, value)
    g.write(DATA, OLD)
    far = CODE + 0x100
    g.write(0x2F0, struct.pack("<IH", far, 0x08))
    g.write(0x2E0, struct.pack("<HI", 0x17, 0x2C0))
    g.write(0x2C0, struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
    g.program(
        """lgdt [0x2E0]; mov eax, 0x6A0; mov cr4, eax; mov eax, 0x1000; mov cr3, eax
           mov ecx, 0xC0000080; rdmsr; or eax, 0x900; wrmsr
           mov eax, 0x80050033; mov cr0, eax; jmp fword ptr [0x2F0]""",
        bits=32,
    )
    g.write(far, assemble(f"mov rbx, [{DATA}]; mov rdi, {SHARED + DATA}; mov r8, [rdi]; hlt", far))
    g.machine.cache.wbinvd()
    efer = 2 * (0x2000 + 0x80) // 8  # let the guest have EFER
    msrpm = g.get(0x48)
    g.machine.cache.write(msrpm + efer, b"\0", UNENCRYPTED)  # type: ignore[arg-type]  # an Spa
    assert HLT == g.run().code
    assert word(OLD) == g.register(RBX)
    assert word(g.cells(DATA)) == g.register(R8) != word(OLD)


def test_another_key_gives_garbage_and_the_guest_shuts_down() -> None:
    machine = Machine()
    first = Guest(machine)
    first.program("mov rbx, 1; cpuid; mov rbx, 2; hlt")
    assert CPUID == first.run().code
    machine.cache.wbinvd()
    first.set("I", 0x058, BOB)  # the hypervisor swaps the ASID
    first.skip(2)
    assert SHUTDOWN == first.run().code
    first.set("I", 0x058, ALICE)


def test_the_guest_wins_over_the_hypervisors_c_bit() -> None:
    """Guest C=1: the guest's key whatever the nested leaf says; guest C=0: the host's key if it says C=1."""
    g = Guest()
    where = g.nested.map(DATA, g.at + DATA, c=True)
    assert word(g.machine.cache.read(where, 8, UNENCRYPTED)) & NESTED_C  # type: ignore[arg-type]  # an Spa
    g.write(DATA, OLD)
    g.machine.cache.wbinvd()
    g.program(f"mov rbx, [{DATA}]; mov rdi, {SHARED + DATA}; mov r8, [rdi]; hlt")
    assert HLT == g.run().code
    assert word(OLD) == g.register(RBX)
    host = g.machine.cache.read(g.at + DATA, 8, HOST)  # type: ignore[arg-type]  # an Spa
    assert word(host) == g.register(R8) not in (word(OLD), word(g.cells(DATA)))


def test_sev_status_cannot_be_intercepted() -> None:
    for sev in (True, False):
        g = Guest(sev=sev)
        g.program("mov ecx, 0xC0010131; rdmsr; mov ebx, eax; mov ecx, 0x10; rdmsr; hlt")
        left = g.run()
        assert (MSR, 0) == (left.code, left.info_1)  # the second one
        assert int(sev) == g.register(RBX)


def test_a_guest_without_sev_is_plain_in_dram() -> None:
    g = Guest(sev=False)
    g.program(f"mov rax, {word(NEW)}; mov [{DATA}], rax; mov r9, [{SHARED + DATA}]; hlt")
    assert HLT == g.run().code
    g.machine.cache.wbinvd()
    assert NEW == g.cells(DATA)
    assert word(NEW) == g.register(R9)


FLUSH_LINES = "mov rcx, 64; mov rsi, {at}; line: clflush [rsi]; add rsi, 64; dec rcx; jnz line;"


@pytest.mark.parametrize("between", ["", "mov cr3, rax;", "invlpg [rdi];"], ids=["plain", "CR3", "INVLPG"])
def test_a_flush_of_every_line_of_a_page_writes_it_back_and_again_when_it_was_stored_to(between: str) -> None:
    g = Guest()
    twice = f"mov qword ptr [{DATA}], 1; call flush; mov qword ptr [{DATA}], 2; {between} call flush; hlt;"
    lines = FLUSH_LINES.format(at=DATA)
    g.program(f"mov rax, cr3; mov rdi, {DATA}; {twice} flush: {lines} ret")
    assert HLT == g.run().code
    key = g.key
    assert 2 == int.from_bytes(g.machine.controller.read(Spa(g.at + DATA), 8, key), "little")


def test_a_page_that_is_mapped_elsewhere_is_flushed_where_it_is_now() -> None:
    """The same instruction flushes the same linear page twice; between, its table entry changes."""
    g = Guest()
    entry = TABLES + 0x3000 + 8 * (DATA >> 12)
    other = DATA + 0x5000
    g.program(
        f"""mov rdi, {DATA}; mov qword ptr [{DATA}], 1; mov qword ptr [{other}], 2;
        mov rbx, [{entry + 8 * 5}]; call flush; mov [{entry}], rbx; invlpg [rdi]; call flush; hlt;
        flush: {FLUSH_LINES.format(at=DATA)} ret"""
    )
    assert HLT == g.run().code
    assert 2 == int.from_bytes(g.machine.controller.read(Spa(g.at + other), 8, g.key), "little")
