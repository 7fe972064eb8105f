from __future__ import annotations

from collections.abc import Iterator

import pytest

from secure_processor.worlds import Chips, World


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return Chips(tmp_path_factory.mktemp("chips"))


@pytest.fixture
def world(chips: Chips) -> Iterator[World]:
    """A machine that is on, its platform UNINIT."""
    with chips.world() as world:
        yield world
