"""Model-specific registers of a guest, as this hypervisor keeps them.

    in the VMCB       EFER, STAR, LSTAR, CSTAR, SFMASK, SYSENTER_*, FS and GS bases: VMRUN loads them
    the core's        SYSCFG and HWCR of software on the bare machine
    kept              read back as written, without effect here; values that hardware refuses are refused
    constant          what a guest may ask for and cannot change

Everything else is #GP, which kernels expect of a virtual machine.  SEV_STATUS never comes here: no hypervisor
can intercept it.  Nor does the time-stamp counter, which `exits` answers by the clock.

Paper: memory-encryption.md §2.2; the registers are the AMD64 architecture's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from cbit.cpu.control import Efer, with_bit
from cbit.cpu.core import Core
from cbit.cpu.engine.checks import C_BIT
from cbit.cpu.faults import GeneralProtection
from cbit.cpu.msr import Msr

EFER: Final = 0xC000_0080
#: Registers that a guest may use without an exit: they are in the VMCB, or in the virtual CPU's own context.
DIRECT: Final = (
    *(0x174, 0x175, 0x176),  # SYSENTER_CS, _ESP, _EIP
    *(0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084),  # STAR, LSTAR, CSTAR, SFMASK
    *(0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103),  # FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX
)

_FIXED_MTRRS: Final = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_VARIABLE_MTRRS: Final = tuple(range(0x200, 0x210))
_PAT_AT_RESET: Final = 0x0007_0406_0007_0406
_WRITE_BACK: Final = 6
_SYSCFG, _HWCR = int(Msr.SYSCFG), int(Msr.HWCR)
_TSC_FREQ_SEL: Final = 1 << 24  # of HWCR: the time-stamp counter counts as P0 does; cannot be changed
TSC: Final = 0x10
#: Number -> value at reset.
KEPT: Final[Mapping[int, int]] = MappingProxyType(
    dict.fromkeys((*_FIXED_MTRRS, *_VARIABLE_MTRRS), 0)
    | {
        0x2FF: _WRITE_BACK,  # MTRRdefType
        0x277: _PAT_AT_RESET,
        _HWCR: _TSC_FREQ_SEL,
        _SYSCFG: 0,
        0xC001_1029: 1 << 1,  # DE_CFG: LFENCE serialises
        0x1D9: 0,  # DEBUGCTL
        0xC001_001F: 0,  # NB_CFG: Linux asks the northbridge for PCI's extended registers, and does not check
        0x49: 0,  # PRED_CMD
    }
)
CONSTANT: Final[Mapping[int, int]] = MappingProxyType(
    {
        0xFE: 8 | 1 << 8 | 1 << 10,  # MTRRcap: eight variable ranges, fixed ranges, write combining
        0x8B: 0x0800_1000,  # PATCH_LEVEL
        0xC001_0114: 0,  # VM_CR
        0xC001_001A: 0,  # TOP_MEM
        0xC001_001D: 0,  # TOP_MEM2
        0xC001_0112: 0,  # SMM_ADDR
        0xC001_0113: 0,  # SMM_MASK
        0xC001_0117: 0,  # VM_HSAVE_PA
        0xC001_0061: 0,  # P-state limits, control, status
        0xC001_0062: 0,
        0xC001_0063: 0,
    }
)
_READ_ONLY: Final = frozenset({0xFE})
_MTRR_TYPES: Final = frozenset({0, 1, 4, 5, 6})
_PAT_TYPES: Final = _MTRR_TYPES | {7}  # UC-
_ADDRESS: Final = (1 << C_BIT + 1) - (1 << 12)


def _are_types(value: int, types: frozenset[int]) -> bool:
    return types.issuperset(value.to_bytes(8, "little"))


def _is_mtrr(value: int, others: int) -> bool:
    return not value & ~(others | 0xFF) and value & 0xFF in _MTRR_TYPES


#: What may be written where not everything may.
_MAY_BE: Final[Mapping[int, Callable[[int], bool]]] = MappingProxyType(
    dict.fromkeys(_FIXED_MTRRS, lambda value: _are_types(value, _MTRR_TYPES))
    | dict.fromkeys(_VARIABLE_MTRRS[::2], lambda value: _is_mtrr(value, _ADDRESS))
    | dict.fromkeys(_VARIABLE_MTRRS[1::2], lambda value: not value & ~(_ADDRESS | 1 << 11))
    | {
        0x277: lambda value: _are_types(value, _PAT_TYPES),
        0x2FF: lambda value: _is_mtrr(value, 1 << 10 | 1 << 11),  # fixed ranges, all ranges enabled
        0x1D9: lambda value: not value & ~0x3F,
        0x49: lambda value: not value & ~1,  # IBPB
    }
)
_MAP_SIZE: Final = 0x2000
_MAP_RANGES: Final[Mapping[int, int]] = MappingProxyType({0x0: 0x0, 0xC000_0000: 0x800, 0xC001_0000: 0x1000})
_EFER_BITS: Final = int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE | Efer.FFXSR)


class NoSuchMsr(Exception):
    """The register does not exist, or not this value: #GP in the guest."""


