"""A box through which the hypervisor asks its guest for things, 32 bits at a time.

    offset    0            4                8           0xC
    read      request      next argument    -           -
    write     -            -                an answer   the end: 0 done, 1 not done

A request of 0 is none; the guest halts then, and looks again when it is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cbit.hypervisor.devices.ports import Ports

BASE: Final = 0xCB10
MOST_ANSWERS: Final = 4096  #: what a guest says beyond that is lost: it may talk for ever
_REQUEST, _ARGUMENT, _ANSWER, _END, _SIZE = 0x0, 0x4, 0x8, 0xC, 0x10
_WORD: Final = 0xFFFF_FFFF


@dataclass(slots=True)
class Asked:
    """One request.

    Mutable.

    Attributes:
        number: which request.
        arguments: what the guest may fetch; then zeros.
        answers: what it said.
        status: how it ended; None while it has not.
    """

    number: int
    arguments: Sequence[int] = ()
    answers: list[int] = field(default_factory=list)
    status: int | None = None

    @property
    def data(self) -> bytes:
        """The answers as bytes."""
        return b"".join(answer.to_bytes(4, "little") for answer in self.answers)


class RequestBox:
    """The box.

    Mutable.
    """

    def __init__(self, ports: Ports) -> None:
        """Attach it to a guest's ports."""
        self._waiting: list[Asked] = []
        self._current: Asked | None = None
        self._fetched = 0
        self._reads: dict[int, Callable[[], int]] = {_REQUEST: self._next, _ARGUMENT: self._argument}
        ports.wide(range(BASE, BASE + _SIZE), self._read, self._write)

    @property
    def idle(self) -> bool:
        """Whether nothing is asked, or being answered."""
        return self._current is None and not self._waiting

    @property
    def unfinished(self) -> list[Asked]:
        """What is being answered, if anything is, and what waits."""
        return [*([self._current] if self._current else []), *self._waiting]

    @property
    def fetched(self) -> int | None:
        """How many arguments of what is being answered were fetched; None if nothing is."""
        return None if self._current is None else self._fetched

    def resume(self, unfinished: Sequence[Asked], fetched: int | None) -> None:
        """Be the box that another one was: with its ``unfinished`` and ``fetched``."""
        self._waiting = list(unfinished)
        self._current = self._waiting.pop(0) if fetched is not None and self._waiting else None
        self._fetched = fetched or 0

    def ask(self, number: int, *arguments: int) -> Asked:
        """Ask for something; the guest takes it up when it runs."""
        asked = Asked(number, arguments)
        self._waiting.append(asked)
        return asked

    def listen(self, *arguments: int) -> Asked:
        """Hear what a guest says by itself, without fetching a request; it may fetch arguments."""
        self._current, self._fetched = Asked(0, arguments), 0
        return self._current

    def _read(self, port: int, size: int) -> int:
        read = self._reads.get(port - BASE)
        return read() & _WORD if read is not None and size == 4 else (1 << 8 * size) - 1

    def _write(self, port: int, size: int, value: int) -> None:
        at = port - BASE
        if self._current is None or size != 4:
            return
        if at == _ANSWER and len(self._current.answers) < MOST_ANSWERS:
            self._current.answers.append(value & _WORD)
        elif at == _END:
            self._current.status = value & _WORD
            self._current = None

    def _next(self) -> int:
        self._fetched = 0
        self._current = self._waiting.pop(0) if self._waiting else None
        return self._current.number if self._current else 0

    def _argument(self) -> int:
        if self._current is None or self._fetched >= len(self._current.arguments):
            return 0
        self._fetched += 1
        return self._current.arguments[self._fetched - 1]
