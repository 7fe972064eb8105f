"""What the supplied KVM says of a new machine is what the kernel's own says, where there is one to ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from redirect.conftest import Way, environment, run

SCRIPT = """
import errno, fcntl, os, struct
from cbit.redirect.kvm_requests import REQUESTS, argument_size
number = {row.name.removeprefix("KVM_"): request for request, row in REQUESTS.items()}

def ask(fd, name, argument=0):
    request = number[name]
    room = bytearray(argument) if isinstance(argument, bytes) else argument
    try:
        result = fcntl.ioctl(fd, request, room)
    except OSError as error:
        return errno.errorcode[error.errno]
    return bytes(room) if request >> 31 else result

def size(name):
    return bytes(argument_size(number[name]))

def show(what, answer, but=()):
    if isinstance(answer, bytes):
        words = {at: answer[at : at + 8].hex() for at in range(0, len(answer), 8)}
        answer = " ".join(f"{at:x}:{word}" for at, word in words.items() if int(word, 16) and at not in but)
    print(what, answer)

kvm = os.open("/dev/kvm", os.O_RDWR)
vm = ask(kvm, "CREATE_VM")
early = "SET_GSI_ROUTING", "CREATE_PIT2", "IRQ_LINE", "SIGNAL_MSI", "IRQFD", "GET_IRQCHIP", "SET_IRQCHIP"
for name in early:
    print("no controllers", name, ask(vm, name, size(name)))
cpu = ask(vm, "CREATE_VCPU", 9)
show("alone", ask(cpu, "GET_LAPIC", size("GET_LAPIC")))
show("alone", ask(cpu, "GET_MP_STATE", size("GET_MP_STATE")))
print("late", ask(vm, "CREATE_IRQCHIP"))
vm = ask(kvm, "CREATE_VM")
print("controllers", ask(vm, "CREATE_IRQCHIP"), ask(vm, "CREATE_IRQCHIP"))
show("no timer", ask(vm, "GET_PIT2", size("GET_PIT2")))
print("timer", ask(vm, "CREATE_PIT2", size("CREATE_PIT2")), ask(vm, "CREATE_PIT2", size("CREATE_PIT2")))
for which in range(4):
    show(f"controller {which}", ask(vm, "GET_IRQCHIP", struct.pack("<II512x", which, 0)))
show("timer", ask(vm, "GET_PIT2", size("GET_PIT2")), but=(0x10, 0x28, 0x40))  # when they were loaded
for which in range(2):
    cpu = ask(vm, "CREATE_VCPU", which)
    for name in ("REGS", "SREGS", "FPU", "LAPIC", "MP_STATE", "VCPU_EVENTS", "DEBUGREGS", "XSAVE", "XCRS"):
        but = (0x1D0,) if name == "XSAVE" else ()  # which parts of the state that computer has
        show(f"{which} {name}", ask(cpu, "GET_" + name, size("GET_" + name)), but)
    wanted = (0x1B, 0x277, 0x179, 0x17A, 0x17B, 0x400, 0x404, 0x11, 0x12, 0xC0000081, 0xC0000103)
    entries = b"".join(struct.pack("<IIQ", msr, 0, 0) for msr in wanted)
    show("registers", ask(cpu, "GET_MSRS", struct.pack("<II", len(wanted), 0) + entries))
    for count in (256, 257):
        print("too many", count, ask(cpu, "GET_MSRS", struct.pack("<II4096x", count, 0)) == "E2BIG")
    print("none", ask(cpu, "SET_MSRS", struct.pack("<IIIIQ", 1, 0, 0x12345, 0, 0)))
    for wanted in (0, 1, 33, 1 << 9 | 1, 1 << 24 | 10):
        print("machine checks", ask(cpu, "X86_SETUP_MCE", struct.pack("<Q", wanted)))
    show("entries", ask(cpu, "GET_CPUID2", size("GET_CPUID2")))
    print("entries", ask(cpu, "SET_CPUID2", struct.pack("<II", 257, 0)))
for head in ((0, 1), (4097, 0), (0, 0)):
    print("routes", ask(vm, "SET_GSI_ROUTING", struct.pack("<II", *head)))
print("log", ask(vm, "GET_DIRTY_LOG", struct.pack("<IIQ", 0, 0, 0)))
print("lists", ask(kvm, "GET_MSR_INDEX_LIST", bytes(4)), ask(kvm, "GET_SUPPORTED_CPUID", bytes(8)))
show("machine checks", ask(kvm, "X86_GET_MCE_CAP_SUPPORTED", bytes(8)))
"""


def test_a_new_machine_is_as_the_kernels_own(kvm_mechanism: Way, report_at: Path) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be used here, so nobody says what the kernel's own is like")
    words = [sys.executable, "-c", SCRIPT]
    kernels = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout
    ours = run(kvm_mechanism, report_at, *words, extra=("--supplied-kvm",))
    assert 0 == ours.code, ours.err
    assert kernels.splitlines() == ours.out.splitlines()
    assert 60 < len(kernels.splitlines())
