"""E10, A31: the guest asks the hypervisor where its C-bit is."""

from __future__ import annotations

from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import C_BIT, CPUID, HLT, NPF, SECRET, SHARED, VIEW, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Registers, Runner, Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.cpu.engine.control_block import Exit
from cbit.spec.address import PAGE

WORK = 0x30000  #: the page that the victim works in, at linear 4 MiB in its own tables
CHECK = 0x31000  #: for the check of the C-bit
WORK_TABLE = 0x7000  #: table of leaves that the victim fills
FAKED = 38  #: the position that the hypervisor claims
REFUSES = 0x6F6E  #: what it says in shared memory when it finds that its C-bit does nothing

#: Builds its own mapping of two pages, with the C-bit where CPUID says; then it takes its secret out of the
#: sealed page and works on it there.
KERNEL = f"""
    mov eax, 0x8000001F
    cpuid
    and ebx, 63
    mov ecx, ebx
    mov r8d, 1
    shl r8, cl                         # the C-bit
    mov rdi, {WORK_TABLE:#x}
    mov rax, {WORK | 0x63:#x}
    or rax, r8
    mov [rdi], rax
    mov rax, {CHECK | 0x63:#x}
    or rax, r8
    mov [rdi + 8], rax
    mov rax, [0x1000]                  # the tables that the image brought: C as the loader had it
    mov rdx, [0x3000]
    mov rbx, 0xFFF
    and rdx, rbx
    or rdx, {WORK_TABLE:#x}
    mov rax, [0x3000]
    mov rbx, {1 << C_BIT:#x}
    and rax, rbx
    or rdx, rax
    mov [0x3010], rdx                  # third entry of the directory: linear 4 MiB
    @check@
    mov rsi, {SECRET:#x}
    mov rdi, 0x400000
    mov ecx, 4
    rep movsq
    hlt
refuse:
    mov dword ptr [{VIEW + SHARED:#x}], {REFUSES}
    hlt
"""
#: What Linux does at start-up: a value that was written through a mapping known to be private must be read
#: back the same through the new one.
CHECKED = """
    rdrand rax
    mov [0x31000], rax
    cmp [0x401000], rax
    jne refuse
"""


def kernel(stand: Stand) -> Scene:
    """Start a small program that believes CPUID, or checks it.

    The built-in guest ends before it uses a secret: what it wrote before it had paging reads as ciphertext.
    """
    secret = stand.entropy.draw(32)
    program = Program(KERNEL.replace("@check@", CHECKED if stand.variant == "check" else ""))
    guest = stand.guest(program, secret=secret)
    planted = guest.peek(SECRET, 32) == secret
    serves = _works_for_an_honest_host(stand, program)
    return Scene((secret,), Facts({"work_at": WORK}), guest, planted=planted, serves=serves)


def _works_for_an_honest_host(stand: Stand, program: Program) -> bool:
    """Let the same program, told where its C-bit is, take a secret of its own to its page of work."""
    secret = stand.entropy.draw(32)
    guest = stand.guest(program, secret=secret)
    runner, answer = Runner(guest.cpu), Registers(guest.cpu)
    runner.until(CPUID)
    answer["rax"], answer["rbx"] = 0x0B, C_BIT
    runner.skip(2)
    runner.until(HLT)
    worked = guest.peek(WORK, 32) == secret
    guest.end()
    return worked


_NO_C_BIT = does_not_apply("the guest has no C-bit")


@attack(
    title="A wrong C-bit position from a faked CPUID",
    experiment="E10",
    paper="Radev & Morbitzer, 2020 (attacks.md A31)",
    holds={
        Power.EMULATE,
        Power.TAKE_EXITS,
        Power.EDIT_NESTED_TABLES,
        Power.MAP_MEMORY,
        Power.FLUSH_CACHES,
    },
    expect={
        Mode.NONE: _NO_C_BIT,
        Mode.SME: _NO_C_BIT,
        Mode.SEV: succeeds("CPUID is the hypervisor's to answer"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("CPUID values that the firmware has checked, if the guest uses them"),
    },
    defences={
        "check": stopped_by(
            "the guest compares a value through both mappings before it goes on (who exchanges the victim's"
            " page tables behind its back wants no wrong position: that is E5, and no check of a guest's"
            " stops it)",
            shown="the victim noticed that its C-bit does nothing",
        )
    },
    victim=kernel,
)
def faked_cpuid(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Answer CPUID 8000_001F with another C-bit position, and map the addresses that follow from it.

    The victim sets bit 38 where it means the C-bit.  For the processor that is an address bit, so the leaf
    has C=0: data are shared, while fetches and table walks stay private whatever the bit says.  The nested
    tables map the strange address onto the page that the victim means, and everything works, in the clear.
    """
    hands.victim.until(CPUID)
    log.step(f"the victim asks for leaf {hands.emulation['rax']:#x}: it is told that its C-bit is {FAKED}")
    hands.emulation["rax"] = 0x0B
    hands.emulation["rbx"] = FAKED
    hands.victim.skip(2)
    mapped: list[int] = []

    def map_strange(exit: Exit) -> bool:
        code, address = exit.code, exit.info_2
        strange = gpa_of(address) & -PAGE
        if code != NPF or not strange >> FAKED:
            return False
        hands.tables.map(strange, hands.memory.spa(strange & ~(1 << FAKED)))
        mapped.append(strange)
        return True

    hands.victim.until(HLT, handle=map_strange)
    if not mapped:
        raise Thwarted("the victim never used the bit")
    log.step(
        f"nested faults at {', '.join(f'{gpa:#x}' for gpa in mapped)}: mapped to the pages that it means"
    )
    hands.caches.write_back()
    if hands.memory.read(hands.memory.spa(SHARED), 4) == REFUSES.to_bytes(4, "little"):
        log.obstacle = "the victim noticed that its C-bit does nothing, and took no secret out"
    loot = hands.memory.read(hands.memory.spa(facts.number("work_at")), PAGE)
    log.step("the page that the victim works in, read with C=0", loot)
    return loot
