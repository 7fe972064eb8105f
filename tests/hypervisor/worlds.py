"""Small guests on a host, and a count of everything that a guest may leave behind."""

from __future__ import annotations

from typing import NamedTuple

from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE, Gpa, Gva

TEXT_AT = Gpa(0x10000)
ROOM = 4 * PAGE
TEXT = (b"A page of text that anybody would recognise. " * 92)[:PAGE]
PRIVATE = Gpa(TEXT_AT + PAGE)  #: guest memory that nobody measured


class Account(NamedTuple):
    """What a host has: equal before and after means that nothing leaked."""

    free_bytes: int
    free_asids: int
    free_plain_asids: int
    guests: int


def account(host: Host) -> Account:
    return Account(host.frames.free_bytes, host.asids.free, host.plain_asids.free, host.status().guest_count)


def with_text(host: Host, protection: Protection) -> Vm:
    vm = Vm(host, protection)
    vm.add_memory(TEXT_AT, ROOM)
    vm.load(TEXT_AT, TEXT)
    return vm


def launched(host: Host, *, policy: int = 0, share_with: SevGuest | None = None) -> SevGuest:
    """A running SEV guest whose page of text was measured and encrypted."""
    guest = SevGuest.start(with_text(host, Protection.SEV), policy=policy, share_with=share_with)
    guest.update(TEXT_AT, PAGE)
    guest.measure()
    guest.finish()
    return guest


def guest_reads(vm: Vm, gpa: int, length: int = PAGE, *, core: int = 0, asid: int | None = None) -> bytes:
    vcpu = Vcpu(vm, asid=asid)
    try:
        with vcpu.run(core=core) as view:
            return view.read(Gva(gpa), length)
    finally:
        vcpu.free()


def guest_writes(vm: Vm, gpa: int, data: bytes) -> None:
    vcpu = Vcpu(vm)
    with vcpu.run() as view:
        view.write(Gva(gpa), data)
    vcpu.free()
