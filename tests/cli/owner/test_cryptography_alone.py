"""A clean environment with ``cryptography`` and nothing else runs every verb of the owner."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

import cbit
from cbit.cli.owner import STEPS
from cbit.cli.owner.measure_arguments import HYPERVISORS, MODES, SECTIONS, VARIANTS
from cbit.owner.measure import Mode, Sections
from cbit.owner.vmsa import Hypervisor, Variant
from cli.owner.day import platform_launches
from owner.broker_worlds import SEV_WISHES, guest_key, pem_of
from owner.images import an_image
from owner.snp_worlds import real_paths
from owner.worlds import CASE, VECTORS, emulated

SOURCES = Path(cbit.__file__).parents[1]
ALLOWED = {"cryptography", "cffi", "pycparser", "_cffi_backend", "pip", "setuptools", "wheel"}


def test_the_words_of_the_command_line_are_those_of_the_library() -> None:
    assert list(Mode) == list(MODES)
    assert list(Variant) == list(VARIANTS)
    assert list(Hypervisor) == list(HYPERVISORS)
    assert list(Sections) == list(SECTIONS)


def test_every_step_says_in_the_list_what_it_says_itself() -> None:
    for name, text in STEPS.items():
        assert text == importlib.import_module(f"cbit.cli.owner.{name}").HELP


class Clean:
    """An environment of its own, in which only ``cryptography`` is installed."""

    def __init__(self, folder: Path) -> None:
        self.steps: set[str] = set()
        venv.create(folder, with_pip=True)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        pip = [
            str(self.python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "cryptography>=44",
        ]
        ended = subprocess.run(pip, env=self.environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            pytest.skip(f"pip cannot install cryptography here: {ended.stderr.strip().splitlines()[-1:]}")
        paths = subprocess.run(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        Path(paths.stdout.strip(), "cbit.pth").write_text(str(SOURCES))

    def __call__(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        self.steps.add(str(words[1]))
        ended = subprocess.run(
            [self.python, "-W", "error", "-m", "cbit", *map(str, words), "--json"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (code, "") == (ended.returncode, ended.stderr), ended.stdout + ended.stderr
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    def installed(self) -> set[str]:
        program = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
        ended = subprocess.run(
            [self.python, "-c", program], env=self.environment, capture_output=True, text=True, check=True
        )
        return {name.lower() for name in ended.stdout.split()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_verb_runs_with_cryptography_alone(tmp_path: Path) -> None:
    clean = Clean(tmp_path / "venv")
    assert clean.installed() <= ALLOWED
    certs = emulated().write(tmp_path / "certs")
    trust = ("--trust", certs / "ark.cert")
    clean("owner", "verify", certs, *trust)
    clean("owner", "session", "--chain", certs, *trust, "--policy", "NODBG", "--out", tmp_path / "launch")
    firmware = tmp_path / "fw.fd"
    firmware.write_bytes(an_image())
    receipt = tmp_path / "launch.json"
    receipt.write_text(platform_launches(tmp_path / "launch", firmware).to_json())
    keys = ("--tk", tmp_path / "launch" / "tmp_tk.bin")
    measure = (
        "owner",
        "measure",
        "--mode",
        "sev",
        "--firmware",
        firmware,
        *keys,
        "--launch-receipt",
        receipt,
    )
    checked = tmp_path / "checked.json"
    clean(*measure, "--receipt", checked)
    clean(*measure, "--explain")
    snp = ("owner", "measure", "--mode", "snp", "--firmware", firmware, "--vcpu-type", "EPYC-Milan")
    digest = clean(*snp)["result"]["digest"]
    clean(*snp, "--explain", "--expect", "00" * 48, "--time-limit", "1", code=1)
    (tmp_path / "passphrase").write_text("correct horse")
    clean("owner", "secret", "--receipt", checked, *keys, "--raw", tmp_path / "passphrase", "--out", tmp_path)
    leaf, chain = real_paths("virtee")
    report = VECTORS / "snp-report" / "virtee_milan_v2_report.hex"
    clean("owner", "report", report, "--vcek", leaf, "--ca", chain)
    clean("owner", "report", CASE / "attestation_report.bin", "--chain", certs, *trust)
    wishes = tmp_path / "wishes.toml"
    wishes.write_text("[policy]\ndebug = false\n")
    clean("owner", "validate", report, "--want", wishes)
    clean("owner", "vmsa", "build", "--vcpu-type", "EPYC-Milan", "--out", tmp_path / "vmsa.bin")
    clean("owner", "vmsa", "show", tmp_path / "vmsa.bin")
    key = tmp_path / "id.pem"
    key.write_bytes(pem_of(guest_key()))
    block = ("--digest", digest, "--policy", "0x30000", "--id-key", key, "--out", tmp_path / "id")
    clean("owner", "idblock", "create", *block)
    clean("owner", "idblock", "check", tmp_path / "id" / "id_block.bin", tmp_path / "id" / "id_auth.bin")
    broker = tmp_path / "broker"
    clean("owner", "serve", "init", "--store", broker, "--name", "localhost")
    (tmp_path / "sev.toml").write_text(SEV_WISHES)
    add = ("--kind", "sev", "--want", tmp_path / "sev.toml", "--raw", tmp_path / "passphrase")
    clean("owner", "serve", "add", "web", "--store", broker, *add)
    clean("owner", "serve", "audit", "--store", broker)
    assert clean.steps == set(STEPS)
