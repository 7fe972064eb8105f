"""What the machine costs in memory: DRAM, the cache's capacity, and a fixed part; no copy of DRAM anywhere.

Measured in a process of its own: what this one has touched before would be counted too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

from cbit.cli.bench.figure import Figure
from cbit.spec.address import MIB

DRAM: Final = 256 * MIB
CACHE: Final = 32 * MIB

_PROGRAM: Final = """
import json, sys
from cbit.cli.bench.memory import touch_everything
print(json.dumps(touch_everything(int(sys.argv[1]), int(sys.argv[2]))))
"""


def figures(rounds: int) -> list[Figure]:
    """Fill all of DRAM through the engine and compare the growth of the process with DRAM plus cache."""
    del rounds  # memory is not noisy
    command = [sys.executable, "-c", _PROGRAM, str(DRAM), str(CACHE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    grown = json.loads(done.stdout)
    limit = DRAM + CACHE
    against = "DRAM plus cache capacity"
    return [
        Figure("memory", "256 MiB machine", grown / MIB, limit / MIB, "MiB", grown / limit, against, "<= 1.1")
    ]


def touch_everything(dram: int, cache: int) -> int:
    """Build memory, fill it encrypted, read it back; return by how many bytes the process's peak grew."""
    from cbit.crypto.entropy import SystemEntropy
    from cbit.crypto.memory_modes import Mode
    from cbit.crypto.tweak import Tweak
    from cbit.memory.bus import Bus
    from cbit.memory.cache import Cache
    from cbit.memory.controller import MemoryController
    from cbit.memory.dram import Dram
    from cbit.spec.address import PAGE, Spa
    from cbit.spec.key_id import HOST

    before = _peak()
    entropy = SystemEntropy()
    controller = MemoryController(
        Bus(Dram(dram)), mode=Mode.XEX, tweak=Tweak.random(entropy), entropy=entropy
    )
    memory = Cache(controller, capacity=cache)
    for page in range(0, dram, PAGE):
        memory.write(Spa(page), bytes(PAGE), HOST)
    for start in range(0, dram, MIB):
        memory.read(Spa(start), MIB, HOST)
    memory.wbinvd()
    return _peak() - before


def _peak() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
