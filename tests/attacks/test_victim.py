"""Starting the victim: a refusal leaves nothing behind, and the hypervisor carries only packets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attacks.stage import SECRET, Scene
from cbit.attacks.helper_guest import HelperGuest
from cbit.attacks.survey import flip_one_bit
from cbit.attacks.victim import RAM_BASE, Arrival, Courier, start
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.frames import OutOfMemory
from cbit.hypervisor.host import Protection
from cbit.hypervisor.vm import NoSuchMemory
from cbit.machine.manufacture import make_root
from cbit.owner.errors import Untrusted
from cbit.spec.address import MIB, PAGE, Gpa
from cbit.spec.errors import BadMeasurement
from cbit.spec.policy import Policy
from hypervisor.worlds import account


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (BadMeasurement, lambda arrival: replace(arrival, change_image=flip_one_bit)),
        (FirmwareError, lambda arrival: replace(arrival, change_policy=int(Policy.NODBG))),
        (FirmwareError, lambda arrival: replace(arrival, change_image=lambda image: image[8:])),
        (OutOfMemory, lambda arrival: replace(arrival, change_image=lambda image: image.ljust(64 * MIB))),
        (
            NoSuchMemory,
            lambda arrival: replace(
                arrival,
                tenant=replace(arrival.tenant, image=bytes(PAGE)),
                change_image=bytes,
                secret_gpa=Gpa(0x10),
            ),
        ),
        (
            Untrusted,
            lambda arrival: replace(arrival, tenant=replace(arrival.tenant, trust=make_root(2048).ark)),
        ),
    ],
    ids=["image", "policy", "length", "size", "place", "root"],
)
def test_whoever_refuses_nothing_is_left_on_the_host(
    scene: Scene, error: type[Exception], change: object
) -> None:
    assert callable(change)
    host, courier = scene.new_host(), Courier()
    before = account(host)
    arrival: Arrival = change(scene.arrival())
    with pytest.raises(error):
        start(host, Protection.SEV, arrival, courier)
    assert before == account(host)
    assert SECRET not in courier.everything()
    victim = start(host, Protection.SEV, scene.arrival(), courier)  # the host is as good as new
    assert victim.use_secret() == SECRET


@pytest.mark.parametrize("protection", Protection)
def test_a_secret_reaches_the_host_only_where_nobody_can_seal(scene: Scene, protection: Protection) -> None:
    courier = Courier()
    start(scene.new_host(), protection, scene.arrival(), courier)
    assert (SECRET in courier.everything()) is (protection is not Protection.SEV)


def test_the_secret_goes_where_the_image_announces_it_else_where_the_owner_says(scene: Scene) -> None:
    announced = scene.stage(Protection.SEV).victim
    assert announced.secret_gpa == 0x80F000 + 40
    silent = scene.arrival(image=b"\xf4".rjust(PAGE, b"\0"))
    assert scene.stage(Protection.SEV, silent).victim.secret_gpa == 0x810000 + 40


@pytest.mark.parametrize("protection", Protection)
@pytest.mark.parametrize("own_asid", [True, False])
def test_a_helper_leaves_nothing_behind(scene: Scene, protection: Protection, own_asid: bool) -> None:
    stage = scene.stage(protection)
    before = account(stage.host)
    with HelperGuest.start(stage.host, protection, onto=stage.victim.vm.spa(RAM_BASE)) as helper:
        helper.run(0, 16, asid=None if own_asid else stage.victim.asid)
        assert before != account(stage.host)
    assert before == account(stage.host)
    assert stage.victim.use_secret() == SECRET


def test_a_helper_that_finds_no_room_leaves_nothing_behind(scene: Scene) -> None:
    stage = scene.stage(Protection.SEV)
    frames = stage.host.frames
    while frames.free_bytes > 3 * PAGE:
        frames.take_page()
    before = account(stage.host)
    with pytest.raises(OutOfMemory):
        HelperGuest.start(stage.host, Protection.SEV, onto=stage.victim.vm.spa(RAM_BASE))
    assert before == account(stage.host)
