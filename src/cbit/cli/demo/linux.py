"""``cbit demo --linux``: the story with Linux as the guest, and tools let loose on its memory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbit.cli.demo.stage import Stage, new_machine
from cbit.cli.envelope import Outcome
from cbit.cli.pasted import pasted

if TYPE_CHECKING:
    from cbit.attacks.linux_owner import OwnersFiles
    from cbit.cli.demo.act import Act
    from cbit.cli.demo.linux_world import LinuxWorld
    from cbit.crypto.entropy import Entropy

KEY_FILE = "disk.key"
SEARCH = 7  #: number of the last act
#: Bytes of guest memory: under SEV 64 MiB of them become bounce buffers, by Linux's own rule.
SMALLEST = 160 << 20


def run(args: argparse.Namespace) -> Outcome:
    """Manufacture a machine, boot Linux in it twice, search what was in DRAM."""
    from cbit.cli.demo.linux_story import surprises

    with ExitStack() as stack:
        world, stage, set_up = _set_up(args, stack)
        begun = time.monotonic()
        told = []
        for act in _tell(world, stage):
            told.append(act)
            if act.number != SEARCH:  # that one is a table
                stage.act(act)
        result: dict[str, Any] = {
            "profile": args.profile,
            "linux": {"origin": world.files.origin, "memory_size": world.memory_size},
            "acts": [act.as_json() for act in told],
            "finds": [
                {"tool": find.tool, "what": find.what, "dump": find.dump, "found": find.found}
                for find in world.finds
            ],
            "absent": sorted({find.tool for find in world.finds if find.found is None}),
            "seconds": {"set_up": round(set_up, 2), "story": round(time.monotonic() - begun, 2)},
        }
    reasons = tuple(surprises(world.finds))
    return Outcome(not reasons, result, reasons, lines=lambda: _closing(result))


def write(args: argparse.Namespace) -> Outcome:
    """Write the owner's files where somebody can take them; the key's file is its owner's alone.

    Raises:
        FileExistsError: a key is there already.
    """
    from cbit.cli.progress import progress
    from cbit.owner import files as owner_files

    with progress("fetching and building a Linux", quiet=args.json):
        files = _files(args, _entropy(args))
    folder: Path = args.write
    folder.mkdir(parents=True, exist_ok=True)
    owner_files.write_private(folder / KEY_FILE, files.disk_key)  # first: a disk whose key is lost is lost
    for name, data in (("vmlinuz", files.kernel), ("initrd.img", files.initrd), ("disk.img", files.disk)):
        (folder / name).write_bytes(data)
    names = {name: str(folder / name) for name in ("vmlinuz", "initrd.img", "disk.img", KEY_FILE)}
    result: dict[str, Any] = {"origin": files.origin, "files": names}
    return Outcome(True, result, lines=lambda: _written(names, files.origin))


def _written(names: dict[str, str], origin: str) -> Iterator[str]:
    yield f"kernel and busybox: {origin}"
    for name in names.values():
        yield f"wrote {name}"
    yield "boot it, encrypted, and let it open its disk:"
    yield (
        f"  cbit run --mode sev --kernel {pasted(names['vmlinuz'])} --initrd {pasted(names['initrd.img'])}"
        f" --disk {pasted(names['disk.img'])} --secret {pasted(names[KEY_FILE])}"
    )


def _entropy(args: argparse.Namespace) -> Entropy:
    from cbit.crypto.entropy import SeededEntropy, SystemEntropy

    return SystemEntropy() if args.seed is None else SeededEntropy(args.seed)


def _tell(world: LinuxWorld, stage: Stage) -> Iterator[Act]:
    from cbit.cli.demo import linux_story as story
    from cbit.hypervisor.host import Protection
    from cbit.hypervisor.linux_guest import LinuxGuest

    yield story.the_owners_files(world)
    host = world.new_host()
    act, guest = story.launched(world, host)
    yield act
    stage.begins("the encrypted guest's console")
    act = story.booted(world, guest, number=3, title="Linux boots, encrypted, and opens the disk")
    act.who_sees = "Code, page cache, key schedule, password: in the SoC, and as ciphertext in DRAM."
    yield act
    yield story.dumped(world, host, guest, number=4, name=story.ENCRYPTED)
    guest.end()
    host.machine.power_off()

    host = world.new_host()
    image = world.files.image(world.memory_size, secret=world.files.secret)
    guest = LinuxGuest(host, image, protection=Protection.NONE)
    stage.begins("the unencrypted guest's console")
    act = story.booted(world, guest, number=5, title="The same without encryption: the owner must trust")
    act.who_sees = "The owner gave the key to the host; everything is in DRAM as it is."
    yield act
    yield story.dumped(world, host, guest, number=6, name=story.PLAIN)
    guest.end()
    host.machine.power_off()
    stage.begins("searching the dumps")
    searched = story.searched(world, number=SEARCH)
    stage.finds(world.finds)
    yield searched


def _set_up(args: argparse.Namespace, stack: ExitStack) -> tuple[LinuxWorld, Stage, float]:
    from cbit.cli.demo.execution import why_not_executing
    from cbit.cli.demo.linux_world import LinuxWorld
    from cbit.cli.progress import progress
    from cbit.cpu.engine.errors import NoEngine
    from cbit.machine.profiles import profile

    begun = time.monotonic()
    if args.memory < SMALLEST:
        raise ValueError(f"--memory: {SMALLEST >> 20}M at least; Linux takes 64M for bounce buffers")
    if why := why_not_executing():
        raise NoEngine(why)
    chosen = profile(args.profile)
    entropy = _entropy(args)
    with progress("fetching and building a Linux", quiet=args.json):
        files = _files(args, entropy)
    folder, state = new_machine(stack, chosen, entropy, quiet=args.json)
    stage = Stage(quiet=args.json)
    world = LinuxWorld(state, files, args.memory, folder, entropy, stage.line)
    return world, stage, time.monotonic() - begun


def _files(args: argparse.Namespace, entropy: Entropy) -> OwnersFiles:
    from cbit.attacks.linux_owner import OwnersFiles, initramfs
    from cbit.cli.linux_files import linux_files
    from cbit.guest.linux.unlock import unlock_program

    unlock = unlock_program()  # first: without a compiler nothing needs to be fetched
    found = linux_files(kernel=args.kernel, modules=args.modules, busybox=args.busybox)
    return OwnersFiles.made_of(found, initramfs(found, unlock), append=args.append, entropy=entropy)


def _closing(result: dict[str, Any]) -> Iterator[str]:
    found = result["finds"]
    for dump in dict.fromkeys(find["dump"] for find in found):
        tried = [find for find in found if find["dump"] == dump and find["found"] is not None]
        yield f"{dump}: {sum(find['found'] for find in tried)} of {len(tried)} searches found something"
    if result["absent"]:
        yield f"skipped, for they are not here or failed: {', '.join(result['absent'])}"
    seconds = result["seconds"]
    yield f"Set-up {seconds['set_up']} s, story {seconds['story']} s. As data: cbit demo --linux --json"
