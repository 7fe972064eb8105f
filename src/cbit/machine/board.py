"""The board: DRAM, memory controller, caches, cores, secure processor, devices, wired together.

    power_on ── boot chain ──> BIOS settings ── cores released ── mailbox ──> INIT …
    reset: DRAM keeps its contents, every key is lost, the boot chain runs again

Paper: memory-encryption.md §1 (keys), §2.2 (what the BIOS sets); sev-api.md §2 (mailbox).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cbit.cpu.core import Core
from cbit.cpu.engine.engine import Engine
from cbit.cpu.mitigations import NONE, Mitigations
from cbit.cpu.msr import Hwcr, Msr, Syscfg
from cbit.crypto.entropy import Entropy, SystemEntropy
from cbit.crypto.memory_modes import KEY_BYTES, Mode
from cbit.machine.address_map import MAILBOX_BAR, MAILBOX_BAR_SIZE, MAX_DRAM
from cbit.machine.dumpable import forbid_dumps
from cbit.machine.profiles import Profile
from cbit.machine.published import PublishedStore
from cbit.machine.state_folder import StateFolder
from cbit.memory.bus import Bus
from cbit.memory.cache import Cache
from cbit.memory.controller import MemoryController
from cbit.memory.dma import DmaPort
from cbit.memory.dram import Dram, insist_on_share
from cbit.memory.fabric import FabricPort
from cbit.memory.iommu import Iommu
from cbit.memory.probe import Probe
from cbit.secure_processor.boot import Booted, MachineOff, boot, draw_host_key
from cbit.secure_processor.dispatch import dispatch
from cbit.secure_processor.firmware import Firmware, Limits
from cbit.secure_processor.mailbox import Mailbox
from cbit.secure_processor.memory_port import AddressRules, MemoryPort
from cbit.spec.address import MIB, PAGE
from cbit.spec.errors import CbitError
from cbit.spec.status import Status
from cbit.trace import Trace

COMPLEXES: Final = 2  # MODEL CHOICE: two core complexes of one core, so that DF_FLUSH can find one undone


class BadMachine(CbitError):
    """A machine that cannot be built: memory size or engine mode; the message says why."""


class AlreadyOn(CbitError):
    """Power is there already: a machine that runs is reset, not powered on once more."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a person may choose about a machine.

    Attributes:
        memory_size: bytes of DRAM, a multiple of 4 KiB.
        cache_size: bytes of plaintext that the SoC may hold.
        mode: engine mode; None for the profile's default.
        mitigations: rules of its cores that the first generations do not have.
        entropy: where all randomness of this machine comes from.
        trace: who watches.
    """

    memory_size: int = 64 * MIB
    cache_size: int = 32 * MIB
    mode: Mode | None = None
    mitigations: Mitigations = NONE
    entropy: Entropy = field(default_factory=SystemEntropy)
    trace: Trace = field(default_factory=Trace)


class Machine:
    """One machine; off until ``power_on``.

    Attributes:
        profile: which processor it is.
        mode: mode of its AES engines.
        trace: where its events can be watched.
        dram: the cells.
        bus: the wires between memory controller and cells.
        memory: physical memory as cores see it: cache and engine before DRAM.
        controller: the engines; its counters are the latency model's input.
        cores: the x86 cores, one per core complex.
        mailbox: the secure processor's registers.
        probe: what somebody with physical access has.
        booted: what the boot chain established; None while the machine is off.
        host_key_fingerprint: of the SME key of this boot; empty while the machine is off.
    """

    def __init__(self, state: StateFolder, options: Options | None = None) -> None:
        self._options = options = options or Options()
        self._state = state
        self.profile: Final = state.profile
        self.trace: Final = options.trace
        self.mode: Final = _mode(self.profile, options.mode)
        self.memory_size: Final = _checked_size(options.memory_size)
        self.dram: Final = Dram(self.memory_size)
        self.bus: Final = Bus(self.dram)
        self.probe: Final = Probe(self.dram)
        self.controller: Final = MemoryController(
            self.bus,
            mode=self.mode,
            tweak=self.profile.tweak(self.mode, options.entropy),
            entropy=options.entropy,
            trace=self.trace,
        )
        self.memory: Final = Cache(
            self.controller,
            capacity=options.cache_size,
            coherent=self.profile.features.coherent,
            trace=self.trace,
        )
        self.mailbox = Mailbox(self.profile.mailbox, None)
        self.cores: Final[Sequence[Core]] = [self._core(index) for index in range(COMPLEXES)]
        self._firmware: Firmware | None = None
        self.booted: Booted | None = None
        self.host_key_fingerprint = ""
        forbid_dumps()

    def power_on(self) -> Booted:
        """Run the boot chain; the machine stays off if an image is refused.

        Raises:
            AlreadyOn: it runs; nothing happens to it.
            MachineOff: which image, and why.
            StateError: the state folder lacks a file.
        """
        if self.is_on:
            raise AlreadyOn("the machine is on: reset it, or cut its power first")
        options, fuses = self._options, self._state.fuses()
        booted = boot(
            fuses=fuses,
            firmware=self._state.read("spi/sev_firmware.bin"),
            x86_image=self._state.read("spi/x86_boot.bin"),
            trace=self.trace,
        )
        fabric = FabricPort(self.memory, self.controller)
        self.controller.tsme = bool(booted.settings.tsme)
        key_bytes = KEY_BYTES[self.mode]
        self.host_key_fingerprint = draw_host_key(fabric, size=key_bytes, entropy=options.entropy)
        features = self.profile.features
        self._firmware = Firmware(
            api=booted.api,
            build=booted.build,
            implements=booted.implements,
            fuses=fuses,
            nv=PublishedStore(self._state, fuses, options.entropy, self.trace),
            memory=MemoryPort(fabric, AddressRules(c_bit=features.c_bit, dram_size=self.memory_size)),
            cores=_Complexes(self.cores),
            limits=Limits(
                max_asid=features.guests,
                min_sev_asid=features.min_sev_no_es_asid,
                memory_key_bytes=key_bytes,
                memory_encryption=bool(booted.settings.memory_encryption),
            ),
            entropy=options.entropy,
            trace=self.trace,
        )
        self._release_cores(booted)
        firmware = self._firmware
        self.mailbox = Mailbox(self.profile.mailbox, self._execute, rings=firmware.rings)
        self.booted = booted
        return booted

    def power_off(self, *, decay: float = 0.0) -> None:
        """Cut the power: caches and keys are gone at once, cells keep their charge for a while.

        Args:
            decay: share of the charged cells that lose their bit before power returns or the module is read.

        Raises:
            ValueError: ``decay`` is not a probability; the machine runs on.
        """
        insist_on_share(decay)
        self._lose_state()
        self.dram.lose_power(self._options.entropy, decay=decay)

    def reset(self) -> Booted:
        """Reset without losing power: DRAM is as it was, every key is another; raises as ``power_on``."""
        self._lose_state()
        return self.power_on()

    @property
    def why(self) -> str:
        """Why the secure processor refused its last command, "" if it did not; hardware does not say."""
        return "" if self._firmware is None else self._firmware.why

    @property
    def is_on(self) -> bool:
        """Whether the cores were released."""
        return self._firmware is not None

    def wbinvd_on_all_cores(self) -> int:
        """Execute WBINVD everywhere; return how many pages were written back."""
        return sum(core.wbinvd() for core in self.cores)

    def dma_port(self, *, address_bits: int = 64, iommu: Iommu | None = None, device_id: int = 0) -> DmaPort:
        """Attach a device."""
        return DmaPort(
            self.memory, c_bit=self._c_bit(), iommu=iommu, device_id=device_id, address_bits=address_bits
        )

    def iommu(self, device_table: int, *, devices: int) -> Iommu:
        """Point an IOMMU at its device table in DRAM."""
        return Iommu(
            self.memory, device_table=device_table, devices=devices, c_bit=self._c_bit(), trace=self.trace
        )

    def _c_bit(self) -> int | None:
        return self.profile.features.c_bit if self.cores[0].encryption_on else None

    def _core(self, index: int) -> Core:
        return Core(
            memory=self.memory,
            features=self.profile.features,
            asid_usable=self._asid_usable,
            index=index,
            mmio=[range(MAILBOX_BAR, MAILBOX_BAR + MAILBOX_BAR_SIZE)],
            engine=self._new_engine,
            mitigations=self._options.mitigations,
            trace=self.trace,
        )

    def _new_engine(self) -> Engine:
        return Engine(self.memory, entropy=self._options.entropy, trace=self.trace)

    def _asid_usable(self, asid: int) -> bool:
        return self._firmware is not None and self._firmware.is_asid_usable(asid)

    def _execute(self, command: int, address: int) -> Status:
        if self._firmware is None:
            raise MachineOff("the secure processor does not run")
        return dispatch(self._firmware, command, address)

    def _release_cores(self, booted: Booted) -> None:
        """Let the BIOS program every core, as the verified x86 boot image says."""
        for core in self.cores:
            core.reset()
            if booted.settings.memory_encryption:
                core.wrmsr(Msr.SYSCFG, Syscfg.MEM_ENCRYPTION_MOD_EN)
            if booted.settings.smm_lock:
                core.wrmsr(Msr.HWCR, core.rdmsr(Msr.HWCR) | Hwcr.SMM_LOCK)

    def _lose_state(self) -> None:
        self._firmware = None
        self.booted = None
        self.host_key_fingerprint = ""
        self.mailbox = Mailbox(self.profile.mailbox, None)
        self.memory.invd()
        self.memory.protect(0, 0)
        self.controller.reset(tweak=self.profile.tweak(self.mode, self._options.entropy))
        self.controller.tsme = False
        for core in self.cores:
            core.reset()


class _Complexes:
    """What the secure processor sees of the cores: one WBINVD_DONE flag per core, one core per complex."""

    def __init__(self, cores: Sequence[Core]) -> None:
        self._cores = cores

    def complexes(self) -> int:
        return len(self._cores)

    def complex_of(self, apic_id: int) -> int | None:
        # MODEL CHOICE: APIC ids count the cores from 0, and each core is a complex of its own.
        return apic_id if apic_id < len(self._cores) else None

    def wbinvd_done(self, ccx: int) -> bool:
        return self._cores[ccx].wbinvd_done

    def clear_wbinvd_done(self, ccx: int) -> None:
        self._cores[ccx].clear_wbinvd_done()


def _mode(profile: Profile, wanted: Mode | None) -> Mode:
    if wanted is None:
        return profile.modes[0]
    if wanted not in profile.modes:
        raise BadMachine(f"profile {profile.name} has the modes {', '.join(profile.modes)}, not {wanted}")
    return wanted


def _checked_size(size: int) -> int:
    if size % PAGE or not MIB <= size <= MAX_DRAM:
        raise BadMachine(
            f"{size:#x} bytes of memory: a multiple of 4 KiB from 1 MiB to {MAX_DRAM // MIB} MiB"
        )
    return size
