"""RING_BUFFER: from one command at a time to queues of them.

Paper: sev-api.md §5, RING_BUFFER.
"""

from __future__ import annotations

from cbit.secure_processor.call import Call
from cbit.secure_processor.refusal import Refused
from cbit.secure_processor.ring_buffer import Place, RingBuffers
from cbit.spec import buffers
from cbit.spec.address import PAGE, strip_c_bit
from cbit.spec.status import Status

INT_ON_EMPTY = 1 << 0


def ring_buffer(call: Call[buffers.RingBuffer]) -> None:
    """RING_BUFFER: the registers change their meaning until the mode is left."""
    firmware, given = call.firmware, call.given
    if firmware.rings() is not None:
        raise Refused(Status.INVALID_PARAM, "ring buffers are in use already")
    if given.lo_size != 1 or given.hi_size > 1:
        raise Refused(
            Status.INVALID_PARAM, f"LO_SIZE {given.lo_size}, HI_SIZE {given.hi_size}: pages, 1 and 0 or 1"
        )
    low = {"LO_CMD_PTR": given.lo_cmd_paddr, "LO_STAT_PTR": given.lo_stat_paddr}
    high = {"HI_CMD_PTR": given.hi_cmd_paddr, "HI_STAT_PTR": given.hi_stat_paddr} if given.hi_size else {}
    for what, pointer in {**low, **high}.items():
        if strip_c_bit(pointer, firmware.memory.rules.c_bit)[0] % PAGE:
            raise Refused(Status.INVALID_ADDRESS, f"{what} {pointer:#x} is not aligned to 4 KiB")
    found: list[Place] = [
        firmware.memory.host_range(pointer, PAGE, what) for what, pointer in {**low, **high}.items()
    ]
    firmware.start_rings(
        RingBuffers(
            firmware.memory.fabric,
            (found[0], found[1], given.lo_threshold),
            (found[2], found[3], given.hi_threshold) if high else None,
            int_on_empty=bool(given.int_on_empty & INT_ON_EMPTY),
        )
    )