class GuestMsrs:
    """The registers of one virtual CPU that are not in its VMCB.  Mutable."""

    def __init__(self) -> None:
        self._values = dict(KEPT)
        self._core: Core | None = None

    def become_host(self, core: Core) -> None:
        """Be the registers of software on the bare machine: what decides about memory there is the core's."""
        self._core = core

    def read(self, number: int, *, efer: int) -> int:
        """Execute RDMSR.

        Args:
            number: ECX.
            efer: EFER as the VMCB has it.

        Raises:
            NoSuchMsr: #GP.
        """
        if number == EFER:
            return with_bit(efer, Efer.SVME, on=False)
        if number in CONSTANT:
            return CONSTANT[number]
        if self._core is not None and number in (_SYSCFG, _HWCR):
            return self._core.rdmsr(number) | (_TSC_FREQ_SEL if number == _HWCR else 0)
        try:
            return self._values[number]
        except KeyError:
            raise NoSuchMsr(f"RDMSR {number:#x}") from None

    def write(self, number: int, value: int, *, efer: int, paging: bool) -> int:
        """Execute WRMSR; return EFER as the VMCB must have it now.

        Args:
            number: ECX.
            value: EDX:EAX.
            efer: EFER as the VMCB has it.
            paging: CR0.PG of the guest.

        Raises:
            NoSuchMsr: #GP; nothing changed.
            NotModelled: a bit of the core's whose effect the model lacks.
        """
        if number == EFER:
            if value & ~_EFER_BITS or (paging and (value ^ efer) & Efer.LME):
                raise NoSuchMsr(f"WRMSR EFER {value:#x}")
            # VMRUN insists on SVME, whatever the guest thinks of it.
            active = bool(efer & Efer.LMA)
            return with_bit(with_bit(value, Efer.SVME, on=True), Efer.LMA, on=active)
        if self._core is not None and number in (_SYSCFG, _HWCR):
            try:
                self._core.wrmsr(number, value)
            except GeneralProtection as error:
                raise NoSuchMsr(str(error)) from None
        elif number in self._values and _MAY_BE.get(number, _anything)(value):
            self._values[number] = value
        elif number not in CONSTANT or number in _READ_ONLY:
            raise NoSuchMsr(f"WRMSR {number:#x}: {value:#x}")
        return efer


def _anything(_value: int) -> bool:
    return True


def msr_map() -> bytes:
    """Build an MSR permission map: everything exits but the registers in `DIRECT`."""
    permissions = bytearray(b"\xff" * _MAP_SIZE)
    for number in DIRECT:
        base = number & 0xFFFF_0000 if number >= 0xC000_0000 else 0
        bit = 2 * (number - base)
        permissions[_MAP_RANGES[base] + bit // 8] &= ~(3 << bit % 8) & 0xFF
    return bytes(permissions)
