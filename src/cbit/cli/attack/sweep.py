"""``cbit attack sweep NAME``: one attack over ranges of its parameters, seeds and modes."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from cbit.cli.attack.matrix import add_campaign_arguments, broken_ones, run_campaign
from cbit.cli.envelope import Exit, Outcome

if TYPE_CHECKING:
    from cbit.attacks.lab.attack import Value
    from cbit.attacks.lab.case import Told

HELP: Final = "run one attack over ranges of its parameters, seeds and modes; resumable after a kill"
EXAMPLE: Final = """examples:
  cbit attack sweep cold-boot --mode none --over decay=0:0.2:0.02 --seeds 3 --journal decay.jsonl
  cbit attack sweep block-move-xex --over corpus_mib=1,2,4,8 --over constants=zen1,fresh
  cbit attack sweep crossline-tlb --variant deactivated --variant flushed --variant none"""
_MOST: Final = 100_000  # cases
_NO_VARIANT: Final = "none"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="the attack")
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="FIRST:LAST:STEP, or numbers or words with commas; may be repeated",
    )
    parser.add_argument(
        "--mode", action="append", default=[], metavar="MODE", help="may be repeated (default: sev)"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="V",
        help="with this defence switched on, or none; may be repeated (default: none)",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds 1 to N for each point (default 1)"
    )
    add_campaign_arguments(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Run all points; parameters are meant to change verdicts, so no prediction is asked."""
    from cbit.attacks.experiments import named
    from cbit.attacks.lab.case import Case
    from cbit.attacks.lab.outcome import Mode
    from cbit.cli.attack.arguments import linux_for, mode_named, once

    attack = named(args.name)
    once([word.partition("=")[0] for word in args.over], "--over")
    once(args.mode, "--mode")
    once(args.variant, "--variant")
    axes = dict(_axis(word) for word in args.over)
    variants = ["" if variant == _NO_VARIANT else variant for variant in args.variant] or [""]
    modes = [mode_named(mode) for mode in args.mode]
    rows = [
        (mode, variant)
        for variant in variants
        for mode in modes or [attack.defended if variant else Mode.SEV]
    ]
    points = list(itertools.product(*axes.values()))
    if not 0 < len(points) * len(rows) * args.seeds <= _MOST:
        raise ValueError(f"{len(points) * len(rows) * args.seeds} cases: from 1 to {_MOST}")
    cases = [
        Case(attack.name, mode, variant, seed, dict(zip(axes, point, strict=True)))
        for mode, variant in rows
        for point in points
        for seed in range(1, args.seeds + 1)
    ]
    for case in cases:
        attack.check(case.mode, case.variant, case.parameters)
    told = run_campaign(args, cases, linux_for([attack], args))
    broken = broken_ones(told)
    return Outcome(
        not broken,
        {"cases": told},
        reasons=broken,
        lines=lambda: _lines(told, list(axes)),
        exit_code=Exit.UNUSABLE if broken else None,
    )


def _axis(word: str) -> tuple[str, list[Value]]:
    from cbit.attacks.lab.attack import BadCase
    from cbit.cli.attack.arguments import number, once, value

    name, equals, values = word.partition("=")
    if not equals or not name or not values:
        raise BadCase(f"{word!r}: write NAME=FIRST:LAST:STEP or NAME=VALUE,VALUE")
    if ":" not in values:
        listed = [value(word) for word in values.split(",")]
        once(listed, name)
        return name, listed
    parts = [number(part) for part in values.split(":")]
    if len(parts) != 3 or parts[2] <= 0 or parts[1] < parts[0]:
        raise BadCase(
            f"{word!r}: FIRST:LAST:STEP, with a step above 0 and a last that is not below the first"
        )
    first, last, step = parts
    count = int((last - first) / step + 1e-9) + 1
    if count > _MOST:
        raise BadCase(f"{word!r}: {count} values, {_MOST} at most")
    return name, [round(first + step * index, 12) for index in range(count)]


def _lines(told: list[Told], axes: list[str]) -> Iterator[str]:
    yield (
        "".join(f"{axis:<14}" for axis in axes) + f"{'mode':<9}{'with':<13}{'seed':<6}{'secrets':<10}verdict"
    )
    for case in told:
        parameters: dict[str, Any] = case["parameters"]
        point = "".join(f"{parameters.get(axis, ''):<14}" for axis in axes)
        share = f"{case['found']}/{case['planted']}"
        yield f"{point}{case['mode']:<9}{case['variant']:<13}{case['seed']:<6}{share:<10}{case['verdict']}"
        for figure in case["figures"]:
            yield f"    #  {figure['name']}: {figure['ours']:g} {figure['unit']}".rstrip()
        if case["note"]:
            yield f"    {case['note']}"
