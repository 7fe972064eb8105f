"""Standard input, output and error are there, whatever our caller gave us.

A caller may have closed them.  The next file that is opened then takes the number, and what is written to
standard error goes there; Python for its part has no ``sys.stdout``, and prints errors where it has one.

Imports as little as it can: a head start is delayed by it.
"""

from __future__ import annotations

import os
import sys


def complete() -> None:
    """Put /dev/null where a descriptor of 0 to 2 is missing, and a stream where Python has none.

    A program that is executed later finds the descriptor closed, as our caller left it: what stands in for
    it is closed by execve.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, and is not inherited
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as we live


def give_up(number: int) -> None:
    """Let what is still to be written to a descriptor go nowhere: nobody takes it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
