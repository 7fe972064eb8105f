"""An honest small device: it counts, and it echoes what the caller's memory holds.

On /dev/sev the request's argument points at the kernel's packed ``struct sev_issue_cmd`` (cmd u32, data u64,
error u32); ``data`` at 16 bytes, which come back complemented, after them the number of the command.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from cbit.driver.caller_memory import CallerMemory
from cbit.driver.kvm_structs import KVM_MEMORY_ENCRYPT_OP, KVM_MEMORY_ENCRYPT_REG_REGION
from cbit.redirect.device import Client
from cbit.redirect.files import SEV, SEV_ISSUE_CMD, SNP_GET_REPORT
from cbit.redirect.kvm_requests import KVM_VM

ECHO, FAIL, REFUSE, EXPLODE, BULK, SLEEP = 1, 2, 3, 4, 5, 6

_ISSUE = struct.Struct("<IQI")


@dataclass
class Session:
    client: Client
    commands: int = 0


class Echo:
    def __init__(self) -> None:
        self.commands = 0
        self.opened = 0
        self.closed = 0
        self.opened_by: list[int] = []

    def open(self, client: Client, *, writable: bool) -> Session:
        self.opened += 1
        self.opened_by.append(client.pid)
        return Session(client)

    def close(self, handle: Session) -> None:
        self.closed += 1

    def ioctl(self, handle: Session, request: int, argument: int, memory: CallerMemory) -> int:
        self.commands += 1
        handle.commands += 1
        match request:
            case _ if request == SEV_ISSUE_CMD:
                return self._issue(handle, argument, memory)
            case _ if request == SNP_GET_REPORT:
                return self._report(argument, memory)
            case _ if request == KVM_MEMORY_ENCRYPT_OP:
                _, _, _, sev_fd = struct.unpack("<QQII", memory.read(argument, 24))
                return 7 if handle.client.names(sev_fd) == SEV else -errno.EBADF
            case _ if request == KVM_MEMORY_ENCRYPT_REG_REGION:
                return 0 if handle.client.names(0) != KVM_VM else -errno.EINVAL
        return -errno.ENOTTY

    def _issue(self, handle: Session, argument: int, memory: CallerMemory) -> int:
        command, data, _ = _ISSUE.unpack(memory.read(argument, _ISSUE.size))
        match command:
            case _ if command == ECHO:
                said = bytes(byte ^ 0xFF for byte in memory.read(data, 16))
                memory.write(data, said + struct.pack("<Q", handle.commands))
                memory.write(argument + 12, struct.pack("<I", 0))
                return 0
            case _ if command == FAIL:
                memory.write(argument + 12, struct.pack("<I", 3))
                return -errno.EIO
            case _ if command == REFUSE:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            case _ if command == EXPLODE:
                raise RuntimeError("the device has a fault")
            case _ if command == BULK:
                where, length = struct.unpack("<QQ", memory.read(data, 16))
                memory.write(where, memory.read(where, length)[::-1])
                return 0
            case _ if command == SLEEP:
                os.kill(handle.client.pid, 9)
                memory.read(data, 16)
                return 0
        return -errno.EINVAL

    @staticmethod
    def _report(argument: int, memory: CallerMemory) -> int:
        _, asked, answer, _ = struct.unpack("<BxxxxxxxQQQ", memory.read(argument, 32))
        memory.write(answer, bytes(32) + memory.read(asked, 64) + bytes(3904))
        return 0


class Behind:
    """What stands behind a supplied KVM: it writes down what happens; a machine answers with its number."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def open(self, client: Client, *, writable: bool) -> int:
        self._count += 1
        self.lines.append(f"{self._count}: open")
        return self._count

    def ioctl(self, handle: int, request: int, argument: int, memory: CallerMemory) -> int:
        if request == KVM_MEMORY_ENCRYPT_OP:
            return 100 + handle
        told = memory.read(argument, request >> 16 & 0x3FFF).hex(" ", -4)
        self.lines.append(f"{handle}: {request:#x} {argument} {told[:17]}".rstrip())
        return -errno.EBUSY if argument == BUSY else 0

    def close(self, handle: int) -> None:
        self.lines.append(f"{handle}: close")


BUSY = 5  #: a processor of this number is refused by the device behind
