"""The machine that a run happens on: one of a state folder, or one made for it and gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cbit.cli.progress import progress
from cbit.crypto.entropy import Entropy
from cbit.machine.board import Machine, Options
from cbit.machine.manufacture import make_root, manufacture
from cbit.machine.profiles import profile
from cbit.machine.state_folder import StateFolder

DEFAULT_PROFILE: Final = "milan"
_SMALL_ROOT: Final = 2048  # bits, of a machine whose certificates nobody will look at


@dataclass(frozen=True, slots=True)
class Place:
    """A machine that is on, and where it is kept.

    Attributes:
        machine: the machine; no software runs on it yet.
        state: its folder, with what its vendor published.
        lost: what is missing of the identity that the platform had; empty: nothing.
    """

    machine: Machine
    state: StateFolder
    lost: str


@contextmanager
def place(
    *,
    state: Path | None,
    profile_name: str | None,
    memory: int,
    cache: int,
    entropy: Entropy,
    certified: bool,
    quiet: bool,
) -> Iterator[Place]:
    """Power a machine on, for the time of the block.

    Args:
        state: its folder; None: make one.
        profile_name: of a machine that is made (None: milan), or the one that a folder's machine has to have.
        memory: bytes of DRAM.
        cache: bytes of plaintext that the machine may hold.
        entropy: where all of its randomness comes from; keys of the emulated vendor excepted.
        certified: whether somebody will verify its certificates.
        quiet: say nothing.

    Raises:
        UnknownProfile, StateError, MachineOff, FirmwareError, ValueError: it cannot be had.
    """
    wanted = None if profile_name is None else profile(profile_name)
    options = Options(memory_size=memory, cache_size=cache, entropy=entropy)
    with tempfile.TemporaryDirectory(prefix="cbit-run-") as folder:
        if state is None:
            state = Path(folder) / "machine"
            chosen = profile(profile_name or DEFAULT_PROFILE)
            bits = chosen.root_bits if certified else _SMALL_ROOT
            with progress(f"manufacturing a {chosen.name} machine with a {bits}-bit root", quiet=quiet):
                manufacture(state, chosen, entropy=entropy, root=make_root(bits))
        with StateFolder(state) as opened:
            if wanted is not None and wanted != opened.profile:
                raise ValueError(f"--profile {wanted.name}: the machine in {state} is {opened.profile.name}")
            machine, lost = Machine(opened, options), _lost(opened)
            machine.power_on()
            try:
                yield Place(machine, opened, lost)
            finally:
                machine.power_off()


def _lost(state: StateFolder) -> str:
    """Say that a platform which had published its identity has no store any more."""
    had_one = (state.certs / "pdh.cert").exists()
    return f"NV store: {state.nv_path} is missing" if had_one and not state.nv_path.exists() else ""
