"""Guests that leave and come back, as sev-api.md §8–§10 describe it: migration, save areas, swapping.

Written from the paper; shares no table with the firmware.  Both ends of a journey are this platform.
"""

# ruff: noqa: PLR0911 (one return a check, in the paper's order)

from __future__ import annotations

from dataclasses import dataclass, field

from secure_processor.model import RUNNING, RUPDATE, SENT, SUPDATE, Context, Launching
from secure_processor.model_platform import (
    ADDRESS,
    GUEST_STATE,
    INACTIVE,
    LENGTH,
    MEASUREMENT,
    NO_GUEST,
    OK,
    PARAM,
    PLATFORM,
    POLICY,
    UNSUPPORTED,
    WORKING,
)

PAGE = 4096
VMSA = 2 << 1  # PAGE_TYPE of a save area


@dataclass(frozen=True)
class Session:
    """What a receiver needs to begin: made for one PDH and one policy."""

    journey: int
    policy: int
    pdh: int


@dataclass
class Model(Launching):
    """All of it; each method returns the status."""

    journeys: int = 0
    #: What lies in the host's slots: whose page, of which type.
    swapped: dict[int, tuple[Context, int]] = field(default_factory=dict)

    # ---- migration, of which both ends are this platform

    def send_start(self, handle: int, *, session_len: int) -> tuple[int, Session | None]:
        if self.state != WORKING:
            return PLATFORM, None
        if handle not in self.guests:
            return NO_GUEST, None
        if session_len != 0x80:
            return LENGTH, None
        guest = self.guests[handle]
        if guest.state != RUNNING:
            return GUEST_STATE, None
        if guest.policy & 8:
            return POLICY, None
        self.journeys += 1
        guest.state, guest.journey = SUPDATE, self.journeys
        return OK, Session(self.journeys, guest.policy, self.keys[1])

    def send_update(self, handle: int, *, paddr: int, length: int, hdr_len: int, vmsa: bool) -> int:
        if self.state != WORKING:
            return PLATFORM
        if hdr_len < 0x34:
            return LENGTH
        status = self._update(handle, SUPDATE, paddr=paddr, length=length, vmsa=vmsa)
        if status == OK and vmsa and self.areas.get(paddr) is not self.guests[handle]:
            return PARAM
        return status

    def send_end(self, handle: int, *, cancel: bool) -> int:
        return self._end(handle, SUPDATE, RUNNING if cancel else SENT)

    def receive_start(self, session: Session, *, policy: int, share: int) -> tuple[int, int]:
        if not self.up:
            return PLATFORM, 0
        if (session.policy, session.pdh) != (policy, self.keys[1]):
            return MEASUREMENT, 0
        return self._new(policy, share, Context(policy, state=RUPDATE, journey=session.journey))

    def receive_update(self, handle: int, *, paddr: int, length: int, journey: int, vmsa: bool) -> int:
        status = self._update(handle, RUPDATE, paddr=paddr, length=length, vmsa=vmsa)
        if status == OK and self.guests[handle].journey != journey:
            return MEASUREMENT
        if status == OK:
            self.overwrite(paddr, length)
            if vmsa:
                self.areas[paddr] = self.guests[handle]
        return status

    def receive_finish(self, handle: int) -> int:
        status = self._end(handle, RUPDATE, RUNNING)
        if status == OK and self.guests[handle].asid:
            self.running.add(self.guests[handle].asid)
        return status

    def _update(self, handle: int, state: int, *, paddr: int, length: int, vmsa: bool) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if self.guests[handle].state != state:
            return GUEST_STATE
        if vmsa and not self.guests[handle].policy & 4:
            return UNSUPPORTED
        if not self.guests[handle].asid:
            return INACTIVE
        if length == 0 or length % 16 or (vmsa and length != PAGE):
            return LENGTH
        return ADDRESS if paddr % 16 else OK

    def _end(self, handle: int, state: int, then: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if self.guests[handle].state != state:
            return GUEST_STATE
        self.guests[handle].state = then
        return OK

    # ---- swapping

    def swap_out(self, handle: int, *, src: int, slot: int, page: int) -> int:
        if (status := self._swap(handle, src)) != OK:
            return status
        guest = self.guests[handle]
        if page != (VMSA if self.areas.get(src) is guest else 0):
            return PARAM
        self.swapped[slot] = (guest, page)
        return OK

    def swap_in(self, handle: int, *, slot: int, dst: int, page: int) -> int:
        if (status := self._swap(handle, dst)) != OK:
            return status
        guest = self.guests[handle]
        whose, kind = self.swapped.get(slot, (None, 0))  # a slot that nobody used is zeros
        if page != kind:
            return PARAM
        if whose is not guest:
            return MEASUREMENT
        self.overwrite(dst, PAGE)
        if page == VMSA:
            self.areas[dst] = guest
        return OK

    def _swap(self, handle: int, inside: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if inside % PAGE:
            return ADDRESS
        if handle not in self.guests:
            return NO_GUEST
        return OK if self.guests[handle].asid else INACTIVE
