"""The bench itself: a judge that cannot be persuaded, linear algebra, victims that crash."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.attacks.experiments import named
from cbit.attacks.lab.assemble import assemble
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.gf2 import solve
from cbit.attacks.lab.guest import CODE, HLT, Crashed, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, Verdict, stopped_by
from cbit.attacks.lab.run import NoControl, run
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand, Workshop
from cbit.attacks.power import Power, PowerNotHeld
from cbit.cpu.engine.errors import NoEngine
from cbit.spec.address import PAGE


def boasting(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Say that it found everything, and bring nothing."""
    log.figure("secrets found", 1)
    return b"I have it!"


def test_an_attempt_that_only_says_so_has_not_succeeded(workshop: Workshop) -> None:
    boaster = dataclasses.replace(named("host-read"), attempt=boasting, holds=frozenset())
    result = run(boaster, workshop, mode=Mode.NONE)
    assert Verdict.STOPPED is result.verdict
    assert not result.as_expected


def test_a_part_of_the_secrets_is_partly(workshop: Workshop) -> None:
    def two(stand: Stand) -> Scene:
        return Scene((b"first secret", b"second secret"), Facts({}), planted=True, serves=True)

    half = dataclasses.replace(
        named("host-read"), prepare=two, attempt=lambda *_: b"... first secret ...", holds=frozenset()
    )
    result = run(half, workshop, mode=Mode.SEV)
    assert (Verdict.PARTLY, 1, 2) == (result.verdict, result.found, result.planted)


@pytest.mark.parametrize(
    ("scene", "why"),
    [
        (Scene((b"a secret",), Facts({}), serves=True), "does not hold what was planted"),
        (Scene((b"a secret",), Facts({}), planted=True), "does nothing for honest people either"),
        (Scene((b"four",), Facts({}), planted=True, serves=True), "secrets of 5 bytes at least"),
    ],
)
def test_without_its_controls_nothing_is_judged(workshop: Workshop, scene: Scene, why: str) -> None:
    broken = dataclasses.replace(named("host-read"), prepare=lambda _: scene)
    with pytest.raises(NoControl, match=why):
        run(broken, workshop, mode=Mode.NONE)


def test_an_attack_says_what_it_expects_of_every_mode() -> None:
    with pytest.raises(ValueError, match="boasting: nothing is expected in mode sme"):
        attack(title="", paper="", holds=set(), expect={m: SUCCEEDS for m in Mode if m is not Mode.SME},
               victim=lambda _: Scene((), Facts({})))(boasting)  # fmt: skip


def test_a_defence_that_does_not_stop_an_attack_is_none() -> None:
    with pytest.raises(ValueError, match="boasting is not stopped by hope"):
        attack(title="", paper="", holds=set(), expect=dict.fromkeys(Mode, SUCCEEDS),
               defences={"hope": SUCCEEDS, "wall": stopped_by("it")},
               victim=lambda _: Scene((), Facts({})))(boasting)  # fmt: skip


def test_a_victim_that_crashes_is_said_to(workshop: Workshop) -> None:
    stand = Stand(workshop, Setup(), mode=Mode.SEV, variant="", seed=1, parameters={})
    guest = stand.guest(Program("mov rax, [0x7FFFFFFF000]; hlt"))
    with pytest.raises(Crashed, match=r"was to halt: #VMEXIT\(SHUTDOWN\)"):
        guest.until_idle()


def test_a_victims_registers_are_at_the_hypervisors_hands(workshop: Workshop) -> None:
    stand = Stand(workshop, Setup(), mode=Mode.SEV, variant="", seed=1, parameters={})
    guest = stand.guest(Program("add rbx, r9; hlt"))
    powers = frozenset({Power.USE_REGISTERS, Power.TAKE_EXITS})
    hands = Hands(stand.host, Scene((), Facts({}), guest), powers, own_sev=True)
    hands.registers["rbx"], hands.registers["r9"] = 40, 2
    assert HLT == hands.victim.run().code
    assert 42 == hands.registers["rbx"] == hands.registers.all()["rbx"]
    assert CODE + 3 == hands.registers["rip"]
    assert powers == hands.used


#: What leaves a guest, with what its hypervisor may then read and write, and how long the instruction is.
LEAVE = {
    "cpuid": ({"rax", "rbx", "rcx", "rdx"}, 2),
    "mov ecx, 0xC0000103; rdmsr": ({"rax", "rcx", "rdx"}, 2),
    "out 0x80, al": ({"rax"}, 0),
    "hlt": (set(), 1),
    "vmmcall": (set(), 3),
}


