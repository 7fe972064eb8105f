"""Interrupt controllers and timer of the supplied KVM: registers that are kept as they are set.

An interrupt that a program raises changes nothing: there is no running processor that could take it.

Layouts: linux, asm/kvm.h.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from cbit.redirect.kvm_cpu import Asked, State

ROUTES: Final = 4096  #: entries of the routing table, at most

_CHIP: Final = struct.Struct("<II512s")  #: which, padding, registers
_ROUTING: Final = struct.Struct("<II")  #: how many, flags
_ROUTE_SIZE: Final = 48
_PINS: Final = 24
_MASKED: Final = 1 << 16
#: Registers after a reset: two 8259 (the last two bytes: edge or level, and which of it can be set), an I/O
#: APIC at its address with all pins masked.
_CHIPS: Final = (
    bytes(15) + b"\xf8",
    bytes(15) + b"\xde",
    struct.pack(f"<QIIII{_PINS}Q", 0xFEC0_0000, 0, 0, 0, 0, *[_MASKED] * _PINS),
)


def reset_chips() -> State:
    """Return what a reset leaves in the controllers."""
    return {_name(which): registers.ljust(512, b"\0") for which, registers in enumerate(_CHIPS)}


def reset_timer() -> bytes:
    """Return what a reset leaves in the timer: its channels count from the top, and the third is shut."""
    channels = (struct.pack("<IH10Bq", 0x1_0000, 0, *[0] * 7, 0xFF, 0, which != 2, 0) for which in range(3))
    return b"".join(channels).ljust(112, b"\0")


def get_chip(state: State, asked: Asked) -> int:
    """KVM_GET_IRQCHIP."""
    which = _which(asked)
    asked.write(_CHIP.pack(which, 0, state[_name(which)]))
    return 0


def set_chip(state: State, asked: Asked) -> int:
    """KVM_SET_IRQCHIP."""
    which = _which(asked)
    state[_name(which)] = _CHIP.unpack(asked.read(_CHIP.size))[2]
    return 0


def set_routing(asked: Asked) -> int:
    """KVM_SET_GSI_ROUTING: look at the table as the kernel does; nothing is ever routed."""
    count, flags = _ROUTING.unpack(asked.read(_ROUTING.size))
    if count > ROUTES:
        asked.refuse(errno.EINVAL, f"{count} routes: there are {ROUTES} at most")
    if flags:
        asked.refuse(errno.EINVAL, f"flags {flags:#x}: none is known")
    if count:
        asked.read(count * _ROUTE_SIZE, _ROUTING.size)
    return 0


def _which(asked: Asked) -> int:
    which, _, _ = _CHIP.unpack(asked.read(_CHIP.size))
    if which >= len(_CHIPS):
        asked.refuse(errno.EINVAL, f"controller {which}: there are {len(_CHIPS)}")
    return int(which)


def _name(which: int) -> str:
    return f"interrupt controller {which}"
