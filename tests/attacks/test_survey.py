"""The table of what each adversary got, cell by cell, and why nobody can cheat in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attacks.stage import SECRET, Scene
from cbit.attacks import survey as survey_module
from cbit.attacks.adversaries import AGAINST_MEMORY, Adversary, ColdBoot, Loot, Stage, against
from cbit.attacks.power import Power
from cbit.attacks.survey import (
    CHANGED_IMAGE,
    CHANGED_POLICY,
    Cell,
    NoControl,
    adversaries,
    flip_one_bit,
    survey,
)
from cbit.attacks.victim import Victim
from cbit.hypervisor.host import Protection
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import guest as guest_key_id
from machine.worlds import ALL_PROFILES

NONE, SME, SEV = Protection.NONE, Protection.SME, Protection.SEV

#: Does the adversary get the secret: without encryption, with SME, with SEV (attacks.md §1, §2 A1, A2, A14)?
EXPECTED = {
    "bus probe": (True, False, False),
    "device, C-bit not driven": (True, False, False),
    "device that drives the C-bit": (True, True, False),
    "rogue administrator": (True, True, False),
    "other guest, victim's page mapped in": (True, True, False),
    "hypervisor with a spoofed ASID": (True, True, False),
    "cold boot": (True, False, False),
    CHANGED_IMAGE: (True, True, False),
    CHANGED_POLICY: (True, True, False),
}


@pytest.mark.parametrize("profile", ALL_PROFILES)
def test_the_matrix_is_what_the_papers_say(new_scene: Callable[[str], Scene], profile: str) -> None:
    """An attempt that stops working without encryption is as much a failure as one that works against SEV."""
    scene = new_scene(profile)
    cells = list(survey(scene.new_host, scene.arrival()))
    got = {name: tuple(c.got_secret for c in cells if c.adversary == name) for name in adversaries()}
    assert EXPECTED == got
    assert [NONE, SME, SEV] * 9 == [c.protection for n in adversaries() for c in cells if c.adversary == n]


def test_every_cell_says_what_was_used_what_was_read_and_how_it_went(scene: Scene) -> None:
    for cell in survey(scene.new_host, scene.arrival()):
        assert cell.powers
        assert cell.note
        assert cell.bytes_read > 0
        assert SECRET.decode() not in cell.note


def test_every_power_is_used_by_somebody() -> None:
    used = {power for adversary in against(executes=True) for power in adversary.powers} | {
        Power.CARRY_LAUNCH
    }
    assert used <= set(Power)


def test_refusals_come_from_where_they_should(scene: Scene) -> None:
    notes = {(cell.adversary, cell.protection): cell.note for cell in survey(scene.new_host, scene.arrival())}
    assert "the measurement does not match" in notes[CHANGED_IMAGE, SEV]
    assert "LAUNCH_START: BAD_MEASUREMENT" in notes[CHANGED_POLICY, SEV]
    assert notes[CHANGED_IMAGE, NONE] == notes[CHANGED_POLICY, SME] == "nobody noticed"
    assert "it crashes" in notes["hypervisor with a spoofed ASID", SEV]
    assert "its program ran" in notes["other guest, victim's page mapped in", SEV]


# ---- controls


@pytest.mark.parametrize("protection", Protection)
def test_the_victim_reads_its_own_secret(scene: Scene, protection: Protection) -> None:
    assert scene.stage(protection).victim.use_secret() == SECRET


@pytest.mark.parametrize("adversary", AGAINST_MEMORY, ids=lambda adversary: adversary.name)
def test_where_nothing_is_found_the_guests_key_finds_it(scene: Scene, adversary: Adversary) -> None:
    """The same scan, twice more: in the unencrypted guest's world, and with a power that only the lab has."""
    assert SECRET in adversary.attempt(scene.stage(NONE)).data
    stage = scene.stage(SEV)
    machine, asid = stage.host.machine, stage.victim.asid
    machine.wbinvd_on_all_cores()
    opened = machine.controller.read(Spa(0), machine.memory_size, guest_key_id(asid))
    assert SECRET not in machine.probe.read(Spa(0), machine.memory_size)
    assert SECRET not in adversary.attempt(stage).data
    assert SECRET in opened
    assert opened.index(SECRET) == stage.secret_at


def test_sme_ciphertext_opens_with_the_hosts_key_alone(scene: Scene) -> None:
    stage = scene.stage(SME)
    stage.host.flush_caches()
    assert SECRET not in stage.host.read(stage.secret_at, 64)
    assert SECRET in stage.host.read(stage.secret_at, 64, c=True)


def test_a_verdict_depends_on_the_bytes_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tampers with the loot changes the verdict: nothing else is looked at."""
    planted = Adversary("planted", (Power.DMA,), lambda stage: Loot(b"x" + SECRET + b"x", "planted"))
    robbed = Adversary("robbed", (Power.DMA,), lambda stage: Loot(SECRET[:-1] + b"\x00", "one byte off"))
    monkeypatch.setattr(survey_module, "against", lambda *, executes: (planted, robbed))
    cells = [c for c in survey(scene.new_host, scene.arrival()) if c.adversary in {"planted", "robbed"}]
    assert [True, False] * 3 == [cell.got_secret for cell in cells]
    assert [30, 28] * 3 == [cell.bytes_read for cell in cells]


def test_a_guest_that_cannot_read_its_secret_ends_the_survey(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Victim, "use_secret", lambda victim: b"garbage")
    with pytest.raises(NoControl, match="none: the guest does not read"):
        next(survey(scene.new_host, scene.arrival()))


@pytest.mark.parametrize("secret", [b"", b"short", b"fifteen letters"])
def test_a_secret_that_chance_could_find_is_refused(scene: Scene, secret: bytes) -> None:
    with pytest.raises(ValueError, match="16 at least"):
        next(survey(scene.new_host, scene.arrival(secret=secret)))


# ---- properties


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    secret=st.binary(min_size=16, max_size=200),
    filler=st.sampled_from([b"\x00", b"\xff", b"secret", bytes(range(256))]),
)
def test_sev_cells_stay_no_whatever_is_in_memory(scene: Scene, secret: bytes, filler: bytes) -> None:
    if len(set(secret)) < 5:
        secret += b"not so repetitive"  # a secret of zeros is in every empty page
    image = (filler * PAGE)[
        : 2 * PAGE - 16
    ] + b"\xf4" * 16  # an owner measures no image without a reset vector
    arrival = scene.arrival(secret=secret, image=image)
    stage = scene.stage(SEV, arrival)
    assert stage.victim.use_secret() == secret
    assert not any(secret in adversary.attempt(stage).data for adversary in AGAINST_MEMORY)


@pytest.mark.parametrize(("decay", "found"), [(0.0, True), (0.05, False), (1.0, False)])
def test_a_module_that_faded_too_long_gives_nothing(scene: Scene, decay: float, found: bool) -> None:
    stage: Stage = scene.stage(NONE)
    stage.host.flush_caches()
    assert (SECRET in ColdBoot(stage.host.machine, decay=decay).carry_away().data) is found


@pytest.mark.parametrize("image", [b"\x00" * 16, bytes(range(64))])
def test_one_bit_is_one_bit(image: bytes) -> None:
    changed = flip_one_bit(image)
    assert sum((a ^ b).bit_count() for a, b in zip(image, changed, strict=True)) == 1
    assert flip_one_bit(changed) == image


def test_a_cell_can_be_written_as_data(scene: Scene) -> None:
    cell = next(survey(scene.new_host, scene.arrival()))
    assert replace(cell, note="") == Cell("bus probe", NONE, (Power.TAP_BUS,), True, cell.bytes_read, "")
