"""Which ASID may be given to a guest, and what must be flushed first.

Per ASID and core complex (CCX) one state:

    DIRTY --(WBINVD on all cores, then DF_FLUSH)--> CLEAN --ACTIVATE--> ALLOCATED --LAUNCH_FINISH--> IN_USE
      ^                                               ^------DEACTIVATE-----'                          |
      '----------------------------------------DEACTIVATE----------------------------------------------'

A dirty line left in a cache would be written back with the *next* owner's key: hence the order.

Paper: sev-api.md §4.1; memory-encryption.md §8 rule 7.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from typing import Protocol

from cbit.secure_processor.refusal import Refused
from cbit.spec.status import Status


class Cores(Protocol):
    """What the secure processor sees of the x86 cores: the WBINVD_DONE flags, by core complex."""

    def complexes(self) -> int:
        """Return the number of core complexes."""
        ...

    def complex_of(self, apic_id: int) -> int | None:
        """Return the core complex of a core; None if there is no such core."""
        ...

    def wbinvd_done(self, ccx: int) -> bool:
        """Say whether every core of the complex executed WBINVD since the flags were cleared."""
        ...

    def clear_wbinvd_done(self, ccx: int) -> None:
        """Clear the flags of one complex."""
        ...


class AsidState(Enum):
    """State of one ASID on one core complex."""

    DIRTY = auto()
    CLEAN = auto()
    ALLOCATED = auto()  #: key installed, not runnable yet ("pending")
    IN_USE = auto()


class AsidTable:
    """The firmware's bookkeeping; made dirty by INIT."""

    def __init__(self, *, max_asid: int, min_sev_asid: int, cores: Cores) -> None:
        self.max_asid = max_asid
        self.min_sev_asid = min_sev_asid
        self._cores = cores
        self._complexes = range(cores.complexes())
        self._state = {asid: [AsidState.DIRTY for _ in self._complexes] for asid in range(1, max_asid + 1)}
        for ccx in self._complexes:
            cores.clear_wbinvd_done(ccx)

    def snapshot(self) -> dict[int, tuple[AsidState, ...]]:
        """Return a frozen copy of all states."""
        return {asid: tuple(states) for asid, states in self._state.items()}

    def is_usable(self, asid: int) -> bool:
        """Say whether VMRUN may enter a SEV guest with this ASID."""
        return AsidState.IN_USE in self._state.get(asid, ())

    def flush(self) -> None:
        """DF_FLUSH: dirty becomes clean on every complex whose cores all did WBINVD.

        Raises:
            Refused: WBINVD_REQUIRED; what could be cleaned is clean.
        """
        missing = []
        for ccx in self._complexes:
            if not self._cores.wbinvd_done(ccx):
                missing.append(ccx)
                continue
            for states in self._state.values():
                if states[ccx] is AsidState.DIRTY:
                    states[ccx] = AsidState.CLEAN
        if missing:
            raise Refused(
                Status.WBINVD_REQUIRED, f"core complex {', '.join(map(str, missing))} did not execute WBINVD"
            )

    def check_range(self, asid: int) -> None:
        """Raise INVALID_ASID for 0 and for what the hardware does not have."""
        if not 0 < asid <= self.max_asid:
            raise Refused(Status.INVALID_ASID, f"ASID {asid} is not in 1..{self.max_asid}")

    def check_free(self, asid: int) -> None:
        """Raise ASID_OWNED if some guest has it."""
        if {AsidState.ALLOCATED, AsidState.IN_USE} & set(self._state[asid]):
            raise Refused(Status.ASID_OWNED, f"ASID {asid} belongs to another guest")

    def check_clean(self, asid: int, complexes: Collection[int] | None = None) -> None:
        """Raise DFFLUSH_REQUIRED if one of the complexes (all) may still hold lines of the previous owner."""
        if any(self._state[asid][ccx] is AsidState.DIRTY for ccx in complexes or self._complexes):
            raise Refused(
                Status.DFFLUSH_REQUIRED, f"ASID {asid} is dirty: WBINVD on all cores, then DF_FLUSH"
            )

    def check_kind(self, asid: int, *, es: bool) -> None:
        """Raise INVALID_ASID if the number lies in the other kind's range (narrower than the APM's rule)."""
        if es and asid >= self.min_sev_asid:
            raise Refused(Status.INVALID_ASID, f"ASID {asid}: an ES guest needs 1..{self.min_sev_asid - 1}")
        if not es and asid < self.min_sev_asid:
            raise Refused(
                Status.INVALID_ASID,
                f"ASID {asid}: a guest without ES needs {self.min_sev_asid}..{self.max_asid}",
            )

    def bind(self, asid: int, *, running: bool, complexes: Collection[int] | None = None) -> None:
        """ACTIVATE: clean becomes allocated, or in-use for a guest that runs; on some complexes or all."""
        for ccx in complexes or self._complexes:
            if self._state[asid][ccx] is AsidState.CLEAN:
                self._state[asid][ccx] = AsidState.IN_USE if running else AsidState.ALLOCATED

    def start(self, asid: int) -> None:
        """LAUNCH_FINISH: the pending activation is completed."""
        self._state[asid] = [AsidState.IN_USE if s is AsidState.ALLOCATED else s for s in self._state[asid]]

    def unbind(self, asid: int) -> None:
        """DEACTIVATE: allocated becomes clean; in-use becomes dirty, and its complexes must WBINVD again."""
        for ccx, state in enumerate(self._state[asid]):
            if state is AsidState.ALLOCATED:
                self._state[asid][ccx] = AsidState.CLEAN
            elif state is AsidState.IN_USE:
                self._state[asid][ccx] = AsidState.DIRTY
                self._cores.clear_wbinvd_done(ccx)
