"""Software on the bare machine: its C-bit chooses the host's key for code, tables and data alike."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cbit.hypervisor.execution import bare_metal
from cbit.hypervisor.execution.bare_metal import BareCpu, BareDma, LinuxHost
from cbit.hypervisor.execution.clock import BlockClock
from cbit.hypervisor.execution.cpuid import GuestCpuid
from cbit.hypervisor.execution.exits import Exits, Next, Stop
from cbit.hypervisor.execution.monitor import Monitor, run
from cbit.machine.board import Machine
from cbit.memory.dma import DmaPort
from cbit.memory.errors import AddressError
from cbit.secure_processor.image import BiosSettings
from cbit.spec.address import MIB, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from cbit.spec.linux_boot import BootImage, EntryState, Unbootable
from cbit.spec.vmsa import Segment, Vmsa
from cbit.testing.worlds import a_machine, a_state
from cpu.engine.worlds import assemble
from hypervisor.execution.worlds import Desk

assert bare_metal.__doc__
C = 1 << 39
TABLES, CODE, DATA, STACK = 0x20000, 0x30000, 0x40000, 0x50000
SECRET = b"known to the host"
_CODE = Segment(selector=0x10, attributes=0xA9B, limit=0xFFFF_FFFF)
_FLAT = Segment(selector=0x18, attributes=0xC93, limit=0xFFFF_FFFF)


def a_bare_machine(path: Path, *, encryption: bool = True) -> Machine:
    settings = BiosSettings(memory_encryption=encryption)
    return a_machine(a_state(path / f"machine-{encryption}", settings=settings), cache_size=2 * MIB)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return a_bare_machine(tmp_path_factory.mktemp("bare"))


class Bare:
    """A program in 64-bit mode with tables of its own: linear 2 … 4 MiB is its memory with C=0."""

    def __init__(self, machine: Machine, source: str, *, key: KeyId = HOST) -> None:
        self.machine = machine
        machine.memory.wbinvd()
        c = C if key == HOST else 0
        write = machine.memory.write
        for level in range(2):
            write(Spa(TABLES + level * 0x1000), struct.pack("<Q", TABLES + 0x1000 * (level + 1) | c | 3), key)
        last = struct.pack("<2Q", TABLES + 0x3000 | c | 3, TABLES + 0x4000 | c | 3)
        write(Spa(TABLES + 0x2000), last, key)
        for table, bit in ((0x3000, c), (0x4000, 0)):
            leaves = struct.pack("<512Q", *(page << 12 | bit | 3 for page in range(512)))
            write(Spa(TABLES + table), leaves, key)
        write(Spa(CODE), assemble(source, CODE), key)
        start = Vmsa(
            cs=_CODE, ds=_FLAT, es=_FLAT, ss=_FLAT, cr0=0x8005_0033, cr3=TABLES | c, cr4=0x20,
            efer=0x500, rip=CODE, rsp=STACK, rflags=2, dr6=0xFFFF_0FF0, dr7=0x400,
        )  # fmt: skip
        core = machine.cores[0]
        self.cpu = BareCpu(core, start, memory=machine.memory, memory_size=machine.memory_size, elsewhere={})
        clock = BlockClock(core)
        self.desk = Desk(clock)
        self.exits = Exits(self.cpu, cpuid=GuestCpuid(core, sev=False, host=True), ports=self.desk)
        self.exits.msrs.become_host(core)
        self.monitor = Monitor(self.cpu, self.exits, self.desk, clock)
        run([self.monitor])

    @property
    def stop(self) -> Stop:
        assert isinstance(self.monitor.stop, Stop)
        return self.monitor.stop

    def cells(self, spa: int, length: int) -> bytes:
        return self.machine.probe.read(Spa(spa), length)


STORE = f"""mov rsi, offset text; mov rdi, {DATA}; mov rcx, {len(SECRET)}; rep movsb; {{end}}; cli; hlt;
    text: .ascii "{SECRET.decode()}" """


def test_what_is_stored_through_c_is_ciphertext_under_the_hosts_key(machine: Machine) -> None:
    bare = Bare(machine, STORE.format(end="wbinvd"))
    assert bare.stop.next is Next.HALTED
    assert bare.cells(DATA, len(SECRET)) != SECRET
    assert machine.memory.read(Spa(DATA), len(SECRET), HOST) == SECRET
    assert 0x89 not in bare.exits.counts  # WBINVD is the core's own


def test_what_is_stored_without_c_is_there_for_everybody(machine: Machine) -> None:
    store = STORE.replace(f"mov rdi, {DATA}", f"mov rdi, {DATA + 2 * MIB}")
    bare = Bare(machine, store.format(end="wbinvd"))
    assert bare.cells(DATA, len(SECRET)) == SECRET


def test_code_and_tables_follow_the_bit_too(machine: Machine) -> None:
    assert Bare(machine, "mov bl, 7; cli; hlt").cpu.save_area().rbx == 7
    machine.memory.wbinvd()
    assert machine.probe.read(Spa(CODE), 4) != assemble("mov bl, 7; cli; hlt", CODE)[:4]
    # The same machine, everything with C=0 and no key: the walk finds the tables where they are.
    assert Bare(machine, "mov bl, 9; cli; hlt", key=UNENCRYPTED).cpu.save_area().rbx == 9
    assert machine.memory.read(Spa(CODE), 2, UNENCRYPTED) == assemble("mov bl, 9", CODE)


def test_code_that_is_fetched_without_the_bit_is_garbage(machine: Machine) -> None:
    source = f"mov rax, {CODE + 2 * MIB}; add rax, offset there - {CODE}; wbinvd; jmp rax;"
    source += "there: mov bl, 7; cli; hlt"
    bare = Bare(machine, source)
    assert bare.cpu.save_area().rbx & 0xFF != 7 or bare.stop.next is not Next.HALTED


def test_a_dirty_copy_is_not_seen_through_the_other_bit_until_it_is_flushed(tmp_path: Path) -> None:
    rome = a_machine(a_state(tmp_path / "rome", "rome"), cache_size=2 * MIB)  # its caches are not coherent
    read = f"mov rdi, {DATA}; mov qword ptr [rdi], 0x1234; {{between}}; mov rbx, [rdi + {2 * MIB}]; cli; hlt"
    rome.memory.write(Spa(DATA), bytes(16), UNENCRYPTED)
    stale = Bare(rome, read.format(between="nop"))
    assert stale.cpu.save_area().rbx == 0
    fresh = Bare(rome, read.format(between="wbinvd"))
    assert fresh.cpu.save_area().rbx == int.from_bytes(fresh.cells(DATA, 8), "little") != 0x1234


def test_the_processor_says_that_it_is_no_virtual_machine_and_may_encrypt(machine: Machine) -> None:
    source = """mov eax, 1; cpuid; mov esi, ecx; mov eax, 0x8000001F; cpuid; mov edi, eax; mov ebp, ebx;
        mov ecx, 0xC0010010; rdmsr; mov r8d, eax; mov ecx, 0xC0010131; rdmsr; mov r9d, eax; cli; hlt"""
    state = Bare(machine, source).cpu.save_area()
    assert state.rsi >> 31 == 0
    assert state.rdi & 3 == 1  # SME and no SEV
    assert state.rbp & 0x3F == 39
    assert (state.r8 >> 23 & 1, state.r9) == (1, 0)


def test_without_encryption_there_is_no_leaf_and_the_bit_is_an_address_bit(tmp_path: Path) -> None:
    off = a_bare_machine(tmp_path, encryption=False)
    source = "mov eax, 0x80000000; cpuid; mov esi, eax; mov ecx, 0xC0010010; rdmsr; mov r8d, eax; cli; hlt"
    state = Bare(off, source, key=UNENCRYPTED).cpu.save_area()
    assert (state.rsi, state.r8) == (0x8000_001E, 0)


@pytest.mark.parametrize("clears", [False, True])
def test_who_clears_syscfg_has_no_c_bit_any_more(tmp_path: Path, *, clears: bool) -> None:
    clear = "mov ecx, 0xC0010010; rdmsr; btr eax, 23; wrmsr; rdmsr; mov r8d, eax" if clears else "nop"
    source = f"{clear}; mov rax, {TABLES + 0x3000 + 8 * 0x80}; mov rbx, {DATA | C | 3}; mov [rax], rbx;"
    bare = Bare(a_bare_machine(tmp_path), source + "mov rbx, [0x80000]; cli; hlt", key=UNENCRYPTED)
    assert clears is not bare.machine.cores[0].encryption_on
    assert bare.cpu.save_area().r8 == 0
    assert bare.stop.next is (Next.NO_MEMORY if clears else Next.HALTED)
    assert not clears or f"{DATA | C:#x}" in bare.stop.why
    dma, (at, there) = BareDma(DmaPort(bare.machine.memory, c_bit=None), bare.machine.cores[0]), (DATA, True)
    bare.machine.memory.write(Spa(at), SECRET, UNENCRYPTED)
    try:
        dma.read(at | C, 8)
    except AddressError:
        there = False
    assert clears is not there


@pytest.mark.parametrize("clears", [False, True])
def test_who_clears_the_bit_of_hwcr_loses_what_invd_drops(tmp_path: Path, *, clears: bool) -> None:
    clear = "mov ecx, 0xC0010015; rdmsr; mov r8d, eax; btr eax, 4; wrmsr" if clears else "nop"
    source = f"mov rdi, {DATA}; mov qword ptr [rdi], 1; {clear}; wbinvd; mov qword ptr [rdi], 2; invd"
    bare = Bare(a_bare_machine(tmp_path), source + "; mov rbx, [rdi]; cli; hlt")
    state = bare.cpu.save_area()
    assert (state.rbx, state.r8) == ((1, 1 << 24 | 0x11) if clears else (2, 0))


def test_a_switch_of_snp_is_not_modelled(tmp_path: Path) -> None:
    with pytest.raises(NotModelled, match="SECURE_NESTED_PAGING_EN"):
        Bare(a_bare_machine(tmp_path), "mov ecx, 0xC0010010; rdmsr; bts eax, 24; wrmsr; hlt")


def test_memory_that_is_not_there_ends_the_run_with_its_address(machine: Machine) -> None:
    entry = (
        f"mov rax, {TABLES + 0x3000 + 8 * 0x80}; mov rbx, 0x40000003; mov [rax], rbx; mov rbx, [0x80000]; hlt"
    )
    bare = Bare(machine, entry)
    assert bare.stop.next is Next.NO_MEMORY
    assert "read of guest physical 0x40000000" in bare.stop.why


def test_an_image_for_more_memory_is_refused(machine: Machine) -> None:
    image = BootImage((), EntryState(rip=0, rsi=0, gdtr=Segment()), 64 * MIB, None, acpi=False)  # type: ignore[arg-type]
    with pytest.raises(Unbootable, match="the machine has"):
        LinuxHost(machine, image, None, epoch=0)  # type: ignore[arg-type]  # it does not come so far


@pytest.mark.parametrize(("view", "plain"), [(0, True), (2 * MIB, False)])
def test_string_output_reads_through_the_keys_of_the_softwares_tables(
    machine: Machine, view: int, *, plain: bool
) -> None:
    source = (
        f"mov rsi, offset text + {view}; mov ecx, {len(SECRET)}; mov dx, 0x80; wbinvd; rep outsb; cli; hlt;"
    )
    bare = Bare(machine, f'{source} text: .ascii "{SECRET.decode()}"')
    assert bare.stop.next is Next.HALTED
    sent = bytes(value for _, _, value in bare.desk.written)
    assert len(SECRET) == len(sent)
    assert plain is (sent == SECRET)
