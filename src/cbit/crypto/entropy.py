"""Randomness as an argument: the machine's true source, or a seed that makes a run repeatable."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol


class Entropy(Protocol):
    """A source of random bytes."""

    def draw(self, length: int) -> bytes:
        """Return ``length`` fresh bytes."""
        ...


class SystemEntropy:
    """The operating system's generator."""

    def draw(self, length: int) -> bytes:
        """Return ``length`` fresh bytes."""
        return os.urandom(length)


class SeededEntropy:
    """The same seed gives the same bytes: for tests and for traces that must repeat.

    SHAKE-256 over seed and call number; never for keys that protect anything.
    """

    def __init__(self, seed: int | str) -> None:
        self._seed = str(seed).encode()
        self._calls = 0

    def draw(self, length: int) -> bytes:
        """Return the next ``length`` bytes of this seed's stream."""
        self._calls += 1
        call = self._calls.to_bytes(8, "little")
        return hashlib.shake_256(len(self._seed).to_bytes(4, "little") + self._seed + call).digest(length)
