"""``cbit demo`` says when a platform had to make itself a new identity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from cbit.cli.demo.act import Fact
from cbit.cli.demo.firmware import Image
from cbit.cli.demo.linux_world import LinuxWorld
from cbit.cli.demo.platform import platform
from cbit.cli.demo.world import World
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.machine.state_folder import StateFolder
from cbit.spec.address import MIB, Gpa
from cbit.testing.worlds import a_host, a_machine, a_state

if TYPE_CHECKING:
    from cbit.attacks.linux_owner import OwnersFiles

WORDS = "NV store: 100 bytes, must be 6496: torn; the store was erased"


def a_damaged_machine(path: Path) -> StateFolder:
    """A machine that had an identity, and whose store is torn."""
    state = a_state(path)
    a_host(a_machine(state)).machine.power_off()
    state.nv_path.write_bytes(state.nv_path.read_bytes()[:100])
    return state


def new_identities(state: StateFolder) -> list[str]:
    """What the act about the platform says of them."""
    entropy, image = SeededEntropy("a story"), Image(b"", "none", "a test")
    world = World(state, image, b"", Gpa(0), Key(bytes(16)), "", entropy)
    world.machine = world.new_machine()
    world.machine.power_on()
    facts = [item for item in platform(world).items if isinstance(item, Fact)]
    world.machine.power_off()
    return [fact.value for fact in facts if fact.name == "a new identity"]


def test_a_damaged_store_is_part_of_the_story(tmp_path: Path) -> None:
    assert [WORDS] == new_identities(a_damaged_machine(tmp_path / "damaged"))
    assert [] == new_identities(a_state(tmp_path / "new"))


def test_a_damaged_store_is_part_of_the_story_of_linux(tmp_path: Path) -> None:
    said: list[str] = []
    state, files = a_damaged_machine(tmp_path / "machine"), cast("OwnersFiles", None)
    world = LinuxWorld(state, files, 16 * MIB, tmp_path, SeededEntropy("a story"), said.append)
    for _ in range(2):
        world.new_host().machine.power_off()
    assert [f"{WORDS}; the platform has made itself a new identity"] == said
