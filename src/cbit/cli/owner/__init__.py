"""``cbit owner``: the guest owner's commands."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Final

from cbit.cli.envelope import Outcome
from cbit.cli.parser import Parser
from cbit.owner.errors import Untrusted
from cbit.spec.errors import BadMeasurement

HELP: Final = "The guest owner: is the platform genuine, is the launch mine, and then the secret."

#: The steps, in the order in which an owner takes them, and what each does; a module beside this one.
STEPS: Final = {
    "verify": "verify a platform's certificate chain",
    "session": "make a session for a verified platform",
    "measure": "compute what a launch must measure, check a measurement, explain a bad one",
    "secret": "seal a secret for a checked launch",
    "report": "show, verify and judge an attestation report",
    "validate": "hold a report or a launch receipt against your wishes",
    "vmsa": "build, show or compare the initial registers of a virtual CPU",
    "idblock": "make, sign or check the ID block of an SNP guest",
    "serve": "a small key broker: secrets for launches that fulfil your wishes, once each",
}


class Step(Parser):
    """The parser of one step, which loads its module when it is asked to parse."""

    loaded = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Declare the step's arguments, then parse."""
        name = self.prog.rpartition(" ")[2]
        if not self.loaded and name in STEPS:
            self.loaded = True
            module = importlib.import_module(f"{__name__}.{name}")
            self.description, self.epilog = module.DESCRIPTION, module.EXAMPLE
            module.configure(self)
            self.set_defaults(run_step=module.run)
        return super().parse_known_args(args, namespace)


def configure(parser: Parser, words: Sequence[str] = ()) -> None:
    """Declare the steps; only the one that the command line begins with, if it does."""
    parser.epilog = "example:\n  cbit owner verify ./certs --ca ask_ark.cert"
    steps: Any = parser.add_subparsers(metavar="STEP", required=True, dest="step", parser_class=Step)
    named = {word for word in words[:1] if word in STEPS}
    for name, text in STEPS.items():
        if name in named or not named:
            steps.add_parser(name, help=text)


def run(args: Namespace) -> Outcome:
    """Run one step; evidence that does not hold is an answer, not an error."""
    try:
        outcome: Outcome = args.run_step(args)
    except Untrusted as error:
        return Outcome(ok=False, reasons=error.reasons)
    except BadMeasurement as error:
        return Outcome(ok=False, reasons=(str(error),))
    return outcome
