"""The argument parser of every sub-command: ``--json`` everywhere, an example in every help."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn


class UsageError(ValueError):
    """The command line does not make sense.

    Attributes:
        command: the sub-command that was being read ("owner verify").
        usage: how it is called.
        exit_code: what the process ends with.
    """

    exit_code: int = 2

    def __init__(self, message: str, *, command: str, usage: str) -> None:
        super().__init__(message)
        self.command, self.usage = command, usage


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises instead of ending the process, and whose sub-parsers do as it does.

    ``label`` of the parsed arguments names the sub-command that was reached.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)
        self.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,  # a sub-parser must not take back what its parent read
            help="print one JSON object on stdout and nothing else",
        )
        self.set_defaults(label=self.label)

    @property
    def label(self) -> str:
        """The words after ``cbit``."""
        return self.prog.removeprefix("cbit").strip()

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line."""
        raise UsageError(message, command=self.label, usage=self.format_usage())
