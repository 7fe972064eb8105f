"""Linear equations over GF(2), for whoever wants the constants of a linear tweak."""

from __future__ import annotations

from collections.abc import Iterable


def solve(equations: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """Solve XOR over the bits i of ``mask`` of x_i = value.

    Args:
        equations: (mask, value) pairs; values of one length.  Equations that contradict the others are the
            caller's mistake: the last of them are ignored.

    Returns:
        The unknowns that are determined, by bit number.
    """
    rows: dict[int, tuple[int, int]] = {}  # by leading bit: mask, value
    length = 0
    for whole, value in equations:
        mask, length = whole, len(value)
        number = int.from_bytes(value, "little")
        while mask:
            lead = mask.bit_length() - 1
            if lead not in rows:
                rows[lead] = mask, number
                break
            mask, number = mask ^ rows[lead][0], number ^ rows[lead][1]
    known: dict[int, int] = {}
    for lead in sorted(rows):
        mask, number = rows[lead]
        rest = mask ^ 1 << lead
        while rest:
            bit = rest & -rest
            index = bit.bit_length() - 1
            if index not in known:
                break
            number ^= known[index]
            rest ^= bit
        else:
            known[lead] = number
    return {bit: number.to_bytes(length, "little") for bit, number in known.items()}
