"""Pages that go to the host's disk and come back: what the host sees of them, and what it can do to them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cbit.crypto.key import Key
from cbit.crypto.swap import open_page, seal_page
from cbit.spec import buffers
from cbit.spec.address import MIB, Spa
from cbit.spec.command import Command
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import guest as key_of
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from cbit.spec.swap import SwapMetadata
from secure_processor.es_faults import es_guest
from secure_processor.late_faults import IN_PLACE, PAGE, VMSA, swapped_out
from secure_processor.paper import GUEST_STATES
from secure_processor.worlds import FIRST, Chips, World

LARGE = 1
PLAIN = bytes(range(256)) * 16


def inside(world: World, at: int, length: int = PAGE, asid: int = FIRST) -> bytes:
    """What the guest reads there."""
    return world.machine.memory.read(Spa(at), length, key_of(asid))


def put_inside(world: World, at: int, data: bytes, asid: int = FIRST) -> None:
    world.machine.memory.write(Spa(at), data, key_of(asid))


def back(out: buffers.SwapOut, dst: int, **changes: int) -> buffers.SwapIn:
    asked = buffers.SwapIn(handle=out.handle, page=out.page, src=out.dst, dst=dst, mdata=out.mdata)
    return asked.replace(**changes)


def test_a_page_comes_back_to_any_place(world: World) -> None:
    out = swapped_out(world)
    put_inside(world, out.src, PLAIN)
    world.desk.do(Command.SWAP_OUT, out)
    assert PLAIN == inside(world, out.src)  # it is still there: the host decides what becomes of the place
    put_inside(world, out.src, bytes(PAGE))
    elsewhere = world.desk.room(PAGE)
    for dst in (elsewhere, out.src):
        world.desk.do(Command.SWAP_IN, back(out, dst))
        assert PLAIN == inside(world, dst)


def gcm(key: bytes, nonce: bytes, said: bytes, plain: bytes) -> bytes:
    """AES-GCM as NIST SP 800-38D writes it down, for whole blocks: ciphertext and tag."""

    def block(value: bytes) -> bytes:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(value)

    def times(x: int, y: int) -> int:
        product = 0
        for bit in range(127, -1, -1):
            if x >> bit & 1:
                product ^= y
            y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
        return product

    def pad(number: int) -> int:
        return int.from_bytes(block(nonce + number.to_bytes(4, "big")), "big")

    def blocks(data: bytes) -> list[int]:
        return [int.from_bytes(data[at : at + 16], "big") for at in range(0, len(data), 16)]

    sealed = [piece ^ pad(number) for number, piece in enumerate(blocks(plain), 2)]
    h, total = int.from_bytes(block(bytes(16)), "big"), 0
    for piece in (*blocks(said), *sealed, 8 * len(said) << 64 | 8 * len(plain)):
        total = times(total ^ piece, h)
    return b"".join(piece.to_bytes(16, "big") for piece in (*sealed, total ^ pad(1)))


def test_the_definition_is_the_standards() -> None:
    # origin = the GCM specification's test case 14: AES-256, all zero
    expected = "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    assert expected == gcm(bytes(32), bytes(12), b"", bytes(16)).hex()


def test_the_host_sees_what_gcm_makes_of_it(world: World) -> None:
    """Nonce, authenticated bytes and entry as sev-crypto.md §13 has them, the cipher by its definition."""
    out = swapped_out(world).replace(software_data=0x1122334455667788)
    put_inside(world, out.src, PLAIN)
    for count in range(2):
        world.desk.do(Command.SWAP_OUT, out)
        entry, sealed = world.desk.read(out.mdata, 64), world.desk.read(out.dst, PAGE)
        assert bytes.fromhex("8877665544332211") + count.to_bytes(8, "little") == entry[:16]
        assert bytes(64 - 32) == entry[32:]
        key = world.firmware.platform.guests[out.handle].offline_key
        assert key is not None
        assert 32 == len(key)
        nonce, said = count.to_bytes(8, "little") + bytes(4), entry[:16] + bytes(16) + entry[32:]
        assert gcm(key.material(), nonce, said, PLAIN) == sealed + entry[16:32]


def test_size_and_type_are_what_the_last_word_says() -> None:
    made, sealed = seal_page(Key(bytes(32)), PLAIN, SwapMetadata(software_data=0, iv=7, page=LARGE | VMSA))
    assert bytes([5, 0, 0, 0]) == bytes(made)[0x3C:]
    said = bytes(made.replace(auth_tag=bytes(16)))
    assert gcm(bytes(32), bytes([7]) + bytes(11), said, PLAIN) == sealed + made.auth_tag
    assert PLAIN == open_page(Key(bytes(32)), sealed, bytes(made))
    with pytest.raises(BadMeasurement):
        open_page(Key(bytes(31) + b"x"), sealed, bytes(made))


def test_two_guests_do_not_open_each_others_pages(world: World) -> None:
    out = swapped_out(world)
    other = world.launch(asid=FIRST + 1)
    world.desk.do(Command.SWAP_OUT, out)
    asked = back(out, world.desk.room(PAGE), handle=other)
    assert Status.BAD_MEASUREMENT == world.desk.status_of(Command.SWAP_IN, asked)


def test_an_older_copy_is_taken(world: World) -> None:
    """The tag says whose page it is, not that it is the newest: without SEV-SNP nothing keeps count."""
    out = swapped_out(world)
    put_inside(world, out.src, PLAIN)
    world.desk.do(Command.SWAP_OUT, out)
    put_inside(world, out.src, bytes(PAGE))
    newer = out.replace(dst=world.desk.room(PAGE), mdata=world.desk.room(64))
    world.desk.do(Command.SWAP_OUT, newer)
    world.desk.do(Command.SWAP_IN, back(out, out.src))
    assert PLAIN == inside(world, out.src)


def test_a_page_is_swapped_out_and_in_in_its_place(world: World) -> None:
    out = swapped_out(world)
    out = out.replace(dst=out.src)
    put_inside(world, out.src, PLAIN)
    world.desk.do(Command.SWAP_OUT, out)
    assert PLAIN != inside(world, out.src)
    world.desk.do(Command.SWAP_IN, back(out, out.src, page=IN_PLACE))
    assert PLAIN == inside(world, out.src)


def test_where_the_c_bit_says_so_the_host_gets_it_under_its_key(world: World) -> None:
    out = swapped_out(world)
    put_inside(world, out.src, PLAIN)
    world.desk.do(Command.SWAP_OUT, out.replace(dst=world.desk.with_c(out.dst)))
    again = world.desk.room(PAGE)
    asked = back(out, again)
    assert Status.BAD_MEASUREMENT == world.desk.status_of(Command.SWAP_IN, asked)
    world.desk.do(Command.SWAP_IN, asked.replace(src=world.desk.with_c(out.dst)))
    assert PLAIN == inside(world, again)


@pytest.mark.parametrize("state", GUEST_STATES)
def test_any_state_of_a_guest_will_do(world: World, state: int) -> None:
    out = swapped_out(world)
    world.force(out.handle, GuestState(state))
    assert Status.SUCCESS == world.desk.status_of(Command.SWAP_OUT, out)
    assert Status.SUCCESS == world.desk.status_of(Command.SWAP_IN, back(out, world.desk.room(PAGE)))


# ---- save areas --------------------------------------------------------------------------------------------


def test_a_save_area_is_one_wherever_it_comes_back_to(world: World) -> None:
    handle, at = es_guest(world.init(es=True))
    room = world.desk.room
    out = buffers.SwapOut(handle=handle, src=at, dst=room(PAGE), mdata=room(64), page=VMSA)
    assert Status.INVALID_PARAM == world.desk.status_of(Command.SWAP_OUT, out.replace(page=0))
    held = inside(world, at, asid=1)
    world.desk.do(Command.SWAP_OUT, out)
    again = room(PAGE)
    for wrong in (0, VMSA | IN_PLACE):
        asked = back(out, again, page=wrong)
        assert Status.INVALID_PARAM == world.desk.status_of(Command.SWAP_IN, asked)
    world.desk.do(Command.SWAP_IN, back(out, again))
    assert held == inside(world, again, asid=1)
    world.desk.do(Command.SWAP_OUT, out.replace(src=again))


def test_a_save_area_that_was_altered_is_none(world: World) -> None:
    handle, at = es_guest(world.init(es=True))
    room = world.desk.room
    world.desk.write(at, b"\xff")
    out = buffers.SwapOut(handle=handle, src=at, dst=room(PAGE), mdata=room(64), page=VMSA)
    assert Status.INVALID_PARAM == world.desk.status_of(Command.SWAP_OUT, out)


# ---- large pages -------------------------------------------------------------------------------------------


def test_large_pages(chips: Chips) -> None:
    with chips.world(memory_size=16 * MIB) as world:
        handle = world.init().launch()
        mdata, size = world.desk.room(64), 2 * MIB
        put_inside(world, 2 * MIB, PLAIN * 512)
        out = buffers.SwapOut(handle=handle, page=LARGE, src=2 * MIB, dst=4 * MIB, mdata=mdata)
        status = world.desk.status_of
        assert Status.INVALID_PARAM == status(Command.SWAP_OUT, out.replace(page=LARGE | VMSA))
        assert Status.INVALID_ADDRESS == status(Command.SWAP_OUT, out.replace(src=2 * MIB + PAGE))
        assert Status.INVALID_ADDRESS == status(Command.SWAP_OUT, out.replace(dst=4 * MIB + PAGE))
        assert Status.INVALID_PARAM == status(Command.SWAP_OUT, out.replace(mdata=6 * MIB - 64))
        world.desk.do(Command.SWAP_OUT, out)
        asked = back(out, 6 * MIB + PAGE)  # of the target, no more is asked than 4 KiB (§10)
        assert Status.INVALID_PARAM == status(Command.SWAP_IN, asked.replace(page=0))
        assert Status.INVALID_ADDRESS == status(Command.SWAP_IN, asked.replace(src=4 * MIB + PAGE))
        world.desk.do(Command.SWAP_IN, asked)
        assert PLAIN * 512 == inside(world, 6 * MIB + PAGE, size)
