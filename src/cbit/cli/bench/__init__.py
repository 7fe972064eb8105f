"""``cbit bench``: figures against the physical limit or a peer, side by side in one run."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from cbit.cli.envelope import Outcome

if TYPE_CHECKING:
    from cbit.cli.bench.figure import Figure, Skipped

#: Group to the module and function that measure it; `owner` needs nothing of the machine.
GROUPS: Final = {
    "aes-bulk": ("aes", "bulk"),
    "aes-page": ("aes", "page"),
    "launch": ("launch", "figures"),
    "memory": ("memory", "figures"),
    "guest": ("guest", "figures"),
    "owner": ("owner", "figures"),
}
EXECUTING = ("guest",)  #: groups that need a computer on which guests execute
HELP = "figures against their limit, side by side in one run"
EXAMPLE = """examples:
  cbit bench
  cbit bench aes-page launch --rounds 15 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"groups to run: {', '.join(GROUPS)} (default: all)",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="pairs of runs behind each median (default 7)"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Run the groups and collect their figures."""
    from cbit.cli.bench.figure import Figure
    from cbit.cli.progress import progress

    names = list(args.names or GROUPS)
    if unknown := [name for name in names if name not in GROUPS]:
        raise ValueError(f"no such figure: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if args.rounds < 1:
        raise ValueError("--rounds is at least 1")
    left_out: dict[str, str] = {}
    if set(names) != {"owner"}:
        left_out = _what_the_machine_leaves_out(asked=bool(args.names))
    figures: list[Figure] = []
    for name in names:
        if name in left_out:
            continue
        with progress(f"measuring {name}", quiet=args.json):
            for found in _measured(name, args.rounds):
                if isinstance(found, Figure):
                    figures.append(found)
                else:
                    left_out[f"{found.group}, {found.name}"] = found.why
    result: dict[str, Any] = {
        "rounds": args.rounds,
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
        "left_out": left_out,
    }
    return Outcome(True, result, lines=lambda: _table(figures, left_out))


def _what_the_machine_leaves_out(*, asked: bool) -> dict[str, str]:
    from cbit.cli.capabilities import require_machine
    from cbit.cli.demo.execution import why_not_executing

    require_machine()
    why_not = "" if asked else why_not_executing()
    return dict.fromkeys(EXECUTING, why_not) if why_not else {}


def _measured(name: str, rounds: int) -> list[Figure | Skipped]:
    module, function = GROUPS[name]
    measure = getattr(importlib.import_module(f"cbit.cli.bench.{module}"), function)
    found: list[Figure | Skipped] = measure(rounds)
    return found


def _table(figures: list[Figure], left_out: dict[str, str]) -> Iterator[str]:
    yield f"{'figure':<28} {'ours':>12} {'limit':>12} {'ratio':>7}  reach"
    for figure in figures:
        mark = "" if figure.reached is None else ("reached" if figure.reached else "MISSED")
        yield (
            f"{figure.name:<28} {figure.ours:>9.4g} {figure.unit:<3}{figure.limit:>9.4g} {figure.unit:<3}"
            f"{figure.ratio:>6.2f}  {figure.reach or 'reported':<8} {mark}"
        )
    yield "limits:"
    yield from dict.fromkeys(f"  {figure.group}: {figure.against}" for figure in figures)
    yield from (f"left out: {name}: {why}" for name, why in left_out.items())
