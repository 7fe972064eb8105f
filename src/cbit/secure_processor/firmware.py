"""The running firmware: platform context, guest contexts, and what the commands work on.

Paper: sev-api.md §3 (platform states), §4 (guests).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.secure_processor.asid_table import AsidTable, Cores
from cbit.secure_processor.fuses import Fuses
from cbit.secure_processor.guest import MAX_HANDLE, Guest
from cbit.secure_processor.identity import Identity, Issuer
from cbit.secure_processor.memory_port import MemoryPort
from cbit.secure_processor.nv_store import NvStore, NvUnusable
from cbit.secure_processor.refusal import Refused
from cbit.secure_processor.ring_buffer import RingBuffers
from cbit.secure_processor.vmsa_pool import VmsaPool
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.policy import ApiVersion
from cbit.spec.states import GuestState, PlatformState
from cbit.spec.status import Status
from cbit.trace import Trace


@dataclass(frozen=True, slots=True)
class Limits:
    """What the chip offers.

    Attributes:
        max_asid: highest ASID of a SEV guest.
        min_sev_asid: lowest ASID of a guest without ES.
        memory_key_bytes: size of a memory key for the engine's mode.
        memory_encryption: whether SYSCFG.MemEncryptionModEn and the engines are on.
    """

    max_asid: int
    min_sev_asid: int
    memory_key_bytes: int
    memory_encryption: bool = True


@dataclass(slots=True)
class Platform:
    """Volatile platform context: exists between INIT and SHUTDOWN."""

    identity: Identity
    issuer: Issuer
    asids: AsidTable
    nv: NvStore  #: where the identity is kept: the flash, or the host's memory
    es: bool = False
    tmr: tuple[int, int] | None = None
    vmsas: VmsaPool | None = None
    guests: dict[int, Guest] = field(default_factory=dict)


class Firmware:
    """The secure processor's firmware, as the boot ROM started it."""

    def __init__(
        self,
        *,
        api: ApiVersion,
        build: int,
        implements: frozenset[int],
        fuses: Fuses,
        nv: NvStore,
        memory: MemoryPort,
        cores: Cores,
        limits: Limits,
        entropy: Entropy,
        trace: Trace,
    ) -> None:
        self.api = api
        self.build = build
        self.implements = implements
        self.fuses = fuses
        self.nv = nv
        self.memory = memory
        self.cores = cores
        self.limits = limits
        self.entropy = entropy
        self.trace = trace
        self._platform: Platform | None = None
        self._rings: RingBuffers | None = None
        #: the security version that DOWNLOAD_FIRMWARE_EX committed: nothing older is taken until reset
        self.committed = 0
        #: why the last command was refused, for people; "" if it was not.  Never on the wire.
        self.why = ""

    @property
    def state(self) -> PlatformState:
        """The platform state: it follows from what exists."""
        if self._platform is None:
            return PlatformState.UNINIT
        return PlatformState.WORKING if self._platform.guests else PlatformState.INIT

    @property
    def platform(self) -> Platform:
        """The platform context.

        Raises:
            Refused: INVALID_PLATFORM_STATE before INIT.
        """
        if self._platform is None:
            raise Refused(Status.INVALID_PLATFORM_STATE, "the platform is UNINIT")
        return self._platform

    @functools.cached_property
    def chip_id(self) -> bytes:
        """GET_ID's answer; it does not change, and is a point of a curve to compute."""
        return self.fuses.chip_id()

    def is_asid_usable(self, asid: int) -> bool:
        """Say whether VMRUN may enter a SEV guest with this ASID (the INVALID_ASID bitmap)."""
        return self._platform is not None and self._platform.asids.is_usable(asid)

    def start(self, platform: Platform) -> None:
        """Finish INIT."""
        self._platform = platform
        self._forbid()

    def stop(self) -> None:
        """SHUTDOWN: all volatile state is gone, the TMR is released, ring buffers are no more."""
        self._platform = None
        if self._rings is not None:
            self._rings.leave()
        self._forbid()

    def rings(self) -> RingBuffers | None:
        """Return the ring buffers that commands come from; None while the mailbox has its usual registers."""
        if self._rings is not None and not self._rings.active:
            self._rings = None
            self._forbid()
        return self._rings

    def start_rings(self, rings: RingBuffers) -> None:
        """Finish RING_BUFFER."""
        self._rings = rings
        self._forbid()

    def _forbid(self) -> None:
        """Tell the address rules what no command may name now, and the fabric what nobody else may reach."""
        tmr = self._platform.tmr if self._platform else None
        self.memory.fabric.protect(*(tmr or (0, 0)))
        pages = self._rings.pages() if self._rings and self._rings.active else ()
        self.memory.rules = replace(self.memory.rules, forbidden=((tmr,) if tmr else ()) + pages)

    def issuer(self) -> Issuer:
        """Derive the CEK: done at every INIT, kept in the secure processor's memory only."""
        return Issuer(self.api, self.fuses.cek(), self.entropy)

    def save(self, identity: Identity, store: NvStore | None = None) -> None:
        """Write the identity to the NV store: the platform's, before INIT the one that is given.

        Raises:
            Refused: HWERROR_PLATFORM; the old state is kept.
        """
        try:
            (store or self.platform.nv).save(identity.to_nv())
        except NvUnusable as error:
            raise Refused(Status.HWERROR_PLATFORM, str(error)) from None

    def guest(self, handle: int) -> Guest:
        """Find a guest by its handle.

        Raises:
            Refused: INVALID_GUEST.
        """
        guest = self.platform.guests.get(handle)
        if guest is None:
            raise Refused(Status.INVALID_GUEST, f"handle {handle} is not in use")
        return guest

    def free_handle(self) -> int:
        """Return the lowest free handle.

        Raises:
            Refused: RESOURCE_LIMIT, all 1024 are in use.
        """
        taken = self.platform.guests
        for handle in range(1, MAX_HANDLE + 1):
            if handle not in taken:
                return handle
        raise Refused(Status.RESOURCE_LIMIT, f"all {MAX_HANDLE} guest contexts are in use")

    def active_asid(self, guest: Guest) -> int:
        """Return the guest's ASID.

        Raises:
            Refused: INACTIVE, it has none.
        """
        if guest.asid is None:
            raise Refused(Status.INACTIVE, f"guest {guest.handle} has no ASID: ACTIVATE it first")
        return guest.asid

    def install_key(self, asid: int, vek: Key) -> None:
        """Load a guest's key into the slot of its ASID in the memory controller."""
        self.memory.fabric.load_key(guest_key_id(asid), vek)

    def set_guest_state(self, guest: Guest, state: GuestState) -> None:
        """Move a guest: the one place that does."""
        if self.trace.watched("secure_processor"):
            before, after = guest.state.name, state.name
            self.trace.emit(
                "secure_processor", "guest state", handle=guest.handle, before=before, after=after
            )
        guest.state = state
