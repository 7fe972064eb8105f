"""The built-in guest executes: it computes, does DMA, opens messages, and is time-sliced with others."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbit.attacks.key_schedule import expand
from cbit.attacks.victim import secret_table
from cbit.crypto.key import Key
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import (
    IMAGE_SIZE,
    LARGEST_NUMBER,
    LONGEST,
    PUBLISHED,
    RESULT,
    ROUND_KEYS,
    SEALED,
    SECRET,
    SECRET_SIZE,
    SHOWN,
    TRANSFER,
    Request,
)
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.small_guest import NoAnswer, Turn
from cbit.owner import secret as secrets
from cbit.spec import secret_table as tables
from cbit.spec.address import MIB, PAGE
from cbit.testing.worlds import a_host, a_machine
from engine_here import missing
from hypervisor.worlds import account
from machine.worlds import state
from scenarios.builtin_world import KEY, PASSPHRASE, SECRETS, BuiltIn

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

NONE, SME, SEV = Protection.NONE, Protection.SME, Protection.SEV
ALL = pytest.mark.parametrize("protection", Protection, ids=lambda p: p.value)
LONG_KEY = bytes(range(0x80, 0xA0))
NOT_MINE = "This message is not sealed with my key, or somebody changed it."
TEXT = b"Meet me where the third lamp burns."


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with state(tmp_path_factory.mktemp("built-in")) as folder:
        yield a_host(a_machine(folder, memory_size=32 * MIB, cache_size=4 * MIB))


@pytest.fixture(scope="module")
def sev(host: Host) -> Iterator[BuiltIn]:
    """One guest for many questions."""
    built_in = BuiltIn(host, SEV)
    yield built_in
    built_in.end()


def _primes_below(number: int) -> int:
    sieve = bytearray([1]) * number
    sieve[:2] = bytes(2)
    for n in range(2, int(number**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, number, n)))
    return sum(sieve)


@ALL
def test_it_lives_and_ends_and_leaves_nothing_behind(host: Host, protection: Protection) -> None:
    before = account(host)
    built_in = BuiltIn(host, protection)
    guest = built_in.guest
    assert guest.turn() is Turn.HALTED
    encrypted = "encrypted: SEV, C-bit 39." if protection is SEV else "not encrypted, as far as I can tell."
    name = "My processor calls itself AMD EPYC-Rome Processor."
    assert [name, f"I run in 64-bit mode. My memory is {encrypted}"] == guest.console.lines
    assert [1229] == guest.ask(Request.COMPUTE, 10_000).answers
    built_in.deliver(TEXT)
    assert [len(TEXT)] == guest.ask(Request.OPEN).answers
    assert 0 == guest.ask(Request.END).status
    assert ["primes below 10000: 1229", f"the message says: {TEXT.decode()}", "Good-bye."] == (
        guest.console.lines[2:]
    )
    assert {"CPUID", "MSR", "IOIO", "HLT"} == set(guest.exits)
    assert guest.turn() is Turn.HALTED  # for ever
    built_in.end()
    assert before == account(host)


def test_it_says_who_it_is_and_two_are_never_the_same(host: Host) -> None:
    built_in = [BuiltIn(host, SEV), BuiltIn(host, SEV), BuiltIn(host, NONE)]
    answers = [each.guest.ask(Request.WHO).answers for each in built_in]
    assert [39, 39, 0] == [answer[0] for answer in answers]
    assert 3 == len({tuple(answer[1:]) for answer in answers})
    for each in built_in:
        each.end()


@ALL
def test_private_is_ciphertext_in_dram_and_shared_is_not(host: Host, protection: Protection) -> None:
    built_in = BuiltIn(host, protection)
    built_in.guest.ask(Request.COMPUTE, 5000)
    text = b"primes below 5000: 669"
    private, published = built_in.cells(RESULT), built_in.cells(PUBLISHED, TRANSFER)
    assert (protection is NONE) is (text in private)
    assert (protection is not SME) is (text in published)  # SME encrypts whatever the host marks
    assert text in host.read(built_in.vm.spa(PUBLISHED), TRANSFER, c=built_in.vm.c)
    assert (protection is not SEV) is (text in host.read(built_in.vm.spa(RESULT), PAGE, c=built_in.vm.c))
    built_in.end()


@pytest.mark.parametrize("number", [2, 3, 4, 100, 9973, 9974, LARGEST_NUMBER])
def test_what_it_computes_is_right(sev: BuiltIn, number: int) -> None:
    assert [_primes_below(number)] == sev.guest.ask(Request.COMPUTE, number).answers


@pytest.mark.parametrize("number", [0, 1, LARGEST_NUMBER + 1, 0xFFFF_FFFF])
def test_what_it_cannot_compute_it_refuses(sev: BuiltIn, number: int) -> None:
    asked = sev.guest.ask(Request.COMPUTE, number)
    assert (1, []) == (asked.status, asked.answers)


@pytest.mark.parametrize("number", [8, 99, 0xFFFF_FFFF])
def test_an_unknown_request_is_not_done(sev: BuiltIn, number: int) -> None:
    assert 1 == sev.guest.ask(number).status


# ---- what anybody may see


@ALL
def test_it_shows_pages_of_its_image(host: Host, protection: Protection) -> None:
    built_in = BuiltIn(host, protection)
    whole = image()
    for page in (0, len(whole) // PAGE - 1):
        assert 0 == built_in.guest.ask(Request.SHOW, page).status
        shown = built_in.vm.host.read(built_in.vm.spa(SHOWN, PAGE), PAGE, c=built_in.vm.c)
        assert whole[PAGE * page : PAGE * page + PAGE] == shown


@pytest.mark.parametrize("page", [IMAGE_SIZE // PAGE, 0x10000, 0xFFFF_FFFF])
def test_what_is_not_its_image_it_does_not_show(sev: BuiltIn, page: int) -> None:
    sev.guest.ask(Request.SHOW, 1)
    before = sev.vm.host.read(sev.vm.spa(SHOWN, PAGE), PAGE)
    assert 1 == sev.guest.ask(Request.SHOW, page).status
    assert before == sev.vm.host.read(sev.vm.spa(SHOWN, PAGE), PAGE)


# ---- DMA


@ALL
def test_a_device_gets_what_the_guest_puts_into_the_shared_page(host: Host, protection: Protection) -> None:
    built_in = BuiltIn(host, protection)
    guest = built_in.guest
    guest.ask(Request.COMPUTE, 5000)
    assert 0 == guest.ask(Request.GIVE_TO_DEVICE, 0).status
    assert guest.copier.buffer.startswith(b"primes below 5000: 669\0")
    assert 0 == guest.ask(Request.GIVE_TO_DEVICE, 1).status  # straight from the private page
    assert (protection is not SEV) is guest.copier.buffer.startswith(b"primes below 5000")
    guest.copier.load(b"block 7 of your disk")
    assert 0 == guest.ask(Request.TAKE_FROM_DEVICE, 0).status
    assert "the device gave me: block 7 of your disk" == guest.console.lines[-1]
    assert 0 == guest.ask(Request.TAKE_FROM_DEVICE, 1).status
    assert (protection is not SEV) is guest.console.lines[-1].endswith("block 7 of your disk")
    built_in.end()


def test_a_device_gets_the_private_pages_ciphertext_and_nothing_else(host: Host) -> None:
    built_in = BuiltIn(host, SEV)
    built_in.guest.ask(Request.COMPUTE, 5000)
    cells = built_in.cells(RESULT, TRANSFER)
    built_in.guest.ask(Request.GIVE_TO_DEVICE, 1)
    assert cells == built_in.guest.copier.buffer[:TRANSFER]
    built_in.end()


def test_a_copy_that_fails_is_reported_by_the_guest(sev: BuiltIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sev.guest.copier, "_copy", lambda what: False)
    assert 1 == sev.guest.ask(Request.GIVE_TO_DEVICE, 0).status
    assert 1 == sev.guest.ask(Request.TAKE_FROM_DEVICE, 0).status


# ---- sealed messages


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=120))
def test_it_opens_what_openssl_seals(sev: BuiltIn, text: str) -> None:
    sev.deliver(text.encode())
    assert [len(text)] == sev.guest.ask(Request.OPEN).answers
    assert f"the message says: {text}" == sev.guest.console.lines[-1]


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33, 255, 256, LONGEST - 1, LONGEST])
def test_every_length_is_opened(sev: BuiltIn, length: int) -> None:
    sev.deliver(b"x" * length)
    assert [length] == sev.guest.ask(Request.OPEN).answers
    assert "the message says: " + "x" * length == sev.guest.console.lines[-1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(32, 8 * (4 + 12 + 35 + 16) - 1))
def test_no_changed_bit_is_overlooked(sev: BuiltIn, bit: int) -> None:
    nonce = bytes(12)
    sealed = bytearray(struct.pack("<I", len(TEXT)) + nonce + AESGCM(KEY).encrypt(nonce, TEXT, None))
    sealed[bit // 8] ^= 1 << bit % 8
    sev.deliver(b"", message=bytes(sealed))
    asked = sev.guest.ask(Request.OPEN)
    assert (1, []) == (asked.status, asked.answers)
    assert NOT_MINE == sev.guest.console.lines[-1]


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (struct.pack("<I", LONGEST + 1) + bytes(64), "That is no sealed message."),
        (b"\xff" * 64, "That is no sealed message."),
        (struct.pack("<I", len(TEXT) - 1) + bytes(12) + AESGCM(KEY).encrypt(bytes(12), TEXT, None), NOT_MINE),
        (bytes(64), NOT_MINE),
    ],
    ids=["one byte too long", "ones", "cut short", "zeros"],
)
def test_what_is_no_message_is_refused_in_words(sev: BuiltIn, message: bytes, answer: str) -> None:
    sev.deliver(b"", message=message)
    assert 1 == sev.guest.ask(Request.OPEN).status
    assert answer == sev.guest.console.lines[-1]


def test_a_wrong_key_is_reported_by_the_guest_itself(host: Host) -> None:
    built_in = BuiltIn(host, SEV, secrets=secret_table(PASSPHRASE, Key(bytes(16))))
    built_in.deliver(TEXT)
    assert 1 == built_in.guest.ask(Request.OPEN).status
    assert NOT_MINE == built_in.guest.console.lines[-1]
    built_in.deliver(TEXT, key=bytes(16))
    assert 0 == built_in.guest.ask(Request.OPEN).status
    built_in.end()


def _entry(guid: bytes, data: bytes, length: int | None = None) -> bytes:
    return guid + struct.pack("<I", 20 + len(data) if length is None else length) + data


@pytest.fixture
def long_keyed(host: Host) -> Iterator[BuiltIn]:
    built_in = BuiltIn(host, NONE, secrets=secret_table(PASSPHRASE, Key(LONG_KEY)))
    yield built_in
    built_in.end()


@pytest.mark.parametrize("length", [0, 1, 16, 33, LONGEST])
def test_a_key_of_256_bits_opens_its_messages_and_no_others(long_keyed: BuiltIn, length: int) -> None:
    guest, text = long_keyed.guest, b"y" * length
    nonce = bytes(range(12))
    sealed = bytearray(struct.pack("<I", length) + nonce + AESGCM(LONG_KEY).encrypt(nonce, text, None))
    long_keyed.deliver(b"", message=bytes(sealed))
    assert [length] == guest.ask(Request.OPEN).answers
    assert f"the message says: {text.decode()}" == guest.console.lines[-1]
    sealed[-1] ^= 1
    long_keyed.deliver(b"", message=bytes(sealed))
    assert 1 == guest.ask(Request.OPEN).status
    long_keyed.deliver(text, key=LONG_KEY[:16])
    assert 1 == guest.ask(Request.OPEN).status
    assert NOT_MINE == guest.console.lines[-1]


@pytest.mark.parametrize("key", [KEY, LONG_KEY], ids=["128 bits", "256 bits"])
def test_its_round_keys_are_there_while_it_opens_and_not_behind(host: Host, key: bytes) -> None:
    built_in = BuiltIn(host, NONE, secrets=secret_table(PASSPHRASE, Key(key)))
    at, schedule = built_in.vm.spa(ROUND_KEYS, PAGE), expand(key)
    built_in.deliver(b"z" * LONGEST, key=key)
    asked, seen = built_in.guest.requests.ask(Request.OPEN), False
    while asked.status is None:
        built_in.guest.turn(1000)
        seen |= schedule == host.read(at, len(schedule))
    assert (0, True) == (asked.status, seen)
    assert bytes(len(schedule)) == host.read(at, len(schedule))
    built_in.end()


def _table(body: bytes, length: int | None = None) -> bytes:
    return _entry(tables.TABLE.bytes_le, body, length)


_OURS = bytes.fromhex("71fa065e6f8a334c9d3e2b40c8a17e95")
_OTHER = tables.DISK_PASSPHRASE.bytes_le


@pytest.mark.parametrize(
    ("plaintext", "opens"),
    [
        (_table(_entry(_OURS, KEY)), True),
        (_table(_entry(_OTHER, b"12345") + _entry(_OURS, KEY)), True),
        (_table(_entry(_OURS, KEY) + _entry(_OTHER, b"12345")), True),
        (b"", False),
        (_table(b""), False),
        (_table(_entry(_OTHER, PASSPHRASE)), False),
        (_table(_entry(_OURS, KEY[:15])), False),
        (_table(_entry(_OURS, KEY + b"\0")), False),
        (_table(_entry(_OURS, LONG_KEY[:31])), False),
        (_table(_entry(_OURS, LONG_KEY + b"\0")), False),
        (_table(_entry(_OURS, LONG_KEY), 20 + 51), False),
        (_table(_entry(_OURS, KEY), 20 + 35), False),  # the table ends inside the entry
        (_table(_entry(_OTHER, b"", 0) + _entry(_OURS, KEY)), False),
        (_table(_entry(_OTHER, b"", 19) + _entry(_OURS, KEY)), False),
        (_table(_entry(_OTHER, b"", 0xFFFF_FFF0) + _entry(_OURS, KEY)), False),
        (_table(_entry(_OURS, KEY), SECRET_SIZE + 1), False),
        (_table(_entry(_OURS, KEY), 0xFFFF_FFFF), False),
        (_entry(_OTHER, _entry(_OURS, KEY)), False),
    ],
)
def test_it_finds_its_key_in_the_table_and_no_other(host: Host, plaintext: bytes, opens: bool) -> None:
    built_in = BuiltIn(host, NONE, secrets=plaintext.ljust(SECRET_SIZE, b"\0") if plaintext else b"")
    if not plaintext:
        built_in.vm.load(SECRET, bytes(SECRET_SIZE))
    built_in.deliver(TEXT)
    assert opens is (built_in.guest.ask(Request.OPEN).status == 0)
    said = f"the message says: {TEXT.decode()}" if opens else "I was given no key."
    assert said == built_in.guest.console.lines[-1]
    built_in.end()


def test_the_owners_tools_write_what_the_guest_reads() -> None:
    assert SECRETS == secrets.table_of(tables.parse(SECRETS))


def test_a_message_that_changes_under_the_guests_hands_is_one_of_the_two(sev: BuiltIn) -> None:
    """The hypervisor may change shared memory at any time: the guest looks at its own copy only."""
    sev.deliver(TEXT)
    asked = sev.guest.requests.ask(Request.OPEN)
    while asked.status is None:
        sev.guest.turn(40)
        sev.vm.load(SEALED, b"\xff" * 128)
    assert sev.guest.console.lines[-1] in (f"the message says: {TEXT.decode()}", "That is no sealed message.")
    assert sev.guest.turn() is Turn.HALTED


# ---- several at once


def test_guests_take_turns_and_disturb_each_other_in_nothing(host: Host) -> None:
    guests = [BuiltIn(host, protection) for protection in (SEV, SEV, NONE, SME)]
    numbers = (10_000, 20_000, 30_000, 40_000)
    asked = [each.guest.requests.ask(Request.COMPUTE, n) for each, n in zip(guests, numbers, strict=True)]
    for _ in range(1000):
        if all(each.status is not None for each in asked):
            break
        for each in guests:
            each.guest.turn(1000)
    assert [[_primes_below(n)] for n in numbers] == [each.answers for each in asked]
    assert all(each.guest.exits["INTR"] > 5 for each in guests)
    for each in guests:
        each.end()


def test_two_runs_with_one_seed_are_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    def told() -> tuple[bytes, dict[str, int], int]:
        with state(tmp_path_factory.mktemp("twice")) as folder:
            machine = a_machine(folder, memory_size=8 * MIB)
            guest = BuiltIn(a_host(machine), NONE).guest
            guest.ask(Request.WHO)
            guest.ask(Request.COMPUTE, 20_000)
            return bytes(guest.console.bytes), guest.exits, machine.cores[0].engine.blocks

    assert told() == told()


# ---- an answer that does not come


def test_a_guest_that_ends_is_no_answer(host: Host) -> None:
    built_in = BuiltIn(host, NONE)
    built_in.guest.turn()
    built_in.vm.tables.unmap(RESULT)
    host.forget(built_in.guest.vcpu.vmcb_at)
    with pytest.raises(NoAnswer, match=r"the guest ended: #VMEXIT NPF: write to guest physical 0x811000"):
        built_in.guest.ask(Request.COMPUTE, 100)
    assert built_in.guest.turn() is Turn.ENDED
    built_in.end()


def test_a_guest_that_takes_too_long_is_no_answer(host: Host) -> None:
    built_in = BuiltIn(host, NONE)
    with pytest.raises(NoAnswer, match="did not answer request 2 within 1000 blocks"):
        built_in.guest.ask(Request.COMPUTE, LARGEST_NUMBER, blocks=1000)
    built_in.end()


def test_a_guest_that_said_good_bye_is_no_answer(host: Host) -> None:
    built_in = BuiltIn(host, NONE)
    built_in.guest.ask(Request.END)
    with pytest.raises(NoAnswer, match="halts and does not answer request 1"):
        built_in.guest.ask(Request.WHO)
    built_in.end()
