"""``cbit attack matrix``: every attack against every mode, and every defence; the run decides each cell."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cbit.cli.envelope import Exit, Outcome
from cbit.cli.linux_options import add_linux_options

if TYPE_CHECKING:
    from cbit.attacks.lab.case import Told
    from cbit.guest.linux.files import LinuxFiles

HELP: Final = (
    "run every attack against every mode; exit code 1 if a cell differs from its prediction, 2 if one breaks"
)
EXAMPLE: Final = """examples:
  cbit attack matrix --html lab.html
  cbit attack matrix --only severed --only replay --json"""
_MARKS: Final = {
    "succeeds": "SUCCEEDS",
    "partly": "PARTLY",
    "stopped": "stopped",
    "does not apply": "-",
    "not modelled": "not modelled",
    "not run": "NOT RUN",
    "broken": "BROKEN",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report, one self-contained page")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="this row; may be repeated"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of machines and victims (default 1)"
    )
    add_campaign_arguments(parser)


def add_campaign_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what all campaigns have."""
    parser.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: one for each core)")
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="keep results there; a campaign that was killed goes on from it",
    )
    add_linux_options(
        parser.add_argument_group(
            "Linux as the victim",
            "linux-cold-boot, linux-tools and linux-registers boot a distribution's kernel, fetched with"
            " apt-get download or named here; where there is none their cells are not run, and say so",
        )
    )


def run(args: argparse.Namespace) -> Outcome:
    """Run the matrix."""
    from cbit.attacks.experiments import ALL, named
    from cbit.attacks.lab.campaign import whole_matrix
    from cbit.cli.attack.arguments import linux_for, once
    from cbit.cli.packages import NoPackage
    from cbit.cli.target import insist_apart

    insist_apart(args, "html", "journal")
    if args.html:
        _insist_on_a_place(args.html)  # before minutes are spent on what cannot be written
    once(args.only, "--only")
    rows = tuple(map(named, args.only)) or ALL
    try:
        linux = linux_for(rows, args)
    except NoPackage as absent:
        if args.only:
            raise
        linux = str(absent)  # the other rows can be run: these say why they are not
    told = run_campaign(args, whole_matrix(rows, seed=args.seed), linux)
    if args.html:
        from cbit.attacks.report.page import page

        args.html.write_text(page(rows, told), encoding="utf-8")
    unshown = {attack.name: attack.unshown for attack in rows if attack.unshown}
    reasons = tuple(_surprise(cell) for cell in told if not cell["as_expected"])
    broken = broken_ones(told)
    return Outcome(
        not reasons and not broken,
        {"cells": told, "not_shown_stopped": unshown},
        reasons=(*broken, *reasons),
        lines=lambda: _lines(told, args.html, unshown),
        exit_code=Exit.UNUSABLE if broken else None,
    )


def _insist_on_a_place(html: Path) -> None:
    """Try whether the report can be written; what is there stays as it is.

    Raises:
        OSError: it cannot.
    """
    new = not html.exists()
    html.open("ab").close()
    if new:
        html.unlink()


def run_campaign(args: argparse.Namespace, cases: list[Any], linux: LinuxFiles | str) -> list[Told]:
    """Run cases as the command line says, with progress on standard error."""
    from cbit.attacks.lab.campaign import conduct
    from cbit.attacks.lab.executors import Processes
    from cbit.cli.attack.progress import Progress

    jobs = (os.cpu_count() or 1) if args.jobs is None else args.jobs
    with Progress(quiet=args.json) as progress:
        files = None if isinstance(linux, str) else linux
        executor = Processes(jobs, linux)
        return conduct(cases, executor, journal=args.journal, linux=files, heard=progress.heard)


def broken_ones(told: list[Told]) -> tuple[str, ...]:
    """Say which cases could not be run, and why."""
    return tuple(cell["note"] for cell in told if cell["verdict"] == "broken")


def _surprise(cell: Told) -> str:
    where = f"{cell['attack']}, {cell['mode']}" + (f" with {cell['variant']}" if cell["variant"] else "")
    return f"{where}: predicted {cell['expected']}, the run says {cell['verdict']}"


def _lines(told: list[Told], html: Path | None, unshown: Mapping[str, str]) -> Iterator[str]:
    modes = list(dict.fromkeys(cell["mode"] for cell in told if not cell["variant"]))
    yield f"{'':<22}" + "".join(f"{mode:<14}" for mode in modes)
    for name in dict.fromkeys(cell["attack"] for cell in told):
        row = [cell for cell in told if cell["attack"] == name]
        plain = {cell["mode"]: cell for cell in row if not cell["variant"]}
        yield f"{name:<22}" + "".join(f"{_mark(plain[mode]):<14}" for mode in modes)
        for cell in row:
            if cell["variant"]:
                yield f"  with {cell['variant']:<15}{cell['mode']}: {_mark(cell)} - {cell['why']}"
        if unshown.get(name):
            yield f"  not shown stopped: {unshown[name]}"
    for why, names in _not_run(told).items():
        yield f"not run: {', '.join(names)}: {why}"
    if html:
        yield f"report: {html}"


def _not_run(told: list[Told]) -> dict[str, list[str]]:
    """Reasons, each with the attacks that were not run for it."""
    reasons: dict[str, list[str]] = {}
    for cell in told:
        if cell["verdict"] == "not run" and cell["attack"] not in reasons.setdefault(cell["note"], []):
            reasons[cell["note"]].append(cell["attack"])
    return reasons


def _mark(cell: Told) -> str:
    return _MARKS[cell["verdict"]] + ("" if cell["as_expected"] else " (!)")
