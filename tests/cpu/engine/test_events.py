"""Events on their way into a guest: what the hypervisor injects, and what the engine raises itself."""

from __future__ import annotations

import pytest

from cbit.cpu.engine.control_block import At
from cbit.cpu.faults import VmexitInvalid
from cbit.spec.errors import NotModelled
from cpu.engine.worlds import CODE, CPUID, DATA, HLT, RBX, RDX, VMMCALL, Guest, assemble

VALID, TYPE_EXCEPTION = 1 << 31, 3 << 8
HANDLER = 0x40000


def handled(g: Guest, vector: int) -> Guest:
    g.write(HANDLER, assemble("pop rdx; mov rbx, 7; vmmcall", HANDLER))
    g.gate(vector, HANDLER)
    return g


@pytest.mark.parametrize("intercepts", [0, 1 << 6])
@pytest.mark.parametrize("source", ["hlt", f"clflush [{DATA}]; hlt", "ud2"])
def test_an_injected_invalid_opcode_is_about_no_instruction(source: str, intercepts: int) -> None:
    """The code is in no cache yet, and nobody looks at it; nor is an injected event intercepted."""
    g = handled(Guest(), 6)
    g.program(source)
    g.set("I", At.EXCEPTIONS, intercepts)
    g.set("Q", 0x0A8, VALID | TYPE_EXCEPTION | 6)
    assert (VMMCALL, 7, CODE) == (g.run().code, g.register(RBX), g.register(RDX))
    g.set("Q", 0x578, CODE)
    g.set("Q", 0x5D8, 0x9000)
    assert ({HLT} if "hlt" in source else {0x46 if intercepts else VMMCALL}) == {g.run().code}


@pytest.mark.parametrize(
    ("vector", "source", "info"),
    [
        (6, "vmload rax", (0, None)),
        (6, "clgi", (0, None)),
        (6, "skinit", (0, None)),
        (6, "invlpga rax, ecx", (0, None)),
        (6, "ud2", (0, None)),
        (13, "mov ecx, 0xC0010131; wrmsr", (0, None)),
        (13, "mov rax, 0x8000000000000000; clflush [rax]", (0, None)),
        (13, "mov rax, 0x10000; mov cr8, rax", (0, None)),
        (14, "mov eax, 0x600040; clflush [rax]", (0, 0x600040)),
        (14, "mov eax, 0x600040; mov [rax], eax", (2, 0x600040)),
    ],
)
def test_whoever_raises_an_exception_the_hypervisor_may_intercept_it(
    vector: int, source: str, info: tuple[int, int | None]
) -> None:
    g = handled(Guest(), vector)
    g.program(source)
    g.set("I", At.EXCEPTIONS, 1 << vector)
    left = g.run()
    last = len(assemble(source, CODE)) - len(assemble(source.rpartition("; ")[2], CODE))
    assert (0x40 + vector, info[0], CODE + last) == (left.code, left.info_1, g.get(0x578))
    assert info[1] in (None, left.info_2)
    assert 0 == g.get(0x640)  # CR2 is for those that are delivered
    g.set("I", At.EXCEPTIONS, 0)
    g.write(HANDLER, assemble("mov rbx, cr2; vmmcall", HANDLER))
    assert (VMMCALL, info[1] or 0) == (g.run().code, g.register(RBX))


@pytest.mark.parametrize(
    ("at", "bit", "name"),
    [
        (At.INTERCEPTS, 0x05, "CR0_SEL_WRITE"),
        (At.INTERCEPTS, 0x27, "RDTSCP"),
        (At.INTERCEPTS, 0x28, "ICEBP"),
        (At.INTERCEPTS, 0x2D, "XSETBV"),
    ],
)
def test_an_intercept_that_the_engine_lacks_is_refused_by_name(at: int, bit: int, name: str) -> None:
    g = Guest()
    g.program("hlt")
    before = g.get(at)
    g.set("Q", at, before | 1 << bit)
    with pytest.raises(NotModelled, match=f"intercepting {name}$"):
        g.run()
    g.set("Q", at, before)
    assert HLT == g.run().code


