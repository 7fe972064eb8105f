"""The private shadow of the hypervisor's nested tables: which slot of the cache a guest physical page is.

    fault (gpa, C, use)  --NestedWalker-->  system page, nested C  --SEV table-->  key id
                         --SlotLender.lend-->  slot of the cache  -->  a leaf of the engine's tables

What the hypervisor's tables say is remembered until the hardware's rules let it be forgotten (TLB_CONTROL),
as a TLB does; which slot holds the page is the cache's affair, and a recall clears the leaves at once.

A page mapped with C=0 by a SEV guest has two meanings: data are shared, code and page tables are private
(§4.2).  QEMU knows one leaf for both, so such a leaf exists for one TLB fill and is gone again.

Paper: memory-encryption.md §4.2, §4.3, §7.
Not modelled: one page that one access uses through C=0 both as a page table and as data is seen decrypted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cbit.cpu.encryption_rules import HostSituation, host_key, sev_key
from cbit.cpu.engine.native import ALL_ACCESSES, MAX_SHOTS, MAY_EXECUTE, MAY_READ_AND_WRITE, native
from cbit.cpu.engine.processor import POOL, Processor, address_of
from cbit.cpu.engine.tables import OPEN, READ_ONLY, VIEW_BITS, OutOfTables, Roots, Tables
from cbit.cpu.engine.translations import BareMemory, Known, NestedTables, Translations
from cbit.cpu.faults import PageFaultCode
from cbit.cpu.paging import Kind
from cbit.cpu.tlb import TlbControl, VmMode
from cbit.crypto.entropy import Entropy
from cbit.memory.dram import anonymous
from cbit.memory.lending import SlotLender, cluster
from cbit.memory.pool import Slot
from cbit.spec.address import LINE, PAGE, Spa
from cbit.spec.key_id import UNENCRYPTED, KeyId

_DIGESTS: Final = 8 * PAGE // LINE  # bytes of digests of one page
_SEED_BYTES: Final = 9 * 8
_C: Final = 1 << VIEW_BITS
# Plain numbers: flags of an enumeration cost more than what they decide.
_TABLE, _FETCH, _STORE = int(PageFaultCode.TABLE), int(PageFaultCode.ID), int(PageFaultCode.W)
_WRITABLE: Final = 1 << 1
_CROWDED: Final = 64  # faults of one block, after which neighbours would push out what the block needs


@dataclass(slots=True)
class Counters:
    """What happened, for reports.  Mutable.

    Attributes:
        faults: nested faults that were the engine's own affair.
        one_shots: leaves made for one TLB fill.
        recalled: slots that the cache took back.
        restarts: times that all tables were dropped because their memory was used up.
    """

    faults: int = 0
    one_shots: int = 0
    recalled: int = 0
    restarts: int = 0


@dataclass(slots=True)
class Space:
    """One ASID in one VM mode: what hardware tags translations with.

    Attributes:
        asid: whose key.
        sev: whether guest physical bit 39 is a C-bit that chooses the guest's key.
        host: whether it is one that chooses the host's: software on the bare machine.
        vte: everything is private, whatever the C-bit says.
        encryption_on: whether the host's C-bits mean anything.
        roots: the engine's tables.
        nested: the hypervisor's tables, for the VMRUN that is under way.
        known: what was found there.
        leaves: by word of the tables, the slot that it maps.
        used: by guest physical page, whether it was encrypted when it was last made accessible.
    """

    asid: int
    sev: bool
    vte: bool
    encryption_on: bool
    roots: Roots
    nested: NestedTables | BareMemory
    known: Known = field(default_factory=Translations)
    host: bool = False
    leaves: dict[int, Slot] = field(default_factory=dict)
    used: dict[int, bool] = field(default_factory=dict)

    def key(self, *, private: bool, nested_c: bool) -> KeyId:
        """Look the key of an access up."""
        if self.sev:
            return sev_key(self.asid, private=private, nested_c=nested_c)
        if self.host:
            return host_key(HostSituation.WITH_PAE if self.encryption_on else HostSituation.OFF, c=nested_c)
        return host_key(
            HostSituation.GUEST_WITHOUT_SEV if self.encryption_on else HostSituation.OFF, c=nested_c
        )


class Shadow:
    """All address spaces of one engine; the borrower of the cache's slots.

    Mutable.

    Attributes:
        counters: what happened.
    """

    def __init__(self, processor: Processor, lender: SlotLender, *, spaces: int, entropy: Entropy) -> None:
        self._processor = processor
        self._lender = lender
        self._tables = Tables(processor.tables, spaces=spaces)
        self._native = native()
        self._spaces: dict[tuple[int, VmMode], Space] = {}
        self._words_of: dict[Slot, tuple[tuple[int, int], ...]] = {}  # (id of space, word); mostly one
        self._by_id: dict[int, Space] = {}
        self._writable: set[Slot] = set()
        self._digests = memoryview(anonymous(len(lender.window) // PAGE * _DIGESTS, dumpable=False))
        self._digests_at = address_of(self._digests)
        self._cluster = cluster(len(lender.window))
        self._used = memoryview(anonymous(len(lender.window) // PAGE))  # by number of a slot
        processor.state.used = address_of(self._used)
        self._seed = (ctypes.c_uint64 * 9).from_buffer_copy(entropy.draw(_SEED_BYTES))
        self.counters = Counters()

    # --- address spaces

    def space(
        self, asid: int, mode: VmMode, *, nested: NestedTables, vte: bool, encryption_on: bool
    ) -> Space:
        """Find or make the address space that a VMRUN enters; what is known of it stays known."""
        space = self._spaces.get((asid, mode))
        if space is None:
            sev = mode is VmMode.SEV
            roots = self._tables.new_roots(sev=sev)
            space = Space(asid, sev, vte, encryption_on, roots, nested)
            self._spaces[asid, mode] = space
            self._by_id[id(space)] = space
        if (space.vte, space.encryption_on) != (vte, encryption_on):
            self.forget(space)
        space.nested, space.vte, space.encryption_on = nested, vte, encryption_on
        return space

    def bare_space(self, memory: BareMemory, *, encryption_on: bool) -> Space:
        """Find or make the address space of software on the bare machine: there are no nested tables."""
        space = self._spaces.get((0, VmMode.PLAIN))
        if space is None:
            roots = self._tables.new_roots(sev=False)
            space = Space(0, False, False, encryption_on, roots, memory, memory, host=True)
            self._spaces[0, VmMode.PLAIN] = space
            self._by_id[id(space)] = space
        if space.encryption_on is not encryption_on:
            self.forget(space)
        space.nested, space.known, space.encryption_on = memory, memory, encryption_on
        return space

    def flush(self, control: TlbControl, *, asid: int) -> None:
        """Do what TLB_CONTROL asks for.

        MODEL CHOICE: global entries go too; hardware may always forget more (§7 rule 2).
        """
        if control is TlbControl.NOTHING:
            return
        for (owner, _), space in self._spaces.items():
            if control is TlbControl.ALL_ASIDS or owner == asid:
                self.forget(space)

    def forget(self, space: Space) -> None:
        """Forget every translation of an address space."""
        for word, slot in space.leaves.items():
            self._tables.words[word] = 0
            self._unmapped(slot, (id(space), word))
        space.leaves.clear()
        space.known.clear()
        self._processor.flush_tlb()

    # --- faults

    def fault(self, space: Space, address: int, info: int, *, has_c_bit: bool) -> None:
        """Make a guest physical page accessible, as the hypervisor's tables allow and the C-bits say.

        Args:
            space: whose.
            address: guest physical, C-bit included.
            info: EXITINFO1 as the hardware reports it.
            has_c_bit: the guest's paging mode has C-bits.

        Raises:
            NestedPageFault: the hypervisor's tables refuse.
        """
        self.counters.faults += 1
        table, fetch = bool(info & _TABLE), bool(info & _FETCH)
        has_view = space.sev or (space.host and space.encryption_on)
        gpa, guest_c = (address & ~_C, bool(address & _C)) if has_view else (address, False)
        private = space.sev and (table or fetch or guest_c or space.vte or not has_c_bit)
        write = table or bool(info & _STORE)
        kind = Kind.WRITE if write else Kind.FETCH if fetch else Kind.READ
        leaf = space.known.find(space.nested, gpa, kind, guest_c=guest_c, table=table)
        key = space.key(private=private, nested_c=guest_c if space.host else leaf.c)
        frame = Spa(leaf.at(gpa) & -PAGE)
        space.used[gpa // PAGE] = key != UNENCRYPTED
        view = _C if guest_c or (space.sev and not has_c_bit) else 0
        word = self._word(space, gpa | view)
        # Two meanings of one leaf: shared data and private code; allowed loads and forbidden fetches.
        two_keys = space.sev and not view and not space.vte
        crowded = self._processor.state.stalls > _CROWDED
        alone = two_keys or leaf.no_execute or leaf.size != PAGE or crowded
        near = None if alone else space.known.alike(space.nested, gpa, self._cluster)
        if near is not None:
            self._map_near(space, word, near, gpa=gpa, frame=frame, key=key, store=write)
            return
        slot = self._lend(frame, key, write=write)
        may_store = slot in self._writable and leaf.writable and leaf.dirty
        value = POOL + slot | (OPEN if may_store else READ_ONLY)
        if two_keys or leaf.no_execute:
            self._one_shot(
                word, value, ALL_ACCESSES if table else MAY_EXECUTE if fetch else MAY_READ_AND_WRITE
            )
        else:
            self._map(space, word, slot, value)

    def _map_near(
        self, space: Space, word: int, near: range, *, gpa: int, frame: Spa, key: KeyId, store: bool
    ) -> None:
        """Map a page, and with it the neighbours for which the hypervisor's tables say the same.

        MODEL CHOICE: memory comes into the cache in pieces of up to 64 KiB.

        Args:
            space: whose.
            word: what maps the page.
            near: numbers of alike pages in the piece, the page's own among them.
            gpa: the page.
            frame: where it is.
            key: its key.
            store: the access is a store, which the tables allow.
        """
        mine = gpa // PAGE % self._cluster
        first = word - mine
        words = self._tables.words[first : first + self._cluster].tolist()
        wanted = [n for n in near if n == mine or not words[n] or (store and not words[n] & _WRITABLE)]
        start, stop = wanted[0], wanted[-1] + 1
        lent = self._lender.lend_along(
            Spa(frame + (start - mine) * PAGE), stop - start, key, self, write=store
        )
        if lent[mine - start] is None:  # somebody else has it, or the cache is small: it comes alone
            wanted, start, lent = [mine], mine, [self._lender.lend(frame, key, self, write=store)]
        slots = {n: slot for n in wanted if (slot := lent[n - start]) is not None}
        rights = POOL | (OPEN if store else READ_ONLY)
        self._map_all(space, {first + n: slot for n, slot in slots.items()}, rights)
        page = gpa // PAGE - mine
        space.used.update(dict.fromkeys((page + n for n in slots), key != UNENCRYPTED))
        if store:
            self._watch(slots.values())

    def _map_all(self, space: Space, slots: dict[int, Slot], rights: int) -> None:
        """Let words of the tables map slots: at once if these words map nothing, and nothing these slots."""
        words_of, leaves = self._words_of, space.leaves
        if words_of.keys().isdisjoint(slots.values()) and leaves.keys().isdisjoint(slots):
            table, owner = self._tables.words, id(space)
            for word, slot in slots.items():
                table[word] = slot | rights
                words_of[slot] = ((owner, word),)
            leaves.update(slots)
            return
        for word, slot in slots.items():
            self._map(space, word, slot, slot | rights)

    def _word(self, space: Space, address: int) -> int:
        try:
            return space.roots.leaf(address)
        except OutOfTables:
            self._restart()
            return space.roots.leaf(address)

    def _restart(self) -> None:
        """Drop all tables of all address spaces; what is known of the hypervisor's tables stays known."""
        self.counters.restarts += 1
        self._processor.flush_tlb()
        for space in self._spaces.values():
            space.roots.forget()
            space.leaves.clear()
        self._words_of.clear()
        self._tables.restart()

    def _map(self, space: Space, word: int, slot: Slot, value: int) -> None:
        before = space.leaves.get(word)
        self._tables.words[word] = value
        if before == slot:
            return
        if before is not None:
            self._unmapped(before, (id(space), word))
            self._processor.flush_tlb()
        space.leaves[word] = slot
        self._words_of[slot] = (*self._words_of.get(slot, ()), (id(space), word))

    def _unmapped(self, slot: Slot, where: tuple[int, int]) -> None:
        self._words_of[slot] = tuple(other for other in self._words_of[slot] if other != where)

    def _one_shot(self, word: int, value: int, allowed: int) -> None:
        state = self._processor.state
        if state.shots == MAX_SHOTS:
            self._native.undo_shots(state)  # the walk begins again, and asks again
        self.counters.one_shots += 1
        shot = state.shot[state.shots]
        shot.leaf, shot.before = self._processor.tables_at + 8 * word, self._tables.words[word]
        state.shots += 1
        state.shot_allows &= allowed
        self._tables.words[word] = value

    def used(self, asid: int) -> dict[int, bool]:
        """Say which guest physical pages an ASID used, and whether with a key when last made accessible."""
        found: dict[int, bool] = {}
        for (owner, _), space in self._spaces.items():
            if owner == asid:
                found |= space.used
        return found

    def forget_use(self, asid: int) -> None:
        """Forget which pages an ASID used: it belongs to somebody else from now on."""
        for (owner, _), space in self._spaces.items():
            if owner == asid:
                space.used.clear()

    # --- slots of the cache

    def _lend(self, page: Spa, key: KeyId, *, write: bool) -> Slot:
        slot = self._lender.lend(page, key, self, write=write)
        if write:
            self._watch((slot,))
        return slot

    def _watch(self, slots: Iterable[Slot]) -> None:
        """Remember what is in some slots before they may be stored to."""
        fresh = [slot for slot in slots if slot not in self._writable]
        if fresh:
            array = (ctypes.c_uint64 * len(fresh))(*fresh)
            self._native.remember(self._processor.pool_at, array, len(fresh), self._digests_at, self._seed)
            self._writable.update(fresh)

    def stored(self, slot: Slot) -> int:
        """Say which lines were stored to (`Borrower`)."""
        return self._stored((slot,))[0]

    def _stored(self, slots: Sequence[Slot]) -> list[int]:
        """For each slot one bit a line, if it is watched."""
        watched = [slot for slot in slots if slot in self._writable]
        if not watched:
            return [0] * len(slots)
        lines = (ctypes.c_uint64 * len(watched))(*watched)
        self._native.changed(self._processor.pool_at, lines, len(watched), self._digests_at, self._seed)
        if len(watched) == len(slots):
            return list(lines)
        found = dict(zip(watched, lines, strict=True))
        return [found.get(slot, 0) for slot in slots]

    def recall(self, slots: Sequence[Slot]) -> list[int]:
        """Let go of slots (`Borrower`)."""
        self.counters.recalled += len(slots)
        stored = self._processor.let_go(
            slots, watched=self._writable, digests=self._digests_at, seed=self._seed
        )
        table, words_of, by_id = self._tables.words, self._words_of, self._by_id
        for slot in slots:
            for owner, word in words_of.pop(slot, ()):
                table[word] = 0
                del by_id[owner].leaves[word]
        self._writable.difference_update(slots)
        return stored

    def clean(self, slots: Sequence[Slot]) -> list[int]:
        """Go on without storing (`Borrower`)."""
        self._processor.flush_tlb()
        for slot in slots:
            for _, word in self._words_of.get(slot, ()):
                self._tables.words[word] &= ~_WRITABLE
        stored = self._stored(slots)
        self._writable.difference_update(slots)
        return stored

    def was_used(self, slot: Slot) -> bool:
        """Say whether a slot came into the TLB again since this was last asked (`Borrower`).

        Once is what brought it here; a page that is never needed again shall not push others out.
        """
        number = slot // PAGE
        times, self._used[number] = self._used[number], 0
        return times > 1

    def overwritten(self, slot: Slot) -> None:
        """Drop code translated from what was there (`Borrower`)."""
        self._processor.drop_code((slot,))

    def holds(self, slot: Slot) -> bool:
        """Whether a leaf maps a slot: for tests."""
        return bool(self._words_of.get(slot))
