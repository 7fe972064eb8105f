"""A process that is killed while it writes: what is found afterwards is a whole identity, old or new."""

from __future__ import annotations

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

CHILD = """
import hashlib, sys
from pathlib import Path
from cbit.crypto.entropy import SystemEntropy
from cbit.spec.command import Command
from cbit.trace import Trace
from secure_processor.worlds import MEMORY, World
world = World(Path(sys.argv[1]), entropy=SystemEntropy(), memory_size=MEMORY, trace=Trace())
world.machine.power_on()
world.init()
room = world.desk.room(4096), world.desk.room(8192)
world.desk.room = lambda length, *, align=4096: room[length > 4096]  # the same two places every time
while True:
    print(hashlib.sha256(b"".join(world.export())).hexdigest(), flush=True)
    world.desk.do(Command.PEK_GEN)
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
        for _ in range(KILLS):
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(world.folder)],
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": ":".join(path)},
            )
            assert child.stdout is not None
            first = child.stdout.readline()
            assert first, "the child did not start: INIT failed after the last kill"
            time.sleep(rng.uniform(0, 0.04))
            child.send_signal(signal.SIGKILL)
            shown = [first, *child.stdout]
            child.wait()
            child.stdout.close()
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
    print(f"{KILLS} kills, {unfinished} of them between write and rename")
