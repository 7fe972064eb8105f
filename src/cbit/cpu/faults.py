"""What a core raises instead of completing an access or an instruction.

A `Fault` is delivered to the software that ran (host or guest).  A `VmExit` ends guest mode and is the
hypervisor's. What the *model* refuses because the hardware's behaviour is undefined is `EncryptedMmio`, or
`NotModelled`.

Paper: memory-encryption.md §3 rules 3 and 7, §8; the bits of the codes are the AMD64 architecture's own.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from cbit.spec.errors import CbitError


class PageFaultCode(IntFlag):
    """Error code of #PF, and the low half of EXITINFO1 of a nested page fault."""

    P = 1 << 0  # 1: the page was there and refused; 0: an entry was not present
    W = 1 << 1  # the access was a write
    U = 1 << 2  # the access was a user access
    RSVD = 1 << 3  # an entry had a reserved bit set: for memory encryption, one of the lost address bits
    ID = 1 << 4  # the access was an instruction fetch
    FINAL = 1 << 32  # nested only: while translating the guest's final address
    TABLE = 1 << 33  # nested only: while translating the address of a guest page table


class ExitCode(IntEnum):
    """The exit codes that this model produces by itself, or that a caller ends a guest's turn with."""

    INTR = 0x60  # a physical interrupt: the guest's turn is over
    HLT = 0x78
    SHUTDOWN = 0x7F
    VMMCALL = 0x81
    NPF = 0x400
    INVALID = 0xFFFF_FFFF_FFFF_FFFF  # VMEXIT_INVALID, -1


class Fault(CbitError):
    """An exception of the CPU, with its vector."""

    vector: int


class InvalidOpcode(Fault):
    """#UD: the instruction does not exist in this state of the core."""

    vector = 6


class GeneralProtection(Fault):
    """#GP(0): an access to a register or address that the core does not allow.

    A page that is not mapped, or refuses the access, is `PageFault`.
    """

    vector = 13


class PageFault(Fault):
    """#PF: a walk ended without permission.

    Attributes:
        code: the error code.
        address: the linear address (CR2); inside a nested walk, the guest physical address.
    """

    vector = 14

    def __init__(self, code: PageFaultCode, address: int, why: str) -> None:
        super().__init__(f"#PF({_names(code)}) at {address:#x}: {why}")
        self.code = code
        self.address = address
        self.why = why


class VmExit(CbitError):
    """Guest mode ended, or did not begin; the core is back in the host.

    Attributes:
        exit_code: EXITCODE as written to the VMCB.
        exit_info_1: EXITINFO1.
        exit_info_2: EXITINFO2.
        why: the reason in words; the VMCB carries only the numbers.
    """

    def __init__(self, exit_code: ExitCode, why: str, *, exit_info_1: int = 0, exit_info_2: int = 0) -> None:
        super().__init__(f"#VMEXIT({exit_code.name}): {why}")
        self.exit_code = exit_code
        self.exit_info_1 = exit_info_1
        self.exit_info_2 = exit_info_2
        self.why = why


class NestedPageFault(VmExit):
    """The nested tables refused a guest physical address.

    EXITINFO1 holds the page-fault code and where it happened (bit 32 or 33); EXITINFO2 the guest physical
    address, with the guest's C-bit if it was set: hypervisors must mask it off.

    Paper: memory-encryption.md §3 rule 7.
    """

    def __init__(self, code: PageFaultCode, address: int, why: str) -> None:
        super().__init__(
            ExitCode.NPF,
            f"{_names(code)} at guest physical {address:#x}: {why}",
            exit_info_1=int(code),
            exit_info_2=address,
        )
        self.code = code


class VmexitInvalid(VmExit):
    """VMRUN refused the VMCB: the guest never ran."""

    def __init__(self, why: str) -> None:
        super().__init__(ExitCode.INVALID, why)


class EncryptedMmio(CbitError):
    """An access with C=1 reached a device's registers: undefined on hardware.

    MODEL CHOICE (memory-encryption.md §4.1): the model stops instead of guessing what the device would see.
    """


class WrongCoreMode(CbitError):
    """The core is in guest mode and was asked for host work, or the guest's turn is already over."""


_NO_BITS: Final = "not present"


def _names(code: PageFaultCode) -> str:
    return "|".join(bit.name or "" for bit in PageFaultCode if bit in code) or _NO_BITS
