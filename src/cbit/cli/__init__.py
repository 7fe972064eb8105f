"""The command line: ``main`` reads and answers it.

Nothing is loaded here but what a head start needs; `command_line` does the rest.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from cbit.cli import head_start, standard_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    standard_streams.complete()
    words = list(sys.argv[1:] if argv is None else argv)
    begun = head_start.begin(words)
    hurried = argv is None and bool(begun)  # the process is this command's, and ends with it
    if hurried:
        gc.disable()  # going through all that is loaded, time and again, finds no garbage
    from cbit.cli import command_line

    code = command_line.run(words, begun)
    if hurried:
        gc.freeze()  # nor does it at the end
    return code
