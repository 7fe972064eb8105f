"""E2, A2: the administrator, a device and a probe read the secret where it lies."""

from __future__ import annotations

from cbit.attacks.experiments.correspondent import correspondent, with_letters
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import HLT
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.power import Power
from cbit.guest.builtin.interface import Request


def reader(stand: Stand) -> Scene:
    """Start the built-in guest, with a letter to open: it will look up its key in the owner's secrets."""
    scene, guest = with_letters(stand)
    guest.put(Request.OPEN)
    return scene


_ES = stopped_by("the guest's key")


@attack(
    title="Reading memory as the administrator",
    experiment="E2",
    paper="attacks.md §3 E2; memory-encryption.md §4.5",
    holds={Power.MAP_MEMORY, Power.FLUSH_CACHES},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: succeeds("a mapping with C=1 uses the host's key, and the host is the attacker"),
        Mode.SEV: stopped_by("the guest's key: a host mapping has no key, or the host's"),
        Mode.SEV_ES: _ES,
        Mode.SEV_SNP: stopped_by("the guest's key; with ciphertext hiding, not even ciphertext"),
    },
    victim=correspondent,
)
def host_read(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Map the victim's page into the host and read it, with C=0 and with C=1.

    The host chooses the mapping and the C-bit, never the guest's key.  Under SME the key is the host's own,
    so memory encryption protects nobody from the administrator.
    """
    hands.caches.write_back()
    size = facts.number("secrets_size")
    spa = hands.memory.spa(facts.number("secrets_at"), size)
    plain = hands.memory.read(spa, size)
    log.step("read through a mapping with C=0", plain)
    decrypted = hands.memory.read(spa, size, c=True)
    log.step("read through a mapping with C=1: decrypted with the host's key", decrypted)
    return plain + decrypted


@attack(
    title="Reading memory with a device",
    experiment="E2",
    paper="attacks.md A2; memory-encryption.md §5",
    holds={Power.DMA, Power.DMA_C_BIT, Power.FLUSH_CACHES, Power.MAP_MEMORY},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: succeeds("a device that drives the C-bit is decrypted for, with the host's key"),
        Mode.SEV: stopped_by("no request of a device carries an ASID: no guest key is ever used for it"),
        Mode.SEV_ES: _ES,
        Mode.SEV_SNP: _ES,
    },
    victim=correspondent,
)
def dma_read(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Let a malicious device read the victim's page, with and without the C-bit in the address.

    SME leaves the devices to the IOMMU: whoever can drive the C-bit's address line gets plaintext.
    """
    hands.caches.write_back()
    size = facts.number("secrets_size")
    loot = hands.device.read(hands.memory.spa(facts.number("secrets_at"), size), size)
    log.step("the device reads with C=0", loot[:size])
    log.step("the device reads with C=1", loot[size:])
    return loot


@attack(
    title="Listening on the DRAM bus",
    experiment="E2",
    paper="attacks.md A2, A24 (a reading interposer)",
    holds={Power.TAP_BUS, Power.FLUSH_CACHES, Power.TAKE_EXITS},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: stopped_by("the engine sits on the chip: only ciphertext is on the wires"),
        Mode.SEV: stopped_by("the engine sits on the chip: only ciphertext is on the wires"),
        Mode.SEV_ES: stopped_by("as SEV"),
        Mode.SEV_SNP: stopped_by("as SEV"),
    },
    victim=reader,
)
def bus_probe(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Record what passes between memory controller and modules while the victim opens a letter."""
    hands.caches.write_back()
    with hands.bus() as lines:
        hands.victim.until(HLT)
    loot = b"".join(lines)
    log.step(f"{len(lines)} transfers recorded while the victim ran", loot)
    return loot
