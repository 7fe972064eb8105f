"""``cbit bench``: figures against the physical limit or a peer, side by side in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cbit.cli.envelope import Outcome

if TYPE_CHECKING:
    from cbit.cli.bench.figure import Figure, Skipped

EXECUTING = ("guest", "linux")  #: groups that need a computer on which guests execute
HELP = "figures against their limit, side by side in one run"
EXAMPLE = """examples:
  cbit bench
  cbit bench aes-page launch --rounds 15 --json
  cbit bench linux --rounds 3"""


#: Take minutes: one compiles a client and starts launchers, one fetches a kernel and boots it.
ON_REQUEST = frozenset({"redirect", "linux"})


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="groups to run: aes-bulk, aes-page, launch, memory, guest, owner, redirect, linux "
        "(default: all but the last two)",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="pairs of runs behind each median (default 7)"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Run the groups and collect their figures."""
    from cbit.cli.bench.figure import Figure
    from cbit.cli.capabilities import require_machine
    from cbit.cli.demo.execution import why_not_executing
    from cbit.cli.progress import progress

    require_machine()
    groups = _groups()
    if unknown := [name for name in args.names if name not in groups]:
        raise ValueError(f"no such figure: {', '.join(unknown)}; there are {', '.join(groups)}")
    if args.rounds < 1:
        raise ValueError("--rounds is at least 1")
    figures: list[Figure] = []
    left_out: dict[str, str] = {}
    why_not = why_not_executing() if not args.names else ""
    for name in args.names or [name for name in groups if name not in ON_REQUEST]:
        if name in EXECUTING and why_not:
            continue
        with progress(f"measuring {name}", quiet=args.json):
            for found in groups[name](args.rounds):
                if isinstance(found, Figure):
                    figures.append(found)
                else:
                    left_out[f"{found.group}, {found.name}"] = found.why
    result: dict[str, Any] = {
        "rounds": args.rounds,
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
        "left_out": left_out | (dict.fromkeys(EXECUTING, why_not) if why_not else {}),
    }
    return Outcome(True, result, lines=lambda: _table(figures, result["left_out"]))


def _groups() -> dict[str, Callable[[int], Sequence[Figure | Skipped]]]:
    from cbit.cli.bench import aes, guest, launch, linux, memory, owner, redirect

    return {
        "aes-bulk": aes.bulk,
        "aes-page": aes.page,
        "launch": launch.figures,
        "memory": memory.figures,
        "guest": guest.figures,
        "redirect": redirect.figures,
        "owner": owner.figures,
        "linux": linux.figures,
    }


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
