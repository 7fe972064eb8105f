"""Any order of commands: the firmware answers and stands as the small model of the paper does."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import count
from random import SystemRandom

import pytest
from hypothesis import settings

from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.certificate import CERT_SIZE, SevCert
from cbit.spec.command import Command
from cbit.spec.key_id import guest as key_of
from secure_processor.import_faults import Organisation
from secure_processor.model_platform import INIT, LENGTH, OK
from secure_processor.model_travel import VMSA, Session
from secure_processor.paper import PAPER
from secure_processor.walk import (
    DATA,
    HANDLES,
    LENGTHS,
    SAVE_AREAS,
    SCRATCH,
    SECRET_AT,
    VMSA_AT,
    Walk,
    signed,
)
from secure_processor.walking import go, rule, some
from secure_processor.worlds import Chips, World, flipped

BUDGET = 10_000  # commands of a thorough run
STEPS = 80  # of one walk
#: What has tests of its own, and would only end the walk or look at the same bytes again.
NOT_WALKED = {Command.NOP, Command.GET_ID}
#: What every step looks at.
NOT_WALKED |= {Command.PLATFORM_STATUS, Command.GUEST_STATUS, Command.PDH_CERT_EXPORT}
HEADERS = some(*[0x34] * 5, 0, 0x33)
SLOTS = some(*range(0, 3))
PAGES = some(0, 0, VMSA, VMSA, 1 << 1)
ORGANISATION = Organisation()
SIGNATURE_AT = 0x41C  # of the first signature (sev-crypto.md §2.2)
SWAP_TO, SWAP_AT = Spa(0x140000), Spa(0x150000)


class AgainstTheModel(Walk):
    """The walk of ``Walk``, organisations that take the platform over, guests that leave and come back."""

    def __init__(self, world: World, images: dict[str, bytes]) -> None:
        super().__init__(world, images)
        #: The last session: as the model knows it, its bytes, the sender's PDH certificate.
        self.sent: tuple[Session, bytes, bytes] | None = None
        #: The last packet: journey, header, ciphertext, plaintext.
        self.packet: tuple[int, bytes, bytes, bytes] | None = None
        self.pages: dict[int, bytes] = {}  # what was swapped out, by slot
        self.requests: dict[int, bytes] = {}  # what PEK_CSR gave, by identity
        self.owners = 0  # organisations so far

    # ---- external ownership

    @rule(length=some(CERT_SIZE, CERT_SIZE, CERT_SIZE + 1, CERT_SIZE - 1, 0))
    def pek_csr(self, length: int) -> None:
        expected = self.model.pek_csr(length)
        status, after = self.give(Command.PEK_CSR, buffers.PekCsr(paddr=SCRATCH, length=length))
        assert (expected, CERT_SIZE if expected in (OK, LENGTH) else length) == (status, after.length)
        if status == OK:
            csr = self.world.desk.read(SCRATCH, CERT_SIZE)
            assert csr == self.requests.setdefault(self.model.keys[0], csr)

    @rule(
        weight=2,
        when=lambda self: self.requests,
        which=some(0, 0, 0, 1, 2),
        lengths=some(*[(CERT_SIZE, CERT_SIZE)] * 4, (CERT_SIZE - 1, CERT_SIZE), (CERT_SIZE, 0)),
        altered=some("", "", "", "oca", "pek"),
    )
    def pek_cert_import(self, which: int, lengths: tuple[int, int], altered: str) -> None:
        """The newest request signed by an organisation, or one of an identity that is perhaps no more."""
        desk = self.world.desk
        identity = sorted(self.requests, reverse=True)[which % len(self.requests)]
        self.owners += 1
        given = {"oca": bytes(ORGANISATION.oca)}
        given["pek"] = bytes(ORGANISATION.sign(SevCert.parse(self.requests[identity])))
        if altered:
            given[altered] = flipped(given[altered], (SIGNATURE_AT + 8) * 8)
        desk.write(SCRATCH, given["pek"])
        desk.write(SCRATCH + 4096, given["oca"])
        state, genuine = self.model.state, not altered
        expected = self.model.pek_cert_import(
            self.owners, state=state, lengths=lengths, identity=identity, genuine=genuine
        )
        asked = buffers.PekCertImport(
            pek_paddr=SCRATCH, pek_len=lengths[0], oca_paddr=SCRATCH + 4096, oca_len=lengths[1]
        )
        assert expected == self.give(Command.PEK_CERT_IMPORT, asked)[0]

    @rule(when=lambda self: self.model.state == INIT)
    def change_hands_properly(self) -> None:
        self.pek_csr(CERT_SIZE)
        self.pek_cert_import(0, (CERT_SIZE, CERT_SIZE), "")

    # ---- migration to this very platform

    @rule(handle=HANDLES, session_len=some(0x80, 0x80, 0x80, 0, 0x81))
    def send_start(self, handle: int, session_len: int) -> None:
        pdh = self.export()[0] if self.model.up else bytes(CERT_SIZE)
        self.world.desk.write(SCRATCH, pdh)
        expected, session = self.model.send_start(handle, session_len=session_len)
        asked = buffers.SendStart(
            handle=handle,
            pdh_cert_paddr=SCRATCH,
            pdh_cert_len=CERT_SIZE,
            session_paddr=SCRATCH + 4096,
            session_len=session_len,
        )
        status, after = self.give(Command.SEND_START, asked)
        assert (expected, 0x80 if status == 0x04 else session_len) == (status, after.session_len)
        if session is not None:
            assert session.policy == after.policy
            self.sent = session, self.world.desk.read(SCRATCH + 4096, 0x80), pdh

    @rule(handle=HANDLES, offset=some(0, 0, 16, 8), length=LENGTHS, hdr_len=HEADERS)
    def send_update_data(self, handle: int, offset: int, length: int, hdr_len: int) -> None:
        self.send_update(handle, Spa(DATA + offset), length, hdr_len, vmsa=False)

    @rule(handle=HANDLES, offset=SAVE_AREAS, length=some(*[4096] * 4, 4080), hdr_len=HEADERS)
    def send_update_vmsa(self, handle: int, offset: int, length: int, hdr_len: int) -> None:
        self.send_update(handle, Spa(VMSA_AT + offset), length, hdr_len, vmsa=True)

    def send_update(self, handle: int, inside: Spa, length: int, hdr_len: int = 0x34, *, vmsa: bool) -> None:
        desk = self.world.desk
        expected = self.model.send_update(handle, paddr=inside, length=length, hdr_len=hdr_len, vmsa=vmsa)
        asked = buffers.SendUpdateData(
            handle=handle,
            hdr_paddr=SCRATCH,
            hdr_len=hdr_len,
            guest_paddr=inside,
            guest_len=length,
            trans_paddr=SCRATCH + 4096,
            trans_len=length,
        )
        command = Command.SEND_UPDATE_VMSA if vmsa else Command.SEND_UPDATE_DATA
        status, after = self.give(command, asked)
        assert (expected, 0x34) == (status, after.hdr_len if hdr_len < 0x34 and status == LENGTH else 0x34)
        if expected == OK:
            guest = self.model.guests[handle]
            plaintext = self.world.machine.controller.read(inside, length, key_of(guest.asid))
            self.packet = (
                guest.journey,
                desk.read(SCRATCH, 0x34),
                desk.read(SCRATCH + 4096, length),
                plaintext,
            )

    @rule(handle=HANDLES, cancel=some(False, True))
    def send_end(self, handle: int, cancel: bool) -> None:
        asked = buffers.GuestHandle(handle=handle)
        command = Command.SEND_CANCEL if cancel else Command.SEND_FINISH
        assert self.model.send_end(handle, cancel=cancel) == self.give(command, asked)[0]

    @rule(when=lambda self: self.sent, flip=some(0, 0, 0, 1, 8), share=some(0, 0, 0, 1, 5))
    def receive_start(self, flip: int, share: int) -> None:
        assert self.sent is not None
        session, blob, pdh = self.sent
        self.world.desk.write(SCRATCH, pdh)
        self.world.desk.write(SCRATCH + 4096, blob)
        policy = session.policy ^ flip
        expected = self.model.receive_start(session, policy=policy, share=share)
        asked = buffers.ReceiveStart(
            handle=share,
            policy=policy,
            pdh_cert_paddr=SCRATCH,
            pdh_cert_len=CERT_SIZE,
            session_paddr=SCRATCH + 4096,
            session_len=0x80,
        )
        status, after = self.give(Command.RECEIVE_START, asked)
        assert expected == (status, after.handle if status == OK else 0)

    @rule(when=lambda self: self.packet, handle=HANDLES, offset=some(0, 0, 8))
    def receive_update_data(self, handle: int, offset: int) -> None:
        self.receive_update(handle, Spa(SECRET_AT + offset), vmsa=False)

    @rule(when=lambda self: self.packet, handle=HANDLES, offset=SAVE_AREAS)
    def receive_update_vmsa(self, handle: int, offset: int) -> None:
        self.receive_update(handle, Spa(VMSA_AT + offset), vmsa=True)

    def receive_update(self, handle: int, target: Spa, *, vmsa: bool) -> None:
        assert self.packet is not None
        journey, header, data, plaintext = self.packet
        desk = self.world.desk
        desk.write(SCRATCH, header)
        desk.write(SCRATCH + 4096, data)
        expected = self.model.receive_update(
            handle, paddr=target, length=len(data), journey=journey, vmsa=vmsa
        )
        asked = buffers.ReceiveUpdateData(
            handle=handle,
            hdr_paddr=SCRATCH,
            hdr_len=0x34,
            guest_paddr=target,
            guest_len=len(data),
            trans_paddr=SCRATCH + 4096,
            trans_len=len(data),
        )
        command = Command.RECEIVE_UPDATE_VMSA if vmsa else Command.RECEIVE_UPDATE_DATA
        assert expected == self.give(command, asked)[0]
        if expected == OK:
            key = key_of(self.model.guests[handle].asid)
            found = self.world.machine.controller.read(target, len(data), key)
            if vmsa:  # the firmware's two words are this platform's
                found = found[:0x380] + plaintext[0x380:0x390] + found[0x390:]
            assert plaintext == found

    @rule(handle=HANDLES)
    def receive_finish(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.receive_finish(handle) == self.give(Command.RECEIVE_FINISH, asked)[0]

    @rule(weight=3, when=lambda self: self.model.up, policy=some(0, 1, 4, 4), finish=some(False, True))
    def migrate_properly(self, policy: int, finish: bool) -> None:
        """Go the whole way, from a launch to a packet that arrives."""
        vmsa = bool(policy & 4)
        self.launch_properly(policy, 0, True)
        sender = max(self.model.guests, default=1)
        self.send_start(sender, 0x80)
        self.send_update(sender, VMSA_AT if vmsa else DATA, 4096 if vmsa else 48, vmsa=vmsa)
        if self.sent and self.packet:
            self.receive_start(0, 0)
            receiver = max(self.model.guests, default=1)
            self.activate(receiver, 2 if vmsa else 6)
            self.receive_update(receiver, Spa(VMSA_AT + 4096) if vmsa else SECRET_AT, vmsa=vmsa)
            if finish:
                self.send_end(sender, False)
                self.receive_finish(receiver)

    # ---- swapping

    @rule(handle=HANDLES, vmsa=some(False, True), offset=SAVE_AREAS, slot=SLOTS, page=PAGES)
    def swap_out(self, handle: int, vmsa: bool, offset: int, slot: int, page: int) -> None:
        src, dst = Spa((VMSA_AT if vmsa else DATA) + offset), Spa(SWAP_AT + slot * 0x2000)
        expected = self.model.swap_out(handle, src=src, slot=slot, page=page)
        if expected == OK:
            asid = self.model.guests[handle].asid
            self.pages[slot] = self.inside(src, 4096, asid)
        asked = buffers.SwapOut(handle=handle, page=page, src=src, dst=dst, mdata=dst + 0x1000)
        assert expected == self.give(Command.SWAP_OUT, asked)[0]

    @rule(handle=HANDLES, vmsa=some(False, True), offset=SAVE_AREAS, slot=SLOTS, page=PAGES)
    def swap_in(self, handle: int, vmsa: bool, offset: int, slot: int, page: int) -> None:
        src, dst = Spa(SWAP_AT + slot * 0x2000), Spa((VMSA_AT if vmsa else SWAP_TO) + offset)
        expected = self.model.swap_in(handle, slot=slot, dst=dst, page=page)
        asked = buffers.SwapIn(handle=handle, page=page, src=src, dst=dst, mdata=src + 0x1000)
        assert expected == self.give(Command.SWAP_IN, asked)[0]
        if expected == OK:
            asid = self.model.guests[handle].asid
            assert self.pages[slot] == self.inside(dst, 4096, asid)

    @rule(
        weight=2,
        when=lambda self: self.model.guests,
        which=some(*range(0, 5)),
        vmsa=some(False, True),
        slot=SLOTS,
    )
    def swap_properly(self, which: int, vmsa: bool, slot: int) -> None:
        handle = sorted(self.model.guests)[which % len(self.model.guests)]
        page = VMSA if vmsa else 0
        self.swap_out(handle, vmsa, 0, slot, page)
        self.swap_in(handle, vmsa, 4096, slot, page)


@pytest.mark.timeout(600)
def test_the_firmware_is_the_papers(chips: Chips) -> None:
    wanted = settings()
    images = signed(chips)
    thorough = wanted.max_examples >= settings.get_profile("thorough").max_examples
    budget = BUDGET if thorough else BUDGET // 5
    seeds = count(0 if wanted.derandomize else SystemRandom().getrandbits(32))
    given = AgainstTheModel.given
    while AgainstTheModel.given - given < budget:
        go(partial(AgainstTheModel.begin, chips, images), seed=next(seeds), count=STEPS)
    never = {command for command in PAPER if (command, OK) not in AgainstTheModel.answers}
    assert never <= NOT_WALKED or not thorough


def test_a_walk_that_fails_is_told_by_its_shortest() -> None:
    """The walker's own bad twin: a counter that must not pass three, however it got there."""

    class Counter:
        def __init__(self) -> None:
            self.value = 0

        @rule(by=some(0, 1))
        def add(self, by: int) -> None:
            self.value += by

        @rule(when=lambda self: self.value > 1)
        def nothing(self) -> None:
            pass

        def check(self) -> None:
            assert self.value <= 3

    with pytest.raises(AssertionError) as told:
        go(lambda: nullcontext(Counter()), seed=1, count=100)
    assert "walk 1 fails; so does" + 4 * "\nadd(by=1)" == str(told.value)
    go(lambda: nullcontext(Counter()), seed=1, count=3)
