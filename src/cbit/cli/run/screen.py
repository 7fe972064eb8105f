"""Several guests' consoles on one stream: whole lines, each behind its guest's name.

alice | [    0.000000] Linux version …
bob   | [    0.000000] Linux version …
alice | / #                                 unfinished: shown at once where somebody types, else at the end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Screen:
    """The stream.

    Mutable.

    Args:
        show: takes bytes.
        names: of the guests.
        typing: number of the guest whose unfinished line is shown at once; None: nobody types.
    """

    def __init__(
        self, show: Callable[[bytes], None], names: Sequence[str], *, typing: Callable[[], int | None]
    ) -> None:
        width = max(map(len, names))
        self._show = show
        self._prefixes = [f"{name:<{width}} | ".encode() for name in names]
        self._typing = typing
        self._held = [b"" for _ in names]
        self._open: int | None = None  # whose unfinished line is on the screen

    def of(self, number: int) -> Callable[[bytes], None]:
        """Give what takes a guest's output."""
        return lambda data: self._take(number, data)

    def close(self) -> None:
        """Show the lines that were never finished."""
        for number, rest in enumerate(self._held):
            if rest:
                self._put(number, rest)
        self._held = [b"" for _ in self._held]
        self._end_line()

    def _take(self, number: int, data: bytes) -> None:
        *lines, rest = (self._held[number] + data).split(b"\n")
        for line in lines:
            self._put(number, line + b"\n")
        self._held[number] = rest
        if rest and self._typing() == number:
            self._put(number, rest)
            self._held[number] = b""

    def _put(self, number: int, text: bytes) -> None:
        if self._open != number:
            self._end_line()
            self._show(self._prefixes[number])
        self._show(text)
        self._open = None if text.endswith(b"\n") else number

    def _end_line(self) -> None:
        if self._open is not None:
            self._show(b"\r\n")
            self._open = None
