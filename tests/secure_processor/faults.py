"""For each command: a request that succeeds, and what can be wrong with it, in the paper's order of checks.

Paper: sev-api.md §5–§7, the "Order:" lines.  Two faults at once must give the earlier one's status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cbit.secure_processor.image import BiosSettings
from cbit.spec import buffers
from cbit.spec.address import MIB
from cbit.spec.command import Command as C
from cbit.spec.states import GuestState
from cbit.spec.status import Status as S
from cbit.spec.wire import Wire
from secure_processor.worlds import ES_INIT, FIRST, LAST, MEMORY, TMR, World

NOBODY = 77  # a handle that is in range and not in use
ASEG = 0xA0000


class Scene:
    """A world where one command is about to be given."""

    def __init__(self, world: World, buffer: Wire | None = None) -> None:
        self.world = world
        self.buffer = buffer

    def set(self, **fields: Any) -> None:
        assert self.buffer is not None
        self.buffer = self.buffer.replace(**fields)

    def get(self, field: str) -> Any:
        return getattr(self.buffer, field)

    def alter(self, at: int, bit: int) -> None:
        """Flip a bit of what lies in memory, at a bit offset from an address."""
        at += bit // 8
        byte = self.world.desk.read(at, 1)[0] ^ 1 << bit % 8
        self.world.desk.write(at, bytes([byte]))


@dataclass(frozen=True)
class Fault:
    """One thing wrong.

    Attributes:
        name: what.
        status: what the paper answers.
        spoil: makes it so.
        touches: what it works on; two faults on the same thing cannot be there at once.
        moves: whether the refused command does change something, by the paper's word.
        in_the_buffer: whether the command's own buffer is all that is wrong; nothing else in the world is.
    """

    name: str
    status: S
    spoil: Callable[[Scene], object]
    touches: frozenset[str] = frozenset()
    moves: bool = False
    in_the_buffer: bool = False


Scenes = dict[C, tuple[Callable[[World], Scene], tuple[Fault, ...]]]


def fields(name: str, status: S, touches: tuple[str, ...] = (), **changes: int) -> Fault:
    return Fault(
        name,
        status,
        lambda scene: scene.set(**changes),
        frozenset({*changes, *touches}),
        in_the_buffer=True,
    )


def spoiled(
    name: str, status: S, spoil: Callable[[Scene], object], touches: str = "", *, moves: bool = False
) -> Fault:
    return Fault(name, status, spoil, frozenset(touches.split()), moves)


def shut_down(scene: Scene) -> None:
    scene.world.desk.do(C.SHUTDOWN)


def decommission_all(scene: Scene) -> None:
    platform = scene.world.firmware.platform
    for guest in list(platform.guests.values()):
        if guest.asid is not None:
            scene.world.deactivate(guest.handle)
        scene.world.decommission(guest.handle)


def block_nv_writes(scene: Scene) -> None:
    """Put a folder where the new content is written first: nobody can open it for writing, root neither."""
    scene.world.nv.with_name("sev.nv.new").mkdir()


def block_nv_reads(scene: Scene) -> None:
    scene.world.nv.unlink(missing_ok=True)
    scene.world.nv.mkdir()


UNINIT = spoiled("platform UNINIT", S.INVALID_PLATFORM_STATE, shut_down, "platform")
IDLE = spoiled("platform INIT", S.INVALID_PLATFORM_STATE, decommission_all, "platform")
BUSY = spoiled("platform WORKING", S.INVALID_PLATFORM_STATE, lambda s: s.world.start(), "platform")
NO_GUEST = fields("handle not in use", S.INVALID_GUEST, ("guest",), handle=NOBODY)
NO_WRITE = spoiled("the store cannot be written", S.HWERROR_PLATFORM, block_nv_writes, "nv")


def bad_addresses(field: str, *, es: bool = False) -> tuple[Fault, ...]:
    addresses = {"leaves DRAM": MEMORY - 1, "reaches ASEG": ASEG - 1, "is nowhere": 1 << 46}
    if es:
        addresses["reaches the TMR"] = TMR - 1
    return tuple(
        fields(f"{field} {what}", S.INVALID_ADDRESS, (), **{field: at}) for what, at in addresses.items()
    )


# ---- platform commands -------------------------------------------------------------------------------------


def init(world: World) -> Scene:
    world.init()  # so that there is an identity
    world.desk.do(C.SHUTDOWN)
    return Scene(world, ES_INIT)


def damage_nv(scene: Scene) -> None:
    raw = bytearray(scene.world.nv.read_bytes())
    raw[100] ^= 1
    scene.world.nv.write_bytes(raw)


def encryption_off(scene: Scene) -> None:
    scene.world.set_bios(BiosSettings(memory_encryption=0))


INIT = (
    spoiled("platform INIT", S.INVALID_PLATFORM_STATE, lambda s: s.world.init(), "platform nv encryption"),
    spoiled("encryption is off", S.HWERROR_PLATFORM, encryption_off, "encryption"),
    fields("unknown flag", S.INVALID_CONFIG, flags=3),
    fields("highest flag", S.INVALID_CONFIG, flags=1 << 31 | 1),
    spoiled("NV damaged", S.SECURE_DATA_INVALID, damage_nv, "nv", moves=True),
    spoiled("NV unreadable", S.HWERROR_PLATFORM, block_nv_reads, "nv"),
    fields("TMR not on 1 MiB", S.INVALID_ADDRESS, tmr_paddr=2 * MIB + 4096),
    fields("TMR short", S.INVALID_LENGTH, tmr_length=MIB - 4096),
    fields("TMR long", S.INVALID_LENGTH, tmr_length=MIB + 4096),
    fields("TMR beyond DRAM", S.INVALID_ADDRESS, tmr_paddr=MEMORY),
    fields("TMR over ASEG", S.INVALID_ADDRESS, tmr_paddr=0),
)


def bare(world: World) -> Scene:
    return Scene(world.init())


def forget_wbinvd(scene: Scene) -> None:
    for core in scene.world.machine.cores:
        core.clear_wbinvd_done()


def pek_csr(world: World) -> Scene:
    world.init(es=True)
    return Scene(world, buffers.PekCsr(paddr=world.desk.room(0x824), length=0x824))


def get_id(world: World) -> Scene:
    world.init(es=True)
    return Scene(world, buffers.GetId(paddr=world.desk.room(64), length=64))


def pdh_cert_export(world: World) -> Scene:
    world.init(es=True)
    room = world.desk.room
    return Scene(
        world,
        buffers.PdhCertExport(
            pdh_paddr=room(0x824), pdh_len=0x824, certs_paddr=room(0x186C), certs_len=0x186C
        ),
    )


# ---- guest commands ----------------------------------------------------------------------------------------


def idle_guest(world: World) -> Scene:
    """A guest without an ASID."""
    handle = world.init().launch()
    world.deactivate(handle)
    return Scene(world, buffers.GuestHandle(handle=handle))


def running_guest(world: World) -> Scene:
    return Scene(world, buffers.GuestHandle(handle=world.init().launch()))


def secret_guest(world: World) -> Scene:
    return Scene(world, buffers.GuestHandle(handle=world.init().launch(state=GuestState.LSECRET)))


def activate(world: World) -> Scene:
    handle = world.init(es=True).start()
    return Scene(world, buffers.Activate(handle=handle, asid=FIRST))


def give_asid_to_another(scene: Scene) -> None:
    scene.world.activate(scene.world.start(), scene.get("asid"))


def give_another_asid(scene: Scene) -> None:
    world, handle = scene.world, scene.get("handle")
    state = world.firmware.platform.guests[handle].state
    world.force(handle, GuestState.LUPDATE)
    world.activate(handle, LAST)
    world.force(handle, state)


def dirty_asid(scene: Scene) -> None:
    """Let another guest run with the ASID and leave it."""
    other = scene.world.launch(asid=FIRST)
    scene.world.deactivate(other)
    scene.world.decommission(other)


def force(state: GuestState) -> Callable[[Scene], None]:
    return lambda scene: scene.world.force(scene.get("handle"), state)


def finish_secretly(scene: Scene) -> None:
    scene.world.finish(scene.get("handle"))


def deactivate(scene: Scene) -> None:
    scene.world.deactivate(scene.get("handle"))


def measured(scene: Scene) -> None:
    scene.world.measure(scene.get("handle"))


INACTIVE = spoiled("no ASID", S.INACTIVE, deactivate, "active")
ACTIVATE = (
    UNINIT,
    IDLE,
    NO_GUEST,
    fields("ASID 0", S.INVALID_ASID, asid=0),
    fields("ASID beyond the last", S.INVALID_ASID, asid=LAST + 1),
    fields("ASID of 32 bits", S.INVALID_ASID, asid=0xFFFFFFFF),
    spoiled("another guest has the ASID", S.ASID_OWNED, give_asid_to_another, "asid"),
    spoiled("the guest has another ASID", S.ACTIVE, give_another_asid, "active"),
    spoiled("SENT", S.INVALID_GUEST_STATE, force(GuestState.SENT)),
    spoiled("dirty ASID", S.DFFLUSH_REQUIRED, dirty_asid, "asid"),
    fields("ASID of the ES range", S.INVALID_ASID, asid=FIRST - 1),
)


SCENES: Scenes = {
    C.INIT: (init, INIT),
    C.SHUTDOWN: (bare, ()),
    C.PLATFORM_RESET: (
        Scene,
        (
            spoiled("platform INIT", S.INVALID_PLATFORM_STATE, lambda s: s.world.init(), "platform nv"),
            spoiled(
                "platform WORKING", S.INVALID_PLATFORM_STATE, lambda s: s.world.init().start(), "platform nv"
            ),
            NO_WRITE,
        ),
    ),
    C.PLATFORM_STATUS: (lambda world: Scene(world.init(), buffers.PlatformStatus()), ()),
    C.PEK_GEN: (bare, (UNINIT, BUSY, NO_WRITE)),
    C.PEK_CSR: (
        pek_csr,
        (
            UNINIT,
            fields("length 0", S.INVALID_LENGTH, length=0),
            fields("length short", S.INVALID_LENGTH, length=0x823),
            *bad_addresses("paddr", es=True),
        ),
    ),
    C.PDH_CERT_EXPORT: (
        pdh_cert_export,
        (
            UNINIT,
            fields("PDH length short", S.INVALID_LENGTH, pdh_len=0x823),
            fields("chain length short", S.INVALID_LENGTH, certs_len=0x186B),
            *bad_addresses("pdh_paddr", es=True),
            *bad_addresses("certs_paddr", es=True),
        ),
    ),
    C.PDH_GEN: (bare, (UNINIT, NO_WRITE)),
    C.DF_FLUSH: (
        bare,
        (
            UNINIT,
            spoiled(
                "no WBINVD",
                S.WBINVD_REQUIRED,
                forget_wbinvd,
            ),
        ),
    ),
    C.GET_ID: (
        get_id,
        (
            fields("length 0", S.INVALID_LENGTH, length=0),
            fields("length short", S.INVALID_LENGTH, length=63),
            *bad_addresses("paddr", es=True),
        ),
    ),
    C.NOP: (bare, ()),
    C.DECOMMISSION: (
        idle_guest,
        (
            UNINIT,
            IDLE,
            NO_GUEST,
            fields("handle 0", S.INVALID_GUEST, ("guest",), handle=0),
            spoiled("still active", S.ACTIVE, lambda s: s.world.activate(s.get("handle"), LAST), "active"),
        ),
    ),
    C.ACTIVATE: (activate, ACTIVATE),
    C.DEACTIVATE: (running_guest, (UNINIT, IDLE, NO_GUEST, INACTIVE)),
    C.GUEST_STATUS: (
        lambda world: Scene(world, buffers.GuestStatus(handle=world.init().launch())),
        (UNINIT,),
    ),
}
