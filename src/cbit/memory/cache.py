"""The tagged write-back cache: physical memory as the cores see it.

      tag = (page, key id)          one copy per tag; C is "key id is not 0"
      fill: decrypt with the tag's key      leave: encrypt dirty lines with the *tag's* key, wipe

One DRAM page may have copies under several tags, and they know nothing of each other (§6.1 rule 2)
unless hardware keeps them coherent (CPUID Fn8000_001F EAX bit 10).

MODEL CHOICE: a copy is one 4 KiB page (one fill) where hardware has 64-byte lines, so CLFLUSH of a line takes
its whole copy.  Dirtiness is kept per line as in hardware, because two dirty copies of one page must not
overwrite each other's untouched lines.
MODEL CHOICE: a transfer of `STREAM` bytes or more is non-temporal: what is cached under its own tag takes
part, nothing new is cached.  It goes at the speed of the engine and leaves the cache to small accesses.
An execution engine may borrow copies and use them where they lie (`cbit.memory.lending`).
MODEL CHOICE: of several dirty copies of one line the least recently used leaves first (§6.3: order decides).

Paper: memory-encryption.md §6.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Final

from cbit.memory.controller import MemoryController
from cbit.memory.copies import Copy, CopyInfo, take_back
from cbit.memory.lending import CLUSTER, Borrower, cluster
from cbit.memory.physical import Data
from cbit.memory.pool import ROW, Pool, Slot
from cbit.memory.stretches import ALL_LINES, neighbours, runs, split, stretches
from cbit.memory.trusted import TrustedRegion
from cbit.spec.address import KIB, LINE, MIB, PAGE, Spa
from cbit.spec.key_id import KeyId, guest
from cbit.trace import SILENT, Trace

STREAM: Final = 64 * KIB  #: transfers from this length on are not cached
MAX_STRETCH: Final = ROW // PAGE  #: copies that are written back together
CANDIDATES: Final = 8  #: of so many for each that leaves, those stay that a borrower has used meanwhile
BATCH: Final = 32  #: of lent copies one in so many leaves at once: each recall costs an engine its TLB


class Cache:
    """All caches of the machine, as one.

    Mutable.  Plaintext exists in at most ``capacity`` bytes, inside the SoC; a slot is wiped when its copy
    leaves.

    Attributes:
        coherent: hardware keeps encryption domains coherent (§6.2).
        fills: pages brought in since power-on.
        evictions: copies that left to make room.
    """

    def __init__(
        self,
        controller: MemoryController,
        *,
        capacity: int = 32 * MIB,
        coherent: bool = False,
        trace: Trace = SILENT,
    ) -> None:
        """Start empty.

        Raises:
            ValueError: ``capacity`` is not a positive number of pages.
        """
        self._controller = controller
        self._pool = Pool(capacity)
        self._trace = trace
        self._copies: OrderedDict[tuple[int, KeyId], Copy] = OrderedDict()  # least recently used first
        self._by_page: dict[int, dict[KeyId, Copy]] = {}
        self._now = 0
        self._trusted = TrustedRegion()
        self._taken_over = -1  # the last page whose copies left for an access under another tag
        self.coherent: Final = coherent
        self.fills = 0
        self.evictions = 0

    def __repr__(self) -> str:
        return f"Cache({len(self._copies)} of {self.capacity // PAGE} pages, coherent={self.coherent})"

    @property
    def capacity(self) -> int:
        """Bytes of plaintext at most."""
        return self._pool.capacity

    @property
    def size(self) -> int:
        """Bytes of DRAM behind the cache."""
        return self._controller.size

    def snapshot(self) -> tuple[CopyInfo, ...]:
        """List the copies, least recently used first."""
        return tuple(copy.info for copy in self._copies.values())

    def check(self, spa: int, length: int, key_id: KeyId) -> None:
        """Refuse a request that cannot be served, before anything moves (errors as `read`)."""
        self._controller.check(spa, length, key_id)
        if spa < self._trusted.end:  # few are
            self._trusted.check(spa, length)

    def protect(self, start: int, end: int) -> None:
        """Keep one range from cores and devices, in the place of the one before; no copy stays to be hit.

        Raises:
            AddressError: the range leaves DRAM; nothing has changed.
        """
        self.flush(Spa(start), end - start)
        self._trusted = TrustedRegion(start, end)

    # ---- the cores' accesses

    def read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        """Read under a tag.

        Raises:
            AddressError: the range leaves DRAM, or reaches the trusted memory region.
            ValueError: no such key id.
        """
        start = spa % PAGE
        copy = self._copies.get((spa - start, key_id))
        if copy is not None and 0 < length <= PAGE - start:  # a hit: what is asked for exists
            self._use(copy)
            return self._pool.get(copy.slot, start, length)
        if length >= STREAM:
            return self.snoop_read(spa, length, key_id)
        self.check(spa, length, key_id)
        if not length:
            return b""
        if start + length <= PAGE:
            return self._pool.get(self._hold(spa - start, key_id).slot, start, length)
        pieces = split(spa, length)
        return b"".join(self._pool.get(self._hold(page, key_id).slot, start, n) for page, start, n in pieces)

    def write(self, spa: Spa, data: Data, key_id: KeyId) -> None:
        """Write under a tag (errors as `read`)."""
        length = len(data)
        start = spa % PAGE
        copy = self._copies.get((spa - start, key_id))
        if copy is not None and 0 < length <= PAGE - start and len(self._by_page[copy.page]) == 1:
            self._put(self._use(copy), start, data)  # a hit, and nobody else has the page
            return
        if length >= STREAM:
            self.snoop_write(spa, data, key_id)
            return
        self.check(spa, length, key_id)
        if start + length <= PAGE:
            if length:
                self._store(spa - start, start, data, key_id)
            return
        done = 0
        for page, start, count in split(spa, length):
            self._store(page, start, data[done : done + count], key_id)
            done += count

    def _store(self, page: int, start: int, data: Data, key_id: KeyId) -> None:
        # A store that covers the page needs nothing from DRAM.
        copy = self._hold(page, key_id, fill=len(data) != PAGE)
        if self.coherent and len(self._by_page[page]) > 1:
            self._only_tag(page, key_id)  # engines may share clean copies of several tags
        self._put(copy, start, data)

    def _put(self, copy: Copy, start: int, data: Data) -> None:
        self._pool.put(copy.slot, start, data)
        if copy.borrower is not None:
            copy.borrower.overwritten(copy.slot)
        first, last = start // LINE, (start + len(data) - 1) // LINE
        copy.dirty |= ((2 << (last - first)) - 1) << first

    # ---- requests that are not cached: devices, and transfers of STREAM bytes or more

    def snoop_read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        """Read without caching: copies of the same tag answer, DRAM does for the rest (errors as `read`).

        Other tags' copies are not looked at (unless hardware is coherent): a device's request has no ASID, so
        it never hits a guest's plaintext (§5 rule 4).
        """
        self.check(spa, length, key_id)
        copies = self._copies_in(spa, length, key_id)
        if not copies:
            return self._controller.read(spa, length, key_id)
        pieces: list[bytes] = []
        done, end = int(spa), spa + length
        for copy in copies:
            start, stop = max(copy.page, spa), min(copy.page + PAGE, end)
            if done < start:
                pieces.append(self._controller.read(Spa(done), start - done, key_id))
            pieces.append(self._pool.get(copy.slot, start - copy.page, stop - start))
            done = stop
        if done < end:
            pieces.append(self._controller.read(Spa(done), end - done, key_id))
        return b"".join(pieces)

    def read_into(self, spa: Spa, out: memoryview, key_id: KeyId) -> None:
        """Read into the caller's buffer without caching: the fastest way for megabytes (errors as `read`)."""
        length = len(out)
        self.check(spa, length, key_id)
        copies = self._copies_in(spa, length, key_id)
        self._controller.read_into(spa, out, key_id)
        for copy in copies:
            start, stop = max(copy.page, spa), min(copy.page + PAGE, spa + length)
            out[start - spa : stop - spa] = self._pool.get(copy.slot, start - copy.page, stop - start)

    def snoop_write(self, spa: Spa, data: Data, key_id: KeyId) -> None:
        """Write to DRAM without caching; copies of the same tag leave first (errors as `read`)."""
        length = len(data)
        self.check(spa, length, key_id)
        for copy in self._copies_in(spa, length, key_id):
            covered = spa <= copy.page and copy.page + PAGE <= spa + length
            self._leave_all((copy,), write_back=not covered)
        self._controller.write(spa, data, key_id)

    # ---- lending to an execution engine: `cbit.memory.lending.SlotLender`

    @property
    def window(self) -> memoryview:
        """The memory that slots are part of."""
        return self._pool.window

    def lend(self, page: Spa, key_id: KeyId, borrower: Borrower, *, write: bool) -> Slot:
        """Lend a copy (`SlotLender.lend`).

        On coherent hardware copies of one page may be read under several tags, or stored to under one (§6.2).
        """
        self.check(page, PAGE, key_id)
        if self.coherent and write:
            self._only_tag(page, key_id)
        elif self.coherent:
            self._clean_others(page, key_id)
        copy = self._hold(page, key_id, alone=False)
        if copy.borrower is not borrower:
            take_back((copy,))
            copy.borrower = borrower
        copy.lent_for_writing |= write
        return copy.slot

    def lend_along(
        self, page: Spa, count: int, key_id: KeyId, borrower: Borrower, *, write: bool
    ) -> list[Slot | None]:
        """Lend neighbouring copies (`SlotLender.lend_along`)."""
        self._controller.check(page, count * PAGE, key_id)
        if self._trusted.is_reached(page, count * PAGE):
            return [None] * count  # nobody asked for all of it
        pages = range(page, page + count * PAGE, PAGE)
        absent = [at for at in pages if at not in self._by_page]
        if len(absent) > self._pool.free and count > cluster(self.capacity):
            return [None] * count  # too small a cache to bring in what nobody asked for
        while len(absent) > self._pool.free:
            self._make_room(len(absent) - self._pool.free)
            absent = [at for at in pages if at not in self._by_page]  # some may just have left
        if len(absent) == count:  # the usual case
            return list(self._bring_in(page, count, key_id, borrower, write=write))
        for at, length in stretches(absent):
            self._bring_in(at, length, key_id, borrower, write=write)
        slots: list[Slot | None] = []
        for at in pages:
            copy = self._copies.get((at, key_id))
            mine = copy is not None and (copy.borrower is None or copy.borrower is borrower)
            if copy is None or not mine or len(self._by_page[at]) > 1:
                slots.append(None)
            else:
                copy.borrower = borrower
                copy.lent_for_writing |= write
                slots.append(copy.slot)
        return slots

    def _bring_in(
        self, page: int, count: int, key_id: KeyId, borrower: Borrower, *, write: bool
    ) -> list[Slot]:
        """Decrypt neighbouring pages in one pass of the engine, and lend them."""
        slots = self._pool.take_row(count)
        self._pool.fill(slots, lambda room: self._controller.read_into(Spa(page), room, key_id))
        self.fills += count
        now, copies, by_page = self._now, self._copies, self._by_page
        for at, slot in zip(range(page, page + count * PAGE, PAGE), slots, strict=True):
            now += 1
            copies[at, key_id] = copy = Copy(at, key_id, slot, 0, now, borrower, write)
            by_page[at] = {key_id: copy}
        self._now = now
        return slots

    def recall_from(self, borrower: Borrower, slots: Sequence[Slot] | None = None) -> None:
        """Take back what was lent to somebody (`SlotLender.recall_from`)."""
        wanted = None if slots is None else set(slots)
        copies = [c for c in self._copies.values() if c.borrower is borrower]
        take_back(c for c in copies if wanted is None or c.slot in wanted)

    # ---- cache maintenance

    def wbinvd(self) -> int:
        """Write back all tags and empty the cache; return the number of pages written back (§6.5)."""
        written = self._leave_all(self._copies.values(), write_back=True)
        self._trace.emit("memory.cache", "WBINVD", written_back=written)
        return written

    def invd(self) -> int:
        """Empty the cache and lose what was not written back; return the number of pages dropped (§6.5).

        Whether a core's INVD does this or WBINVD is its HWCR bit 4.  A reset does this as well.
        """
        dropped = len(self._copies)
        lost = self._leave_all(self._copies.values(), write_back=False)
        self._trace.emit("memory.cache", "INVD", dropped=dropped, lost=lost)
        return dropped

    def clflush(self, spa: Spa, key_id: KeyId) -> int:
        """Write back and invalidate the copy that holds ``spa``; return the pages written back.

        Reaches only the tag of the mapping it is executed through; every tag, on coherent hardware (§6.2).
        Errors are those of `MemoryController.check`.
        """
        self._controller.check(spa, 1, key_id)
        copies = self._by_page.get(spa & -PAGE, {}).values()
        return self._leave_all((c for c in copies if self.coherent or c.key_id == key_id), write_back=True)

    def vmpage_flush(self, spa: Spa, asid: int) -> int:
        """Write back and invalidate one ASID's private copy of a page; return the pages written back (§6.4).

        Raises:
            AddressError: ``spa`` is outside DRAM.
            ValueError: no guest has this ASID (0 among them: #GP(0) at the core).
        """
        key_id = guest(asid)
        self._controller.check(spa, 1, key_id)
        copy = self._copies.get((spa & -PAGE, key_id))
        return self._leave_all([copy] if copy else [], write_back=True)

    def flush(self, spa: Spa, length: int) -> int:
        """Write back and invalidate a range under every tag; return the pages written back.

        What the data fabric does for the secure processor (PspRdSzWrBkInvd, §6.4).

        Raises:
            AddressError: the range leaves DRAM.
        """
        self._controller.check(spa, length, KeyId(0))
        tags = self._by_page.get(spa & -PAGE)
        if 0 < length <= PAGE - spa % PAGE and (tags is None or len(tags) == 1):  # the usual case: one page
            return self._leave_alone(*tags.values()) if tags else 0
        copies = [copy for page in self._cached_pages(spa, length) for copy in self._by_page[page].values()]
        return self._leave_all(copies, write_back=True)

    # ---- copies

    def _hold(self, page: int, key_id: KeyId, *, fill: bool = True, alone: bool = True) -> Copy:
        """Return the tag's copy of a page, brought in if need be, now the most recently used.

        Args:
            page: which page.
            key_id: the tag.
            fill: whether a new copy needs what is in DRAM.
            alone: whether coherent hardware lets other tags' copies leave first.
        """
        tag = (page, key_id)
        copy = self._copies.get(tag)
        if copy is not None:
            return self._use(copy)
        if self.coherent and alone and page in self._by_page:
            self._only_tag(page, key_id)
        if self._pool.full:
            self._make_room()
        self._now += 1
        copy = Copy(page, key_id, self._pool.take(), dirty=0, used=self._now)
        if fill:
            self.fills += 1
            self._controller.read_into(Spa(page), self._pool.page(copy.slot), key_id)
        self._copies[tag] = copy
        self._by_page.setdefault(page, {})[key_id] = copy
        return copy

    def _use(self, copy: Copy) -> Copy:
        """Note that a copy was used now."""
        self._now += 1
        copy.used = self._now
        self._copies.move_to_end((copy.page, copy.key_id))
        return copy

    def _make_room(self, least: int = 1) -> None:
        """Let the least recently used copies leave; of lent ones several, because a recall is dear."""
        lent = next(iter(self._copies.values())).borrower is not None
        count = max(least, len(self._copies) // BATCH) if lent else least
        self.evictions += count
        if count == 1:
            self._leave_alone(*self._least_used(1))
        else:
            self._leave_all(self._least_used(count), write_back=True)

    def _least_used(self, count: int) -> list[Copy]:
        """Find the least recently used copies; a borrower, whose accesses nobody sees, is asked."""
        found: list[Copy] = []
        used: list[Copy] = []
        for copy in islice(self._copies.values(), CANDIDATES * count):
            in_use = copy.borrower is not None and copy.borrower.was_used(copy.slot)
            (used if in_use else found).append(copy)
            if len(found) == count:
                break
        return found + [self._use(copy) for copy in used][: count - len(found)]

    def _clean_others(self, page: int, key_id: KeyId) -> None:
        """Write back what other tags' copies of a page have; they stay, for reading (§6.2)."""
        for copy in [c for c in self._by_page.get(page, {}).values() if c.key_id != key_id]:
            if copy.borrower is not None and copy.lent_for_writing:
                copy.dirty |= copy.borrower.clean([copy.slot])[0]
                copy.lent_for_writing = False
            if copy.dirty:
                self._write_back([copy])
            copy.dirty = 0

    def _only_tag(self, page: int, key_id: KeyId) -> None:
        """Let the copies of other tags leave, as coherent hardware does before an access (§6.2)."""
        tags = self._by_page.get(page)
        if tags is None or (len(tags) == 1 and key_id in tags):
            return
        others = [copy for copy in tags.values() if copy.key_id != key_id]
        if page == self._taken_over + PAGE:  # page after page: a kernel clears or shares a region
            others += self._ahead(page, others[0].key_id)
        self._taken_over = others[-1].page
        if len(others) == 1:
            self._leave_alone(*others)
        else:
            self._leave_all(others, write_back=True)

    def _ahead(self, page: int, key_id: KeyId) -> Iterator[Copy]:
        """Find the copies of the pages that follow, all of them lent: a recall of each would be dear."""
        for at in range(page + PAGE, page + CLUSTER * PAGE, PAGE):
            tags = self._by_page.get(at)
            if tags is None or len(tags) > 1 or key_id not in tags or tags[key_id].borrower is None:
                return
            yield tags[key_id]

    def _copies_in(self, spa: int, length: int, key_id: KeyId) -> list[Copy]:
        """List a tag's copies of a range, in order, once coherence is as the hardware promises."""
        pages = self._cached_pages(spa, length)
        if not pages:
            return []
        if self.coherent:
            for page in pages:
                self._only_tag(page, key_id)
        return [self._copies[page, key_id] for page in pages if (page, key_id) in self._copies]

    def _leave_all(self, copies: Iterable[Copy], *, write_back: bool) -> int:
        """Let copies leave, least recently used first, wiped; return how many were dirty."""
        oldest_first = sorted(copies, key=attrgetter("used"))
        take_back(oldest_first)
        dirty = [copy for copy in oldest_first if copy.dirty]
        if write_back:
            for together in neighbours(dirty, most=MAX_STRETCH):
                self._write_back(together)
        for copy in oldest_first:
            self._forget(copy)
        self._pool.give_back([copy.slot for copy in oldest_first])
        return len(dirty)

    def _leave_alone(self, copy: Copy) -> int:
        """Let one copy leave, written back: as `_leave_all`, with less ado."""
        if copy.borrower is not None:
            take_back((copy,))
        if copy.dirty:
            self._write_back((copy,))
        self._forget(copy)
        self._pool.give_back((copy.slot,))
        return int(copy.dirty != 0)

    def _forget(self, copy: Copy) -> None:
        del self._copies[copy.page, copy.key_id]
        siblings = self._by_page[copy.page]
        del siblings[copy.key_id]
        if not siblings:
            del self._by_page[copy.page]

    def _write_back(self, copies: Sequence[Copy]) -> None:
        """Write dirty lines of neighbouring copies (`neighbours`) in one pass of the engine."""
        controller, first = self._controller, copies[0]
        slots = [copy.slot for copy in copies]
        spa, key_id = Spa(first.page), first.key_id  # not that of whoever needs the room (§6.1 rule 1)
        if all(copy.dirty == ALL_LINES for copy in copies):
            self._pool.look(slots, lambda data: controller.write(spa, data, key_id))
            return
        parts = [
            (at + start, at + stop)
            for at, copy in zip(range(0, PAGE * len(copies), PAGE), copies, strict=True)
            for start, stop in runs(copy.dirty)
        ]
        if len(parts) > 1:
            self._pool.look(slots, lambda data: controller.write_parts(spa, data, parts, key_id))
            return
        ((start, stop),) = parts
        controller.write(Spa(spa + start), self._pool.page(first.slot)[start:stop], key_id)

    def _cached_pages(self, spa: int, length: int) -> list[int]:
        """List the pages of a range that have a copy under any tag, in order."""
        if 0 < length <= PAGE - spa % PAGE:  # the usual case: one page
            return [spa & -PAGE] if spa & -PAGE in self._by_page else []
        pages = range(spa & -PAGE, spa + length, PAGE) if length else range(0)
        if len(pages) <= len(self._by_page):
            return [page for page in pages if page in self._by_page]
        return sorted(page for page in self._by_page if page in pages)
