"""One command being carried out: what its handler sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.guest import Guest
from cbit.secure_processor.refusal import Refused
from cbit.spec.states import GuestState
from cbit.spec.status import Status

Given = TypeVar("Given")


@dataclass(slots=True)
class Call(Generic[Given]):
    """The firmware, the host's buffer (read once), and the table's word on guest states.

    Attributes:
        raw: the buffer as it was read; the reserved bytes are only here.
        given: the buffer, parsed.
        subject: the guest whose state the table advances when the command succeeds.
    """

    firmware: Firmware
    raw: bytes
    given: Given
    guest_states: frozenset[GuestState] | None
    subject: Guest | None = None

    def guest(self, handle: int) -> Guest:
        """Find the guest the command is about, or refuse with INVALID_GUEST."""
        self.subject = self.firmware.guest(handle)
        return self.subject

    def require_state(self, guest: Guest) -> None:
        """Refuse with INVALID_GUEST_STATE unless the table allows the guest's state.

        When this is asked differs from command to command: the paper's order decides which status comes back.
        """
        if self.guest_states is not None and guest.state not in self.guest_states:
            wanted = ", ".join(state.name for state in sorted(self.guest_states))
            raise Refused(
                Status.INVALID_GUEST_STATE, f"guest {guest.handle} is {guest.state.name}, needs {wanted}"
            )
