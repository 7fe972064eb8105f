"""The engine held against the reference model: random two-level tables, random accesses, the same outcome.

Each access is done twice: by an instruction on the engine, and by the plain walker on a machine of its own.
They must agree on the bytes, on the fault and its code, on what DRAM holds afterwards, on accessed and dirty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hypothesis import given
from hypothesis import strategies as st

from cbit.cpu.control import AddressRules, Controls
from cbit.cpu.engine.checks import C_BIT
from cbit.cpu.engine.control_block import At
from cbit.cpu.faults import NestedPageFault, PageFault
from cbit.cpu.nested import NestedWalker, World
from cbit.cpu.paging import Access, Kind
from cbit.cpu.tlb import VmMode
from cbit.spec.address import LINE, PAGE
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest
from cpu.engine.worlds import CODE, HLT, NPF, RAX, RSI, TABLES, Guest, assemble
from cpu.tables import NX, A, D, P, U, W
from cpu.worlds import ALICE

WINDOW = 0x10_0000  # guest physical address of the first page under test
VIEW = 0x40_0000  # linear address of the same tables' pages through a directory entry of their own
DIRECTORY = TABLES + 0x2000 + VIEW // 0x20_0000 * 8
FRAMES = 0x18_0000  # where their system pages are, from the guest's first
COUNT = 5
RESERVED = 1 << 45
LANDING = 0xF00  # where each page holds an HLT to jump to, in the line of the key that it is fetched with
PF_EXIT = 0x40 + 14
PROGRAMS = {Kind.READ: "mov rax, [rsi]; hlt", Kind.WRITE: "mov [rsi], rax; hlt", Kind.FETCH: "jmp rsi"}
AT = {Kind.READ: CODE, Kind.WRITE: CODE + 0x40, Kind.FETCH: CODE + 0x80}
#: Stores under different keys go to different lines: of two dirty copies of one line the order decides.
LINES_OF = {guest(ALICE): 0, UNENCRYPTED: 256, HOST: 512}
LANDING_OF = {guest(ALICE): LANDING, UNENCRYPTED: LANDING + LINE, HOST: LANDING + 2 * LINE}


class Flush(Enum):
    WBINVD = "WBINVD"


@dataclass(frozen=True)
class Page:
    """What maps one page, in both sets of tables."""

    guest_flags: int
    guest_c: bool
    gpa: int
    nested_flags: int
    nested_c: bool
    frame: int


@dataclass(frozen=True)
class Act:
    kind: Kind
    page: int
    offset: int
    value: int


def often(bit: int, *, of: int) -> st.SearchStrategy[int]:
    """A bit that is clear once in so many times."""
    return st.sampled_from([bit] * (of - 1) + [0])


def flags(*bits: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return st.tuples(*bits).map(sum)


def rarely(bit: int, *, of: int) -> st.SearchStrategy[int]:
    """A bit that is set once in so many times."""
    return st.sampled_from([0] * (of - 1) + [bit])


index = st.integers(0, COUNT - 1)
pages = st.builds(
    Page,
    guest_flags=flags(
        often(P, of=10),
        often(W, of=4),
        often(A, of=2),
        often(D, of=2),
        rarely(NX, of=4),
        rarely(RESERVED, of=12),
    ),
    guest_c=st.booleans(),
    gpa=index,
    nested_flags=flags(
        often(P, of=10), often(W, of=5), often(U, of=12), often(A, of=2), often(D, of=2), rarely(NX, of=5)
    ),
    nested_c=st.booleans(),
    frame=index,
)
acts = st.builds(
    Act, kind=st.sampled_from(Kind), page=index, offset=st.integers(0, 247), value=st.integers(0, 2**64 - 1)
)


@dataclass(frozen=True)
class Above:
    """What decides beside the last entry: the guest's directory entry, and CR0.WP."""

    flags: int
    c: bool
    write_protect: bool

    @property
    def cr0(self) -> int:
        return 0x8005_0033 if self.write_protect else 0x8004_0033


above = st.builds(
    Above,
    flags=flags(often(P, of=20), often(W, of=6), often(A, of=2), rarely(NX, of=6), rarely(RESERVED, of=20)),
    c=st.booleans(),
    write_protect=st.booleans(),
)


