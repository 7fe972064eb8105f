"""The next step of an adversary that was stopped: it tries harder, with the same powers.

Where it gets through nevertheless, the defence or LIMITATIONS says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct

import pytest

from attacks.lab.cells import QUICK
from cbit.attacks.experiments import ciphertext, named
from cbit.attacks.experiments.block_move import PATIENCE, USER
from cbit.attacks.experiments.faked_cpuid import FAKED, WORK_TABLE
from cbit.attacks.lab import two_cpus
from cbit.attacks.lab.attack import Attempt
from cbit.attacks.lab.guest import C_BIT, CPUID, HLT, NPF, SECRET, SHARED, TABLES
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import Mode, Verdict
from cbit.attacks.lab.run import NoControl, Result, run
from cbit.attacks.lab.scene import Facts
from cbit.attacks.lab.stand import Workshop
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.attacks.power import PowerNotHeld
from cbit.cpu.engine.control_block import Exit
from cbit.cpu.faults import VmExit
from cbit.crypto.entropy import Entropy, SeededEntropy
from cbit.machine import board
from cbit.memory.fabric import FabricPort
from cbit.secure_processor import boot
from cbit.spec.address import BLOCK, PAGE


def tried(workshop: Workshop, name: str, variant: str, attempt: Attempt) -> Result:
    attack = dataclasses.replace(named(name), attempt=attempt)
    return run(attack, workshop, mode=attack.defended, variant=variant, parameters=QUICK.get(name))


def stopped(workshop: Workshop, name: str, variant: str, attempt: Attempt) -> bool:
    return Verdict.STOPPED is tried(workshop, name, variant, attempt).verdict


#: Where a fault gives the key away if nobody verifies; one in q makes both halves wrong.
TELLS = {"p": True, "q": False, "dp": True, "dq": True, "qinv": True}


@pytest.mark.parametrize("number", TELLS)
def test_a_fault_in_any_number_of_the_key_stays_with_the_signer(workshop: Workshop, number: str) -> None:
    at = SECRET + BLOCK * list(TELLS).index(number)

    def elsewhere(hands: Hands, facts: Facts, log: Log) -> bytes:
        return named("bit-flip").attempt(hands, Facts({**facts.known, "dp_at": at}), log)

    assert TELLS[number] is not stopped(workshop, "bit-flip", "", elsewhere)
    verified = tried(workshop, "bit-flip", "verify", elsewhere)
    assert (Verdict.STOPPED, True) == (verified.verdict, verified.as_expected)


@pytest.mark.parametrize(("length", "offset"), [(BLOCK, 0), (BLOCK, BLOCK), (PAGE - BLOCK, BLOCK)])
def test_a_counter_lies_in_the_passwords_own_block(workshop: Workshop, length: int, offset: int) -> None:
    def some_blocks(hands: Hands, facts: Facts, log: Log) -> bytes:
        spa = hands.memory.spa(facts.number("account_at"), PAGE) + offset
        hands.caches.write_back()
        before = hands.memory.read(spa, length)
        hands.client.ask(facts.data("old") + b"change\0\0" + facts.data("new"), 32)
        hands.caches.write_back()
        hands.memory.write(spa, before)
        hands.caches.write_back()
        return hands.client.ask(facts.data("old") + bytes(24), 32)

    assert stopped(workshop, "replay", "counter", some_blocks)
    assert (offset > 0) is stopped(workshop, "replay", "", some_blocks)


def one_page_for_both(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Let the page behind the variable's be the variable's: a mask that is stored there is seen before it."""
    variable, pages = facts.number("variable_at"), facts.numbers("pages")
    home = hands.memory.spa(variable)
    hands.tables.map(variable + PAGE, home)
    hands.tables.unmap(variable)
    hands.tables.forbid_execution(pages[2])
    bits: list[int] = []
    mask = b""

    def look() -> bytes:
        hands.caches.write_back()
        return hands.memory.read(home, BLOCK)

    def follow(exit: Exit) -> bool:
        nonlocal mask
        page = gpa_of(exit.info_2) & -PAGE
        if exit.code != NPF:
            return False
        if page == variable:
            mask = look()
        elif page == pages[2]:
            if mask:
                bits.append(int(look() != mask))
            hands.tables.unmap(variable)
            hands.tables.forbid_execution(pages[4])
        hands.tables.home(page)
        if page != pages[2]:
            hands.tables.forbid_execution(pages[2])
        return True

    hands.victim.until(HLT, handle=follow)
    bits = bits[: facts.number("bits")]
    return sum(bit << index for index, bit in enumerate(bits)).to_bytes(len(bits) // 8 + 1, "little")


def test_a_mask_stays_in_a_register(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stopped(workshop, "ciphertext-dictionary", "masked", one_page_for_both)
    beside = f"rdrand r14\n    mov [{ciphertext.VARIABLE + PAGE:#x}], r14"
    spilt = ciphertext.MASKED_FLAG.replace("rdrand r14", beside)
    monkeypatch.setattr(ciphertext, "MASKED_FLAG", spilt)
    assert not stopped(workshop, "ciphertext-dictionary", "masked", one_page_for_both)


@pytest.mark.parametrize("source", ["MASKED_FLAG", "MASKED_SWAP"])
def test_a_masked_victim_stores_nowhere_else(source: str) -> None:
    lines = getattr(ciphertext, source).splitlines()
    stores = [line.split("[")[1].split("]")[0] for line in lines if line.strip().startswith("mov [")]
    assert stores
    assert {hex(ciphertext.VARIABLE), hex(ciphertext.VARIABLE + 8)} >= set(stores)


def test_a_value_that_the_victim_checks_with_is_not_the_emulators_to_read(workshop: Workshop) -> None:
    def clever(hands: Hands, facts: Facts, log: Log) -> bytes:
        hands.victim.until(CPUID)
        hands.emulation["rbx"] = FAKED
        hands.victim.skip(2)
        hands.victim.until(NPF)
        return struct.pack("<Q", hands.emulation["rax"])

    with pytest.raises(PowerNotHeld, match="read and write registers at exits"):
        tried(workshop, "faked-cpuid", "check", clever)


def test_page_tables_that_are_exchanged_behind_the_check_are_another_attack(workshop: Workshop) -> None:
    def exchanging(hands: Hands, facts: Facts, log: Log) -> bytes:
        hands.victim.until(CPUID)
        hands.emulation["rax"], hands.emulation["rbx"] = 0x0B, C_BIT  # the truth
        hands.tables.unmap(SECRET)
        hands.victim.skip(2)
        hands.victim.until(NPF)  # the check is behind it: it is about to take its secret out
        hands.tables.home(SECRET)
        hands.tables.map(WORK_TABLE, hands.memory.spa(TABLES + 4 * PAGE))  # leaves with C=0
        hands.victim.until(HLT)
        hands.caches.write_back()
        return hands.memory.read(hands.memory.spa(0), PAGE)

    result = tried(workshop, "faked-cpuid", "check", exchanging)
    assert (Verdict.SUCCEEDED, False) == (result.verdict, result.as_expected)
    assert "that is E5" in result.expected.why


def test_a_rip_that_is_not_behind_the_instruction_is_a_register_to_write(workshop: Workshop) -> None:
    def past_the_check(hands: Hands, facts: Facts, log: Log) -> bytes:
        hands.client.put(b"I do not know it")
        hands.victim.until(CPUID)
        hands.victim.skip(2)
        hands.victim.skip(2)
        return b""

    with pytest.raises(PowerNotHeld, match="read and write registers at exits"):
        tried(workshop, "dropped-store", "converted", past_the_check)


def test_a_bit_that_is_cleared_at_every_exit_stays_set(workshop: Workshop) -> None:
    def again_and_again(hands: Hands, facts: Facts, log: Log) -> bytes:
        hands.caches.write_back()
        hands.client.put(b"I do not know it")

        def drop(exit: Exit) -> bool:
            hands.dropper.allow()
            hands.dropper.invd()
            hands.victim.skip(2)
            return exit.code == CPUID

        hands.victim.until(HLT, handle=drop)
        return hands.client.answer(32)

    assert stopped(workshop, "dropped-store", "converted", again_and_again)
    assert not stopped(workshop, "dropped-store", "", again_and_again)


def test_who_guesses_two_bytes_is_locked_out(workshop: Workshop) -> None:
    def guess(hands: Hands, facts: Facts, log: Log) -> bytes:
        target, answers = hands.memory.spa(facts.number("record_at")), 0
        for number in range(PATIENCE + 4):
            hands.caches.write_back()
            hands.memory.write(target, number.to_bytes(BLOCK, "little"))
            answers += any(hands.client.ask(b"", 32))
        found = named("block-move-xex").attempt(hands, facts, log)  # the right block, and too late
        return found if not answers else b""

    assert stopped(workshop, "block-move-xex", "", guess)
    assert 1 <= PATIENCE < USER


def test_no_piece_of_a_guest_is_small_enough_to_be_debugged(workshop: Workshop) -> None:
    def piecemeal(hands: Hands, facts: Facts, log: Log) -> bytes:
        loot, start = b"", facts.number("secrets_at")
        for at in range(start, start + facts.number("secrets_size"), BLOCK):
            with contextlib.suppress(Thwarted):
                loot += hands.commands.debug_decrypt(at, BLOCK)
        return loot

    assert stopped(workshop, "debug-policy", "nodbg", piecemeal)
    assert not stopped(workshop, "debug-policy", "", piecemeal)


def test_no_other_asid_has_the_victims_key(workshop: Workshop) -> None:
    def with_every_asid(hands: Hands, facts: Facts, log: Log) -> bytes:
        there, loot = 1 << 30, b""
        cpu = hands.spoofed(rip=0, cr3=there | 1 << C_BIT, map_memory=False)
        cpu.map(there, hands.memory.spa(facts.number("table_at")))
        for asid in range(1, 16):
            cpu.cpu.set(0x058, asid, "I")
            cpu.cpu.flush()
            with contextlib.suppress(VmExit):  # an ASID that nobody has
                loot += (gpa_of(cpu.cpu.run(blocks=100).info_2) & -PAGE).to_bytes(8, "little")
        return loot

    assert stopped(workshop, "crossline-v1", "deactivated", with_every_asid)
    assert Verdict.PARTLY is tried(workshop, "crossline-v1", "", with_every_asid).verdict


def test_a_program_that_reaches_the_secret_by_itself_poisons_nothing(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    withheld = named("withheld-flush")
    assert Verdict.SUCCEEDED is run(withheld, workshop, mode=Mode.SEV).verdict
    monkeypatch.setitem(two_cpus._PROGRAMS_SPACE, SECRET, two_cpus._SERVICES_SPACE[SECRET])
    with pytest.raises(NoControl):
        run(withheld, workshop, mode=Mode.SEV)


def test_neither_address_space_leads_to_what_is_the_others_alone() -> None:
    program, service = (
        {leaf & -PAGE & (1 << C_BIT) - 1 for leaf in space.values()}
        for space in (two_cpus._PROGRAMS_SPACE, two_cpus._SERVICES_SPACE)
    )
    assert {SHARED} == program & service
    assert SECRET in service - program


@pytest.mark.parametrize("hidden", [False, True])
def test_a_vmcb_that_takes_anothers_place_is_not_noticed(workshop: Workshop, hidden: bool) -> None:
    """The stated limit of the rule: who writes VMCBs runs two virtual CPUs from one."""

    def exchange(hands: Hands, facts: Facts, log: Log) -> bytes:
        cpus = hands.two_cpus
        host = cpus._guest.vm.host
        if hidden:  # the service's state in the program's VMCB
            service, program = cpus._service, cpus._program
            cpus.send(b"the intruder's  ")
            cpus.program(flush=True)
            host.write(program.vmcb_at, host.read(service.vmcb_at, PAGE))
            program.run()
            return host.read(cpus._guest.spa(SHARED + PAGE), 32, c=cpus._guest.vm.c)
        return named("withheld-flush").attempt(hands, facts, log)

    assert hidden is not stopped(workshop, "withheld-flush", "flushed", exchange)


def test_both_guests_serve_anothers_page_as_garbage(workshop: Workshop) -> None:
    def twice_over(hands: Hands, facts: Facts, log: Log) -> bytes:
        severed = named("severed").attempt
        own = tuple(hands.tables.spa(gpa) for gpa in hands.tables.pages())
        return severed(hands, Facts({**facts.known, "targets": (*facts.numbers("targets"), *own)}), log)

    assert stopped(workshop, "severed", "other-guest", twice_over)


def test_a_key_that_outlives_the_reset_gives_the_memory_away(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset, draw = named("warm-reset"), boot.draw_host_key
    assert Verdict.STOPPED is run(reset, workshop, mode=Mode.SME).verdict

    def the_same_again(fabric: FabricPort, *, size: int, entropy: Entropy) -> str:
        return draw(fabric, size=size, entropy=SeededEntropy("the same at every reset"))

    monkeypatch.setattr(board, "draw_host_key", the_same_again)
    assert Verdict.SUCCEEDED is run(reset, workshop, mode=Mode.SME).verdict
