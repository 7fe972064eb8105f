"""The non-volatile store: whatever happened to it, INIT answers with the paper's status and then recovers."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cbit.crypto.entropy import SeededEntropy
from cbit.secure_processor.fuses import Fuses
from cbit.secure_processor.nv_store import EMPTY, SIZE, NvCorrupt, NvState, NvStore, NvUnusable, replace_file
from cbit.spec import buffers
from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.worlds import Chips, World, flipped

KEYS = Fuses.burn(vendor_key_hash=bytes(48), rollback_floor=0, entropy=SeededEntropy("nv"))
STATE = NvState(
    externally_owned=1,
    pdh_scalar=1,
    pek_scalar=2,
    oca_scalar=0,
    pdh_cert=b"p" * 0x824,
    pek_cert=b"k" * 0x824,
    oca_cert=b"o" * 0x824,
)
SAMPLED = [
    0,
    1,
    3,
    4,
    5,
    15,
    16,
    64,
    100,
    1000,
    SIZE // 2,
    SIZE - 49,
    SIZE - 48,
    SIZE - 17,
    SIZE - 16,
    SIZE - 1,
]


@pytest.fixture
def store(tmp_path: Path) -> NvStore:
    return NvStore(tmp_path / "sev.nv", KEYS, SeededEntropy("iv"))


def init(world: World) -> int:
    return world.desk.status_of(Command.INIT, buffers.Init())


def damaged(chips: Chips, content: bytes) -> tuple[int, int, bool]:
    """INIT on a machine whose store was replaced: (status, status of the next INIT, same identity)."""
    with chips.world() as world:
        before = world.init().export()
        world.desk.do(Command.SHUTDOWN)
        world.nv.write_bytes(content)
        first = init(world)
        if first != Status.SUCCESS:
            assert EMPTY == world.nv.read_bytes()  # erased, so that the next INIT succeeds
            assert 0 == world.desk.platform().state
        second = init(world)
        return first, second, world.export() == before


@pytest.fixture(scope="session")
def good(chips: Chips) -> bytes:
    with chips.world() as world:
        world.init()
        return world.nv.read_bytes()


# ---- format ------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(store: NvStore) -> None:
    store.save(STATE)
    assert STATE == store.load()


def test_the_store_is_for_its_owners_eyes(store: NvStore, tmp_path: Path) -> None:
    store.save(STATE)
    assert 0o600 == (tmp_path / "sev.nv").stat().st_mode & 0o777
    store.erase()
    assert 0o600 == (tmp_path / "sev.nv").stat().st_mode & 0o777


def test_the_file_is_ciphertext_mac_and_iv(store: NvStore, tmp_path: Path) -> None:
    """sev-crypto.md §5.3, taken apart with other primitives than the store's."""
    import hmac

    store.save(STATE)
    raw = (tmp_path / "sev.nv").read_bytes()
    assert SIZE == len(raw) == NvState.SIZE + 48
    ciphertext, mac, iv = raw[:-48], raw[-48:-16], raw[-16:]
    encryption, integrity = KEYS.nv_keys()
    assert mac == hmac.digest(integrity.material(), ciphertext + iv, "sha256")
    opened = Cipher(algorithms.AES(encryption.material()), modes.CTR(iv)).decryptor().update(ciphertext)
    assert bytes(STATE) == opened
    assert b"pppppppp" not in raw


def test_no_iv_is_used_twice(store: NvStore, tmp_path: Path) -> None:
    seen = set()
    for _ in range(5):
        store.save(STATE)
        seen.add((tmp_path / "sev.nv").read_bytes()[-16:])
    assert 5 == len(seen)


