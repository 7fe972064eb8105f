"""What the driver reports when a command does not succeed."""

from __future__ import annotations

from cbit.spec import command as commands
from cbit.spec import status as statuses
from cbit.spec.errors import CbitError


class MailboxTimeout(CbitError):
    """The mailbox never answers: the secure processor does not run."""


class FirmwareError(CbitError):
    """The secure processor understood the command and refused it.

    A mailbox that never answers is ``MailboxTimeout``.

    Attributes:
        command: the command number.
        status: the status word.
        why: the reason from the trace; on hardware there is none.
    """

    def __init__(self, command: int, status: int, why: str = "") -> None:
        text = f"{commands.name_of(command)}: {statuses.name_of(status)}"
        super().__init__(f"{text}: {why}" if why else text)
        self.command = command
        self.status = status
        self.why = why
