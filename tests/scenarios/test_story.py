"""From power-on to the end of a guest, on every profile, with real firmware and with our own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks.stage import SECRET, Scene
from cbit.attacks.survey import flip_one_bit
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.driver.errors import FirmwareError
from cbit.guest import generated_firmware
from cbit.hypervisor.host import Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import firmware_start
from cbit.machine.manufacture import make_root
from cbit.owner import secret as secrets
from cbit.owner.errors import Untrusted
from cbit.owner.measure import Kernel, expect_sev
from cbit.owner.verify.verdict import verify_chain
from cbit.spec import firmware_table
from cbit.spec.address import PAGE, Gpa
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.secret_table import DISK_PASSPHRASE, parse
from cbit.testing.worlds import a_host, a_machine, a_state
from cbit.trace import Event, Trace
from hypervisor.worlds import account, guest_reads, launched
from machine.worlds import ALL_PROFILES, machine
from scenarios.launches import a_launch

OVMF = Path("/usr/share/ovmf/OVMF.fd")
NewScene = Callable[[str], Scene]


def generated() -> bytes:
    return generated_firmware.generate()


def debians() -> bytes:
    if not OVMF.is_file():
        pytest.skip(f"{OVMF} is not here: apt install ovmf")
    return OVMF.read_bytes()


@pytest.mark.parametrize("profile", ALL_PROFILES)
@pytest.mark.parametrize("firmware", [generated, debians])
def test_a_secret_reaches_the_guest_and_nobody_else(
    new_scene: NewScene, profile: str, firmware: Callable[[], bytes]
) -> None:
    scene, image = new_scene(profile), firmware()
    launch = a_launch(scene, image)
    host, guest, vm = launch.host, launch.guest, launch.guest.vm
    # Nobody trusts an emulator's root by accident.
    with pytest.raises(Untrusted, match="not one of AMD's pinned roots"):
        verify_chain(launch.tenant.chain(host.export_chain()))
    # The hypervisor reads ciphertext where it wrote the image.
    at = vm.spa(firmware_start(image), len(image))
    assert image not in host.read(at, len(image)) + host.read(at, len(image), c=True)
    # The owner checks the receipt and seals; the hypervisor cannot change what it carries.
    trusted = launch.tenant.check(launch.session, launch.receipt)
    plaintext = secrets.table_of([(DISK_PASSPHRASE, SECRET)])
    header, payload = trusted.seal(plaintext, entropy=SeededEntropy("packet"))
    assert SECRET not in header + payload
    area = firmware_table.parse(image).secret_area
    place = Gpa(area.base) if area else Gpa(0x810000)
    with pytest.raises(FirmwareError, match="BAD_MEASUREMENT"):
        guest.inject(place, header, flip_one_bit(payload))
    guest.inject(place, header, payload)
    guest.finish()
    # The guest reads image and secret; DRAM has neither, and with the guest's key it has both.
    assert [(DISK_PASSPHRASE, SECRET)] == parse(guest_reads(vm, place, len(plaintext)))
    assert guest_reads(vm, firmware_start(image), len(image)) == image
    host.flush_caches()
    assert list(host.machine.probe.find(SECRET)) == []
    opened = host.machine.controller.read(vm.spa(place), PAGE, guest_key_id(guest.asid))
    assert SECRET in opened
    # The end: its key is nobody's, and its ASID waits for the flush.
    spa = vm.spa(place)
    guest.end()
    assert SECRET not in host.read(spa, PAGE) + host.read(spa, PAGE, c=True)
    assert host.status().guest_count == 0


@pytest.mark.parametrize("what", ["image", "policy", "receipt", "another session"])
def test_an_owner_seals_for_nothing_else(new_scene: NewScene, what: str) -> None:
    scene, image = new_scene("milan"), generated()
    launch = a_launch(scene, image, loaded=flip_one_bit(image) if what == "image" else None)
    receipt, session = launch.receipt, launch.session
    if what == "receipt":
        receipt = dataclasses.replace(receipt, measure=flip_one_bit(receipt.measure))
    elif what == "policy":
        receipt = dataclasses.replace(receipt, policy=receipt.policy ^ 4)
    elif what == "another session":
        session = launch.tenant.open_session(launch.host.export_chain(), SeededEntropy("somebody else"))
    with pytest.raises((BadMeasurement, Untrusted)):
        launch.tenant.check(session, receipt)


def test_a_hypervisor_cannot_launch_with_a_policy_of_its_own(new_scene: NewScene) -> None:
    launch = a_launch(new_scene("milan"), generated())
    made = launch.session.session
    assert made is not None
    before = account(launch.host)
    for policy in (0, 1 | 4, 1 << 16, 1 | 2):
        with pytest.raises(FirmwareError, match="BAD_MEASUREMENT"):
            SevGuest.start(launch.guest.vm, policy=policy, godh=bytes(made.godh), session=bytes(made.blob))
    assert before == account(launch.host)


def test_an_image_that_announces_a_secret_area_gets_it_there(vectors: Path, new_scene: NewScene) -> None:
    """The last 4 KiB of an AmdSev build of OVMF: a real table, used as if it were the whole image."""
    image = (vectors / "launch-digest" / "ovmf_AmdSev_suffix.bin").read_bytes()
    arrival = new_scene("milan").arrival(image=image)
    area = firmware_table.parse(image).secret_area
    assert area
    victim = new_scene("milan").stage(Protection.SEV, arrival).victim
    assert area.base <= victim.secret_gpa < area.base + area.size
    assert victim.use_secret() == SECRET


def test_a_kernels_hashes_are_measured_with_the_image(vectors: Path, new_scene: NewScene) -> None:
    image = (vectors / "launch-digest" / "ovmf_AmdSev_suffix.bin").read_bytes()
    kernel = Kernel(kernel=b"", initrd=b"", cmdline="console=ttyS0 loglevel=7")
    launch = a_launch(new_scene("milan"), image, kernel_hashes=kernel.table())
    check, receipt = launch.session.check, launch.receipt
    check(receipt.blob, expect_sev(image, kernel=kernel), api=receipt.api, build=receipt.build)
    for other in (None, Kernel(kernel=b"x", cmdline=kernel.cmdline), Kernel(kernel=b"", cmdline="")):
        with pytest.raises(BadMeasurement):
            check(receipt.blob, expect_sev(image, kernel=other), api=receipt.api, build=receipt.build)


# ---- determinism


def test_the_same_seed_gives_the_same_trace_whatever_the_root(tmp_path: Path) -> None:
    """All randomness is drawn from the seed but the vendor's RSA keys, and no event depends on those."""
    stories: list[list[Event]] = []
    for number, seed in enumerate((7, 7, 8)):
        trace = Trace()
        with trace.recorded() as events:
            state = a_state(tmp_path / str(number), "rome", root=make_root(2048), seed=seed)
            found = a_host(a_machine(state, seed=seed, trace=trace))
            guest = launched(found)
            guest_reads(guest.vm, 0x10000)
            guest.end()
            found.machine.reset()
        stories.append(events)
    assert len(stories[0]) > 30
    assert stories[0] == stories[1]
    assert stories[0] != stories[2]


def test_no_event_holds_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    original = Key.__init__

    def remember(self: Key, material: bytes) -> None:
        keys.append(bytes(material))
        original(self, material)

    monkeypatch.setattr(Key, "__init__", remember)
    trace = Trace()
    with trace.recorded() as events:
        found = a_host(machine(tmp_path, trace=trace))
        launched(found).end()
        found.machine.reset()
    told = "\n".join(map(str, events))
    assert len(keys) >= 4  # host key twice, chip secrets, the guest's
    assert not any(key.hex() in told for key in keys if len(set(key)) > 1)
