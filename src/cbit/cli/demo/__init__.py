"""``cbit demo``: the story of the machine, from power-on to a sealed secret, and what each adversary gets."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cbit.cli.capabilities import require_machine
from cbit.cli.demo.stage import Stage, new_machine
from cbit.cli.envelope import Outcome
from cbit.cli.linux_options import add_linux_options
from cbit.cli.sizes import size
from cbit.spec.address import MIB

if TYPE_CHECKING:
    from cbit.attacks.survey import Cell
    from cbit.cli.demo.act import Act
    from cbit.cli.demo.world import World

HELP = "the whole story, from power-on to a sealed secret, on this machine"
EXAMPLE = """examples:
  cbit demo
  cbit demo --linux
  cbit demo --firmware OVMF.fd --secret-gpa 0x810000 --json"""
DEFAULTS: Final = {"secret_gpa": 0x810000, "profile": "milan", "append": "", "memory": 256 * MIB}
OF_FIRMWARE: Final[tuple[str, ...]] = ("firmware", "secret_gpa")
OF_LINUX: Final[tuple[str, ...]] = ("kernel", "modules", "busybox", "write", "append", "memory")
OF_THE_RUN: Final[tuple[str, ...]] = ("profile", "append", "memory")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "--firmware",
        type=Path,
        metavar="F",
        help="guest firmware image, launched and not executed (default: a distribution's OVMF)",
    )
    parser.add_argument(
        "--secret-gpa",
        type=_address,
        metavar="ADDRESS",
        help="where the owner wants its secret if the image announces no place (default 0x810000)",
    )
    parser.add_argument("--profile", help="naples, rome, milan (default) or genoa")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="draw everything but the RSA root from a seed: the same story again, except for the seconds",
    )
    linux = parser.add_argument_group("with Linux as the guest")
    linux.add_argument(
        "--linux",
        action="store_true",
        help="boot the kernel of this Debian or Ubuntu, fetched without root",
    )
    add_linux_options(linux)
    linux.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="write kernel, initramfs, encrypted disk and its key there, for `cbit run`, and stop",
    )
    linux.add_argument("--append", metavar="S", help="append to its command line")
    linux.add_argument("--memory", type=size, metavar="SIZE", help="of the guest (default: 256M)")


def _address(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write 0x810000") from None


def _refuse(args: argparse.Namespace) -> None:
    """Refuse what would have no effect."""
    if not args.linux:
        useless, why = OF_LINUX, "belongs to --linux"
    elif args.write:
        useless, why = (*OF_FIRMWARE, *OF_THE_RUN), "has no effect on the files that --write writes"
    else:
        useless, why = OF_FIRMWARE, "has no effect with --linux, which boots a kernel directly"
    for name in useless:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def run(args: argparse.Namespace) -> Outcome:
    """Manufacture a machine in a temporary folder and let it tell the story."""
    require_machine()
    _refuse(args)
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.linux:
        from cbit.cli.demo import linux

        return linux.write(args) if args.write else linux.run(args)
    from cbit.attacks.survey import survey
    from cbit.cli.demo.story import ACTS

    with ExitStack() as stack:
        world, set_up = _set_up(args, stack)
        begun = time.monotonic()
        stage = Stage(quiet=args.json)
        told: list[Act] = []
        for act in ACTS:
            told.append(act(world))
            stage.act(told[-1])
        world.machine.power_off()
        cells: list[Cell] = []
        for cell in survey(world.new_host, world.arrival()):
            cells.append(cell)
            stage.attempt(cell)
        stage.survey(cells)
        image = world.image
        result: dict[str, Any] = {
            "profile": args.profile,
            "execution": {"executes": world.executes, "why_not": world.no_engine},
            "firmware": {"name": image.name, "origin": image.origin, "size": len(image.data)},
            "acts": [act.as_json() for act in told],
            "adversaries": [asdict(cell) for cell in cells],
            "seconds": {"set_up": round(set_up, 2), "story": round(time.monotonic() - begun, 2)},
        }
    return Outcome(True, result, lines=lambda: _closing(result))


def _set_up(args: argparse.Namespace, stack: ExitStack) -> tuple[World, float]:
    from cbit.attacks.victim import secret_table
    from cbit.cli.demo.execution import why_not_executing
    from cbit.cli.demo.firmware import find, secret_place
    from cbit.cli.demo.world import World
    from cbit.cli.progress import progress
    from cbit.crypto.entropy import SeededEntropy, SystemEntropy
    from cbit.crypto.key import Key
    from cbit.guest.builtin.sealed import KEY_BYTES
    from cbit.machine.profiles import profile

    begun = time.monotonic()
    chosen = profile(args.profile)
    entropy = SystemEntropy() if args.seed is None else SeededEntropy(args.seed)
    with progress("looking for guest firmware, and for what executes guests", quiet=args.json):
        no_engine = why_not_executing()
        image = find(args.firmware)
    secret = b"disk passphrase " + entropy.draw(12).hex().encode()
    message_key = Key(entropy.draw(KEY_BYTES))
    length = len(secret_table(secret, message_key))
    place = secret_place(image.data, named=args.secret_gpa, length=length)
    _, state = new_machine(stack, chosen, entropy, quiet=args.json)
    return World(state, image, secret, place, message_key, no_engine, entropy), time.monotonic() - begun


def _closing(result: dict[str, Any]) -> Iterator[str]:
    seconds = result["seconds"]
    yield "Each cell is an attempt that was made; the verdict is whether the secret is in the bytes it got."
    yield f"Set-up {seconds['set_up']} s, story {seconds['story']} s. The same as data: cbit demo --json"
