"""What the owner's commands are tested with: a runner, and the platform's side of a launch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cbit.cli import main
from cbit.crypto import ec, sev_cert
from cbit.crypto.session import unwrap
from cbit.owner.measure import Mode, expect
from cbit.spec.certificate import SevCert
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import Session as Blob
from owner.worlds import a_launch, scalar

PASSPHRASE = b"correct horse battery staple"


@dataclass
class Cli:
    """Runs commands and keeps what they print."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        code = main([*map(str, words), "--json"])
        out, err = self.capsys.readouterr()
        assert "" == err
        found = json.loads(out)
        assert ["cbit", "command", "ok", "reasons", "result"] == list(found)
        assert found["ok"] == (code == 0) == (not found["reasons"])
        return code, found

    def read(self, *words: str | Path) -> tuple[int, str, str]:
        code = main([*map(str, words)])
        out, err = self.capsys.readouterr()
        return code, out, err


def area(base: int, size: int) -> bytes:
    return base.to_bytes(4, "little") + size.to_bytes(4, "little")


def platform_launches(folder: Path, firmware: Path, *, policy: int = 1) -> LaunchReceipt:
    """The platform's side: unwrap the session with the PDH's private key, and measure."""
    godh = SevCert.parse((folder / "godh.cert").read_bytes())
    blob = Blob.parse((folder / "launch_blob.bin").read_bytes())
    keys = unwrap(blob, z=ec.shared_secret(scalar("pdh"), sev_cert.public_key(godh)), policy=policy)
    return a_launch(keys, digest=expect(Mode.SEV, firmware.read_bytes()).digest, policy=policy)


def measure(launch: Path, firmware: Path, reported: Path) -> tuple[str | Path, ...]:
    words = ("owner", "measure", "--mode", "sev", "--firmware", firmware)
    return (*words, "--tk", launch / "tmp_tk.bin", "--launch-receipt", reported)
