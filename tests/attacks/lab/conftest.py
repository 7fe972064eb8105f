"""One workshop for all cells; victims execute, so their tests skip aloud where the engine cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cbit.attacks.lab.stand import Workshop
from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from cbit.guest.linux.unlock import unlock_program
from engine_here import needed_by


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    with Workshop("a reason") as workshop:
        yield workshop


@pytest.fixture(scope="session")
def linux_workshop() -> Iterator[Workshop]:
    """One that has the distribution's kernel and busybox."""
    try:
        files = fetch_linux()
    except NoPackage as absent:
        pytest.skip(str(absent))
    unlock_program()  # compiled while a compiler can be found
    with Workshop(files) as workshop:
        yield workshop


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needed_by(items, Path(__file__).parent)
