"""What is typed, and which guest it is for.

a terminal         keys are one guest's; Ctrl-A n hands them to the next guest, Ctrl-A x ends the run
a pipe or file     every guest gets all of it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cbit.cli.run.terminal import Keyboard

_ESCAPE: Final = 0x01  # Ctrl-A, as with QEMU's -nographic


class Keys:
    """Hands on what is typed at one keyboard.

    Mutable.

    Args:
        keyboard: who types.
        guests: how many guests there are.

    Attributes:
        focus: number of the guest that a terminal's keys are for.
        end_asked: why somebody at the keyboard wants the end; empty while nobody does.
    """

    def __init__(self, keyboard: Keyboard, *, guests: int = 1) -> None:
        self._keyboard = keyboard
        self._waiting = [bytearray() for _ in range(guests)]
        self._escaped = False
        self.focus = 0
        self.end_asked = ""

    @property
    def is_open(self) -> bool:
        """Whether somebody may still type, or has typed what a guest has not read."""
        return self._keyboard.is_open or any(self._waiting)

    def wait(self, seconds: float) -> bool:
        """Wait until something is typed, or so long."""
        return self._keyboard.wait(seconds)

    def look(self) -> None:
        """Take what a terminal has typed, although no guest asks for it: one that hangs never does."""
        if self._keyboard.is_terminal:
            self._sort(self._keyboard.typed())

    def of(self, number: int) -> Callable[[], bytes]:
        """Give what a guest calls for the bytes that were typed since its last call; it never waits."""

        def typed() -> bytes:
            self._sort(self._keyboard.typed())
            data = bytes(self._waiting[number])
            self._waiting[number].clear()
            return data

        return typed

    def _sort(self, data: bytes) -> None:
        if not self._keyboard.is_terminal:
            for waiting in self._waiting:
                waiting.extend(data)
            return
        for byte in data:
            if self._escaped:
                self._escaped = False
                self._escape(byte)
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                self._waiting[self.focus].append(byte)

    def _escape(self, byte: int) -> None:
        """Do what is behind Ctrl-A; a second Ctrl-A is one Ctrl-A, and anything unknown is dropped."""
        if byte in b"xX":
            self.end_asked = "ended with Ctrl-A x"
        elif byte in b"nN":
            self.focus = (self.focus + 1) % len(self._waiting)
        elif byte in (_ESCAPE, ord("a")):
            self._waiting[self.focus].append(_ESCAPE)
