"""Machines in a line: one small root for the whole run, whatever the profile."""

from __future__ import annotations

from pathlib import Path

from cbit.cpu.core import Core
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine
from cbit.machine.profiles import DEFAULT, PROFILES
from cbit.machine.state_folder import StateFolder
from cbit.secure_processor.image import BiosSettings
from cbit.spec.address import Hva, Spa
from cbit.testing.worlds import a_host, a_machine, a_root, a_state

ALL_PROFILES = tuple(PROFILES)


def state(folder: Path, profile: str = DEFAULT, *, settings: BiosSettings | None = None) -> StateFolder:
    """A manufactured machine's folder; its root has 2048 bits, because nothing here depends on the size."""
    return a_state(folder / f"machine-{profile}", profile, root=a_root("naples"), settings=settings)


def machine(folder: Path, profile: str = DEFAULT, **options: object) -> Machine:
    """A machine that is on; ``options`` as of ``a_machine``."""
    settings = options.pop("settings", None)
    assert settings is None or isinstance(settings, BiosSettings)
    return a_machine(state(folder, profile, settings=settings), **options)  # type: ignore[arg-type]  # passed on


def host(folder: Path, profile: str = DEFAULT, **options: object) -> Host:
    """A host whose platform is initialised."""
    return a_host(machine(folder, profile, **options))


def store(core: Core, spa: Spa, data: bytes) -> None:
    """Write memory with paging off, so unencrypted, and see it through to DRAM."""
    core.write(Hva(spa), data)
    core.wbinvd()
