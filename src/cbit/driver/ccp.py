"""The mailbox client, as a host's driver is one: buffer into memory, address into the registers, ring, read.

Paper: sev-api.md §2.
"""

from __future__ import annotations

from typing import TypeVar

from cbit.driver.errors import FirmwareError, MailboxTimeout
from cbit.machine.board import Machine
from cbit.secure_processor.mailbox import COMMAND_SHIFT, OFF, RESPONSE, Register
from cbit.spec.address import LINE, Spa
from cbit.spec.command import Command, name_of
from cbit.spec.key_id import UNENCRYPTED
from cbit.spec.status import Status
from cbit.spec.wire import Wire

AnyWire = TypeVar("AnyWire", bound=Wire)


class Ccp:
    """Issues commands; owns one page of memory for their buffers, and has it mapped uncacheable.

    The secure processor works on what is in DRAM: a cached copy of the page would be brought in, written back
    and invalidated for every command, for nothing.
    """

    def __init__(self, machine: Machine, page: Spa) -> None:
        self._machine = machine
        self._page = page
        at = machine.mailbox.offset_of
        self._response, self._low = at(Register.CMD_RESP), at(Register.CMD_BUF_ADDR_LO)
        self._high = at(Register.CMD_BUF_ADDR_HI)

    def issue(self, command: Command) -> None:
        """Run a command without a buffer.

        Raises:
            FirmwareError: it was refused.
            MailboxTimeout: the secure processor does not run.
        """
        status, why = self._ring(command)
        if status != Status.SUCCESS:
            raise FirmwareError(command, status, why)

    def call(self, command: Command, buffer: AnyWire) -> AnyWire:
        """Run a command with a buffer and return the buffer as the firmware left it; raises as ``issue``."""
        status, why, after = self.attempt(command, buffer)
        if status != Status.SUCCESS:
            raise FirmwareError(command, status, why)
        return after

    def attempt(self, command: int, buffer: AnyWire) -> tuple[int, str, AnyWire]:
        """Run a command and return (status, reason, buffer afterwards), whatever the status says.

        Raises:
            MailboxTimeout: the secure processor does not run.
        """
        memory = self._machine.memory
        # Whole lines, as an uncacheable page's write-combining buffers leave: nothing is to be merged.
        memory.snoop_write(
            self._page, bytes(buffer).ljust(-(-buffer.SIZE // LINE) * LINE, b"\0"), UNENCRYPTED
        )
        status, why = self._ring(command)
        raw = memory.snoop_read(self._page, buffer.SIZE, UNENCRYPTED)
        return status, why, type(buffer).parse(raw, canonical=False)

    def _ring(self, command: int) -> tuple[int, str]:
        mailbox = self._machine.mailbox  # each boot has its own
        mailbox.write(self._low, self._page & 0xFFFFFFFF)
        mailbox.write(self._high, self._page >> 32)
        mailbox.write(self._response, command << COMMAND_SHIFT)
        answer = mailbox.read(self._response)
        if answer == OFF or not answer & RESPONSE:
            raise MailboxTimeout(f"{name_of(command)}: the mailbox does not answer; is the machine on?")
        return answer & 0xFFFF, self._machine.why
