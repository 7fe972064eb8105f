"""The engine compiles its native stubs, and runs on Linux on x86-64: elsewhere its tests skip aloud."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import pytest

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
