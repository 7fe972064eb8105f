"""The matrix: a cell of each attack in every run of the tests, all cells in the thorough one.

An attack that stops working against what it should beat fails as much as one that works where it should not.
"""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest

from attacks.lab.cells import LINUX, QUICK, defended_cells, main_cell, main_cells, modelled_cells
from attacks.lab.figures import FIGURES, LINUX_FIGURES
from cbit.attacks.experiments import ALL, named
from cbit.attacks.lab.attack import CHOICES, Attack, BadCase
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import MODELLED, Mode, Verdict
from cbit.attacks.lab.run import NoControl, Result, attempt, run
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand, Workshop
from cbit.attacks.lab.tools import Thwarted
from cbit.attacks.power import Power, PowerNotHeld
from cbit.crypto.memory_modes import Tweak
from cbit.hypervisor.frames import OutOfMemory
from cbit.machine.profiles import Profile
from cbit.spec.address import MIB


def cell_id(cell: object) -> str:
    return cell.name if isinstance(cell, Attack) else str(cell) or "plain"


@pytest.mark.parametrize(("attack", "mode"), main_cells(), ids=cell_id)
def test_an_attack_beats_what_it_is_about_with_every_power_that_it_declares(
    workshop: Workshop, attack: Attack, mode: Mode
) -> None:
    result = run(attack, workshop, mode=mode, parameters=QUICK.get(attack.name))
    assert (Verdict.SUCCEEDED, "") == (result.verdict, result.note)
    assert result.planted == result.found > 0
    assert result.steps
    assert {power.value for power in attack.holds} == set(result.powers)
    assert FIGURES.get((attack.name, ""), {}) == figures_of(result)


@pytest.mark.parametrize(("attack", "variant"), defended_cells(), ids=cell_id)
def test_a_defence_stops_what_it_is_made_for(workshop: Workshop, attack: Attack, variant: str) -> None:
    result = run(attack, workshop, mode=attack.defended, variant=variant, parameters=QUICK.get(attack.name))
    assert_as_predicted(result)
    assert Verdict.STOPPED is result.verdict
    assert FIGURES.get((attack.name, variant), {}) == figures_of(result)


def figures_of(result: Result) -> dict[str, float]:
    return {figure.name: figure.ours for figure in result.figures}


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "mode", "variant"), modelled_cells(), ids=cell_id)
def test_a_cell_is_as_predicted(workshop: Workshop, attack: Attack, mode: Mode, variant: str) -> None:
    assert_as_predicted(run(attack, workshop, mode=mode, variant=variant))


def assert_as_predicted(result: Result) -> None:
    assert result.as_expected, f"predicted {result.expected}, came out {result.verdict}: {result.note}"
    if result.verdict is Verdict.STOPPED:
        assert 0 == result.found < result.planted
        assert result.expected.why
        assert result.expected.shown in result.note


def test_what_is_not_modelled_is_not_run(workshop: Workshop) -> None:
    for attack in ALL:
        for mode in set(Mode) - set(MODELLED):
            assert Verdict.NOT_MODELLED is run(attack, workshop, mode=mode).verdict


@pytest.mark.parametrize(("attack", "mode"), main_cells(), ids=cell_id)
def test_without_any_one_of_its_powers_an_attack_gets_nowhere(
    workshop: Workshop, attack: Attack, mode: Mode
) -> None:
    stand, scene = a_victim(workshop, attack, mode)
    for power in sorted(attack.holds - {Power.DMA_C_BIT}):  # without it the device goes on, and reads less
        weaker = without(attack, power)
        try:
            attempt(weaker, stand, scene)
        except PowerNotHeld as refusal:
            missed = str(refusal)
        else:  # the attempts before have spent the victim
            stand, scene = a_victim(workshop, attack, mode)
            with pytest.raises(PowerNotHeld) as refused:
                attempt(weaker, stand, scene)
            missed = str(refused.value)
        assert missed.endswith(f"the power to {power.value}")


def a_victim(workshop: Workshop, attack: Attack, mode: Mode) -> tuple[Stand, Scene]:
    parameters = attack.check(mode, "", QUICK.get(attack.name, {}))
    stand = Stand(workshop, attack.setup, mode=mode, variant="", seed=1, parameters=parameters)
    return stand, attack.prepare(stand)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODELLED)
