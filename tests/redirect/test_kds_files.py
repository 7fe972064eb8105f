"""Every address gets an answer, and never a file that is not the vendor's to publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.machine.state_folder import StateError
from cbit.redirect.kds_files import Published

CHIP = "ab" * 64
KDS = Published("naples", CHIP, b"the CEK", b"the root", b"the chain")

PIECES = st.sampled_from(
    ["cek", "id", "vcek", "v1", "Milan", "cert_chain", "..", "", CHIP, "ask_ark_naples.cert"]
)


@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=5).map(lambda names: "/" + "/".join(names))))
def test_any_target_is_answered(target: str) -> None:
    reply = KDS.answer(target)
    assert reply.status in {200, 400, 404, 501}
    assert (reply.status == 200) is (reply.body in {b"the CEK", b"the root"})


def test_what_is_no_address_is_400() -> None:
    assert 400 == KDS.answer("http://[").status


def test_the_query_does_not_matter_and_the_host_may_be_there() -> None:
    assert b"the CEK" == KDS.answer(f"https://kdsintf.amd.com/cek/id/{CHIP}?x=1").body


@pytest.mark.parametrize("damage", ["nonsense", "{}", "[]", json.dumps({"profile": "naples"})])
def test_a_damaged_folder_is_said(tmp_path: Path, damage: str) -> None:
    (tmp_path / "certs").mkdir()
    for name in ("pdh", "pek", "oca", "cek", "ask_ark"):
        (tmp_path / f"certs/{name}.cert").write_bytes(bytes(0x824))
    (tmp_path / "cbit.json").write_text(damage)
    with pytest.raises(StateError, match="damaged, or of an older cbit"):
        Published.read(tmp_path)


def test_a_short_certificate_is_said(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    for name in ("pdh", "pek", "oca", "cek", "ask_ark"):
        (tmp_path / f"certs/{name}.cert").write_bytes(bytes(0x823))
    (tmp_path / "cbit.json").write_text(json.dumps({"profile": "naples", "chip_id": CHIP}))
    with pytest.raises(StateError, match="has not 0x824 bytes"):
        Published.read(tmp_path)
