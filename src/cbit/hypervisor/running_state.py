"""What a small guest is beside its memory, when it moves: its processor, its devices, what it was asked.

    head | save area, one page | the copier's buffer | unfinished requests

Plain SEV protects memory alone: a hypervisor that moves a running guest reads its registers and hands them
on, in the clear.  (A guest with ES has them sealed in packets of their own, and does not move here.)

Not carried: what was printed, registers outside the save area that no small guest uses, and the clock.

Paper: memory-encryption.md §10.1; sev-api.md §8 (what the firmware does carry).
"""

from __future__ import annotations

import struct
from typing import Final

from cbit.hypervisor.channel import ChannelError
from cbit.hypervisor.devices.requests import MOST_ANSWERS, Asked
from cbit.hypervisor.small_guest import SmallGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import PAGE
from cbit.spec.errors import WireError
from cbit.spec.vmsa import Vmsa
from cbit.spec.wire import Wire, at

REQUESTS_MAX: Final = 64
_NOTHING_FETCHED: Final = 0xFFFF  #: nothing is being answered
_COUNTS: Final = struct.Struct("<3I")  #: of a request: its number, how many arguments, how many answers


class Head(Wire, size=0x2C):
    """Head of the state."""

    c_bit: int = at(0x00, 1)
    copy_failed: int = at(0x01, 1)
    fetched: int = at(0x02, 2)
    requests: int = at(0x04, 4)
    event: int = at(0x08, 8)
    shadow: int = at(0x10, 8)
    copy_low: int = at(0x18, 4)
    copy_high: int = at(0x1C, 4)
    copy_length: int = at(0x20, 4)
    buffer: int = at(0x24, 4)  # bytes of the copier's buffer


def pack(guest: SmallGuest) -> bytes:
    """Write down a guest that is between two turns."""
    vcpu, box, copier = guest.vcpu, guest.requests, guest.copier
    low, high, length = copier.registers
    fetched = box.fetched
    head = Head(
        c_bit=_c_bit(guest.vm),
        copy_failed=copier.failed,
        fetched=_NOTHING_FETCHED if fetched is None else fetched,
        requests=len(box.unfinished),
        event=vcpu.event,
        shadow=vcpu.shadow,
        copy_low=low,
        copy_high=high,
        copy_length=length,
        buffer=len(copier.buffer),
    )
    asked = b"".join(_request(each) for each in box.unfinished)
    return bytes(head) + bytes(vcpu.everything()) + copier.buffer + asked


def unpack(vm: Vm, state: bytes) -> tuple[SmallGuest, list[Asked]]:
    """Make the guest that was written down, on memory that has arrived; return its unfinished requests too.

    Raises:
        ChannelError: it was written down on a machine with another C-bit, or is no state.
        NoEngine: this computer cannot execute guests.
    """
    try:
        head = Head.parse(state[: Head.SIZE])
        registers = Vmsa.parse(state[Head.SIZE : Head.SIZE + PAGE], canonical=False)
        at_ = Head.SIZE + PAGE
        buffer, at_ = state[at_ : at_ + head.buffer], at_ + head.buffer
        asked = []
        for _ in range(min(head.requests, REQUESTS_MAX + 1)):
            request, at_ = _asked(state, at_)
            asked.append(request)
    except (WireError, struct.error) as error:
        raise ChannelError(f"the state of the processor and the devices makes no sense: {error}") from None
    if len(asked) > REQUESTS_MAX or len(buffer) > PAGE or at_ != len(state):
        raise ChannelError(f"the state of the processor and the devices has {len(state)} bytes, not {at_}")
    if head.c_bit != _c_bit(vm):
        # Its page tables are in its private memory, with the C-bit where the source has it.
        raise ChannelError(f"the guest was made for C-bit {head.c_bit}, this machine's is {_c_bit(vm)}")
    guest = SmallGuest(vm, registers)
    guest.vcpu.take_vectors(registers)
    guest.vcpu.resume(event=head.event, shadow=head.shadow)
    words = head.copy_low, head.copy_high, head.copy_length
    guest.copier.resume(words, buffer=buffer, failed=bool(head.copy_failed))
    guest.requests.resume(asked, None if head.fetched == _NOTHING_FETCHED else head.fetched)
    return guest, asked


def _c_bit(vm: Vm) -> int:
    return vm.host.machine.cores[0].guest_features.c_bit


def _request(asked: Asked) -> bytes:
    words = (*asked.arguments, *asked.answers)
    counts = _COUNTS.pack(asked.number, len(asked.arguments), len(asked.answers))
    return counts + struct.pack(f"<{len(words)}I", *words)


def _asked(state: bytes, at_: int) -> tuple[Asked, int]:
    number, arguments, answers = _COUNTS.unpack_from(state, at_)
    at_ += _COUNTS.size
    if arguments > MOST_ANSWERS or answers > MOST_ANSWERS:
        raise struct.error(f"{arguments} arguments and {answers} answers")
    words = struct.unpack_from(f"<{arguments + answers}I", state, at_)
    return Asked(number, words[:arguments], list(words[arguments:])), at_ + 4 * len(words)
