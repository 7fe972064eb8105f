"""What stands behind the files: one machine that is on, its driver, and the devices that programs talk to.

    Backend ── Machine ── Host, SevDevice                  made anew whenever the machine is reset

The same for ``cbit exec``, which owns a machine for the length of a program, and for ``cbit serve``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cbit.crypto.entropy import Entropy, SystemEntropy
from cbit.driver.caller_memory import CallerMemory
from cbit.driver.client_pages import MemoryRule
from cbit.driver.kvm_registers import KvmRegs, KvmSregs
from cbit.driver.kvm_sev import KvmSev
from cbit.driver.kvm_structs import VmType
from cbit.driver.sev_ioctl import ROOM, TMR_SIZE, Opening, SevDevice
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine, Options
from cbit.machine.state_folder import StateFolder
from cbit.memory.probe import Probe
from cbit.redirect.clients import AnyDevice
from cbit.redirect.device import Client
from cbit.redirect.files import SEV
from cbit.redirect.kvm_requests import KVM_CREATE_VCPU, KVM_CREATE_VM, KVM_SET_REGS, KVM_SET_SREGS, KVM_VM
from cbit.spec.address import Spa
from cbit.spec.errors import CbitError
from cbit.spec.states import PlatformState
from cbit.trace import Trace

PART: Final = "driver"
#: Told by the supplied KVM of a processor: its number is where the bytes are.
_REGISTERS: Final[Mapping[int, type[KvmRegs | KvmSregs]]] = {KVM_SET_REGS: KvmRegs, KVM_SET_SREGS: KvmSregs}


class Off(CbitError):
    """The machine is off; the message says what turns it on."""


class Backend:
    """A machine and what is behind each file; changes with the machine.

    Attributes:
        machine: the hardware.
        boots: how often its cores were released; a virtual machine belongs to one boot.
    """

    def __init__(self, state: StateFolder, trace: Trace, *, entropy: Entropy | None = None) -> None:
        """Power the machine on; raises what ``Machine.power_on`` raises."""
        self._entropy = entropy or SystemEntropy()
        self.machine = Machine(state, Options(trace=trace, entropy=self._entropy))
        self.boots = 0
        self._start(self.machine.power_on)

    def devices(self, rule: MemoryRule) -> Mapping[str, AnyDevice]:
        """Return a device for each file and kind of descriptor.

        Args:
            rule: what the pages of virtual machines hold after a command has encrypted them.
        """
        return {SEV: _Sev(self), KVM_VM: _Vms(self, rule)}

    def reset(self) -> None:
        """Reset: DRAM is as it was, all keys are others, guests are gone; raises as ``power_on``."""
        self._insist_on_power()
        self._start(self.machine.reset)

    def power_cycle(self, *, decay: float = 0.0) -> None:
        """Cut the power, if it is there, and let it return.

        Args:
            decay: share of the charged cells that lose their bit meanwhile.
        """
        if self.machine.is_on:
            self.machine.power_off(decay=decay)
        self._start(self.machine.power_on)

    def freeze(self, path: Path, *, decay: float = 0.0, write_back: bool = False) -> dict[str, object]:
        """Cool the modules, cut the power and carry them away: their cells go to a file, the machine is off.

        Args:
            path: the file.
            decay: share of the charged cells that lose their bit on the way.
            write_back: execute WBINVD first, which only somebody with the machine's help can.

        Raises:
            Off: there is no power, so there is nothing in them.
            OSError: the file cannot be written; the machine runs on.
        """
        self._insist_on_power()
        written = self.machine.wbinvd_on_all_cores() if write_back else 0
        frozen = self.machine.probe.freeze(self._entropy, decay=decay)
        Probe(frozen).dump(path)
        self.machine.power_off()
        return {
            "file": str(path),
            "bytes": frozen.size,
            "decayed_bits": frozen.decayed_bits,
            "pages_written_back": written,
        }

    def status(self) -> dict[str, object]:
        """Say what the machine is and what is in use; asks the secure processor, so that is no copy."""
        profile = self.machine.profile
        told: dict[str, object] = {
            "profile": profile.name,
            "on": self.machine.is_on,
            "boots": self.boots,
            "memory": self.machine.memory_size,
            "free_memory": self.host.frames.free_bytes,
            "asids_in_use": sorted(self.host.asids.in_use | self.host.es_asids.in_use),
        }
        if self.machine.is_on:
            is_ = self.host.status()
            told |= {
                "api": f"{is_.api_major}.{is_.api_minor}",
                "build": is_.build,
                "state": PlatformState(is_.state).name,
                "owner": "external" if is_.owner & 1 else "self",
                "guests": is_.guest_count,
            }
        return told

    def _start(self, power: Callable[[], object]) -> None:
        power()
        self.boots += 1
        self.host = Host(self.machine)
        tmr = self.host.frames.take(TMR_SIZE, align=TMR_SIZE)
        room = self.host.frames.take(ROOM).start
        self.sev = SevDevice(self.machine, self.host.ccp, room=Spa(room), tmr=Spa(tmr.start))

    def _insist_on_power(self) -> None:
        if not self.machine.is_on:
            raise Off("the machine is off: power-cycle turns it on")


@dataclass(eq=False)
class _Vm:
    """One virtual machine; it ends with the boot that it belongs to."""

    client: Client
    boot: int
    sev: KvmSev


class _Vms:
    """The memory-encryption requests of virtual machines, whoever else makes them run."""

    def __init__(self, backend: Backend, rule: MemoryRule) -> None:
        self._backend, self._rule = backend, rule

    def open(self, client: Client, *, writable: bool) -> _Vm:
        return _Vm(client, self._backend.boots, self._made(client, VmType.DEFAULT))

    def ioctl(self, handle: _Vm, request: int, argument: int, memory: CallerMemory) -> int:
        backend = self._backend
        if handle.boot != backend.boots or not backend.machine.is_on:
            why = (
                "the machine is off"
                if not backend.machine.is_on
                else "the machine was reset: its guests are gone"
            )
            backend.machine.trace.emit(PART, "KVM", why, errno="ENODEV")
            raise OSError(errno.ENODEV, why)
        if request == KVM_CREATE_VM:
            handle.sev = self._made(handle.client, argument)
        elif request == KVM_CREATE_VCPU:
            handle.sev.create_vcpu(argument)
        elif (layout := _REGISTERS.get(request)) is not None:
            given = memory.read(argument, layout.SIZE)
            handle.sev.set_registers(argument, layout.parse(given, canonical=False))
        else:
            return handle.sev.ioctl(request, argument, memory)
        return 0

    def close(self, handle: _Vm) -> None:
        if handle.boot == self._backend.boots and self._backend.machine.is_on:
            handle.sev.close()

    def _made(self, client: Client, kind: int) -> KvmSev:
        backend = self._backend
        return KvmSev(
            backend.host,
            backend.sev,
            rule=self._rule,
            is_sev=lambda number: client.names(number) == SEV,
            kind=kind,
        )


class _Sev:
    """/dev/sev, whichever boot it is: the kernel's driver too keeps nothing by open file but its mode."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def open(self, client: Client, *, writable: bool) -> Opening:
        return self._backend.sev.open(client, writable=writable)

    def ioctl(self, handle: Opening, request: int, argument: int, memory: CallerMemory) -> int:
        if not self._backend.machine.is_on:
            self._backend.machine.trace.emit(PART, "SEV_ISSUE_CMD", "the machine is off", errno="ENODEV")
            raise OSError(errno.ENODEV, "the machine is off")
        return self._backend.sev.ioctl(handle, request, argument, memory)

    def close(self, handle: Any) -> None:
        """Nothing is kept."""
