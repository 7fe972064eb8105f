"""INS and OUTS: an instruction that exits with its port, and whose data are in memory.

      EXITINFO1   port 31:16   segment 12:10   address size 9:7   operand size 6:4   REP 3   STR 2   IN 0

For a single IN or OUT the value is in rAX, and the VMCB says everything.  Here somebody must walk the
software's page tables and reach its memory, as the processor would have.  The hypervisor does so for a guest
whose memory it can read, and the board for software on the bare machine, whose core drives the C-bit.  Of a
SEV guest the tables and the private pages are ciphertext to it.

Paper: memory-encryption.md §3, §4.1, §4.2; the exit's own fields are the AMD64 architecture's.
Not modelled: limits of segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from cbit.cpu.control import Controls
from cbit.cpu.encryption_rules import Use
from cbit.cpu.paging import Access, Kind
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.translation import Translation, pieces
from cbit.spec.address import Spa
from cbit.spec.key_id import KeyId

MOST: Final = 1024  #: elements of one exit: a repeated instruction goes on at the next, interrupts permitting
RCX, RSI, RDI = 1, 6, 7
ES, FS = 0, 4
_IN, _REP = 1 << 0, 1 << 3
_WORD: Final = (1 << 64) - 1


class Translator(Protocol):
    """Who walks: `cbit.cpu.nested.NestedWalker`, or `cbit.cpu.host_tables.HostTranslator`."""

    def translate(self, linear: int, access: Access, controls: Controls) -> Translation:
        """Walk for one linear address; what refuses raises its fault."""
        ...

    def key(self, use: Use, translation: Translation, controls: Controls) -> KeyId:
        """Decide the key of an access."""
        ...


class LinearMemory:
    """Memory by the linear addresses of the software that runs.

    Args:
        translator: walks its tables.
        port: physical memory.
        controls: its control registers now.
        user: it runs at CPL 3.
    """

    def __init__(self, translator: Translator, port: PhysicalPort, controls: Controls, *, user: bool) -> None:
        self._translator = translator
        self._port = port
        self._controls = controls
        self._user = user

    def reach(self, linear: int, length: int, kind: Kind) -> list[tuple[Spa, int, KeyId]]:
        """Translate a range, all of it before anything is touched.

        Raises:
            PageFault, GeneralProtection: the software's own tables refuse, or the address is not canonical.
            NestedPageFault: the hypervisor's tables refuse.
        """
        found = []
        for at, size in pieces(linear, length):
            where = self._translator.translate(at, Access(kind, user=self._user), self._controls)
            found.append((where.spa(at), size, self._translator.key(Use.DATA, where, self._controls)))
        return found

    def read(self, linear: int, length: int) -> bytes:
        """Load (errors as `reach`; AddressError: there is no memory)."""
        reached = self.reach(linear, length, Kind.READ)
        return b"".join(self._port.read(spa, size, key) for spa, size, key in reached)

    def write(self, reached: list[tuple[Spa, int, KeyId]], data: bytes) -> None:
        """Store where `reach` has looked (AddressError: there is no memory)."""
        at = 0
        for spa, size, key in reached:
            self._port.write(spa, data[at : at + size], key)
            at += size


@dataclass(frozen=True, slots=True)
class StringIo:
    """One such instruction, as its exit describes it.

    Attributes:
        info: EXITINFO1.
        long: it is in 64-bit code.
        backwards: RFLAGS.DF.
    """

    info: int
    long: bool
    backwards: bool

    @property
    def port(self) -> int:
        """The port."""
        return self.info >> 16 & 0xFFFF

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return self.info >> 4 & 7

    @property
    def reads_port(self) -> bool:
        """INS."""
        return bool(self.info & _IN)

    @property
    def segment(self) -> int:
        """Number of the segment: ES for INS, DS or an override for OUTS."""
        return ES if self.reads_port else self.info >> 10 & 7

    @property
    def has_base(self) -> bool:
        """Whether the segment's base counts."""
        return not self.long or self.segment >= FS

    def count(self, rcx: int) -> int:
        """How many elements are left to do."""
        return rcx & self._mask if self.info & _REP else 1

    def linear(self, index: int, base: int) -> int:
        """Linear address of an element, by rSI or rDI."""
        return (base + (index & self._mask)) & (_WORD if self.long else _WORD >> 32)

    def steps(self, index: int, rcx: int) -> Iterator[tuple[int, int]]:
        """Give rSI or rDI, and rCX, after one element, after two, and so on."""
        step = -self.size if self.backwards else self.size
        while True:
            index = self._put(index, index + step)
            rcx = self._put(rcx, rcx - 1) if self.info & _REP else rcx
            yield index, rcx

    @property
    def _mask(self) -> int:
        return (1 << 16 * (self.info >> 7 & 7)) - 1

    def _put(self, old: int, value: int) -> int:
        """Write a register as wide as an address: 16 bits leave the rest alone, 32 clear it."""
        mask = self._mask
        return old & ~mask & _WORD | value & mask if mask == 0xFFFF else value & mask
