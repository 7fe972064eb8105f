"""One small tenant for the adversaries: cbit's own image, a manufactured machine, a secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attacks.stage import Scene, a_scene


@pytest.fixture(scope="session")
def new_scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    """Scenes by profile, each made once: building machines from one is cheap."""
    made: dict[str, Scene] = {}

    def scene(profile: str) -> Scene:
        if profile not in made:
            folder: Path = tmp_path_factory.mktemp(f"scene-{profile}")
            made[profile] = a_scene(folder, profile)
        return made[profile]

    return scene


@pytest.fixture
def scene(new_scene: Callable[[str], Scene]) -> Scene:
    return new_scene("milan")
