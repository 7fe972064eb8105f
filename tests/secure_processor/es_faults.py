"""Save areas, INIT_EX, ACTIVATE_EX, DOWNLOAD_FIRMWARE: good requests, and faults in the paper's order.

Paper: sev-api.md §5 (INIT_EX, DOWNLOAD_FIRMWARE), §6 (ACTIVATE_EX), §7–§9 (VMSA).
"""

from __future__ import annotations

from collections.abc import Callable

from cbit.crypto import ec
from cbit.crypto.entropy import SeededEntropy
from cbit.machine.manufacture import SVN
from cbit.secure_processor.image import BiosSettings, sev_firmware, x86_boot_image
from cbit.spec import buffers
from cbit.spec.address import MIB
from cbit.spec.command import Command as C
from cbit.spec.policy import ApiVersion
from cbit.spec.status import Status as S
from cbit.spec.vmsa import Vmsa
from secure_processor.faults import (
    ACTIVATE,
    ASEG,
    IDLE,
    INACTIVE,
    INIT,
    NO_GUEST,
    UNINIT,
    Fault,
    Scene,
    Scenes,
    bad_addresses,
    fields,
    measured,
    spoiled,
)
from secure_processor.migration_faults import CANCELLED, RECEIVED, SENT, altered, guest_addresses
from secure_processor.migrations import (
    Journey,
    Packet,
    Papers,
    leave,
    receive_update,
    receiving,
    send_update,
)
from secure_processor.worlds import FIRST, MEMORY, TMR, World, vendor_key

ES = 4
PAGE = 4096
AREA = 0x8000
VMSA = bytes(Vmsa(rip=0xFFF0, cr0=0x10, rdx=0x800F12, firmware_zero=7, firmware_checksum_paddr=9))


def es_start(world: World, *, asid: int = 1) -> int:
    """An ES guest in LUPDATE, active; the platform has ES."""
    handle = world.start(ES)
    world.activate(handle, asid)
    return handle


def es_guest(world: World) -> tuple[int, int]:
    """A running ES guest with one save area: (handle, where that is)."""
    handle, at = es_start(world), world.desk.put(VMSA)
    world.desk.do(C.LAUNCH_UPDATE_VMSA, buffers.LaunchUpdateVmsa(handle=handle, paddr=at))
    world.measure(handle)
    world.finish(handle)
    return handle, at


def es_sending(world: World) -> tuple[Journey, int]:
    """The same on its way to this platform itself."""
    handle, at = es_guest(world)
    return leave(world, handle, Papers.of(world)), at


def take_vmsa(world: World, handle: int, at: int) -> Packet:
    """SEND_UPDATE_VMSA; return the packet."""
    asked = send_update(world, handle, at, PAGE)
    world.desk.do(C.SEND_UPDATE_VMSA, asked)
    return Packet(world.desk.read(asked.hdr_paddr, 0x34), world.desk.read(asked.trans_paddr, PAGE))


def no_slot(scene: Scene) -> None:
    pool = scene.world.firmware.platform.vmsas
    assert pool is not None
    pool._free.clear()
    pool._next = pool._end


def without_es(scene: Scene) -> None:
    scene.world.firmware.platform.guests[scene.get("handle")].policy = 0


NO_ES = spoiled("a guest without ES", S.UNSUPPORTED, without_es, "es")
NO_SLOT = spoiled("no slot left", S.RESOURCE_LIMIT, no_slot, "slots")


def launch_update_vmsa(world: World) -> Scene:
    handle = es_start(world.init(es=True))
    return Scene(world, buffers.LaunchUpdateVmsa(handle=handle, paddr=world.desk.put(VMSA)))


LAUNCH_UPDATE_VMSA = (
    fields("length 0", S.INVALID_LENGTH, length=0),
    fields("length of two pages", S.INVALID_LENGTH, length=0x2000),
    UNINIT,
    IDLE,
    NO_GUEST,
    spoiled("measured", S.INVALID_GUEST_STATE, measured, "state"),
    NO_ES,
    INACTIVE,
    fields("PADDR not on 16", S.INVALID_ADDRESS, paddr=2 * MIB + 8),
    fields("PADDR leaves DRAM", S.INVALID_ADDRESS, paddr=MEMORY - 16),
    fields("PADDR reaches ASEG", S.INVALID_ADDRESS, paddr=ASEG - 16),
    fields("PADDR reaches the TMR", S.INVALID_ADDRESS, paddr=TMR - 16),
    NO_SLOT,
)


def send_update_vmsa(world: World) -> Scene:
    journey, at = es_sending(world.init(es=True))
    return Scene(world, send_update(world, journey.handle, at, PAGE))


def no_checksum(scene: Scene) -> None:
    """Let the host alter the ciphertext of a register."""
    scene.alter(scene.get("guest_paddr") + 0x178, 0)


