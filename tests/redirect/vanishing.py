"""Mounts a served file and takes it away while many close it, round after round; alone in a mount namespace.

vanishing.py FILE ROUNDS
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

from cbit.redirect.files import SEV, SEV_ISSUE_CMD, DeviceFile
from cbit.redirect.fuse import FuseFile, mount_file, open_channel
from cbit.redirect.linux import unmount
from redirect.echo import Echo

HANDLES: Final = 40


def opens_many(path: str) -> int:
    """Start a process that opens the file often and ends, so that the kernel has as many to close."""
    process = os.fork()
    if process == 0:
        for _ in range(HANDLES):
            os.open(path, os.O_RDWR)
        os._exit(0)
    return process


def one_round(path: str) -> list[BaseException]:
    faults: list[BaseException] = []
    channel = open_channel()
    mount_file(channel, path, mode=0o600)
    device = Echo()
    file = FuseFile(channel, DeviceFile(SEV, (SEV_ISSUE_CMD,)), device, mode=0o600, failed=faults.append)

    def serve() -> None:
        try:
            while file.serve():
                pass
        except OSError as error:
            faults.append(error)

    server = threading.Thread(target=serve)
    server.start()
    processes = [opens_many(path) for _ in range(2)]
    os.waitpid(processes[0], 0)
    unmount(path)
    os.waitpid(processes[1], 0)
    server.join()
    file.close()
    if device.opened != device.closed:
        faults.append(AssertionError(f"{device.opened} opened, {device.closed} closed"))
    return faults


def main() -> int:
    path, rounds = sys.argv[1], int(sys.argv[2])
    faults = [fault for _ in range(rounds) for fault in one_round(path)]
    print(f"{rounds} rounds, {len(faults)} faults {faults[:2]}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
