"""Rebuild an RSA private key from a faded copy of its file, given the public key.

The modulus, which is public, gives the place; a PKCS #1 file has the private numbers behind it.  All five of
p, q, d, dP, dQ follow from the low bits of p: the search goes from bit to bit and keeps the candidates that
agree best with what was read.

Paper: attacks.md A1 (step 5); the method is that of Heninger and Shacham (CRYPTO 2009), from memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

_WIDTH: Final = 48  #: candidates that are kept
_DIVISORS: Final = (1, 2, 4, 6, 10, 12, 8, 14)  #: OpenSSL takes d modulo lcm(p-1, q-1) = φ(N) / gcd
_NEAR: Final = 0.2  #: share of wrong bits that a copy of the modulus may have


@dataclass(frozen=True, slots=True)
class Read:
    """The private numbers as they were read, wrong bits included."""

    p: int
    q: int
    d: int
    dp: int
    dq: int


def find_modulus(image: bytes, modulus: bytes) -> list[int]:
    """Offsets of copies of a modulus, wrong bits included."""
    head = np.frombuffer(modulus[:8], np.uint64)[0]
    found = []
    for shift in range(8):
        words = np.frombuffer(image, np.uint64, (len(image) - shift) // 8, shift)
        for index in np.flatnonzero(np.bitwise_count(words ^ head) <= 20):
            at = 8 * int(index) + shift
            if _wrong(image[at : at + len(modulus)], modulus) <= _NEAR * 8 * len(modulus):
                found.append(at)
    return sorted(found)


def _wrong(read: bytes, true: bytes) -> int:
    if len(read) != len(true):
        return 8 * len(true)
    return (int.from_bytes(read, "big") ^ int.from_bytes(true, "big")).bit_count()


def read_numbers(image: bytes, at: int, size: int) -> Read:
    """Read the numbers behind a modulus, choosing each header that fits best.

    Args:
        image: memory.
        at: offset of the modulus.
        size: bytes of the modulus.
    """
    at += size + 5  # the public exponent: 02 03 01 00 01
    numbers = []
    for length in (size, size // 2, size // 2, size // 2, size // 2):
        start, count = _best_header(image, at, length)
        numbers.append(int.from_bytes(image[start : start + count], "big"))
        at = start + count
    d, p, q, dp, dq = numbers
    return Read(p, q, d, dp, dq)


def _best_header(image: bytes, at: int, length: int) -> tuple[int, int]:
    """Where a number of about ``length`` bytes begins, and how long it is."""

    def header(count: int) -> bytes:
        return b"\x02" + (bytes([count]) if count < 0x80 else b"\x81" + bytes([count]))

    headers = [header(count) for count in range(length - 3, length + 2)]
    options = [(h, n) for h, n in zip(headers, range(length - 3, length + 2), strict=True)]
    head, count = min(options, key=lambda option: _wrong(image[at : at + len(option[0])], option[0]))
    return at + len(head), count


def rebuild(read: Read, modulus: int, e: int) -> tuple[int, int] | None:
    """Find p and q near what was read, or None."""
    g, k = _multiplier(read.d, modulus, e)
    scaled, ratio = replace(read, d=g * read.d), k * pow(g, -1, e) % e
    roots = [x for x in range(1, e) if (x * x - (ratio * (modulus - 1) + 1) * x - ratio) % e == 0]
    for kp in roots:
        kq = -ratio * pow(kp, -1, e) % e
        found = _search(scaled, modulus, e, Relations(g, k, kp, kq))
        if found is not None:
            return found
    return None


@dataclass(frozen=True, slots=True)
class Relations:
    """g e d = k φ(N) + g, where g divides p-1 and q-1; e dP = kp (p-1) + 1; likewise dQ."""

    g: int
    k: int
    kp: int
    kq: int


def _multiplier(d: int, modulus: int, e: int) -> tuple[int, int]:
    """Find g and k: the upper half of d tells them, because φ(N) is nearly N."""
    half = modulus.bit_length() // 2 + 2
    top = d >> half
    best = modulus.bit_length(), 1, 1
    for g in _DIVISORS:
        share = (modulus + 1) // g
        k = min(range(1, e), key=lambda k: (k * share // e >> half ^ top).bit_count())
        best = min(best, ((k * share // e >> half ^ top).bit_count(), g, k))
        if best[0] < _NEAR * half:
            break
    return best[1:]


def _search(read: Read, modulus: int, e: int, known: Relations) -> tuple[int, int] | None:
    g, k, kp, kq = known.g, known.k, known.kp, known.kq
    tau = [(m & -m).bit_length() - 1 for m in (k, kp, kq)]
    bits = modulus.bit_length() // 2
    inverse = pow(e, -1, 1 << 2 * bits)
    candidates = [(0, 1, 1)]  # wrong bits so far, p, q: both are odd
    for i in range(1, bits):
        grown = []
        for wrong, p0, q0 in candidates:
            carry = (modulus - p0 * q0) >> i & 1
            for bit in (0, 1):
                p, q = p0 | bit << i, q0 | (bit ^ carry) << i
                worse = (p ^ read.p) >> i & 1
                worse += (q ^ read.q) >> i & 1
                for number, value, shift in (
                    (read.d, k * (modulus + 1 - p - q) + g, tau[0]),
                    (read.dp, kp * (p - 1) + 1, tau[1]),
                    (read.dq, kq * (q - 1) + 1, tau[2]),
                ):
                    place = i + shift
                    mask = (1 << place + 1) - 1
                    worse += ((value & mask) * (inverse & mask) ^ number) >> place & 1
                grown.append((wrong + worse, p, q))
        grown.sort()
        candidates = grown[:_WIDTH]
    for _, p, q in candidates:
        if p * q == modulus:
            return p, q
    return None
