"""Find AES keys in an image of memory whose cells have partly faded.

    every byte offset whose window nearly obeys the key expansion; then bits are corrected until it does

Paper: attacks.md A1 (step 4).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Columns = NDArray[np.uint64]
_ACCEPTED: Final = 0.2  #: share of the bits of a schedule that may differ from what was read
_OPTIONS: Final = 8  #: code words that are considered for each bit position
_RANDOM_WORDS: Final = (30, 98)  #: ones among 128 bits of a key


def _sbox() -> bytes:
    """AES's substitution, from its definition: the inverse in GF(2^8), then an affine map."""
    powers, value = [], 1
    for _ in range(255):
        powers.append(value)
        value ^= value << 1 ^ (0x11B if value & 0x80 else 0)
        value &= 0xFF
    box = []
    for x in range(256):
        y = powers[-powers.index(x) % 255] if x else 0
        y ^= y << 1 ^ y << 2 ^ y << 3 ^ y << 4
        box.append((y ^ y >> 8) & 0xFF ^ 0x63)
    return bytes(box)


SBOX: Final = _sbox()


@dataclass(frozen=True, slots=True)
class Kind:
    """An AES key size.

    Attributes:
        words: of the key.
        rounds: words of the whole schedule.
    """

    words: int
    rounds: int


AES_128, AES_256 = Kind(4, 44), Kind(8, 60)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much of a schedule may have faded for it to be looked at closely, which is slow.

    Attributes:
        plain: wrong bits of 192 in relations without a substitution; noise has 96, give or take 7.
        substituted: share of wrong bits behind substitutions; noise has 0.5, give or take 0.03.
    """

    plain: int
    substituted: float


FADED: Final = Tolerance(68, 0.41)  #: as far as noise can be told from it
FRESH: Final = Tolerance(16, 0.15)  #: some bits in a hundred; for memory that is full of patterns


def _substitute(word: int) -> int:
    return int.from_bytes(bytes(SBOX[byte] for byte in word.to_bytes(4, "little")), "little")


def _step(kind: Kind, index: int, before: int) -> int:
    """What the word before contributes to word ``index`` of a schedule."""
    if index % kind.words == 0:
        rcon = 1
        for _ in range(index // kind.words - 1):
            rcon = rcon << 1 ^ (0x11B if rcon & 0x80 else 0)
        rotated = before >> 8 | (before & 0xFF) << 24
        return _substitute(rotated) ^ rcon
    if kind.words == 8 and index % 8 == 4:
        return _substitute(before)
    return before


def schedule(kind: Kind, words: list[int], at: int) -> list[int]:
    """The schedule that has ``words`` from word ``at`` on."""
    n, full = kind.words, [0] * kind.rounds
    full[at : at + n] = words
    for index in range(at + n, kind.rounds):
        full[index] = full[index - n] ^ _step(kind, index, full[index - 1])
    for index in range(at + n - 1, n - 1, -1):
        full[index - n] = full[index] ^ _step(kind, index, full[index - 1])
    return full


def aes_keys(
    image: bytes, kind: Kind, *, aligned: bool = False, tolerance: Tolerance = FADED
) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, key) of every schedule found.

    Args:
        image: of memory.
        kind: of key.
        aligned: look at offsets of whole words only, where programs that are compiled keep theirs.
        tolerance: how much may have faded.
    """
    for offset in _places(image, kind, aligned=aligned, tolerance=tolerance):
        read = np.frombuffer(image, np.uint32, kind.rounds, offset)
        key = correct(kind, [int(word) for word in read])
        if key is not None:
            yield offset, key


