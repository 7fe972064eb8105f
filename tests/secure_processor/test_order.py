"""Every status that the paper lists for a command, and the order in which a command finds its faults."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, groupby

import pytest
from _pytest.mark import ParameterSet

from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.debug_faults import SCENES as DEBUG_SCENES
from secure_processor.es_faults import SCENES as ES_SCENES
from secure_processor.faults import SCENES, Fault, Scenes
from secure_processor.import_faults import FAULTS as IMPORT_FAULTS
from secure_processor.import_faults import ImportScene
from secure_processor.launch_faults import SCENES as LAUNCH_SCENES
from secure_processor.migration_faults import SCENES as MIGRATION_SCENES
from secure_processor.paper import PAPER
from secure_processor.worlds import World

ALL: Scenes = {
    **SCENES,
    **LAUNCH_SCENES,
    **DEBUG_SCENES,
    **MIGRATION_SCENES,
    **ES_SCENES,
    Command.PEK_CERT_IMPORT: (ImportScene, IMPORT_FAULTS),
}


def single() -> Iterator[ParameterSet]:
    for command, (_, faults) in ALL.items():
        for fault in faults:
            yield pytest.param(command, fault, id=f"{command.name}: {fault.name}")


def pairs() -> Iterator[ParameterSet]:
    """Two faults that the paper answers differently and that can be there at once.

    Of neighbours with the same status one stands for all; the others are slow tests.
    """
    for command, (_, faults) in ALL.items():
        speakers = [next(run) for _, run in groupby(faults, key=lambda fault: fault.status)]
        for first, second in combinations(faults, 2):
            if first.status != second.status and not first.touches & second.touches:
                quick = first in speakers and second in speakers
                yield pytest.param(
                    command,
                    first,
                    second,
                    marks=() if quick else pytest.mark.slow,
                    id=f"{command.name}: {first.name}, {second.name}",
                )


def test_every_command_of_the_table_has_its_scene() -> None:
    assert set(PAPER) == set(ALL)


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_with_nothing_wrong_it_succeeds(world: World, command: Command) -> None:
    scene = ALL[command][0](world)
    assert (Status.SUCCESS, "") == world.desk.attempt(command, scene.buffer)[:2]


@pytest.mark.parametrize(("command", "fault"), list(single()))
def test_one_fault_has_its_status_and_moves_nothing(world: World, command: Command, fault: Fault) -> None:
    scene = ALL[command][0](world)
    fault.spoil(scene)
    before = world.snapshot()
    status, why, after = world.desk.attempt(command, scene.buffer)
    assert fault.status == status, why
    assert why
    if not fault.moves:
        assert before == world.snapshot()
    asked_for_a_length = status == Status.INVALID_LENGTH and PAPER[command].buffer == "in/out+err"
    if scene.buffer is not None and not asked_for_a_length:
        assert scene.buffer == after


@pytest.mark.parametrize(("command", "first", "second"), list(pairs()))
def test_of_two_faults_the_earlier_check_speaks(
    world: World, command: Command, first: Fault, second: Fault
) -> None:
    scene = ALL[command][0](world)
    second.spoil(scene)  # the later check first: what comes earlier may end the world that it needs
    first.spoil(scene)
    status, why, _ = world.desk.attempt(command, scene.buffer)
    assert first.status == status, why
