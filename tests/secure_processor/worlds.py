"""Machines for these tests: manufactured once a profile, copied for each test, with a desk at the mailbox."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cbit.crypto import ec, packet
from cbit.crypto.entropy import Entropy, SeededEntropy
from cbit.crypto.session import TransportKeys
from cbit.machine.board import Machine, Options
from cbit.machine.manufacture import SVN, load_vendor_key
from cbit.machine.profiles import PROFILES
from cbit.machine.state_folder import StateFolder
from cbit.owner.session import Session
from cbit.secure_processor.dispatch import COMMANDS
from cbit.secure_processor.firmware import Firmware
from cbit.secure_processor.image import BiosSettings, sev_firmware, x86_boot_image
from cbit.spec import buffers
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE
from cbit.spec.command import Command
from cbit.spec.session import CONTEXT_SECRET, MeasureBlob
from cbit.spec.states import GuestState
from cbit.testing.desk import Desk
from cbit.testing.guests import a_session
from cbit.testing.worlds import a_state
from cbit.trace import Trace

MEMORY = 4 * MIB
TMR = 3 * MIB
FIRST, LAST = 5, 15  # ASIDs of a Naples guest without ES (memory-encryption.md §2.1)
ES_INIT = buffers.Init(flags=1, tmr_paddr=TMR, tmr_length=MIB)
#: Where files are cheap: a world has a dozen, and thousands of worlds are made.
SHARED_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a folder of its own in it
AS_MANUFACTURED = "manufacturer/sev_firmware.bin"  # beside it, the firmware of the profile alone
UPDATED = 2 * PAGE  # bytes that `World.launch` measures


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


@dataclass(frozen=True)
class Snapshot:
    """Everything that a refused command must leave alone; the desk's own page aside."""

    platform: buffers.PlatformStatus
    contexts: tuple[str, ...]
    asids: object
    dram: str
    nv: bytes | None


class World:
    """A machine that is on, its platform not initialised."""

    def __init__(self, folder: Path, *, entropy: Entropy, memory_size: int, trace: Trace) -> None:
        self.folder = folder
        self.state = StateFolder(folder)
        self.trace = trace
        options = Options(memory_size=memory_size, cache_size=MIB, entropy=entropy, trace=trace)
        self.machine = Machine(self.state, options)
        self.desk = Desk(self.machine)

    @property
    def firmware(self) -> Firmware:
        """The firmware itself, for what no command reports."""
        assert self.machine._firmware is not None
        return self.machine._firmware

    @property
    def nv(self) -> Path:
        return self.state.nv_path

    def init(self, *, es: bool = False) -> World:
        self.desk.do(Command.INIT, ES_INIT if es else buffers.Init())
        self.desk.flush()
        return self

    def renew(self) -> World:
        """Make it as it was when it was switched on, but for identity and randomness; another costs more."""
        self.desk.ring(Command.NOP, 0)  # which ends ring buffers, if somebody began them
        self.desk.do(Command.SHUTDOWN)
        self.machine.memory.invd()
        self.machine.dram.cells(Spa(0), self.machine.memory_size)[:] = bytes(self.machine.memory_size)
        for core in self.machine.cores:
            core.clear_wbinvd_done()
        self.desk = Desk(self.machine)
        return self

    def set_bios(self, settings: BiosSettings) -> None:
        """Flash another boot image, signed by the vendor, and reset."""
        vendor = load_vendor_key((self.folder / "manufacturer/vendor.pem").read_bytes())
        (self.folder / "spi/x86_boot.bin").write_bytes(x86_boot_image(vendor, settings, svn=SVN))
        self.machine.reset()

    def export(self) -> tuple[bytes, bytes]:
        """PDH, and PEK ‖ OCA ‖ CEK."""
        desk = self.desk
        pdh, certs = desk.room(CERT_SIZE), desk.room(CHAIN_SIZE)
        desk.do(
            Command.PDH_CERT_EXPORT,
            buffers.PdhCertExport(pdh_paddr=pdh, pdh_len=CERT_SIZE, certs_paddr=certs, certs_len=CHAIN_SIZE),
        )
        return desk.read(pdh, CERT_SIZE), desk.read(certs, CHAIN_SIZE)

    def owner(self, policy: int = 0, seed: int = 1) -> tuple[Session, TransportKeys]:
        return a_session(self.export()[0], policy=policy, seed=seed)

    def start(self, policy: int = 0, *, share: int = 0) -> int:
        """LAUNCH_START without an owner: TEK and TIK are zero."""
        request = buffers.LaunchStart(handle=share, policy=policy)
        return self.desk.ccp.call(Command.LAUNCH_START, request).handle

    def start_for(self, session: Session, policy: int) -> int:
        godh, blob = self.desk.put(bytes(session.godh)), self.desk.put(bytes(session.blob))
        request = buffers.LaunchStart(
            policy=policy, dh_cert_paddr=godh, dh_cert_len=0x824, session_paddr=blob, session_len=0x80
        )
        return self.desk.ccp.call(Command.LAUNCH_START, request).handle

    def activate(self, handle: int, asid: int) -> None:
        self.desk.do(Command.ACTIVATE, buffers.Activate(handle=handle, asid=asid))

    def update(self, handle: int, paddr: int, length: int) -> None:
        request = buffers.LaunchUpdateData(handle=handle, paddr=paddr, length=length)
        self.desk.do(Command.LAUNCH_UPDATE_DATA, request)

    def measure(self, handle: int) -> MeasureBlob:
        at = self.desk.room(0x30)
        request = buffers.LaunchMeasure(handle=handle, measure_paddr=at, measure_len=0x30)
        self.desk.do(Command.LAUNCH_MEASURE, request)
        return MeasureBlob.parse(self.desk.read(at, 0x30))

    def finish(self, handle: int) -> None:
        self.desk.do(Command.LAUNCH_FINISH, buffers.GuestHandle(handle=handle))

    def deactivate(self, handle: int) -> None:
        self.desk.do(Command.DEACTIVATE, buffers.GuestHandle(handle=handle))

    def decommission(self, handle: int) -> None:
        self.desk.do(Command.DECOMMISSION, buffers.GuestHandle(handle=handle))

    def launch(self, policy: int = 0, *, asid: int = FIRST, state: GuestState = GuestState.RUNNING) -> int:
        """Bring a guest without an owner to a state of the launch, active."""
        handle = self.start(policy)
        self.activate(handle, asid)
        self.update(handle, self.desk.put(b"image".ljust(UPDATED, b"\xf4")), UPDATED)
        if state >= GuestState.LSECRET:
            self.measure(handle)
        if state >= GuestState.RUNNING:
            self.finish(handle)
        return handle

    def force(self, handle: int, state: GuestState) -> None:
        """Put a guest into a state that no command of a launch reaches."""
        self.firmware.platform.guests[handle].state = state

    def secret(
        self, handle: int, plaintext: bytes, *, keys: TransportKeys | None = None
    ) -> buffers.LaunchSecret:
        """A good LAUNCH_SECRET for a guest in LSECRET; its target is fresh memory."""
        measure = self.firmware.platform.guests[handle].measure
        header, data = packet.seal(
            keys or TransportKeys.parse(bytes(32)),
            plaintext,
            context=CONTEXT_SECRET,
            iv=bytes(range(16)),
            measure=measure,
        )
        return buffers.LaunchSecret(
            handle=handle,
            hdr_paddr=self.desk.put(bytes(header)),
            hdr_len=0x34,
            guest_paddr=self.desk.room(len(plaintext)),
            guest_len=len(plaintext),
            trans_paddr=self.desk.put(data),
            trans_len=len(data),
        )

    def usable_asids(self) -> set[int]:
        return {asid for asid in range(1, LAST + 1) if self.firmware.is_asid_usable(asid)}

    def snapshot(self) -> Snapshot:
        status = self.desk.platform()
        platform = self.firmware._platform
        guests = list(platform.guests.values()) if platform else []
        self.machine.memory.wbinvd()  # the cache alone: the cores' WBINVD flags stay as they are
        dram = hashlib.sha256()
        page = self.desk.page
        for start in range(0, self.machine.memory_size, PAGE):
            if start != page:
                dram.update(self.machine.dram.cells(Spa(start), PAGE))
        return Snapshot(
            platform=status,
            contexts=tuple(f"{guest} {guest.digest and guest.digest.hexdigest()}" for guest in guests),
            asids=platform.asids.snapshot() if platform else None,
            dram=dram.hexdigest(),
            nv=self.nv.read_bytes() if self.nv.is_file() else None,
        )


