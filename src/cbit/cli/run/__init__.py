"""``cbit run``: boot a guest; your terminal is its console."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from cbit.cli import standard_streams
from cbit.cli.capabilities import require_machine
from cbit.cli.durations import seconds
from cbit.cli.envelope import Exit, Outcome
from cbit.cli.owner.arguments import policy
from cbit.cli.parser import Parser
from cbit.cli.sizes import in_words, size
from cbit.memory.lending import LEAST_CACHE
from cbit.spec.address import PAGE
from cbit.spec.errors import NotModelled

if TYPE_CHECKING:
    from cbit.cli.run.ending import Ending
    from cbit.cli.run.session import Account, Outside
    from cbit.cli.target import Target

HELP: Final = "boot a Linux kernel as a guest; your terminal is its console"
EXAMPLE: Final = """examples:
  cbit run --mode sev --kernel vmlinuz --initrd initrd.img
  cbit run --mode sev --kernel K --initrd I --secret passphrase --disk disk.img
  cbit run --kernel K --initrd I --until '/ #' --timeout 60 --dump-dram dram.bin --report run.json
  cbit run --mode sev --kernel K --initrd I --guest alice --guest bob,key=alice --guest carol,mode=none

On a terminal every key is the guest's, Ctrl-C too: Ctrl-A x ends the run, Ctrl-A Ctrl-A types one Ctrl-A.
What comes through a pipe is typed once the guest listens.  The guest's console alone is on standard output.

several guests: --guest for each, in turn on one core; each line of a console begins with its guest's name.
The words of a --guest are options of its own (mode, memory, kernel, initrd, append, policy, secret, disk),
and key=NAME: the memory key of an encrypted guest named before it; a comma in a value is written twice.
On a terminal Ctrl-A n hands the keys to the next guest; what comes through a pipe is typed at all of them.

exit codes: 0 the text of --until came, or the guest powered itself off or reset; 1 time-out, panic, triple
fault, or it cannot go on; 2 unusable input, not modelled, or no room for what it prints; 130 ended by a
signal or by Ctrl-A x.
Of several guests, the worst of theirs."""
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
    add(
        "--guest",
        action="append",
        default=[],
        metavar="NAME[,WORD=VALUE]…",
        help="one of several guests, with what it has of its own; repeated",
    )
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--profile", help="naples, rome, milan (default) or genoa; with --state, its own")
    machine.add_argument(
        "--state", type=Path, metavar="DIR", help="a machine of `cbit setup` (default: made anew)"
    )
    machine.add_argument(
        "--cache",
        type=size,
        default=32 * MIB,
        metavar="SIZE",
        help="plaintext that it may hold (default: 32M; at least 256K)",
    )
    machine.add_argument("--seed", type=int, metavar="N", help="the same bytes and blocks on every run")
    ending = parser.add_argument_group("the end, and what is left")
    ending.add_argument("--until", metavar="TEXT", help="end, well, when the console has printed it")
    ending.add_argument("--timeout", type=_seconds, metavar="S", help="end, badly, after so many seconds")
    ending.add_argument("--dump-dram", type=Path, metavar="FILE", help="write DRAM there, after a WBINVD")
    ending.add_argument("--report", type=Path, metavar="FILE", help="write an account there, as JSON")


def _seconds(text: str) -> float:
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds to run")
    return value


def run(args: Namespace) -> Outcome:
    """Read, make a machine, boot, account."""
    require_machine()
    _refuse(args)
    try:
        return _run(args)
    except OSError as error:
        if error.errno != errno.ENOMEM or error.filename is not None:
            raise
        sizes = f"--memory {in_words(args.memory)}, --cache {in_words(args.cache)}"
        raise ValueError(f"{sizes}: this computer has no room for such a machine") from None


def _run(args: Namespace) -> Outcome:
    from cbit.cli.run.guests import guests
    from cbit.cli.run.settings import read_all
    from cbit.cli.target import Target, insist_apart
    from cbit.cpu.engine.interpose import interpose
    from cbit.cpu.engine.layout import layout
    from cbit.cpu.engine.library import check_platform
    from cbit.crypto.entropy import SeededEntropy, SystemEntropy
    from cbit.hypervisor.devices.disk import FileDisk
    from cbit.hypervisor.host import Protection

    wanted = guests(args)
    for each in wanted:
        insist_apart(each, "dump_dram", "report")
    settings = read_all(wanted)
    until = _until(args.until)
    check_platform()
    interpose()  # compiles what executes guests, or says in one sentence why it cannot
    layout()
    entropy = SystemEntropy() if args.seed is None else SeededEntropy(args.seed)
    with ExitStack() as stack:
        report = args.report and stack.enter_context(Target(args.report, option="--report"))
        disks = [[stack.enter_context(closing(FileDisk(path))) for path in each.disks] for each in settings]
        from cbit.cli.run.place import place
        from cbit.cli.run.session import run_software

        where = stack.enter_context(
            place(
                state=args.state,
                profile_name=args.profile,
                memory=sum(each.dram_size for each in settings),
                cache=args.cache,
                entropy=entropy,
                certified=any(each.protection is Protection.SEV for each in settings),
                quiet=args.json,
            )
        )
        outside, close = _outside(args, until, [each.name for each in settings])
        stack.callback(close)
        account = run_software(
            where, settings, entropy=entropy, outside=outside, disks=disks, dump=args.dump_dram
        )
        unwritten = _write_report(report, account)
    return _outcome(account, unwritten)


def _write_report(report: Target | None, account: Account) -> tuple[str, ...]:
    """Write the account where it is wanted; say why it could not be."""
    try:
        if report is not None:
            report.write((json.dumps(account.result, indent=1) + "\n").encode())
    except OSError as error:
        return (f"--report {error.filename}: {error.strerror}",)
    return ()


def _refuse(args: Namespace) -> None:
    if args.firmware is not None:
        raise NotModelled(
            "--firmware: guest firmware is not executed yet; give --kernel, which is booted directly"
        )
    if args.cache < LEAST_CACHE or args.cache % PAGE:
        least = f"{in_words(LEAST_CACHE)} at least, for one instruction may need so many at once"
        raise ValueError(f"--cache {in_words(args.cache)}: whole pages of {PAGE} bytes, and {least}")
    for name in ("report", "dump_dram"):
        path: Path | None = getattr(args, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"--{name.replace('_', '-')} {path}: there is no such folder")
    dump: Path | None = args.dump_dram
    if dump is not None and dump.exists() and not dump.is_file():
        raise ValueError(f"--dump-dram {dump}: is there already, and is no regular file")
    if dump is not None and not os.access(dump.absolute().parent, os.W_OK):
        raise ValueError(f"--dump-dram {dump}: nothing can be written into this folder")


def _until(text: str | None) -> bytes:
    if text == "":
        raise ValueError("--until: an empty text is there at once")
    return (text or "").encode()


def _outside(args: Namespace, until: bytes, names: list[str]) -> tuple[Outside, Callable[[], None]]:
    """Connect the guests to this process's terminal and clock; the function ends what is on the screen."""
    import time

    from cbit.cli.run.console import GuestConsole
    from cbit.cli.run.keys import Keys
    from cbit.cli.run.screen import Screen
    from cbit.cli.run.session import Outside
    from cbit.cli.run.terminal import Keyboard

    keyboard = Keyboard(_stdin())
    keys = Keys(keyboard, guests=len(names))
    stream = sys.stderr if args.json else sys.stdout

    def show(data: bytes) -> None:
        try:
            stream.buffer.write(data)
            stream.flush()
        except OSError:
            standard_streams.give_up(stream.fileno())  # Python would try what is left once more
            raise

    screen = Screen(show, names, typing=lambda: keys.focus if keyboard.is_terminal else None)
    consoles = [
        GuestConsole(show=screen.of(number) if len(names) > 1 else show, typed=keys.of(number), until=until)
        for number in range(len(names))
    ]

    def close() -> None:
        screen.close()
        printed = consoles[0].transcript
        if len(names) == 1 and printed and not printed.endswith(b"\n") and _same_file(stream, sys.stderr):
            _tell("")  # what cbit says begins a line of its own

    outside = Outside(
        consoles=consoles,
        keyboard=keyboard,
        keys=keys,
        say=lambda line: _tell(f"cbit run: {line}"),
        timeout=args.timeout,
        epoch=int(time.time()) if args.seed is None else SEEDED_EPOCH,
    )
    return outside, close


