"""What figures are read from: counters that count, and a judge who compares with what the victim holds."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cbit.attacks.experiments import named
from cbit.attacks.experiments.crossline import _leak, _of_noise
from cbit.attacks.experiments.severed import _pages_right
from cbit.attacks.lab.corpus import Corpus
from cbit.attacks.lab.guest import C_BIT, CPUID, HLT, PAGE_FAULT, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import AGREES, NO_COMPARISON, NO_FIGURE, Field, Figure
from cbit.attacks.lab.outcome import Mode, Verdict
from cbit.attacks.lab.run import run
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand, Workshop
from cbit.attacks.lab.tools import Memory, Runner, Spoofed
from cbit.attacks.power import Power
from cbit.cpu.engine.control_block import Exit
from cbit.crypto.entropy import SeededEntropy
from cbit.spec.address import LINE, MIB, PAGE

PLACE = 0x30000


@pytest.fixture
def stand(workshop: Workshop) -> Stand:
    return Stand(workshop, Setup(), mode=Mode.SEV, variant="", seed=1, parameters={})


def hands_on(stand: Stand, program: str, *powers: Power) -> Hands:
    guest = stand.guest(Program(program))
    return Hands(stand.host, Scene((), Facts({}), guest), frozenset(powers), own_sev=True)


def test_every_exit_is_counted_whatever_it_is_for(stand: Stand) -> None:
    hands = hands_on(stand, "again: cpuid; hlt; jmp again", Power.TAKE_EXITS)
    runner = hands.victim
    assert 0 == runner.exits
    assert CPUID == runner.run().code
    runner.skip(2)
    assert HLT == runner.run().code
    assert 2 == runner.exits == hands.victim.exits


def test_an_oracle_that_leaves_twice_for_each_load_has_another_figure(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = Runner.until

    def clumsy(runner: Runner, code: int, **more: Any) -> Exit:
        exit = until(runner, code, **more)
        if code == PAGE_FAULT:
            exit = until(runner, code, **more)  # the return behind the load faults once more
        return exit

    monkeypatch.setattr(Runner, "until", clumsy)
    result = run(named("register-oracle"), workshop, mode=Mode.SEV)
    assert Verdict.SUCCEEDED is result.verdict
    assert {"exits for each 8 bytes": 1.0} == {figure.name: figure.ours for figure in result.figures}


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_lines_that_invd_loses_are_counted_by_what_the_victim_finds(stand: Stand, lines: int) -> None:
    stores = "".join(f"mov qword ptr [{PLACE + LINE * n:#x}], 1\n" for n in range(lines))
    hands = hands_on(stand, f"hlt\n{stores}hlt", Power.TAKE_EXITS, Power.DROP_CACHES, Power.FLUSH_CACHES)
    dropper = hands.dropper
    dropper.allow()
    hands.victim.until(HLT)
    hands.caches.write_back()
    hands.victim.skip(1)
    hands.victim.until(HLT)
    dropper.invd()
    assert lines == dropper.lost


def test_a_line_that_was_written_back_is_not_lost(stand: Stand) -> None:
    hands = hands_on(stand, f"mov qword ptr [{PLACE:#x}], 1; hlt", Power.TAKE_EXITS, Power.DROP_CACHES)
    hands.victim.until(HLT)
    dropper = hands.dropper  # nobody has cleared HWCR's bit
    dropper.invd()
    assert 0 == dropper.lost


def test_pages_in_a_machine_of_the_adversarys_are_counted(stand: Stand) -> None:
    guest = stand.guest(Program("hlt"))
    whole, none = (
        Spoofed(stand.host, guest, rip=0, cr3=0, map_memory=has, flush=True) for has in (True, False)
    )
    assert set(guest.pages) == whole.mapped
    assert set() == none.mapped
    none.map(PAGE, guest.spa(0))
    assert {PAGE} == none.mapped
    none.unmap(PAGE)
    assert set() == none.mapped


@pytest.mark.parametrize(("size", "bytes_chosen"), [(16 * 64, 0), (PAGE * 2, 1), (MIB // 4, 1), (MIB, 2)])
def test_more_known_plaintext_gives_more_chosen_bytes(stand: Stand, size: int, bytes_chosen: int) -> None:
    memory = Memory(stand.host, None)
    start = memory.room(size)

    class Here(Memory):
        def spa(self, gpa: int, length: int = 1) -> int:  # type: ignore[override]
            return start

    corpus = Corpus(Here(stand.host, None), 0, SeededEntropy("known").draw(size), xe=False)
    assert bytes_chosen == corpus.chosen_bytes()


def test_which_bits_of_a_word_let_it_leak(stand: Stand) -> None:
    """The published pattern looks at bit 0, 8:7 and 62:48; this machine at fewer, and at 47:40 besides."""
    entry = 0x12_3456_7067
    guest = stand.guest(
        Program("hlt", data=((PLACE, struct.pack("<64Q", *(entry ^ 1 << n for n in range(64)))),))
    )
    there = 1 << 30
    cpu = Spoofed(stand.host, guest, rip=0, cr3=there | 1 << C_BIT, map_memory=False, flush=True)
    cpu.map(there, guest.spa(PLACE))
    leaked = _leak(cpu, there)
    assert {0, 7, *range(40, 52)} == {bit for bit in range(64) if leaked[bit] is None}
    assert leaked[8] == leaked[62] == struct.pack("<Q", entry & -PAGE)
    assert not any(leaked[64:])  # zeros


def test_the_judge_tells_how_many_random_words_have_leaked() -> None:
    ours, published, secret = 0x7FF0_0000_1234_5107, 0x9ABC_D007, 0x777_7000
    noise = struct.pack("<4Q", ours, published, published & ~1, secret | 1 << 55 | 1)

    def figures(*leaked: int) -> list[tuple[float, str]]:
        loot = struct.pack(f"<{len(leaked)}Q", *leaked)
        told = _of_noise([struct.pack("<Q", secret)], noise, loot)
        return [(figure.ours, figure.unit) for figure in told]

    assert [(0, "% of 4"), (0, "of 1")] == figures()
    assert [(25, "% of 4"), (0, "of 1")] == figures(0x1234_5000)
    assert [(0, "% of 4"), (0, "of 1")] == figures(ours)  # an exit tells addresses and no flags
    assert [(0, "% of 4"), (0, "of 1")] == figures(secret)  # the table's, whatever else is like it
    assert [(75, "% of 4"), (1, "of 1")] == figures(0x1234_5000, 0x9ABC_D000)


def test_the_judge_counts_a_page_where_it_belongs_and_nowhere_else() -> None:
    one, two = b"1" * PAGE, b"2" * PAGE

    def right(loot: bytes) -> tuple[float, ...]:
        return tuple(figure.ours for figure in _pages_right([one, two], loot))

    assert (2, PAGE) == right(b"x" * PAGE + one + two)
    assert (0, 0) == right(two + one)
    assert (1, PAGE // 2) == right(one + one)
    assert (0, 0) == right(b"")


def test_a_published_figure_has_a_source_and_a_word_on_how_ours_compares() -> None:
    alone = Figure("words", 3)
    assert (NO_FIGURE, NO_COMPARISON) == (alone.published, alone.difference)
    for beside in (
        {},
        {"source": "somebody"},
        {"difference": AGREES},
        {"source": "somebody", "difference": ""},
    ):
        with pytest.raises(ValueError, match="words: who published that"):
            Figure("words", 3, published="3", **beside)
    assert AGREES == Figure("words", 3, published="3", source="somebody", difference=AGREES).difference


def test_no_figure_is_published_of_a_cold_boot(workshop: Workshop) -> None:
    (figure,) = run(named("cold-boot"), workshop, mode=Mode.NONE).figures
    assert ("keys found", NO_FIGURE) == (figure.name, figure.published)


@pytest.mark.parametrize(("mode", "keys"), [(Mode.NONE, 3), (Mode.SME, 0)])
def test_a_cold_boot_draws_where_the_keys_lie(workshop: Workshop, mode: Mode, keys: int) -> None:
    result = run(named("cold-boot"), workshop, mode=mode)
    first, *_, last = result.steps
    assert any(first.data)  # not the zeros that memory begins with
    assert isinstance(last.picture, Field)
    assert keys == last.picture.cells.count(255)
    assert {15, 90} <= set(last.picture.cells)
    schedules = [step.length for step in result.steps if "key schedule" in step.text]
    assert ([176, 240] if keys else []) == schedules
