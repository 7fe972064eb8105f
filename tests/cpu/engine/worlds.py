"""A machine's memory, a small hypervisor and small guests, to run on the execution engine.

Guest physical 0 … 2 MiB lies at system physical 8 MiB …, so nothing is where the guest believes it to be.
A long-mode guest has linear 0 … 2 MiB = its memory with C=1, 2 … 4 MiB = the same with C=0.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from cbit.cpu.control import LONG_MODE, AddressRules, PagingMode
from cbit.cpu.encryption_rules import HostSituation
from cbit.cpu.engine.checks import C_BIT, HostSide
from cbit.cpu.engine.control_block import REQUIRED, At, Exit, Intercept
from cbit.cpu.engine.engine import Engine
from cbit.cpu.engine.processor import Context
from cbit.cpu.host_tables import HostTables
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.vmcb import HostState
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, Mode, Tweak
from cbit.memory.bus import Bus
from cbit.memory.cache import Cache
from cbit.memory.controller import MemoryController
from cbit.memory.dram import Dram
from cbit.memory.fabric import FabricPort
from cbit.memory.probe import Probe
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest
from cpu.tables import A, Builder, D, P, U, W
from cpu.worlds import ALICE, BOB, NAPLES

C = 1 << C_BIT
DRAM = 16 * MIB
GUEST_AT = 8 * MIB  # system physical address of guest physical 0
GUEST_SIZE = 2 * MIB
SHARED = 2 * MIB  # linear address of the C=0 view

TABLES, GDT, IDT, STACK, CODE, DATA = 0x1000, 0x6000, 0x7000, 0x9000, 0x10000, 0x20000
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
CPUID, HLT, IOIO, MSR, SHUTDOWN, VMMCALL, NPF, INTR = 0x72, 0x78, 0x7B, 0x7C, 0x7F, 0x81, 0x400, 0x60
NESTED_C = 1 << NAPLES.c_bit


@functools.cache
def assemble(source: str, at: int = 0, bits: int = 64) -> bytes:
    """Assemble Intel syntax; skips aloud where the system has no assembler."""
    with tempfile.TemporaryDirectory() as scratch:
        listing, linked = Path(scratch) / "guest.o", Path(scratch) / "guest.bin"
        text = f".intel_syntax noprefix\n.code{bits}\n.text\n" + source.replace(";", "\n") + "\n"
        try:
            subprocess.run(["as", "-o", listing, "-"], input=text, text=True, check=True)
            place = ["--oformat", "binary", "-Ttext", hex(at), "-e", hex(at)]
            ld = ["ld", *place, "-o", str(linked), str(listing)]
            subprocess.run(ld, check=True, stderr=subprocess.DEVNULL)
        except FileNotFoundError as error:
            pytest.skip(f"{error.filename} is not here: apt install binutils")
        return linked.read_bytes()


class Machine:
    """DRAM, engine, cache, keys, and one execution engine."""

    def __init__(self, *, capacity: int = MIB, coherent: bool = False, seed: str = "a guest") -> None:
        self.dram = Dram(DRAM)
        entropy = SeededEntropy("an engine's memory")
        controller = self.controller = MemoryController(
            Bus(self.dram), mode=Mode.XEX, tweak=Tweak.zen1(), entropy=entropy
        )
        self.cache = Cache(controller, capacity=capacity, coherent=coherent)
        self.fabric = FabricPort(self.cache, controller)
        for key_id in (HOST, guest(ALICE), guest(BOB)):
            self.fabric.load_key(key_id, Key(SeededEntropy(f"key {key_id}").draw(KEY_BYTES[Mode.XEX])))
        self.probe = Probe(self.dram)
        self.port = PhysicalPort(self.cache)
        self.engine = Engine(self.cache, entropy=SeededEntropy(seed))
        self.unusable: set[int] = set()  # ASIDs whose key was taken away
        self._sides: dict[bool, HostSide] = {}
        self._next = PAGE

    def page(self) -> int:
        """Take a page for the hypervisor's records."""
        self._next += PAGE
        assert self._next < GUEST_AT
        return self._next - PAGE

    def nested(self) -> Builder:
        """Empty nested tables, in DRAM without encryption."""
        tables = HostTables(self.port, HostSituation.WITH_PAE)
        return Builder(PagingMode.LONG, tables, new_table=self.page, c_bit=NAPLES.c_bit)

    def side(self, *, invd_is_wbinvd: bool = True) -> HostSide:
        return self._sides.setdefault(invd_is_wbinvd, self._new_side(invd_is_wbinvd=invd_is_wbinvd))

    def _new_side(self, *, invd_is_wbinvd: bool) -> HostSide:
        state = HostState(
            features=NAPLES,
            controls=LONG_MODE,
            rules=AddressRules(NAPLES.reduced_bits, NAPLES.c_bit),
            encryption_on=True,
            smm_lock=True,
            asid_usable=lambda asid: asid not in self.unusable,
        )
        return HostSide(state=state, port=self.port, invd_is_wbinvd=invd_is_wbinvd)


