"""A victim with two virtual CPUs on one core: a program of the adversary's on one, a service on the other.

    linear 0x150000 is the page of a password: in the service's tables its own, in the program's another one

Both are virtual CPUs of one guest, so they share an ASID, and with it the tag of their translations.

Paper: attacks.md A15; memory-encryption.md §7.
"""

from __future__ import annotations

import struct
from typing import Final

from cbit.attacks.lab.guest import (
    C_BIT,
    CODE,
    HLT,
    SECRET,
    SHARED,
    VIEW,
    Crashed,
    Program,
    Victim,
    VirtualCpu,
    describe,
    tables,
)
from cbit.spec.address import PAGE, Gpa

PASSWORD: Final = 0x150000  #: linear address, in both address spaces
PROGRAMS_PAGE, SERVICES_PAGE = 0x20000, 0x21000
PROGRAMS_TABLES, SERVICES_TABLES = 0x30000, 0x38000
_PROGRAM, _SERVICE = CODE, CODE + 0x100
_SECRET_SIZE: Final = 32

_SOURCE: Final = f"""
program:                                   # stores what it was sent, at an address of its own
    movups xmm0, [{VIEW + SHARED:#x}]
    movups [{PASSWORD:#x}], xmm0
    hlt
    jmp program
.org {_SERVICE - _PROGRAM:#x}
service:                                   # hands its secret to whoever knows its password
    movups xmm0, [{VIEW + SHARED:#x}]
    movups xmm1, [{PASSWORD:#x}]
    pcmpeqb xmm0, xmm1
    pmovmskb eax, xmm0
    xorps xmm2, xmm2
    xorps xmm3, xmm3
    cmp eax, 0xFFFF
    jne answer
    movups xmm2, [{SECRET:#x}]
    movups xmm3, [{SECRET + 16:#x}]
answer:
    movups [{VIEW + SHARED + PAGE:#x}], xmm2
    movups [{VIEW + SHARED + PAGE + 16:#x}], xmm3
    hlt
    jmp service
"""


def victim(password: bytes) -> Program:
    """Lay out both programs, both address spaces, and the password."""
    spaces = []
    for top, page in ((PROGRAMS_TABLES, PROGRAMS_PAGE), (SERVICES_TABLES, SERVICES_PAGE)):
        laid = bytearray(tables(c_bit=C_BIT, top=top))
        struct.pack_into("<Q", laid, 3 * PAGE + 8 * (PASSWORD // PAGE), page | 1 << C_BIT | 0x67)
        spaces.append((top, bytes(laid)))
    return Program(_SOURCE, data=(*spaces, (SERVICES_PAGE, password)))


class TwoCpus:
    """The hypervisor's hand on the two virtual CPUs.

    Args:
        guest: the victim.
    """

    def __init__(self, guest: Victim) -> None:
        self._guest = guest
        self._program = self._cpu(PROGRAMS_TABLES, _PROGRAM)
        self._service = self._cpu(SERVICES_TABLES, _SERVICE)

    def _cpu(self, table: int, rip: int) -> VirtualCpu:
        vm = self._guest.vm
        return VirtualCpu(vm, asid=vm.asid, sev=self._guest.encrypted, cr3=table | 1 << C_BIT, rip=rip)

    def send(self, message: bytes) -> None:
        """Put a message where both look for one."""
        self._guest.vm.load(Gpa(SHARED), message)

    def program(self, *, flush: bool) -> None:
        """Let the unprivileged program store the message at the password's address, in its own space."""
        self._run(self._program, flush=flush)

    def service(self, *, flush: bool) -> bytes:
        """Let the service compare the message with its password, and answer with its secret or with zeros."""
        self._run(self._service, flush=flush)
        vm = self._guest.vm
        return vm.host.read(self._guest.spa(SHARED + PAGE), _SECRET_SIZE, c=vm.c)

    def _run(self, cpu: VirtualCpu, *, flush: bool) -> None:
        """VMRUN until it halts, and ask for a flush or not."""
        if flush:
            cpu.flush()
        exit = cpu.run()
        if exit.code != HLT:
            raise Crashed(f"the victim was to halt: {describe(exit)}")
        cpu.set(0x578, cpu.get(0x578) + 1)
