"""Compile native sources, once per source and compiler, into a cache inside the virtual environment."""

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

from cbit.spec.errors import CbitError


class NoCompiler(CbitError):
    """A source cannot be compiled here: no compiler, none that takes it, or no place for the result."""


def cache_folder() -> Path:
    """Where compiled sources are kept: the virtual environment, if it is ours, or else the user's cache."""
    inside = Path(sys.prefix) / "var" / "cbit"
    if sys.prefix != sys.base_prefix and _is_writable(inside):
        return inside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cbit"


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
        NoCompiler: there is none, it refuses the source (the message has its words), or the cache cannot be
            written.
    """
    result = place(
        files, flags, name=name, suffix=suffix, included=included, folder=folder, compiler=compiler
    )
    if not result.is_file():
        _compile([*_command(compiler), *flags], files, result)
    return result


def place(
    files: Sequence[Path],
    flags: Sequence[str],
    *,
    name: str,
    suffix: str = "",
    included: Sequence[Path] = (),
    folder: Path | None = None,
    compiler: str | None = None,
) -> Path:
    """Say where the result of `compiled` is, or would be (arguments as of ``compiled``)."""
    source = [(path.name, path.read_bytes()) for path in (*files, *included)]
    decides = repr((source, _command(compiler), tuple(flags)))
    digest = hashlib.sha256(decides.encode()).hexdigest()[:16]
    return (folder or cache_folder()) / f"{name}-{digest}{suffix}"


def has_compiler() -> bool:
    """Whether there is a C compiler that can at least say its version."""
    asked = [*_command(None), "--version"]
    try:
        return (
            subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def _is_writable(folder: Path) -> bool:
    """Whether files can be made there, and the folder itself if it is not there yet."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return os.access(there, os.W_OK | os.X_OK)


def _command(compiler: str | None) -> list[str]:
    return shlex.split(compiler or os.environ.get("CC") or "cc") or ["cc"]


def _compile(command: list[str], sources: Sequence[Path], result: Path) -> None:
    if shutil.which(command[0]) is None:
        raise NoCompiler(
            f"no C compiler: {command[0]} is not there (Debian, Ubuntu: package gcc; CC=… names another)"
        )
    try:
        result.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
            made = Path(scratch) / result.name
            files = [str(path) for path in sources if path.suffix in (".c", ".S")]
            ended = subprocess.run(
                [*command, *files, "-o", str(made)], capture_output=True, text=True, check=False
            )
            if ended.returncode:
                raise NoCompiler(f"{command[0]} cannot compile {' '.join(files)}:\n{ended.stderr.strip()}")
            made.replace(result)  # atomic: two processes may compile at once
    except OSError as error:
        raise NoCompiler(f"cannot keep what is compiled in {result.parent}: {error.strerror}") from error
