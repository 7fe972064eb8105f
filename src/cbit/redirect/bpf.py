"""The filter that asks the launcher about a few system calls and lets all others pass.

A table of rules becomes a program of the kernel's classic BPF machine, which sees this record and no memory::

     0: number u32 | 4: architecture u32 | 8: instruction pointer u64 | 16 … 63: six arguments u64

It cannot see a path, so which file is meant is found out by whoever is asked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cbit.redirect.linux import ARCHITECTURE

#: What a program returns: let the call pass, or hand it to the listener.
ALLOW: Final = 0x7FFF0000
NOTIFY: Final = 0x7FC00000

LOAD: Final = 0x20  #: accumulator = u32 of the record at k
EQUAL: Final = 0x15  #: skip jt instructions if accumulator == k, else jf
ANY_BIT: Final = 0x45  #: skip jt instructions if accumulator & k, else jf
AND: Final = 0x54  #: accumulator = accumulator & k
RETURN: Final = 0x06

NUMBER_AT: Final = 0
ARCHITECTURE_AT: Final = 4
ARGUMENTS_AT: Final = 16

_FURTHEST: Final = 255
_TYPE: Final = 0xFF00
_FORMAT: Final = struct.Struct("<HBBI")


class Instruction(NamedTuple):
    """One instruction; ``jt`` and ``jf`` count the instructions to skip."""

    code: int
    jt: int
    jf: int
    k: int


@dataclass(frozen=True, slots=True)
class Rule:
    """Which calls of one number are handed to the listener: all, unless narrowed.

    Attributes:
        number: the system call.
        argument: the index of the argument that ``values`` and ``unless`` look at; of its low 32 bits only,
            because C libraries sign-extend a request number (0xFFFFFFFFC008AEBA arrives).
        values: only calls whose argument is one of these.
        types: beside ``values``: calls whose argument has one of these in bits 8 … 15, where an ioctl request
            has its type.
        unless: no call whose argument has one of these bits.
    """

    number: int
    argument: int = 0
    values: tuple[int, ...] = ()
    types: tuple[int, ...] = ()
    unless: int = 0

    def __post_init__(self) -> None:
        if (self.values or self.types) and self.unless:
            raise ValueError("a rule narrows by values or by bits, not by both")


def assemble(rules: Sequence[Rule]) -> bytes:
    """Make the program.

    Layout: architecture, number, one comparison a rule, ALLOW, one block for each narrowed rule, NOTIFY.

    Raises:
        ValueError: two rules for one call, or more than a conditional jump (255) can cross.
    """
    if len({rule.number for rule in rules}) != len(rules):
        raise ValueError("two rules for one system call")
    blocks = [_block(rule) for rule in rules]
    allow = 3 + len(rules)
    notify = allow + 1 + sum(map(len, blocks))
    # 32-bit and x32 callers have other numbers for other calls: they pass, unredirected.
    program = [
        Instruction(LOAD, 0, 0, ARCHITECTURE_AT),
        Instruction(EQUAL, 0, allow - 2, ARCHITECTURE),
        Instruction(LOAD, 0, 0, NUMBER_AT),
    ]
    start = allow + 1
    for rule, block in zip(rules, blocks, strict=True):
        target = start if block else notify
        program.append(Instruction(EQUAL, target - len(program) - 1, 0, rule.number))
        start += len(block)
    program.append(Instruction(RETURN, 0, 0, ALLOW))
    for block in blocks:
        for one in block:
            if one.code == EQUAL:  # the only jump of a block that leaves it: to NOTIFY
                one = one._replace(jt=notify - len(program) - 1)  # noqa: PLW2901  # its place is known now
            program.append(one)
    program.append(Instruction(RETURN, 0, 0, NOTIFY))
    if any(max(one.jt, one.jf) > _FURTHEST for one in program):
        raise ValueError(f"{len(program)} instructions: a jump of the filter crosses at most {_FURTHEST}")
    return b"".join(_FORMAT.pack(*one) for one in program)


def _block(rule: Rule) -> list[Instruction]:
    load = Instruction(LOAD, 0, 0, ARGUMENTS_AT + 8 * rule.argument)
    if rule.values or rule.types:
        tests = [Instruction(EQUAL, 0, 0, value) for value in rule.values]
        if rule.types:
            tests += [Instruction(AND, 0, 0, _TYPE)]
            tests += [Instruction(EQUAL, 0, 0, one << 8) for one in rule.types]
        return [load, *tests, Instruction(RETURN, 0, 0, ALLOW)]
    if rule.unless:
        test = Instruction(ANY_BIT, 1, 0, rule.unless)
        return [load, test, Instruction(RETURN, 0, 0, NOTIFY), Instruction(RETURN, 0, 0, ALLOW)]
    return []


def instructions(program: bytes) -> list[Instruction]:
    """Read a program back."""
    return [Instruction(*fields) for fields in _FORMAT.iter_unpack(program)]


def disassemble(program: bytes) -> Iterator[str]:
    """Yield one line an instruction, jumps as the line they go to: ``3: if == 0x10 goto 17 else 4``."""
    for place, (code, jt, jf, k) in enumerate(instructions(program)):
        where = f"goto {place + 1 + jt} else {place + 1 + jf}"
        text = {
            LOAD: f"load {_FIELDS.get(k, k)}",
            EQUAL: f"if == {k:#x} {where}",
            ANY_BIT: f"if & {k:#x} {where}",
            AND: f"keep & {k:#x}",
            RETURN: f"return {_ACTIONS.get(k, hex(k))}",
        }
        yield f"{place}: {text[code]}"


_FIELDS: Final = {NUMBER_AT: "number", ARCHITECTURE_AT: "architecture"} | {
    ARGUMENTS_AT + 8 * index: f"argument {index}, low word" for index in range(6)
}
_ACTIONS: Final = {ALLOW: "allow", NOTIFY: "notify"}
