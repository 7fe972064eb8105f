"""A launcher around the echo device, as a process of its own: signals, adoption and its exit belong to it.

    run.py [--mechanism M] [--nobody] [--kernel-vm | --supplied-kvm] [--report FILE] -- PROGRAM ARGUMENTS

The report says what the device saw, what the trace said, and how many descriptors were open before and after.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from cbit.cpu.cpuid import Registers
from cbit.redirect.errors import RedirectError
from cbit.redirect.files import SEV, SEV_GUEST, Kvm, Mechanism, sev_files
from cbit.redirect.kvm import SuppliedKvm
from cbit.redirect.kvm_requests import KVM_VM
from cbit.redirect.launcher import start
from cbit.redirect.tracer import Tracer
from cbit.trace import Event, Trace
from redirect.echo import Behind, Echo

NOBODY = 65534
GETPPID = 110


def become_nobody() -> None:
    """Give all privileges up; the process stays dumpable, as if an ordinary user had started it."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mechanism", type=Mechanism)
    parser.add_argument("--nobody", action="store_true")
    parser.add_argument("--kernel-vm", action="store_true")
    parser.add_argument("--supplied-kvm", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--report", type=Path)
    parser.add_argument("program", nargs="+")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    report: Any = os.open(args.report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) if args.report else None
    if args.nobody:
        become_nobody()
    kvm = Kvm.HOST if args.kernel_vm else Kvm.SUPPLIED if args.supplied_kvm else Kvm.NONE
    files = sev_files(kvm=kvm, guest=True)
    device = Echo()
    behind = Behind()
    events: list[Event] = []
    trace = Trace()
    devices: dict[str, Any] = {SEV: device, SEV_GUEST: device}
    if args.kernel_vm:
        devices[KVM_VM] = device
    if args.supplied_kvm:
        devices |= SuppliedKvm(behind, trace).devices
    # CLTS faults in every program, as CPUID does where it can be made to; getppid stands for arch_prctl.
    tracer = None
    if args.trace:
        tracer = Tracer(
            lambda a, c: Registers(a + 1, a + 2, c + 3, a + c),
            instruction=b"\x0f\x06",
            prepare=(GETPPID, 0, 0),
        )
    before = len(os.listdir("/proc/self/fd"))
    with trace.watched_by(events.append):
        try:
            with start(args.program, files, mechanism=args.mechanism, tracer=tracer, trace=trace) as target:
                mechanism, why = target.mechanism, target.why
                ending = target.serve(devices)
        except RedirectError as error:
            print(f"cbit: {error}", file=sys.stderr)
            return error.exit_code
    if report is not None:
        seen = {
            "mechanism": mechanism,
            "why": why,
            "commands": device.commands,
            "opened": device.opened,
            "closed": device.closed,
            "opened_by": device.opened_by,
            "descriptors": [before, len(os.listdir("/proc/self/fd"))],
            "answered": tracer.answered if tracer else 0,
            "prepared": tracer.prepared if tracer else [],
            "pid": os.getpid(),
            "behind": behind.lines,
            "reasons": [f"{event.what}: {event.why}" for event in events if event.part == "driver"],
            "ioctl_events": sum(event.what == "ioctl" for event in events),
        }
        os.write(report, json.dumps(seen).encode())
    return ending.pass_on()


if __name__ == "__main__":
    sys.exit(main())
