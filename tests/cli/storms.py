"""A machine of one's own under storm after storm: storms.py STATE FUZZ SEED STORMS CALLS CLIENTS.

Prints one JSON object for each: what the fuzzing client said, what the machine has left, and what this
process, which answers all calls of a storm, has open and in memory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cbit.driver.client_pages import MemoryRule
from cbit.driver.sev_structs import SEV_ISSUE_CMD, IssueCmd
from cbit.machine.state_folder import StateFolder
from cbit.redirect.backend import Backend
from cbit.redirect.device import Client
from cbit.redirect.files import SEV, Kvm, sev_files
from cbit.redirect.kvm import SuppliedKvm
from cbit.redirect.kvm_requests import KVM_VM
from cbit.redirect.launcher import start
from cbit.redirect.process_memory import Write
from cbit.trace import Trace

NTH = "4"  #: every fourth client is killed
PDH_GEN = 4


class Own:
    """Memory that holds one command of our own."""

    def __init__(self, command: int) -> None:
        self.room = bytearray(bytes(IssueCmd(cmd=command, data=0)))

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.room[address : address + length])

    def read_into(self, address: int, room: bytearray | memoryview) -> None:
        room[:] = self.read(address, len(room))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.room[address : address + len(data)] = data

    def write_all(self, writes: Sequence[Write]) -> None:
        for address, data in writes:
            self.write(address, data)


def rss_kib() -> int:
    """Return the memory of this process that is there, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def main() -> int:
    state, fuzz, seed, storms, calls, clients = sys.argv[1:]
    with StateFolder(Path(state)) as folder, tempfile.TemporaryFile() as said:
        backend = Backend(folder, Trace())
        behind = backend.devices(MemoryRule.ENCRYPTED)
        devices = {SEV: behind[SEV], **SuppliedKvm(behind[KVM_VM], backend.machine.trace).devices}
        opened = devices[SEV].open(Client(os.getpid(), lambda number: None), writable=True)
        devices[SEV].ioctl(opened, SEV_ISSUE_CMD, 0, Own(PDH_GEN))  # the platform is initialised
        for number in range(int(storms)):
            said.seek(0)
            said.truncate()
            words = [fuzz, str(int(seed) + number), calls, clients, NTH]
            shell = ["/bin/sh", "-c", f'exec "$@" >&{said.fileno()}', "sh", *words]
            os.set_inheritable(said.fileno(), True)
            with start(shell, sev_files(kvm=Kvm.SUPPLIED)) as target:
                ending = target.serve(devices)
            said.seek(0)
            report = {
                "code": ending.exit_code,
                "said": said.read().decode(),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "rss_kib": rss_kib(),
                "machine": backend.status(),
            }
            print(json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
