"""The platform as sev-api.md §3, §5 describe it, and nothing else: who it is, what it runs, when it is up.

Written from the paper; shares no table with the firmware.  Statuses are the paper's numbers.
"""

# ruff: noqa: PLR0911 (one return a check, in the paper's order)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

OK, PLATFORM, GUEST_STATE, CONFIG, LENGTH, TAKEN, CERTIFICATE = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
POLICY, INACTIVE, ADDRESS, SIGNATURE, MEASUREMENT = 0x07, 0x08, 0x09, 0x0A, 0x0B
OWNED, ASID, WBINVD, DFFLUSH, NO_GUEST, COMMAND, ACTIVE = 0x0C, 0x0D, 0x0E, 0x0F, 0x10, 0x11, 0x12
UNSUPPORTED, PARAM, DATA_INVALID, OLD = 0x15, 0x16, 0x18, 0x21
UNINIT, INIT, WORKING = 0, 1, 2

COMPLEXES = 2
FIRST_PLAIN, LAST = 5, 15
AREA_SIZE, CERT_SIZE = 0x8000, 0x824
FLASH: Final = 0
DAMAGED: Final = (-1, -1, -1)
Keys = tuple[int, int, int]  # which identity, which PDH, which organisation owns the platform (0: nobody)


@dataclass(frozen=True)
class Image:
    """Firmware: what it says of itself, and what the boot check says of it."""

    api: tuple[int, int]
    build: int
    version: int  # of security
    missing: frozenset[str] = frozenset()
    status: int = OK


@dataclass
class Platform:
    """What the paper says the firmware knows of itself; each method returns the status."""

    image: Image
    floor: int
    up: bool = False
    es: bool = False
    done: list[bool] = field(default_factory=lambda: [False] * COMPLEXES)
    dirty: set[tuple[int, int]] = field(default_factory=set)  # (ASID, complex)
    made: int = 0  # identities and PDHs, counted
    #: What each store holds, None for an empty one: the flash, and host memory at an address (INIT_EX).
    stores: dict[int, Keys | None] = field(default_factory=lambda: {FLASH: None})
    where: int = FLASH
    keys: Keys = (0, 0, 0)
    rings: bool = False  # whether commands come from ring buffers

    def has(self, command: str) -> bool:
        return command not in self.image.missing

    # ---- start and end

    def init(self, *, flags: int, tmr_paddr: int, tmr_length: int, dram: int) -> int:
        if self.up:
            return PLATFORM
        if flags > 1:
            return CONFIG
        return self._start(FLASH, flags, tmr_paddr, tmr_length, dram)

    def init_ex(
        self, *, length: int, flags: int, tmr: tuple[int, int], nv: tuple[int, int], dram: int
    ) -> int:
        if self.up:
            return PLATFORM
        if flags > 1:
            return CONFIG
        if length != 0x24:
            return LENGTH
        at, size = nv
        if at:
            if at % 4096 or at + AREA_SIZE > dram:
                return ADDRESS
            if size != AREA_SIZE:
                return LENGTH
            if flags and at < sum(tmr) and tmr[0] < at + AREA_SIZE:
                return ADDRESS
        return self._start(at, flags, *tmr, dram)

    def _start(self, store: int, flags: int, tmr_paddr: int, tmr_length: int, dram: int) -> int:
        found = self.stores.get(store, DAMAGED)  # what nobody wrote is no store
        if found == DAMAGED:
            self.stores[store] = None
            return DATA_INVALID
        if found is None:
            found = self.stores[store] = (self._another(), self._another(), 0)
        if flags:
            if tmr_paddr % (1 << 20):
                return ADDRESS
            if tmr_length != 1 << 20:
                return LENGTH
            if tmr_paddr + tmr_length > dram or tmr_paddr == 0:
                return ADDRESS
        self.up, self.es = True, flags == 1
        self.where, self.keys = store, found
        self.dirty = {(asid, ccx) for asid in range(1, LAST + 1) for ccx in range(COMPLEXES)}
        self.done = [False] * COMPLEXES
        return OK

    def _another(self) -> int:
        self.made += 1
        return self.made

    def shutdown(self) -> int:
        self.up = self.es = self.rings = False
        return OK

    def platform_reset(self) -> int:
        if self.up:
            return PLATFORM
        self.stores[FLASH] = None
        return OK

    def download(self, image: Image, *, paddr: int, length: int, ex: tuple[int, bool] | None = None) -> int:
        """DOWNLOAD_FIRMWARE; with ``ex``, LENGTH and COMMIT of DOWNLOAD_FIRMWARE_EX."""
        if self.up:
            return PLATFORM
        if ex and ex[0] != 0x18:
            return LENGTH
        if paddr % 32:
            return ADDRESS
        if not 0 < length <= 128 << 10:
            return LENGTH
        if image.status or image.version < self.floor:
            return image.status or OLD
        self.image = image
        if ex and ex[1]:
            self.floor = image.version
        return OK

    def ring_buffer(self) -> int:
        if not self.up:
            return PLATFORM
        return PARAM if self.rings else OK

    # ---- keys

    def renew(self, *, identity: bool, state: int) -> int:
        """PEK_GEN, which wants INIT; PDH_GEN, which wants the platform up."""
        if not self.up or (identity and state != INIT):
            return PLATFORM
        whose = (self._another(), 0) if identity else (self.keys[0], self.keys[2])
        return self._save((whose[0], self._another(), whose[1]))

    def pek_csr(self, length: int) -> int:
        if not self.up:
            return PLATFORM
        return OK if length >= CERT_SIZE else LENGTH

    def pek_cert_import(
        self, organisation: int, *, state: int, lengths: tuple[int, int], identity: int, genuine: bool
    ) -> int:
        """Judge a PEK of ``identity`` that an organisation signed, unaltered if ``genuine``."""
        if state != INIT:
            return PLATFORM
        if self.keys[2]:
            return TAKEN
        if lengths != (CERT_SIZE, CERT_SIZE):
            return LENGTH
        if not genuine:
            return SIGNATURE
        if identity != self.keys[0]:
            return CERTIFICATE
        return self._save((identity, self._another(), organisation))

    def _save(self, keys: Keys) -> int:
        self.keys = self.stores[self.where] = keys
        return OK

    # ---- caches

    def wbinvd(self, ccx: int) -> None:
        self.done[ccx] = True

    def df_flush(self) -> int:
        if not self.up:
            return PLATFORM
        self.dirty = {(asid, ccx) for asid, ccx in self.dirty if not self.done[ccx]}
        return OK if all(self.done) else WBINVD
