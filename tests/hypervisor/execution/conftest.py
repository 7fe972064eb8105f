"""Guests execute where the engine does: on Linux on x86-64 with a C compiler; elsewhere these skip aloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cbit.hypervisor.host import Host
from cbit.spec.address import MIB
from cbit.testing.worlds import a_host, a_machine, a_state
from engine_here import needed_by


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needed_by(items, Path(__file__).parent)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with a_state(tmp_path_factory.mktemp("execution") / "machine") as state:
        yield a_host(a_machine(state, memory_size=32 * MIB, cache_size=4 * MIB))
