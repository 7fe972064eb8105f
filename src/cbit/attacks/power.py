"""What an adversary can do: each power is granted by name, and an attack has no other.

Paper: attacks.md §0.1, whose numbers stand beside each power.
"""

from __future__ import annotations

from enum import StrEnum

from cbit.spec.errors import CbitError


class Power(StrEnum):
    """One thing that an adversary can do."""

    TAP_BUS = "listen on the DRAM bus"  # A2
    CUT_POWER = "cut the power, carry the modules away"  # p14
    RESET = "reset the machine, start software of one's own"  # p14
    DMA = "read by DMA with C=0"  # p10
    DMA_C_BIT = "read by DMA with C=1"  # p10
    MAP_MEMORY = "map any memory, with C=0 and C=1"  # p1
    EDIT_NESTED_TABLES = "edit nested page tables"  # p2
    TAKE_EXITS = "run the victim and see its exits"  # p3
    USE_REGISTERS = "read and write registers at exits"  # p4
    EDIT_VMCB = "write another ASID into a VMCB"  # p5
    WITHHOLD_FLUSH = "run virtual CPUs without the TLB flush"  # p6
    FLUSH_CACHES = "execute WBINVD"  # p7
    DROP_CACHES = "execute INVD and write HWCR"  # p7
    EMULATE = "answer the guest's CPUID, and be its devices"  # p9
    COMMAND = "issue commands to the secure processor"  # p12
    STEP = "interrupt after a chosen number of instructions"  # p13
    RUN_GUEST = "run a guest of its own"  # p12
    CARRY_LAUNCH = "carry, copy and change what passes in a launch"  # p12
    CLIENT = "send requests to the victim's service"  # A6
    PROCESS = "run an unprivileged program inside the victim"  # A15


class PowerNotHeld(CbitError):
    """An attempt does what it has no power to do; the message names the power."""

    def __init__(self, power: Power) -> None:
        super().__init__(f"the attack does not hold the power to {power.value}")
