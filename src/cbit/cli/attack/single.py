"""``cbit attack run NAME``: one attack against one mode, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cbit.cli.envelope import Exit, Outcome
from cbit.cli.linux_options import add_linux_options

if TYPE_CHECKING:
    from cbit.attacks.lab.attack import Attack
    from cbit.attacks.lab.run import Result

HELP: Final = "run one attack, step by step"
EXAMPLE: Final = """examples:
  cbit attack run severed
  cbit attack run cold-boot --mode none --set decay=0.05
  cbit attack run debug-policy --variant nodbg --json"""
_SHOWN: Final = 32


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="the attack; `cbit attack list` names them")
    parser.add_argument("--mode", metavar="MODE", help="none, sme, sev, sev-es or sev-snp (default: sev)")
    parser.add_argument("--variant", default="", metavar="V", help="with this defence switched on")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of machine and victim (default 1)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated"
    )
    add_linux_options(parser.add_argument_group("a Linux as the victim"))


def run(args: argparse.Namespace) -> Outcome:
    """Run one cell; exit code 1 if it does not come out as the rules say, 2 if there was nothing to run."""
    from cbit.attacks.experiments import named
    from cbit.attacks.lab.outcome import Mode, Verdict
    from cbit.attacks.lab.run import run as run_case
    from cbit.attacks.lab.stand import Workshop
    from cbit.cli.attack.arguments import linux_for, mode_named, parameters
    from cbit.cli.progress import progress

    attack = named(args.name)
    mode = mode_named(args.mode) if args.mode else (attack.defended if args.variant else Mode.SEV)
    settings = parameters(args.set)
    attack.check(mode, args.variant, settings)  # before anything is fetched
    doing = f"{attack.name} against {mode}"
    with progress(doing, quiet=args.json), Workshop(linux_for([attack], args)) as workshop:
        result = run_case(
            attack, workshop, mode=mode, variant=args.variant, seed=args.seed, parameters=settings
        )
    if result.verdict in (Verdict.NOT_MODELLED, Verdict.NOT_APPLICABLE):
        why = f"{attack.name}, {mode}: {result.verdict} ({result.note})"
        return Outcome(False, result.as_json(), reasons=(why,), exit_code=Exit.UNUSABLE)
    reasons = () if result.as_expected else (surprise(result),)
    return Outcome(
        result.as_expected, result.as_json(), reasons=reasons, lines=lambda: _lines(attack, result)
    )


def surprise(result: Result) -> str:
    """Say how a cell differs from what was predicted."""
    cell = f"{result.attack}, {result.mode}" + (f" with {result.variant}" if result.variant else "")
    return f"{cell}: predicted {result.expected.verdict}, the run says {result.verdict}"


def _lines(attack: Attack, result: Result) -> Iterator[str]:
    from cbit.attacks.lab.log import NO_FIGURE

    yield f"{attack.title}  [{attack.paper}]"
    yield ""
    yield from (f"  {line}" for line in attack.idea.splitlines())
    yield ""
    for number, step in enumerate(result.steps, 1):
        yield f"{number:>3}. {step.text}"
        for at in range(0, len(step.data), _SHOWN):
            yield f"       {step.data[at : at + _SHOWN].hex(' ', 8)}"
    for figure in result.figures:
        beside = "" if figure.published == NO_FIGURE else f"   published: {figure.published}"
        yield f"  #  {figure.name}: {figure.ours:g} {figure.unit}{beside}".rstrip()
    yield ""
    with_variant = f" with {result.variant}" if result.variant else ""
    yield f"{result.mode}{with_variant}: {result.verdict}" + (
        f" ({result.found} of {result.planted} secrets)" if result.planted else ""
    )
    if result.note:
        yield f"  {result.note}"
    if result.expected.why:
        yield f"  because: {result.expected.why}"