@pytest.mark.parametrize("program", LEAVE)
def test_who_emulates_an_instruction_has_its_operands_and_no_more(workshop: Workshop, program: str) -> None:
    stand = Stand(workshop, Setup(), mode=Mode.SEV, variant="", seed=1, parameters={})
    powers = frozenset({Power.EMULATE, Power.TAKE_EXITS, Power.USE_REGISTERS})
    guest = stand.guest(Program(f"{program}; hlt"))
    hands = Hands(stand.host, Scene((), Facts({}), guest), powers, own_sev=True)
    operands, length = LEAVE[program]
    with pytest.raises(PowerNotHeld):  # it has not left yet
        hands.emulation["rax"]
    hands.registers["rbx"] = 0x1_2345_6789
    hands.victim.run()
    for name in (*hands.registers.all(), "rip", "cr3", "rflags"):
        if name not in operands:
            with pytest.raises(PowerNotHeld, match="read and write registers"):
                hands.emulation[name]
            with pytest.raises(PowerNotHeld, match="read and write registers"):
                hands.emulation[name] = 0
            continue
        hands.emulation[name] = 0x2_0000_0001
        assert 1 == hands.emulation[name] == hands.registers[name]
        hands.registers[name] = 0x2_0000_0003
        assert 3 == hands.emulation[name]
    for wrong in {1, 2, 3, 15} - {length}:
        with pytest.raises(PowerNotHeld, match="read and write registers"):
            hands.victim.skip(wrong)
    if length:
        hands.victim.skip(length)
        with pytest.raises(PowerNotHeld):  # once
            hands.victim.skip(length)
        assert operands or "hlt" == program or HLT == hands.victim.run().code


@pytest.mark.parametrize("c_bit", [0, 1 << 47])
def test_what_is_a_power_of_its_own_is_not_reached_through_memory(workshop: Workshop, c_bit: int) -> None:
    stand = Stand(workshop, Setup(), mode=Mode.SEV, variant="", seed=1, parameters={})
    guest = stand.guest(Program("hlt"))
    powers = frozenset({Power.MAP_MEMORY, Power.DMA})
    hands = Hands(stand.host, Scene((), Facts({}), guest), powers, own_sev=True)
    *_, table = guest.vm.tables.frames()
    vmcb, leaf = guest.cpu.vmcb_at | c_bit, table | c_bit
    for reads, writes in (
        (hands.memory.read, hands.memory.write),
        (hands.device.read, hands.device.write),
        (hands.device.read_plain, hands.device.write),
    ):
        for spa, length in ((vmcb, 8), (vmcb - 8, 16), (vmcb + PAGE - 1, 1), (vmcb - PAGE, 3 * PAGE)):
            with pytest.raises(PowerNotHeld, match="read and write registers"):
                reads(spa, length)
            with pytest.raises(PowerNotHeld, match="read and write registers"):
                writes(spa, bytes(length))
        with pytest.raises(PowerNotHeld, match="edit nested page tables"):
            writes(leaf, bytes(8))
    assert any(hands.memory.read(table, PAGE))
    hands.memory.read(guest.cpu.vmcb_at - 8, 8)
    hands.memory.write(guest.spa(0), b"the victim's own")


def test_a_program_that_does_not_assemble_is_refused() -> None:
    with pytest.raises(ValueError, match="does not assemble"):
        assemble("mov rax, nonsense nonsense", CODE)


def test_without_a_compiler_nothing_is_assembled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(NoEngine, match="no C compiler"):
        assemble("nop; nop; nop", CODE)


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=20), st.data())
def test_constants_come_back_from_enough_equations(constants: list[bytes], data: st.DataObject) -> None:
    masks = data.draw(st.lists(st.integers(1, (1 << len(constants)) - 1), max_size=60))
    equations = [(mask, combine(mask, constants)) for mask in masks]
    solved = solve(equations)
    assert solved == {bit: constants[bit] for bit in solved}
    units = [(1 << bit, value) for bit, value in enumerate(constants)]
    assert dict(enumerate(constants)) == solve([*equations, *units])


def combine(mask: int, constants: list[bytes]) -> bytes:
    total = 0
    for bit, constant in enumerate(constants):
        if mask >> bit & 1:
            total ^= int.from_bytes(constant, "little")
    return total.to_bytes(16, "little")
