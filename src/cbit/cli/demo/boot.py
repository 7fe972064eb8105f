"""Acts 1 and 2: power on, and what the host does with its own key."""

from __future__ import annotations

from typing import Final

from cbit.cli.demo.act import Act
from cbit.cli.demo.world import PLAIN_PAGE, World
from cbit.crypto import ec
from cbit.hypervisor.host import Host
from cbit.machine.manufacture import SVN, load_vendor_key
from cbit.memory.iommu import (
    DTE_BYTES,
    DTE_TRANSLATION_VALID,
    DTE_VALID,
    LEVEL_SHIFT,
    PTE_PRESENT,
    READ,
)
from cbit.secure_processor.boot import MachineOff
from cbit.secure_processor.image import BiosSettings, ImageHeader, sign_image, x86_boot_image
from cbit.spec.address import PAGE, Spa

_FIRMWARE: Final = "spi/sev_firmware.bin"
_X86_BOOT: Final = "spi/x86_boot.bin"


def power_on(world: World) -> Act:
    """Signed firmware, or no machine at all."""
    act = Act(1, "Power on: the secure processor runs only what its fuses accept")
    world.machine = machine = world.new_machine()
    good = world.state.read(_FIRMWARE)
    for name, image in _bad_images(world, good).items():
        _try_boot(act, world, name, image)
    world.state.write(_FIRMWARE, good)
    booted = machine.power_on()
    act.attempt("the vendor's firmware", succeeded=True, answer="accepted, and so is the x86 boot image")
    c_bit = machine.profile.features.c_bit
    act.fact("processor", f"{machine.profile.name}: C-bit {c_bit}, AES engine in mode {machine.mode}")
    act.fact("its firmware", f"API {booted.api}, build {booted.build}, {len(booted.implements)} commands")
    act.fact("SME key", f"drawn now and put into its slot; its fingerprint is {machine.host_key_fingerprint}")
    act.who_sees = "Keys live in the memory controller's slots. No register, command or program returns one."
    return act


def _bad_images(world: World, good: bytes) -> dict[str, bytes]:
    vendor = load_vendor_key(world.state.read("manufacturer/vendor.pem"))
    header = ImageHeader.parse(good[: ImageHeader.SIZE])
    start = ImageHeader.SIZE
    body = good[start : start + header.body_size]
    return {
        "with one bit changed": good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :],
        "cut short": good[:-100],
        "signed by a stranger": sign_image(header, body, ec.random_key(world.entropy)),
        "older than the fuses allow": sign_image(header.replace(svn=SVN - 1), body, vendor),
    }


def _try_boot(act: Act, world: World, name: str, image: bytes) -> None:
    world.state.write(_FIRMWARE, image)
    try:
        world.machine.power_on()
    except MachineOff as refusal:
        act.attempt(f"firmware {name}", succeeded=False, answer=f"the machine stays off: {refusal}")
    else:
        act.attempt(f"firmware {name}", succeeded=True, answer="it runs")
        world.machine.power_off()


def sme(world: World) -> Act:
    """The host marks pages; DRAM holds ciphertext; the reset changes the key."""
    act = Act(2, "SME: the host marks pages with the C-bit, and DRAM holds them encrypted")
    machine, host = world.machine, Host(world.machine)
    clear, marked = host.frames.take_page(), host.frames.take_page()
    host.write(clear, PLAIN_PAGE)
    host.write(marked, PLAIN_PAGE, c=True)
    act.fact("WBINVD", f"{host.flush_caches()} pages written back from the caches to DRAM")
    act.show("DRAM: a page of text written with C=0", machine.probe.read(clear, PAGE))
    act.show("DRAM: the same text written with C=1", machine.probe.read(marked, PAGE))
    act.show("the host, through its C=1 mapping", host.read(marked, PAGE, c=True))
    device, c_bit = machine.dma_port(), 1 << machine.profile.features.c_bit
    act.show("a device that cannot drive the C-bit", device.read(marked, PAGE))
    act.show("a device that drives the C-bit", device.read(marked | c_bit, PAGE))
    act.show("a 32-bit device, by an IOMMU's tables", _translated(host, marked))
    _live_page(act, host)
    _reset(act, world, marked)
    _tsme(act, world)
    act.who_sees = (
        "SME stops whoever holds the memory in hand: bus probe, cold boot. It does not stop whoever stands "
        "above the engine: an administrator with a C=1 mapping, or a device that drives the C-bit."
    )
    return act


def _translated(host: Host, marked: Spa) -> bytes:
    """Read a page by a device that has too few address lines for the C-bit; its tables are encrypted too."""
    machine, c_bit = host.machine, 1 << host.machine.profile.features.c_bit
    devices, table = host.frames.take_page(), host.frames.take_page()
    leaf = marked | c_bit | PTE_PRESENT | READ
    root = table | c_bit | DTE_VALID | DTE_TRANSLATION_VALID | 1 << LEVEL_SHIFT | READ
    host.write(table, leaf.to_bytes(8, "little"), c=True)
    host.write(devices, root.to_bytes(DTE_BYTES, "little"), c=True)
    iommu = machine.iommu(devices | c_bit, devices=1)
    return machine.dma_port(address_bits=32, iommu=iommu).read(0, PAGE)


def _live_page(act: Act, host: Host) -> None:
    """Encrypt a page that is in use: flush, copy onto itself through two windows, change the C-bit, flush."""
    spa = host.frames.take_page()
    host.write(spa, PLAIN_PAGE)
    page = host.map_page(spa, c=False)
    host.change_encryption(page, private=True)
    act.show("a live page, encrypted in place: its user", host.machine.cores[0].read(page, PAGE))
    act.show("the same page in DRAM", host.machine.probe.read(spa, PAGE))


def _reset(act: Act, world: World, marked: Spa) -> None:
    machine = world.machine
    before, fingerprint = machine.probe.read(marked, PAGE), machine.host_key_fingerprint
    machine.reset()
    kept = "kept" if machine.probe.read(marked, PAGE) == before else "lost"
    drawn = machine.host_key_fingerprint
    act.fact("reset", f"DRAM is {kept}; SME key {fingerprint} is gone, {drawn} is drawn")
    act.show("the host's C=1 mapping, after the reset", Host(machine).read(marked, PAGE, c=True))


def _tsme(act: Act, world: World) -> None:
    """TSME: the BIOS turns it on and the OS need not know."""
    usual = world.state.read(_X86_BOOT)
    vendor = load_vendor_key(world.state.read("manufacturer/vendor.pem"))
    world.state.write(_X86_BOOT, x86_boot_image(vendor, BiosSettings(tsme=1), svn=SVN))
    world.machine.reset()
    host = Host(world.machine)
    page = host.frames.take_page()
    host.write(page, PLAIN_PAGE)
    host.flush_caches()
    act.show("DRAM with TSME: a page written with C=0", world.machine.probe.read(page, PAGE))
    world.state.write(_X86_BOOT, usual)
    world.machine.reset()
