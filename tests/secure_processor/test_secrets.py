"""No key leaves the secure processor: not into an event, a repr, a message, a report, nor into DRAM."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cbit.crypto import ec
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.status import Status
from cbit.trace import Event, Trace
from secure_processor.import_faults import Organisation, import_from
from secure_processor.worlds import FIRST, LAST, Chips, World


class Remembering:
    """Randomness that remembers what it gave: nearly every secret of a machine starts here."""

    def __init__(self) -> None:
        self._seeded = SeededEntropy("secrets")
        self.given: list[bytes] = []

    def draw(self, length: int) -> bytes:
        self.given.append(self._seeded.draw(length))
        return self.given[-1]


def forms(name: str, secret: bytes) -> Iterator[tuple[str, str]]:
    """How a secret might look in a text."""
    yield name, secret.hex()
    yield name, secret[::-1].hex()
    yield name, repr(secret)[2:-1]
    yield name, repr(secret[::-1])[2:-1]
    yield name, str(int.from_bytes(secret, "big"))
    yield name, str(int.from_bytes(secret, "little"))
    yield name, f"{int.from_bytes(secret, 'big'):x}"
    yield name, f"{int.from_bytes(secret, 'little'):x}"
    yield name, str(list(secret))


class Story:
    """A launch with everything in it, recorded: events, reprs and messages, and the secrets behind them."""

    def __init__(self, world: World, events: list[Event], entropy: Remembering) -> None:
        self.world, self.events = world, events
        self.texts: list[str] = []
        desk = world.init(es=True).desk
        made, keys = world.owner(policy=1)
        handle = world.start_for(made, 1)
        world.activate(handle, FIRST)
        world.update(handle, desk.put(b"an image for all".ljust(4096, b"\xf4")), 4096)
        self.note()
        world.measure(handle)
        secret = world.secret(handle, b"the owner's own!" * 4, keys=keys)
        assert Status.SUCCESS == desk.status_of(Command.LAUNCH_SECRET, secret)
        context = world.firmware.platform.guests[handle]
        self.vek = context.vek.material()
        self.tek, self.tik = keys.tek.material(), keys.tik.material()
        self.note()
        # refusals speak at length
        for command, buffer in (
            (Command.LAUNCH_SECRET, secret.replace(trans_len=32, guest_len=32)),
            (Command.LAUNCH_START, buffers.LaunchStart(policy=1 << 16)),
            (Command.LAUNCH_START, buffers.LaunchStart(handle=99, policy=1)),
            (Command.ACTIVATE, buffers.Activate(handle=handle, asid=LAST)),
        ):
            self.texts.append(desk.attempt(command, buffer)[1])
        world.finish(handle)
        identity = world.firmware.platform.identity
        self.scalars = {
            "PDH": identity.pdh_key,
            "PEK": identity.pek_key,
            "CEK": world.firmware.platform.issuer.cek,
        }
        assert identity.oca_key is not None
        self.scalars["OCA"] = identity.oca_key
        self.note()
        world.deactivate(handle)
        world.decommission(handle)
        import_from(world, Organisation())
        desk.do(Command.PEK_GEN)
        desk.do(Command.SHUTDOWN)
        world.nv.write_bytes(b"torn")
        self.texts.append(desk.attempt(Command.INIT, buffers.Init())[1])
        self.texts += [str(event) for event in events] + [repr(event) for event in events]
        self.texts.append(json.dumps([{**event.facts, "why": event.why} for event in events], default=repr))
        self.drawn = entropy.given
        fingerprint = world.machine.host_key_fingerprint
        self.host = next(drawn for drawn in self.drawn if Key(drawn).fingerprint() == fingerprint)

    def note(self) -> None:
        """Print every object that a person or a debugger might print."""
        world, platform = self.world, self.world.firmware.platform
        things: list[object] = [
            *(world.machine, world.firmware, world.firmware.fuses, world.firmware.nv, world.firmware.memory),
            *(world.state, world.machine.controller, world.machine.memory, world.machine.mailbox),
            *(
                platform,
                platform.identity,
                platform.issuer,
                platform.asids,
                platform.guests,
                world.machine.booted,
            ),
            *(world.firmware.fuses.nv_keys(), world.firmware.limits, platform.identity.to_nv()),
        ]
        self.texts += [repr(thing) for thing in things] + [str(thing) for thing in things]

    def secrets(self) -> dict[str, bytes]:
        fuses = bytes(self.world.state.fuses())
        return (
            {"host key": self.host, "VEK": self.vek, "TEK": self.tek, "TIK": self.tik}
            | {name: ec.scalar_of(key).to_bytes(48, "big") for name, key in self.scalars.items()}
            | {"CUK": fuses[0x10:0x30], "fused NV key": fuses[0x30:0x50]}
            | {f"NV key {i}": key.material() for i, key in enumerate(self.world.firmware.fuses.nv_keys())}
        )


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    entropy, trace = Remembering(), Trace()
    chips = Chips(tmp_path_factory.mktemp("secrets"))
    with trace.recorded() as events, chips.world(entropy=entropy, trace=trace) as world:
        yield Story(world, events, entropy)


def test_the_story_is_worth_searching(story: Story) -> None:
    told = {event.what for event in story.events}
    assert {"LAUNCH_START", "LAUNCH_SECRET", "LAUNCH_FINISH", "PEK_CERT_IMPORT", "key installed"} <= told
    assert 10 < len(story.events)
    assert any("fingerprint" in text for text in story.texts)
    assert len(story.secrets()) == len(set(story.secrets().values())) == 12


def test_no_secret_is_in_any_text(story: Story) -> None:
    text = "\n".join(story.texts)
    found = {
        name for key, secret in story.secrets().items() for name, form in forms(key, secret) if form in text
    }
    assert set() == found


def test_nothing_drawn_but_nonces_is_in_any_text(story: Story) -> None:
    """Every random draw, the host's key and the scalars' candidates among them; a nonce is no secret."""
    text = "\n".join(story.texts)
    found = [
        drawn for drawn in story.drawn for _, form in forms("", drawn) if len(drawn) >= 16 and form in text
    ]
    assert [] == found


def test_the_search_finds_a_secret_that_is_there(story: Story) -> None:
    leak = f"guest(vek={story.vek!r})"
    assert any(form in leak for _, form in forms("VEK", story.vek))
    assert any(form in f"pdh_scalar={ec.scalar_of(story.scalars['PDH']):#x}" for _, form in
               forms("PDH", ec.scalar_of(story.scalars["PDH"]).to_bytes(48, "big")))  # fmt: skip


def test_no_key_is_anywhere_in_dram(story: Story) -> None:
    machine = story.world.machine
    machine.memory.wbinvd()
    probe = machine.probe
    found = {
        name
        for name, secret in story.secrets().items()
        for order in (secret, secret[::-1])
        for piece in (order, order[: len(order) // 2], order[len(order) // 2 :])
        if any(probe.find(piece))
    }
    assert set() == found
    assert not any(any(probe.find(drawn)) for drawn in story.drawn if len(drawn) in (32, 48))


def test_the_owners_words_are_nowhere_in_dram_and_the_public_image_was(story: Story) -> None:
    """Positive control: what nobody encrypted is found by the same search."""
    world = story.world
    world.machine.memory.wbinvd()
    assert [] == list(world.machine.probe.find(b"the owner's own!"))
    at = world.desk.put(b"found when it is not encrypted")
    world.machine.memory.wbinvd()
    assert [at] == list(world.machine.probe.find(b"found when it is not encrypted"))


def test_the_firmware_lets_no_key_out_of_a_slot(story: Story) -> None:
    public = {name for name in dir(story.world.firmware.memory.fabric) if not name.startswith("_")}
    assert {"load_key", "has_key"} == {name for name in public if "key" in name}
    assert story.world.firmware.memory.fabric.load_key.__annotations__["return"] == "None"


def test_the_store_on_disk_shows_nothing(story: Story, tmp_path_factory: pytest.TempPathFactory) -> None:
    world = story.world
    world.init()
    identity = world.firmware.platform.identity
    raw = world.nv.read_bytes()
    for key in (identity.pdh_key, identity.pek_key):
        scalar = ec.scalar_of(key).to_bytes(48, "big")
        assert scalar not in raw
        assert scalar[::-1] not in raw
    world.desk.do(Command.SHUTDOWN)