def _places(image: bytes, kind: Kind, *, aligned: bool, tolerance: Tolerance) -> list[int]:
    """Offsets where a window obeys the key expansion, nearly."""
    found: list[tuple[int, float]] = []
    shifts = 1 if aligned else 4
    for shift in range(shifts if len(image) > 4 * (kind.rounds + 1) else 0):
        words = np.frombuffer(image, np.uint32, (len(image) - shift) // 4, shift)
        last, n = len(words) - kind.rounds, kind.words
        window = [words[i : i + last] for i in range(n + 8)]
        ones = sum(np.bitwise_count(window[i]).astype(np.uint8) for i in range(4))
        wrong = np.zeros(last, np.uint8)
        for i in (1, 2, 3, 5, 6, 7):  # plain XORs, for both key sizes
            wrong += np.bitwise_count(window[n + i] ^ window[i] ^ window[n + i - 1])
        low, high = _RANDOM_WORDS
        for index in np.flatnonzero((wrong <= tolerance.plain) & (ones >= low) & (ones <= high)):
            share = _wrong_share(words[index : index + kind.rounds], kind)
            if share <= tolerance.substituted:
                found.append((4 * int(index) + shift, share))
    return _best_of_neighbours(sorted(found), 4 * kind.rounds)


def _linear(kind: Kind) -> list[int]:
    """The words of a schedule that are a plain XOR of two others."""
    special = {0, 4} if kind.words == 8 else {0}
    return [i for i in range(kind.words, kind.rounds) if i % kind.words not in special]


def _wrong_share(words: Words, kind: Kind) -> float:
    """Share of wrong bits in the relations with a substitution in them.

    The plain ones hold as well for a window that is a few bytes off, and for zeros.
    """
    read, plain = [int(word) for word in words], set(_linear(kind))
    checked = [i for i in range(kind.words, kind.rounds) if i not in plain]
    wrong = sum((read[i] ^ read[i - kind.words] ^ _step(kind, i, read[i - 1])).bit_count() for i in checked)
    return wrong / (32 * len(checked))


def _best_of_neighbours(found: list[tuple[int, float]], length: int) -> list[int]:
    """Of overlapping windows keep the best: most relations hold for a window that is a few bytes off, too."""
    best: list[tuple[int, float]] = []
    for offset, share in found:
        if best and offset - best[-1][0] < length:
            if share < best[-1][1]:
                best[-1] = offset, share
        else:
            best.append((offset, share))
    return [offset for offset, _ in best]


def correct(kind: Kind, read: list[int]) -> bytes | None:
    """Rebuild a key from a schedule with wrong bits; None if nothing near it obeys the expansion.

    1. The linear relations tie together the bits of one position in all words: a code, whose nearest words
       are found by trying all of them.
    2. What the nearest words say of some round is expanded; the schedule nearest to what was read wins.
    3. A position whose nearest word was the wrong one is given its next best, as long as that helps.
    """
    if schedule(kind, read[: kind.words], 0) == read:
        return b"".join(word.to_bytes(4, "little") for word in read[: kind.words])
    choices = [_nearest(kind, read, bit) for bit in range(32)]
    chosen = [options[0] for options in choices]
    best, at = _best_start(kind, chosen, read)
    improved = best > 0
    while improved:
        improved = False
        for bit in range(32):
            for option in choices[bit]:
                tried = [*chosen[:bit], option, *chosen[bit + 1 :]]
                distance = _distance(schedule(kind, _words(tried, at, kind.words), at), read)
                if distance < best:
                    best, chosen, improved = distance, tried, True
        again, elsewhere = _best_start(kind, chosen, read)
        if again < best:
            best, at, improved = again, elsewhere, True
    if best > _ACCEPTED * 32 * kind.rounds:
        return None
    key = schedule(kind, _words(chosen, at, kind.words), at)[: kind.words]
    return b"".join(word.to_bytes(4, "little") for word in key)


def _nearest(kind: Kind, read: list[int], bit: int) -> list[int]:
    """The code words nearest to one bit position of what was read, nearest first."""
    column = sum((word >> bit & 1) << index for index, word in enumerate(read))
    code = _code(kind)
    distances = np.bitwise_count(code ^ np.uint64(column))
    radius = int(distances.min())
    near = np.flatnonzero(distances <= radius)
    while len(near) < _OPTIONS:
        radius += 1
        near = np.flatnonzero(distances <= radius)
    order = near[np.argsort(distances[near], kind="stable")][:_OPTIONS]
    return [int(word) for word in code[order]]


@functools.cache
def _code(kind: Kind) -> Columns:
    """All columns of bits that obey the linear relations: bit i is that of word i."""
    checks, values = set(_linear(kind)), {}
    free = [i for i in range(kind.rounds) if i not in checks]
    for number, i in enumerate(free):
        values[i] = 1 << number  # as a combination of the free ones
    for i in sorted(checks):
        values[i] = values[i - kind.words] ^ values[i - 1]
    words = np.zeros(1, np.uint64)
    for number in range(len(free)):
        basis = sum((values[i] >> number & 1) << i for i in range(kind.rounds))
        words = np.concatenate([words, words ^ np.uint64(basis)])
    return words


def _words(columns: list[int], at: int, count: int) -> list[int]:
    """Some words of the schedule that the columns make."""
    return [
        sum((column >> index & 1) << bit for bit, column in enumerate(columns))
        for index in range(at, at + count)
    ]


def _best_start(kind: Kind, columns: list[int], read: list[int]) -> tuple[int, int]:
    """The round from which the expansion comes nearest to what was read: (wrong bits, its first word)."""
    n = kind.words
    words = _words(columns, 0, kind.rounds)
    return min(
        (_distance(schedule(kind, words[at : at + n], at), read), at) for at in range(kind.rounds - n + 1)
    )


def _distance(a: list[int], b: list[int]) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))
