"""Fuses and the state folder: a chip that is damaged, missing or somebody else's is said to be so."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto.entropy import SeededEntropy
from cbit.machine.state_folder import StateError, StateFolder
from cbit.secure_processor.fuses import SECP256K1_ORDER, FuseError, Fuses, root_hash
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.worlds import Chips, World, flipped

GOOD = bytes(Fuses.burn(vendor_key_hash=b"v" * 48, rollback_floor=3, entropy=SeededEntropy("chip")))


def sealed(content: bytes) -> bytes:
    """A bank with a good checksum over any content."""
    body = (b"CBITFUSE" + content)[:0xE0].ljust(0xE0, b"\0")
    return body + hashlib.sha256(body).digest()


# ---- fuses -------------------------------------------------------------------------------------------------


def test_a_bank_is_read_back() -> None:
    fuses = Fuses.parse(GOOD)
    assert (b"v" * 48, 3) == (fuses.vendor_key_hash, fuses.rollback_floor)
    assert GOOD == bytes(fuses)


def test_the_root_that_a_chip_believes_is_in_its_bank() -> None:
    fuses = Fuses.burn(
        vendor_key_hash=b"v" * 48,
        rollback_floor=3,
        entropy=SeededEntropy("chip"),
        ark_hash=root_hash(b"root"),
    )
    assert fuses == Fuses.parse(bytes(fuses))
    # origin = sev-crypto.md §3: SHA-384 over the signed bytes, here with hashlib
    assert hashlib.sha384(b"root").digest() == bytes(fuses)[0x80:0xB0] == fuses.ark_hash
    assert fuses.trusts(b"root")
    assert not fuses.trusts(b"rooT")
    assert not Fuses.parse(GOOD).trusts(b"root")


def test_no_bit_of_a_bank_may_change() -> None:
    for bit in range(8 * len(GOOD)):
        with pytest.raises(FuseError, match="damaged"):
            Fuses.parse(flipped(GOOD, bit))


@pytest.mark.parametrize("length", [0, 1, 8, 0xFF, 0x101, 0x200])
def test_a_bank_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(FuseError, match="must be 256"):
        Fuses.parse(GOOD.ljust(length, b"\0")[:length])


@pytest.mark.parametrize("secret", [0, SECP256K1_ORDER, 2**256 - 1])
def test_a_chip_secret_that_is_no_scalar_is_refused(secret: int) -> None:
    with pytest.raises(FuseError, match="secret"):
        Fuses.parse(sealed(bytes(8) + secret.to_bytes(32, "big")))


@pytest.mark.parametrize("secret", [1, SECP256K1_ORDER - 1])
def test_the_first_and_the_last_scalar_are_secrets(secret: int) -> None:
    fuses = Fuses.parse(sealed(bytes(8) + secret.to_bytes(32, "big")))
    # the base point (SEC 2), and its mirror image
    assert "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798" == fuses.chip_id()[:32].hex()
    fuses.cek()


@given(st.binary(max_size=0x200))
def test_any_bytes_are_a_fuse_error(content: bytes) -> None:
    with pytest.raises(FuseError):
        Fuses.parse(content)


@given(st.binary(min_size=0xD8, max_size=0xD8))
def test_any_bank_with_a_checksum_is_a_chip_or_a_fuse_error(content: bytes) -> None:
    try:
        fuses = Fuses.parse(sealed(content))
    except FuseError:
        return
    assert 64 == len(fuses.chip_id())
    assert 16 == len(fuses.nv_keys()[0])


def test_fuses_do_not_show_their_secrets() -> None:
    fuses = Fuses.parse(GOOD)
    for secret in (GOOD[0x10:0x30], GOOD[0x30:0x50]):
        assert secret.hex() not in repr(fuses)
        assert repr(secret)[2:-1] not in repr(fuses)


# ---- firmware ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "has_them"), [("naples", False), ("rome", False), ("milan", True)])
def test_what_is_later_than_a_generations_firmware_it_does_not_have(
    chips: Chips, profile: str, has_them: bool
) -> None:
    with chips.world(profile, as_manufactured=True) as world:
        for number in (0x0F, 0x70, 0x71, 0xCA):
            found = world.desk.ring(number, world.desk.page)
            assert has_them is (found != Status.INVALID_COMMAND)
        assert Status.INVALID_COMMAND == world.desk.ring(0x83, world.desk.page)  # SEV-SNP has nobody


# ---- the state folder --------------------------------------------------------------------------------------


def test_the_manufacturers_keys_and_the_chip_are_private_files(chips: Chips) -> None:
    with chips.world() as world:
        for file in ("chip/fuses.bin", "manufacturer/vendor.pem", "manufacturer/ark.pem"):
            assert 0o600 == (world.folder / file).stat().st_mode & 0o777


def test_one_folder_has_one_holder(world: World) -> None:
    with pytest.raises(StateError, match="in use by another cbit process"):
        StateFolder(world.folder)
    world.state.close()
    StateFolder(world.folder).close()


def test_two_processes_do_not_share_a_machine(world: World) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from cbit.machine.state_folder import StateError, StateFolder\n"
        "try: StateFolder(Path(sys.argv[1]))\n"
        "except StateError as error: sys.exit(str(error))"
    )
    ask = [sys.executable, "-c", program, str(world.folder)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(ask, capture_output=True, text=True, check=False, env=environment)
    assert 1 == ended.returncode
    assert f"{world.folder} is in use by another cbit process" in ended.stderr
    world.state.close()
    ended = subprocess.run(ask, capture_output=True, text=True, check=False, env=environment)
    assert (0, "") == (ended.returncode, ended.stderr)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"\xff\xfe\x00",
        b"{}",
        b'{"format": 2, "profile": "naples"}',
        b'{"format": 1}',
        b'{"format": 1, "profile": []}',
    ],
)
def test_a_damaged_description_is_said_to_be_so(chips: Chips, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cbit.json").write_bytes(content)
    with pytest.raises(StateError, match=r"cbit setup|this cbit reads"):
        StateFolder(tmp_path)
    with pytest.raises(StateError):  # and the lock was not kept
        StateFolder(tmp_path)


def test_an_unknown_profile_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "cbit.json").write_text('{"format": 1, "profile": "athens"}')
    with pytest.raises(StateError, match="naples, rome, milan, genoa"):
        StateFolder(tmp_path)


@pytest.mark.parametrize("file", ["chip/fuses.bin", "spi/sev_firmware.bin", "spi/x86_boot.bin"])
def test_a_missing_file_is_named(chips: Chips, file: str) -> None:
    def remove(folder: Path) -> None:
        (folder / file).unlink()

    with chips.world(prepare=remove, power_on=False) as world:
        with pytest.raises(StateError, match=rf"{file}: No such file .* 'cbit setup'"):
            world.machine.power_on()
        assert not world.machine.is_on


def test_a_missing_folder_or_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="make a machine with 'cbit setup --state"):
        StateFolder(tmp_path / "absent")
    with pytest.raises(StateError, match=r"cbit\.json: No such file"):
        StateFolder(tmp_path)


def test_a_damaged_chip_is_named(chips: Chips) -> None:
    def damage(folder: Path) -> None:
        (folder / "chip/fuses.bin").write_bytes(GOOD[:-1])

    with (
        chips.world(prepare=damage, power_on=False) as world,
        pytest.raises(StateError, match=r"chip/fuses\.bin: fuse bank: 255 bytes"),
    ):
        world.machine.power_on()


def test_another_chip_in_the_socket_does_not_open_the_store(chips: Chips) -> None:
    """Same vendor, so the images run; other secrets, so the NV store is noise."""
    with chips.world() as world:
        world.init()
        world.machine.power_off()
        raw = bytearray((world.folder / "chip/fuses.bin").read_bytes())
        raw[0x30] ^= 1  # the fused NV key
        (world.folder / "chip/fuses.bin").write_bytes(sealed(bytes(raw[8:0xE0])))
        world.machine.power_on()
        assert 0x18 == world.desk.status_of(Command.INIT, buffers.Init())
        world.init()
