"""``cbit attack``: the lab of published attacks."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, Final

from cbit.cli.envelope import Outcome

HELP: Final = "the lab: published attacks, each with explicit powers, and what stops them"
#: What one can ask of the lab; each is a module beside this one.
VERBS: Final = ("list", "run", "matrix", "sweep")
_MODULES: Final = {"list": "listing", "run": "single", "matrix": "matrix", "sweep": "sweep"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs."""
    parser.epilog = "examples:\n  cbit attack list\n  cbit attack run severed\n  cbit attack matrix"
    verbs: Any = parser.add_subparsers(metavar="VERB", required=True, dest="verb")
    for name in VERBS:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
        verb = verbs.add_parser(name, help=module.HELP, description=module.HELP, epilog=module.EXAMPLE)
        module.configure(verb)
        verb.set_defaults(run_verb=module.run)


def run(args: argparse.Namespace) -> Outcome:
    """Run one verb."""
    from cbit.cli.capabilities import require_machine

    require_machine()
    outcome: Outcome = args.run_verb(args)
    return outcome
