"""What is being done right now, on standard error, while it takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def progress(what: str, *, quiet: bool) -> Iterator[None]:
    """Show ``what`` with a spinner while the block runs; on a pipe one plain line, with ``quiet`` nothing."""
    if quiet:
        yield
        return
    if not sys.stderr.isatty():
        with suppress(OSError):  # nobody reads it: no reason not to do it
            print(f"cbit: {what} …", file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield
