"""The supplied KVM keeps the kernel's books: what can be made, what is refused, when a machine ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cbit.redirect.files import REQUEST_NAMES
from cbit.redirect.kvm_requests import KVM, KVM_VCPU, KVM_VM, REQUESTS, Cap, Does
from redirect.conftest import Way, run

PRELUDE = """
import ctypes, errno, fcntl, mmap, os, struct, sys, time
OP, REGION = 0xC008AEBA, 0x4020AE46

def ask(fd, request, argument=0):
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        return errno.errorcode[error.errno]

def slot(vm, *fields):
    return ask(vm, REGION, struct.pack("<IIQQQ", *fields))

def region(vm, *fields):
    answer = slot(vm, *fields)
    return answer if isinstance(answer, str) else "ok"
kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
"""

BOOKS = (
    PRELUDE
    + """
print("version", ask(kvm, 0xAE00), ask(kvm, 0xAE00, 1), "area", ask(kvm, 0xAE04), ask(kvm, 0xAE04, 1))
known, unknown = (3, 9, 10, 21, 30, 66, 81, 128, 235), (1, 2, 10**6)
print("extensions", [ask(kvm, 0xAE03, number) for number in known + unknown])
print("types", [ask(kvm, 0xAE01, kind) for kind in (1, 4, 5, 1 << 30)])
vm = ask(kvm, 0xAE01, 0)
print("a machine", vm > kvm, "close on exec", fcntl.fcntl(vm, fcntl.F_GETFD))
print("it has", ask(vm, 0xAE03, 10), "encryption", ask(vm, OP))
cpu = ask(vm, 0xAE41, 0)
area = mmap.mmap(cpu, 12288)
area[0] = 7
print("a processor", cpu > vm, "its area", area[0], area[12287], "run", ask(cpu, 0xAE80))
print("again", ask(vm, 0xAE41, 0), "too high", ask(vm, 0xAE41, 64), "refused behind", ask(vm, 0xAE41, 5))
print("refused leaves the number", ask(vm, 0xAE41, 5), "the next", ask(vm, 0xAE41, 6) > cpu)
print("wrong kinds", ask(kvm, 0xAE41, 1), ask(vm, 0xAE00), ask(cpu, OP), ask(vm, 0xAE80), ask(cpu, 0xAE60))
page = 0x100000
print("slots", region(vm, 0, 0, 0, 0x2000, page), region(vm, 1, 3, 0x2000, 0x1000, page))
print("overlap", region(vm, 2, 0, 0x1000, 0x2000, page), region(vm, 0, 0, 0x2000, 0x2000, page))
odd = (1, 4096, page), (0x8000, 5, page), (0x8000, 4096, 7)
print("unaligned", [region(vm, 3, 0, *words) for words in odd])
print("flags", region(vm, 3, 4, 0x8000, 4096, page), "number", region(vm, 509, 0, 0x8000, 4096, page))
print("nobody's", region(vm, 3, 0, 0x8000, 4096, 1 << 47), region(vm, 3, 0, 0x8000, 1 << 48, page))
print("wraps", region(vm, 3, 0, (1 << 64) - 4096, 0x2000, page))
print("larger", region(vm, 0, 0, 0, 0x3000, page), "read-only", region(vm, 0, 2, 0, 0x2000, page))
print("logged", region(vm, 0, 1, 0, 0x2000, page), "moved", region(vm, 0, 0, 0x10000, 0x2000, page))
print("gone", region(vm, 0, 0, 0, 0, 0), region(vm, 0, 0, 0, 0, 0))
print("bad pointer", ask(vm, REGION, 8))
"""
)

SAID = """\
version 12 EINVAL area 12288 EINVAL
extensions [1, 64, 509, 1, 1, 64, 1, 64, 13, 0, 0, 0]
types ['EINVAL', 'EINVAL', 'EINVAL', 'EINVAL']
a machine True close on exec 1
it has 509 encryption 101
a processor True its area 7 0 run ENOTSUP
again EEXIST too high EINVAL refused behind EBUSY
refused leaves the number EBUSY the next True
wrong kinds ENOTTY ENOTTY ENOTTY ENOTTY ENOTTY
slots ok ok
overlap EEXIST EEXIST
unaligned ['EINVAL', 'EINVAL', 'EINVAL']
flags EINVAL number EINVAL
nobody's EINVAL EINVAL
wraps EINVAL
larger EINVAL read-only EINVAL
logged ok moved ok
gone ok EINVAL
bad pointer EFAULT
"""

LIVES = (
    PRELUDE
    + """
first, second = ask(kvm, 0xAE01), ask(kvm, 0xAE01)
print(ask(first, OP), ask(second, OP))
copy = os.dup(first)
os.close(first)
print(ask(copy, OP))
if os.fork() == 0:
    print(ask(copy, OP), flush=True)
    os._exit(0)
os.wait()
cpu = ask(copy, 0xAE41, 0)
os.close(copy)
while ask(cpu, 0xAE80) != "ENOTTY":  # the machine is gone, and its processors with it
    time.sleep(0.001)
os.write(second, b"means nothing")
print(ask(second, OP))
third = ask(kvm, 0xAE01)
print(ask(third, OP))
os.kill(os.getpid(), 9)
"""
)


def test_the_books_are_the_kernels(kvm_mechanism: Way, report_at: Path) -> None:
    ran = run(kvm_mechanism, report_at, sys.executable, "-c", BOOKS, extra=("--supplied-kvm",))
    assert SAID == ran.out, ran.err
    assert "KVM_RUN: this KVM launches guests and runs none; cbit run does" in ran.report["reasons"]
    assert "KVM_CREATE_VM: type 0x4 is none of [0, 2, 3]" in ran.report["reasons"]
    assert "KVM_SET_USER_MEMORY_REGION: slot 2: slot 0 has memory there already" in ran.report["reasons"]
    assert "KVM_GET_API_VERSION: argument 0x1: it has none" in ran.report["reasons"]
    assert "KVM_CREATE_IRQCHIP: cbit's anon_inode:kvm-vcpu does not answer it" in ran.report["reasons"]
    assert "KVM_CREATE_VCPU: cbit's /dev/kvm does not answer it" in ran.report["reasons"]
    assert ran.report["reasons"][-1].startswith("KVM_SET_USER_MEMORY_REGION: the caller has no such memory")
    assert [
        "1: open",
        "1: 0xae01 0",
        "1: 0xae41 0",
        "1: 0xae41 5",
        "1: 0xae41 5",
        "1: 0xae41 6",
        "1: close",
    ] == (ran.report["behind"])


def test_a_machine_ends_with_its_last_descriptor(kvm_mechanism: Way, report_at: Path) -> None:
    ran = run(kvm_mechanism, report_at, sys.executable, "-u", "-c", LIVES, extra=("--supplied-kvm",))
    assert "101 102\n101\n101\n102\n103\n" == ran.out, ran.err
    assert ["1: close"] == [line for line in ran.report["behind"] if "close" in line][:1]
    assert {"1: close", "2: close", "3: close"} == {line for line in ran.report["behind"] if "close" in line}
    assert 3 == sum("close" in line for line in ran.report["behind"]), "once each"
    assert ran.report["descriptors"][0] == ran.report["descriptors"][1]


def test_a_thousand_machines_leave_nothing_behind(kvm_mechanism: Way, report_at: Path) -> None:
    script = PRELUDE + "for _ in range(1000):\n    vm = ask(kvm, 0xAE01)\n    cpu = ask(vm, 0xAE41, 0)\n"
    script += "    os.close(cpu)\n    os.close(vm)\n"
    ran = run(kvm_mechanism, report_at, sys.executable, "-c", script, extra=("--supplied-kvm",))
    assert 0 == ran.code, ran.err
    assert 1000 == sum("close" in line for line in ran.report["behind"])
    assert ran.report["descriptors"][0] == ran.report["descriptors"][1]


REFUSED = (
    PRELUDE
    + """
vm = ask(kvm, 0xAE01)
cpu = ask(vm, 0xAE41, 0)
room = bytearray(4096)
mirror = bytearray(struct.pack("<I100x", 197))
print(ask(vm, 0x4068AEA3, mirror), ask(cpu, 0x4068AEA3, room), ask(vm, 0xAECE))
print(ask(cpu, 0xAECE), ask(cpu, 0xAEA3))
print(ask(kvm, 0xC008AE09, room), ask(vm, 0xAE45), ask(cpu, 0xAE9A), ask(kvm, 0xAEFF), ask(0, 0xAE45))
print(ask(99, 0xAE01), ask(99, 0xAE45), ask(kvm, 0xAE04, 5), ask(0, 0xAE01))
"""
)


def test_whatever_is_refused_is_explained(kvm_mechanism: Way, report_at: Path) -> None:
    """Hypervisors stop at their first unanswered request with a bare errno: here it is named."""
    ran = run(kvm_mechanism, report_at, sys.executable, "-c", REFUSED, extra=("--supplied-kvm",))
    assert 0 == ran.code, ran.err
    refused = {row.name: row for row in REQUESTS.values() if row.does is Does.REFUSES}
    assert {"KVM_ENABLE_CAP", "KVM_GET_STATS_FD", "KVM_GET_TSC_KHZ"} == set(refused)
    assert "KVM_ENABLE_CAP" == next(iter(refused))
    capabilities = (f"capability {number}: " for number in (197, 0))
    expected = [
        f"{name}: {next(capabilities) if name == 'KVM_ENABLE_CAP' else ''}{row.about}"
        for name, row in refused.items()
        for _ in row.on
    ]
    expected += [
        f"request {request:#x}: cbit's {name} does not answer it"
        for request, name in ((0xC008AE09, KVM), (0xAE45, KVM_VM), (0xAE9A, KVM_VCPU), (0xAEFF, KVM))
    ]
    expected += ["KVM_CREATE_VM: no descriptor 99", "request 0xae45: no descriptor 99"]
    expected += ["KVM_GET_VCPU_MMAP_SIZE: argument 0x5: it has none"]
    assert expected == ran.report["reasons"], "and not what concerns somebody else's file"
    assert ["ENOTTY"] * 10 == ran.out.split()[:10]
    assert "EBADF EBADF EINVAL ENOTTY" == ran.out.splitlines()[-1]


def test_the_kernels_header_has_the_same_numbers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    header = subprocess.run(
        [compiler, "-E", "-dM", "-include", "linux/kvm.h", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = {name: number for number, name in REQUEST_NAMES.items()}
    ours |= {f"KVM_CAP_{cap.name}": int(cap) for cap in Cap if f"KVM_CAP_{cap.name} " in header.stdout}
    assert len(REQUEST_NAMES) + len(Cap) - 1 <= len(ours), "VM_TYPES is newer than many headers"
    names = sorted(ours)
    prints = "".join(f'printf("%s %lu\\n", "{name}", (unsigned long){name});' for name in names)
    source = tmp_path / "numbers.c"
    headers = "".join(f"#include <{name}>\n" for name in ("stdio.h", "linux/kvm.h", "linux/psp-sev.h"))
    source.write_text(f"{headers}int main(void) {{ {prints} return 0; }}\n")
    built = subprocess.run(
        [compiler, "-o", tmp_path / "numbers", source], capture_output=True, text=True, check=False
    )
    if ".h: No such file" in built.stderr:
        pytest.skip("the kernel's headers are not here: apt install linux-libc-dev")
    assert 0 == built.returncode, built.stderr
    said = subprocess.run([tmp_path / "numbers"], capture_output=True, text=True, check=True).stdout
    assert ours == {name: int(number) for name, number in (line.split() for line in said.splitlines())}


def test_the_file_is_a_character_device(kvm_mechanism: Way, report_at: Path) -> None:
    ran = run(kvm_mechanism, report_at, "test", "-c", "/dev/kvm", extra=("--supplied-kvm",))
    assert 0 == ran.code
