"""A victim with two virtual CPUs on one core: a program of the adversary's on one, a service on the other.

    linear       program's address space     service's address space
    0x10000      its code
    0x11000                                  its code
    0x0A000                                  the owner's secret
    0x150000     a page of its own           the page of its password
    shared       the request                 the request, and the page of the answer

Both run at CPL 3, as processes of different users do, and neither can reach what only the other maps.  They
are virtual CPUs of one guest, so they share an ASID, and with it the tag of their translations.

Paper: attacks.md A15; memory-encryption.md §7.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from cbit.attacks.lab.guest import (
    C_BIT,
    CODE,
    PAGE_FAULT,
    SECRET,
    SHARED,
    VIEW,
    VMMCALL,
    Crashed,
    Program,
    Victim,
    VirtualCpu,
    describe,
    tables,
)
from cbit.attacks.lab.tools import Registers, Runner
from cbit.spec.address import PAGE, Gpa

PASSWORD: Final = 0x150000  #: linear address, in both address spaces
PROGRAMS_PAGE, SERVICES_PAGE = 0x20000, 0x21000
PROGRAMS_TABLES, SERVICES_TABLES = 0x30000, 0x38000
_PROGRAM, _TRESPASS, _SERVICE = CODE, CODE + 0x100, CODE + PAGE
_SECRET_SIZE: Final = 32
_VMMCALL: Final = 3  # bytes
_C, _READ, _WRITE, _NX = 1 << C_BIT, 0x65, 0x67, 1 << 63  # present, user's, accessed, dirty
#: What an address space has, by linear address.
_PROGRAMS_SPACE: Final = {
    CODE: CODE | _C | _READ,
    PASSWORD: PROGRAMS_PAGE | _C | _WRITE | _NX,
    VIEW + SHARED: SHARED | _READ | _NX,
}
_SERVICES_SPACE: Final = {
    _SERVICE: _SERVICE | _C | _READ,
    SECRET: SECRET | _C | _READ | _NX,
    PASSWORD: SERVICES_PAGE | _C | _READ | _NX,
    VIEW + SHARED: SHARED | _READ | _NX,
    VIEW + SHARED + PAGE: SHARED + PAGE | _WRITE | _NX,
}
#: Where the VMCB has the level of privilege, and attributes of CS and SS that fit.
_CPL_3: Final = (("B", 0x4CB, 3), ("I", 0x410, 0xAFB_0013), ("I", 0x420, 0xCF3_001B))

_SOURCE: Final = f"""
program:                                   # stores what it was sent, at an address of its own
    movups xmm0, [{VIEW + SHARED:#x}]
    movups [{PASSWORD:#x}], xmm0
    vmmcall                                # no HLT: it is privileged
    jmp program
.org {_TRESPASS - _PROGRAM:#x}
    mov rax, [{SECRET:#x}]
    vmmcall
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
    vmmcall
    jmp service
"""


def victim(password: bytes) -> Program:
    """Lay out both programs, both address spaces, and the password."""
    spaces = [
        (PROGRAMS_TABLES, _space(PROGRAMS_TABLES, _PROGRAMS_SPACE)),
        (SERVICES_TABLES, _space(SERVICES_TABLES, _SERVICES_SPACE)),
    ]
    return Program(_SOURCE, data=(*spaces, (SERVICES_PAGE, password)))


def _space(top: int, leaves: Mapping[int, int]) -> bytes:
    """Make page tables that map a few pages and nothing else."""
    laid = bytearray(tables(c_bit=C_BIT, top=top))
    laid[3 * PAGE :] = bytes(2 * PAGE)
    for linear, leaf in leaves.items():
        struct.pack_into("<Q", laid, 3 * PAGE + 8 * (linear // PAGE), leaf)
    return bytes(laid)


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
        cpu = VirtualCpu(vm, asid=vm.asid, sev=self._guest.encrypted, cr3=table | _C, rip=rip)
        for form, at, value in _CPL_3:
            cpu.set(at, value, form)
        return cpu

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

    def trespass(self) -> bool:
        """Let the program load the service's secret, with no stale translation; say whether it can."""
        cpu = self._cpu(PROGRAMS_TABLES, _TRESPASS)
        Registers(cpu).take_faults(on=True)
        cpu.flush()
        return cpu.run().code != PAGE_FAULT

    def _run(self, cpu: VirtualCpu, *, flush: bool) -> None:
        """VMRUN until it calls, and ask for a flush or not."""
        if flush:
            cpu.flush()
        exit = cpu.run()
        if exit.code != VMMCALL:
            raise Crashed(f"the victim was to call its hypervisor: {describe(exit)}")
        Runner(cpu).skip(_VMMCALL)
