"""Every status that the paper lists for a command, and the order in which a command finds its faults."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pytest
from _pytest.mark import ParameterSet

from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.debug_faults import SCENES as DEBUG_SCENES
from secure_processor.es_faults import SCENES as ES_SCENES
from secure_processor.faults import SCENES, Fault, Scenes
from secure_processor.import_faults import FAULTS as IMPORT_FAULTS
from secure_processor.import_faults import ImportScene
from secure_processor.late_faults import SCENES as LATE_SCENES
from secure_processor.launch_faults import SCENES as LAUNCH_SCENES
from secure_processor.migration_faults import SCENES as MIGRATION_SCENES
from secure_processor.paper import PAPER
from secure_processor.worlds import Chips, World

ALL: Scenes = {
    **SCENES,
    **LAUNCH_SCENES,
    **DEBUG_SCENES,
    **MIGRATION_SCENES,
    **ES_SCENES,
    **LATE_SCENES,
    Command.PEK_CERT_IMPORT: (ImportScene, IMPORT_FAULTS),
}


def places() -> Iterator[ParameterSet]:
    """Each command with each fault outside its buffer, and once with none: one prepared world each."""
    for command, (_, faults) in ALL.items():
        yield pytest.param(command, None, id=f"{command.name}: buffer")
        for fault in faults:
            if not fault.in_the_buffer:
                yield pytest.param(command, fault, id=f"{command.name}: {fault.name}")


in_each_place = pytest.mark.parametrize(("command", "outside"), list(places()))


def pairs(command: Command) -> Iterator[tuple[Fault, Fault]]:
    """Two faults with different answers that can be there at once, the earlier check first."""
    for first, second in combinations(ALL[command][1], 2):
        if first.status != second.status and not first.touches & second.touches:
            yield first, second


def test_every_command_of_the_table_has_its_scene() -> None:
    assert set(PAPER) == set(ALL)


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_with_nothing_wrong_it_succeeds(world: World, command: Command) -> None:
    scene = ALL[command][0](world)
    assert (Status.SUCCESS, "") == world.desk.attempt(command, scene.buffer)[:2]


def secrets_of(world: World) -> set[str]:
    """The beginnings of all that the secure processor keeps to itself, as it might be printed."""
    firmware = world.firmware
    raw = [firmware.fuses._cuk.material(), firmware.fuses._nv_key.material()]
    if (platform := firmware._platform) is not None:
        for key in (platform.identity.oca_key, platform.identity.pek_key, platform.identity.pdh_key):
            if key is not None:
                raw.append(key.private_numbers().private_value.to_bytes(48, "big"))
        for guest in platform.guests.values():
            keys = [guest.vek, guest.offline_key]
            if guest.transport is not None and guest.transport.tek.material() != bytes(16):
                keys += [guest.transport.tek, guest.transport.tik]
            raw += [key.material() for key in keys if key is not None]
    return {
        text
        for secret in raw
        for text in (secret[:6].hex(), str(secret[:4])[2:-1], str(list(secret[:3]))[1:-1])
    }


@in_each_place
def test_one_fault_has_its_status_and_moves_nothing(
    world: World, command: Command, outside: Fault | None
) -> None:
    scene = ALL[command][0](world)
    good = scene.buffer
    if outside is not None:
        outside.spoil(scene)
    before, secrets = world.snapshot(), secrets_of(world)
    for fault in [outside] if outside else [one for one in ALL[command][1] if one.in_the_buffer]:
        if fault.in_the_buffer:
            scene.buffer = good
            fault.spoil(scene)
        status, why, after = world.desk.attempt(command, scene.buffer)
        assert (fault.name, fault.status) == (fault.name, status), why
        assert why
        assert not [secret for secret in secrets if secret in why]
        asked_for_a_length = status == Status.INVALID_LENGTH and PAPER[command].buffer == "in/out+err"
        if scene.buffer is not None and not asked_for_a_length:
            assert scene.buffer == after
    if outside is None or not outside.moves:
        assert before == world.snapshot()


@in_each_place
def test_of_two_faults_the_earlier_check_speaks(
    chips: Chips, command: Command, outside: Fault | None
) -> None:
    """All pairs of a command, those outside the buffer each in the test of the earlier one.

    A refused command moves nothing (above): the world that has the one fault is there for all in the buffer.
    """
    together: list[tuple[Fault, Fault]] = []
    apart: list[tuple[Fault, Fault]] = []
    for pair in pairs(command):
        places = [one for one in pair if not one.in_the_buffer]
        if outside is (places[0] if places else None):
            (apart if len(places) == 2 or pair[0].moves else together).append(pair)
    wrong = []
    for shared in ([together] if together else []) + [[pair] for pair in apart]:
        with chips.world() as world:
            scene = ALL[command][0](world)
            for fault in reversed(shared[0]):  # the later check first: an earlier one may end what it needs
                if not fault.in_the_buffer:
                    fault.spoil(scene)
            good = scene.buffer
            for first, second in shared:
                scene.buffer = good
                for fault in (second, first):
                    if fault.in_the_buffer:
                        fault.spoil(scene)
                status, why, _ = world.desk.attempt(command, scene.buffer)
                if first.status != status:
                    wrong.append((first.name, second.name, Status(first.status), status, why))
    assert [] == wrong
