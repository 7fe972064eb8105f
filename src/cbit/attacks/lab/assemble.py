"""Assembles the victims' programs: source in the repository, no opaque bytes.

The system's C compiler, which the execution engine needs anyway, brings the assembler and the linker.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from cbit.cpu.engine.errors import NoEngine


@functools.cache
def assemble(source: str, at: int) -> bytes:
    """Assemble Intel syntax, 64-bit, for a place in memory.

    Raises:
        NoEngine: there is no compiler.
        ValueError: it refuses the source; the message has its words.
    """
    command = shlex.split(os.environ.get("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        raise NoEngine("no C compiler: victims are assembled here (Debian, Ubuntu: package gcc)")
    with tempfile.TemporaryDirectory() as scratch:
        text, linked = Path(scratch) / "victim.s", Path(scratch) / "victim.bin"
        text.write_text(
            f".intel_syntax noprefix\n.text\n.globl _start\n_start:\n{source}\n", encoding="ascii"
        )
        options = [
            "-nostdlib",
            "-static",
            "-Wl,--oformat=binary",
            f"-Wl,-Ttext={at:#x}",
            "-Wl,--build-id=none",
        ]
        done = subprocess.run(
            [*command, *options, "-o", str(linked), str(text)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"a victim's program does not assemble:\n{done.stderr.strip()}")
        return linked.read_bytes()
