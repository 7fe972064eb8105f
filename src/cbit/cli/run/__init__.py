"""``cbit run``: boot a guest; your terminal is its console."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cbit.cli.capabilities import require_machine
from cbit.cli.envelope import Outcome
from cbit.cli.owner.arguments import policy
from cbit.cli.parser import Parser
from cbit.cli.sizes import size

if TYPE_CHECKING:
    from cbit.cli.run.session import Account, Outside

HELP: Final = "boot a Linux kernel as a guest; your terminal is its console"
EXAMPLE: Final = """examples:
  cbit run --mode sev --kernel vmlinuz --initrd initrd.img
  cbit run --mode sev --kernel K --initrd I --secret passphrase --disk disk.img
  cbit run --kernel K --initrd I --until '/ #' --timeout 60 --dump-dram dram.bin --report run.json

On a terminal every key is the guest's, Ctrl-C too: Ctrl-A x ends the run, Ctrl-A Ctrl-A types one Ctrl-A.
What comes through a pipe is typed once the guest listens.  The guest's console alone is on standard output.

exit codes: 0 the text of --until came, or the guest powered itself off or reset; 1 time-out, panic, triple
fault, or it cannot go on; 2 unusable input, or not modelled; 130 ended by a signal or by Ctrl-A x"""
MIB: Final = 1 << 20
SEEDED_EPOCH: Final = 1_700_000_000  #: what the guest's clock says at first in a run with a seed


def configure(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("--mode", choices=("none", "sme", "sev"), default="none", help="how memory is protected (none)")
    add("--memory", type=size, default=256 * MIB, metavar="SIZE", help="of the guest (default: 256M)")
    add("--kernel", type=Path, metavar="K", help="a bzImage")
    add("--initrd", type=Path, metavar="I", help="its initramfs")
    add("--append", metavar="S", help="what to add to the command line")
    add("--firmware", type=Path, metavar="F", help="guest firmware: not executed yet")
    add("--policy", type=policy, metavar="P", help="of a SEV guest: bits or names (default: NODBG)")
    add(
        "--secret",
        type=Path,
        metavar="FILE",
        help="what the guest finds in /secret/table: a table of secrets, or a disk's passphrase",
    )
    add(
        "--disk",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a virtio disk; may be repeated",
    )
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--profile", default="milan", help="naples, rome, milan (default) or genoa")
    machine.add_argument(
        "--state", type=Path, metavar="DIR", help="a machine of `cbit setup` (default: made anew)"
    )
    machine.add_argument(
        "--cache",
        type=size,
        default=32 * MIB,
        metavar="SIZE",
        help="plaintext that it may hold (default: 32M)",
    )
    machine.add_argument("--seed", type=int, metavar="N", help="the same bytes and blocks on every run")
    ending = parser.add_argument_group("the end, and what is left")
    ending.add_argument("--until", metavar="TEXT", help="end, well, when the console has printed it")
    ending.add_argument("--timeout", type=_seconds, metavar="S", help="end, badly, after so many seconds")
    ending.add_argument("--dump-dram", type=Path, metavar="FILE", help="write DRAM there, after a WBINVD")
    ending.add_argument("--report", type=Path, metavar="FILE", help="write an account there, as JSON")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def run(args: Namespace) -> Outcome:
    """Read, make a machine, boot, account."""
    require_machine()
    from cbit.cli.run.settings import open_disks, read_settings
    from cbit.cpu.engine.interpose import interpose
    from cbit.cpu.engine.layout import layout
    from cbit.cpu.engine.library import check_platform
    from cbit.crypto.entropy import SeededEntropy, SystemEntropy
    from cbit.hypervisor.host import Protection

    settings = read_settings(args)
    until = _until(args.until)
    check_platform()
    interpose()  # compiles what executes guests, or says in one sentence why it cannot
    layout()
    entropy = SystemEntropy() if args.seed is None else SeededEntropy(args.seed)
    with ExitStack() as stack:
        disks = open_disks(args.disk)
        for disk in disks:
            stack.callback(disk.close)
        from cbit.cli.run.place import place
        from cbit.cli.run.session import run_software

        where = stack.enter_context(
            place(
                state=args.state,
                profile_name=args.profile,
                memory=settings.dram_size,
                cache=settings.cache,
                entropy=entropy,
                certified=settings.protection is Protection.SEV,
                quiet=args.json,
            )
        )
        account = run_software(
            where,
            settings,
            entropy=entropy,
            outside=_outside(args, until),
            disks=list(disks),
            dump=args.dump_dram,
        )
    return _outcome(args, account)


def _until(text: str | None) -> bytes:
    if text == "":
        raise ValueError("--until: an empty text is there at once")
    return (text or "").encode()


def _outside(args: Namespace, until: bytes) -> Outside:
    """Connect the guest to this process's terminal and clock."""
    import time

    from cbit.cli.run.console import GuestConsole
    from cbit.cli.run.session import Outside
    from cbit.cli.run.terminal import Keyboard

    keyboard = Keyboard(_stdin())
    stream = sys.stderr if args.json else sys.stdout

    def show(data: bytes) -> None:
        stream.buffer.write(data)
        stream.flush()

    console = GuestConsole(show=show, typed=keyboard.typed, until=until, escapes=keyboard.is_terminal)
    return Outside(
        console=console,
        keyboard=keyboard,
        say=lambda line: print(f"cbit run: {line}", file=sys.stderr, flush=True),
        timeout=args.timeout,
        epoch=int(time.time()) if args.seed is None else SEEDED_EPOCH,
    )


def _stdin() -> int | None:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, it is closed, or it is no file
        return None


def _outcome(args: Namespace, account: Account) -> Outcome:
    ending, result = account.ending, account.result
    if args.report is not None:
        args.report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    ok = ending.code == 0
    if ok:
        for line in _summary(result):
            print(f"cbit run: {line}", file=sys.stderr)
    brief = {name: value for name, value in result.items() if name != "pages"}
    return Outcome(ok=ok, result=brief, reasons=() if ok else (ending.why,), exit_code=ending.code)


def _summary(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['why']}; {result['executed_blocks']} blocks in {result['seconds']} s, "
        f"{sum(result['exits'].values())} exits, {result['fills']} fills, {result['evictions']} evictions"
    ]
    if result["dump"] is not None:
        lines.append(
            f"before the dump, WBINVD wrote {result['dump']['flushed']} pages back; it is in "
            f"{result['dump']['file']}"
        )
    return lines
