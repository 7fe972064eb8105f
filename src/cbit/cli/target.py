"""A file that a command will write at its end: opened at its beginning, and replaced as a whole.

Whoever waits for a result learns at once that it could not be kept; and whoever reads the file finds the old
contents or the new ones.  What is no regular file (a terminal, a pipe, a device) is written as it is.
"""

from __future__ import annotations

import os
import secrets
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


def insist_apart(args: Namespace, *written: str, texts: Sequence[str] = ()) -> None:
    """Refuse to write over a file that the command line names for something else, too.

    Args:
        args: the parsed command line.
        written: which of its members name files that will be written.
        texts: which of them name files and are no ``Path``.

    Raises:
        ValueError: it does; both are named.
    """
    for name in written:
        path: Path | None = getattr(args, name)
        others = [(other, value) for other, value in vars(args).items() if other != name]
        for other, value in others:
            for one in value if isinstance(value, list) else [value]:
                is_name = isinstance(one, Path) or (other in texts and one is not None)
                if path is not None and is_name and _is_same_file(path, Path(one)):
                    option, what = name.replace("_", "-"), other.replace("_", "-")
                    raise ValueError(f"--{option} {path}: the command line names the same file as {what}")


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether two names stand for one regular file, which may not be there yet."""
    if one.exists() and other.exists():
        return one.is_file() and one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


class Target:
    """The file.

    Mutable.

    Args:
        path: where it will be.
        option: what named it, for people.

    Raises:
        ValueError: it cannot be written there; the message says why.
    """

    def __init__(self, path: Path, *, option: str) -> None:
        self.path = path
        self._there = there = Path(
            os.path.realpath(path)
        )  # what a link leads to is replaced, and not the link
        self._beside: Path | None = None
        try:
            if there.exists() and not there.is_file():
                self._file: BinaryIO = there.open("wb")
            else:
                self._beside = there.with_name(f".{there.name}.{secrets.token_hex(4)}")
                self._file = self._beside.open("xb")
        except OSError as error:
            raise ValueError(f"{option} {path}: {error.strerror}") from None

    def write(self, content: bytes) -> None:
        """Write it.

        Raises:
            OSError: it cannot be written, and is as it was; the file is named.
        """
        try:
            with self._file as file:
                file.write(content)
            if self._beside is not None:
                self._beside.replace(self._there)
                self._beside = None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        """Leave nothing behind of a file that was not written."""
        with suppress(OSError):  # what could not be written cannot be closed either
            self._file.close()
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)
            self._beside = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
