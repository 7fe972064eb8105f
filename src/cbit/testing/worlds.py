"""Whole machines in one call: a manufactured chip, a machine that is on, a host with an initialised platform.

    state = a_state(tmp_path / "machine", root=a_root("milan"))
    host = a_host(a_machine(state))

Everything takes a seed: the same seed gives the same machine, except for the RSA root, which comes from
OpenSSL's own generator.
"""

from __future__ import annotations

import functools
from pathlib import Path

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.memory_modes import Mode
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine, Options
from cbit.machine.manufacture import Root, make_root, manufacture
from cbit.machine.profiles import DEFAULT, profile
from cbit.machine.state_folder import StateFolder
from cbit.secure_processor.image import BiosSettings
from cbit.spec.address import MIB
from cbit.trace import Trace


def a_root(profile_name: str = DEFAULT) -> Root:
    """Make the emulated vendor's root for a profile; keys of one size are made once a process, in seconds."""
    return _a_root(profile(profile_name).root_bits)


@functools.cache
def _a_root(bits: int) -> Root:
    return make_root(bits)


def a_state(
    path: Path,
    profile_name: str = DEFAULT,
    *,
    root: Root | None = None,
    seed: int = 1,
    settings: BiosSettings | None = None,
) -> StateFolder:
    """Manufacture a machine into ``path`` and open its state folder."""
    manufacture(
        path,
        profile(profile_name),
        entropy=SeededEntropy(f"chip {seed}"),
        root=root or a_root(profile_name),
        settings=settings,
    )
    return StateFolder(path)


def a_machine(
    state: StateFolder,
    *,
    seed: int = 1,
    memory_size: int = 16 * MIB,
    cache_size: int = MIB,
    mode: Mode | None = None,
    trace: Trace | None = None,
) -> Machine:
    """Build a machine on a state folder and power it on."""
    options = Options(
        memory_size=memory_size,
        cache_size=cache_size,
        mode=mode,
        entropy=SeededEntropy(f"machine {seed}"),
        trace=trace or Trace(),
    )
    machine = Machine(state, options)
    machine.power_on()
    return machine


def a_host(machine: Machine) -> Host:
    """Start host software on a machine and INIT its platform."""
    host = Host(machine)
    host.initialise()
    return host
