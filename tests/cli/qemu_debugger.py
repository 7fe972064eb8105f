"""A debugger beside an unmodified QEMU: qemu_debugger.py FIRMWARE-LENGTH -- QEMU ARGUMENT …

Both run under ``cbit exec``.  It starts QEMU, has it measure its guest, reads the firmware's pages from
QEMU's own memory, takes QEMU's virtual machine out of its hands and has these pages decrypted.
Prints one JSON object: what QEMU has, what a debugger reads.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PIDFD_GETFD = 438
KVM_CHECK_EXTENSION, USER_MEMORY = 0xAE03, 3
KVM_MEMORY_ENCRYPT_OP, DBG_DECRYPT = 0xC008AEBA, 17
PAGE = 4096
FIXED = 0x100000 | 0x20 | 0x02  # MAP_FIXED_NOREPLACE, anonymous, private
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def ask(qemu: subprocess.Popen[str], what: str, **arguments: object) -> Any:
    assert qemu.stdin
    assert qemu.stdout
    qemu.stdin.write(json.dumps({"execute": what, "arguments": arguments}) + "\n")
    qemu.stdin.flush()
    for line in qemu.stdout:
        said = json.loads(line)
        if "return" in said or "error" in said:
            return said.get("return", said)
    raise SystemExit("QEMU ended")


def mappings(pid: int, size: int) -> Iterator[int]:
    """Yield where memory of a size is."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if end - start == size:
            yield start


def memory(pid: int, address: int, length: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb") as file:
        file.seek(address)
        return file.read(length)


def descriptors(pid: int) -> Iterator[tuple[int, os.stat_result]]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        yield int(name), os.stat(f"/proc/{pid}/fd/{name}")


def machine_of(pid: int) -> int:
    """Return a descriptor of our own for its virtual machine."""
    process = os.pidfd_open(pid)
    for number, _ in descriptors(pid):
        ours = libc.syscall(PIDFD_GETFD, process, number, 0)
        if ours < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        try:
            if os.readlink(f"/proc/self/fd/{ours}").startswith("socket:"):
                fcntl.ioctl(ours, KVM_CHECK_EXTENSION, USER_MEMORY)
                return int(ours)
        except OSError:  # another socket
            pass
        os.close(ours)
    raise SystemExit("QEMU has no virtual machine")


def same_number_of_sev(pid: int) -> None:
    """Have /dev/sev under the number that it has there: later commands go through it."""
    sev = os.open("/dev/sev", os.O_RDWR)
    mine = os.fstat(sev)
    number = next(
        n for n, there in descriptors(pid) if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
    )
    if number != sev:
        os.dup2(sev, number)


def decrypted(machine: int, address: int, image: bytes) -> bytes:
    """Have pages decrypted that are ours, at the address that they have in QEMU."""
    found = libc.mmap(address, len(image), 3, FIXED, -1, 0)
    if found != address:
        raise OSError(ctypes.get_errno(), "our memory is taken there")
    ctypes.memmove(address, image, len(image))
    plain = ctypes.create_string_buffer(len(image) + PAGE)
    at = (ctypes.addressof(plain) + PAGE - 1) & -PAGE
    command = struct.pack("<QQI4x", address, at, len(image))
    room = ctypes.create_string_buffer(command, len(command))
    request = bytearray(struct.pack("<IIQII", DBG_DECRYPT, 0, ctypes.addressof(room), 0, 0))
    fcntl.ioctl(machine, KVM_MEMORY_ENCRYPT_OP, request)
    return ctypes.string_at(at, len(image))


def main() -> None:
    size, words = int(sys.argv[1]), sys.argv[3:]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdout
        qemu.stdout.readline()
        ask(qemu, "qmp_capabilities")
        ask(qemu, "query-sev-launch-measure")
        with tempfile.TemporaryDirectory() as folder:
            dump = Path(folder) / "dump"
            ask(qemu, "pmemsave", val=(1 << 32) - size, size=size, filename=str(dump))
            saved = dump.read_bytes()
        place = next(at for at in mappings(qemu.pid, size) if memory(qemu.pid, at, size) == saved)
        same_number_of_sev(qemu.pid)
        machine = machine_of(qemu.pid)
        last = place + size - 2 * PAGE
        seen = memory(qemu.pid, last, 2 * PAGE)
        plain = decrypted(machine, last, seen)
        ask(qemu, "quit")
    print(json.dumps({"saved": saved.hex(), "seen": seen.hex(), "plain": plain.hex()}))


if __name__ == "__main__":
    main()
