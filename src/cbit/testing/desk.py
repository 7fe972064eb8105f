"""A person at the mailbox: raw buffers at chosen addresses, with or without the C-bit, and every status read.

    desk = Desk(machine)
    status, why, after = desk.attempt(Command.INIT, buffers.Init())
    desk.ring(Command.GET_ID, address)                 # the buffer is wherever the address says

Memory is reached past the host's page tables: a command may destroy them, and the desk still works.
"""

from __future__ import annotations

from cbit.driver.ccp import Ccp
from cbit.hypervisor.frames import Frames
from cbit.machine.board import Machine
from cbit.secure_processor.mailbox import COMMAND_SHIFT, IOC, RESPONSE, Register
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.command import Command
from cbit.spec.key_id import HOST, UNENCRYPTED
from cbit.spec.wire import Wire


class Desk:
    """Hands on one machine's mailbox and memory.

    Attributes:
        machine: the machine; it may be off.
        page: where ``attempt`` puts its buffer.
        ccp: the driver that ``attempt`` uses.
    """

    def __init__(self, machine: Machine, frames: Frames | None = None) -> None:
        """Sit down.

        Args:
            machine: whose mailbox.
            frames: free memory; a host's, if there is one.
        """
        self.machine = machine
        self._frames = frames or Frames(machine.memory_size)
        self.page = self._frames.take_page()
        self.ccp = Ccp(machine, self.page)

    def room(self, length: int, *, align: int = 4096) -> Spa:
        """Take memory, for good."""
        return Spa(self._frames.take(length, align=align).start)

    def put(self, data: bytes | bytearray, *, c: bool = False) -> Spa:
        """Put bytes into fresh memory and return where; with ``c``, under the host's key."""
        spa = self.room(len(data))
        self.write(spa, data, c=c)
        return spa

    def write(self, spa: int, data: bytes | bytearray, *, c: bool = False) -> None:
        """Write memory."""
        self.machine.memory.write(Spa(spa), data, HOST if c else UNENCRYPTED)

    def read(self, spa: int, length: int, *, c: bool = False) -> bytes:
        """Read memory."""
        return self.machine.memory.read(Spa(spa), length, HOST if c else UNENCRYPTED)

    def with_c(self, address: int) -> int:
        """Return the address with the C-bit set."""
        return address | 1 << self.machine.profile.features.c_bit

    def attempt(self, command: int, buffer: Wire | None = None) -> tuple[int, str, Wire]:
        """Run a command and return (status, reason, buffer afterwards)."""
        return self.ccp.attempt(command, buffer or buffers.GuestHandle(handle=0))

    def status_of(self, command: int, buffer: Wire | None = None) -> int:
        """Run a command and return its status."""
        return self.attempt(command, buffer)[0]

    def do(self, command: Command, buffer: Wire | None = None) -> Wire:
        """Run a command that must succeed (errors as ``Ccp.call``)."""
        return self.ccp.call(command, buffer or buffers.GuestHandle(handle=0))

    def ring(self, command: int, address: int, *, interrupt: bool = False) -> int:
        """Write the three registers by hand and return the status."""
        mailbox = self.machine.mailbox
        mailbox.write(mailbox.offset_of(Register.CMD_BUF_ADDR_LO), address & 0xFFFFFFFF)
        mailbox.write(mailbox.offset_of(Register.CMD_BUF_ADDR_HI), address >> 32)
        response = mailbox.offset_of(Register.CMD_RESP)
        mailbox.write(response, command << COMMAND_SHIFT | (IOC if interrupt else 0))
        answer = mailbox.read(response)
        assert answer & RESPONSE, "the mailbox does not answer"
        return answer & 0xFFFF

    def flush(self) -> None:
        """WBINVD on every core, then DF_FLUSH."""
        self.machine.wbinvd_on_all_cores()
        self.do(Command.DF_FLUSH)

    def platform(self) -> buffers.PlatformStatus:
        """PLATFORM_STATUS."""
        return self.ccp.call(Command.PLATFORM_STATUS, buffers.PlatformStatus())

    def guest(self, handle: int) -> buffers.GuestStatus:
        """GUEST_STATUS."""
        return self.ccp.call(Command.GUEST_STATUS, buffers.GuestStatus(handle=handle))
