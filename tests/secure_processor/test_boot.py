"""Power-on: what is not exactly what the vendor signed does not run, and the machine stays off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import ec
from cbit.crypto.entropy import SeededEntropy
from cbit.driver.ccp import Ccp
from cbit.driver.errors import MailboxTimeout
from cbit.machine.manufacture import SVN
from cbit.secure_processor.boot import MachineOff
from cbit.secure_processor.fuses import Fuses
from cbit.secure_processor.image import (
    BiosSettings,
    ImageHeader,
    ImageKind,
    ImageRefused,
    check_image,
    sev_firmware,
    sign_image,
    vendor_key_hash,
    x86_boot_image,
)
from cbit.secure_processor.mailbox import OFFSETS
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.command import Command
from cbit.spec.key_id import HOST, UNENCRYPTED
from cbit.spec.policy import ApiVersion
from cbit.spec.status import Status
from secure_processor.worlds import Chips, World, flipped, vendor_key

FIRMWARE, BIOS = "spi/sev_firmware.bin", "spi/x86_boot.bin"
NAMES = {FIRMWARE: "the secure processor's firmware", BIOS: "the x86 boot image"}
FILES = [FIRMWARE, BIOS]
API = ApiVersion(0, 17)
VENDOR = ec.random_key(SeededEntropy("vendor"))
STRANGER = ec.random_key(SeededEntropy("stranger"))
FUSES = Fuses.burn(
    vendor_key_hash=vendor_key_hash(VENDOR.public_key()), rollback_floor=2, entropy=SeededEntropy("chip")
)


def firmware(signer: ec.PrivateKey = VENDOR, *, svn: int = 2) -> bytes:
    return sev_firmware(signer, api=API, build=1, svn=svn, commands=[Command.INIT, Command.NOP])


def bios(signer: ec.PrivateKey = VENDOR, *, svn: int = 2) -> bytes:
    return x86_boot_image(signer, BiosSettings(), svn=svn)


def refused(image: bytes, reason: str = ".", kind: ImageKind = ImageKind.SEV_FIRMWARE) -> None:
    with pytest.raises(ImageRefused, match=reason):
        check_image(image, kind=kind, fuses=FUSES)


def assert_off(world: World, reason: str) -> None:
    """Power on; the machine must stay off, say why, and answer nothing."""
    machine = world.machine
    with world.trace.recorded() as events, pytest.raises(MachineOff, match=reason):
        machine.power_on()
    assert not machine.is_on
    assert machine.booted is None
    assert "" == machine.host_key_fingerprint  # no key was drawn
    assert "cores released" not in [event.what for event in events]
    assert all(not core.encryption_on for core in machine.cores)
    offsets = OFFSETS[machine.profile.mailbox]
    assert {0xFFFFFFFF} == {machine.mailbox.read(offset) for offset in offsets}
    with pytest.raises(MailboxTimeout, match="is the machine on"):
        Ccp(machine, Spa(0x1000)).issue(Command.NOP)
    assert not world.nv.exists()


def change(file: str, how: Callable[[bytes, Path], bytes]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / file).write_bytes(how((folder / file).read_bytes(), folder))

    return prepare


# ---- the whole machine -------------------------------------------------------------------------------------


def test_an_untouched_machine_starts(chips: Chips) -> None:
    with chips.world() as world:
        booted = world.machine.booted
        assert booted is not None
        assert (API, 48, SVN) == (booted.api, booted.build, booted.svn)
        assert world.machine.is_on


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("at", [0, 0.2, 0.4, 0.6, 0.8, 0.999])
def test_an_altered_image_does_not_start(chips: Chips, file: str, at: float) -> None:
    altered = change(file, lambda image, _: flipped(image, int(8 * len(image) * at)))
    with chips.world(prepare=altered, power_on=False) as world:
        assert_off(world, f"^{NAMES[file]}: ")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda image: b"", "truncated"),
        (lambda image: image[:0x100], "truncated"),
        (lambda image: image[:-1], "truncated or padded"),
        (lambda image: image + b"\0", "truncated or padded"),
        (lambda image: image[:-0x200] + bytes(0x200), "altered or unsigned"),
        (lambda image: bytes(len(image)), "no image magic"),
    ],
    ids=["empty", "header only", "a byte short", "a byte long", "no signature", "zeros"],
)
def test_a_broken_image_does_not_start(
    chips: Chips, file: str, how: Callable[[bytes], bytes], reason: str
) -> None:
    with chips.world(prepare=change(file, lambda image, _: how(image)), power_on=False) as world:
        assert_off(world, f"^{NAMES[file]}: .*{reason}")


@pytest.mark.parametrize("file", FILES)
def test_anothers_image_does_not_start(chips: Chips, file: str) -> None:
    image = firmware(STRANGER) if file == FIRMWARE else bios(STRANGER)
    with chips.world(prepare=change(file, lambda *_: image), power_on=False) as world:
        assert_off(world, f"^{NAMES[file]}: signed by key .*, not by the vendor's")


@pytest.mark.parametrize("file", FILES)
def test_one_image_does_not_stand_in_for_the_other(chips: Chips, file: str) -> None:
    other = BIOS if file == FIRMWARE else FIRMWARE
    swap = change(file, lambda _, folder: (folder / other).read_bytes())
    with chips.world(prepare=swap, power_on=False) as world:
        assert_off(world, f"^{NAMES[file]}: the image is a .*, wanted")


def test_an_older_firmware_does_not_start(chips: Chips) -> None:
    def old(_: bytes, folder: Path) -> bytes:
        return firmware(vendor_key(folder), svn=SVN - 1)

    with chips.world(prepare=change(FIRMWARE, old), power_on=False) as world:
        assert_off(world, "security version 0 is older than the fused floor 1")


def test_a_newer_firmware_starts(chips: Chips) -> None:
    def new(_: bytes, folder: Path) -> bytes:
        return firmware(vendor_key(folder), svn=SVN + 7)

    with chips.world(prepare=change(FIRMWARE, new)) as world:
        assert world.machine.booted is not None
        assert (API, 1, SVN + 7) == (
            world.machine.booted.api,
            world.machine.booted.build,
            world.machine.booted.svn,
        )


def test_a_signed_boot_image_without_settings_does_not_start(chips: Chips) -> None:
    def bare(_: bytes, folder: Path) -> bytes:
        header = ImageHeader(kind=ImageKind.X86_BOOT, body_size=0, svn=SVN, build=0, api_minor=0, api_major=0)
        return sign_image(header, b"BIOS", vendor_key(folder))

    with chips.world(prepare=change(BIOS, bare), power_on=False) as world:
        assert_off(world, "BiosSettings: 4 bytes, must be 16")


def test_a_machine_that_was_refused_starts_once_its_image_is_good_again(chips: Chips) -> None:
    with chips.world(power_on=False) as world:
        file = world.folder / FIRMWARE
        good = file.read_bytes()
        file.write_bytes(good[:-1])
        with pytest.raises(MachineOff):
            world.machine.power_on()
        file.write_bytes(good)
        world.machine.power_on()
        world.init()


def test_a_reset_checks_the_images_again(world: World) -> None:
    world.init()
    (world.folder / BIOS).write_bytes(b"")
    with pytest.raises(MachineOff):
        world.machine.reset()
    assert not world.machine.is_on
    assert 0xFFFFFFFF == world.machine.mailbox.read(0x10580)


def test_a_refusal_is_traced(chips: Chips) -> None:
    with chips.world(power_on=False) as world:
        (world.folder / FIRMWARE).write_bytes(b"")
        with world.trace.recorded() as events, pytest.raises(MachineOff) as off:
            world.machine.power_on()
        assert ["the secure processor's firmware refused"] == [event.what for event in events]
        assert events[0].why in str(off.value)


# ---- the check itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [firmware(), bios()], ids=["firmware", "bios"])
def test_no_byte_of_an_image_may_change(image: bytes) -> None:
    kind = ImageKind(image[4])
    check_image(image, kind=kind, fuses=FUSES)
    for bit in range(8 * len(image)):
        refused(flipped(image, bit), kind=kind)


def test_no_length_but_its_own_is_an_images() -> None:
    image = firmware()
    for length in range(len(image)):
        refused(image[:length], "truncated|padded")
    for more in (1, 2, 16, 4096):
        refused(image + bytes(more), "padded")


def test_the_key_in_the_image_counts_only_if_its_hash_is_fused() -> None:
    image = firmware(STRANGER)
    own = image[:-0x604] + bytes(ec.encode_public(VENDOR.public_key())) + image[-0x200:]
    refused(image, "not by the vendor's")
    refused(own, "altered or unsigned")


def test_the_kind_and_the_floor_are_checked() -> None:
    refused(bios(), "the image is a X86_BOOT, wanted SEV_FIRMWARE")
    refused(firmware(), "wanted X86_BOOT", ImageKind.X86_BOOT)
    refused(firmware(svn=1), "older than the fused floor 2")
    check_image(firmware(svn=2), kind=ImageKind.SEV_FIRMWARE, fuses=FUSES)


def test_a_body_size_that_lies_is_refused() -> None:
    image = bytearray(firmware())
    image[0x14:0x18] = b"\xff\xff\xff\xff"
    refused(bytes(image), "truncated or padded")


@given(st.binary(max_size=0x1000), st.booleans())
def test_any_bytes_are_refused_with_a_reason(content: bytes, magic: bool) -> None:
    refused((b"CBFW" + content) if magic else content, ".")


# ---- what the boot image sets ------------------------------------------------------------------------------


def test_without_memory_encryption_there_is_no_sev(world: World) -> None:
    world.set_bios(BiosSettings(memory_encryption=0))
    before = world.snapshot()
    for flags in (0, 1, 2):  # before the flags are looked at
        status, why, _ = world.desk.attempt(Command.INIT, buffers.Init(flags=flags))
        assert Status.HWERROR_PLATFORM == status
        assert "memory encryption is off" in why
    assert before == world.snapshot()
    assert all(not core.encryption_on for core in world.machine.cores)
    world.set_bios(BiosSettings())
    world.init()


@pytest.mark.parametrize("tsme", [0, 1])
def test_tsme_encrypts_what_nobody_marked(world: World, tsme: int) -> None:
    world.set_bios(BiosSettings(tsme=tsme))
    at = world.desk.put(b"sixteen bytes ok")
    world.machine.memory.wbinvd()
    assert (tsme == 0) == (b"sixteen bytes ok" == world.machine.probe.read(at, 16))
    assert b"sixteen bytes ok" == world.desk.read(at, 16)
    assert (tsme == 1) == (b"sixteen bytes ok" == world.machine.memory.read(at, 16, HOST))
    # and the firmware's own transfers go the same way
    world.init()
    handle = world.launch()
    assert 1 == handle
    assert b"sixteen bytes ok" == world.machine.controller.read(at, 16, UNENCRYPTED)


def test_smm_lock_is_the_boot_images(world: World) -> None:
    from cbit.cpu.msr import Hwcr, Msr

    assert all(core.rdmsr(Msr.HWCR) & Hwcr.SMM_LOCK for core in world.machine.cores)
    world.set_bios(BiosSettings(smm_lock=0))
    assert not any(core.rdmsr(Msr.HWCR) & Hwcr.SMM_LOCK for core in world.machine.cores)


def test_every_boot_draws_another_host_key(world: World) -> None:
    seen = {world.machine.host_key_fingerprint}
    for _ in range(3):
        world.machine.reset()
        seen.add(world.machine.host_key_fingerprint)
    assert 4 == len(seen)


def test_a_reset_ends_init_and_every_guest(world: World) -> None:
    world.init().launch()
    world.machine.reset()
    assert (0, 0) == (world.desk.platform().state, world.desk.platform().guest_count)
    assert set() == world.usable_asids()
