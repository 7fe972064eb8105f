"""The memory of the program that issued a command, as a driver sees it: copy_from_user and copy_to_user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol


class CallerMemory(Protocol):
    """All of it; every method raises EFAULT (``OSError``) for what the program does not have."""

    def read(self, address: int, length: int) -> bytes:
        """Read exactly ``length`` bytes."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``."""
        ...

    def write_all(self, writes: Sequence[tuple[int, bytes]]) -> None:
        """Make several writes; all are tried, and the first fault is raised."""
        ...


def write_each(write: Callable[[int, bytes], None], writes: Iterable[tuple[int, bytes]]) -> None:
    """Make several writes one by one, as ``CallerMemory.write_all`` promises."""
    fault: OSError | None = None
    for address, data in writes:
        try:
            write(address, data)
        except OSError as error:
            fault = fault or error
    if fault is not None:
        raise fault
