"""A VMCB on loan from the cache: VMRUN and #VMEXIT work on it where it lies.

A hypervisor reads and writes its VMCB between two exits through the same copy, so both see the same bytes.
If the cache takes the page back meanwhile, the engine goes by the machine's memory, as it does at first.

Paper: memory-encryption.md §6.1 (tags), §10.1 (VMCB).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cbit.cpu.engine.control_block import SAVED
from cbit.cpu.engine.processor import Processor
from cbit.memory.lending import SlotLender
from cbit.memory.pool import Slot
from cbit.spec.address import LINE, PAGE, Spa
from cbit.spec.key_id import KeyId

#: One bit a line that #VMEXIT stores to.
LINES: Final = sum(
    1 << line for line in {at // LINE for part in SAVED for at in range(part.start, part.stop, 8)}
)


class HeldBlock:
    """A VMCB where it lies in the cache, for whom it belongs to.  Mutable.

    Attributes:
        words: the page as 64-bit words; None as soon as it does not lie there any more.
    """

    __slots__ = ("words",)

    def __init__(self, words: memoryview | None = None) -> None:
        self.words = words


class BlockLoan:
    """The VMCB that the engine runs on now.  Mutable; a `cbit.memory.lending.Borrower`.

    Attributes:
        slot: where it lies in the lender's window; None: nowhere.
        held: the same for the hypervisor, which need not ask the cache for each field.  It may store to what
            #VMEXIT stores to.
    """

    def __init__(self, processor: Processor, lender: SlotLender) -> None:
        self._processor = processor
        self._lender = lender
        self.slot: Slot | None = None
        self.held = HeldBlock()

    def take(self, page: Spa, key: KeyId) -> None:
        """Borrow a VMCB, and let the native side see it; whatever was on loan before goes back.

        Raises:
            AddressError: no such DRAM.
        """
        slot = self._lender.lend(page, key, self, write=True)
        if self.slot != slot:
            self.give_back()
        if self.held.words is None:
            self.held = HeldBlock(self._lender.window[slot : slot + PAGE].cast("Q"))
        self.slot = slot
        self._processor.state.block = self._processor.slot_at(slot)

    def give_back(self) -> None:
        """Give back what is on loan."""
        if self.slot is not None:
            self._lender.recall_from(self, [self.slot])

    def recall(self, slots: Sequence[Slot]) -> list[int]:
        """Let go (`Borrower`)."""
        if self.slot in slots:
            self.slot = None
            self.held.words = None
            self._processor.state.block = None
        return [LINES] * len(slots)

    def clean(self, slots: Sequence[Slot]) -> list[int]:
        """Let go as well: the next VMRUN asks again (`Borrower`)."""
        return self.recall(slots)

    def stored(self, slot: Slot) -> int:
        """Say which lines #VMEXIT may have stored to (`Borrower`)."""
        return LINES

    def was_used(self, slot: Slot) -> bool:
        """The VMCB that runs is in use (`Borrower`)."""
        return True

    def overwritten(self, slot: Slot) -> None:
        """Hear that the hypervisor wrote: VMRUN looks anyway (`Borrower`)."""