SEND_UPDATE_VMSA = (
    UNINIT,
    IDLE,
    fields("header length 0", S.INVALID_LENGTH, hdr_len=0),
    fields("header short", S.INVALID_LENGTH, hdr_len=0x33),
    NO_GUEST,
    SENT,
    CANCELLED,
    NO_ES,
    INACTIVE,
    fields("nothing", S.INVALID_LENGTH, guest_len=0),
    fields("not a page", S.INVALID_LENGTH, guest_len=PAGE - 16),
    fields("too little room for the packet", S.INVALID_LENGTH, trans_len=PAGE - 1),
    fields("GUEST_PADDR not on 16", S.INVALID_ADDRESS, guest_paddr=2 * MIB + 8),
    *guest_addresses(),
    *bad_addresses("hdr_paddr", es=True),
    *bad_addresses("trans_paddr", es=True),
    spoiled("altered", S.INVALID_PARAM, no_checksum, "page guest_paddr"),
    fields("no save area", S.INVALID_PARAM, ("page",), guest_paddr=2 * MIB),
)


def receive_update_vmsa(world: World) -> Scene:
    journey, at = es_sending(world.init(es=True))
    packet = take_vmsa(world, journey.handle, at)
    return Scene(world, receive_update(world, receiving(world, journey, asid=2), packet))


RECEIVE_UPDATE_VMSA = (
    UNINIT,
    IDLE,
    NO_GUEST,
    RECEIVED,
    NO_ES,
    INACTIVE,
    fields("nothing", S.INVALID_LENGTH, guest_len=0, trans_len=0),
    fields("not a page", S.INVALID_LENGTH, guest_len=PAGE - 16, trans_len=PAGE - 16),
    fields("lengths differ", S.INVALID_LENGTH, guest_len=48),
    fields("header short", S.INVALID_LENGTH, hdr_len=0x33),
    fields("GUEST_PADDR not on 16", S.INVALID_ADDRESS, guest_paddr=2 * MIB + 8),
    *guest_addresses(),
    *bad_addresses("hdr_paddr", es=True),
    *bad_addresses("trans_paddr", es=True),
    altered("compressed", S.UNSUPPORTED, "hdr_paddr", 0, "flags"),
    altered("IV altered", S.BAD_MEASUREMENT, "hdr_paddr", 4 * 8, "iv"),
    altered("MAC altered", S.BAD_MEASUREMENT, "hdr_paddr", 0x14 * 8, "mac"),
    altered("payload altered", S.BAD_MEASUREMENT, "trans_paddr", 63 * 8 + 7, "data"),
    NO_SLOT,
)


# ---- INIT_EX ----


def init_ex(world: World) -> Scene:
    world.init()
    world.desk.do(C.SHUTDOWN)
    area = MIB + AREA  # clear of a TMR over the legacy window: each of the two is a fault of its own
    world.desk.write(area, b"\xff" * AREA)
    asked = buffers.InitEx(flags=1, tmr_paddr=TMR, tmr_length=MIB, nv_paddr=area, nv_length=AREA)
    world.desk.do(C.INIT_EX, asked)  # so that there is an identity in the area too
    world.desk.do(C.SHUTDOWN)
    return Scene(world, asked)


def fill_area(scene: Scene) -> None:
    scene.world.desk.write(scene.get("nv_paddr"), bytes(AREA))


_SHARED = {"platform INIT", "encryption is off", "unknown flag", "highest flag"}
_TMR = tuple(fault for fault in INIT if fault.name.startswith("TMR"))
INIT_EX = (
    *(fault for fault in INIT if fault.name in _SHARED),
    fields("LENGTH short", S.INVALID_LENGTH, length=0x23),
    fields("LENGTH long", S.INVALID_LENGTH, length=0x25),
    fields("NV not on 4 KiB", S.INVALID_ADDRESS, nv_paddr=2 * MIB + 32),
    fields("NV beyond DRAM", S.INVALID_ADDRESS, nv_paddr=MEMORY - PAGE),
    fields("NV over ASEG", S.INVALID_ADDRESS, nv_paddr=ASEG - PAGE),
    fields("NV short", S.INVALID_LENGTH, nv_length=AREA - 1),
    fields("NV long", S.INVALID_LENGTH, nv_length=AREA + PAGE),
    fields("NV in the TMR", S.INVALID_ADDRESS, ("tmr_paddr", "tmr_length"), nv_paddr=TMR + PAGE),
    fields("NV ends in the TMR", S.INVALID_ADDRESS, ("tmr_paddr", "tmr_length"), nv_paddr=TMR - PAGE),
    spoiled("NV damaged", S.SECURE_DATA_INVALID, fill_area, "nv_paddr", moves=True),
    *_TMR,
)


# ---- ACTIVATE_EX ----


def activate_ex(world: World) -> Scene:
    handle = world.init(es=True).start()
    ids = world.desk.put(bytes(4) + (1).to_bytes(4, "little"))
    return Scene(world, buffers.ActivateEx(handle=handle, asid=FIRST, numids=2, ids_paddr=ids))


def name_a_core(number: int) -> Callable[[Scene], None]:
    return lambda s: s.world.desk.write(s.get("ids_paddr") + 4, number.to_bytes(4, "little"))


