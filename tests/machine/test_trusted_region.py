"""From INIT with ES to SHUTDOWN or reset, the region that INIT names is the secure processor's alone.

Paper: memory-encryption.md §10.2; sev-api.md §5.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cbit.attacks.helper_guest import HelperGuest
from cbit.cpu.core import Core
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host, Protection
from cbit.memory.errors import AddressError
from cbit.spec import buffers
from cbit.spec.address import MIB, PAGE, Hva, Spa
from cbit.spec.command import Command
from cbit.spec.key_id import HOST
from cbit.testing.worlds import a_host
from engine_here import missing
from machine.worlds import machine

ES = 1
TMR = 8 * MIB
WORD = Spa(TMR + MIB // 2)  #: of the first save area
CLAIM = b"ATTACKER"


def with_region(folder: Path) -> Host:
    """A host whose platform has ES; its first save area's checksum is in the region."""
    host = a_host(machine(folder, "milan"))
    host.ccp.issue(Command.SHUTDOWN)
    host.ccp.call(Command.INIT, buffers.Init(flags=ES, tmr_paddr=TMR, tmr_length=MIB))
    host.flush()
    handle = host.ccp.call(Command.LAUNCH_START, buffers.LaunchStart(handle=0, policy=4)).handle
    host.ccp.call(Command.ACTIVATE, buffers.Activate(handle=handle, asid=1))
    page = host.frames.take_page()
    host.write(page, bytes(PAGE))
    host.flush_caches()
    host.ccp.call(Command.LAUNCH_UPDATE_VMSA, buffers.LaunchUpdateVmsa(handle=handle, paddr=page))
    return host


def dma(host: Host, at: int, *, c: bool, data: bytes = b"") -> object:
    address = at | (c << host.machine.profile.features.c_bit)
    port = host.machine.dma_port()
    if not data:
        return port.read(address, 8)
    port.write(address, data)
    return None


REACH: dict[str, Callable[[Host, Spa, bool], object]] = {
    "host reads": lambda h, at, c: h.read(at, 8, c=c),
    "host writes": lambda h, at, c: h.write(at, CLAIM, c=c),
    "core reads": lambda h, at, c: h.machine.cores[0].read(h.map_page(at, c=c), 8),
    "core writes": lambda h, at, c: h.machine.cores[0].write(h.map_page(at, c=c), CLAIM),
    "core without paging": lambda h, at, c: _flat_core(h).write(Hva(at), CLAIM),
    "device reads": lambda h, at, c: dma(h, at, c=c),
    "device writes": lambda h, at, c: dma(h, at, c=c, data=CLAIM),
}


def _flat_core(host: Host) -> Core:
    core = host.machine.cores[1]
    core.reset()
    return core


@pytest.mark.parametrize("c", [False, True])
@pytest.mark.parametrize("way", REACH)
def test_the_checksum_is_out_of_reach(tmp_path: Path, way: str, c: bool) -> None:
    host = with_region(tmp_path)
    fabric = host.machine._firmware.memory.fabric  # type: ignore[union-attr]
    before = fabric.read(WORD, 8, HOST)
    with pytest.raises(AddressError, match="trusted memory region"):
        REACH[way](host, WORD, c)
    host.flush_caches()
    assert before == fabric.read(WORD, 8, HOST)
    assert before != host.machine.probe.read(WORD, 8)  # the bus carries ciphertext
    REACH[way](host, Spa(TMR + MIB), c)  # behind it is memory


@pytest.mark.parametrize("executes", [False, True])
@pytest.mark.parametrize("protection", Protection)
def test_a_guest_onto_whose_memory_it_is_mapped_does_not_reach_it(
    tmp_path: Path, protection: Protection, executes: bool
) -> None:
    if executes and missing():
        pytest.skip(missing())
    host = with_region(tmp_path)
    with (
        HelperGuest.start(host, protection, onto=Spa(WORD), executes=executes) as helper,
        pytest.raises(AddressError, match="trusted memory region"),
    ):
        helper.run(0, 8)
    with HelperGuest.start(host, protection, onto=Spa(TMR + MIB), executes=executes) as helper:
        assert 8 == len(helper.run(0, 8)[0])


def shut_down(host: Host) -> None:
    host.ccp.issue(Command.SHUTDOWN)


def power_cycle(host: Host) -> None:
    host.machine.power_off()
    host.machine.power_on()


@pytest.mark.parametrize("end", [shut_down, lambda host: host.machine.reset(), power_cycle])
def test_it_is_memory_again_afterwards(tmp_path: Path, end: Callable[[Host], object]) -> None:
    host = with_region(tmp_path)
    end(host)
    dma(host, WORD, c=False, data=CLAIM)
    assert CLAIM == dma(host, WORD, c=False)


def test_without_es_there_is_none(tmp_path: Path) -> None:
    host = a_host(machine(tmp_path, "milan"))
    host.write(WORD, CLAIM, c=True)
    assert CLAIM == host.read(WORD, 8, c=True)


def test_an_init_that_is_refused_takes_none(tmp_path: Path) -> None:
    host = a_host(machine(tmp_path, "milan"))
    host.ccp.issue(Command.SHUTDOWN)
    with pytest.raises(FirmwareError, match="INVALID_LENGTH"):
        host.ccp.call(Command.INIT, buffers.Init(flags=ES, tmr_paddr=TMR, tmr_length=2 * MIB))
    host.write(WORD, CLAIM, c=True)
    assert CLAIM == host.read(WORD, 8, c=True)
