"""What VMRUN insists on, asked once for each VMCB that looks the same.

MODEL CHOICE: guests that execute have their C-bit at position 39, whatever the profile: QEMU walks 40 bits.
Paper: memory-encryption.md §8, §10.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cbit.cpu.control import AddressRules
from cbit.cpu.cpuid import EncryptionFeatures
from cbit.cpu.encryption_rules import HostSituation
from cbit.cpu.engine.control_block import ControlBlock
from cbit.cpu.engine.tables import VIEW_BITS
from cbit.cpu.engine.translations import NestedTables
from cbit.cpu.faults import VmexitInvalid
from cbit.cpu.host_tables import HostTables
from cbit.cpu.nested import NestedWalker, World
from cbit.cpu.physical import PhysicalPort
from cbit.cpu.tlb import TlbControl, VmMode
from cbit.cpu.vmcb import Enable, HostState, Vmcb, refusal, require_modelled, vm_mode
from cbit.trace import Trace

C_BIT: Final = VIEW_BITS
_REMEMBERED: Final = 4096  # accepted VMCBs
_EVENT_VALID: Final = 1 << 31
_EVENT_TYPES: Final = (0, 2, 3, 4)  # external interrupt, NMI, exception, software interrupt
_EXCEPTION, _NMI, _EXCEPTIONS = 3, 2, 32


def executing_features(features: EncryptionFeatures) -> EncryptionFeatures:
    """What CPUID tells a guest that executes: C-bit 39, and 39 address bits below it."""
    return replace(features, physical_bits=C_BIT + 1, address_reduction=1, c_bit=C_BIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSide:
    """What VMRUN needs of the core that executes it; the same object for as long as nothing of it changes.

    Attributes:
        state: features (the machine's own), control registers, address rules, switches.
        port: physical memory.
        invd_is_wbinvd: HWCR bit 4.
        wbinvd_done: hears of each WBINVD that completes on this core.
    """

    state: HostState
    port: PhysicalPort
    invd_is_wbinvd: bool = True
    wbinvd_done: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Checked:
    """What VMRUN found in a VMCB that it accepted."""

    asid: int
    mode: VmMode
    tlb_control: TlbControl
    nested: NestedTables
    vte: bool


def event_refusal(event: int) -> str | None:
    """Say why VMRUN does not inject an event (EVENTINJ): a type is reserved, a vector no exception's."""
    kind, vector = event >> 8 & 7, event & 0xFF
    if not event & _EVENT_VALID:
        return None
    if kind not in _EVENT_TYPES:
        return f"EVENTINJ {event:#x}: type {kind} is reserved"
    if kind == _EXCEPTION and (vector == _NMI or vector >= _EXCEPTIONS):
        return f"EVENTINJ {event:#x}: vector {vector} is no exception's"
    return None


class Checks:
    """The checks of one core.  Mutable: it remembers what it accepted."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._host: HostSide | None = None
        self._good: dict[bytes, Checked] = {}  # by `ControlBlock.checked_fields`

    def accept(self, block: ControlBlock, host: HostSide) -> Checked:
        """Check a VMCB; one whose checked fields are those of an earlier one is known to be good."""
        if host is not self._host or len(self._good) > _REMEMBERED:
            self._host = host
            self._good.clear()
        if why := event_refusal(block.event):
            raise self._refuse(block, why)
        fields = block.checked_fields
        good = self._good.get(fields)
        if good is None or (good.mode is VmMode.SEV and not host.state.asid_usable(good.asid)):
            good = self._good[fields] = self._look(block, host)
        return good

    def _refuse(self, block: ControlBlock, why: str) -> VmexitInvalid:
        block.refuse()
        self._trace.emit("cpu.engine", "VMRUN: VMEXIT_INVALID", why, asid=block.asid)
        return VmexitInvalid(why)

    def _look(self, block: ControlBlock, host: HostSide) -> Checked:
        state = replace(host.state, features=executing_features(host.state.features))
        # The reference model injects no events, this engine does.
        vmcb = Vmcb.parse(block.bytes, canonical=False).replace(event_injection=0)
        if why := refusal(vmcb, state):
            raise self._refuse(block, why)
        require_modelled(vmcb, state)
        block.require_modelled()
        mode = vm_mode(vmcb, encryption_on=state.encryption_on)
        sev = mode is VmMode.SEV
        world = World(
            asid=vmcb.asid,
            mode=mode,
            vte=sev and Enable.VTE in vmcb.enable,
            nested=replace(state.controls, cr3=vmcb.ncr3, ac=False),
            host_rules=state.rules,
            guest_rules=AddressRules(C_BIT, C_BIT) if sev else AddressRules(C_BIT + 1, None),
        )
        situation = HostSituation.WITH_PAE if state.encryption_on else HostSituation.OFF
        nested = NestedTables(
            walker=NestedWalker(host.port, world),
            tables=HostTables(host.port, situation),
            rules=state.rules,
            controls=world.nested,
        )
        return Checked(vmcb.asid, mode, vmcb.tlb_control, nested, world.vte)