@pytest.mark.parametrize(
    ("vector", "source", "exits"),
    [
        (3, "int3", True),
        (3, "int 3", False),
        (1, "int 1", False),
        (13, "int 13", False),
    ],
)
def test_an_exception_by_instruction_is_intercepted_and_an_interrupt_by_number_is_not(
    vector: int, source: str, *, exits: bool
) -> None:
    source = source.replace("int 3", ".byte 0xcd, 3")  # the assembler knows it better
    g = handled(Guest(), vector)
    g.program(source)
    g.set("I", At.EXCEPTIONS, 1 << vector)
    left = g.run()
    if not exits:
        assert (VMMCALL, 7) == (left.code, g.register(RBX))
        return
    assert (0x40 + vector, CODE) == (left.code, g.get(0x578))
    assert (CODE + len(assemble(source, CODE)) if vector == 3 else 0) == g.get(At.NEXT_RIP)
    g.set("I", At.EXCEPTIONS, 0)
    assert (VMMCALL, 7) == (g.run().code, g.register(RBX))


@pytest.mark.parametrize(("kind", "vector"), [(2, 2), (3, 3), (3, 1), (4, 3)])
def test_an_injected_event_is_not_intercepted(kind: int, vector: int) -> None:
    g = handled(Guest(), vector)
    g.program("int3")
    g.set("I", At.EXCEPTIONS, 0xFFFF_FFFF)
    g.set("Q", 0x0A8, VALID | kind << 8 | vector)
    assert (VMMCALL, 7) == (g.run().code, g.register(RBX))


@pytest.mark.parametrize("event", [1 << 8 | 0x30, 5 << 8, 7 << 8 | 3, 3 << 8 | 2, 3 << 8 | 0x30])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_an_event_that_there_is_not_is_refused(event: int, *, first: bool) -> None:
    g = Guest()
    g.program("again: cpuid; jmp again")
    g.set("I", 0x0C0, 2)  # later VMRUNs look at what changed alone
    if not first:
        assert CPUID == g.run().code
    g.set("Q", 0x0A8, VALID | event)
    with pytest.raises(VmexitInvalid, match="EVENTINJ"):
        g.run()
    assert (1 << 64) - 1 == g.get(At.EXIT_CODE)
    g.set("Q", 0x0A8, event)  # not valid: nobody looks
    assert CPUID == g.run().code


PENDING, IGNORE_TPR, MASKING, VECTOR = 1 << 8, 1 << 20, 1 << 24, 0x30


@pytest.mark.parametrize(
    ("priority", "tpr", "more", "taken"),
    [(8, 3, 0, True), (3, 8, 0, False), (3, 3, 0, False), (3, 8, IGNORE_TPR, True), (3, 8, MASKING, False)],
)
def test_a_virtual_interrupt_waits_for_its_priority(
    priority: int, tpr: int, more: int, *, taken: bool
) -> None:
    g = handled(Guest(), VECTOR)
    g.program("nop; hlt")
    g.set("Q", 0x570, 0x202)
    g.set("Q", 0x060, VECTOR << 32 | priority << 16 | PENDING | tpr | more)
    assert (VMMCALL if taken else HLT) == g.run().code
    assert (0 if taken else PENDING) | tpr == g.get(0x060) & 0xFFFF


@pytest.mark.parametrize(("lowered", "taken"), [(3, False), (2, True)])
def test_it_comes_when_the_guest_lowers_its_own(lowered: int, *, taken: bool) -> None:
    g = handled(Guest(), VECTOR)
    g.program(f"mov eax, {lowered}; mov cr8, rax; nop; hlt")
    g.set("Q", 0x570, 0x202)
    g.set("Q", 0x060, VECTOR << 32 | 3 << 16 | PENDING | 8 | MASKING)
    assert (VMMCALL if taken else HLT) == g.run().code
    assert (0 if taken else PENDING) | lowered == g.get(0x060) & 0xFFFF
