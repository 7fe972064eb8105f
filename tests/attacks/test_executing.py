"""Victims that execute: the same adversaries, and the one that reads registers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attacks.stage import SECRET, Scene
from attacks.test_survey import EXPECTED
from cbit.attacks import victim as victims
from cbit.attacks.adversaries import Stage, against, registers_at_exits
from cbit.attacks.helper_guest import HelperGuest
from cbit.attacks.survey import NoControl, adversaries, survey
from cbit.attacks.tenant import Tenant
from cbit.attacks.victim import RAM_BASE, RAM_SIZE, Arrival, Courier, start
from cbit.cpu.engine.errors import NoEngine
from cbit.crypto.key import Key
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import MEMORY, MEMORY_SIZE, Request
from cbit.guest.builtin.interface import SECRET as SECRET_AT
from cbit.hypervisor.host import Protection
from cbit.hypervisor.small_guest import SmallGuest
from cbit.owner.secret import table_of
from cbit.spec.address import PAGE, Gpa, Spa
from cbit.spec.policy import Policy
from cbit.spec.secret_table import DISK_PASSPHRASE
from engine_here import missing
from hypervisor.worlds import account

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

NONE, SME, SEV = Protection.NONE, Protection.SME, Protection.SEV
KEY = Key(bytes(range(0x60, 0x70)))
REGISTERS = "hypervisor that reads registers at exits"


def _arrival(scene: Scene, policy: int = int(Policy.NODBG)) -> Arrival:
    tenant = Tenant(image(), policy, scene.tenant.vendor_certs, scene.tenant.trust)
    return replace(scene.arrival(), tenant=tenant, message_key=KEY)


def _stage(scene: Scene, protection: Protection) -> Stage:
    host = scene.new_host()
    return Stage(host, protection, start(host, protection, _arrival(scene), Courier()))


def test_the_matrix_is_the_same_and_registers_are_read_under_everything(scene: Scene) -> None:
    cells = list(survey(scene.new_host, _arrival(scene)))
    names = adversaries(executes=True)
    got = {name: tuple(c.got_secret for c in cells if c.adversary == name) for name in names}
    assert EXPECTED | {REGISTERS: (True, True, True)} == got
    assert 3 * len(names) == len(cells)
    for cell in cells:
        assert cell.note
        assert cell.bytes_read > 0
        assert SECRET.decode() not in cell.note


def test_the_image_and_its_victim_agree_on_where_things_are() -> None:
    assert (RAM_BASE, RAM_SIZE) == (MEMORY, MEMORY_SIZE)


@pytest.mark.parametrize("protection", Protection)
def test_the_victim_uses_its_secret(scene: Scene, protection: Protection) -> None:
    stage = _stage(scene, protection)
    assert stage.victim.proof == stage.victim.use_secret()
    assert SECRET_AT + 40 == stage.victim.secret_gpa
    assert (SECRET, KEY.material()) == stage.victim.secrets


@pytest.mark.parametrize("adversary", against(executes=True)[:-1], ids=lambda adversary: adversary.name)
def test_the_victim_goes_on_after_the_adversary(scene: Scene, adversary: object) -> None:
    stage = _stage(scene, SEV)
    assert stage.victim.guest is not None
    before = stage.victim.guest.ask(Request.WHO).answers
    adversary.attempt(stage)  # type: ignore[attr-defined]  # a tuple of adversaries, typed where it is made
    assert before == stage.victim.guest.ask(Request.WHO).answers
    assert stage.victim.proof == stage.victim.use_secret()


def test_the_key_passes_through_registers_and_the_passphrase_does_not(scene: Scene) -> None:
    stage = _stage(scene, SEV)
    loot = registers_at_exits(stage)
    assert KEY.material() in loot.data
    assert SECRET not in loot.data
    assert stage.victim.proof == stage.victim.use_secret()


def test_a_victim_without_its_key_ends_the_survey(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victims, "secret_table", lambda secret, key: table_of([(DISK_PASSPHRASE, secret)]))
    with pytest.raises(NoControl, match="none: the guest does not read"):
        next(survey(scene.new_host, _arrival(scene)))


@pytest.mark.parametrize("protection", Protection)
def test_no_engine_leaves_nothing_on_the_host(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, protection: Protection
) -> None:
    def none(*arguments: object, **options: object) -> SmallGuest:
        raise NoEngine("not here")

    host = scene.new_host()
    before = account(host)
    monkeypatch.setattr(victims, "SmallGuest", none)
    with pytest.raises(NoEngine):
        start(host, protection, _arrival(scene), Courier())
    assert before == account(host)


@pytest.mark.parametrize("protection", Protection)
def test_a_victim_that_ends_leaves_nothing_on_the_host(scene: Scene, protection: Protection) -> None:
    host = scene.new_host()
    before = account(host)
    victim = start(host, protection, _arrival(scene), Courier())
    victim.use_secret()
    victim.end()
    assert before == account(host)


# ---- the helper


@pytest.mark.parametrize(("shares", "reads"), [(True, True), (False, False)], ids=["shared key", "own key"])
def test_a_helper_reads_what_its_key_opens(scene: Scene, shares: bool, reads: bool) -> None:
    host = scene.new_host()
    victim = start(host, SEV, _arrival(scene, policy=0), Courier())
    before = account(host)
    onto = victim.vm.spa(Gpa(victim.secret_gpa & -PAGE))
    with HelperGuest.start(
        host, SEV, onto=Spa(onto), executes=True, policy=Policy(0), share_with=victim.sev if shares else None
    ) as helper:
        data, note = helper.run(victim.secret_gpa % PAGE, len(SECRET))
    assert reads is (data == SECRET)
    assert "its program ran" in note
    assert before == account(host)


def test_under_another_asid_the_helper_is_garbage_and_says_by_which_exit(scene: Scene) -> None:
    stage = _stage(scene, SEV)
    before = account(stage.host)
    onto = stage.victim.vm.spa(Gpa(stage.victim.secret_gpa & -PAGE))
    with HelperGuest.start(stage.host, SEV, onto=Spa(onto), executes=True) as helper:
        data, note = helper.run(stage.victim.secret_gpa % PAGE, len(SECRET), asid=stage.victim.asid)
        assert SECRET not in data
        assert "its program became garbage" in note
        good, _ = helper.run(0, 16)  # under its own it is as good as ever
        assert 16 == len(good)
    assert before == account(stage.host)
