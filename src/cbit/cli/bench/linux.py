"""A stock Linux from its first instruction to its prompt: encrypted, plain, with less cache, and under QEMU.

One round boots all of them in turn, each in a process of its own.  Times are the processes' own (user and
system), so that a busy computer does not decide; on an idle one they are what a clock on the wall shows.
Ours counts from loading the image to the prompt, launch and measurement included; QEMU's from the start of
its process.  Kernel, initramfs, command line and memory size are the same.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cbit.cli.bench.figure import Figure, Skipped, medians
from cbit.cli.linux_files import fetch_linux
from cbit.guest.linux.user_space import user_space
from cbit.spec.address import MIB
from cbit.spec.errors import CbitError
from cbit.spec.linux_boot import command_line
from cbit.testing.worlds import a_state

MEMORY: Final = 256 * MIB
PROMPT: Final = "/ # "
PATIENCE: Final = 300  #: seconds for one boot
QEMU: Final = "qemu-system-x86_64"
UNCAPPED: Final = "512M"  #: more than the guest has

#: What is booted, and the words of `cbit run` for it.
OURS: Final[Mapping[str, tuple[str, ...]]] = {
    "plain": ("--mode", "none", "--cache", UNCAPPED),
    "uncapped": ("--mode", "sev", "--cache", UNCAPPED),
    "default": ("--mode", "sev"),
    "16M": ("--mode", "sev", "--cache", "16M"),
}
#: Figure: (what, against what, name, reach).
_FIGURES: Final = (
    ("uncapped", "qemu", "SEV boot, cache uncapped", "<= 1.6"),
    ("default", "qemu", "SEV boot, 32 MiB cache", "<= 2.3"),
    ("uncapped", "plain", "SEV boot against plain", "<= 1.25"),
    ("16M", "uncapped", "SEV boot, 16 MiB cache", "<= 2.2"),
)
_AGAINST: Final = {
    "qemu": "QEMU's TCG: the same kernel, initramfs and command line, without encryption",
    "plain": "--mode none on the same engine, cache uncapped",
    "uncapped": "--mode sev, cache uncapped",
}


class NotBooted(CbitError):
    """A kernel did not come to its prompt; the message has the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What everybody boots.

    Attributes:
        kernel: the kernel.
        initrd: the initramfs.
        state: our machine's folder.
    """

    kernel: Path
    initrd: Path
    state: Path

    def ours(self, *words: str) -> float:
        """Boot with `cbit run`; return its seconds from loading to the prompt.

        Raises:
            NotBooted: it does not come so far.
        """
        command = [sys.executable, "-m", "cbit", "run", "--json", "--state", str(self.state)]
        command += ["--kernel", str(self.kernel), "--initrd", str(self.initrd), "--memory", str(MEMORY)]
        command += ["--until", PROMPT, "--timeout", str(PATIENCE), *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        answer = json.loads(done.stdout)
        if not answer["ok"]:
            raise NotBooted("; ".join(answer["reasons"]))
        return float(answer["result"]["cpu_seconds"])

    def qemu(self) -> float:
        """Boot with QEMU; return its seconds from its start to the prompt (errors as `ours`)."""
        command = [QEMU, "-accel", "tcg", "-m", str(MEMORY // MIB), "-kernel", str(self.kernel)]
        command += ["-initrd", str(self.initrd), "-append", command_line(), "-nodefaults", "-no-reboot"]
        command += ["-display", "none", "-serial", "stdio"]
        begun, seen = time.monotonic(), b""
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert child.stdout is not None
        try:
            while PROMPT.encode() not in seen and time.monotonic() - begun < PATIENCE:
                piece = os.read(child.stdout.fileno(), 1 << 16)
                if not piece:
                    break
                seen += piece
        finally:
            child.kill()
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            child.stdout.close()
        if PROMPT.encode() not in seen:
            raise NotBooted(f"{QEMU} did not come to the prompt: {seen[-200:]!r}")
        return used.ru_utime + used.ru_stime


def figures(rounds: int) -> list[Figure | Skipped]:
    """Boot everything so often.

    Raises:
        NoPackage: there is no kernel to be had here.
        NotBooted: one of them does not boot.
    """
    files = fetch_linux()
    with tempfile.TemporaryDirectory(prefix="cbit-bench-") as folder:
        initrd, state = Path(folder) / "initrd", Path(folder) / "machine"
        initrd.write_bytes(user_space(files.busybox.read_bytes()))
        a_state(state).close()
        boot = Boot(files.kernel, initrd, state)
        ways: dict[str, Callable[[], float]] = {
            name: functools.partial(boot.ours, *words) for name, words in OURS.items()
        }
        if shutil.which(QEMU):
            ways["qemu"] = boot.qemu
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(way())
    return side_by_side(times)


def side_by_side(times: dict[str, list[float]]) -> list[Figure | Skipped]:
    """Set the medians side by side; what has nothing to be compared with says so."""
    made: list[Figure | Skipped] = []
    for what, against, name, reach in _FIGURES:
        if against not in times:
            made.append(Skipped("linux", name, f"{QEMU} is not here: apt install qemu-system-x86"))
            continue
        ours, limit, ratio = medians(list(zip(times[what], times[against], strict=True)))
        made.append(Figure("linux", name, ours, limit, "s", ratio, _AGAINST[against], reach))
    return made
