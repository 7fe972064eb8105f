"""The story with Linux as the guest, act by act.  Every value comes from what ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from cbit.attacks.forensics import Dump, Find, Wanted, search
from cbit.attacks.linux_launch import check, launch
from cbit.attacks.tenant import Tenant
from cbit.cli.demo.act import Act
from cbit.cli.demo.linux_world import EPOCH, LinuxWorld, LiveConsole
from cbit.hypervisor.devices.disk import MemoryDisk
from cbit.hypervisor.host import Host
from cbit.hypervisor.linux_guest import LinuxGuest
from cbit.hypervisor.survey import survey
from cbit.machine.board import Machine
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.errors import BadMeasurement, CbitError
from cbit.spec.key_id import KeyId
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.policy import GuestPolicy, Policy

PATIENCE_NS: Final = 120_000_000_000  #: guest time for one boot
ENCRYPTED, PLAIN = "encrypted guest", "unencrypted guest"
OPENED: Final = "encrypted guest, opened by the lab"
_PIECE: Final = PAGE
_BANNER: Final = "Linux version "
_TELLING: Final = ("Memory Encryption", "bounce buffers", "/dev/dm-", "The disk is open")


class NoPrompt(CbitError):
    """The guest did not come to its shell; the message says where it ended."""


def the_owners_files(world: LinuxWorld) -> Act:
    """What the owner has, and what a launch of it must measure."""
    act = Act(1, "The guest owner's own copies: kernel, initramfs, command line, and a disk it encrypted")
    files = world.files
    act.fact("from", files.origin)
    act.fact("kernel, initramfs", f"{len(files.kernel)} and {len(files.initrd)} bytes")
    act.fact("disk", f"{len(files.disk)} bytes, aes-xts-plain64; on it a note, and a password")
    launch = files.launch(world.memory_size)
    for step in launch.steps():
        act.fact(f"measured: {step.input.what}", step.place)
    act.fact("owner: launch digest of all that", launch.expectation().digest.hex())
    act.who_sees = "Kernel and initramfs are public. The password is on the disk, and the disk's key is here."
    return act


def launched(world: LinuxWorld, host: Host) -> tuple[Act, LinuxGuest]:
    """Session, launch, receipt, the disk's key; first with a kernel of which one byte is another."""
    act = Act(2, "Launch: every page that Linux starts from is measured and encrypted where it lies")
    tenant, own = Tenant.beside(world.state, policy=int(Policy.NODBG)), world.files.launch(world.memory_size)
    act.fact("policy", GuestPolicy.parse(tenant.policy))
    altered = bytearray(world.files.kernel)
    altered[len(altered) // 2] ^= 1
    image = world.files.image(world.memory_size)
    spoilt = replace(world.files, kernel=bytes(altered)).image(world.memory_size)
    session, guest = launch(host, spoilt, tenant, entropy=world.entropy)
    try:
        check(tenant, session, guest, own)
    except BadMeasurement as refusal:
        act.attempt("hypervisor changes one bit of the kernel", succeeded=False, answer=refusal)
    guest.end()
    session, guest = launch(host, image, tenant, entropy=world.entropy)
    trusted = check(tenant, session, guest, own)
    act.attempt("owner compares the receipt of the honest launch", succeeded=True, answer="its own files")
    header, payload = trusted.seal(world.files.secret, entropy=world.entropy)
    guest.inject(header, payload)
    act.fact("the disk's key, sealed for this launch", f"{len(payload)} bytes, to {image.secret_gpa:#x}")
    act.who_sees = "The hypervisor loaded every byte and reads ciphertext now; it carried the key, sealed."
    return act, guest


def booted(world: LinuxWorld, guest: LinuxGuest, *, number: int, title: str) -> Act:
    """Boot to the shell, the console live."""
    act = Act(number, title)
    console = LiveConsole(world.show)
    monitor = guest.power_on(console, epoch=EPOCH, disks=[MemoryDisk(world.files.disk)])
    guest.run(until=lambda: console.at_prompt or monitor.clock.ns > PATIENCE_NS)
    if not console.at_prompt:
        last = (console.lines_with("") or ["nothing"])[-1]
        why = monitor.stop or f"in {PATIENCE_NS // 10**9} s of its own time"
        raise NoPrompt(f"Linux did not come to its shell ({why}); its last line: {last}")
    for line in console.lines_with(_BANNER)[:1]:
        act.fact("the guest says", line)
    for line in console.lines_with(*_TELLING):
        act.fact("the guest says", line)
    act.fact("guest time to the prompt", f"{monitor.clock.ns / 1e9:.2f} s")
    act.fact("#VMEXITs", ", ".join(f"{name} {count}" for name, count in guest.exits.items()))
    uses = Counter[str]()
    for run in survey(guest.vm).runs:
        uses[run.state[0]] += run.count
    act.fact("pages", f"{uses['p']} private, {uses['s']} shared, {uses['-']} never used")
    return act


def dumped(world: LinuxWorld, host: Host, guest: LinuxGuest, *, number: int, name: str) -> Act:
    """WBINVD, a dump of all DRAM; for the encrypted guest, the lab opens a copy with the guest's key."""
    act = Act(number, f"The administrator dumps DRAM: the {name}")
    machine = host.machine
    act.fact("WBINVD before the dump", f"{host.flush_caches()} pages written back")
    path = world.folder / f"dram{number}.bin"
    machine.probe.dump(path)
    world.dumps.append(Dump(name, path))
    act.fact("dump", f"{machine.memory_size // MIB} MiB of DRAM")
    act.who_sees = "Whoever has the machine has this file."
    if name == ENCRYPTED:
        opened = world.folder / f"opened{number}.bin"
        _open(machine, path, opened, guest_key_id(guest.vm.asid))
        world.dumps.append(Dump(OPENED, opened))
        act.fact(
            "control, which only the lab has",
            "the same dump, read through the guest's key; pages of zeros, which nobody wrote, stay zeros",
        )
    return act


def _open(machine: Machine, dump: Path, opened: Path, key: KeyId) -> None:
    """Read all that a dump holds through a key."""
    with dump.open("rb") as cells, opened.open("wb") as file:
        for at in range(0, machine.memory_size, _PIECE):
            if any(cells.read(_PIECE)):
                file.seek(at)
                file.write(machine.controller.read(Spa(at), _PIECE, key))
        file.truncate(machine.memory_size)


def searched(world: LinuxWorld, *, number: int) -> Act:
    """Every tool on every dump."""
    act = Act(number, "The administrator's tools, on every dump")
    banner = f"{_BANNER}{_release(world.files.kernel)}".encode()
    wanted = Wanted(world.files.password, banner, world.files.disk_key)
    for find in search(world.dumps, wanted):
        world.finds.append(find)
        world.show(f"{find.dump}: {find.tool} looked for the {find.what}")
        _tell(act, find)
    act.who_sees = "Found where nothing is encrypted, and with the key; without it there is nothing to find."
    return act


def _tell(act: Act, find: Find) -> None:
    who = f"{find.tool}: {find.what}, {find.dump}"
    if find.found is None:
        act.fact(who, find.words)
    else:
        act.attempt(who, succeeded=find.found, answer=find.words)


def _release(kernel: bytes) -> str:
    """Read the kernel's release: a text in its image (boot protocol, kernel_version)."""
    at = int.from_bytes(kernel[0x20E:0x210], "little") + 0x200
    return kernel[at : at + 200].partition(b"\x00")[0].split(b" ")[0].decode("ascii", "replace")


def surprises(finds: list[Find]) -> Iterator[str]:
    """Say what was not as it must be: found in the encrypted dump, or not found in one of the others."""
    for find in finds:
        must = find.dump != ENCRYPTED
        if find.found is not None and find.found is not must:
            word = "was not found" if must else "was found"
            yield f"{find.tool}: the {find.what} {word} in the dump of the {find.dump}"
