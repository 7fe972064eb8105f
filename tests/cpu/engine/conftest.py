"""The engine compiles its native stubs, and runs on Linux on x86-64: elsewhere its tests skip aloud."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_here import needed_by


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needed_by(items, Path(__file__).parent)
