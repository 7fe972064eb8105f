"""AES key schedules in memory: what a cold-boot search looks for.

A key in use lies in memory expanded: every round key follows from the ones before, so a schedule can be
recognised by itself, and a known one can be searched for.

Paper: attacks.md §2 (A1, cold boot); the expansion is that of FIPS 197.
"""

from __future__ import annotations

from typing import Final

_ROUNDS: Final = {16: 10, 24: 12, 32: 14}
_WORD: Final = 4


def expand(key: bytes) -> bytes:
    """Expand a key: its round keys, one behind the other.

    Raises:
        ValueError: not the size of an AES key.
    """
    if len(key) not in _ROUNDS:
        raise ValueError(f"AES keys have 16, 24 or 32 bytes, not {len(key)}")
    box, words, rcon = _s_box(), len(key) // _WORD, 1
    schedule = [key[at : at + _WORD] for at in range(0, len(key), _WORD)]
    while len(schedule) < _WORD * (_ROUNDS[len(key)] + 1):
        last = schedule[-1]
        if len(schedule) % words == 0:
            last = bytes(box[byte] for byte in last[1:] + last[:1])
            last = bytes([last[0] ^ rcon]) + last[1:]
            rcon = _double(rcon)
        elif words > 6 and len(schedule) % words == 4:
            last = bytes(box[byte] for byte in last)
        schedule.append(bytes(a ^ b for a, b in zip(schedule[-words], last, strict=True)))
    return b"".join(schedule)


def _double(value: int) -> int:
    """Multiply by x in the field of AES."""
    value <<= 1
    return value ^ 0x11B if value & 0x100 else value


def _s_box() -> bytes:
    """Compute the table: inverse in the field, then the affine map."""
    power, log, value = [0] * 255, [0] * 256, 1
    for exponent in range(255):
        power[exponent], log[value] = value, exponent
        value ^= _double(value)  # 3 generates the field
    box = bytearray(256)
    for byte in range(256):
        inverse = power[-log[byte] % 255] if byte else 0
        turned = inverse
        for shift in range(1, 5):
            turned ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
        box[byte] = turned ^ 0x63
    return bytes(box)
