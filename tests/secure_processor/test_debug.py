"""What DBG_DECRYPT, DBG_ENCRYPT, COPY and ATTESTATION do to memory, and say."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes

from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.spec import buffers
from cbit.spec.address import MIB, PAGE, Spa
from cbit.spec.attestation_report import AttestationReport
from cbit.spec.certificate import CERT_SIZE, EcdsaSignature, SevCert
from cbit.spec.command import Command
from cbit.spec.errors import BadSignature
from cbit.spec.key_id import guest as key_of
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from secure_processor.worlds import FIRST, World, flipped

DATA = SeededEntropy("data").draw(16 * PAGE)  # no two blocks alike
KEY = key_of(FIRST)


@pytest.fixture
def handle(world: World) -> int:
    return world.init().launch()


def in_guest(world: World, data: bytes) -> Spa:
    at = world.desk.room(len(data))
    world.machine.memory.write(at, data, KEY)
    return at


def of_guest(world: World, at: Spa, length: int) -> bytes:
    return world.machine.memory.read(at, length, KEY)


def debug(world: World, command: Command, handle: int, *, src: int, dst: int, length: int) -> None:
    world.desk.do(command, buffers.Debug(handle=handle, src=src, dst=dst, length=length))


# ---- DBG ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 48, PAGE, len(DATA)])
def test_decrypt_shows_what_the_guest_sees(world: World, handle: int, length: int) -> None:
    src, dst = in_guest(world, DATA), world.desk.put(bytes(len(DATA)))
    assert DATA[:16] != world.desk.read(src, 16)
    debug(world, Command.DBG_DECRYPT, handle, src=src, dst=dst, length=length)
    assert DATA[:length].ljust(len(DATA), b"\0") == world.desk.read(dst, len(DATA))
    assert DATA == of_guest(world, src, len(DATA))


@pytest.mark.parametrize("length", [16, 48, PAGE, len(DATA)])
def test_encrypt_puts_what_the_guest_then_sees(world: World, handle: int, length: int) -> None:
    src, dst = world.desk.put(DATA), in_guest(world, bytes(len(DATA)))
    debug(world, Command.DBG_ENCRYPT, handle, src=src, dst=dst, length=length)
    assert DATA[:length].ljust(len(DATA), b"\0") == of_guest(world, dst, len(DATA))
    assert DATA[:length] != world.desk.read(dst, length)


def test_the_hosts_c_bit_means_the_hosts_key_and_the_guests_means_nothing(world: World, handle: int) -> None:
    desk = world.desk
    src, dst = in_guest(world, DATA[:64]), desk.put(bytes(64))
    debug(world, Command.DBG_DECRYPT, handle, src=desk.with_c(src), dst=desk.with_c(dst), length=64)
    assert DATA[:64] == desk.read(dst, 64, c=True)
    assert DATA[:64] != desk.read(dst, 64)
    back = in_guest(world, bytes(64))
    debug(world, Command.DBG_ENCRYPT, handle, src=desk.with_c(dst), dst=desk.with_c(back), length=64)
    assert DATA[:64] == of_guest(world, back, 64)


def test_another_guests_memory_decrypts_to_noise(world: World, handle: int) -> None:
    src, dst = in_guest(world, DATA[:64]), world.desk.put(bytes(64))
    other = world.launch(asid=FIRST + 1)
    debug(world, Command.DBG_DECRYPT, other, src=src, dst=dst, length=64)
    assert world.desk.read(dst, 64) not in (bytes(64), DATA[:64])


def test_a_policy_against_debugging_holds(world: World) -> None:
    handle = world.init().launch(Policy.NODBG)
    src, dst = in_guest(world, DATA[:64]), world.desk.put(bytes(64))
    for command in (Command.DBG_DECRYPT, Command.DBG_ENCRYPT):
        asked = buffers.Debug(handle=handle, src=src, dst=dst, length=64)
        assert Status.POLICY_FAILURE == world.desk.status_of(command, asked)
    assert bytes(64) == world.desk.read(dst, 64)


# ---- COPY --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-9, -1, 0, 1, 9, 16], ids=lambda shift: f"by {shift} pages")
def test_a_copy_reads_the_same_wherever_it_overlaps(world: World, handle: int, shift: int) -> None:
    src = Spa(2 * MIB)
    dst = Spa(src + shift * PAGE)
    world.machine.memory.write(src, DATA, KEY)
    before = world.desk.read(src, len(DATA))
    world.desk.do(Command.COPY, buffers.Copy(handle=handle, length=len(DATA), src=src, dst=dst))
    assert DATA == of_guest(world, dst, len(DATA))
    if shift:
        assert before != world.desk.read(dst, len(DATA))  # another address, another ciphertext


def test_a_copy_ignores_the_c_bit_and_onto_itself_does_nothing(world: World, handle: int) -> None:
    desk = world.desk
    src, dst = in_guest(world, DATA[:PAGE]), in_guest(world, bytes(PAGE))
    desk.do(Command.COPY, buffers.Copy(handle=handle, length=PAGE, src=desk.with_c(src), dst=dst))
    assert DATA[:PAGE] == of_guest(world, dst, PAGE)
    # The paper's order: the overlap ends the command before the range is looked at.
    for at in (desk.with_c(src), 64 * MIB):
        asked = buffers.Copy(handle=handle, length=64 * MIB, src=at, dst=at & ~(1 << 47))
        assert Status.SUCCESS == desk.status_of(Command.COPY, asked)
    assert DATA[:PAGE] == of_guest(world, src, PAGE)


# ---- ATTESTATION -------------------------------------------------------------------------------------------


def report(world: World, handle: int, mnonce: bytes, length: int = 0xD0) -> bytes:
    at = world.desk.put(b"\xee" * (length + 16))
    asked = buffers.Attestation(handle=handle, paddr=at, mnonce=mnonce, length=length)
    assert asked == world.desk.do(Command.ATTESTATION, asked)
    assert b"\xee" * 16 == world.desk.read(at + 0xD0, 16)
    return world.desk.read(at, 0xD0)


def pek(world: World) -> ec.PublicKey:
    return sev_cert.public_key(SevCert.parse(world.export()[1][:CERT_SIZE]))


def check(key: ec.PublicKey, raw: bytes) -> None:
    # origin = sev-crypto.md §12: signed bytes [0x00, 0x34), R and S of 72 bytes at 0x40
    ec.verify(key, EcdsaSignature.parse(raw[0x40:].ljust(512, b"\0")), raw[:0x34], hashes.SHA256())


@pytest.mark.parametrize("state", [GuestState.LSECRET, GuestState.RUNNING])
def test_the_report_says_what_was_launched_and_the_pek_signs_it(world: World, state: GuestState) -> None:
    handle = world.init().launch(Policy.NODBG, state=state)
    raw = report(world, handle, b"nonce of sixteen", 0x200)
    said = AttestationReport.parse(raw)
    guest = world.firmware.platform.guests[handle]
    assert (b"nonce of sixteen", guest.launch_digest, 1) == (said.mnonce, said.launch_digest, said.policy)
    assert (0x1002, 0x002) == (said.sig_usage, said.sig_algo)
    check(pek(world), raw)
    for bit in range(0, 0x34 * 8, 5):
        with pytest.raises(BadSignature):
            check(pek(world), flipped(raw, bit))


def test_a_new_pek_signs_new_reports(world: World) -> None:
    old = pek(world.init())
    world.desk.do(Command.PEK_GEN)
    handle = world.launch()
    raw = report(world, handle, bytes(16))
    check(pek(world), raw)
    with pytest.raises(BadSignature):
        check(old, raw)


@pytest.mark.parametrize("length", [0, 1, 0xCF])
def test_attestation_tells_its_length(world: World, handle: int, length: int) -> None:
    asked = buffers.Attestation(handle=handle, paddr=0, mnonce=bytes(16), length=length)
    status, _, after = world.desk.attempt(Command.ATTESTATION, asked)
    assert (Status.INVALID_LENGTH, asked.replace(length=0xD0)) == (status, after)
