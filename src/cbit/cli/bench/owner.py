"""The owner's half: digests against `sev-snp-measure` and bare hashing, reports against P-384, the broker.

The launch that is measured has 64 vCPUs, a kernel of 8 MiB and an initrd of 64 MiB.  As a command, ours
hashes on one processor while it loads itself on another: where other programs keep all busy, it has no lead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cbit.cli.bench import owner_world
from cbit.cli.bench.figure import Figure, Skipped, medians, pairs
from cbit.owner.measure import Image, Kernel, Launch, Mode
from cbit.owner.verify.report import verify_report
from cbit.owner.vmsa import Vcpus
from cbit.spec.snp_report import SIGNED_SIZE, SnpReport

MIB: Final = 1 << 20
FIRMWARE_MIB: Final = (2, 16)
INITRD: Final = 64 * MIB
KERNEL: Final = 8 * MIB
VCPUS: Final = 64
CPU, SIGNATURE = "EPYC-Milan", 0x00A00F11
CMDLINE: Final = "console=ttyS0 root=/dev/vda1"
REPORTS: Final = 100  # in each run
RELEASES: Final = 20  # likewise

PEER: Final = "sev-snp-measure"
INSTALL: Final = "pipx install sev-snp-measure==0.0.13 (or set CBIT_SEV_SNP_MEASURE)"


@dataclass(frozen=True, slots=True)
class Files:
    """A kernel and an initrd, and where they are."""

    kernel: bytes
    initrd: bytes
    folder: Path


def figures(rounds: int) -> list[Figure | Skipped]:
    """Measure all of it."""
    with _files() as files:
        found: list[Figure | Skipped] = []
        for size in FIRMWARE_MIB:
            firmware = owner_world.firmware(size * MIB)
            found += [_command(files, firmware, rounds), _in_process(files, firmware, rounds)]
    return [*found, _reports(rounds), _releases(rounds)]


@contextmanager
def _files() -> Iterator[Files]:
    with tempfile.TemporaryDirectory(prefix="cbit-bench-") as name:
        files = Files(os.urandom(KERNEL), os.urandom(INITRD), Path(name))
        (files.folder / "kernel").write_bytes(files.kernel)
        (files.folder / "initrd").write_bytes(files.initrd)
        yield files


def _command(files: Files, firmware: bytes, rounds: int) -> Figure | Skipped:
    name = f"SNP digest, {len(firmware) // MIB} MiB, command"
    peer = shutil.which(os.environ.get("CBIT_SEV_SNP_MEASURE", PEER))
    if peer is None:
        return Skipped("owner", name, f"{PEER} is not here: {INSTALL}")
    path = files.folder / "firmware"
    path.write_bytes(firmware)
    launch = ["--mode", "snp", "--vcpus", str(VCPUS), "--vcpu-type", CPU, "--append", CMDLINE]
    launch += ["--kernel", str(files.folder / "kernel"), "--initrd", str(files.folder / "initrd")]
    # Both find their compiled modules, as an installed program does; the warm-up of ``pairs`` compiles them.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(files.folder / "compiled")
    digests: set[str] = set()

    def call(*words: str) -> None:
        ended = subprocess.run([*words, *launch], env=environment, capture_output=True, text=True, check=True)
        digests.add(ended.stdout.strip())

    ours = [*_cbit(), "owner", "measure", "--output", "hex", "--firmware", str(path)]
    times = pairs(lambda: call(*ours), lambda: call(peer, "--ovmf", str(path)), rounds)
    if len(digests) != 1:
        raise ValueError(f"{PEER} and cbit give different digests for the same launch: {sorted(digests)}")
    own, limit, ratio = medians(times)
    return Figure("owner", name, own * 1e3, limit * 1e3, "ms", ratio, f"{PEER} on the same files", "<= 0.6")


def _cbit() -> list[str]:
    script = Path(sys.executable).with_name("cbit")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "cbit"]


def _in_process(files: Files, firmware: bytes, rounds: int) -> Figure:
    def ours() -> None:
        Launch(
            mode=Mode.SNP,
            image=Image(firmware),
            kernel=Kernel(kernel=files.kernel, initrd=files.initrd, cmdline=CMDLINE),
            vcpus=Vcpus(count=VCPUS, signature=SIGNATURE),
        ).digest()

    def bare() -> None:
        hashlib.sha384(firmware).digest()
        hashlib.sha256(files.kernel).digest()
        hashlib.sha256(files.initrd).digest()

    own, limit, ratio = medians(pairs(ours, bare, rounds))
    name = f"SNP digest, {len(firmware) // MIB} MiB"
    against = "SHA-384 of the firmware, SHA-256 of kernel and initrd, one after the other"
    return Figure("owner", name, own * 1e3, limit * 1e3, "ms", ratio, against, "<= 1.3")


def _reports(rounds: int) -> Figure:
    world = owner_world.snp()
    report = SnpReport.parse(world.report, canonical=False)
    signature, signed = encode_dss_signature(report.r, report.s), world.report[:SIGNED_SIZE]
    key, algorithm = world.endorser.key, ECDSA(hashes.SHA384())

    def ours() -> None:
        for _ in range(REPORTS):
            verify_report(world.report, world.endorser)

    def bare() -> None:
        for _ in range(REPORTS):
            key.verify(signature, signed, algorithm)

    return _rate("SNP reports verified", ours, bare, rounds, count=REPORTS).with_bound(
        "one P-384 verification each, under a chain that is verified already", ">= 0.7"
    )


def _releases(rounds: int) -> Figure:
    with owner_world.broker(RELEASES * (rounds + 1)) as (release, commit):

        def ours() -> None:
            for _ in range(RELEASES):
                release()

        def bare() -> None:
            for _ in range(RELEASES):
                commit()

        return _rate("broker releases", ours, bare, rounds, count=RELEASES).with_bound(
            "one durable commit of SQLite each, in the same folder", ""
        )


def _rate(
    name: str, ours: Callable[[], None], bare: Callable[[], None], rounds: int, *, count: int
) -> Figure:
    own, limit, _ = medians(times := pairs(ours, bare, rounds))
    ratio = medians([(limit_s, own_s) for own_s, limit_s in times])[2]  # of rates, not of times
    return Figure("owner", name, count / own, count / limit, "/s", ratio, "")
