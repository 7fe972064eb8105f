"""A virtual machine's descriptor, a program's memory to call it from, and the host behind it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from cbit.driver.client_pages import MemoryRule
from cbit.driver.kvm_registers import KvmRegs, KvmSregs
from cbit.driver.kvm_sev import KvmSev
from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_OP,
    KvmLaunchMeasure,
    KvmLaunchStart,
    KvmLaunchUpdateData,
    KvmPacket,
    KvmSevCmd,
    KvmSevCommand,
)
from cbit.driver.sev_ioctl import ROOM, TMR_SIZE, SevDevice
from cbit.hypervisor.host import Host
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.session import MeasureBlob
from cbit.spec.wire import Wire
from driver.callers import EachWrite
from secure_processor.worlds import Chips

AnyWire = TypeVar("AnyWire", bound=Wire)
BASE = 0x7F00_0000_0000
SIZE = 0x60000
ARGUMENT, STRUCTURE, BLOBS, GUEST = BASE, BASE + 0x100, BASE + 0x1000, BASE + 0x20000
UNTOUCHED = 0xAB
SEV_FD, OTHER_FD = 7, 8


def done(command: int) -> int:
    """What the error field says of success: INIT tells only what went wrong."""
    kinds = KvmSevCommand
    return UNTOUCHED if command in (kinds.SEV_INIT, kinds.SEV_ES_INIT, kinds.INIT2) else 0


class Program(EachWrite):
    """Memory of its own, part of which may not be written, and requests on a machine's descriptor."""

    def __init__(self, vm: KvmSev) -> None:
        self.vm = vm
        self.cells = bytearray(bytes([UNTOUCHED]) * SIZE)
        self.read_only = range(0)
        self.sev_fd = SEV_FD

    def read(self, address: int, length: int) -> bytes:
        if not BASE <= address <= address + length <= BASE + SIZE:
            raise OSError(errno.EFAULT, "no such memory")
        return bytes(self.cells[address - BASE : address - BASE + length])

    def write(self, address: int, data: bytes) -> None:
        self.read(address, len(data))
        locked = self.read_only
        if len(locked) and address < locked.stop and locked.start < address + len(data):
            raise OSError(errno.EFAULT, "memory that may not be written")
        self.cells[address - BASE : address - BASE + len(data)] = data

    def add_cpu(self, *, signature: int, start: int = 0xFFFF_FFF0) -> None:
        """Make a virtual CPU, and set its registers as a hypervisor does."""
        number = len(self.vm.cpus)
        self.vm.create_vcpu(number)
        self.vm.set_registers(number, KvmRegs(rdx=signature, rip=start & 0xFFFF))
        reset = KvmSregs()
        self.vm.set_registers(number, reset.replace(cs=reset.cs.replace(base=start & 0xFFFF_0000)))

    def call(self, request: int, argument: int) -> str:
        try:
            assert 0 == self.vm.ioctl(request, argument, self)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "ok"

    def op(self, command: int, data: int = STRUCTURE) -> tuple[str, int]:
        """Return (errno's name or "ok", the error field)."""
        self.write(ARGUMENT, bytes(KvmSevCmd(id=command, data=data, error=UNTOUCHED, sev_fd=self.sev_fd)))
        said = self.call(KVM_MEMORY_ENCRYPT_OP, ARGUMENT)
        after = KvmSevCmd.parse(self.read(ARGUMENT, KvmSevCmd.SIZE))
        assert (command, data, self.sev_fd) == (after.id, after.data, after.sev_fd)
        return said, after.error

    def give(self, command: int, structure: AnyWire) -> tuple[str, int, AnyWire]:
        """Issue a sub-command with a structure; also return the structure as it came back."""
        self.write(STRUCTURE, bytes(structure))
        said, error = self.op(command)
        return said, error, type(structure).parse(self.read(STRUCTURE, structure.SIZE))

    def must(self, command: int, structure: AnyWire) -> AnyWire:
        said, error, after = self.give(command, structure)
        assert ("ok", done(command)) == (said, error)
        return after

    def do(self, command: int) -> None:
        assert ("ok", done(command)) == self.op(command)

    # ---- a launch

    def start(self, policy: int = 0, godh: bytes = b"", session: bytes = b"") -> int:
        self.write(BLOBS, godh)
        self.write(BLOBS + PAGE, session)
        request = KvmLaunchStart(
            policy=policy,
            dh_uaddr=BLOBS if godh else 0,
            dh_len=len(godh),
            session_uaddr=BLOBS + PAGE if session else 0,
            session_len=len(session),
        )
        return self.must(KvmSevCommand.LAUNCH_START, request).handle

    def load(self, image: bytes, at: int = GUEST) -> None:
        self.write(at, image)
        self.must(KvmSevCommand.LAUNCH_UPDATE_DATA, KvmLaunchUpdateData(uaddr=at, len=len(image)))

    def measure(self) -> MeasureBlob:
        request = KvmLaunchMeasure(uaddr=BLOBS, len=MeasureBlob.SIZE)
        self.must(KvmSevCommand.LAUNCH_MEASURE, request)
        return MeasureBlob.parse(self.read(BLOBS, MeasureBlob.SIZE))

    def packet(self, header: bytes, payload: bytes, *, at: int = GUEST) -> KvmPacket:
        self.write(BLOBS, header)
        self.write(BLOBS + PAGE, payload)
        return KvmPacket(
            hdr_uaddr=BLOBS,
            hdr_len=len(header),
            guest_uaddr=at,
            guest_len=len(payload),
            trans_uaddr=BLOBS + PAGE,
            trans_len=len(payload),
        )

    def running(self, image: bytes, policy: int = 0) -> None:
        """Bring a new machine to a guest without an owner that runs."""
        self.do(KvmSevCommand.SEV_INIT)
        self.start(policy)
        self.load(image)
        self.measure()
        self.do(KvmSevCommand.LAUNCH_FINISH)


@dataclass
class Desk:
    """A host and its driver; makes machines.

    Attributes:
        descriptors: those that programs have; whether each is /dev/sev.
    """

    host: Host
    device: SevDevice
    programs: list[Program]
    descriptors: dict[int, bool] = field(default_factory=lambda: {SEV_FD: True, OTHER_FD: False})

    def program(self, rule: MemoryRule = MemoryRule.ENCRYPTED, kind: int = 0) -> Program:
        def is_sev(descriptor: int) -> bool:
            if descriptor not in self.descriptors:
                raise OSError(errno.EBADF, "no such descriptor")
            return self.descriptors[descriptor]

        vm = KvmSev(self.host, self.device, rule=rule, is_sev=is_sev, kind=kind)
        program = Program(vm)
        self.programs.append(program)
        return program

    def in_use(self) -> tuple[int, frozenset[int], frozenset[int]]:
        return self.host.frames.free_bytes, self.host.asids.in_use, self.host.es_asids.in_use


@contextmanager
def a_desk(chips: Chips, profile: str = "naples", *, es: bool = True) -> Iterator[Desk]:
    """A host; when it ends, nothing of its machines may be left."""
    with chips.world(profile, memory_size=8 * MIB) as world:
        host = Host(world.machine)
        tmr = Spa(host.frames.take(TMR_SIZE, align=TMR_SIZE).start) if es else None
        device = SevDevice(world.machine, host.ccp, room=Spa(host.frames.take(ROOM).start), tmr=tmr)
        desk = Desk(host, device, [])
        before = desk.in_use()
        yield desk
        for program in desk.programs:
            program.vm.close()
        assert before == desk.in_use()
        if world.machine.is_on:
            assert 0 == host.status().guest_count
