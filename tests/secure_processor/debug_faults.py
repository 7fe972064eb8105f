"""COPY, ATTESTATION and DBG: requests that succeed, and what can be wrong with them, in the paper's order.

Paper: sev-api.md §6 COPY, §7 ATTESTATION, §10.
"""

from __future__ import annotations

from cbit.spec import buffers
from cbit.spec.address import MIB, PAGE
from cbit.spec.command import Command as C
from cbit.spec.policy import Policy
from cbit.spec.status import Status as S
from secure_processor.faults import (
    ASEG,
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
from secure_processor.worlds import MEMORY, TMR, World


def copy(world: World) -> Scene:
    handle = world.init(es=True).launch()
    room = world.desk.room
    return Scene(world, buffers.Copy(handle=handle, length=2 * PAGE, src=room(2 * PAGE), dst=room(2 * PAGE)))


COPY = (
    UNINIT,
    IDLE,
    NO_GUEST,
    INACTIVE,
    fields("length 0", S.INVALID_LENGTH, length=0),
    fields("half a page", S.INVALID_LENGTH, length=0x800),
    fields("a page and a block", S.INVALID_LENGTH, length=PAGE + 16),
    fields("SRC not on a page", S.INVALID_ADDRESS, src=2 * MIB + 16),
    fields("DST not on a page", S.INVALID_ADDRESS, dst=2 * MIB + 0x800),
    fields("crosses 64 MiB", S.INVALID_PARAM, length=64 * MIB),
    fields("SRC crosses 64 MiB", S.INVALID_PARAM, src=64 * MIB - PAGE),
    fields("DST crosses 64 MiB", S.INVALID_PARAM, dst=64 * MIB - PAGE),
    *(
        fields(f"{field} {what}", S.INVALID_ADDRESS, (), **{field: at})
        for field in ("src", "dst")
        for what, at in {
            "leaves DRAM": MEMORY - PAGE,
            "reaches ASEG": ASEG - PAGE,
            "reaches the TMR": TMR - PAGE,
        }.items()
    ),
)


def attestation(world: World) -> Scene:
    handle = world.init(es=True).launch()
    asked = buffers.Attestation(handle=handle, paddr=world.desk.room(0xD0), mnonce=b"n" * 16, length=0xD0)
    return Scene(world, asked)


def not_measured(scene: Scene) -> None:
    scene.set(handle=scene.world.start())


ATTESTATION = (
    UNINIT,
    IDLE,
    NO_GUEST,
    spoiled("not measured yet", S.INVALID_GUEST_STATE, not_measured, "handle guest"),
    fields("length 0", S.INVALID_LENGTH, length=0),
    fields("length short", S.INVALID_LENGTH, length=0xCF),
    *bad_addresses("paddr", es=True),
)


def debug(world: World) -> Scene:
    handle = world.init(es=True).launch()
    room = world.desk.room
    return Scene(world, buffers.Debug(handle=handle, src=room(PAGE), dst=room(PAGE), length=64))


def forbid_debugging(scene: Scene) -> None:
    guest = scene.world.firmware.platform.guests[scene.get("handle")]
    guest.policy |= Policy.NODBG


def ends(field: str) -> tuple[Fault, ...]:
    addresses = {
        "leaves DRAM": MEMORY - 16,
        "reaches ASEG": ASEG - 16,
        "reaches the TMR": TMR - 16,
        "is nowhere": 1 << 46,
    }
    return tuple(
        fields(f"{field} {what}", S.INVALID_ADDRESS, (), **{field: at}) for what, at in addresses.items()
    )


DEBUG = (
    UNINIT,
    IDLE,
    fields("SRC not on 16", S.INVALID_ADDRESS, src=2 * MIB + 8),
    fields("DST not on 16", S.INVALID_ADDRESS, dst=2 * MIB + 1),
    fields("length not a multiple of 16", S.INVALID_LENGTH, length=24),
    NO_GUEST,
    spoiled("NODBG", S.POLICY_FAILURE, forbid_debugging, "guest"),
    INACTIVE,
    fields("length 0", S.INVALID_LENGTH, length=0),
    *ends("src"),
    *ends("dst"),
    fields("length leaves DRAM", S.INVALID_ADDRESS, length=256 * MIB),
)

SCENES: Scenes = {
    C.COPY: (copy, COPY),
    C.ATTESTATION: (attestation, ATTESTATION),
    C.DBG_DECRYPT: (debug, DEBUG),
    C.DBG_ENCRYPT: (debug, DEBUG),
}
