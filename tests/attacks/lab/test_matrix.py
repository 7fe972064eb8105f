"""The matrix: a cell of each attack in every run of the tests, all cells in the thorough one.

An attack that stops working against what it should beat fails as much as one that works where it should not.
"""

from __future__ import annotations

import dataclasses

import pytest

from attacks.lab.cells import QUICK, all_cells, main_cells
from cbit.attacks.experiments import ALL, named
from cbit.attacks.lab.attack import Attack, BadCase
from cbit.attacks.lab.hands import PowerNotHeld
from cbit.attacks.lab.outcome import MODELLED, Mode, Verdict
from cbit.attacks.lab.run import Result, run
from cbit.attacks.lab.stand import Workshop
from cbit.attacks.power import Power


def cell_id(cell: object) -> str:
    return cell.name if isinstance(cell, Attack) else str(cell) or "plain"


@pytest.mark.parametrize(("attack", "mode"), main_cells(), ids=cell_id)
def test_an_attack_beats_what_it_is_about(workshop: Workshop, attack: Attack, mode: Mode) -> None:
    result = run(attack, workshop, mode=mode, parameters=QUICK.get(attack.name))
    assert (Verdict.SUCCEEDED, "") == (result.verdict, result.note)
    assert result.planted == result.found > 0
    assert result.steps


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "mode", "variant"), all_cells(), ids=cell_id)
def test_a_cell_is_as_predicted(workshop: Workshop, attack: Attack, mode: Mode, variant: str) -> None:
    result = run(attack, workshop, mode=mode, variant=variant)
    assert result.as_expected, f"predicted {result.expected}, came out {result.verdict}: {result.note}"
    if not mode.modelled:
        assert Verdict.NOT_MODELLED is result.verdict
    elif result.verdict is Verdict.STOPPED:
        assert 0 == result.found < result.planted
        assert result.expected.why


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "mode"), main_cells(), ids=cell_id)
def test_an_attack_uses_every_power_that_it_declares_and_needs_each(
    workshop: Workshop, attack: Attack, mode: Mode
) -> None:
    used: set[str] = set()
    for tried in MODELLED:
        used |= set(run(attack, workshop, mode=tried, parameters=QUICK.get(attack.name)).powers)
    assert {power.value for power in attack.holds} == used
    for power in attack.holds - {Power.DMA_C_BIT}:  # without it the device goes on, and reads less
        weaker = without(attack, power)
        with pytest.raises(PowerNotHeld, match=power.value):
            run(weaker, workshop, mode=mode, parameters=QUICK.get(attack.name))


def without(attack: Attack, power: Power) -> Attack:

    return dataclasses.replace(attack, holds=attack.holds - {power})


def test_a_device_without_the_c_bits_line_gets_nothing_from_sme(workshop: Workshop) -> None:
    weaker = without(named("dma-read"), Power.DMA_C_BIT)
    assert Verdict.STOPPED is run(weaker, workshop, mode=Mode.SME).verdict


def test_every_defence_and_every_stop_is_named() -> None:
    for attack in ALL:
        assert all(attack.defences.values())
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


@pytest.mark.parametrize(
    ("variant", "mode", "parameters", "why"),
    [
        ("nonsense", Mode.SEV, {}, "no variant 'nonsense'; it has: nodbg"),
        ("nodbg", Mode.SME, {}, "nodbg is one of mode sev, not of sme"),
        ("", Mode.SEV, {"depth": 3}, "no parameter 'depth'; it has: none"),
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
    assert {"corpus_mib": 4} == attack.check(Mode.SEV, "", {"corpus_mib": 4.0})
    with pytest.raises(BadCase, match=r"corpus_mib is a whole number, not 1\.5"):
        attack.check(Mode.SEV, "", {"corpus_mib": 1.5})


def test_a_mode_that_the_machine_lacks_says_what_is_predicted(workshop: Workshop) -> None:
    result = run(named("severed"), workshop, mode=Mode.SEV_SNP)
    assert Verdict.NOT_MODELLED is result.verdict
    assert result.as_expected
    assert result.note.startswith("predicted: stopped (the RMP")
