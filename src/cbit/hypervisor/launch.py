"""The launch of a SEV guest, orchestrated by a hypervisor that only carries what it cannot read.

    LAUNCH_START, ACTIVATE → LAUNCH_UPDATE_DATA … → LAUNCH_MEASURE → LAUNCH_SECRET … → LAUNCH_FINISH
    DEACTIVATE, DECOMMISSION at the end

Paper: sev-api.md §7, §13 (KVM's flow); DESIGN.md story lines 5, 6, 9.
"""

from __future__ import annotations

from dataclasses import dataclass

from cbit.hypervisor.vm import Vm
from cbit.spec import buffers
from cbit.spec.address import Gpa
from cbit.spec.command import Command
from cbit.spec.policy import ApiVersion
from cbit.spec.receipt import LaunchReceipt
from cbit.spec.session import MeasureBlob
from cbit.spec.wire import Wire


@dataclass(slots=True)
class SevGuest:
    """A SEV guest of this host: its memory, its firmware handle, its ASID."""

    vm: Vm
    handle: int
    asid: int
    policy: int

    @classmethod
    def start(
        cls,
        vm: Vm,
        *,
        policy: int,
        godh: bytes = b"",
        session: bytes = b"",
        share_with: SevGuest | None = None,
    ) -> SevGuest:
        """LAUNCH_START with the owner's certificate and session, then ACTIVATE.

        Args:
            vm: the guest's memory.
            policy: the policy word the owner bound into the session.
            godh: the owner's Diffie-Hellman certificate; empty for a launch without an owner.
            session: the owner's session buffer.
            share_with: a guest of the same owner whose memory key is shared (its policy permitting).

        Raises:
            NoAsid: more guests than ASIDs; nothing was started.
            FirmwareError: the secure processor refuses; nothing is left behind.
        """
        host = vm.host
        with host.lent(godh or b"\x00") as godh_at, host.lent(session or b"\x00") as session_at:
            request = buffers.LaunchStart(
                handle=share_with.handle if share_with else 0,
                policy=policy,
                dh_cert_paddr=godh_at if godh else 0,
                dh_cert_len=len(godh),
                session_paddr=session_at,
                session_len=len(session),
            )
            asid = host.asids.take()
            try:
                handle = host.ccp.call(Command.LAUNCH_START, request).handle
            except BaseException:
                host.asids.give_back(asid, dirty=False)
                raise
        guest = cls(vm, handle, asid, policy)
        try:
            guest.activate()
        except BaseException:
            host.asids.give_back(asid)
            guest.decommission()
            raise
        vm.asid = asid
        return guest

    def activate(self) -> None:
        """ACTIVATE: put the guest's key into the slot of its ASID."""
        self._call(Command.ACTIVATE, buffers.Activate(handle=self.handle, asid=self.asid))

    def deactivate(self) -> None:
        """DEACTIVATE: the ASID is not the guest's any more, and dirty; the pool still counts it as taken."""
        self._call(Command.DEACTIVATE, buffers.GuestHandle(handle=self.handle))

    def decommission(self) -> None:
        """DECOMMISSION: the secure processor forgets the guest."""
        self._call(Command.DECOMMISSION, buffers.GuestHandle(handle=self.handle))

    def update(self, gpa: Gpa, length: int) -> None:
        """LAUNCH_UPDATE_DATA: measure and encrypt what was loaded there."""
        request = buffers.LaunchUpdateData(handle=self.handle, paddr=self.vm.spa(gpa, length), length=length)
        self._call(Command.LAUNCH_UPDATE_DATA, request)

    def measure_alone(self) -> MeasureBlob:
        """LAUNCH_MEASURE and nothing else."""
        host = self.vm.host
        with host.room(MeasureBlob.SIZE) as page:
            request = buffers.LaunchMeasure(
                handle=self.handle, measure_paddr=page, measure_len=MeasureBlob.SIZE
            )
            host.ccp.call(Command.LAUNCH_MEASURE, request)
            return MeasureBlob.parse(host.read(page, MeasureBlob.SIZE))

    def measure(self) -> LaunchReceipt:
        """LAUNCH_MEASURE, and everything else the owner needs to check it, as one receipt."""
        host, blob = self.vm.host, self.measure_alone()
        status = host.status()
        return LaunchReceipt(
            measure=blob.measure,
            mnonce=blob.mnonce,
            api=ApiVersion(status.api_major, status.api_minor),
            build=status.build,
            policy=self.policy,
            chain=host.export_chain(),
        )

    def inject(self, gpa: Gpa, header: bytes, payload: bytes) -> None:
        """LAUNCH_SECRET: hand the owner's packet over; what is in it goes to ``gpa``, encrypted."""
        host = self.vm.host
        with host.lent(header) as header_at, host.lent(payload) as payload_at:
            request = buffers.LaunchSecret(
                handle=self.handle,
                hdr_paddr=header_at,
                hdr_len=len(header),
                guest_paddr=self.vm.spa(gpa, len(payload)),
                guest_len=len(payload),
                trans_paddr=payload_at,
                trans_len=len(payload),
            )
            self._call(Command.LAUNCH_SECRET, request)

    def finish(self) -> None:
        """LAUNCH_FINISH: the guest may run."""
        self._call(Command.LAUNCH_FINISH, buffers.GuestHandle(handle=self.handle))

    def status(self) -> buffers.GuestStatus:
        """GUEST_STATUS."""
        return self.vm.host.ccp.call(Command.GUEST_STATUS, buffers.GuestStatus(handle=self.handle))

    def end(self) -> None:
        """DEACTIVATE and DECOMMISSION, in any state; all memory goes back, its ASID is dirty until a flush.

        Raises:
            FirmwareError: the guest has ended already.
        """
        self.release()
        self.vm.destroy()

    def release(self) -> None:
        """DEACTIVATE and DECOMMISSION alone: the memory stays, for another launch (errors as ``end``)."""
        self.deactivate()
        self.vm.host.asids.give_back(self.asid)
        self.vm.host.forget_use(self.asid)
        self.decommission()
        self.vm.asid = 0

    def _call(self, command: Command, request: Wire) -> None:
        self.vm.host.ccp.call(command, request)
