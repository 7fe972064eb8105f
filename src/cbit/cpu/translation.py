"""A finished translation: what one TLB entry holds, and the access that may use it.

Paper: memory-encryption.md §7 rule 1 (the C-bits are kept, because a hit needs them), §4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cbit.cpu.control import Controls
from cbit.cpu.paging import Access, Kind, Leaf
from cbit.spec.address import PAGE, Spa


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """Where one 4 KiB page of linear addresses is, and everything that a later hit must know.

    Attributes:
        page: system physical address of the page.
        leaf: the leaf of the tables that software inside uses (host's or guest's), with its C-bit.
        nested: the nested leaf, with its C-bit; None in the host.
    """

    page: Spa
    leaf: Leaf
    nested: Leaf | None = None

    @property
    def nested_c(self) -> bool:
        """The nested C-bit; False in the host, where there is none."""
        return self.nested is not None and self.nested.c

    def serves(self, access: Access, controls: Controls, nested: Controls | None = None) -> bool:
        """Whether a hit suffices; otherwise the tables must be walked (again).

        A write to a page not yet marked dirty walks, to mark it.  An access that this entry would refuse
        walks too: the tables may have become more generous, and if they have not, the walk raises the fault.
        """
        if self.leaf.refuses(access, controls) or (access.kind is Kind.WRITE and not self.leaf.dirty):
            return False
        if self.nested is None or nested is None:
            return True
        # Every access of a guest is a user access to the nested tables.
        as_user = Access(access.kind, user=True)
        return not self.nested.refuses(as_user, nested) and (
            access.kind is not Kind.WRITE or self.nested.dirty
        )

    def spa(self, linear: int) -> Spa:
        """System physical address of ``linear``, which lies in this page."""
        return Spa(self.page + linear % PAGE)


def pieces(linear: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range at page boundaries into (address, length): neighbours need not be neighbours in DRAM."""
    end = linear + length
    while linear < end:
        count = min(PAGE - linear % PAGE, end - linear)
        yield linear, count
        linear += count
