"""Scenes for whole stories: what a machine, a hypervisor and an owner make of a firmware image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attacks.stage import Scene, a_scene


@pytest.fixture(scope="session")
def new_scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    """Scenes by profile, each made once."""
    made: dict[str, Scene] = {}

    def scene(profile: str) -> Scene:
        if profile not in made:
            folder: Path = tmp_path_factory.mktemp(f"story-{profile}")
            made[profile] = a_scene(folder, profile)
        return made[profile]

    return scene
