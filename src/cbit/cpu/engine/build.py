"""Compile native sources, once per source and compiler, into a cache inside the virtual environment.

``python -m cbit.cpu.engine.build`` does it for the stubs ahead of time and prints where the result is.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cbit.cpu.engine.errors import NoEngine

NATIVE: Final = Path(__file__).parent / "native"
# The stubs read "the engine of this thread" at every TLB fill: the cheapest kind of thread-local variable.
FLAGS: Final = (
    *("-std=gnu11", "-O2", "-fPIC", "-shared", "-ftls-model=initial-exec"),
    *("-Wall", "-Wextra", "-Werror"),
)


def cache_folder() -> Path:
    """Where compiled stubs are kept: the virtual environment, or the user's cache outside one."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "var" / "cbit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cbit"


def compiled_stubs(folder: Path | None = None, *, compiler: str | None = None) -> Path:
    """Return the engine's shared library, compiled if it is not there yet (as ``compiled``)."""
    return compiled(sources(), FLAGS, name="stubs", suffix=".so", folder=folder, compiler=compiler)


def compiled(
    files: Sequence[Path],
    flags: Sequence[str],
    *,
    name: str,
    suffix: str = "",
    included: Sequence[Path] = (),
    folder: Path | None = None,
    compiler: str | None = None,
) -> Path:
    """Return what a compiler makes of some sources; the same sources are compiled once.

    Args:
        files: C and assembly sources, and headers that they include.
        flags: the compiler's options.
        name: what the result is called, before a hash of all that decides its contents.
        suffix: how its name ends.
        included: sources of any kind that those include.
        folder: the cache; by default `cache_folder`.
        compiler: a command; by default the environment's CC, or cc.

    Raises:
        NoEngine: there is no such compiler, or it refuses the source; the message has its words.
    """
    command = _command(compiler)
    source = [(path.name, path.read_bytes()) for path in (*files, *included)]
    digest = hashlib.sha256(repr((source, command, tuple(flags))).encode()).hexdigest()[:16]
    result = (folder or cache_folder()) / f"{name}-{digest}{suffix}"
    if not result.is_file():
        _compile([*command, *flags], files, result)
    return result


def has_compiler() -> bool:
    """Whether there is a C compiler."""
    return shutil.which(_command(None)[0]) is not None


def _command(compiler: str | None) -> list[str]:
    return shlex.split(compiler or os.environ.get("CC") or "cc") or ["cc"]


def sources() -> list[Path]:
    """List the native sources, headers too."""
    return sorted(path for path in NATIVE.iterdir() if path.suffix in (".c", ".h"))


def _compile(command: list[str], sources: Sequence[Path], result: Path) -> None:
    if shutil.which(command[0]) is None:
        wanted = command[0]
        raise NoEngine(
            f"no C compiler: {wanted} is not there; guests execute through stubs that are compiled here"
            " (Debian, Ubuntu: package gcc; CC=… names another compiler)"
        )
    result.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
        made = Path(scratch) / result.name
        files = [str(path) for path in sources if path.suffix in (".c", ".S")]
        ended = subprocess.run(
            [*command, *files, "-o", str(made)], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise NoEngine(f"{command[0]} cannot compile {' '.join(files)}:\n{ended.stderr.strip()}")
        made.replace(result)  # atomic: two processes may compile at once


if __name__ == "__main__":
    try:
        print(compiled_stubs())
    except NoEngine as error:
        sys.exit(f"cbit: {error}")
