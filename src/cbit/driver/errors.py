"""What the driver reports when a command does not succeed: to the program an errno, to the trace why."""

from __future__ import annotations

import errno
from typing import Final

from cbit.spec import command as commands
from cbit.spec import status as statuses
from cbit.spec.errors import CbitError
from cbit.trace import Trace

PART: Final = "driver"  #: of the trace


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


def refused(trace: Trace, name: str, failure: FirmwareError | MailboxTimeout | OSError) -> OSError:
    """Tell the trace why a request is refused, and return what the program gets (sev-api.md §12).

    Args:
        trace: the machine's.
        name: the request, as its own interface calls it.
        failure: EIO for a refusal of the firmware, ETIMEDOUT for its silence; else its own errno.
    """
    if isinstance(failure, FirmwareError):
        said = name.rsplit(maxsplit=1)[-1]  # the firmware's name for it may be another
        failure = OSError(errno.EIO, str(failure).removeprefix(f"{said}: "))
    elif isinstance(failure, MailboxTimeout):
        failure = OSError(errno.ETIMEDOUT, str(failure))
    number = failure.errno or 0
    symbol = errno.errorcode.get(number, str(number))
    trace.emit(PART, name, failure.strerror or symbol, errno=symbol)
    return failure
