"""A memory system to test: DRAM, bus, controller, cache and secure processor's port, with known keys."""

from __future__ import annotations

from dataclasses import dataclass, field

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, Mode, Tweak
from cbit.memory.bus import Bus
from cbit.memory.cache import Cache
from cbit.memory.controller import MemoryController
from cbit.memory.dram import Dram
from cbit.memory.fabric import FabricPort
from cbit.memory.probe import Probe
from cbit.spec.address import MIB
from cbit.spec.key_id import HOST, KeyId, guest
from cbit.trace import Trace

ALICE, BOB = guest(1), guest(2)


@dataclass
class World:
    """Everything that a test may want to hold in its hand."""

    size: int = MIB
    mode: Mode = Mode.XEX
    capacity: int = 64 * 1024
    coherent: bool = False
    tsme: bool = False
    load: tuple[KeyId, ...] = (HOST, ALICE, BOB)
    trace: Trace = field(default_factory=Trace)

    def __post_init__(self) -> None:
        tweak = None if self.mode is Mode.XTS else Tweak.zen1()
        self.entropy = SeededEntropy("a memory system")
        self.dram = Dram(self.size)
        self.bus = Bus(self.dram)
        self.controller = MemoryController(
            self.bus, mode=self.mode, tweak=tweak, entropy=self.entropy, trace=self.trace, tsme=self.tsme
        )
        self.cache = Cache(self.controller, capacity=self.capacity, coherent=self.coherent, trace=self.trace)
        self.fabric = FabricPort(self.cache, self.controller)
        self.probe = Probe(self.dram)
        for key_id in self.load:
            self.fabric.load_key(key_id, self.key(key_id))

    def key(self, key_id: KeyId) -> Key:
        """Make the key that this world loads into a slot."""
        return Key(SeededEntropy(f"key {key_id}").draw(KEY_BYTES[self.mode]))
