"""The TLB: finished translations under a tag, and who flushes what.

      tag = ASID, logical core, VM mode            the host is ASID 0
      entry = Translation: page, permissions, both C-bits

Entries leave when somebody flushes them, never by themselves.  MODEL CHOICE: a real TLB also forgets by
lack of room; remembering everything is the worst case for software that forgets a flush.

Paper: memory-encryption.md §7.
Not modelled: PCID, caches of upper levels, SNP's TLB_ID (§7 rule 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

from cbit.cpu.translation import Translation
from cbit.spec.address import PAGE
from cbit.trace import SILENT, Trace


class VmMode(Enum):
    """What kind of guest; translations of different kinds never meet, even under one ASID."""

    PLAIN = "non-SEV"
    SEV = "SEV"
    SEV_ES = "SEV-ES"


class TlbControl(IntEnum):
    """VMCB.TLB_CONTROL: what VMRUN flushes first."""

    NOTHING = 0
    ALL_ASIDS = 1
    THIS_ASID = 3
    THIS_ASID_NON_GLOBAL = 7


class LastRuns:
    """Which VMCB ran last under each ASID, on one core.

    Mutable.
    """

    def __init__(self) -> None:
        self._vmcbs: dict[int, int] = {}

    def flush_for(self, asid: int, vmcb_at: int, asked: TlbControl) -> TlbControl:
        """Note that a VMCB runs under an ASID, and return what is flushed if the core sees to it itself.

        Paper: memory-encryption.md §7 rules 3 and 4 (here by VMCB: `cbit.cpu.mitigations`).
        """
        another = self._vmcbs.get(asid, vmcb_at) != vmcb_at
        self._vmcbs[asid] = vmcb_at
        return TlbControl.THIS_ASID if another and asked is not TlbControl.ALL_ASIDS else asked


@dataclass(frozen=True, slots=True)
class Tag:
    """Whose translation an entry is."""

    asid: int
    core: int
    mode: VmMode


class Tlb:
    """Translations by tag and page.

    Mutable.  Two logical cores may share one: their entries stay apart by the tag.
    """

    def __init__(self, trace: Trace = SILENT) -> None:
        self._entries: dict[tuple[Tag, int], Translation] = {}
        self._trace = trace

    def __len__(self) -> int:
        return len(self._entries)

    def snapshot(self) -> dict[tuple[Tag, int], Translation]:
        """Copy of all entries, by tag and linear page address."""
        return dict(self._entries)

    def find(self, tag: Tag, linear: int) -> Translation | None:
        """Return the entry of exactly this tag that covers ``linear``."""
        return self._entries.get((tag, linear & -PAGE))

    def fill(self, tag: Tag, linear: int, translation: Translation) -> None:
        """Remember a translation."""
        self._entries[tag, linear & -PAGE] = translation

    def flush(self, control: TlbControl, *, core: int, asid: int) -> None:
        """Do what VMCB.TLB_CONTROL asks for, on one logical core.

        MODEL CHOICE: "this ASID" means its entries of every VM mode.

        Paper: memory-encryption.md §7 rule 2.
        """
        if control is TlbControl.NOTHING:
            return
        every_asid = control is TlbControl.ALL_ASIDS
        keep_global = control is TlbControl.THIS_ASID_NON_GLOBAL

        def goes(tag: Tag, _page: int, entry: Translation) -> bool:
            whose = tag.core == core and (every_asid or tag.asid == asid)
            return whose and not (keep_global and entry.leaf.global_page)

        self._drop(goes, control.name, asid=asid, core=core)

    def flush_after_mov_cr3(self, tag: Tag) -> None:
        """Flush one address space's entries, global pages excepted.

        Hardware does this by itself, inside the ASID that is running and nowhere else.

        Paper: memory-encryption.md §7 rule 3.
        """
        self._drop(
            lambda t, _p, e: t == tag and not e.leaf.global_page, "MOV CR3", asid=tag.asid, core=tag.core
        )

    def flush_mode_change(self, tag: Tag) -> None:
        """Flush one address space's entries, global ones too: translation itself has changed."""
        self._drop(lambda t, _p, _e: t == tag, "mode change", asid=tag.asid, core=tag.core)

    def flush_page(self, linear: int, *, core: int, asid: int) -> None:
        """Flush the page that holds ``linear``, global or not, large ones whole (INVLPG, INVLPGA)."""

        def goes(tag: Tag, page: int, entry: Translation) -> bool:
            mask = -entry.leaf.size
            return tag.core == core and tag.asid == asid and page & mask == linear & mask

        self._drop(goes, "one page", asid=asid, core=core, linear=linear)

    def _drop(self, goes: Callable[[Tag, int, Translation], bool], what: str, **facts: int) -> None:
        doomed = [key for key, entry in self._entries.items() if goes(*key, entry)]
        for key in doomed:
            del self._entries[key]
        self._trace.emit("cpu.tlb", f"flush: {what}", dropped=len(doomed), **facts)