class Chips:
    """Manufactured machines: one a profile, copied for whoever wants one.

    Their firmware has every command, also those that only later generations have (``test_chip``).
    """

    def __init__(self, base: Path) -> None:
        self._base = base

    def folder(self, profile: str, seed: int = 1) -> Path:
        """The pristine state folder of a profile; not to be written to."""
        path = self._base / f"{profile}-{seed}"
        if not path.exists():
            a_state(path, profile, seed=seed).close()
            firmware = path / "spi/sev_firmware.bin"
            firmware.rename(path / AS_MANUFACTURED)
            made, key = PROFILES[profile], vendor_key(path)
            firmware.write_bytes(
                sev_firmware(key, api=made.api, build=made.build, svn=SVN, commands=list(COMMANDS))
            )
        return path

    @contextmanager
    def world(
        self,
        profile: str = "naples",
        *,
        seed: int = 1,
        prepare: Callable[[Path], object] = lambda folder: None,
        power_on: bool = True,
        entropy: Entropy | None = None,
        memory_size: int = MEMORY,
        trace: Trace | None = None,
        as_manufactured: bool = False,
    ) -> Iterator[World]:
        """Copy a chip, let ``prepare`` do something to the folder, switch the machine on."""
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as temporary:
            folder = Path(temporary) / "machine"
            shutil.copytree(self.folder(profile, seed), folder)
            if as_manufactured:
                (folder / AS_MANUFACTURED).rename(folder / "spi/sev_firmware.bin")
            prepare(folder)
            world = World(
                folder,
                entropy=entropy or SeededEntropy("world"),
                memory_size=memory_size,
                trace=trace or Trace(),
            )
            try:
                if power_on:
                    world.machine.power_on()
                yield world
            finally:
                world.state.close()


def vendor_key(folder: Path) -> ec.PrivateKey:
    return load_vendor_key((folder / "manufacturer/vendor.pem").read_bytes())