_NAMED = {fault.name: fault for fault in ACTIVATE}
ACTIVATE_EX = (
    UNINIT,
    IDLE,
    fields("LENGTH short", S.INVALID_PARAM, length=0x17),
    NO_GUEST,
    *(fault for fault in ACTIVATE if fault.name.startswith("ASID ") and "range" not in fault.name),
    fields("no cores", S.INVALID_PARAM, numids=0),
    fields("too many cores", S.INVALID_PARAM, numids=1025),
    *bad_addresses("ids_paddr", es=True),
    spoiled("a core that is not there", S.INVALID_CONFIG, name_a_core(2), "ids_paddr numids"),
    spoiled("a core that no machine has", S.INVALID_CONFIG, name_a_core(512), "ids_paddr numids"),
    _NAMED["another guest has the ASID"],
    _NAMED["the guest has another ASID"],
    _NAMED["SENT"],
    _NAMED["dirty ASID"],
    _NAMED["ASID of the ES range"],
)


# ---- DOWNLOAD_FIRMWARE ----


def download_firmware(world: World) -> Scene:
    image = (world.folder / "spi/sev_firmware.bin").read_bytes()
    return Scene(world, buffers.DownloadFirmware(paddr=world.desk.put(image), length=len(image)))


def download_firmware_ex(world: World) -> Scene:
    image = (world.folder / "spi/sev_firmware.bin").read_bytes()
    return Scene(world, buffers.DownloadFirmwareEx(paddr=world.desk.put(image), fw_length=len(image)))


def of_a_stranger(world: World) -> bytes:
    stranger = ec.random_key(SeededEntropy("stranger"))
    return sev_firmware(stranger, api=ApiVersion(0, 17), build=1, svn=SVN, commands=[C.NOP])


def old(world: World) -> bytes:
    key = vendor_key(world.folder)
    return sev_firmware(key, api=ApiVersion(0, 17), build=1, svn=SVN - 1, commands=[C.NOP])


def boot_image(world: World) -> bytes:
    return x86_boot_image(vendor_key(world.folder), BiosSettings(), svn=SVN)


def bad_images(length: str) -> tuple[Fault, ...]:
    """What can be wrong with an image whose length is this field of the buffer."""

    def another(make: Callable[[World], bytes]) -> Callable[[Scene], None]:
        def spoil(scene: Scene) -> None:
            image = make(scene.world)
            scene.set(**{"paddr": scene.world.desk.put(image), length: len(image)})

        return spoil

    def cut(scene: Scene) -> None:
        scene.set(**{length: scene.get(length) - 1})

    where = f"paddr {length}"
    return (
        fields("PADDR not on 32", S.INVALID_ADDRESS, paddr=2 * MIB + 16),
        fields("nothing", S.INVALID_LENGTH, (), **{length: 0}),
        fields("too long", S.INVALID_LENGTH, (), **{length: 128 * 1024 + 1}),
        fields("PADDR leaves DRAM", S.INVALID_ADDRESS, paddr=MEMORY - 32),
        fields("PADDR reaches ASEG", S.INVALID_ADDRESS, paddr=ASEG - 32),
        spoiled("truncated", S.INVALID_LENGTH, cut, where),
        fields("no image", S.INVALID_LENGTH, (length,), paddr=2 * MIB),
        spoiled("signed by a stranger", S.BAD_SIGNATURE, another(of_a_stranger), where),
        spoiled("altered", S.BAD_SIGNATURE, lambda s: s.alter(s.get("paddr") + 0x4C, 1), where),
        spoiled("for the x86 cores", S.UNSUPPORTED, another(boot_image), where),
        spoiled("older than the floor", S.BAD_SVN, another(old), where),
    )


UP = spoiled("platform INIT", S.INVALID_PLATFORM_STATE, lambda s: s.world.init(), "platform")
DOWNLOAD_FIRMWARE = (UP, *bad_images("length"))
DOWNLOAD_FIRMWARE_EX = (
    UP,
    fields("LENGTH short", S.INVALID_LENGTH, length=0x17),
    fields("LENGTH long", S.INVALID_LENGTH, length=0x19),
    *bad_images("fw_length"),
)

SCENES: Scenes = {
    C.INIT_EX: (init_ex, INIT_EX),
    C.ACTIVATE_EX: (activate_ex, ACTIVATE_EX),
    C.DOWNLOAD_FIRMWARE: (download_firmware, DOWNLOAD_FIRMWARE),
    C.DOWNLOAD_FIRMWARE_EX: (download_firmware_ex, DOWNLOAD_FIRMWARE_EX),
    C.LAUNCH_UPDATE_VMSA: (launch_update_vmsa, LAUNCH_UPDATE_VMSA),
    C.SEND_UPDATE_VMSA: (send_update_vmsa, SEND_UPDATE_VMSA),
    C.RECEIVE_UPDATE_VMSA: (receive_update_vmsa, RECEIVE_UPDATE_VMSA),
}
