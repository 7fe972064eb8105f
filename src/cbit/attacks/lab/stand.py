"""The trusted side: manufactures machines, starts victims, and holds the power that only the lab has.

Paper: sev-api.md §7 (what a launch is); attacks.md §3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cbit.attacks.lab.built_in import BuiltIn, boot_built_in
from cbit.attacks.lab.guest import Guest, Program, boot
from cbit.attacks.lab.linux_victim import LinuxVictim, NoLinux, boot_linux
from cbit.attacks.lab.outcome import Mode
from cbit.attacks.linux_owner import OwnersFiles, initramfs
from cbit.attacks.tenant import Tenant
from cbit.cpu.mitigations import NONE, Mitigations
from cbit.crypto.entropy import Entropy, SeededEntropy
from cbit.crypto.memory_modes import Mode as EngineMode
from cbit.guest.linux.files import LinuxFiles
from cbit.guest.linux.unlock import unlock_program
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine, Options
from cbit.machine.manufacture import make_root, manufacture
from cbit.machine.profiles import profile
from cbit.machine.state_folder import StateFolder
from cbit.spec.address import MIB
from cbit.spec.policy import Policy

_LEAST: Final = 4 * MIB
NO_LINUX: Final = "nobody said what a Linux victim is made of"


@dataclass(frozen=True, slots=True)
class Setup:
    """The machine that an attack wants.

    Attributes:
        profile: which processor.  Most published attacks were made on the first generation.
        engine: mode of its AES engine; None for the profile's default.
        memory: bytes of DRAM.
        cache: bytes of plaintext that the chip may hold.
        mitigations: rules of its cores that the first generations do not have.
    """

    profile: str = "naples"
    engine: EngineMode | None = EngineMode.XEX
    memory: int = 16 * MIB
    cache: int = MIB
    mitigations: Mitigations = NONE


class Workshop:
    """Manufactures a machine of each profile once, in a temporary folder; machines are built from them.

    Mutable; a context manager that removes the folder.
    """

    def __init__(self, linux: LinuxFiles | str = NO_LINUX) -> None:
        """Take what Linux victims are made of, or why there is none."""
        self._linux = linux
        self._initramfs: bytes | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="cbit-attack-")
        self._states: dict[str, StateFolder] = {}

    def state(self, name: str) -> StateFolder:
        """The manufactured machine of a profile.

        Raises:
            UnknownProfile: there is none of this name.
        """
        if name not in self._states:
            chosen = profile(name)
            path = Path(self._folder.name) / name
            manufacture(path, chosen, entropy=SeededEntropy(f"chip {name}"), root=make_root(chosen.root_bits))
            self._states[name] = state = StateFolder(path)
            # The first INIT draws the platform's keys and keeps them: done here, every case finds the same.
            machine = Machine(state, Options(memory_size=_LEAST, entropy=SeededEntropy(f"first boot {name}")))
            machine.power_on()
            Host(machine).initialise()
            machine.power_off()
        return self._states[name]

    @property
    def why_no_linux(self) -> str:
        """Why there is no Linux to be attacked; "" if there is."""
        return self._linux if isinstance(self._linux, str) else ""

    def linux(self, entropy: Entropy) -> OwnersFiles:
        """Make what the owner of a Linux victim has.

        Raises:
            NoLinux: there is none here.
        """
        if isinstance(self._linux, str):
            raise NoLinux(self._linux)
        if self._initramfs is None:
            self._initramfs = initramfs(self._linux, unlock_program())
        return OwnersFiles.made_of(self._linux, self._initramfs, append="quiet", entropy=entropy)

    def close(self) -> None:
        """Let the folders go."""
        for state in self._states.values():
            state.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stand:
    """One machine for one run, with its host; made anew each time, from a seed.

    Attributes:
        mode: how victims are protected.
        variant: the defence that is on, or "".
        seed: what makes this run repeatable.
        parameters: what the run varies.
        entropy: what victims draw from.
        machine: the machine, on.
        host: its host software.
    """

    def __init__(
        self,
        workshop: Workshop,
        setup: Setup,
        *,
        mode: Mode,
        variant: str,
        seed: int,
        parameters: Mapping[str, int | float | str],
    ) -> None:
        self.mode, self.variant, self.seed, self.parameters = mode, variant, seed, parameters
        self.entropy = SeededEntropy(f"victim {seed}")
        self._workshop, self._state = workshop, workshop.state(setup.profile)
        options = Options(
            memory_size=setup.memory,
            cache_size=setup.cache,
            mode=setup.engine,
            mitigations=setup.mitigations,
            entropy=SeededEntropy(f"machine {seed}"),
        )
        self.machine = Machine(self._state, options)
        self.machine.power_on()
        self.host = Host(self.machine)
        self.host.initialise()

    def number(self, name: str) -> int:
        """A parameter that is a whole number."""
        return int(self.parameters[name])

    def guest(
        self,
        program: Program,
        *,
        secret: bytes = b"",
        policy: Policy = Policy.NODBG,
        pieces: Sequence[tuple[int, bytes]] | None = None,
    ) -> Guest:
        """Start a victim as its protection wants it; with SEV, by its owner's measured launch.

        Args:
            program: what it runs.
            secret: what its owner gives it, at `SECRET` of the lab's guests.
            policy: what its owner asks for.
            pieces: how the host loads it, if not as its owner means it.
        """
        tenant = self._tenant(policy)
        return boot(
            self.host,
            self.mode.protection,
            program,
            secret,
            tenant=tenant,
            entropy=self.entropy,
            pieces=pieces,
        )

    def built_in(
        self,
        secrets: bytes,
        *,
        kernel: bytes = b"",
        policy: Policy = Policy.NODBG,
        pieces: Sequence[tuple[int, bytes]] | None = None,
        addresses: bool = False,
    ) -> BuiltIn:
        """Launch the built-in guest as its protection wants it; it has not run yet.

        Args:
            secrets: its owner's secret table.
            kernel: what is measured with it.
            policy: what its owner asks for.
            pieces: how the host loads it, if not as its owner means it.
            addresses: its owner wants a digest that covers addresses.
        """
        return boot_built_in(
            self.host,
            self.mode.protection,
            secrets,
            kernel=kernel,
            tenant=self._tenant(policy),
            entropy=self.entropy,
            pieces=pieces,
            addresses=addresses,
        )

    def linux(self) -> tuple[LinuxVictim, OwnersFiles]:
        """Boot a stock Linux as its protection wants it; return it with what its owner has.

        Raises:
            NoLinux: there is none here.
        """
        files = self._workshop.linux(self.entropy)
        tenant = self._tenant(Policy.NODBG)
        victim = boot_linux(self.host, self.mode.protection, files, tenant=tenant, entropy=self.entropy)
        return victim, files

    def _tenant(self, policy: Policy) -> Tenant:
        return Tenant.beside(self._state, policy=int(policy))
