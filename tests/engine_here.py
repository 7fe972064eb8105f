"""Whether guests execute here: on Linux on x86-64 with a C compiler; elsewhere their tests skip aloud."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest


def missing() -> str:
    """Say what the execution engine lacks here; empty if nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the execution engine runs on Linux on x86-64"
    if shutil.which("cc") is None:
        return "the execution engine's stubs want a C compiler: apt install gcc"
    return ""


def needed_by(items: Iterable[pytest.Item], folder: Path) -> None:
    """Skip what is in a folder where guests do not execute."""
    if why := missing():
        for item in items:
            if item.path.is_relative_to(folder):
                item.add_marker(pytest.mark.skip(reason=why))
