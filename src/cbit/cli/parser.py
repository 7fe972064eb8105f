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

    _shown = False

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

    def format_help(self) -> str:
        """Write the help, as wide as the terminal."""
        self._shown = True
        return super().format_help()

    def format_usage(self) -> str:
        """Write the usage, likewise."""
        self._shown = True
        return super().format_usage()

    def _get_formatter(self) -> argparse.HelpFormatter:
        # One is made for every argument, to look at its metavar: asking for the terminal's width each time
        # would load half of the standard library.
        if self._shown:
            return super()._get_formatter()
        return argparse.HelpFormatter(prog=self.prog, width=80)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what is not known is said here, with the usage of the sub-command that was reached."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line."""
        raise UsageError(message, command=self.label, usage=self.format_usage())
