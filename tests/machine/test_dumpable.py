"""A process that built a machine leaves no core file and lets no debugger of the same user in."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cbit.machine.board import Machine, Options
from cbit.machine.dumpable import forbid_dumps
from cbit.spec.address import MIB
from machine.worlds import state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")

PROGRAM = """
import ctypes, os, resource, signal, sys
from pathlib import Path
from cbit.machine.board import Machine, Options
from cbit.machine.state_folder import StateFolder
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
print("dumpable", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
machine = Machine(StateFolder(Path(sys.argv[1])), Options(memory_size=1 << 20))
print("dumpable", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print("core limit", resource.getrlimit(resource.RLIMIT_CORE)[0])
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_process_with_a_machine_is_not_dumpable(tmp_path: Path) -> None:
    made = state(tmp_path)
    made.close()
    folder = tmp_path / "crash"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(made.path)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ["dumpable 1", "dumpable 0", "core limit 0"] == done.stdout.splitlines()
    assert done.returncode == -signal.SIGSEGV
    assert list(folder.iterdir()) == []  # where a core file would be


def test_building_a_machine_forbids_dumps_in_this_process(tmp_path: Path) -> None:
    Machine(state(tmp_path), Options(memory_size=MIB))
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def test_a_kernel_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, name: None, *, use_errno: bool) -> None:
            pass

        def prctl(self, *args: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    with pytest.raises(OSError, match="PR_SET_DUMPABLE"):
        forbid_dumps()
