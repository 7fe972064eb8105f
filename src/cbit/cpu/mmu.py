"""The memory-management unit: TLB first, tables if it must, then the key, then memory.

The host's and the guest's differ only in their `Translator`.

Paper: memory-encryption.md §4, §7.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

from cbit.cpu.control import AddressRules, Controls, PagingMode
from cbit.cpu.encryption_rules import Use
from cbit.cpu.paging import Access, Kind
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.tlb import Tag, Tlb
from cbit.cpu.translation import Translation, pieces
from cbit.spec.address import PAGE, Spa
from cbit.spec.key_id import KeyId


class Translator(Protocol):
    """Whose tables are walked, and whose key is used."""

    rules: AddressRules
    nested: Controls | None

    def translate(self, linear: int, access: Access, controls: Controls) -> Translation:
        """Walk the tables."""
        ...

    def key(self, use: Use, translation: Translation, controls: Controls) -> KeyId:
        """Decide the key of an access through a translation, fresh or from the TLB."""
        ...


class Request(NamedTuple):
    """One piece of an access, as it leaves the core: address without C-bit, length in bytes, key."""

    spa: Spa
    length: int
    key_id: KeyId


class Mmu:
    """Linear accesses of one address space on one core.  Mutable: control registers, and the TLB."""

    def __init__(
        self, port: PhysicalPort, tlb: Tlb, *, tag: Tag, translator: Translator, controls: Controls
    ) -> None:
        self._port = port
        self._tlb = tlb
        self.tag = tag
        self.translator = translator
        self.controls = controls

    def read(self, linear: int, length: int, access: Access) -> bytes:
        """Read or fetch bytes, across pages if need be (errors as `locate`)."""
        return self.load(self.locate(linear, length, access))

    def write(self, linear: int, data: bytes, access: Access) -> None:
        """Write bytes; nothing is written if any page of the range refuses (errors as `locate`)."""
        self.store(self.locate(linear, len(data), access), data)

    def load(self, requests: list[Request]) -> bytes:
        """Send read requests to memory."""
        return b"".join(self._port.read(*request) for request in requests)

    def store(self, requests: list[Request], data: bytes) -> None:
        """Send write requests to memory, ``data`` cut to fit."""
        done = 0
        for request in requests:
            self._port.write(request.spa, data[done : done + request.length], request.key_id)
            done += request.length

    def locate(self, linear: int, length: int, access: Access) -> list[Request]:
        """Turn a linear range into the requests that would reach it.

        Raises:
            PageFault, GeneralProtection: this address space's own tables refuse.
            NestedPageFault: the nested tables refuse.
            EncryptedMmio: C=1 on a device's registers.
        """
        requests: list[Request] = []
        translation = None
        for start, count in pieces(linear, length):
            if translation is not None and translation.nested is None and start % translation.leaf.size:
                # The large page goes on, and one translation serves all of it.
                translation = Translation(page=Spa(translation.leaf.at(start) & -PAGE), leaf=translation.leaf)
            else:
                translation = self.translate(start, access)
            key = self.translator.key(access.kind.use, translation, self.controls)
            requests.append(Request(translation.spa(start), count, key))
        for request in requests:
            self._port.check(*request)
        return requests

    def translate(self, linear: int, access: Access) -> Translation:
        """Translate through the TLB: a hit answers without looking at the tables, stale or not."""
        hit = self._tlb.find(self.tag, linear)
        if hit is not None and hit.serves(access, self.controls, self.translator.nested):
            return hit
        found = self.translator.translate(linear, access, self.controls)
        if self.controls.mode is not PagingMode.OFF or found.nested is not None:
            self._tlb.fill(self.tag, linear, found)
        return found

    def walk(self, linear: int, kind: Kind = Kind.READ) -> Translation:
        """Translate for a supervisor by the tables alone, neither reading nor filling the TLB.

        Accessed and dirty bits are set as in any walk.
        """
        return self.translator.translate(linear, Access(kind), self.controls)

    def move_control(self, **changes: int) -> None:
        """Execute MOV to CR0, CR3 or CR4, with the flush that hardware does by itself.

        Raises:
            GeneralProtection: an illegal combination or a reserved bit.
            NotModelled: a paging feature that the model lacks.

        Paper: memory-encryption.md §7 rule 3.
        """
        new = self.controls.moved(self.translator.rules, **changes)
        old, self.controls = self.controls, new
        if old.flushes_everything(new):
            self._tlb.flush_mode_change(self.tag)
        elif "cr3" in changes:
            self._tlb.flush_after_mov_cr3(self.tag)

    def invalidate_page(self, linear: int) -> None:
        """Execute INVLPG: this address space's translations of one page, global ones too."""
        self._tlb.flush_page(linear, core=self.tag.core, asid=self.tag.asid)

    def set_alignment_check(self, *, on: bool) -> None:
        """Execute STAC or CLAC: RFLAGS.AC suspends SMAP."""
        self.controls = replace(self.controls, ac=on)
