"""What the engine knows of a VMCB while it runs it."""

from __future__ import annotations

from dataclasses import dataclass

from cbit.cpu.engine.checks import HostSide
from cbit.cpu.engine.control_block import ControlBlock
from cbit.cpu.engine.shadow import Space
from cbit.cpu.tlb import VmMode
from cbit.spec.address import Spa


@dataclass(slots=True)
class Turn:
    """One VMRUN, and those after it for as long as nothing changes that VMRUN looks at.

    Attributes:
        vmcb_at: rAX.
        flushes: TLB_CONTROL asked for a flush, so that the next one is looked at anew.
        good: the control fields that were found good.
        registers: of software on the bare machine.
    """

    host: HostSide
    vmcb_at: Spa
    block: ControlBlock
    space: Space
    mode: VmMode
    flushes: bool
    good: bytes
    error: BaseException | None = None
    registers: memoryview | None = None
