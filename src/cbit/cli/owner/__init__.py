"""``cbit owner``: the guest owner's commands."""

from __future__ import annotations

import importlib
from argparse import Namespace
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.parser import Parser
from cbit.owner.errors import Untrusted
from cbit.spec.errors import BadMeasurement

HELP: Final = "The guest owner: is the platform genuine, is the launch mine, and then the secret."

#: The steps, in the order in which an owner takes them; each is a module beside this one.
STEPS: Final = ("verify", "session", "measure", "secret", "report", "validate", "vmsa", "idblock", "serve")


def configure(parser: Parser) -> None:
    """Declare the steps."""
    parser.epilog = "example:\n  cbit owner verify ./certs --ca ask_ark.cert"
    steps: Any = parser.add_subparsers(metavar="STEP", required=True, dest="step")
    for name in STEPS:
        module = importlib.import_module(f"{__name__}.{name}")
        step = steps.add_parser(name, help=module.HELP, description=module.DESCRIPTION, epilog=module.EXAMPLE)
        module.configure(step)
        step.set_defaults(run_step=module.run)


def run(args: Namespace) -> Outcome:
    """Run one step; evidence that does not hold is an answer, not an error."""
    try:
        outcome: Outcome = args.run_step(args)
    except Untrusted as error:
        return Outcome(ok=False, reasons=error.reasons)
    except BadMeasurement as error:
        return Outcome(ok=False, reasons=(str(error),))
    return outcome
