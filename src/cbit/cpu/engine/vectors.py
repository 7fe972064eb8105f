"""The x87, SSE and AVX registers of a virtual CPU, as fields of a save area.

With plain SEV neither VMRUN nor VMSAVE touches them: a hypervisor that moves a guest carries them itself.

Paper: launch-inputs.md §6 (where a save area has them).
Not modelled: the instruction and data pointers of the last x87 instruction, and XCR0.
"""

from __future__ import annotations

from typing import Any, Final

from cbit.spec.vmsa import Vmsa

_VECTORS: Final = 16
_STACK: Final = 8
_HALF: Final = 16  #: bytes of an XMM register, and of what a YMM register has above it
_TEN: Final = 10  #: bytes of an x87 register
_TOP: Final = 11  #: place of the stack's top in the status word


def read(uc: Any, x86: Any) -> dict[str, int | bytes]:
    """Return the fields: x87 registers from the top of their stack, the tag word with two bits each."""
    status: int = uc.reg_read(x86.UC_X86_REG_FPSW)
    stack = [uc.reg_read(x86.UC_X86_REG_FP0 + number) for number in range(_STACK)]
    whole = [
        uc.reg_read(x86.UC_X86_REG_YMM0 + number).to_bytes(2 * _HALF, "little") for number in range(_VECTORS)
    ]
    top = status >> _TOP
    return {
        "mxcsr": uc.reg_read(x86.UC_X86_REG_MXCSR),
        "x87_fcw": uc.reg_read(x86.UC_X86_REG_FPCW),
        "x87_fsw": status,
        "x87_ftw": uc.reg_read(x86.UC_X86_REG_FPTAG),
        "x87_registers": b"".join(_packed(*stack[(top + n) % _STACK]) for n in range(_STACK)),
        "xmm": b"".join(register[:_HALF] for register in whole),
        "ymm_high": b"".join(register[_HALF:] for register in whole),
    }


def write(uc: Any, x86: Any, state: Vmsa) -> None:
    """Put the fields of a save area into the registers."""
    for number in range(_STACK):
        ten = state.x87_registers[_TEN * number : _TEN * (number + 1)]
        place = x86.UC_X86_REG_FP0 + ((state.x87_fsw >> _TOP) + number) % _STACK
        uc.reg_write(place, (int.from_bytes(ten[:8], "little"), int.from_bytes(ten[8:], "little")))
    for number in range(_VECTORS):
        at = slice(_HALF * number, _HALF * (number + 1))
        uc.reg_write(
            x86.UC_X86_REG_YMM0 + number, int.from_bytes(state.xmm[at] + state.ymm_high[at], "little")
        )
    uc.reg_write(x86.UC_X86_REG_FPCW, state.x87_fcw)
    uc.reg_write(x86.UC_X86_REG_FPSW, state.x87_fsw)
    uc.reg_write(x86.UC_X86_REG_FPTAG, state.x87_ftw)
    uc.reg_write(x86.UC_X86_REG_MXCSR, state.mxcsr)


def _packed(mantissa: int, exponent: int) -> bytes:
    return mantissa.to_bytes(8, "little") + exponent.to_bytes(2, "little")
