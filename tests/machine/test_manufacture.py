"""The emulated vendor: visibly not AMD, and consistent with itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cbit.crypto import amd_cert, ec, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.machine.manufacture import ARK_KEY_ID, ASK_KEY_ID, load_vendor_key, manufacture
from cbit.machine.profiles import PROFILES
from cbit.secure_processor.image import vendor_key_hash
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import SevCert
from cbit.testing.worlds import a_root
from machine.worlds import state


def test_the_root_says_simulated(tmp_path: Path) -> None:
    folder = state(tmp_path)
    assert b"SIMULATED" in ARK_KEY_ID
    assert b"SIMULATED" in ASK_KEY_ID
    assert ARK_KEY_ID in folder.read("certs/ark.cert")
    assert "SIMULATED" in json.loads(folder.read("cbit.json"))["root"]


def test_the_fuses_hold_the_hash_of_the_vendors_key(tmp_path: Path) -> None:
    folder = state(tmp_path)
    vendor = load_vendor_key(folder.read("manufacturer/vendor.pem"))
    assert vendor_key_hash(vendor.public_key()) == folder.fuses().vendor_key_hash


def test_the_chips_certificate_is_the_chips(tmp_path: Path) -> None:
    folder = state(tmp_path)
    cek = SevCert.parse(folder.read("certs/cek.cert"))
    public = sev_cert.public_key(cek)
    assert bytes(ec.encode_public(public)) == bytes(ec.encode_public(folder.fuses().cek().public_key()))
    ask, ark = (AmdCert.parse(folder.read(f"certs/{name}.cert")) for name in ("ask", "ark"))
    assert bytes(ask) + bytes(ark) == folder.read("certs/ask_ark.cert")
    assert amd_cert.pin(ark) == amd_cert.pin(a_root("naples").ark)


@pytest.mark.parametrize("same", [True, False])
def test_a_seed_makes_a_chip(tmp_path: Path, same: bool) -> None:
    chips = []
    for number, seed in enumerate(("a", "a" if same else "b")):
        path = tmp_path / str(number)
        manufacture(path, PROFILES["naples"], entropy=SeededEntropy(seed), root=a_root("naples"))
        chips.append((path / "chip/fuses.bin").read_bytes())
    assert (chips[0] == chips[1]) is same


def test_nobody_sees_the_roots_private_keys_by_accident() -> None:
    shown = repr(a_root("naples"))
    assert "RSAPrivateKey" not in shown
    assert f"{a_root('naples').ark_key.private_numbers().d:x}" not in shown
