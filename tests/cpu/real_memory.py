"""The machine's own memory system under a core."""

from __future__ import annotations

from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, Mode, Tweak
from cbit.memory.bus import Bus
from cbit.memory.cache import Cache
from cbit.memory.controller import MemoryController
from cbit.memory.dram import Dram
from cbit.memory.fabric import FabricPort
from cbit.memory.probe import Probe
from cbit.spec.address import MIB, Spa
from cbit.spec.key_id import HOST, guest
from cpu.worlds import ALICE, BOB, SIZE


class WiredCache(Cache):
    """The cache, with a look at what DRAM holds."""

    dram: Dram

    def wire(self, spa: Spa, length: int) -> bytes:
        return Probe(self.dram).read(spa, length)


def real_cache(size: int = SIZE, *, coherent: bool = False, tsme: bool = False) -> WiredCache:
    """Keys for the host and two guests; all of it the machine's own."""
    dram = Dram(size)
    controller = MemoryController(
        Bus(dram), mode=Mode.XEX, tweak=Tweak.zen1(), entropy=SeededEntropy("a core's memory"), tsme=tsme
    )
    cache = WiredCache(controller, capacity=MIB, coherent=coherent)
    cache.dram = dram
    fabric = FabricPort(cache, controller)
    for key_id in (HOST, guest(ALICE), guest(BOB)):
        fabric.load_key(key_id, Key(SeededEntropy(f"key {key_id}").draw(KEY_BYTES[Mode.XEX])))
    return cache
