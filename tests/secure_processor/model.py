"""Guests and their ASIDs as sev-api.md §4, §6, §7 and §10 describe them, and nothing else.

Written from the paper; shares no table with the firmware.  Statuses are the paper's numbers.
"""

# ruff: noqa: PLR0911 (one return a check, in the paper's order)

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from secure_processor.model_platform import (
    ACTIVE,
    ADDRESS,
    ASID,
    COMMAND,
    COMPLEXES,
    CONFIG,
    DFFLUSH,
    FIRST_PLAIN,
    GUEST_STATE,
    INACTIVE,
    INIT,
    LAST,
    LENGTH,
    MEASUREMENT,
    NO_GUEST,
    OK,
    OWNED,
    PARAM,
    PLATFORM,
    POLICY,
    UNINIT,
    UNSUPPORTED,
    WORKING,
    Platform,
)

LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT = 1, 2, 3, 4, 5, 6
TIK = bytes(16)  # a launch without an owner


@dataclass(eq=False)
class Context:
    policy: int
    vek: int = 0  # which memory key; guests may share one
    state: int = LUPDATE
    asid: int = 0
    where: set[int] = field(default_factory=set)  # the complexes that have its key
    data: bytes = b""  # what was measured so far
    measure: bytes = b""
    journey: int = 0  # of its transport keys, while it migrates


