"""Whatever happens to a guest, its host lives: all cases run in one process, which must end well."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cbit.cpu.faults import VmexitInvalid
from cbit.guest.builtin.interface import HELPER, MEMORY, RESULT, SHARED_PAGE, Request, flat_state
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.small_guest import NoAnswer, SmallGuest, Turn
from cbit.hypervisor.vm import Vm
from cbit.spec.address import MIB, PAGE, Gpa, Spa
from cbit.spec.errors import NotModelled
from cbit.testing.worlds import a_host, a_machine
from cpu.engine.worlds import assemble
from engine_here import missing
from hypervisor.worlds import account
from machine.worlds import state
from scenarios.builtin_world import BuiltIn

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
PATIENCE = 20_000


def _ends(built_in: BuiltIn) -> str:
    """Ask until the guest is beyond help."""
    for _ in range(20):
        try:
            built_in.guest.ask(Request.COMPUTE, 3000, blocks=PATIENCE)
        except NoAnswer as no:
            return str(no)
    return "it goes on"


def garbage_page_tables(host: Host) -> None:
    """The hypervisor writes over the guest's page tables; what the guest then walks is decrypted garbage."""
    for protection in (Protection.NONE, Protection.SEV):
        for page in range(6):
            built_in = BuiltIn(host, protection)
            built_in.guest.ask(Request.WHO)
            built_in.vm.load(Gpa(MEMORY + page * PAGE), random.Random(page).randbytes(PAGE))
            host.flush_caches()
            host.forget(built_in.guest.vcpu.vmcb_at)
            _ends(built_in)
            built_in.end()


def garbage_everywhere(host: Host) -> None:
    built_in = BuiltIn(host, Protection.SEV)
    built_in.guest.ask(Request.WHO)
    for region in built_in.vm.regions:
        host.write(Spa(region.frames.start), random.Random(1).randbytes(region.size))
    host.flush_caches()
    host.forget(built_in.guest.vcpu.vmcb_at)
    assert "it goes on" != _ends(built_in)
    built_in.end()


def absent_nested_pages(host: Host) -> None:
    for gpa in (MEMORY, RESULT, SHARED_PAGE, Gpa(0xFFFF0000), Gpa(0xFFFFF000)):
        built_in = BuiltIn(host, Protection.SEV)
        built_in.vm.tables.unmap(gpa)
        assert "#VMEXIT NPF" in _ends(built_in)
        built_in.end()


def no_nested_tables_at_all(host: Host) -> None:
    built_in = BuiltIn(host, Protection.NONE)
    host.write(Spa(built_in.vm.tables.ncr3), bytes(PAGE))
    assert "#VMEXIT NPF: fetch from guest physical 0xfffffff0" in _ends(built_in)
    built_in.end()


def the_image_was_never_launched(host: Host) -> None:
    """Plaintext where ciphertext is expected: the guest fetches garbage and gets nowhere."""
    built_in = BuiltIn(host, Protection.SEV)
    host.write(built_in.vm.spa(Gpa(0xFFFF0000)), random.Random(2).randbytes(0x10000))
    assert _ends(built_in)
    assert [] == built_in.guest.console.lines
    built_in.end()


def _flat(host: Host, source: str, protection: Protection = Protection.NONE) -> SmallGuest:
    vm = Vm(host, protection)
    vm.add_memory(HELPER, 4 * PAGE)
    vm.load(HELPER, assemble(source, HELPER, 32))
    return SmallGuest(vm, flat_state(HELPER))


def endless_loops(host: Host) -> None:
    for source in ("here: jmp here", "here: mov edx, 0xCB18; out dx, eax; jmp here", "here: cpuid; jmp here"):
        guest = _flat(host, source)
        guest.requests.listen()
        assert guest.turn(PATIENCE) is Turn.INTERRUPTED
        assert guest.turn(PATIENCE) is Turn.INTERRUPTED
        guest.vm.destroy()


def triple_faults(host: Host) -> None:
    for source in (
        "ud2",
        "int 3",
        "mov esp, 0; push eax",
        "lgdt [0x2000]; mov eax, 8; mov ds, eax",
        "int 0x80",
    ):
        guest = _flat(host, source)
        assert guest.turn(PATIENCE) is Turn.ENDED
        assert "#VMEXIT" in guest.stopped
        assert guest.turn() is Turn.ENDED  # and stays so
        guest.vm.destroy()


def instructions_that_are_not_emulated(host: Host) -> None:
    for source in (
        "mov edx, 0x3F8; mov esi, 0x1000; outsb",
        "mov ecx, 0x12345; wrmsr",
        "vmmcall; wbinvd; invd",
    ):
        guest = _flat(host, source)
        guest.turn(PATIENCE)
        guest.vm.destroy()


def random_programs(host: Host) -> None:
    vm = Vm(host, Protection.NONE)
    vm.add_memory(Gpa(0), MIB // 4)
    for seed in range(30):
        vm.load(HELPER, random.Random(seed).randbytes(2 * PAGE))
        guest = SmallGuest(vm, flat_state(HELPER))
        for _ in range(3):
            guest.turn(2000)
    vm.destroy()


def a_random_control_block(host: Host) -> None:
    source = random.Random(3)
    built_in = BuiltIn(host, Protection.SEV)
    good = host.read(built_in.guest.vcpu.vmcb_at, PAGE)
    for _ in range(60):
        broken = bytearray(good)
        for _ in range(source.randrange(1, 12)):
            broken[source.randrange(PAGE)] = source.randrange(256)
        host.write(built_in.guest.vcpu.vmcb_at, bytes(broken))
        built_in.guest.stop = None
        with suppress(VmexitInvalid, NotModelled):
            built_in.guest.turn(2000)
    built_in.end()


CASES: tuple[Callable[[Host], None], ...] = (
    garbage_page_tables,
    garbage_everywhere,
    absent_nested_pages,
    no_nested_tables_at_all,
    the_image_was_never_launched,
    endless_loops,
    triple_faults,
    instructions_that_are_not_emulated,
    random_programs,
    a_random_control_block,
)


def run_cases() -> None:
    """Run all cases on one host, naming each; after each, the host has all it had and another guest runs."""
    with tempfile.TemporaryDirectory() as folder, state(Path(folder)) as opened:
        host = a_host(a_machine(opened, memory_size=32 * MIB, cache_size=4 * MIB))
        before = account(host)
        for case in CASES:
            print(case.__name__, flush=True)
            case(host)
            after = BuiltIn(host, Protection.SEV)
            assert [1229] == after.guest.ask(Request.COMPUTE, 10_000).answers
            after.end()
            assert before == account(host)


def test_the_host_survives() -> None:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(str(root / part) for part in ("src", "tests"))
    ended = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-c",
            "from scenarios import test_builtin_guest_safety as t; t.run_cases()",
        ],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert (0, "") == (ended.returncode, ended.stderr), f"after {ended.stdout}"
    assert [case.__name__ for case in CASES] == ended.stdout.split()