class Given:
    """Entropy that says what it is told."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)

    def draw(self, length: int) -> bytes:
        return self._answers.pop(0)


def test_a_state_that_would_look_empty_or_legacy_is_sealed_with_another_iv(tmp_path: Path) -> None:
    encryption = KEYS.nv_keys()[0].material()
    keystream = bytes(b ^ 0xFF for b in bytes(STATE)[:4]) + bytes(12)
    looks_empty = Cipher(algorithms.AES(encryption), modes.ECB()).decryptor().update(keystream)
    looks_legacy = b"\xff" * 4 + bytes(12)
    store = NvStore(tmp_path / "sev.nv", KEYS, Given(looks_empty, looks_legacy, bytes(16)))
    store.save(STATE)
    assert STATE == store.load()
    assert bytes(16) == (tmp_path / "sev.nv").read_bytes()[-16:]


def test_the_state_does_not_show_its_keys() -> None:
    assert "NvState(…)" == repr(STATE)


# ---- damage ------------------------------------------------------------------------------------------------


def test_a_missing_store_is_a_new_platform(chips: Chips) -> None:
    with chips.world() as world:
        before = world.init().export()
        world.desk.do(Command.SHUTDOWN)
        world.nv.unlink()
        assert Status.SUCCESS == init(world)
        assert before != world.export()


@pytest.mark.parametrize("tail", [b"", b"\xff" * 100, b"anything"])
def test_an_erased_store_is_a_new_platform(chips: Chips, tail: bytes) -> None:
    assert (Status.SUCCESS, Status.INVALID_PLATFORM_STATE, False) == damaged(chips, EMPTY + tail)


def test_an_untouched_store_is_the_same_platform(chips: Chips, good: bytes) -> None:
    assert (Status.SUCCESS, Status.INVALID_PLATFORM_STATE, True) == damaged(chips, good)


@pytest.mark.parametrize("length", SAMPLED)
def test_a_torn_store_is_noticed_and_erased(chips: Chips, good: bytes, length: int) -> None:
    assert (Status.SECURE_DATA_INVALID, Status.SUCCESS, False) == damaged(chips, good[:length])


@pytest.mark.parametrize("more", [1, 16, SIZE])
def test_a_longer_store_is_noticed(chips: Chips, good: bytes, more: int) -> None:
    assert (Status.SECURE_DATA_INVALID, Status.SUCCESS, False) == damaged(chips, good + bytes(more))


@pytest.mark.parametrize("byte", SAMPLED)
def test_a_flipped_bit_is_noticed(chips: Chips, good: bytes, byte: int) -> None:
    content = flipped(good, 8 * byte + byte % 8)
    assert (Status.SECURE_DATA_INVALID, Status.SUCCESS, False) == damaged(chips, content)


def is_corrupt(store: NvStore) -> bool:
    try:
        store.load()
    except NvCorrupt:
        return True
    return False


@pytest.mark.slow
def test_every_flipped_bit_and_every_torn_length_is_noticed(
    store: NvStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(STATE)
    file = tmp_path / "sev.nv"
    raw = file.read_bytes()
    content = bytearray(raw)
    monkeypatch.setattr(store, "_read", lambda: bytes(content))  # sixty thousand contents: not through a file
    assert STATE == store.load()
    noticed = 0
    for bit in range(8 * SIZE):
        content[bit // 8] ^= 1 << bit % 8
        noticed += is_corrupt(store)
        content[bit // 8] ^= 1 << bit % 8
    assert 8 * SIZE == noticed
    assert STATE == store.load()
    for length in range(SIZE):
        content[:] = raw[:length]
        noticed += is_corrupt(store)
    assert 9 * SIZE == noticed


def test_another_chips_store_is_noticed(chips: Chips) -> None:
    with chips.world(seed=2) as other:
        other.init()
        content = other.nv.read_bytes()
    assert (Status.SECURE_DATA_INVALID, Status.SUCCESS, False) == damaged(chips, content)


def test_an_older_store_of_the_same_chip_is_accepted(chips: Chips) -> None:
    """Flash has no rollback protection: whoever writes it can bring an old identity back."""
    with chips.world() as world:
        before, old = world.init().export(), world.nv.read_bytes()
        world.desk.do(Command.PEK_GEN)
        world.desk.do(Command.SHUTDOWN)
        world.nv.write_bytes(old)
        assert (Status.SUCCESS, before) == (init(world), world.export())


def test_a_store_of_another_format_version_counts_as_damaged(store: NvStore) -> None:
    store.save(STATE.replace(version=2))
    with pytest.raises(NvCorrupt, match="format version 2"):
        store.load()


# ---- a store that cannot be used ---------------------------------------------------------------------------


def test_a_store_that_cannot_be_read_is_a_hardware_error_and_left_alone(world: World) -> None:
    world.nv.mkdir()
    status, why, _ = world.desk.attempt(Command.INIT, buffers.Init())
    assert (Status.HWERROR_PLATFORM, "NV store: Is a directory") == (status, why)
    assert world.nv.is_dir()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_store_without_permission_is_a_hardware_error(world: World) -> None:
    world.init()
    world.desk.do(Command.SHUTDOWN)
    world.nv.chmod(0)
    assert Status.HWERROR_PLATFORM == init(world)
    world.nv.chmod(0o600)
    assert Status.SUCCESS == init(world)


def test_a_damaged_store_that_cannot_be_erased_is_a_hardware_error(chips: Chips, good: bytes) -> None:
    with chips.world() as world:
        world.nv.write_bytes(good[:-1])
        world.nv.with_name("sev.nv.new").mkdir()
        assert Status.HWERROR_PLATFORM == init(world)
        assert good[:-1] == world.nv.read_bytes()
        world.nv.with_name("sev.nv.new").rmdir()
        assert Status.SECURE_DATA_INVALID == init(world)
        assert Status.SUCCESS == init(world)


def fail_with(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT], ids=os.strerror)
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("command", [Command.PEK_GEN, Command.PDH_GEN], ids=lambda command: command.name)
def test_a_full_or_read_only_disk_keeps_the_old_state(
    world: World, monkeypatch: pytest.MonkeyPatch, command: Command, step: str, number: int
) -> None:
    before = world.init().export()
    content = world.nv.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail_with(number))
        status, why, _ = world.desk.attempt(command)
    assert (Status.HWERROR_PLATFORM, f"NV store: {os.strerror(number)}") == (status, why)
    assert (before, content) == (world.export(), world.nv.read_bytes())
    assert ["sev.nv"] == [path.name for path in world.nv.parent.glob("sev.nv*")]  # nothing left beside it


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_platform_reset_on_a_broken_disk_keeps_the_old_state(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = world.init().export()
    world.desk.do(Command.SHUTDOWN)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail_with(errno.EROFS))
        assert Status.HWERROR_PLATFORM == world.desk.status_of(Command.PLATFORM_RESET)
    assert (Status.SUCCESS, before) == (init(world), world.export())


def test_a_folder_that_cannot_be_synced_is_no_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the new state is in force: saying no would leave memory and flash with two identities."""
    before = world.init().export()
    real = os.fsync

    def no_folders(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "no")
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_folders)
        assert Status.SUCCESS == world.desk.status_of(Command.PEK_GEN)
    after = world.export()
    assert before != after
    world.desk.do(Command.SHUTDOWN)
    assert (Status.SUCCESS, after) == (init(world), world.export())


def test_a_write_that_breaks_off_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    replace_file(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_with(errno.ENOSPC))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            replace_file(file, b"new and longer")
    assert b"old" == file.read_bytes()


def test_the_leftover_of_an_interrupted_write_does_no_harm(world: World) -> None:
    before = world.init().export()
    world.desk.do(Command.SHUTDOWN)
    world.nv.with_name("sev.nv.new").write_bytes(os.urandom(3 * SIZE))
    assert (Status.SUCCESS, before) == (init(world), world.export())
    world.desk.do(Command.PDH_GEN)
    assert SIZE == world.nv.stat().st_size
    assert not world.nv.with_name("sev.nv.new").exists()


def test_a_store_in_a_folder_that_is_gone_is_a_hardware_error(world: World) -> None:
    shutil.rmtree(world.nv.parent)
    assert Status.HWERROR_PLATFORM == init(world)


def test_saving_where_nothing_can_be_is_an_error_of_its_own(tmp_path: Path) -> None:
    store = NvStore(tmp_path / "absent" / "sev.nv", KEYS, SeededEntropy("iv"))
    assert store.load() is None
    for use in (store.erase, lambda: store.save(STATE)):
        with pytest.raises(NvUnusable, match="No such file"):
            use()
