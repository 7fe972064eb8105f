"""Kernels of other distributions and of other years boot to a prompt, encrypted and not.

They lie in a folder that CBIT_KERNELS names, as the distributions ship them (vmlinuz-*).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cbit.cli.linux_files import fetch_linux
from cbit.cli.packages import NoPackage
from cbit.guest.linux.user_space import user_space
from engine_here import missing

pytestmark = [pytest.mark.slow, pytest.mark.oracle, pytest.mark.timeout(1200)]

FOLDER = os.environ.get("CBIT_KERNELS", "")
KERNELS = sorted(Path(FOLDER).glob("vmlinuz*")) if FOLDER else []


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := missing():
        pytest.skip(why)
    try:
        files = fetch_linux()
    except NoPackage as error:
        pytest.skip(str(error))
    file = tmp_path_factory.mktemp("initrd") / "initrd"
    file.write_bytes(user_space(files.busybox.read_bytes()))
    return file


@pytest.mark.skipif(not KERNELS, reason="no other kernels are here: CBIT_KERNELS=FOLDER with vmlinuz-* in it")
@pytest.mark.parametrize("mode", ["none", "sme", "sev"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_it_boots_to_a_prompt(kernel: Path, initrd: Path, mode: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = [
        "--mode",
        mode,
        "--kernel",
        str(kernel),
        "--initrd",
        str(initrd),
        "--memory",
        "256M",
        "--seed",
        "1",
    ]
    words += ["--until", "/ #", "--timeout", "900", "--report", str(report)]
    done = subprocess.run([sys.executable, "-m", "cbit", "run", *words], capture_output=True, check=False)
    assert 0 == done.returncode, done.stderr.decode()
    text = "\n".join(json.loads(report.read_text())["console"])
    assert "Linux version" in text
    says = re.findall(
        "Memory Encryption Features active:(?: AMD)? (SEV|SME)", text
    )  # AMD stood first until 5.18
    assert ([] if mode == "none" else [mode.upper()]) == says
    for wrong in ("Call Trace", "ACPI Error", "ACPI BIOS Error", "nobody cared"):
        assert wrong not in text