def test_a_stock_linux_keeps_its_disks_key_or_loses_it_as_predicted(
    linux_workshop: Workshop, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # other people's tools have tests of their own, and take long
    monkeypatch.delenv("CBIT_VOL", raising=False)
    stand = Stand(linux_workshop, LINUX[0].setup, mode=mode, variant="", seed=1, parameters={"decay": 0.01})
    scene = LINUX[0].prepare(stand)
    order = ("linux-registers", "linux-tools", "linux-cold-boot")  # the last one cuts the power
    assert sorted(order) == sorted(attack.name for attack in LINUX)
    for attack in map(named, order):
        assert (attack.prepare, attack.setup) == (LINUX[0].prepare, LINUX[0].setup)
        if attack.expect[mode].verdict is Verdict.NOT_APPLICABLE:
            continue
        for power in attack.holds:
            with pytest.raises(PowerNotHeld, match=power.value):
                attempt(without(attack, power), stand, scene)
        result = attempt(attack, stand, scene)
        assert_as_predicted(result)
        assert {power.value for power in attack.holds} == set(result.powers)
        succeeds = result.verdict is Verdict.SUCCEEDED
        assert LINUX_FIGURES[attack.name, succeeds] == figures_of(result)


def without(attack: Attack, power: Power) -> Attack:
    return dataclasses.replace(attack, holds=attack.holds - {power})


def test_without_a_linux_its_rows_say_why(workshop: Workshop) -> None:
    result = run(named("linux-tools"), workshop, mode=Mode.SEV)
    assert (Verdict.NOT_RUN, "a reason") == (result.verdict, result.note)
    assert result.as_expected


def test_a_device_without_the_c_bits_line_gets_nothing_from_sme(workshop: Workshop) -> None:
    weaker = without(named("dma-read"), Power.DMA_C_BIT)
    assert Verdict.STOPPED is run(weaker, workshop, mode=Mode.SME).verdict


@pytest.mark.parametrize(("attack", "variant"), defended_cells(), ids=cell_id)
def test_what_is_stopped_by_something_else_is_not_as_predicted(
    workshop: Workshop, attack: Attack, variant: str
) -> None:
    def rained_off(*_: object) -> bytes:
        raise Thwarted("it rains")

    idle = dataclasses.replace(attack, attempt=rained_off)
    result = run(idle, workshop, mode=attack.defended, variant=variant, parameters=QUICK.get(attack.name))
    assert (Verdict.STOPPED, "it rains") == (result.verdict, result.note)
    assert not result.as_expected


def test_noise_that_an_attack_never_fetched_is_not_as_predicted(workshop: Workshop) -> None:
    def rained_off(*_: object) -> bytes:
        raise Thwarted("it rains")

    assert run(named("host-read"), workshop, mode=Mode.SEV).as_expected
    idle = dataclasses.replace(named("host-read"), attempt=rained_off)
    assert not run(idle, workshop, mode=Mode.SEV).as_expected


#: A change to a victim's source after which it refuses everybody, or does nothing.
SPOILT = {
    "bit-flip": ("verify", "VERIFY", "jne refuse", "jmp refuse"),
    "faked-cpuid": ("check", "CHECKED", "jne refuse", "jmp refuse"),
    "dropped-store": ("converted", "GATE", "je checked", ""),
    "block-move-xex": ("fresh", "SERVICE", "    jz refuse", "    jmp refuse"),
    "ciphertext-dictionary": ("masked", "MASKED_FLAG", "rdrand r14", "jmp routine3"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_victim_that_refuses_everybody_defends_nothing(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    variant, source, works, refuses = SPOILT[name]
    module = importlib.import_module(named(name).prepare.__module__)
    broken = getattr(module, source).replace(works, refuses, 1)
    assert broken != getattr(module, source)
    monkeypatch.setattr(module, source, broken)
    with pytest.raises(NoControl, match="does nothing for honest people"):
        run(named(name), workshop, mode=Mode.SEV, variant=variant, parameters=QUICK.get(name))


@pytest.mark.parametrize(("name", "variant"), [("dropped-store", "converted"), ("withheld-flush", "flushed")])
def test_a_rule_of_the_machine_is_not_the_adversarys_to_drop(
    workshop: Workshop, name: str, variant: str
) -> None:
    attack = named(name)
    on_another = dataclasses.replace(attack, setups={})  # the same attempt and victim, without the rule
    assert Verdict.STOPPED is run(attack, workshop, mode=Mode.SEV, variant=variant).verdict
    assert Verdict.SUCCEEDED is run(on_another, workshop, mode=Mode.SEV, variant=variant).verdict


def test_every_attack_is_stopped_somewhere_or_says_why_that_cannot_be_shown() -> None:
    unshown = {attack.name for attack in ALL if attack.unshown}
    stopped = {
        attack.name
        for attack in ALL
        if attack.defences or any(attack.expect[mode].verdict is Verdict.STOPPED for mode in MODELLED)
    }
    assert {"register-oracle", "linux-registers"} == unshown
    assert {attack.name for attack in ALL} - unshown == stopped


def test_fresh_constants_do_not_stop_linear_algebra(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profile, "tweak", lambda _, mode, entropy: Tweak.random(entropy))
    result = run(named("tweak-constants-xe"), workshop, mode=Mode.SEV)
    assert (Verdict.SUCCEEDED, 28) == (result.verdict, result.found)


def test_a_counter_is_put_back_by_who_has_memory_and_registers(workshop: Workshop) -> None:
    replay = named("replay")

    def with_registers(hands: Hands, facts: Facts, log: Log) -> bytes:
        saved = hands.registers["r15"]
        loot = replay.attempt(hands, facts, log)
        assert b"too old!" == loot[:8]
        hands.registers["r15"] = saved
        return hands.client.ask(facts.data("old") + bytes(24), 32)

    stronger = dataclasses.replace(replay, attempt=with_registers, holds=replay.holds | {Power.USE_REGISTERS})
    result = run(stronger, workshop, mode=Mode.SEV, variant="counter")
    assert Verdict.SUCCEEDED is result.verdict
    assert not result.as_expected  # plain SEV does not keep what the defence stands on


def test_every_defence_and_every_stop_is_named() -> None:
    for attack in ALL:
        assert all(defence.why and defence.shown for defence in attack.defences.values())
        stops = [e for e in attack.expect.values() if e.verdict is not Verdict.SUCCEEDED]
        assert all(expected.why for expected in stops), attack.name
    assert len({attack.name for attack in ALL}) == len(ALL)


def test_the_twelve_experiments_are_there() -> None:
    assert {f"E{number}" for number in range(1, 13)} <= {attack.experiment for attack in ALL}


def test_the_same_seed_gives_the_same_result(workshop: Workshop) -> None:
    def once(seed: int) -> Result:
        return run(named("replay"), workshop, mode=Mode.SEV, seed=seed)

    assert once(3) == once(3)
    assert once(3).steps != once(4).steps
    with Workshop() as fresh:  # whatever was run before
        assert once(3) == run(named("replay"), fresh, mode=Mode.SEV, seed=3)


@pytest.mark.parametrize(
    ("variant", "mode", "parameters", "why"),
    [
        ("nonsense", Mode.SEV, {}, "no variant 'nonsense'; it has: nodbg"),
        ("nodbg", Mode.SME, {}, "nodbg is one of mode sev, not of sme"),
        ("", Mode.SEV, {"depth": 3}, "no parameter 'depth'; it has: memory"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(
    workshop: Workshop, variant: str, mode: Mode, parameters: dict[str, int], why: str
) -> None:
    with pytest.raises(BadCase, match=why):
        run(named("debug-policy"), workshop, mode=mode, variant=variant, parameters=parameters)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadCase, match="no attack 'rowhammer': there are cold-boot, "):
        named("rowhammer")


def test_a_parameter_keeps_its_kind() -> None:
    attack = named("block-move-xe")
    assert {"corpus_mib": 4, "memory": 32} == attack.check(Mode.SEV, "", {"corpus_mib": 4.0})
    with pytest.raises(BadCase, match=r"corpus_mib is a whole number, not 1\.5"):
        attack.check(Mode.SEV, "", {"corpus_mib": 1.5})


@pytest.mark.parametrize(
    ("value", "why"),
    [("much", "corpus_mib: 'much' is no number"), (float("nan"), "nan is no number")],
)
def test_a_number_is_wanted_where_one_is(value: float | str, why: str) -> None:
    with pytest.raises(BadCase, match=why):
        named("block-move-xex").check(Mode.SEV, "", {"corpus_mib": value})


def test_every_attack_on_a_small_program_runs_with_the_memory_that_is_wanted(workshop: Workshop) -> None:
    for attack in ALL:
        assert ("memory" in attack.parameters) is (attack.executes and not attack.linux), attack.name
    attack = named("replay")
    for mib in (4, 24):
        assert mib * MIB == attack.setup_for("", attack.check(Mode.SEV, "", {"memory": mib})).memory
        assert Verdict.SUCCEEDED is run(attack, workshop, mode=Mode.SEV, parameters={"memory": mib}).verdict
    with pytest.raises(OutOfMemory):
        run(attack, workshop, mode=Mode.SEV, parameters={"memory": 2})
    with pytest.raises(BadCase, match="memory is 1 to 16384, not 0"):
        run(attack, workshop, mode=Mode.SEV, parameters={"memory": 0})


def test_a_number_stays_in_its_range() -> None:
    ranges = [(attack, name, each) for attack in ALL for name, each in attack.ranges.items()]
    assert {"bits", "blocks", "corpus_mib", "decay", "memory", "random_pages"} == {
        name for _, name, _ in ranges
    }
    for attack, name, each in ranges:
        assert set(attack.parameters) == set(attack.ranges) | set(attack.parameters) & set(CHOICES)
        for value in (each.least, each.default, each.most):
            assert value == attack.check(Mode.SEV, "", {name: value})[name]
        off = [each.least + 1] if each.multiple > 1 else []
        for value in (each.least - each.multiple, each.most + each.multiple, -(10**9), 10**9, *off):
            with pytest.raises(BadCase, match=f"{attack.name}: {name} is {re.escape(str(each))}, not "):
                attack.check(Mode.SEV, "", {name: value})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ciphertext-dictionary", {"bits": 40}),
        ("tweak-constants-xex", {"blocks": 256}),
        ("crossline-v1", {"random_pages": 1}),
        ("cold-boot", {"decay": 1.0}),
    ],
)
def test_the_least_of_each_number_can_be_run(
    workshop: Workshop, name: str, parameters: dict[str, float]
) -> None:
    mode = main_cell(named(name))
    assert run(named(name), workshop, mode=mode, parameters=parameters).planted


@pytest.mark.parametrize("mode", [Mode.SME, Mode.SEV])
def test_constants_as_a_parameter_are_the_defence_that_they_are(workshop: Workshop, mode: Mode) -> None:
    attack, small = named("block-move-xex"), {"corpus_mib": 1}
    fresh = run(attack, workshop, mode=mode, parameters=small | {"constants": "fresh"})
    assert Verdict.STOPPED is fresh.verdict
    assert fresh.as_expected
    assert attack.defences["fresh"] == fresh.expected
    plain = run(attack, workshop, mode=mode, parameters=small | {"constants": "zen1"})
    assert (Verdict.SUCCEEDED, True) == (plain.verdict, plain.as_expected)


def test_constants_are_known_ones_and_agree_with_the_variant() -> None:
    attack = named("block-move-xex")
    assert "zen1" == attack.check(Mode.SEV, "", {})["constants"]
    assert "fresh" == attack.check(Mode.SEV, "fresh", {})["constants"]
    assert "fresh" == attack.check(Mode.SEV, "fresh", {"constants": "fresh"})["constants"]
    assert Verdict.NOT_APPLICABLE is attack.expectation(Mode.NONE, "", {"constants": "fresh"}).verdict
    with pytest.raises(BadCase, match="constants is zen1 or fresh, not zen9"):
        attack.check(Mode.SEV, "", {"constants": "zen9"})
    with pytest.raises(BadCase, match="constants=zen1 contradicts the variant fresh"):
        attack.check(Mode.SEV, "fresh", {"constants": "zen1"})
    for attack in ALL:
        if "constants" in attack.parameters:
            assert attack.setups["fresh"] == attack.setup_for(
                "", attack.check(Mode.SEV, "", {"constants": "fresh"})
            )


def test_a_mode_that_the_machine_lacks_says_what_is_predicted(workshop: Workshop) -> None:
    result = run(named("severed"), workshop, mode=Mode.SEV_SNP)
    assert Verdict.NOT_MODELLED is result.verdict
    assert result.as_expected
    assert result.note.startswith("predicted: stopped (the RMP")