@dataclass
class Twin:
    """One machine with the tables of an example."""

    sev: bool
    above: Above
    pages: list[Page]
    entries: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.g = g = Guest(sev=self.sev)
        table = TABLES + 0x3000 + WINDOW // PAGE * 8
        directory = TABLES + 0x3000 | self.above.flags | U | (g.c if self.above.c else 0)
        g.write(DIRECTORY, directory.to_bytes(8, "little"))
        for number, page in enumerate(self.pages):
            c = g.c if page.guest_c else 0
            entry = WINDOW + page.gpa * PAGE | page.guest_flags | c
            g.write(table + 8 * number, entry.to_bytes(8, "little"))
            where = g.nested.map(
                WINDOW + number * PAGE,
                g.at + FRAMES + page.frame * PAGE,
                flags=page.nested_flags,
                c=page.nested_c,
            )
            self.entries.append(where)
        for frame in range(COUNT):
            start = FRAMES + frame * PAGE
            for key, line in LINES_OF.items():
                g.write(start + line, bytes([frame + 1]) * 256, key)
                g.write(start + LANDING_OF[key], b"\xf4" * LINE, key)
        for kind, source in PROGRAMS.items():
            g.write(AT[kind], assemble(source, AT[kind]))
        g.machine.cache.wbinvd()

    def key(self, act: Act) -> KeyId:
        """The key of an access, by the paper's table (memory-encryption.md §4.2, §4.3)."""
        page = self.pages[act.page]
        nested = self.pages[page.gpa].nested_c
        if self.sev and (page.guest_c or act.kind is Kind.FETCH):
            return guest(ALICE)
        return HOST if nested else UNENCRYPTED

    def target(self, act: Act) -> int:
        if act.kind is Kind.FETCH:
            return VIEW + WINDOW + act.page * PAGE + LANDING_OF[self.key(act)]
        return VIEW + WINDOW + act.page * PAGE + LINES_OF[self.key(act)] + act.offset

    def memory(self) -> list[bytes]:
        """What DRAM holds, and what is left of accessed and dirty."""
        g = self.g
        g.machine.cache.wbinvd()
        used = [g.nested.tables.read_entry(where, size=8, c=False) for where in self.entries]
        leaves = g.read(TABLES + 0x3000 + WINDOW // PAGE * 8, 8 * COUNT)
        # If the walk faults further down, the engine has marked this entry and the walker has not.
        above = int.from_bytes(g.read(DIRECTORY, 8), "little") & ~A
        return [g.cells(FRAMES, COUNT * PAGE), leaves, repr(above).encode(), repr(used).encode()]


class OnEngine(Twin):
    def do(self, act: Act) -> tuple[object, ...]:
        g = self.g
        g.set("Q", 0x558, self.above.cr0)
        g.set("Q", 0x578, AT[act.kind])
        g.set("Q", 0x5F8, act.value)
        g.set("I", At.EXCEPTIONS, 1 << 14)
        g.context.registers[RSI] = self.target(act)
        left = g.run()
        if left.code in (PF_EXIT, NPF):
            return left.code, left.info_1, left.info_2
        assert HLT == left.code
        return HLT, g.register(RAX), g.get(0x578)


class OnWalker(Twin):
    def do(self, act: Act) -> tuple[object, ...]:
        g, side = self.g, self.g.machine.side().state
        controls = Controls(cr0=self.above.cr0, cr3=TABLES | g.c, cr4=0x6A0, efer=0x1D01)
        world = World(
            asid=ALICE,
            mode=VmMode.SEV if self.sev else VmMode.PLAIN,
            vte=False,
            nested=controls_of(side.controls, g.nested.cr3),
            host_rules=side.rules,
            guest_rules=AddressRules(C_BIT, C_BIT) if self.sev else AddressRules(C_BIT + 1, None),
        )
        walker = NestedWalker(g.machine.port, world)
        try:
            where = walker.translate(self.target(act), Access(act.kind), controls)
        except PageFault as fault:
            return PF_EXIT, int(fault.code), fault.address
        except NestedPageFault as fault:
            return NPF, fault.exit_info_1, fault.exit_info_2
        spa, key = where.spa(self.target(act)), walker.key(act.kind.use, where, controls)
        assert key == self.key(act)
        after = AT[act.kind] + len(assemble(PROGRAMS[act.kind].split(";")[0], AT[act.kind]))
        if act.kind is Kind.READ:
            return HLT, int.from_bytes(g.machine.port.read(spa, 8, key), "little"), after
        if act.kind is Kind.WRITE:
            g.machine.port.write(spa, act.value.to_bytes(8, "little"), key)
            return HLT, act.value, after
        assert b"\xf4" == g.machine.port.read(spa, 1, key)
        return HLT, act.value, self.target(act)


def controls_of(controls: Controls, ncr3: int) -> Controls:
    return Controls(cr0=controls.cr0, cr3=ncr3, cr4=controls.cr4, efer=controls.efer)


@given(
    sev=st.booleans(),
    above=above,
    tables=st.lists(pages, min_size=COUNT, max_size=COUNT),
    history=st.lists(st.one_of(acts, acts, acts, acts, st.just(Flush.WBINVD)), min_size=15, max_size=40),
)
def test_engine_and_walker_agree(
    *, sev: bool, above: Above, tables: list[Page], history: list[Act | Flush]
) -> None:
    engine, walker = OnEngine(sev, above, tables), OnWalker(sev, above, tables)
    for act in history:
        if act is Flush.WBINVD:
            for twin in (engine, walker):
                twin.g.machine.cache.wbinvd()
        else:
            assert isinstance(act, Act)
            assert walker.do(act) == engine.do(act), act
    assert walker.memory() == engine.memory()
