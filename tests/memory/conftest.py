"""Worlds for the tests of the memory system."""

from __future__ import annotations

import pytest

from cbit.crypto.memory_modes import Mode
from memory.worlds import World


@pytest.fixture
def world() -> World:
    """Build the ordinary world."""
    return World()


@pytest.fixture(params=list(Mode), ids=str)
def any_mode(request: pytest.FixtureRequest) -> World:
    """Build a world of each engine mode."""
    return World(mode=request.param)
