from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cbit.spec.kernel_hashes import CMDLINE, INITRD, KERNEL, TABLE, TABLE_SIZE, kernel_hash_table

# origin = launch-inputs.md §3: offset of each entry, its GUID, and the hash of what
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ONE_ZERO_BYTE = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


def test_layout() -> None:
    table = kernel_hash_table(kernel=b"kernel", initrd=b"initrd", cmdline="console=ttyS0")
    assert len(table) == TABLE_SIZE == 176
    assert table[:0x12] == TABLE.bytes_le + (168).to_bytes(2, "little")
    for offset, guid, blob in (
        (0x12, CMDLINE, b"console=ttyS0\x00"),
        (0x44, INITRD, b"initrd"),
        (0x76, KERNEL, b"kernel"),
    ):
        entry = guid.bytes_le + (50).to_bytes(2, "little") + hashlib.sha256(blob).digest()
        assert table[offset : offset + 50] == entry
    assert table[0xA8:] == bytes(8)


def test_no_command_line_is_one_nul_and_no_initrd_is_nothing() -> None:
    table = kernel_hash_table(kernel=b"")
    assert table[0x12 + 18 : 0x44].hex() == ONE_ZERO_BYTE
    assert table[0x44 + 18 : 0x76].hex() == NOTHING
    assert table[0x76 + 18 : 0xA8].hex() == NOTHING


@pytest.mark.parametrize("cmdline", [" quiet", "quiet ", "quiet\n"])
def test_the_command_line_is_not_trimmed(cmdline: str) -> None:
    assert kernel_hash_table(kernel=b"", cmdline=cmdline) != kernel_hash_table(kernel=b"", cmdline="quiet")


def test_published_digests_of_launches_with_kernel_hashes(vectors: Path) -> None:
    # The launch digest of plain SEV is SHA-256(image ‖ table): launch-inputs.md §1.
    folder = vectors / "launch-digest"
    cases = [c for c in json.loads((folder / "digests.json").read_text()) if c["mode"] == "sev"]
    assert {c["kernel_hashes"] for c in cases} == {True, False}
    for case in cases:
        measured = (folder / case["firmware"]).read_bytes()
        if case["kernel_hashes"]:
            assert {case["kernel"], case["initrd"]} == {"empty file"}
            measured += kernel_hash_table(kernel=b"", initrd=b"", cmdline=case["cmdline"] or "")
        assert hashlib.sha256(measured).hexdigest() == case["digest"]
