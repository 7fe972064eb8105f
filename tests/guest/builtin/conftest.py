"""The guest is assembled and executed here: where the engine cannot be, its tests skip aloud."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpu.engine.conftest import missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if why := missing():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=why))
