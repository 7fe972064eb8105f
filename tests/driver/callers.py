"""What every stand-in for a program's memory has in common."""

from __future__ import annotations

from collections.abc import Sequence

from cbit.driver.caller_memory import write_each


class EachWrite:
    """Makes several writes one by one: all are tried, and the first fault is raised."""

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``."""
        raise NotImplementedError

    def write_all(self, writes: Sequence[tuple[int, bytes]]) -> None:
        write_each(self.write, writes)
