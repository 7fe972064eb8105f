"""LAUNCH_UPDATE_DATA, and a whole launch, against the arithmetic that they cannot avoid.

In the process's own time, because nobody else works for it: a busy computer does not decide.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cbit.cli.bench.figure import Figure, medians, pairs
from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import SystemEntropy
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.machine.board import Machine, Options
from cbit.machine.manufacture import make_root, manufacture
from cbit.machine.profiles import DEFAULT, profile
from cbit.machine.state_folder import StateFolder
from cbit.owner.session import Session
from cbit.owner.verify.verdict import UnverifiedPlatform
from cbit.spec.address import MIB, Gpa
from cbit.spec.certificate import CERT_SIZE, SevCert
from cbit.spec.policy import Policy

IMAGE: Final = 4 * MIB
WHERE: Final = Gpa(0x100000)


def figures(rounds: int) -> list[Figure]:
    """Measure both on a fresh machine."""
    with _host() as host:
        return [_update(host, rounds), _whole(host, rounds)]


def _floor(image: memoryview) -> None:
    """Hash and encrypt: no launch of this image can do less."""
    hashlib.sha256(image).digest()
    _ECB.update_into(image, _ROOM)


_ECB: Final = Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor()
_ROOM: Final = bytearray(IMAGE + 15)


def _update(host: Host, rounds: int) -> Figure:
    vm = Vm(host, Protection.SEV)
    vm.add_memory(WHERE, IMAGE)
    image = memoryview(os.urandom(IMAGE))
    vm.load(WHERE, bytes(image))
    guest = SevGuest.start(vm, policy=int(Policy.NODBG))
    times = pairs(lambda: guest.update(WHERE, IMAGE), lambda: _floor(image), rounds, clock=time.process_time)
    ours, limit, ratio = medians(times)
    guest.end()
    against = "SHA-256 and AES-128-ECB of the same 4 MiB"
    return Figure(
        "launch", "LAUNCH_UPDATE_DATA 4 MiB", ours * 1e3, limit * 1e3, "ms", ratio, against, "<= 1.6"
    )


def _whole(host: Host, rounds: int) -> Figure:
    exported = host.export_chain()
    pdh = SevCert.parse(exported[:CERT_SIZE])
    session = Session.open(UnverifiedPlatform.dangerously_trust(pdh), policy=int(Policy.NODBG)).session
    assert session is not None
    image = memoryview(os.urandom(IMAGE))
    vm = Vm(host, Protection.SEV)
    vm.add_memory(WHERE, IMAGE)
    vm.load(WHERE, bytes(image))
    own = ec.random_key(SystemEntropy())

    def launch() -> None:
        guest = SevGuest.start(
            vm, policy=int(Policy.NODBG), godh=bytes(session.godh), session=bytes(session.blob)
        )
        guest.update(WHERE, IMAGE)
        guest.measure_alone()
        guest.finish()  # the next round takes another ASID; ending guests is not part of the figure

    def least() -> None:
        _floor(image)
        ec.shared_secret(own, sev_cert.public_key(session.godh))

    ours, limit, ratio = medians(pairs(launch, least, rounds, clock=time.process_time))
    against = "the same, and one P-384 key agreement with a fresh certificate"
    return Figure("launch", "whole launch 4 MiB", ours * 1e3, limit * 1e3, "ms", ratio, against, "<= 1.6")


@contextmanager
def _host() -> Iterator[Host]:
    chosen = profile(DEFAULT)
    with tempfile.TemporaryDirectory(prefix="cbit-bench-") as folder:
        path = Path(folder, "machine")
        manufacture(path, chosen, entropy=SystemEntropy(), root=make_root(chosen.root_bits))
        with StateFolder(path) as state:
            machine = Machine(state, Options(memory_size=32 * MIB))
            machine.power_on()
            host = Host(machine)
            host.initialise()
            yield host
