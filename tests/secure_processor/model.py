"""The platform, its guests and its ASIDs as sev-api.md §3, §4 and §6–§10 describe them, and nothing else.

Written from the paper; shares no table with the firmware.  Statuses are the paper's numbers.
"""

# ruff: noqa: PLR0911 (one return a check, in the paper's order)

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

OK, PLATFORM, GUEST_STATE, CONFIG, LENGTH = 0x00, 0x01, 0x02, 0x03, 0x04
POLICY, INACTIVE, ADDRESS, MEASUREMENT = 0x07, 0x08, 0x09, 0x0B
OWNED, ASID, WBINVD, DFFLUSH, NO_GUEST, ACTIVE = 0x0C, 0x0D, 0x0E, 0x0F, 0x10, 0x12
UNSUPPORTED, PARAM = 0x15, 0x16
UNINIT, INIT, WORKING = 0, 1, 2
LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT = 1, 2, 3, 4, 5, 6

COMPLEXES = 2
FIRST_PLAIN, LAST = 5, 15
API = (0, 17)
BUILD = 48
TIK = bytes(16)  # a launch without an owner


@dataclass
class Context:
    policy: int
    state: int = LUPDATE
    asid: int = 0
    where: set[int] = field(default_factory=set)  # the complexes that have its key
    data: bytes = b""  # what was measured so far
    measure: bytes = b""
    journey: int = 0  # of its transport keys, while it migrates


@dataclass(frozen=True)
class Session:
    """What a receiver needs to begin: made for one PDH and one policy."""

    journey: int
    policy: int
    pdh: int


@dataclass
class Model:
    """What the paper says the firmware knows; each method returns the status."""

    up: bool = False
    es: bool = False
    guests: dict[int, Context] = field(default_factory=dict)
    done: list[bool] = field(default_factory=lambda: [False] * COMPLEXES)
    dirty: set[tuple[int, int]] = field(default_factory=set)  # (ASID, complex)
    running: set[int] = field(default_factory=set)  # ASIDs in use
    identity: int = 0  # counts identities
    pdh: int = 0
    stored: bool = False
    journeys: int = 0

    @property
    def state(self) -> int:
        if not self.up:
            return UNINIT
        return WORKING if self.guests else INIT

    # ---- platform

    def init(self, *, flags: int, tmr_paddr: int, tmr_length: int, dram: int) -> int:
        if self.up:
            return PLATFORM
        if flags > 1:
            return CONFIG
        if not self.stored:
            self.stored, self.identity, self.pdh = True, self.identity + 1, self.pdh + 1
        if flags:
            if tmr_paddr % (1 << 20):
                return ADDRESS
            if tmr_length != 1 << 20:
                return LENGTH
            if tmr_paddr + tmr_length > dram or tmr_paddr == 0:
                return ADDRESS
        self.up, self.es = True, flags == 1
        self.dirty = {(asid, ccx) for asid in range(1, LAST + 1) for ccx in range(COMPLEXES)}
        self.done = [False] * COMPLEXES
        return OK

    def shutdown(self) -> int:
        self.up, self.es = False, False
        self.guests, self.running = {}, set()
        return OK

    def platform_reset(self) -> int:
        if self.up:
            return PLATFORM
        self.stored = False
        return OK

    def pek_gen(self) -> int:
        if self.state != INIT:
            return PLATFORM
        self.identity += 1
        self.pdh += 1
        return OK

    def pdh_gen(self) -> int:
        if not self.up:
            return PLATFORM
        self.pdh += 1
        return OK

    def wbinvd(self, ccx: int) -> None:
        self.done[ccx] = True

    def df_flush(self) -> int:
        if not self.up:
            return PLATFORM
        self.dirty = {(asid, ccx) for asid, ccx in self.dirty if not self.done[ccx]}
        return OK if all(self.done) else WBINVD

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
        if (policy >> 16 & 0xFF, policy >> 24) > API or policy & 0xFFC0:
            return POLICY, 0
        if share:
            if share not in self.guests:
                return NO_GUEST, 0
            if self.guests[share].policy != policy or policy & 2:
                return POLICY, 0
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
        message = bytes([4, *API, BUILD]) + guest.policy.to_bytes(4, "little") + digest + mnonce
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
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if not self.guests[handle].asid:
            return INACTIVE
        if length == 0 or length % 4096:
            return LENGTH
        return ADDRESS if src % 4096 or dst % 4096 else OK

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
        return OK, Session(self.journeys, guest.policy, self.pdh)

    def send_update(self, handle: int, *, paddr: int, length: int) -> int:
        return self._update(handle, SUPDATE, paddr=paddr, length=length)

    def send_end(self, handle: int, *, cancel: bool) -> int:
        return self._end(handle, SUPDATE, RUNNING if cancel else SENT)

    def receive_start(self, session: Session, *, policy: int, share: int) -> tuple[int, int]:
        if not self.up:
            return PLATFORM, 0
        if (session.policy, session.pdh) != (policy, self.pdh):
            return MEASUREMENT, 0
        return self._new(policy, share, Context(policy, state=RUPDATE, journey=session.journey))

    def receive_update(self, handle: int, *, paddr: int, length: int, journey: int) -> int:
        status = self._update(handle, RUPDATE, paddr=paddr, length=length)
        if status == OK and self.guests[handle].journey != journey:
            return MEASUREMENT
        return status

    def receive_finish(self, handle: int) -> int:
        status = self._end(handle, RUPDATE, RUNNING)
        if status == OK and self.guests[handle].asid:
            self.running.add(self.guests[handle].asid)
        return status

    def _update(self, handle: int, state: int, *, paddr: int, length: int) -> int:
        if self.state != WORKING:
            return PLATFORM
        if handle not in self.guests:
            return NO_GUEST
        if self.guests[handle].state != state:
            return GUEST_STATE
        if not self.guests[handle].asid:
            return INACTIVE
        if length == 0 or length % 16:
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
