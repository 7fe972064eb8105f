"""A process that is killed while it writes: what is found afterwards is a whole identity, old or new."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cbit.crypto import sev_cert
from cbit.spec import buffers
from cbit.spec.certificate import SevCert
from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.worlds import Chips, World

KILLS = 60
CERT = 0x824

#: Imports once, and forks a machine for each line that it is given.
NURSERY = """
import hashlib, os, sys
from pathlib import Path
from cbit.crypto.entropy import SystemEntropy
from cbit.spec.command import Command
from cbit.trace import Trace
from secure_processor.worlds import MEMORY, World
def live():
    world = World(Path(sys.argv[1]), entropy=SystemEntropy(), memory_size=MEMORY, trace=Trace())
    world.machine.power_on()
    world.init()
    room = world.desk.room(4096), world.desk.room(8192)
    world.desk.room = lambda length, *, align=4096: room[length > 4096]  # the same two places every time
    while True:
        print(hashlib.sha256(b"".join(world.export())).hexdigest(), flush=True)
        world.desk.do(Command.PEK_GEN)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            live()
        finally:
            os._exit(1)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def whole(world: World) -> bool:
    pdh, chain = world.export()
    pek, oca, cek = (SevCert.parse(chain[i : i + CERT]) for i in range(0, len(chain), CERT))
    sev_cert.verify(oca, oca)
    sev_cert.verify(pek, oca)
    sev_cert.verify(pek, cek)
    sev_cert.verify(SevCert.parse(pdh), pek)
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_every_kill_the_identity_is_whole_and_not_an_older_one(chips: Chips) -> None:
    import hashlib

    rng = random.Random(1)
    unfinished = 0
    with chips.world(power_on=False) as world:
        world.state.close()  # the child has the folder now
        path = [str(Path(__file__).parents[1]), *sys.path]
        nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(world.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(path)},
        )
        assert nursery.stdin
        assert nursery.stdout
        for _ in range(KILLS):
            print(file=nursery.stdin, flush=True)
            first = [
                nursery.stdout.readline() for _ in range(2)
            ]  # its number and what it shows, in any order
            assert "gone\n" not in first, "the child did not live: INIT failed after the last kill"
            (child,) = (int(line.split()[1]) for line in first if line.startswith("child"))
            time.sleep(rng.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            shown = [line for line in first if not line.startswith("child")]
            shown += iter(nursery.stdout.readline, "gone\n")
            unfinished += world.nv.with_name("sev.nv.new").exists()

            after = World(
                world.folder, entropy=world.machine._options.entropy, memory_size=4 << 20, trace=world.trace
            )
            after.machine.power_on()
            assert Status.SUCCESS == after.desk.status_of(Command.INIT, buffers.Init())
            assert whole(after)
            found = hashlib.sha256(b"".join(after.export())).hexdigest()
            assert found not in {line.strip() for line in shown[:-1]}, "an older identity came back"
            after.state.close()
        nursery.stdin.close()
        assert 0 == nursery.wait()
        nursery.stdout.close()
    print(f"{KILLS} kills, {unfinished} of them between write and rename")
