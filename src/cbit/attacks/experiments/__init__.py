"""The experiments, one file per attack."""

from __future__ import annotations

from typing import Final

from cbit.attacks.experiments.bit_flip import bit_flip
from cbit.attacks.experiments.block_move import block_move_xe, block_move_xex
from cbit.attacks.experiments.ciphertext import ciphertext_collision, ciphertext_dictionary
from cbit.attacks.experiments.code_chain import code_chain
from cbit.attacks.experiments.code_injection import code_injection
from cbit.attacks.experiments.cold_boot import cold_boot, warm_reset
from cbit.attacks.experiments.crossline import crossline_tlb, crossline_v1, crossline_v2
from cbit.attacks.experiments.debug_policy import debug_policy
from cbit.attacks.experiments.dropped_store import dropped_store
from cbit.attacks.experiments.faked_cpuid import faked_cpuid
from cbit.attacks.experiments.host_read import bus_probe, dma_read, host_read
from cbit.attacks.experiments.launch_permutation import launch_permutation
from cbit.attacks.experiments.linux import linux_cold_boot, linux_registers, linux_tools
from cbit.attacks.experiments.registers import register_oracle
from cbit.attacks.experiments.replay import replay
from cbit.attacks.experiments.severed import severed
from cbit.attacks.experiments.tweak_constants import tweak_constants_xe, tweak_constants_xex
from cbit.attacks.experiments.unprotected_io import unprotected_io
from cbit.attacks.experiments.withheld_flush import withheld_flush
from cbit.attacks.lab.attack import Attack, BadCase

ALL: Final[tuple[Attack, ...]] = (
    cold_boot,
    warm_reset,
    host_read,
    dma_read,
    bus_probe,
    bit_flip,
    replay,
    severed,
    register_oracle,
    faked_cpuid,
    dropped_store,
    launch_permutation,
    debug_policy,
    tweak_constants_xe,
    tweak_constants_xex,
    block_move_xe,
    block_move_xex,
    code_injection,
    code_chain,
    unprotected_io,
    crossline_v1,
    crossline_v2,
    crossline_tlb,
    ciphertext_dictionary,
    ciphertext_collision,
    withheld_flush,
    linux_cold_boot,
    linux_tools,
    linux_registers,
)


def named(name: str) -> Attack:
    """Find an attack.

    Raises:
        BadCase: there is none of this name.
    """
    for attack in ALL:
        if attack.name == name:
            return attack
    raise BadCase(f"no attack {name!r}: there are {', '.join(attack.name for attack in ALL)}")
