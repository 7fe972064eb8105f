"""How a command handler says no."""

from __future__ import annotations

from cbit.spec.errors import CbitError
from cbit.spec.status import Status, name_of
from cbit.spec.wire import Wire


class Refused(CbitError):
    """The firmware refuses a command.

    The mailbox turns it into a status word; ``why`` goes to the trace, never over the wire.

    Attributes:
        status: the status word.
        why: the reason, for people.
        corrected: the buffer to write back although the command failed (length queries).
    """

    def __init__(self, status: Status, why: str, *, corrected: Wire | None = None) -> None:
        super().__init__(f"{name_of(status)}: {why}")
        self.status = status
        self.why = why
        self.corrected = corrected
