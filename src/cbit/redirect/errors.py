"""What can keep a program from being run against the machine."""

from __future__ import annotations

from cbit.spec.errors import CbitError


class RedirectError(CbitError):
    """The program was not started, or lost its devices; its own failures are its exit code.

    Attributes:
        exit_code: what a command line ends with.
    """

    exit_code = 125


class Unsupported(RedirectError):
    """This computer or its kernel lacks what redirection needs, whatever the program."""


class NamespaceRefused(RedirectError):
    """A private mount namespace cannot be made here; answering opens does not need one."""


class NotStarted(RedirectError):
    """The program itself cannot be executed: it is missing, or no program.

    Attributes:
        exit_code: 127 if it is not found and 126 if it cannot be executed, as shells have it.
    """

    def __init__(self, text: str, *, found: bool) -> None:
        super().__init__(text)
        self.exit_code = 126 if found else 127
