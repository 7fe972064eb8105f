"""One workshop for all cells; victims execute, so their tests skip aloud where the engine cannot run."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbit.attacks.lab.stand import Workshop
from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from cbit.guest.linux.unlock import unlock_program

HERE = Path(__file__).parent


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
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    if here and shutil.which("cc"):
        return
    why = "victims execute on Linux on x86-64, with a C compiler: apt install gcc"
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=why))