@dataclass
class Launching(Platform):
    """A platform and its guests, but for their journeys."""

    guests: dict[int, Context] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)  # ASIDs in use
    #: Where in memory a save area is that still has its checksum: which guest's.
    areas: dict[int, Context] = field(default_factory=dict)

    @property
    def state(self) -> int:
        if not self.up:
            return UNINIT
        return WORKING if self.guests else INIT

    def pek_gen(self) -> int:
        return self.renew(identity=True, state=self.state)

    def pdh_gen(self) -> int:
        return self.renew(identity=False, state=self.state)

    def shutdown(self) -> int:
        self.guests, self.running = {}, set()
        return super().shutdown()

    def overwrite(self, paddr: int, length: int) -> None:
        """Somebody writes to memory: no save area is what it was there."""
        self.areas = {
            at: guest for at, guest in self.areas.items() if at + 4096 <= paddr or paddr + length <= at
        }

    # ---- guests

    def activate(self, handle: int, asid: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        guest = self.guests[handle]
        if not 1 <= asid <= LAST:
            return ASID
        if any(other.asid == asid for other in self.guests.values()):
            return OWNED
        if guest.asid:
            return ACTIVE
        if guest.state == SENT:
            return GUEST_STATE
        if any((asid, ccx) in self.dirty for ccx in range(COMPLEXES)):
            return DFFLUSH
        if bool(guest.policy & 4) != (asid < FIRST_PLAIN):
            return ASID
        guest.asid, guest.where = asid, set(range(COMPLEXES))
        if guest.state in (RUNNING, SUPDATE):
            self.running.add(asid)
        return OK

    def activate_ex(self, handle: int, asid: int, *, cores: list[int], length: int) -> int:  # noqa: PLR0912  # a check each
        """A core is a complex of its own, and its APIC id is its number."""
        if self.state != WORKING:
            return PLATFORM
        if length != 0x18:
            return PARAM
        if handle not in self.guests:
            return NO_GUEST
        if not 1 <= asid <= LAST:
            return ASID
        if not cores:
            return PARAM
        if max(cores) >= COMPLEXES:
            return CONFIG
        guest = self.guests[handle]
        if guest.asid != asid:
            if any(other.asid == asid for other in self.guests.values()):
                return OWNED
            if guest.asid:
                return ACTIVE
        if guest.state == SENT:
            return GUEST_STATE
        if any((asid, ccx) in self.dirty for ccx in cores):
            return DFFLUSH
        if bool(guest.policy & 4) != (asid < FIRST_PLAIN):
            return ASID
        guest.asid, guest.where = asid, guest.where | set(cores)
        if guest.state in (RUNNING, SUPDATE):
            self.running.add(asid)
        return OK

    def deactivate(self, handle: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        guest = self.guests[handle]
        if not guest.asid:
            return INACTIVE
        if guest.asid in self.running:
            self.running.discard(guest.asid)
            self.dirty |= {(guest.asid, ccx) for ccx in guest.where}
            self.done = [done and ccx not in guest.where for ccx, done in enumerate(self.done)]
        guest.asid, guest.where = 0, set()
        return OK

    def decommission(self, handle: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if self.guests[handle].asid:
            return ACTIVE
        del self.guests[handle]
        return OK

    # ---- launch

    def launch_start(self, policy: int, share: int) -> tuple[int, int]:
        """Return (status, new handle)."""
        if not self.up:
            return PLATFORM, 0
        return self._new(policy, share, Context(policy))

    def _new(self, policy: int, share: int, context: Context) -> tuple[int, int]:
        if (policy >> 16 & 0xFF, policy >> 24) > self.image.api or policy & 0xFFC0:
            return POLICY, 0
        if share:
            if share not in self.guests:
                return NO_GUEST, 0
            if self.guests[share].policy != policy or policy & 2:
                return POLICY, 0
            context.vek = self.guests[share].vek
        else:
            context.vek = self._another()
        if policy & 4 and not self.es:
            return UNSUPPORTED, 0
        handle = min(set(range(1, 1025)) - set(self.guests))
        self.guests[handle] = context
        return OK, handle

    def launch_update_data(self, handle: int, *, paddr: int, length: int, plaintext: bytes) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        guest = self.guests[handle]
        if guest.state != LUPDATE:
            return GUEST_STATE
        if not guest.asid:
            return INACTIVE
        if paddr % 16:
            return ADDRESS
        if length == 0 or length % 16:
            return LENGTH
        guest.data += plaintext
        return OK

    def launch_update_vmsa(self, handle: int, *, paddr: int, length: int, plaintext: bytes) -> int:
        if length != 0x1000:
            return LENGTH
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        guest = self.guests[handle]
        if guest.state != LUPDATE:
            return GUEST_STATE
        if not guest.policy & 4:
            return UNSUPPORTED
        if not guest.asid:
            return INACTIVE
        if paddr % 16:
            return ADDRESS
        guest.data += plaintext
        self.areas[paddr] = guest
        return OK

    def launch_measure(self, handle: int, *, length: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        guest = self.guests[handle]
        if guest.state != LUPDATE:
            return GUEST_STATE
        if length < 0x30:
            return LENGTH
        guest.state = LSECRET
        return OK

    def measurement(self, handle: int, mnonce: bytes) -> bytes:
        guest = self.guests[handle]
        digest = hashlib.sha256(guest.data).digest()
        message = (
            bytes([4, *self.image.api, self.image.build])
            + guest.policy.to_bytes(4, "little")
            + digest
            + mnonce
        )
        guest.measure = hmac.digest(TIK, message, "sha256")
        return guest.measure

    def launch_secret(self, handle: int, *, paddr: int, length: int, genuine: bool) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if paddr % 16:
            return ADDRESS
        if length == 0 or length % 16:
            return LENGTH
        guest = self.guests[handle]
        if guest.state != LSECRET:
            return GUEST_STATE
        if not guest.asid:
            return INACTIVE
        return OK if genuine else MEASUREMENT

    def launch_finish(self, handle: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        guest = self.guests[handle]
        if guest.state != LSECRET:
            return GUEST_STATE
        guest.state = RUNNING
        if guest.asid:
            self.running.add(guest.asid)
        return OK

    # ---- report, debug, copy

    def attestation(self, handle: int, *, length: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if self.guests[handle].state not in (LSECRET, RUNNING, SUPDATE, SENT):
            return GUEST_STATE
        return LENGTH if length < 0xD0 else OK

    def debug(self, handle: int, *, src: int, dst: int, length: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if src % 16 or dst % 16:
            return ADDRESS
        if length % 16:
            return LENGTH
        if handle not in self.guests:
            return NO_GUEST
        if self.guests[handle].policy & 1:
            return POLICY
        if not self.guests[handle].asid:
            return INACTIVE
        return OK if length else LENGTH

    def copy(self, handle: int, *, src: int, dst: int, length: int) -> int:
        if not self.has("COPY"):
            return COMMAND
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if not self.guests[handle].asid:
            return INACTIVE
        if length == 0 or length % 4096:
            return LENGTH
        return ADDRESS if src % 4096 or dst % 4096 else OK
