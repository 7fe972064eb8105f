"""The program that opens the encrypted disk inside the guest, compiled once.

``unlock.c`` says what it does and why it is so small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cbit.compiler import compiled

SOURCE: Final = Path(__file__).parent / "unlock.c"
# Static and without a C library; nothing in it depends on who compiled it, where, or when.
FLAGS: Final = (
    *("-std=gnu11", "-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"),
    *("-fno-pie", "-no-pie", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-s"),
    *("-Wall", "-Wextra", "-Werror"),
)


def unlock_program(folder: Path | None = None, *, compiler: str | None = None) -> bytes:
    """Return the program, compiled if it is not there yet.

    Args:
        folder: the cache of native parts; by default the usual one.
        compiler: a command; by default the environment's CC, or cc.

    Raises:
        NoCompiler: there is no such compiler, or it refuses the source; the message has its words.
    """
    return compiled([SOURCE], FLAGS, name="unlock", folder=folder, compiler=compiler).read_bytes()
