"""Hands on the modules: read the cells, dump them, cool them and carry them away.

No key, no engine, no cache: what is found here is what encryption failed to hide.
Whoever wants a complete image executes WBINVD first; the probe cannot.

Paper: memory-encryption.md §1 rule 1, §9.3; attacks.md A1 (cold boot), A2 (bus probe).
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from cbit.crypto.entropy import Entropy
from cbit.memory.dram import Dram
from cbit.memory.physical import Data
from cbit.spec.address import MIB, Spa

_CHUNK: Final = MIB


class FrozenDram(Dram):
    """Modules pulled out of a machine: a copy of its cells at that moment, and the machine no longer matters.

    Attributes:
        decayed_bits: how many bits the way cost.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.decayed_bits = 0


class Probe:
    """Reads raw cells of a running machine, or of modules carried away."""

    def __init__(self, dram: Dram) -> None:
        self._dram = dram

    @property
    def size(self) -> int:
        """Bytes of DRAM under the probe."""
        return self._dram.size

    def read(self, spa: Spa, length: int) -> bytes:
        """Read raw cells.

        Raises:
            AddressError: the range leaves DRAM.
        """
        return bytes(self._dram.cells(spa, length))

    def write(self, spa: Spa, data: Data) -> None:
        """Overwrite raw cells: nothing notices, for there is no integrity (§9.3; errors as `read`)."""
        self._dram.cells(spa, len(data))[:] = data

    def find(self, pattern: bytes) -> Iterator[Spa]:
        """Yield every place where ``pattern`` lies in the cells.

        Raises:
            ValueError: an empty pattern.
        """
        if not pattern:
            raise ValueError("an empty pattern is everywhere")
        overlap = len(pattern) - 1
        for start in range(0, self.size, _CHUNK):
            cells = self.read(Spa(start), min(_CHUNK + overlap, self.size - start))
            at = cells.find(pattern)
            while at >= 0:
                yield Spa(start + at)
                at = cells.find(pattern, at + 1)

    def dump(self, path: Path) -> None:
        """Write all cells to a file, byte for byte; runs of zeros become holes of a sparse file.

        Raises:
            OSError: the file cannot be written, and what was there before is as it was; also for what is
                there and is no regular file, since to open a pipe is to wait for whoever reads it.
        """
        with _replacing(path) as image:
            for start, cells in self._touched():
                image.seek(start)
                image.write(cells)
            image.truncate(self.size)

    def freeze(self, entropy: Entropy, *, decay: float = 0.0) -> FrozenDram:
        """Cool the modules, cut the power and carry them away; the machine's own DRAM is only read.

        Args:
            entropy: decides which cells fade.
            decay: the probability for a cell to fall to its ground state on the way.

        Raises:
            ValueError: ``decay`` is not a probability.
        """
        frozen = FrozenDram(self.size)
        for start, cells in self._touched():
            frozen.cells(Spa(start), len(cells))[:] = cells
        frozen.decayed_bits = frozen.lose_power(entropy, decay=decay)
        return frozen

    def _touched(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the chunks that hold anything but zeros."""
        for start in range(0, self.size, _CHUNK):
            cells = self._dram.cells(Spa(start), min(_CHUNK, self.size - start))
            if np.frombuffer(cells, dtype=np.uint64).any():
                yield start, cells


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file, which becomes ``path`` when the block ends well, and nothing when it does not."""
    there = Path(os.path.realpath(path))  # what a link leads to is replaced, and not the link
    if there.exists() and not there.is_file():
        raise OSError(errno.EEXIST, "is there already, and is no regular file", str(path))
    beside = there.with_name(f".cbit-{secrets.token_hex(8)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, there)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:  # by the name that the caller knows
        raise OSError(error.errno, error.strerror, str(path)) from None
