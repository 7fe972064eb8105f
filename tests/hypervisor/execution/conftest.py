"""Guests execute where the engine does: on Linux on x86-64 with a C compiler; elsewhere these skip aloud."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbit.hypervisor.host import Host
from cbit.spec.address import MIB
from cbit.testing.worlds import a_host, a_machine, a_state

HERE = Path(__file__).parent


def missing() -> str | None:
    """Say what the engine lacks here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the execution engine runs on Linux on x86-64"
    if shutil.which("cc") is None:
        return "the execution engine's stubs want a C compiler: apt install gcc"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if why := missing():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with a_state(tmp_path_factory.mktemp("execution") / "machine") as state:
        yield a_host(a_machine(state, memory_size=32 * MIB, cache_size=4 * MIB))
