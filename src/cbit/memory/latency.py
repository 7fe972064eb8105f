"""What encryption costs in time: DRAM lines are counted, and one published figure is applied.

Paper: performance-facts.md §5 and, for the figure, §2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EXTRA_NS_PER_ENCRYPTED_READ: Final = 8
SOURCE: Final = (
    "performance-facts.md §2.1: 64 MB working set, huge pages, EPYC 7713P, +8.0 ns a read (raw logs of "
    "rcastellotti/gr); measured SNP against plain, so it includes RMP effects; range 3-15 ns"
)


@dataclass(slots=True)
class LineCounts:
    """DRAM lines moved since power-on, by direction and by whether the AES engine was in the path.

    Mutable: the memory controller counts here.
    """

    reads_encrypted_lines: int = 0
    reads_plain_lines: int = 0
    writes_encrypted_lines: int = 0
    writes_plain_lines: int = 0

    def count(self, lines: int, *, encrypted: bool, write: bool) -> None:
        """Add one transfer of ``lines`` lines."""
        if write and encrypted:
            self.writes_encrypted_lines += lines
        elif write:
            self.writes_plain_lines += lines
        elif encrypted:
            self.reads_encrypted_lines += lines
        else:
            self.reads_plain_lines += lines

    def report(self) -> LatencyReport:
        """Freeze the counts and price them."""
        return LatencyReport(
            reads_encrypted_lines=self.reads_encrypted_lines,
            reads_plain_lines=self.reads_plain_lines,
            writes_encrypted_lines=self.writes_encrypted_lines,
            writes_plain_lines=self.writes_plain_lines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """The counts of a run and the modelled extra time of its encryption.

    Writes are posted and cost nothing visible; C=0 accesses and cache hits pay nothing.
    """

    reads_encrypted_lines: int
    reads_plain_lines: int
    writes_encrypted_lines: int
    writes_plain_lines: int
    source: str = SOURCE

    @property
    def extra_ns(self) -> int:
        """Nanoseconds that the AES engine added, had every read waited for its own line."""
        return self.reads_encrypted_lines * EXTRA_NS_PER_ENCRYPTED_READ
