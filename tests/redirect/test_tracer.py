"""An instruction that faults is answered, in every thread and child; all else is the program's own.

CPUID faults on few processors, so an instruction that faults on all of them (CLTS) stands for it: all but the
one system call that switches the fault on is the same.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cbit.cpu.cpuid import ENCRYPTION, Registers
from cbit.machine.profiles import profile
from redirect.conftest import HERE, Way, compiled, run

SAID = """\
here: 1
threads: 0 wrong
child: 9
another program: 7
its own fault: 11
another instruction: 11
a signal: 1
a child's end: 15
stopped by 19, then ended with 3
"""


@pytest.fixture(scope="module", params=["dynamic", "static"])
def faults(request: pytest.FixtureRequest, open_folder: Path) -> Path:
    options = ("-static",) if request.param == "static" else ()
    return compiled(open_folder, f"faults-{request.param}", *options, source=HERE / "faults.c")


def test_every_thread_and_child_is_answered_and_signals_are_the_programs(
    mechanism: Way, faults: Path, report_at: Path
) -> None:
    ran = run(mechanism, report_at, faults, extra=("--trace",))
    assert (42, SAID) == (ran.code, ran.out), ran.err
    assert 1 + 400 + 1 + 1 == ran.report["answered"]
    first, second = ran.report["prepared"]
    assert ran.report["pid"] == first, "before its first instruction the program made the call: getppid"
    assert second not in {0, first}, "and the program that its child executed did"


def test_a_program_that_is_traced_still_finds_the_files(
    mechanism: Way, report_at: Path, client: Path
) -> None:
    plain = run(mechanism, report_at, client)
    traced = run(mechanism, report_at, client, extra=("--trace",))
    assert (plain.code, plain.out) == (traced.code, traced.out)


def test_a_signal_that_ends_a_traced_program_is_passed_on(mechanism: Way, report_at: Path) -> None:
    ran = run(mechanism, report_at, "sh", "-c", "kill -TERM $$", extra=("--trace",))
    assert -signal.SIGTERM == ran.code


def test_not_traced_the_fault_is_its_end(mechanism: Way, faults: Path, report_at: Path) -> None:
    assert -signal.SIGSEGV == run(mechanism, report_at, faults).code


def test_the_leaf_is_the_machines_and_all_others_are_the_processors() -> None:
    from cbit.redirect.processor import answers

    features = profile("naples").features
    asked: list[tuple[int, int]] = []

    def native(leaf: int, subleaf: int) -> Registers:
        asked.append((leaf, subleaf))
        return Registers(0x8000_0008, 2, 3, 4)

    answer = answers(features, native)
    found = answer(ENCRYPTION, 0)
    assert (47, 5, 15, 5) == (found.ebx & 63, found.ebx >> 6 & 63, found.ecx, found.edx)
    assert [] == asked
    assert Registers(ENCRYPTION, 2, 3, 4) == answer(0x8000_0000, 0), "so that programs look for it"
    assert Registers(0x8000_0008, 2, 3, 4) == answer(7, 1)
    assert [(0x8000_0000, 0), (7, 1)] == asked


def test_our_own_processor_answers() -> None:
    """In a process of its own: a page of code is not for one that goes on testing."""
    script = (
        "from cbit.redirect.processor import Native\n"
        "import struct\n"
        "found = Native()(0, 0)\n"
        "print(struct.pack('<III', found.ebx, found.edx, found.ecx).decode())"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    vendor = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("vendor_id")
    )
    assert vendor.split()[-1] == ended.stdout.strip()
