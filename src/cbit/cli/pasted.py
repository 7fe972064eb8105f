"""Names of files in commands that are printed for a person to paste into a shell."""

from __future__ import annotations

import os
import shlex


def pasted(path: str | os.PathLike[str]) -> str:
    """Write a file's name as a shell and a command line take it: quoted, and never for an option."""
    name = os.fspath(path)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)
