"""One host: a machine, its driver, its free memory and its ASIDs.

Paper: sev-api.md §12 (what Linux does at start-up); memory-encryption.md §8 rule 7 (ASID re-use).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from cbit.driver.ccp import Ccp
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.asid_pool import AsidPool
from cbit.hypervisor.direct_map import DirectMap
from cbit.hypervisor.frames import Frames
from cbit.machine.board import Machine
from cbit.spec import buffers
from cbit.spec.address import Spa
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE
from cbit.spec.command import Command
from cbit.spec.status import Status


class Protection(StrEnum):
    """How a guest's memory is protected."""

    NONE = "none"  #: nothing
    SME = "sme"  #: the host marks its pages, guest memory included, with the C-bit: one key, the host's
    SEV = "sev"  #: the guest's own key, installed by the secure processor


class Host:
    """The software below the guests: it owns the machine and none of the guests' keys.

    Attributes:
        machine: the hardware.
        ccp: the driver of the secure processor.
        frames: free system memory.
        asids: ASIDs for SEV guests without ES.
    """

    def __init__(self, machine: Machine) -> None:
        features = machine.profile.features
        self.machine = machine
        self.frames = Frames(machine.memory_size)
        self._map = DirectMap(machine.cores, self.frames, memory_size=machine.memory_size)
        self.ccp = Ccp(machine, self.frames.take_page())
        self.asids = AsidPool(first=features.min_sev_no_es_asid, last=features.guests, flush=self.flush)

    def initialise(self) -> None:
        """INIT, as a driver does: once more if the NV store was damaged, for INIT erased it.

        Raises:
            FirmwareError: INIT is refused.
        """
        try:
            self.ccp.call(Command.INIT, buffers.Init())
        except FirmwareError as error:
            if error.status != Status.SECURE_DATA_INVALID:
                raise
            self.ccp.call(Command.INIT, buffers.Init())

    def flush(self) -> None:
        """Make dirty ASIDs clean: WBINVD on every core, then DF_FLUSH."""
        self.machine.wbinvd_on_all_cores()
        self.ccp.issue(Command.DF_FLUSH)

    def status(self) -> buffers.PlatformStatus:
        """Ask for the platform's status."""
        return self.ccp.call(Command.PLATFORM_STATUS, buffers.PlatformStatus())

    def export_chain(self) -> bytes:
        """PDH ‖ PEK ‖ OCA ‖ CEK, the CEK unsigned."""
        with self.room(CERT_SIZE) as pdh, self.room(CHAIN_SIZE) as chain:
            request = buffers.PdhCertExport(
                pdh_paddr=pdh, pdh_len=CERT_SIZE, certs_paddr=chain, certs_len=CHAIN_SIZE
            )
            self.ccp.call(Command.PDH_CERT_EXPORT, request)
            return self.read(pdh, CERT_SIZE) + self.read(chain, CHAIN_SIZE)

    def chip_id(self) -> bytes:
        """GET_ID: what indexes the CEK certificate at the vendor."""
        with self.room(64) as page:
            self.ccp.call(Command.GET_ID, buffers.GetId(paddr=page, length=64))
            return self.read(page, 64)

    def read(self, spa: Spa, length: int, *, c: bool = False) -> bytes:
        """Read memory as host software does: through a mapping with C=0, or with C=1 and the host's key."""
        return self._map.read(spa, length, c=c)

    def write(self, spa: Spa, data: bytes, *, c: bool = False) -> None:
        """Write memory as host software does."""
        self._map.write(spa, data, c=c)

    @contextmanager
    def room(self, length: int) -> Iterator[Spa]:
        """Lend memory for the time of a command."""
        frames = self.frames.take(length)
        try:
            yield Spa(frames.start)
        finally:
            self.frames.give_back(frames)

    @contextmanager
    def lent(self, data: bytes) -> Iterator[Spa]:
        """Put bytes where the secure processor can read them, for the time of a command."""
        with self.room(len(data)) as spa:
            self.write(spa, data)
            yield spa
