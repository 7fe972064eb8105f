"""A host's driver of the ring buffers, which knows the dossier's offsets and nothing of the firmware.

Paper: sev-api.md §5, RING_BUFFER.
"""

from __future__ import annotations

from cbit.secure_processor.mailbox import Register
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.wire import Wire
from secure_processor.worlds import World

PAGE = 4096
ACTIVE, CONTROL = 1 << 30, 1 << 31
GO_ON = 2


class Rings:
    """Two queues in fresh memory."""

    def __init__(self, world: World, **asked: int) -> None:
        self.world, self.tails = world, [0, 0]
        self.asked = buffers.RingBuffer(
            lo_cmd_paddr=world.desk.room(PAGE),
            lo_stat_paddr=world.desk.room(PAGE),
            hi_cmd_paddr=world.desk.room(PAGE),
            hi_stat_paddr=world.desk.room(PAGE),
            hi_size=1,
        ).replace(**asked)

    def begin(self) -> Rings:
        """Enter the mode."""
        self.world.desk.do(Command.RING_BUFFER, self.asked)
        self.tails = [0, 0]
        return self

    def attempt(self, command: int, buffer: Wire | None) -> tuple[int, Wire]:
        """Give one command by the low queue; return its status and its buffer afterwards."""
        buffer = buffer or buffers.GuestHandle(handle=0)
        desk = self.world.desk
        desk.write(desk.page, bytes(buffer))
        index = self.queue(command, at=desk.page, flags=GO_ON)
        self.ring()
        after = type(buffer).parse(desk.read(desk.page, buffer.SIZE), canonical=False)
        return int.from_bytes(self.status(index)[:2], "little"), after

    def write(self, register: Register, value: int) -> None:
        mailbox = self.world.machine.mailbox
        mailbox.write(mailbox.offset_of(register), value)

    def read(self, register: Register) -> int:
        mailbox = self.world.machine.mailbox
        return mailbox.read(mailbox.offset_of(register))

    @property
    def heads(self) -> tuple[int, int]:
        value = self.read(Register.CMD_BUF_ADDR_LO)
        return value & 0xFF, value >> 16 & 0xFF

    @property
    def happened(self) -> int:
        return self.read(Register.CMD_BUF_ADDR_LO) & 0xF0000000

    def control(self, bits: int = 0) -> None:
        self.write(Register.CMD_RESP, CONTROL | ACTIVE | bits)

    def queue(
        self, command: int, buffer: Wire | None = None, *, at: int = 0, flags: int = 0, high: bool = False
    ) -> int:
        """Put a command into the next entry, its buffer into fresh memory; return the entry's index."""
        if buffer is not None:
            at = self.world.desk.put(bytes(buffer))
        index = self.tails[high]
        entry = (
            command.to_bytes(2, "little") + flags.to_bytes(2, "little") + b"mine" + at.to_bytes(8, "little")
        )
        base = self.asked.hi_cmd_paddr if high else self.asked.lo_cmd_paddr
        self.world.desk.write(base + 16 * index, entry)
        self.tails[high] = (index + 1) % 256
        return index

    def ring(self) -> None:
        self.write(Register.CMD_BUF_ADDR_HI, self.tails[1] << 16 | self.tails[0])

    def status(self, index: int, *, high: bool = False) -> bytes:
        base = self.asked.hi_stat_paddr if high else self.asked.lo_stat_paddr
        return self.world.desk.read(base + 16 * index, 16)
