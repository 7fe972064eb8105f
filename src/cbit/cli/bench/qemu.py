"""Unmodified QEMU from its start to the launch measurement, beside the same QEMU alone to its greeting.

Both are held before the guest's first instruction (``-S``).  What is ours in the difference: the launcher, a
machine that is powered on, LAUNCH_START, LAUNCH_UPDATE_DATA of the firmware, LAUNCH_MEASURE.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import cbit
from cbit.cli.bench.figure import Figure, Skipped, medians
from cbit.crypto.entropy import SystemEntropy
from cbit.machine.manufacture import make_root, manufacture
from cbit.machine.profiles import DEFAULT, profile
from cbit.redirect.errors import RedirectError
from cbit.redirect.kvm_requests import KVM

PROGRAM: Final = "qemu-system-x86_64"
FIRMWARE: Final = Path("/usr/share/ovmf/OVMF.fd")
NAME: Final = "QEMU to measurement"
_WORDS: Final = ("-accel", "kvm", "-cpu", "qemu64", "-m", "128", "-S", "-display", "none", "-nodefaults")


def figure(folder: Path, rounds: int) -> Figure | Skipped:
    """Measure it, where QEMU, its firmware and KVM are."""
    program = shutil.which(PROGRAM)
    why = (
        f"{PROGRAM} is not installed"
        if program is None
        else f"{FIRMWARE} is not installed"
        if not FIRMWARE.exists()
        else "/dev/kvm cannot be used here"
        if not os.access(KVM, os.R_OK | os.W_OK)
        else ""
    )
    if program is None or why:
        return Skipped("redirect", NAME, why)
    state = folder / "for-qemu"
    manufacture(state, profile(DEFAULT), entropy=SystemEntropy(), root=make_root(2048))
    drive = ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}", "-qmp", "stdio")
    plain = [program, *_WORDS, "-machine", "q35", *drive]
    # CPUID is not answered: 0 is what fits.
    guest = "sev-guest,id=sev0,cbitpos=0,reduced-phys-bits=1,policy=1"
    secret = ["-machine", "q35,smm=off,confidential-guest-support=sev0", "-object", guest]
    run = [sys.executable, "-m", "cbit", "exec", "--state", str(state), "--kvm", "host", "--"]
    encrypted = [*run, program, *_WORDS, *secret, *drive]
    _seconds(encrypted, "query-sev-launch-measure")  # the first start of the machine makes its keys
    times = [
        (1e3 * _seconds(encrypted, "query-sev-launch-measure"), 1e3 * _seconds(plain, "query-status"))
        for _ in range(rounds)
    ]
    ours, limit, ratio = medians(times)
    return Figure("redirect", NAME, ours, limit, "ms", ratio, "QEMU: without SEV, to its first answer")


def _seconds(words: Sequence[str], question: str) -> float:
    """Start QEMU, ask once; return how long it took to the answer.

    Raises:
        RedirectError: it ended, or refused.
    """
    begun = time.perf_counter()
    with _started(words) as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()  # the greeting
        for what in ("qmp_capabilities", question):
            process.stdin.write(json.dumps({"execute": what}) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
            if "return" not in answer:
                raise RedirectError(f"QEMU does not answer {what}: {answer or 'it ended'}")
        return time.perf_counter() - begun


@contextmanager
def _started(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    where = {"PYTHONPATH": str(Path(cbit.__file__).parents[1])}
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | where,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
