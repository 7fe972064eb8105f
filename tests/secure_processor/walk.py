"""A walk of commands beside the small model of the paper: platform, guests, launches, what can be seen."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, ClassVar

from cbit.crypto.ctr import aes_ctr
from cbit.crypto.key import Key
from cbit.machine.manufacture import SVN
from cbit.secure_processor.image import sev_firmware
from cbit.secure_processor.mailbox import Register
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.command import Command
from cbit.spec.key_id import guest as key_of
from cbit.spec.policy import ApiVersion
from cbit.spec.session import MeasureBlob
from cbit.spec.wire import Wire
from secure_processor.model import Context
from secure_processor.model_platform import (
    AREA_SIZE,
    DAMAGED,
    LAST,
    LENGTH,
    OK,
    OLD,
    SIGNATURE,
    UNINIT,
    Image,
    Keys,
)
from secure_processor.model_travel import Model
from secure_processor.rings import Rings
from secure_processor.walking import rule, several, some
from secure_processor.worlds import MEMORY, TMR, Chips, World, flipped, vendor_key

ASIDS = some(0, 1, 2, 4, 5, 5, 6, 6, 15, 16)
#: None, no debugging, no sharing, ES, ES without sharing, no sending; this version, newer ones; reserved.
POLICIES = some(0, 0, 1, 2, 4, 6, 8, 17 << 24, 18 << 24, 1 << 16, 0x40)
TMRS = some(*[(TMR, 1 << 20)] * 5, (0, 1 << 20), (TMR + 4096, 1 << 20), (TMR, 4096), (MEMORY, 1 << 20))
FLAGS = some(0, 0, 1, 1, 1, 2, 3)
LENGTHS = some(16, 16, 48, 4096, 0, 8, 24)
DATA, SECRET_AT, SCRATCH = Spa(0x100000), Spa(0x110000), Spa(0x120000)
VMSA_AT, AREA, IMAGE_AT = Spa(0x130000), 0x180000, Spa(0x1A0000)
SAVE_AREAS = some(0, 0, 0, 4096, 4096, 8)

#: Firmware that somebody may bring: what is in the flash, a newer one without COPY, and two that are refused.
IMAGES = {
    "same": Image((0, 17), 48, SVN),
    "newer": Image((0, 18), 3, SVN + 1, frozenset({"COPY"})),
    "old": Image((0, 17), 48, SVN - 1, status=OLD),
    "altered": Image((0, 17), 48, SVN, status=SIGNATURE),
}


def signed(chips: Chips) -> dict[str, bytes]:
    """The images themselves."""
    key = vendor_key(chips.folder("naples"))
    made = {
        name: sev_firmware(
            key,
            api=ApiVersion(*image.api),
            build=image.build,
            svn=image.version,
            commands=[command for command in Command if command.name not in image.missing],
        )
        for name, image in IMAGES.items()
    }
    return {**made, "altered": flipped(made["altered"], 0x101 * 8)}


def _a_handle(random: Random, walk: Walk) -> int:
    """Mostly that of a guest."""
    guests = sorted(walk.model.guests)
    return random.choice(guests) if guests and random.random() < 0.85 else random.choice(range(6))


HANDLES = _a_handle


class Walk:
    """Two machines side by side: one of silicon's commands, one of the paper's words.

    Attributes:
        given: commands, of all walks; those that only look are not counted.
        answers: which statuses they had.
    """

    given: ClassVar[int] = 0
    answers: ClassVar[set[tuple[Command, int]]] = set()

    def __init__(self, world: World, images: dict[str, bytes]) -> None:
        self.world, self.images = world, images
        self.model = Model(IMAGES["same"], SVN)
        self.seen: dict[tuple[Keys, tuple[int, int]], bytes] = {}
        #: The content of the area for INIT_EX that somebody kept, and what is in it.
        self.kept: tuple[bytes, Keys | None] | None = None
        self.drawn = 0  # so that no two save areas are the same
        self.rings = Rings(world)

    @classmethod
    @contextmanager
    def begin(cls, chips: Chips, images: dict[str, bytes]) -> Iterator[Walk]:
        with chips.world() as world:
            yield cls(world, images)

    def give(self, command: Command, buffer: Wire | None = None) -> tuple[int, Any]:
        status, after = self.look(command, buffer)
        Walk.given += 1
        Walk.answers.add((command, status))
        return status, after

    def look(self, command: Command, buffer: Wire | None = None) -> tuple[int, Any]:
        if self.model.rings:  # the same table, by another way
            status, after = self.rings.attempt(command, buffer)
            why = self.world.machine.why
        else:
            status, why, after = self.world.desk.attempt(command, buffer)
        assert bool(why) == (status != OK)
        return status, after

    def inside(self, at: int, length: int, asid: int) -> bytes:
        """What the guest has there, when no other copy is left: the firmware too looks behind the caches."""
        machine = self.world.machine
        machine.memory.wbinvd()  # of the cache alone: the cores' flags stay as they are
        return machine.controller.read(Spa(at), length, key_of(asid))

    # ---- ring buffers

    @rule()
    def ring_buffer(self) -> None:
        asked = self.rings.asked
        expected = self.model.ring_buffer()
        assert expected == self.give(Command.RING_BUFFER, asked)[0]
        if expected == OK:
            self.model.rings, self.rings.tails = True, [0, 0]

    @rule(when=lambda self: self.model.rings)
    def leave_the_rings(self) -> None:
        self.rings.write(Register.CMD_RESP, Command.NOP << 16)
        assert 0x8000001F == self.rings.read(Register.CMD_RESP)
        self.model.rings = False

    # ---- platform

    @rule(weight=10, when=lambda self: not self.model.up, flags=some(0, 1, 1), area=some(0, 0, AREA))
    def start_properly(self, flags: int, area: int) -> None:
        """There is more to meet when the platform is up."""
        if area:
            if self.model.stores.get(AREA, DAMAGED) == DAMAGED:
                self.handle_the_area("blank")
            self.init_ex(flags, (TMR, 1 << 20), area, AREA_SIZE, 0x24)
        else:
            self.init(flags, (TMR, 1 << 20))
        self.flush_properly()

    @rule(flags=FLAGS, tmr=TMRS)
    def init(self, flags: int, tmr: tuple[int, int]) -> None:
        expected = self.model.init(flags=flags, tmr_paddr=tmr[0], tmr_length=tmr[1], dram=MEMORY)
        asked = buffers.Init(flags=flags, tmr_paddr=tmr[0], tmr_length=tmr[1])
        assert expected == self.give(Command.INIT, asked)[0]

    @rule(
        flags=FLAGS,
        tmr=TMRS,
        at=some(AREA, AREA, AREA, AREA, 0, AREA + 32, MEMORY - 4096),
        size=some(*[AREA_SIZE] * 5, AREA_SIZE - 1),
        length=some(*[0x24] * 7, 0x23),
    )
    def init_ex(self, flags: int, tmr: tuple[int, int], at: int, size: int, length: int) -> None:
        expected = self.model.init_ex(length=length, flags=flags, tmr=tmr, nv=(at, size), dram=MEMORY)
        asked = buffers.InitEx(
            length=length, flags=flags, tmr_paddr=tmr[0], tmr_length=tmr[1], nv_paddr=at, nv_length=size
        )
        assert expected == self.give(Command.INIT_EX, asked)[0]

    @rule(what=some("blank", "blank", "damage", "keep", "put back", "put back"))
    def handle_the_area(self, what: str) -> None:
        """The host has the area for INIT_EX in its hands."""
        desk, stores = self.world.desk, self.model.stores
        if what == "keep":
            self.kept = desk.read(AREA, AREA_SIZE), stores.get(AREA, DAMAGED)
            return
        content, keys = {
            "blank": (b"\xff" * AREA_SIZE, None),
            "damage": (b"\xee" * AREA_SIZE, DAMAGED),
            "put back": self.kept or (bytes(AREA_SIZE), DAMAGED),
        }[what]
        desk.write(AREA, content)
        stores[AREA] = keys

    @rule(when=lambda self: self.model.up, sure=some(*range(0, 5)))
    def shutdown(self, sure: int) -> None:
        if sure == 0:  # or nothing else would ever last
            status = self.give(Command.SHUTDOWN)[0]  # by whichever way, of which it is the end
            assert self.model.shutdown() == status

    @rule()
    def platform_reset(self) -> None:
        assert self.model.platform_reset() == self.give(Command.PLATFORM_RESET)[0]

    @rule(
        name=some("same", "same", "newer", "newer", "old", "altered"),
        offset=some(*[0] * 7, 16),
        cut=some(*[0] * 7, 1, 1 << 20),
        ex=some(None, None, (0x18, False), (0x18, True), (0x17, True)),
    )
    def download(self, name: str, offset: int, cut: int, ex: tuple[int, bool] | None) -> None:
        image, paddr = self.images[name], Spa(IMAGE_AT + offset)
        length = len(image) - cut if cut < 2 else cut
        self.world.desk.write(paddr, image)
        says = Image((0, 0), 0, 0, status=LENGTH) if cut else IMAGES[name]
        expected = self.model.download(says, paddr=paddr, length=length, ex=ex)
        plain = buffers.DownloadFirmware(paddr=paddr, length=length)
        if ex is None:
            assert expected == self.give(Command.DOWNLOAD_FIRMWARE, plain)[0]
            return
        asked = buffers.DownloadFirmwareEx(length=ex[0], paddr=paddr, fw_length=length, flags=int(ex[1]))
        assert expected == self.give(Command.DOWNLOAD_FIRMWARE_EX, asked)[0]

    @rule(
        weight=3,
        when=lambda self: not self.model.up,
        name=some(*IMAGES),
        ex=some(None, (0x18, False), (0x18, True)),
    )
    def download_properly(self, name: str, ex: tuple[int, bool] | None) -> None:
        self.download(name, 0, 0, ex)

    @rule()
    def pek_gen(self) -> None:
        assert self.model.pek_gen() == self.give(Command.PEK_GEN)[0]

    @rule()
    def pdh_gen(self) -> None:
        assert self.model.pdh_gen() == self.give(Command.PDH_GEN)[0]

    @rule(ccx=some(*range(0, 2)))
    def wbinvd(self, ccx: int) -> None:
        self.model.wbinvd(ccx)
        self.world.machine.cores[ccx].wbinvd()

    @rule()
    def df_flush(self) -> None:
        assert self.model.df_flush() == self.give(Command.DF_FLUSH)[0]

    @rule()
    def flush_properly(self) -> None:
        for ccx in range(2):
            self.wbinvd(ccx)
        self.df_flush()

    # ---- guests

    @rule(handle=HANDLES, asid=ASIDS)
    def activate(self, handle: int, asid: int) -> None:
        expected = self.model.activate(handle, asid)
        assert expected == self.give(Command.ACTIVATE, buffers.Activate(handle=handle, asid=asid))[0]

    @rule(
        handle=HANDLES,
        asid=ASIDS,
        cores=several(some(0, 0, 0, 1, 1, 1, 2), 3),
        length=some(*[0x18] * 5, 0x17),
    )
    def activate_ex(self, handle: int, asid: int, cores: list[int], length: int) -> None:
        expected = self.model.activate_ex(handle, asid, cores=cores, length=length)
        self.world.desk.write(SCRATCH, b"".join(core.to_bytes(4, "little") for core in cores) or bytes(4))
        asked = buffers.ActivateEx(
            length=length, handle=handle, asid=asid, numids=len(cores), ids_paddr=SCRATCH
        )
        assert expected == self.give(Command.ACTIVATE_EX, asked)[0]

    @rule(handle=HANDLES)
    def deactivate(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.deactivate(handle) == self.give(Command.DEACTIVATE, asked)[0]

    @rule(handle=HANDLES)
    def decommission(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.decommission(handle) == self.give(Command.DECOMMISSION, asked)[0]

    # ---- launch

    @rule(policy=POLICIES, share=some(0, 0, 0, 1, 2, 5))
    def launch_start(self, policy: int, share: int) -> None:
        expected = self.model.launch_start(policy, share)
        asked = buffers.LaunchStart(handle=share, policy=policy)
        status, after = self.give(Command.LAUNCH_START, asked)
        assert expected == (status, after.handle if status == OK else 0)

    @rule(handle=HANDLES, offset=SAVE_AREAS, length=some(*[4096] * 4, 4080))
    def launch_update_vmsa(self, handle: int, offset: int, length: int) -> None:
        desk, paddr = self.world.desk, Spa(VMSA_AT + offset)
        self.drawn += 1
        plaintext = self.drawn.to_bytes(2, "little") * 2048
        desk.write(paddr, plaintext)
        self.model.overwrite(paddr, 4096)
        expected = self.model.launch_update_vmsa(handle, paddr=paddr, length=length, plaintext=plaintext)
        asked = buffers.LaunchUpdateVmsa(handle=handle, paddr=paddr, length=length)
        assert expected == self.give(Command.LAUNCH_UPDATE_VMSA, asked)[0]

    @rule(handle=HANDLES, offset=some(0, 0, 16, 4096, 8), length=LENGTHS)
    def launch_update_data(self, handle: int, offset: int, length: int) -> None:
        desk, paddr = self.world.desk, Spa(DATA + offset)
        plaintext = bytes([handle]) * length
        desk.write(paddr, plaintext)
        expected = self.model.launch_update_data(handle, paddr=paddr, length=length, plaintext=plaintext)
        asked = buffers.LaunchUpdateData(handle=handle, paddr=paddr, length=length)
        assert expected == self.give(Command.LAUNCH_UPDATE_DATA, asked)[0]
        if expected == OK:
            key = key_of(self.model.guests[handle].asid)
            assert plaintext == self.world.machine.controller.read(paddr, length, key)
        assert (expected == OK) == (plaintext != desk.read(paddr, length)) or not length

    @rule(handle=HANDLES, length=some(0x30, 0x30, 0x40, 0, 0x2F))
    def launch_measure(self, handle: int, length: int) -> None:
        expected = self.model.launch_measure(handle, length=length)
        asked = buffers.LaunchMeasure(handle=handle, measure_paddr=SCRATCH, measure_len=length)
        status, after = self.give(Command.LAUNCH_MEASURE, asked)
        assert expected == status
        assert after.measure_len == (0x30 if status == 0x04 else length)
        if status == OK:
            blob = MeasureBlob.parse(self.world.desk.read(SCRATCH, 0x30))
            assert self.model.measurement(handle, blob.mnonce) == blob.measure

    @rule(handle=HANDLES, offset=some(0, 0, 16, 8), length=LENGTHS, genuine=some(False, True))
    def launch_secret(self, handle: int, offset: int, length: int, genuine: bool) -> None:
        desk, target = self.world.desk, Spa(SECRET_AT + offset)
        plaintext = b"\x5e" * length
        data = aes_ctr(Key(bytes(16)), bytes(16), plaintext)
        measure = self.model.guests.get(handle, Context(0)).measure
        lengths = length.to_bytes(4, "little") * 2
        mac = hmac.digest(bytes(16), b"\x01" + bytes(20) + lengths + data + measure, "sha256")
        desk.write(SCRATCH, bytes(20) + (mac if genuine else bytes(32)))
        desk.write(SCRATCH + 4096, data)
        expected = self.model.launch_secret(handle, paddr=target, length=length, genuine=genuine)
        asked = buffers.LaunchSecret(
            handle=handle,
            hdr_paddr=SCRATCH,
            hdr_len=0x34,
            guest_paddr=target,
            guest_len=length,
            trans_paddr=SCRATCH + 4096,
            trans_len=length,
        )
        assert expected == self.give(Command.LAUNCH_SECRET, asked)[0]
        if expected == OK:
            key = key_of(self.model.guests[handle].asid)
            assert plaintext == self.world.machine.controller.read(target, length, key)

    @rule(handle=HANDLES)
    def launch_finish(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.launch_finish(handle) == self.give(Command.LAUNCH_FINISH, asked)[0]

    @rule(
        weight=3,
        when=lambda self: self.model.up,
        policy=some(0, 1, 4, 4, 8),
        asid=some(0, 1),
        finish=some(False, True),
    )
    def launch_properly(self, policy: int, asid: int, finish: bool) -> None:
        """Go the whole way, so that what only a running guest meets is met often."""
        self.flush_properly()
        self.launch_start(policy, 0)
        handle = max(self.model.guests, default=1)
        self.activate(handle, asid + (1 if policy & 4 else 5))
        if policy & 4:
            self.launch_update_vmsa(handle, 4096 * asid, 4096)
        else:
            self.launch_update_data(handle, 0, 48)
        self.launch_measure(handle, 0x30)
        if policy & 1:
            self.launch_secret(handle, 0, 48, True)
        if finish:
            self.launch_finish(handle)

    # ---- report, debug, copy

    @rule(handle=HANDLES, length=some(0xD0, 0xD0, 0x200, 0, 0xCF))
    def attestation(self, handle: int, length: int) -> None:
        expected = self.model.attestation(handle, length=length)
        asked = buffers.Attestation(handle=handle, paddr=SCRATCH, mnonce=b"n" * 16, length=length)
        status, after = self.give(Command.ATTESTATION, asked)
        assert (expected, 0xD0 if status == 0x04 else length) == (status, after.length)
        if status == OK:
            report = self.world.desk.read(SCRATCH, 0xD0)
            policy = self.model.guests[handle].policy.to_bytes(4, "little")
            assert (b"n" * 16, policy) == (report[:0x10], report[0x30:0x34])

    @rule(handle=HANDLES, offset=some(0, 0, 16, 8), length=LENGTHS)
    def debug(self, handle: int, offset: int, length: int) -> None:
        """Encrypt something into the guest and decrypt it again."""
        desk, inside, back = self.world.desk, DATA + offset, SCRATCH + 4096
        plaintext = bytes([0x80 | handle]) * length
        desk.write(SCRATCH, plaintext)
        desk.write(back, bytes(length))
        expected = self.model.debug(handle, src=SCRATCH, dst=inside, length=length)
        asked = buffers.Debug(handle=handle, src=SCRATCH, dst=inside, length=length)
        assert expected == self.give(Command.DBG_ENCRYPT, asked)[0]
        expected = self.model.debug(handle, src=inside, dst=back, length=length)
        asked = buffers.Debug(handle=handle, src=inside, dst=back, length=length)
        assert expected == self.give(Command.DBG_DECRYPT, asked)[0]
        assert (plaintext if expected == OK else bytes(length)) == desk.read(back, length)

    @rule(
        handle=HANDLES,
        offset=some(4096, 4096, 0, 16),
        length=some(4096, 8192, 0, 16),
    )
    def copy(self, handle: int, offset: int, length: int) -> None:
        src, dst = DATA, Spa(DATA + offset)
        expected = self.model.copy(handle, src=src, dst=dst, length=length)
        asid = self.model.guests[handle].asid if handle in self.model.guests else 0
        before = self.inside(src, length, asid) if asid and length else b""
        asked = buffers.Copy(handle=handle, length=length, src=src, dst=dst)
        assert expected == self.give(Command.COPY, asked)[0]
        if expected == OK:
            assert before == self.inside(dst, length, asid)

    # ---- what can be seen, after every step

    def check(self) -> None:
        self.the_platform_reports_what_the_model_says()
        self.the_guests_stand_as_the_model_says()
        assert self.model.running == {
            asid for asid in range(1, LAST + 1) if self.world.firmware.is_asid_usable(asid)
        }

    def the_platform_reports_what_the_model_says(self) -> None:
        (answer, status), model = self.look(Command.PLATFORM_STATUS, buffers.PlatformStatus()), self.model
        assert OK == answer
        owned = int(model.up and model.keys[2] > 0)
        assert (model.state, owned, int(model.es), len(model.guests)) == (
            status.state,
            status.owner,
            status.config,
            status.guest_count,
        )
        if model.up:
            pdh, chain = self.export()
            expected = self.seen.setdefault((model.keys, model.image.api), pdh + chain)
            assert expected == pdh + chain
            assert len(self.seen) == len(set(self.seen.values()))  # another identity is another one

    def the_guests_stand_as_the_model_says(self) -> None:
        if self.model.state == UNINIT:
            assert 0x01 == self.look(Command.GUEST_STATUS, buffers.GuestStatus(handle=1))[0]
            return
        for handle in range(0, 8):
            _, found = self.look(Command.GUEST_STATUS, buffers.GuestStatus(handle=handle))
            guest = self.model.guests.get(handle)
            seen = (found.policy, found.asid, found.state)
            assert seen == ((guest.policy, guest.asid, guest.state) if guest else (0, 0, 0))

    def export(self) -> tuple[bytes, bytes]:
        asked = buffers.PdhCertExport(
            pdh_paddr=SCRATCH, pdh_len=CERT_SIZE, certs_paddr=SCRATCH + 4096, certs_len=3 * CERT_SIZE
        )
        assert OK == self.look(Command.PDH_CERT_EXPORT, asked)[0]
        read = self.world.desk.read
        return read(SCRATCH, CERT_SIZE), read(SCRATCH + 4096, 3 * CERT_SIZE)
