"""A virtual machine is the same under each of its descriptors, and of one process, as with the kernel's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cli.test_exec import cbit
from redirect.conftest import ON_LINUX, Way

if not ON_LINUX:
    pytest.skip("programs are redirected on Linux x86-64", allow_module_level=True)

#: SEV_INIT and LAUNCH_START on one descriptor; then GUEST_STATUS on others.
COPIES = """
import ctypes, errno, fcntl, os, struct
sev, kvm = os.open("/dev/sev", os.O_RDWR), os.open("/dev/kvm", os.O_RDWR)

def ask(vm, command, data=b""):
    room = ctypes.create_string_buffer(data, len(data) or 1)
    asked = struct.pack("<IIQII", command, 0, ctypes.addressof(room) if data else 0, 0, sev)
    try:
        fcntl.ioctl(vm, 0xC008AEBA, bytearray(asked))
        return room.raw
    except OSError as error:
        return errno.errorcode[error.errno]

def state(vm):
    told = ask(vm, 16, bytes(12))
    return told if isinstance(told, str) else struct.unpack("<III", told)[1:]

vm = fcntl.ioctl(kvm, 0xAE01, 0)
assert ask(vm, 0) == bytes(1), ask(vm, 0)
assert isinstance(ask(vm, 2, struct.pack("<IIQIIQII", 0, 1, 0, 0, 0, 0, 0, 0)), bytes)
other = fcntl.ioctl(kvm, 0xAE01, 0)
copy = os.dup(vm)
print("itself", state(vm), "a copy", state(copy), "another", state(other))
os.close(vm)
vm = fcntl.ioctl(kvm, 0xAE01, 0)
print("a new one", state(vm), "the copy", state(copy), flush=True)
if os.fork() == 0:
    print("in a child", state(copy), flush=True)
    os._exit(0)
os.wait()
print("and here", state(copy))
"""


@pytest.mark.parametrize("kvm", ["supplied", "host"])
def test_a_copy_is_the_same_machine(kvm_mechanism: Way, made: Path, kvm: str) -> None:
    if kvm == "host" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened here")
    options = ["--state", made, "--kvm", kvm, "--mechanism", kvm_mechanism.mechanism]
    ended = cbit("exec", *options, "--", sys.executable, "-c", COPIES)
    assert 0 == ended.returncode, ended.stderr
    lines = ended.stdout.splitlines()
    assert ["itself (1, 1) a copy (1, 1) another ENOTTY", "a new one ENOTTY the copy (1, 1)"] == lines[:2]
    # LIMITATIONS: the supplied one answers a child too.
    child = "(1, 1)" if kvm == "supplied" else "EIO"
    assert [f"in a child {child}", "and here (1, 1)"] == lines[2:]
    if kvm == "host":
        assert "is a virtual machine of another process" in ended.stderr
