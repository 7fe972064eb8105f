"""Any order of commands: the firmware answers and stands as the small model of the paper does."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cbit.crypto.ctr import aes_ctr
from cbit.crypto.key import Key
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.command import Command
from cbit.spec.key_id import guest as key_of
from cbit.spec.session import MeasureBlob
from cbit.spec.wire import Wire
from secure_processor.model import LAST, OK, UNINIT, Context, Model, Session
from secure_processor.worlds import MEMORY, TMR, Chips, World

HANDLES = st.integers(0, 5)
ASIDS = st.sampled_from([0, 1, 4, 5, 5, 6, 6, 15, 16])
#: None, no debugging, no sharing, ES, ES without sharing, no sending; this version, newer ones; reserved.
POLICIES = st.sampled_from([0, 0, 1, 2, 4, 6, 8, 17 << 24, 18 << 24, 1 << 16, 0x40])
TMRS = st.sampled_from(
    [(TMR, 1 << 20)] * 3 + [(0, 1 << 20), (TMR + 4096, 1 << 20), (TMR, 4096), (MEMORY, 1 << 20)]
)
LENGTHS = st.sampled_from([16, 16, 48, 4096, 0, 8, 24])
DATA, SECRET_AT, SCRATCH = Spa(0x100000), Spa(0x110000), Spa(0x120000)


class AgainstTheModel(RuleBasedStateMachine):
    """Two machines side by side: one of silicon's commands, one of the paper's words."""

    chips: Chips

    def __init__(self) -> None:
        super().__init__()
        self._world = self.chips.world()
        self.world: World = self._world.__enter__()
        self.model = Model()
        self.seen: dict[tuple[int, int], bytes] = {}
        #: The last session: as the model knows it, its bytes, the sender's PDH certificate.
        self.sent: tuple[Session, bytes, bytes] | None = None
        #: The last packet: journey, header, ciphertext, plaintext.
        self.packet: tuple[int, bytes, bytes, bytes] | None = None

    def teardown(self) -> None:
        self._world.__exit__(None, None, None)

    def give(self, command: Command, buffer: Wire | None = None) -> tuple[int, Any]:
        status, why, after = self.world.desk.attempt(command, buffer)
        assert bool(why) == (status != OK)
        return status, after

    # ---- platform

    @rule(flags=st.sampled_from([0, 0, 1, 1, 2, 3]), tmr=TMRS)
    def init(self, flags: int, tmr: tuple[int, int]) -> None:
        expected = self.model.init(flags=flags, tmr_paddr=tmr[0], tmr_length=tmr[1], dram=MEMORY)
        asked = buffers.Init(flags=flags, tmr_paddr=tmr[0], tmr_length=tmr[1])
        assert expected == self.give(Command.INIT, asked)[0]

    @precondition(lambda self: self.model.up)
    @rule(sure=st.integers(0, 4))
    def shutdown(self, sure: int) -> None:
        if sure == 0:  # or nothing else would ever last
            assert self.model.shutdown() == self.give(Command.SHUTDOWN)[0]

    @rule()
    def platform_reset(self) -> None:
        assert self.model.platform_reset() == self.give(Command.PLATFORM_RESET)[0]

    @rule()
    def pek_gen(self) -> None:
        assert self.model.pek_gen() == self.give(Command.PEK_GEN)[0]

    @rule()
    def pdh_gen(self) -> None:
        assert self.model.pdh_gen() == self.give(Command.PDH_GEN)[0]

    @rule(ccx=st.integers(0, 1))
    def wbinvd(self, ccx: int) -> None:
        self.model.wbinvd(ccx)
        self.world.machine.cores[ccx].wbinvd()

    @rule()
    def df_flush(self) -> None:
        assert self.model.df_flush() == self.give(Command.DF_FLUSH)[0]

    @rule()
    def flush_properly(self) -> None:
        for ccx in range(2):
            self.wbinvd(ccx)
        self.df_flush()

    # ---- guests

    @rule(handle=HANDLES, asid=ASIDS)
    def activate(self, handle: int, asid: int) -> None:
        expected = self.model.activate(handle, asid)
        assert expected == self.give(Command.ACTIVATE, buffers.Activate(handle=handle, asid=asid))[0]

    @rule(
        handle=HANDLES,
        asid=ASIDS,
        cores=st.lists(st.sampled_from([0, 0, 1, 1, 2]), max_size=3),
        length=st.sampled_from([0x18] * 5 + [0x17]),
    )
    def activate_ex(self, handle: int, asid: int, cores: list[int], length: int) -> None:
        expected = self.model.activate_ex(handle, asid, cores=cores, length=length)
        self.world.desk.write(SCRATCH, b"".join(core.to_bytes(4, "little") for core in cores) or bytes(4))
        asked = buffers.ActivateEx(
            length=length, handle=handle, asid=asid, numids=len(cores), ids_paddr=SCRATCH
        )
        assert expected == self.give(Command.ACTIVATE_EX, asked)[0]

    @rule(handle=HANDLES)
    def deactivate(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.deactivate(handle) == self.give(Command.DEACTIVATE, asked)[0]

    @rule(handle=HANDLES)
    def decommission(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.decommission(handle) == self.give(Command.DECOMMISSION, asked)[0]

    # ---- launch

    @rule(policy=POLICIES, share=st.sampled_from([0, 0, 0, 1, 2, 5]))
    def launch_start(self, policy: int, share: int) -> None:
        expected = self.model.launch_start(policy, share)
        asked = buffers.LaunchStart(handle=share, policy=policy)
        status, after = self.give(Command.LAUNCH_START, asked)
        assert expected == (status, after.handle if status == OK else 0)

    @rule(
        handle=HANDLES, offset=st.sampled_from([0, 0, 4096, 8]), length=st.sampled_from([4096] * 4 + [4080])
    )
    def launch_update_vmsa(self, handle: int, offset: int, length: int) -> None:
        desk, paddr = self.world.desk, Spa(DATA + offset)
        plaintext = bytes([handle]) * 4096
        desk.write(paddr, plaintext)
        expected = self.model.launch_update_vmsa(handle, paddr=paddr, length=length, plaintext=plaintext)
        asked = buffers.LaunchUpdateVmsa(handle=handle, paddr=paddr, length=length)
        assert expected == self.give(Command.LAUNCH_UPDATE_VMSA, asked)[0]

    @rule(handle=HANDLES, offset=st.sampled_from([0, 0, 16, 4096, 8]), length=LENGTHS)
    def launch_update_data(self, handle: int, offset: int, length: int) -> None:
        desk, paddr = self.world.desk, Spa(DATA + offset)
        plaintext = bytes([handle]) * length
        desk.write(paddr, plaintext)
        expected = self.model.launch_update_data(handle, paddr=paddr, length=length, plaintext=plaintext)
        asked = buffers.LaunchUpdateData(handle=handle, paddr=paddr, length=length)
        assert expected == self.give(Command.LAUNCH_UPDATE_DATA, asked)[0]
        if expected == OK:
            key = key_of(self.model.guests[handle].asid)
            assert plaintext == self.world.machine.controller.read(paddr, length, key)
        assert (expected == OK) == (plaintext != desk.read(paddr, length)) or not length

    @rule(handle=HANDLES, length=st.sampled_from([0x30, 0x30, 0x40, 0, 0x2F]))
    def launch_measure(self, handle: int, length: int) -> None:
        expected = self.model.launch_measure(handle, length=length)
        asked = buffers.LaunchMeasure(handle=handle, measure_paddr=SCRATCH, measure_len=length)
        status, after = self.give(Command.LAUNCH_MEASURE, asked)
        assert expected == status
        assert after.measure_len == (0x30 if status == 0x04 else length)
        if status == OK:
            blob = MeasureBlob.parse(self.world.desk.read(SCRATCH, 0x30))
            assert self.model.measurement(handle, blob.mnonce) == blob.measure

    @rule(handle=HANDLES, offset=st.sampled_from([0, 0, 16, 8]), length=LENGTHS, genuine=st.booleans())
    def launch_secret(self, handle: int, offset: int, length: int, genuine: bool) -> None:
        desk, target = self.world.desk, Spa(SECRET_AT + offset)
        plaintext = b"\x5e" * length
        data = aes_ctr(Key(bytes(16)), bytes(16), plaintext)
        measure = self.model.guests.get(handle, Context(0)).measure
        lengths = length.to_bytes(4, "little") * 2
        mac = hmac.digest(bytes(16), b"\x01" + bytes(20) + lengths + data + measure, "sha256")
        desk.write(SCRATCH, bytes(20) + (mac if genuine else bytes(32)))
        desk.write(SCRATCH + 4096, data)
        expected = self.model.launch_secret(handle, paddr=target, length=length, genuine=genuine)
        asked = buffers.LaunchSecret(
            handle=handle,
            hdr_paddr=SCRATCH,
            hdr_len=0x34,
            guest_paddr=target,
            guest_len=length,
            trans_paddr=SCRATCH + 4096,
            trans_len=length,
        )
        assert expected == self.give(Command.LAUNCH_SECRET, asked)[0]
        if expected == OK:
            key = key_of(self.model.guests[handle].asid)
            assert plaintext == self.world.machine.controller.read(target, length, key)

    @rule(handle=HANDLES)
    def launch_finish(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.launch_finish(handle) == self.give(Command.LAUNCH_FINISH, asked)[0]

    @precondition(lambda self: self.model.up)
    @rule(policy=st.sampled_from([0, 1, 8]), asid=st.sampled_from([5, 6]), finish=st.booleans())
    def launch_properly(self, policy: int, asid: int, finish: bool) -> None:
        """Go the whole way, so that what only a running guest meets is met often."""
        self.flush_properly()
        self.launch_start(policy, 0)
        handle = max(self.model.guests, default=1)
        self.activate(handle, asid)
        self.launch_measure(handle, 0x30)
        if finish:
            self.launch_finish(handle)

    # ---- report, debug, copy

    @rule(handle=HANDLES, length=st.sampled_from([0xD0, 0xD0, 0x200, 0, 0xCF]))
    def attestation(self, handle: int, length: int) -> None:
        expected = self.model.attestation(handle, length=length)
        asked = buffers.Attestation(handle=handle, paddr=SCRATCH, mnonce=b"n" * 16, length=length)
        status, after = self.give(Command.ATTESTATION, asked)
        assert (expected, 0xD0 if status == 0x04 else length) == (status, after.length)
        if status == OK:
            report = self.world.desk.read(SCRATCH, 0xD0)
            policy = self.model.guests[handle].policy.to_bytes(4, "little")
            assert (b"n" * 16, policy) == (report[:0x10], report[0x30:0x34])

    @rule(handle=HANDLES, offset=st.sampled_from([0, 0, 16, 8]), length=LENGTHS)
    def debug(self, handle: int, offset: int, length: int) -> None:
        """Encrypt something into the guest and decrypt it again."""
        desk, inside, back = self.world.desk, DATA + offset, SCRATCH + 4096
        plaintext = bytes([0x80 | handle]) * length
        desk.write(SCRATCH, plaintext)
        desk.write(back, bytes(length))
        expected = self.model.debug(handle, src=SCRATCH, dst=inside, length=length)
        asked = buffers.Debug(handle=handle, src=SCRATCH, dst=inside, length=length)
        assert expected == self.give(Command.DBG_ENCRYPT, asked)[0]
        expected = self.model.debug(handle, src=inside, dst=back, length=length)
        asked = buffers.Debug(handle=handle, src=inside, dst=back, length=length)
        assert expected == self.give(Command.DBG_DECRYPT, asked)[0]
        assert (plaintext if expected == OK else bytes(length)) == desk.read(back, length)

    @rule(
        handle=HANDLES,
        offset=st.sampled_from([4096, 4096, 0, 16]),
        length=st.sampled_from([4096, 8192, 0, 16]),
    )
    def copy(self, handle: int, offset: int, length: int) -> None:
        src, dst = DATA, Spa(DATA + offset)
        expected = self.model.copy(handle, src=src, dst=dst, length=length)
        asid = self.model.guests[handle].asid if handle in self.model.guests else 0
        memory = self.world.machine.memory
        before = memory.read(src, length, key_of(asid)) if asid and length else b""
        asked = buffers.Copy(handle=handle, length=length, src=src, dst=dst)
        assert expected == self.give(Command.COPY, asked)[0]
        if expected == OK:
            assert before == memory.read(dst, length, key_of(asid))

    # ---- migration to this very platform

    @rule(handle=HANDLES, session_len=st.sampled_from([0x80, 0x80, 0x80, 0, 0x81]))
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

    @rule(handle=HANDLES, offset=st.sampled_from([0, 0, 16, 8]), length=LENGTHS)
    def send_update(self, handle: int, offset: int, length: int) -> None:
        desk, inside = self.world.desk, Spa(DATA + offset)
        expected = self.model.send_update(handle, paddr=inside, length=length)
        asked = buffers.SendUpdateData(
            handle=handle,
            hdr_paddr=SCRATCH,
            hdr_len=0x34,
            guest_paddr=inside,
            guest_len=length,
            trans_paddr=SCRATCH + 4096,
            trans_len=length,
        )
        assert expected == self.give(Command.SEND_UPDATE_DATA, asked)[0]
        if expected == OK:
            guest = self.model.guests[handle]
            plaintext = self.world.machine.controller.read(inside, length, key_of(guest.asid))
            self.packet = (
                guest.journey,
                desk.read(SCRATCH, 0x34),
                desk.read(SCRATCH + 4096, length),
                plaintext,
            )

    @rule(handle=HANDLES, cancel=st.booleans())
    def send_end(self, handle: int, cancel: bool) -> None:
        asked = buffers.GuestHandle(handle=handle)
        command = Command.SEND_CANCEL if cancel else Command.SEND_FINISH
        assert self.model.send_end(handle, cancel=cancel) == self.give(command, asked)[0]

    @precondition(lambda self: self.sent)
    @rule(flip=st.sampled_from([0, 0, 0, 1, 8]), share=st.sampled_from([0, 0, 0, 1, 5]))
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

    @precondition(lambda self: self.packet)
    @rule(handle=HANDLES, offset=st.sampled_from([0, 0, 8]))
    def receive_update(self, handle: int, offset: int) -> None:
        assert self.packet is not None
        journey, header, data, plaintext = self.packet
        desk, target = self.world.desk, Spa(SECRET_AT + offset)
        desk.write(SCRATCH, header)
        desk.write(SCRATCH + 4096, data)
        expected = self.model.receive_update(handle, paddr=target, length=len(data), journey=journey)
        asked = buffers.ReceiveUpdateData(
            handle=handle,
            hdr_paddr=SCRATCH,
            hdr_len=0x34,
            guest_paddr=target,
            guest_len=len(data),
            trans_paddr=SCRATCH + 4096,
            trans_len=len(data),
        )
        assert expected == self.give(Command.RECEIVE_UPDATE_DATA, asked)[0]
        if expected == OK:
            key = key_of(self.model.guests[handle].asid)
            assert plaintext == self.world.machine.controller.read(target, len(data), key)

    @rule(handle=HANDLES)
    def receive_finish(self, handle: int) -> None:
        asked = buffers.GuestHandle(handle=handle)
        assert self.model.receive_finish(handle) == self.give(Command.RECEIVE_FINISH, asked)[0]

    @precondition(lambda self: self.model.up)
    @rule(policy=st.sampled_from([0, 1]), finish=st.booleans())
    def migrate_properly(self, policy: int, finish: bool) -> None:
        """Go the whole way, from a launch to a packet that arrives."""
        self.launch_properly(policy, 5, True)
        sender = max(self.model.guests, default=1)
        self.send_start(sender, 0x80)
        self.send_update(sender, 0, 48)
        if self.sent and self.packet:
            self.receive_start(0, 0)
            receiver = max(self.model.guests, default=1)
            self.activate(receiver, 6)
            self.receive_update(receiver, 0)
            if finish:
                self.send_end(sender, False)
                self.receive_finish(receiver)

    # ---- what can be seen, after every step

    @invariant()
    def the_platform_reports_what_the_model_says(self) -> None:
        status, model = self.world.desk.platform(), self.model
        assert (model.state, 0, int(model.es), len(model.guests)) == (
            status.state,
            status.owner,
            status.config,
            status.guest_count,
        )
        if model.up:
            pdh, chain = self.export()
            expected = self.seen.setdefault((model.identity, model.pdh), pdh + chain)
            assert expected == pdh + chain
            assert len(self.seen) == len(set(self.seen.values()))  # another identity is another one

    @invariant()
    def the_guests_stand_as_the_model_says(self) -> None:
        if self.model.state == UNINIT:
            assert 0x01 == self.give(Command.GUEST_STATUS, buffers.GuestStatus(handle=1))[0]
            return
        for handle in range(0, 8):
            found = self.world.desk.guest(handle)
            guest = self.model.guests.get(handle)
            seen = (found.policy, found.asid, found.state)
            assert seen == ((guest.policy, guest.asid, guest.state) if guest else (0, 0, 0))

    @invariant()
    def only_running_guests_can_be_entered(self) -> None:
        usable = {asid for asid in range(1, LAST + 1) if self.world.firmware.is_asid_usable(asid)}
        assert self.model.running == usable

    def export(self) -> tuple[bytes, bytes]:
        asked = buffers.PdhCertExport(
            pdh_paddr=SCRATCH, pdh_len=CERT_SIZE, certs_paddr=SCRATCH + 4096, certs_len=3 * CERT_SIZE
        )
        assert OK == self.give(Command.PDH_CERT_EXPORT, asked)[0]
        read = self.world.desk.read
        return read(SCRATCH, CERT_SIZE), read(SCRATCH + 4096, 3 * CERT_SIZE)


@pytest.mark.timeout(600)
def test_the_firmware_is_the_papers(chips: Chips) -> None:
    machine = type("Machine", (AgainstTheModel,), {"chips": chips})
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=60))
