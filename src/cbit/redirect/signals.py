"""Signals as descriptors: what the launcher is sent goes to the program.

What the terminal sends goes to the whole foreground group, so the program has it already.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from cbit.redirect.linux import checked, libc

#: Who gets one of these wants us to end, and not to wait for anybody else.
ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})

_INFO: Final = struct.Struct("<IiiI")  #: signalfd_siginfo: number, errno, code, sender; 128 bytes in all
_INFO_SIZE: Final = 128
_SIGSET_SIZE: Final = 128
_FROM_KERNEL: Final = 0x80

#: Not passed on: those of job control, which act on this process, and those that a fault of its own raises.
_OWN: Final = frozenset(
    {"SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT", "SIGCHLD", "SIGCLD"}
    | {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGIOT", "SIGSYS"}
    | {"SIGPIPE", "SIGXFSZ", "SIGXCPU"}
)


def passed_on() -> frozenset[int]:
    """Return the signals that a program gets when its launcher gets them."""
    own = {int(one) for one in signal.Signals if one.name in _OWN}
    return frozenset(int(one) for one in signal.valid_signals()) - own


class SignalQueue:
    """The signals sent to this process, one after another, while it holds them back.

    Attributes:
        before: the signals that were blocked before.
        ending: a descriptor that is readable while one of ``ENDING`` waits; for poll alone.
    """

    def __init__(self) -> None:
        wanted = passed_on() | {signal.SIGCHLD}
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        self._descriptor = _descriptor_of(wanted)
        self.ending = _descriptor_of(ENDING)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal waits."""
        return self._descriptor

    def take(self) -> Iterator[tuple[int, bool]]:
        """Yield (signal, whether it came from the kernel: a terminal, a timer) until none is left."""
        while True:
            try:
                info = os.read(self._descriptor, _INFO_SIZE)
            except BlockingIOError:
                return
            number, _, code, _ = _INFO.unpack_from(info)
            yield number, code >= _FROM_KERNEL

    def close(self) -> None:
        """Let signals through again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            os.close(self.ending)
            self._descriptor = self.ending = -1
            signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def _descriptor_of(signals: Iterable[int]) -> int:
    """Make a descriptor that is readable while one of these signals waits."""
    mask = bytearray(_SIGSET_SIZE)
    for number in signals:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    words = (ctypes.c_char * _SIGSET_SIZE).from_buffer(mask)
    return checked(libc().signalfd(-1, words, os.O_NONBLOCK | os.O_CLOEXEC))


def as_a_program_expects(blocked: set[int | signal.Signals]) -> None:
    """Undo, in a process about to execute a program, what Python and the launcher did to signals."""
    for number in passed_on() | {signal.SIGCHLD}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    # Python ignores these two from its start, which a program would inherit.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def end_by(number: int) -> None:
    """End this process by a signal, so that whoever waits for it sees the same as for the program."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # the program has left its core file, if any
    if number not in {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
