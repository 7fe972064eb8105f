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
from secure_processor.model import LAST, OK, UNINIT, Context, Model
from secure_processor.worlds import MEMORY, TMR, Chips, World

HANDLES = st.integers(0, 5)
ASIDS = st.sampled_from([0, 1, 4, 5, 5, 6, 6, 15, 16])
#: None, no debugging, no sharing, ES, ES without sharing; this version, newer ones; a reserved bit.
POLICIES = st.sampled_from([0, 0, 1, 2, 4, 6, 17 << 24, 18 << 24, 1 << 16, 0x40])
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
