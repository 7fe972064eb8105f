"""The guest's serial line on this side: what it printed, what is looked for in it, what is typed.

Nothing here knows a terminal: bytes come from a function and go to a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

PANIC: Final = b"Kernel panic - not syncing"
_NO_MEMORY: Final = re.compile(r"deadlocked on memory|[Oo]ut of memory")
_BOUNCES: Final = re.compile(r"software IO TLB: .*\b(\d+)MB\)?$")
_KEEP: Final = 4096  # bytes of output among which a text is looked for


class GuestConsole:
    """The other end of the guest's serial line.

    Mutable.

    Attributes:
        transcript: every byte that the guest sent.
        seen: whether the text that was waited for has come.
        panicked: whether a kernel has said that it panics.
        hold: whether what is typed has to wait, as the guest does not listen yet.
        unread: whether nobody reads what is shown any more.
    """

    def __init__(
        self,
        *,
        show: Callable[[bytes], None],
        typed: Callable[[], bytes],
        until: bytes = b"",
    ) -> None:
        """Connect the line.

        Args:
            show: takes what the guest prints, in pieces.
            typed: gives what was typed since the last call; never waits.
            until: a text to look for; empty: none.
        """
        self.transcript = bytearray()
        self.seen = False
        self.panicked = False
        self.hold: Callable[[], bool] = lambda: False
        self.unread = False
        self._show = show
        self._typed = typed
        self._until = until
        self._shown = 0

    def write(self, byte: int, /) -> None:
        """Take a byte; a line at a time is shown, or what there is at the next `flush`."""
        transcript = self.transcript
        transcript.append(byte)
        if self._until and not self.seen and byte == self._until[-1]:
            self.seen = transcript.endswith(self._until)
        if byte == 0x0A:
            if not self.panicked and PANIC in transcript[-_KEEP:]:
                self.panicked = True
            self.flush()

    def read(self) -> bytes:
        """Give what was typed."""
        return b"" if self.hold() else self._typed()

    def flush(self) -> None:
        """Show what has not been shown."""
        if self._shown < len(self.transcript):
            try:
                self._show(bytes(self.transcript[self._shown :]))
            except BrokenPipeError:
                self.unread = True
            self._shown = len(self.transcript)

    @property
    def lines(self) -> list[str]:
        """The text, line by line, as a person would read it: without control sequences."""
        text = re.sub(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[78cDEHM]", b"", bytes(self.transcript))
        return [line.rstrip("\r") for line in text.decode("utf-8", "replace").split("\n")]

    @property
    def panic(self) -> str:
        """What the kernel said when it panicked; and if memory ran out, what it had taken for its devices."""
        lines = self.lines
        said = next((line for line in lines if PANIC.decode() in line), "")
        said = said[said.find("Kernel panic") :]
        bounces = next((found[1] for line in lines if (found := _BOUNCES.search(line))), "")
        if not bounces or not _NO_MEMORY.search(said):
            return said
        # Not ours to mend: under SEV Linux takes 6 % of memory for bounce buffers, and 64 MiB at least.
        return (
            f"{said}; {bounces} MiB of its memory went to bounce buffers, which a kernel takes under SEV: "
            "give it more with --memory, or let it take 16 MiB with --append swiotlb=8192"
        )
