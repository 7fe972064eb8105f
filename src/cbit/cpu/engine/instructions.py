"""The few instructions that QEMU does not do and the engine does: how long they are, what they address.

Only CLFLUSH, CLFLUSHOPT and CLWB have an operand; the rest is told by its opcode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

_OPERAND_SIZE: Final = 0x66
_ADDRESS_SIZE: Final = 0x67
_SEGMENTS: Final = {0x26: 0, 0x2E: 1, 0x36: 2, 0x3E: 3, 0x64: 4, 0x65: 5}
_OTHER_PREFIXES: Final = (0xF0, 0xF2, 0xF3)
_FS: Final = 4
_DS, _SS = 3, 2
_RSP, _RBP = 4, 5
_NO_MEMORY: Final = 3  # ModRM.mod of a register operand
MAX_LENGTH: Final = 15


class Op(Enum):
    """What the engine does itself."""

    FLUSH_LINE = "CLFLUSH, CLFLUSHOPT, CLWB"
    INVD = "INVD"
    WBINVD = "WBINVD"
    MSR = "RDMSR, WRMSR"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction.

    Attributes:
        op: which.
        length: bytes.
        address: linear address of its operand; 0 without one.
        base: the register that the address is a constant away from; None: there is none.
    """

    op: Op
    length: int
    address: int = 0
    base: int | None = field(default=None, compare=False)


class _Reader:
    def __init__(self, code: bytes) -> None:
        self.code = code
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.code[self.at - 1]

    def signed(self, size: int) -> int:
        self.at += size
        if self.at > len(self.code):
            raise IndexError
        return int.from_bytes(self.code[self.at - size : self.at], "little", signed=True)


@dataclass(frozen=True, slots=True)
class Machine:
    """What an operand's address is made of.

    Attributes:
        rip: address of the instruction.
        long: 64-bit code; otherwise 32-bit code.
        register: value of a general register.
        base: base of a segment, ES to GS.
    """

    rip: int
    long: bool
    register: Callable[[int], int]
    base: Callable[[int], int]


def decode(code: bytes, machine: Machine) -> Instruction | None:
    """Decode one instruction; None if it is none of `Op`, or cut short."""
    try:
        return _decode(_Reader(code), machine)
    except IndexError:
        return None


def _decode(reader: _Reader, machine: Machine) -> Instruction | None:
    segment, short, rex = None, False, 0
    opcode = reader.byte()
    while opcode in _SEGMENTS or opcode in (_OPERAND_SIZE, _ADDRESS_SIZE, *_OTHER_PREFIXES):
        segment = _SEGMENTS.get(opcode, segment)
        short = short or opcode == _ADDRESS_SIZE
        opcode = reader.byte()
    if machine.long and opcode & 0xF0 == 0x40:
        rex, opcode = opcode, reader.byte()
    if opcode != 0x0F:
        return None
    second = reader.byte()
    if plain := {0x08: Op.INVD, 0x09: Op.WBINVD, 0x30: Op.MSR, 0x32: Op.MSR}.get(second):
        return Instruction(plain, reader.at)
    if second != 0xAE:
        return None
    return _line(reader, machine, segment=segment, short=short, rex=rex)


def _line(
    reader: _Reader, machine: Machine, *, segment: int | None, short: bool, rex: int
) -> Instruction | None:
    """0F AE /7 is CLFLUSH, or with 66 CLFLUSHOPT; 66 0F AE /6 is CLWB."""
    modrm = reader.byte()
    mod, reg, rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
    if mod == _NO_MEMORY or reg not in (6, 7) or (reg == 6 and _OPERAND_SIZE not in reader.code[: reader.at]):
        return None
    if not machine.long and short:
        return None  # 16-bit addressing
    address, stack, simple = 0, False, None
    if rm == _RSP:
        address, stack = _scaled(reader, machine, mod=mod, rex=rex)
    elif rm == _RBP and mod == 0:
        address = reader.signed(4)
        address += machine.rip + reader.at if machine.long else 0  # relative to the next instruction
    else:
        simple = rm | (rex & 1) << 3
        address, stack = machine.register(simple), rm == _RBP and not rex & 1
    if mod:
        address += reader.signed(1 if mod == 1 else 4)
    address &= (1 << (32 if short or not machine.long else 64)) - 1
    used = segment if segment is not None else _SS if stack else _DS
    if not machine.long or used >= _FS or short:
        simple = None
    if not machine.long or used >= _FS:
        address += machine.base(used)
    address &= (1 << (64 if machine.long else 32)) - 1
    return Instruction(Op.FLUSH_LINE, reader.at, address, simple)


def _scaled(reader: _Reader, machine: Machine, *, mod: int, rex: int) -> tuple[int, bool]:
    """Base + index × scale; returns whether the base makes the stack segment the default."""
    sib = reader.byte()
    index, base = sib >> 3 & 7 | (rex & 2) << 2, sib & 7
    address = machine.register(index) << (sib >> 6) if index != _RSP else 0
    if base == _RBP and mod == 0:
        return address + reader.signed(4), False
    number = base | (rex & 1) << 3
    return address + machine.register(number), number in (_RSP, _RBP)
