"""Any bytes into every door: a status or a typed error comes out, and the machine still works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import ec, sev_cert
from cbit.machine.state_folder import StateError
from cbit.secure_processor.boot import MachineOff
from cbit.spec import buffers
from cbit.spec.certificate import CERT_SIZE, Algo, EcPublicKey, RsaPublicKey, SevCert, Usage
from cbit.spec.command import Command
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from secure_processor.import_faults import Organisation, csr
from secure_processor.migrations import (
    Packet,
    Papers,
    receive_start,
    receive_update,
    receiving,
    send_start,
    sending,
    take,
)
from secure_processor.paper import PAPER
from secure_processor.worlds import FIRST, LAST, MEMORY, TMR, Chips, World

#: Numbers that mean something somewhere: handles, ASIDs, lengths, the edges of address ranges, the C-bit.
TELLING = (
    *(0, 1, 2, 3, FIRST, LAST, 16, 0x30, 0x34, 0x80, 0x824, 0x186C, 1023, 1024, 1025, 4096, 16384, 20480),
    *(
        0x9FFF0,
        0xA0000,
        0xC0000,
        0x100000,
        0x123450,
        TMR - 16,
        TMR,
        MEMORY - 16,
        MEMORY,
        1 << 31,
        (1 << 32) - 16,
    ),
    *(1 << 43, 1 << 46, 1 << 47, 1 << 47 | 0x123450, (1 << 63), (1 << 64) - 1),
)


def numbers(size: int) -> st.SearchStrategy[bytes]:
    telling = st.sampled_from(TELLING).map(lambda n: n & (1 << 8 * size) - 1)
    return (telling | st.integers(0, (1 << 8 * size) - 1)).map(lambda n: n.to_bytes(size, "little"))


def some_buffer(seed: int) -> bytes:
    """Eighty bytes and more of words and double words, half of them telling."""
    random = Random(seed)
    words = []
    for _ in range(20):
        size = random.choice((4, 8))
        number = random.choice(TELLING) if random.getrandbits(1) else random.getrandbits(8 * size)
        words.append((number & (1 << 8 * size) - 1).to_bytes(size, "little"))
    return b"".join(words)


#: A draw for each word would cost more than the commands do.
BUFFERS = st.integers(0, (1 << 64) - 1).map(some_buffer)


def still_works(world: World) -> None:
    """The platform answers, and after a restart a guest can be launched."""
    world.desk.ring(Command.NOP, 0)  # which ends ring buffers, if somebody began them
    assert 0 <= world.desk.platform().state <= 2
    world.desk.do(Command.SHUTDOWN)
    world.init()
    assert 1 == world.launch()


def assert_status(number: int) -> None:
    Status(number)


LUPDATE_TO_RUPDATE = range(1, 6)


@pytest.mark.parametrize("command", PAPER, ids=lambda command: command.name)
def test_any_buffer_of_any_command(world: World, command: Command) -> None:
    @given(
        contents=st.lists(BUFFERS, min_size=1, max_size=6),
        es=st.booleans(),
        state=st.sampled_from([0, *LUPDATE_TO_RUPDATE]),
    )
    def inner(contents: list[bytes], es: bool, state: int) -> None:
        world.renew()
        if state or es:
            world.init(es=es)
        if state >= GuestState.SUPDATE:
            journey = sending(world)
            if state == GuestState.RUPDATE:
                receiving(world, journey)
        elif state:
            world.launch(state=GuestState(state))
        for content in contents:
            world.desk.write(world.desk.page, content)
            assert_status(world.desk.ring(command, world.desk.page))
        still_works(world)

    inner()


@given(
    orders=st.lists(st.tuples(st.integers(0, 0x7FF), numbers(8), BUFFERS), max_size=25),
    start=st.booleans(),
)
def test_any_commands_at_any_addresses(
    chips: Chips, orders: list[tuple[int, bytes, bytes]], start: bool
) -> None:
    with chips.world() as world:
        if start:
            world.init().launch(state=GuestState.LSECRET)
        for command, address, content in orders:
            world.desk.write(0x123450, content)
            assert_status(world.desk.ring(command, int.from_bytes(address, "little")))
        still_works(world)


# ---- certificates and sessions -----------------------------------------------------------------------------


def mutations(length: int) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    return st.lists(st.tuples(st.integers(0, length - 1), st.binary(min_size=1, max_size=72)), max_size=4)


def mutated(data: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    out = bytearray(data)
    for at, piece in changes:
        out[at : at + len(piece)] = piece
    return bytes(out[: len(data)])


OUTCOMES = {Status.SUCCESS, Status.INVALID_CERTIFICATE, Status.BAD_MEASUREMENT, Status.BAD_SIGNATURE}


@given(cert=mutations(CERT_SIZE), session=mutations(0x80), policy=st.integers(0, 2**32 - 1))
def test_any_session_and_any_certificate(
    chips: Chips, cert: list[tuple[int, bytes]], session: list[tuple[int, bytes]], policy: int
) -> None:
    with chips.world() as world:
        desk = world.init().desk
        made, _ = world.owner()
        for asked in (0, policy):
            request = buffers.LaunchStart(
                policy=asked,
                dh_cert_paddr=desk.put(mutated(bytes(made.godh), cert)),
                dh_cert_len=CERT_SIZE,
                session_paddr=desk.put(mutated(bytes(made.blob), session)),
                session_len=0x80,
            )
            assert desk.status_of(Command.LAUNCH_START, request) in OUTCOMES
        still_works(world)


EC_KEYS = st.builds(
    lambda curve, x, y: bytes(EcPublicKey(curve=curve, qx=x, qy=y)),
    st.sampled_from([0, 1, 2, 2, 2, 3]),
    st.integers(0, 2**576 - 1) | st.sampled_from([0, 1, ec.PRIME - 1, ec.PRIME, 2**384]),
    st.integers(0, 2**576 - 1) | st.sampled_from([0, 1, ec.PRIME - 1, ec.PRIME, 2**384]),
)
RSA_KEYS = st.builds(
    lambda size, exponent, modulus: bytes(RsaPublicKey(modulus_size=size, pubexp=exponent, modulus=modulus)),
    st.sampled_from([0, 1, 7, 512, 2048, 4096, 4097, 2**32 - 1]),
    st.sampled_from([0, 1, 2, 3, 65537, 2**64 + 1, 2**4096 - 1]),
    st.sampled_from([0, 1, 2, 3, 15, 2**511 + 1, 2**2048 - 1, 2**4095 + 1, 2**4096 - 1])
    | st.integers(0, 2**4096 - 1),
)


@given(
    key=EC_KEYS | RSA_KEYS | st.binary(min_size=0x404, max_size=0x404),
    kind=st.tuples(st.sampled_from([*Usage]), st.sampled_from([*Algo, 0x999])),
    signature=st.binary(min_size=512, max_size=512) | st.just(bytes(512)) | st.just(b"\xff" * 512),
    version=st.sampled_from([1, 1, 1, 0, 2]),
)
def test_any_owners_certificate(
    chips: Chips, key: bytes, kind: tuple[Usage, int], signature: bytes, version: int
) -> None:
    with chips.world() as world:
        desk = world.init().desk
        before = world.export()
        usage = kind[0]
        named: Algo = kind[1]  # type: ignore[assignment] # a number that names no algorithm is wanted too
        slot = (usage, named, signature)
        oca = sev_cert.with_slot(
            SevCert(
                version=version,
                api_major=0,
                api_minor=0,
                pubkey_usage=usage,
                pubkey_algo=named,
                pubkey=key,
            ),
            1,
            slot,
        )
        pek = sev_cert.with_slot(csr(world), 1, slot)
        for this in (pek, Organisation().sign(csr(world))):
            asked = buffers.PekCertImport(
                pek_paddr=desk.put(bytes(this)),
                pek_len=CERT_SIZE,
                oca_paddr=desk.put(bytes(oca)),
                oca_len=CERT_SIZE,
            )
            refused = desk.status_of(Command.PEK_CERT_IMPORT, asked)
            assert refused in (Status.INVALID_CERTIFICATE, Status.BAD_SIGNATURE)
        assert before == world.export()


@given(oca=mutations(CERT_SIZE), pek=mutations(CERT_SIZE))
def test_any_change_of_good_owners_certificates(
    chips: Chips, oca: list[tuple[int, bytes]], pek: list[tuple[int, bytes]]
) -> None:
    with chips.world() as world:
        desk = world.init().desk
        org = Organisation()
        asked = buffers.PekCertImport(
            pek_paddr=desk.put(mutated(bytes(org.sign(csr(world))), pek)),
            pek_len=CERT_SIZE,
            oca_paddr=desk.put(mutated(bytes(org.oca), oca)),
            oca_len=CERT_SIZE,
        )
        status = desk.status_of(Command.PEK_CERT_IMPORT, asked)
        assert status in OUTCOMES - {Status.BAD_MEASUREMENT}
        assert (status == Status.SUCCESS) == (desk.platform().owner == 1)
        still_works(world)


@given(
    pdh=mutations(CERT_SIZE),
    chain=mutations(3 * CERT_SIZE),
    amd=mutations(0x680),
    policy=st.sampled_from([0, 0x10, 0x20, 0x30]),
)
def test_any_change_of_a_good_receivers_papers(
    chips: Chips,
    pdh: list[tuple[int, bytes]],
    chain: list[tuple[int, bytes]],
    amd: list[tuple[int, bytes]],
    policy: int,
) -> None:
    with chips.world() as world:
        handle = world.init().launch(policy)
        good = Papers.of(world)
        shown = Papers(mutated(good.pdh, pdh), mutated(good.chain, chain), mutated(good.amd, amd))
        status = world.desk.status_of(Command.SEND_START, send_start(world, handle, shown))
        assert status in (OUTCOMES - {Status.BAD_MEASUREMENT}) | {Status.POLICY_FAILURE}
        expected = GuestState.SUPDATE if status == Status.SUCCESS else GuestState.RUNNING
        assert expected == world.desk.guest(handle).state
        if policy & 0x20 and shown.amd != good.amd:
            assert status != Status.SUCCESS
        still_works(world)


@given(session=mutations(0x80), header=mutations(0x34), data=mutations(64))
def test_any_session_and_any_packet_of_a_sender(
    chips: Chips,
    session: list[tuple[int, bytes]],
    header: list[tuple[int, bytes]],
    data: list[tuple[int, bytes]],
) -> None:
    with chips.world() as world:
        journey = sending(world.init())
        good = take(world, journey.handle, world.desk.room(64), 64)
        shown = mutated(journey.session, session)
        asked = receive_start(world, replace(journey, session=shown))
        expected = Status.SUCCESS if shown == journey.session else Status.BAD_MEASUREMENT
        assert expected == world.desk.status_of(Command.RECEIVE_START, asked)
        packet = Packet(mutated(good.header, header), mutated(good.data, data))
        update = receive_update(world, receiving(world, journey), packet)
        status = world.desk.status_of(Command.RECEIVE_UPDATE_DATA, update)
        assert (status == Status.SUCCESS) == (packet == good)
        assert status in (Status.SUCCESS, Status.BAD_MEASUREMENT, Status.UNSUPPORTED)
        still_works(world)


# ---- files -------------------------------------------------------------------------------------------------


@given(content=st.binary(max_size=0x100) | st.binary(min_size=0x1960, max_size=0x1960))
def test_any_store(chips: Chips, content: bytes) -> None:
    def prepare(folder: Path) -> None:
        (folder / "spi/sev.nv").write_bytes(content)

    with chips.world(prepare=prepare) as world:
        first = world.desk.status_of(Command.INIT, buffers.Init())
        empty = content[:4] == b"\xff" * 4
        assert (Status.SUCCESS if empty else Status.SECURE_DATA_INVALID) == first
        still_works(world)


@pytest.mark.parametrize("file", ["spi/sev_firmware.bin", "spi/x86_boot.bin", "chip/fuses.bin"])
def test_any_image_and_any_chip(chips: Chips, file: str) -> None:
    @given(changes=mutations(0x700), cut=st.integers(0, 0x800))
    def inner(changes: list[tuple[int, bytes]], cut: int) -> None:
        def prepare(folder: Path) -> None:
            good = (folder / file).read_bytes()
            (folder / file).write_bytes(mutated(good, changes)[:cut])

        with chips.world(prepare=prepare, power_on=False) as world:
            same = (world.folder / file).read_bytes() == (chips.folder("naples") / file).read_bytes()
            if same:
                world.machine.power_on()
            else:
                with pytest.raises((MachineOff, StateError)):
                    world.machine.power_on()
            assert same == world.machine.is_on

    inner()


@given(body=st.binary(max_size=64))
def test_any_list_of_commands_that_the_vendor_signed(chips: Chips, body: bytes) -> None:
    """The vendor's own mistakes end no machine: what is not listed is INVALID_COMMAND."""
    from cbit.secure_processor.image import ImageHeader, ImageKind, sign_image
    from secure_processor.worlds import vendor_key

    def prepare(folder: Path) -> None:
        header = ImageHeader(
            kind=ImageKind.SEV_FIRMWARE, body_size=0, svn=1, build=0, api_minor=0, api_major=0
        )
        (folder / "spi/sev_firmware.bin").write_bytes(sign_image(header, body, vendor_key(folder)))

    with chips.world(prepare=prepare) as world:
        for number in range(0x00, 0x80):
            status = world.desk.ring(number, world.desk.page)
            listed = number in {int.from_bytes(body[i : i + 2], "little") for i in range(0, len(body), 2)}
            assert listed or status == Status.INVALID_COMMAND
