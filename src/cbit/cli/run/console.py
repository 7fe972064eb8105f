"""The guest's serial line on this side: what it printed, what is looked for in it, what is typed.

Nothing here knows a terminal: bytes come from a function and go to a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

# What a kernel says begins with its time, and may stand behind what a program has not finished; anybody may
# print the words alone.  A kernel that leaves its time out (printk.time=0) has the line's beginning alone.
_TIME: Final = rb"\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? "
_TIMED: Final = re.compile(rb"(?:<\d>)?" + _TIME)
_PANIC: Final = re.compile(_TIME + rb"(Kernel panic - not syncing.*)")
_PANIC_WITHOUT_TIME: Final = re.compile(rb"(?:<\d>)?(Kernel panic - not syncing.*)")
_NO_MEMORY: Final = re.compile(r"deadlocked on memory|[Oo]ut of memory")
_BOUNCES: Final = re.compile(r"software IO TLB: .*\b(\d+)MB\)?$")
_KEEP: Final = 4096  # bytes of a line that are looked at


class GuestConsole:
    """The other end of the guest's serial line.

    Mutable.

    Attributes:
        transcript: every byte that the guest sent.
        seen: whether the text that was waited for has come.
        panicked: whether a kernel has said that it panics.
        hold: whether what is typed has to wait, as the guest does not listen yet.
        lost: why what the guest prints cannot be shown any more; None: it can.
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
        self.lost: OSError | None = None
        self._show = show
        self._typed = typed
        self._until = until
        self._shown = 0
        self._line = 0  # where the line begins
        self._timed = False  # the kernel says when it says something
        self._panic = ""

    def write(self, byte: int, /) -> None:
        """Take a byte; a line at a time is shown, or what there is at the next `flush`."""
        transcript = self.transcript
        transcript.append(byte)
        if self._until and not self.seen and byte == self._until[-1]:
            self.seen = transcript.endswith(self._until)
        if byte == 0x0A:
            if not self.panicked:
                self._look(bytes(transcript[self._line : self._line + _KEEP]))
            self._line = len(transcript)
            self.flush()

    def _look(self, line: bytes) -> None:
        """See whether a line is a kernel's last."""
        self._timed = self._timed or _TIMED.match(line) is not None
        found = _PANIC.search(line) if self._timed else _PANIC_WITHOUT_TIME.match(line)
        if found is not None:
            self.panicked = True
            self._panic = found[1].decode("utf-8", "replace").rstrip("\r\n")

    def read(self) -> bytes:
        """Give what was typed."""
        return b"" if self.hold() else self._typed()

    def flush(self) -> None:
        """Show what has not been shown."""
        if self._shown < len(self.transcript):
            try:
                self._show(bytes(self.transcript[self._shown :]))
            except OSError as error:
                self.lost = error
            self._shown = len(self.transcript)

    @property
    def lines(self) -> list[str]:
        """The text, line by line, as a person would read it: without control sequences."""
        text = re.sub(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[78cDEHM]", b"", bytes(self.transcript))
        return [line.rstrip("\r") for line in text.decode("utf-8", "replace").split("\n")]

    @property
    def panic(self) -> str:
        """What the kernel said when it panicked; and if memory ran out, what it had taken for its devices."""
        said = self._panic
        bounces = next((found[1] for line in self.lines if (found := _BOUNCES.search(line))), "")
        if not bounces or not _NO_MEMORY.search(said):
            return said
        # Not ours to mend: under SEV Linux takes 6 % of memory for bounce buffers, and 64 MiB at least.
        return (
            f"{said}; {bounces} MiB of its memory went to bounce buffers, which a kernel takes under SEV: "
            "give it more with --memory, or let it take 16 MiB with --append swiotlb=8192"
        )
