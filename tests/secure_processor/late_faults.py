"""What only later firmware has, SWAP_* and RING_BUFFER: good requests, and faults in the paper's order.

Paper: sev-api.md §5 (RING_BUFFER), §10 (SWAP_OUT, SWAP_IN); sev-crypto.md §13.
"""

from __future__ import annotations

from cbit.spec import buffers
from cbit.spec.address import MIB
from cbit.spec.command import Command as C
from cbit.spec.status import Status as S
from secure_processor.faults import (
    IDLE,
    INACTIVE,
    NO_GUEST,
    UNINIT,
    Fault,
    Scene,
    Scenes,
    bad_addresses,
    fields,
    spoiled,
)
from secure_processor.migration_faults import altered
from secure_processor.worlds import World

PAGE = 4096
VMSA, IN_PLACE = 2 << 1, 1 << 3


def swapped_out(world: World) -> buffers.SwapOut:
    """A good SWAP_OUT of a page of a running guest."""
    room = world.desk.room
    return buffers.SwapOut(
        handle=world.init(es=True).launch(), src=room(PAGE), dst=room(PAGE), mdata=room(64)
    )


def swap_out(world: World) -> Scene:
    return Scene(world, swapped_out(world))


def swap_in(world: World) -> Scene:
    out = swapped_out(world)
    world.desk.do(C.SWAP_OUT, out)
    asked = buffers.SwapIn(handle=out.handle, src=out.dst, dst=world.desk.room(PAGE), mdata=out.mdata)
    return Scene(world, asked)


def inside(what: str) -> Fault:
    """Metadata inside of one of the pages: nothing but the buffer is wrong."""

    def spoil(scene: Scene) -> None:
        scene.set(mdata=scene.get(what) + PAGE - 64)

    return Fault(f"MDATA in {what}", S.INVALID_PARAM, spoil, frozenset({"mdata", what}), in_the_buffer=True)


def exhausted(scene: Scene) -> None:
    scene.world.firmware.platform.guests[scene.get("handle")].swapped = (1 << 64) - 2


PLACES = (
    UNINIT,
    IDLE,
    *bad_addresses("src", es=True),
    *bad_addresses("dst", es=True),
    *bad_addresses("mdata", es=True),
    fields("SRC not on 4 KiB", S.INVALID_ADDRESS, src=2 * MIB + 2048),
    fields("DST not on 4 KiB", S.INVALID_ADDRESS, dst=2 * MIB + 2048),
    fields("MDATA not on 64", S.INVALID_ADDRESS, mdata=2 * MIB + 32),
    inside("src"),
    inside("dst"),
    NO_GUEST,
    INACTIVE,
)
SWAP_OUT = (
    *PLACES,
    spoiled("no IV is left", S.AEAD_OFLOW, exhausted, "iv"),
    fields("no save area", S.INVALID_PARAM, page=VMSA),
    fields("of no type", S.INVALID_PARAM, page=1 << 1),
)
SWAP_IN = (
    *PLACES,
    fields("of another type", S.INVALID_PARAM, page=VMSA),
    fields("in its place, and that is not there", S.INVALID_PARAM, page=IN_PLACE),
    altered("type altered", S.INVALID_PARAM, "mdata", 0x3C * 8 + 2, "page data"),
    altered("page altered", S.BAD_MEASUREMENT, "src", 4095 * 8 + 7, "data"),
    altered("software's word altered", S.BAD_MEASUREMENT, "mdata", 0, "data"),
    altered("IV altered", S.BAD_MEASUREMENT, "mdata", 8 * 8, "data"),
    altered("tag altered", S.BAD_MEASUREMENT, "mdata", 0x10 * 8, "data"),
    altered("reserved byte altered", S.BAD_MEASUREMENT, "mdata", 0x3B * 8, "data"),
)


def ring_buffer(world: World) -> Scene:
    world.init(es=True)
    low, low_status, high, high_status = (world.desk.room(PAGE) for _ in range(4))
    asked = buffers.RingBuffer(
        lo_cmd_paddr=low,
        lo_stat_paddr=low_status,
        hi_cmd_paddr=high,
        hi_stat_paddr=high_status,
        hi_size=1,
    )
    return Scene(world, asked)


POINTERS = ("lo_cmd_paddr", "lo_stat_paddr", "hi_cmd_paddr", "hi_stat_paddr")
RING_BUFFER = (
    UNINIT,
    fields("no page for the low queue", S.INVALID_PARAM, lo_size=0),
    fields("two pages for the low queue", S.INVALID_PARAM, lo_size=2),
    fields("two pages for the high queue", S.INVALID_PARAM, hi_size=2),
    *(fields(f"{name} not on 4 KiB", S.INVALID_ADDRESS, (), **{name: 2 * MIB + 2048}) for name in POINTERS),
    *(fault for name in POINTERS for fault in bad_addresses(name, es=True)),
)

SCENES: Scenes = {
    C.SWAP_OUT: (swap_out, SWAP_OUT),
    C.SWAP_IN: (swap_in, SWAP_IN),
    C.RING_BUFFER: (ring_buffer, RING_BUFFER),
}