class Guest:
    """A virtual machine with one virtual CPU in 64-bit mode."""

    def __init__(
        self,
        machine: Machine | None = None,
        *,
        asid: int = ALICE,
        sev: bool = True,
        at: int = GUEST_AT,
        nested_flags: int = P | W | U,
        large: bool = False,
    ) -> None:
        self.machine = machine or Machine()
        self.asid, self.sev, self.at = asid, sev, at
        self.key = guest(asid) if sev else UNENCRYPTED
        self.c = C if sev else 0
        self.nested = self.machine.nested()
        if large:
            self.nested.map(0, at, shift=21, flags=nested_flags)
        else:
            for gpa in range(0, GUEST_SIZE, PAGE):
                self.nested.map(gpa, at + gpa, flags=nested_flags)
        self.vmcb_at = Spa(self.machine.page())
        self.context: Context = self.machine.engine.new_context()
        self.vmcb = bytearray(PAGE)
        self._maps()
        self._long_mode()
        self.tables()

    # --- the hypervisor's side

    def _maps(self) -> None:
        iopm = [self.machine.page() for _ in range(3)]
        msrpm = [self.machine.page() for _ in range(2)]
        for page in iopm + msrpm:
            self.machine.cache.write(Spa(page), b"\xff" * PAGE, UNENCRYPTED)
        self.set("Q", At.IOPM, iopm[0])
        self.set("Q", At.MSRPM, msrpm[0])

    def _long_mode(self) -> None:
        everything = REQUIRED | Intercept.VMRUN | Intercept.VMMCALL
        for form, at, value in (
            ("Q", At.INTERCEPTS, everything),
            ("I", 0x058, self.asid),
            ("Q", 0x090, 1 | (2 if self.sev else 0)),
            ("Q", At.NCR3, self.nested.cr3),
            ("Q", 0x4D0, 0x1D01),  # SCE, LME, LMA, NXE, SVME
            ("Q", 0x548, 0x6A0),
            ("Q", 0x550, TABLES | self.c),
            ("Q", 0x558, 0x8005_0033),
            ("Q", 0x570, 2),
            ("Q", 0x578, CODE),
            ("Q", 0x5D8, STACK),
        ):
            self.set(form, at, value)
        for index in range(4):
            self.segment(index, 0x10 if index == 1 else 0x18, 0xA9B if index == 1 else 0xC93)
        struct.pack_into("<HHIQ", self.vmcb, 0x460, 0, 0, 0xFF, GDT)
        struct.pack_into("<HHIQ", self.vmcb, 0x480, 0, 0, 0x3FF, IDT)
        self.write(GDT, struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))

    def segment(
        self, index: int, selector: int, attributes: int, base: int = 0, limit: int = 0xFFFFFFFF
    ) -> None:
        struct.pack_into("<HHIQ", self.vmcb, 0x400 + 16 * index, selector, attributes, limit, base)

    def set(self, form: str, at: int, value: int) -> None:
        struct.pack_into("<" + form, self.vmcb, at, value)

    def get(self, at: int, form: str = "Q") -> int:
        return int(struct.unpack_from("<" + form, self.vmcb, at)[0])

    def run(self, *, blocks: int | None = 1_000_000, invd_is_wbinvd: bool = True) -> Exit:
        """VMRUN with the VMCB as it is here, and read it back."""
        cache = self.machine.cache
        cache.write(self.vmcb_at, bytes(self.vmcb), UNENCRYPTED)
        try:
            side = self.machine.side(invd_is_wbinvd=invd_is_wbinvd)
            return self.machine.engine.run(self.vmcb_at, self.context, side, blocks=blocks)
        finally:
            self.vmcb[:] = cache.read(self.vmcb_at, PAGE, UNENCRYPTED)

    def skip(self, length: int) -> None:
        """Step over the instruction that left the guest."""
        self.set("Q", 0x578, self.get(0x578) + length)

    def register(self, number: int) -> int:
        if number in (RAX, RSP):
            return self.get(0x5F8 if number == RAX else 0x5D8)
        return self.context.registers[number]

    # --- its memory

    def write(self, gpa: int, data: bytes, key: KeyId | None = None) -> None:
        """Store as the owner of a key does; by default the guest's own."""
        self.machine.cache.write(Spa(self.at + gpa), data, self.key if key is None else key)

    def read(self, gpa: int, length: int, key: KeyId | None = None) -> bytes:
        return self.machine.cache.read(Spa(self.at + gpa), length, self.key if key is None else key)

    def cells(self, gpa: int, length: int = 8) -> bytes:
        return self.machine.probe.read(Spa(self.at + gpa), length)

    def tables(self, top: int = TABLES, *, tables_c: bool = True) -> None:
        """4-level tables: linear 0 … 2 MiB private, 2 … 4 MiB shared (both plain without SEV)."""
        c = self.c if tables_c else 0
        use = P | W | U | A
        self.write(top, struct.pack("<Q", top + 0x1000 | c | use))
        self.write(top + 0x1000, struct.pack("<Q", top + 0x2000 | c | use))
        self.write(top + 0x2000, struct.pack("<2Q", top + 0x3000 | c | use, top + 0x4000 | c | use))
        for table, leaf_c in ((top + 0x3000, self.c), (top + 0x4000, 0)):
            entries = (page << 12 | leaf_c | use | D for page in range(512))
            self.write(table, b"".join(struct.pack("<Q", entry) for entry in entries))

    def program(self, source: str, at: int = CODE, *, bits: int = 64) -> None:
        """Put a program where the guest starts."""
        self.write(at, assemble(source, at, bits))
        self.set("Q", 0x578, at)

    def gate(self, vector: int, handler: int) -> None:
        """Put a 64-bit interrupt gate into the IDT."""
        self.write(
            IDT + 16 * vector, struct.pack("<HHBBHII", handler & 0xFFFF, 0x10, 0, 0x8E, handler >> 16, 0, 0)
        )
