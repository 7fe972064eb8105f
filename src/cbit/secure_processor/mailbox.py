"""The mailbox: three registers between the x86 cores and the secure processor.

    CmdResp  31 response | 26 … 16 command | 15 … 0 status (response) | 0 IOC (command)
    Lo, Hi   system-physical address of the command buffer, C-bit allowed

After RING_BUFFER the three registers are RBCtl, RBHead and RBTail, until x86 writes CmdResp as it was.

Paper: sev-api.md §2; §5, RING_BUFFER.
Not modelled: the extended error stack that late firmware leaves in Lo and Hi.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from cbit.spec.ring_buffer import ACTIVE, X86_CONTROL
from cbit.spec.status import Status


class Register(StrEnum):
    """Registers by their name in the paper."""

    CMD_RESP = "CmdResp"
    CMD_BUF_ADDR_LO = "CmdBufAddr_Lo"
    CMD_BUF_ADDR_HI = "CmdBufAddr_Hi"
    INTEN = "P2CMSG_INTEN"
    INTSTS = "P2CMSG_INTSTS"


#: MMIO offsets in BAR 2 of the processor's PCI function, by interface generation.
OFFSETS: Final[Mapping[str, Mapping[int, Register]]] = MappingProxyType(
    {
        "sevv1": MappingProxyType(
            {
                0x10580: Register.CMD_RESP,
                0x105E0: Register.CMD_BUF_ADDR_LO,
                0x105E4: Register.CMD_BUF_ADDR_HI,
                0x10610: Register.INTEN,
                0x10614: Register.INTSTS,
            }
        ),
        "sevv2": MappingProxyType(
            {
                0x10980: Register.CMD_RESP,
                0x109E0: Register.CMD_BUF_ADDR_LO,
                0x109E4: Register.CMD_BUF_ADDR_HI,
                0x10690: Register.INTEN,
                0x10694: Register.INTSTS,
            }
        ),
    }
)

RESPONSE: Final = 1 << 31
COMMAND_SHIFT: Final = 16
COMMAND_MASK: Final = 0xFF  # bits 23:16 are what the firmware looks at
IOC: Final = 1 << 0  #: interrupt on completion
COMPLETE: Final = 1 << 1  #: INTEN and INTSTS
OFF: Final = 0xFFFFFFFF  #: what reads return when the processor does not run


Execute = Callable[[int, int], Status]


class Rings(Protocol):
    """Ring buffers in use: who writes to the registers speaks to them."""

    @property
    def head(self) -> int:
        """RBHead."""
        ...

    def control(self, value: int, execute: Execute) -> bool:
        """Take a write of RBCtl; return whether to interrupt."""
        ...

    def advance(self, tail: int, execute: Execute) -> bool:
        """Take a write of RBTail; return whether to interrupt."""
        ...

    def leave(self) -> None:
        """End the mode."""
        ...


class Mailbox:
    """The registers; a write to CmdResp runs the command to its end."""

    def __init__(
        self,
        generation: str,
        execute: Execute | None,
        *,
        rings: Callable[[], Rings | None] = lambda: None,
    ) -> None:
        self._offsets = OFFSETS[generation]
        self._places = {register: offset for offset, register in self._offsets.items()}
        self._execute = execute
        self._rings = rings
        self._value = dict.fromkeys(Register, 0)

    def offset_of(self, register: Register) -> int:
        """Return a register's MMIO offset."""
        return self._places[register]

    def read(self, offset: int) -> int:
        """Read 32 bits; all ones when the processor is off or nothing is there."""
        register = self._offsets.get(offset)
        if register is None or self._execute is None:
            return OFF
        if register is Register.CMD_BUF_ADDR_LO and (rings := self._rings()) is not None:
            return rings.head
        return self._value[register]

    def write(self, offset: int, value: int) -> None:
        """Write 32 bits; ignored when the processor is off or nothing is there."""
        register = self._offsets.get(offset)
        if register is None or self._execute is None:
            return
        value &= 0xFFFFFFFF
        if register is Register.INTSTS:
            self._value[register] &= ~value  # write one to clear
            return
        rings = self._rings()
        if rings is not None and register is not Register.INTEN:
            self._write_ring(rings, register, value)
            return
        self._value[register] = value
        if register is Register.CMD_RESP and not value & RESPONSE:
            self._run(value)

    @property
    def interrupt_pending(self) -> bool:
        """Whether the completion interrupt line is up."""
        return bool(self._value[Register.INTSTS] & self._value[Register.INTEN] & COMPLETE)

    def _run(self, value: int) -> None:
        assert self._execute is not None
        address = self._value[Register.CMD_BUF_ADDR_HI] << 32 | self._value[Register.CMD_BUF_ADDR_LO]
        status = self._execute(value >> COMMAND_SHIFT & COMMAND_MASK, address)
        self._value[Register.CMD_RESP] = RESPONSE | int(status)
        if self._rings() is not None:  # that was RING_BUFFER: nothing is queued
            self._value[Register.CMD_RESP] |= ACTIVE
            self._value[Register.CMD_BUF_ADDR_HI] = 0
        if value & IOC:
            self._value[Register.INTSTS] |= COMPLETE

    def _write_ring(self, rings: Rings, register: Register, value: int) -> None:
        assert self._execute is not None
        if register is Register.CMD_BUF_ADDR_LO:
            return  # RBHead is the secure processor's
        if register is Register.CMD_RESP and value & (ACTIVE | X86_CONTROL) != ACTIVE | X86_CONTROL:
            rings.leave()
            self._value[Register.CMD_RESP] = RESPONSE | int(Status.EXIT_RING_BUFFER)
            return
        take = rings.control if register is Register.CMD_RESP else rings.advance
        if take(value, self._execute):
            self._value[Register.INTSTS] |= COMPLETE
        if self._rings() is None:  # one of the commands was SHUTDOWN
            self._value[Register.CMD_RESP] = RESPONSE
        else:
            self._value[register] = value