def _tell(line: str) -> None:
    """Print on standard error; that its terminal has gone away changes nothing of a run."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        standard_streams.give_up(sys.stderr.fileno())


def _same_file(one: TextIO, other: TextIO) -> bool:
    """Say whether two streams end on one terminal, in one pipe or in one file."""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, ValueError):  # one of them is closed, or no file
        return False


def _stdin() -> int | None:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, it is closed, or it is no file
        return None


def _outcome(account: Account, unwritten: tuple[str, ...]) -> Outcome:
    """Say how it ended, and what of it could not be written."""
    endings, result = account.endings, account.result
    if result["dump"] is not None and result["dump"]["error"]:
        unwritten = (f"--dump-dram {result['dump']['error']}", *unwritten)
    code = max((ending.code for ending in endings.values()), default=0)
    for line in _summary(result, endings):
        _tell(f"cbit run: {line}")
    reasons = tuple(
        f"{name}: {ending.why}" if name else ending.why for name, ending in endings.items() if ending.code
    )
    if unwritten:
        code, reasons = max(code, int(Exit.UNUSABLE)), (*reasons, *unwritten)
    brief = _without_pages(result)
    if "guests" in result:
        brief["guests"] = [_without_pages(guest) for guest in result["guests"]]
    return Outcome(ok=code == 0, result=brief, reasons=reasons, exit_code=code)


def _without_pages(account: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in account.items() if name != "pages"}


def _summary(result: dict[str, Any], endings: dict[str, Ending]) -> Iterator[str]:
    """Say what ended well, and what it took."""
    guests = result.get("guests", [])
    for guest in guests:
        if not endings[guest["name"]].code:
            yield f"{guest['name']}: {guest['why']}; {_used(guest)}"
    if guests:
        yield f"all of it: {result['executed_blocks']} blocks in {result['seconds']} s"
    elif not endings[""].code:
        yield f"{result['why']}; {_used(result)}, in {result['seconds']} s"
    if result["dump"] is not None and not result["dump"]["error"]:
        yield (
            f"before the dump, WBINVD wrote {result['dump']['flushed']} pages back; it is in "
            f"{result['dump']['file']}"
        )


def _used(guest: dict[str, Any]) -> str:
    return (
        f"{guest['executed_blocks']} blocks, {sum(guest['exits'].values())} exits, "
        f"{guest['fills']} fills, {guest['evictions']} evictions"
    )
