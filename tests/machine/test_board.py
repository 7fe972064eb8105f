"""Power, reset, memory: the board as somebody with a hand on its switches meets it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from cbit.cpu.core import Core
from cbit.cpu.mitigations import Mitigations
from cbit.cpu.msr import Hwcr, Msr
from cbit.crypto.entropy import Entropy, SeededEntropy
from cbit.crypto.memory_modes import Mode, Tweak
from cbit.driver.errors import MailboxTimeout
from cbit.hypervisor.host import Host
from cbit.machine.address_map import MAILBOX_BAR, MAX_DRAM
from cbit.machine.board import AlreadyOn, BadMachine, Machine, Options
from cbit.machine.manufacture import load_vendor_key
from cbit.machine.state_folder import StateError
from cbit.memory.errors import AddressError
from cbit.secure_processor.boot import MachineOff
from cbit.secure_processor.image import BiosSettings, x86_boot_image
from cbit.spec.address import GIB, KIB, MIB, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED
from cbit.testing.worlds import a_host
from machine.worlds import ALL_PROFILES, host, machine, state, store

AT = Spa(0x40000)
TEXT = b"sixteen letters!" * (PAGE // 16)


# ---- options


def test_its_cores_have_the_mitigations_that_it_is_made_with(tmp_path: Path) -> None:
    def bit_after_clearing(made: Machine) -> list[int]:
        for core in made.cores:
            core.wrmsr(Msr.HWCR, core.rdmsr(Msr.HWCR) & ~int(Hwcr.INVD_TO_WBINVD))
        return [core.rdmsr(Msr.HWCR) & Hwcr.INVD_TO_WBINVD for core in made.cores]

    folder = state(tmp_path)
    plain = Machine(folder, Options(memory_size=4 * MIB))
    hard = Machine(folder, Options(memory_size=4 * MIB, mitigations=Mitigations(invd_stays_converted=True)))
    for made, expected in ((plain, 0), (hard, Hwcr.INVD_TO_WBINVD)):
        made.power_on()
        assert [expected] * len(made.cores) == bit_after_clearing(made)
        made.reset()
        assert [expected] * len(made.cores) == bit_after_clearing(made)
        made.power_off()


# ---- power


@pytest.mark.parametrize("profile", ALL_PROFILES)
def test_every_profile_powers_on_and_initialises(tmp_path: Path, profile: str) -> None:
    found = host(tmp_path, profile)
    status = found.status()
    part = found.machine.profile
    assert (part.api.major, part.api.minor, part.build) == (status.api_major, status.api_minor, status.build)
    assert found.machine.is_on


def test_power_on_twice_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    on = machine(tmp_path)
    fingerprint = on.host_key_fingerprint
    with pytest.raises(AlreadyOn, match="reset it"):
        on.power_on()
    assert fingerprint == on.host_key_fingerprint
    assert on.is_on


def test_a_machine_that_is_off_answers_nothing_and_has_no_key(tmp_path: Path) -> None:
    found = host(tmp_path)
    found.machine.power_off()
    assert not found.machine.is_on
    assert found.machine.booted is None
    assert found.machine.host_key_fingerprint == ""
    assert not found.machine.controller.has_key(HOST)
    found.machine.power_off()  # off twice is off
    with pytest.raises(MailboxTimeout, match="is the machine on"):
        found.status()


def test_power_returns_after_it_was_cut(tmp_path: Path) -> None:
    on = machine(tmp_path)
    on.power_off()
    on.power_on()
    assert a_host(on).status().state == 1


@pytest.mark.parametrize("name", ["spi/sev_firmware.bin", "spi/x86_boot.bin"])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda image: image[:0x100] + bytes([image[0x100] ^ 1]) + image[0x101:], "altered or unsigned"),
        (lambda image: image[:-1], "truncated"),
        (lambda image: b"", "truncated"),
        (lambda image: image + b"\x00", "truncated or padded"),
        (
            lambda image: image[: -0x200 - 0x404] + bytes(0x200 + 0x404),
            "not the vendor's|not by the vendor's",
        ),
    ],
    ids=["one bit", "cut", "empty", "padded", "unsigned"],
)
def test_a_bad_image_keeps_the_machine_off(tmp_path: Path, name: str, damage: object, why: str) -> None:
    assert callable(damage)
    folder = state(tmp_path)
    folder.write(name, damage(folder.read(name)))
    off = Machine(folder, Options(memory_size=MIB))
    with pytest.raises(MachineOff, match=why):
        off.power_on()
    assert not off.is_on
    assert not off.controller.has_key(HOST)


def test_a_reset_into_a_bad_image_leaves_the_machine_off(tmp_path: Path) -> None:
    folder = state(tmp_path)
    on = Machine(folder, Options(memory_size=MIB))
    on.power_on()
    folder.write("spi/sev_firmware.bin", b"")
    with pytest.raises(MachineOff):
        on.reset()
    assert not on.is_on


def test_an_image_cannot_stand_in_for_the_other_kind(tmp_path: Path) -> None:
    folder = state(tmp_path)
    folder.write("spi/sev_firmware.bin", folder.read("spi/x86_boot.bin"))
    with pytest.raises(MachineOff, match="X86_BOOT, wanted SEV_FIRMWARE"):
        Machine(folder, Options(memory_size=MIB)).power_on()


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    folder = state(tmp_path)
    (folder.path / "spi" / "x86_boot.bin").unlink()
    with pytest.raises(StateError, match=r"x86_boot\.bin: No such file.*cbit setup"):
        Machine(folder, Options(memory_size=MIB)).power_on()


# ---- reset, cold boot


def test_every_reset_draws_another_host_key_and_keeps_dram(tmp_path: Path) -> None:
    on = machine(tmp_path)
    Host(on).write(AT, TEXT, c=True)
    on.wbinvd_on_all_cores()
    cells, seen = on.probe.read(AT, PAGE), [on.host_key_fingerprint]
    for _ in range(3):
        on.reset()
        seen.append(on.host_key_fingerprint)
        assert cells == on.probe.read(AT, PAGE)
        assert Host(on).read(AT, PAGE, c=True) != TEXT
    assert len(set(seen)) == 4


def test_a_reset_loses_what_was_only_in_the_caches(tmp_path: Path) -> None:
    on = machine(tmp_path)
    Host(on).write(AT, TEXT)
    on.reset()
    assert bytes(PAGE) == on.probe.read(AT, PAGE)
    assert bytes(PAGE) == Host(on).read(AT, PAGE)


def test_unencrypted_memory_survives_a_reset(tmp_path: Path) -> None:
    on = machine(tmp_path)
    store(on.cores[0], AT, TEXT)
    on.reset()
    assert Host(on).read(AT, PAGE) == TEXT


@pytest.mark.parametrize("decay", [-1.0, 1.5, float("nan"), float("inf")])
def test_a_decay_that_is_no_share_cuts_no_power(tmp_path: Path, decay: float) -> None:
    on = machine(tmp_path)
    before = (on.booted, on.host_key_fingerprint)
    with pytest.raises(ValueError, match=f"decay {decay} is not between 0 and 1"):
        on.power_off(decay=decay)
    assert on.is_on
    assert before == (on.booted, on.host_key_fingerprint)


@pytest.mark.parametrize(("decay", "low", "high"), [(0.0, 0, 0), (0.01, 50, 330), (1.0, 12288, 20480)])
def test_cells_fade_without_power(tmp_path: Path, decay: float, low: int, high: int) -> None:
    on = machine(tmp_path)
    store(on.cores[0], AT, TEXT)
    on.power_off(decay=decay)
    after = on.probe.read(AT, PAGE)
    changed = sum((a ^ b).bit_count() for a, b in zip(TEXT, after, strict=True))
    assert low <= changed <= high  # about half of the page's 32768 bits are away from their ground state


# ---- TSME and memory encryption switched off


def test_tsme_encrypts_what_nobody_marked(tmp_path: Path) -> None:
    on = machine(tmp_path, settings=BiosSettings(tsme=1))
    found = Host(on)
    found.write(AT, TEXT)
    on.wbinvd_on_all_cores()
    assert TEXT not in on.probe.read(AT, PAGE)
    assert found.read(AT, PAGE) == TEXT
    assert on.dma_port().read(AT, PAGE) == TEXT  # a device is served through the same engine


def test_without_memory_encryption_the_c_bit_is_no_c_bit(tmp_path: Path) -> None:
    on = machine(tmp_path, settings=BiosSettings(memory_encryption=0))
    assert not on.cores[0].encryption_on
    store(on.cores[0], AT, TEXT)
    assert on.probe.read(AT, PAGE) == TEXT
    with pytest.raises(AddressError):
        on.dma_port().read(AT | 1 << on.profile.features.c_bit, PAGE)


def test_the_bios_setting_is_read_at_every_reset(tmp_path: Path) -> None:
    folder = state(tmp_path)
    on = Machine(folder, Options(memory_size=MIB, entropy=SeededEntropy(1)))
    on.power_on()
    assert not on.controller.tsme
    vendor = load_vendor_key(folder.read("manufacturer/vendor.pem"))
    folder.write("spi/x86_boot.bin", x86_boot_image(vendor, BiosSettings(tsme=1), svn=1))
    on.reset()
    assert on.controller.tsme


# ---- tweak constants: fresh per boot, or published


def collisions(core: Core, on: Machine, tweak: Tweak, mode: Mode) -> bool:
    """The block-move identity of xe and xex: does ciphertext move between two places if ``tweak`` is known?

    Paper: memory-encryption.md §9.2.
    """
    here, there = AT, Spa(AT + 0x1230)
    difference = bytes(a ^ b for a, b in zip(tweak.at(here), tweak.at(there), strict=True))
    block = bytes(range(16))
    moved = bytes(a ^ b for a, b in zip(block, difference, strict=True))
    on.memory.write(here, block, HOST)
    on.memory.write(there, moved, HOST)
    core.wbinvd()
    first, second = on.probe.read(here, 16), on.probe.read(there, 16)
    if mode is Mode.XEX:
        second = bytes(a ^ b for a, b in zip(second, difference, strict=True))
    return first == second


@pytest.mark.parametrize("mode", [Mode.XE, Mode.XEX])
def test_naples_has_the_published_constants_at_every_boot(tmp_path: Path, mode: Mode) -> None:
    on = machine(tmp_path, "naples", mode=mode)
    for _ in range(2):
        assert collisions(on.cores[0], on, Tweak.zen1(), mode)
        on.reset()


@pytest.mark.parametrize("profile", ["rome", "milan"])
def test_later_parts_draw_new_constants_at_every_boot(
    tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tweak] = []
    original = Tweak.random

    def random(entropy: Entropy) -> Tweak:
        drawn.append(original(entropy))
        return drawn[-1]

    monkeypatch.setattr(Tweak, "random", random)
    on = machine(tmp_path, profile)
    on.reset()
    on.power_off()
    on.power_on()
    assert len(drawn) == 3
    assert all(before.constants[4] != after.constants[4] for before, after in pairwise(drawn))
    assert [False, False, True] == [collisions(on.cores[0], on, tweak, Mode.XEX) for tweak in drawn]
    assert not collisions(on.cores[0], on, Tweak.zen1(), Mode.XEX)


# ---- devices


def test_dma_outside_memory_is_refused_and_moves_nothing(tmp_path: Path) -> None:
    on = machine(tmp_path, memory_size=MIB)
    device, c_bit = on.dma_port(), 1 << on.profile.features.c_bit
    device.write(MIB - 16, b"the very last 16")
    assert b"the very last 16" == device.read(MIB - 16, 16)
    for address in (MIB - 15, MIB, GIB, MAILBOX_BAR, (MIB - 15) | c_bit, MIB | c_bit, 1 << 52):
        with pytest.raises(AddressError):
            device.read(address, 16)
        with pytest.raises(AddressError):
            device.write(address, bytes(16))
    assert b"the very last 16" == device.read(MIB - 16, 16)


def test_a_narrow_device_cannot_drive_the_c_bit(tmp_path: Path) -> None:
    on = machine(tmp_path)
    with pytest.raises(AddressError, match="32 address bits"):
        on.dma_port(address_bits=32).read(1 << on.profile.features.c_bit, 16)


# ---- what cannot be built


@pytest.mark.parametrize("size", [0, MIB - PAGE, MIB + 1, MAX_DRAM + PAGE, -MIB])
def test_a_senseless_memory_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadMachine, match="bytes of memory"):
        Machine(state(tmp_path), Options(memory_size=size))


def test_a_part_has_its_own_engine_modes(tmp_path: Path) -> None:
    with pytest.raises(BadMachine, match="milan has the modes xex, not xts"):
        Machine(state(tmp_path), Options(mode=Mode.XTS))
    assert machine(tmp_path, "naples", mode=Mode.XEX).mode is Mode.XEX
    assert machine(tmp_path / "default", "naples").mode is Mode.XE


def test_dram_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    big = Machine(state(tmp_path), Options(memory_size=8 * GIB))
    big.power_on()
    big.memory.write(Spa(8 * GIB - PAGE), b"far away", UNENCRYPTED)
    assert big.memory.read(Spa(8 * GIB - PAGE), 8, UNENCRYPTED) == b"far away"
    resident = next(
        int(line.split()[1]) * KIB
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    assert resident < 2 * GIB
