"""One host: a machine, its driver, its free memory and its ASIDs.

Paper: sev-api.md §12 (what Linux does at start-up); memory-encryption.md §8 rule 7 (ASID re-use).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from cbit.cpu.window import Window
from cbit.driver.ccp import Ccp
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.asid_pool import AsidPool
from cbit.hypervisor.direct_map import DirectMap
from cbit.hypervisor.frames import Frames
from cbit.machine.board import Machine
from cbit.spec import buffers
from cbit.spec.address import Hva, Spa
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE
from cbit.spec.command import Command
from cbit.spec.status import Status

#: The platform's PEK certificate in, (PEK signed by the organisation, the organisation's OCA) out.
Signs = Callable[[bytes], tuple[bytes, bytes]]
CHIP_ID_SIZE: Final = 64


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
        es_asids: ASIDs for SEV guests with ES.
        plain_asids: ASIDs for guests without SEV: tags in caches and TLBs, and no keys.
        last_vmcb: by core and ASID, the VMCB whose translations that core's TLB may hold.
    """

    def __init__(self, machine: Machine) -> None:
        features = machine.profile.features
        self.machine = machine
        self.frames = Frames(machine.memory_size)
        self._map = DirectMap(machine.cores, self.frames, memory_size=machine.memory_size)
        self.ccp = Ccp(machine, self.frames.take_page())
        self.asids = self._all_asids()
        self.es_asids = self._all_es_asids()
        self.plain_asids = AsidPool(
            "guests without SEV",
            first=features.guests + 1,
            last=features.asids - 1,
            flush=lambda: None,  # no key: only translations, and a new VMCB flushes those
        )
        self.last_vmcb: dict[tuple[int, int], Spa] = {}

    def initialise(self) -> str:
        """INIT, as a driver does: once more if the NV store was damaged, for INIT erased it.

        Returns:
            What was wrong with the store, if it was damaged: the platform has made itself a new identity.

        Raises:
            FirmwareError: INIT is refused.
        """
        damage = ""
        try:
            self.ccp.call(Command.INIT, buffers.Init())
        except FirmwareError as error:
            if error.status != Status.SECURE_DATA_INVALID:
                raise
            damage = error.why
            self.ccp.call(Command.INIT, buffers.Init())
        self.asids = self._all_asids()  # INIT makes all of them dirty, whatever was known before
        self.es_asids = self._all_es_asids()
        return damage

    def take_ownership(self, sign: Signs) -> None:
        """PEK_CSR and PEK_CERT_IMPORT: let an organisation own the platform.

        Args:
            sign: the organisation: takes the unsigned PEK, gives (PEK signed by its OCA, OCA).

        Raises:
            FirmwareError: the secure processor refuses the certificates; the owner is who it was.
        """
        with self.room(CERT_SIZE) as page:
            self.ccp.call(Command.PEK_CSR, buffers.PekCsr(paddr=page, length=CERT_SIZE))
            pek, oca = sign(self.read(page, CERT_SIZE))
        with self.lent(pek) as pek_at, self.lent(oca) as oca_at:
            request = buffers.PekCertImport(
                pek_paddr=pek_at, pek_len=len(pek), oca_paddr=oca_at, oca_len=len(oca)
            )
            self.ccp.call(Command.PEK_CERT_IMPORT, request)

    def flush(self) -> None:
        """Make dirty ASIDs clean: WBINVD on every core, then DF_FLUSH."""
        self.flush_caches()
        self.ccp.issue(Command.DF_FLUSH)

    def flush_caches(self) -> int:
        """WBINVD on every core; return how many pages were written back.

        Memory that changes its key, in either direction, is flushed first: a dirty copy under the old tag
        would be written back over what the new owner put there.  Hardware sees to that itself on coherent
        parts; this host does not rely on it.

        Paper: memory-encryption.md §6.2, §6.3.
        """
        return self.machine.wbinvd_on_all_cores()

    def forget(self, vmcb_at: Spa) -> None:
        """Let the next VMRUN of a VMCB flush its translations: its nested tables changed, or it is gone."""
        self.last_vmcb = {place: at for place, at in self.last_vmcb.items() if at != vmcb_at}

    def forget_use(self, asid: int) -> None:
        """Forget which pages an ASID's guest used: the guest is gone."""
        for core in self.machine.cores:
            core.forget_use(asid)

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
        with self.room(CHIP_ID_SIZE) as page:
            self.ccp.call(Command.GET_ID, buffers.GetId(paddr=page, length=CHIP_ID_SIZE))
            return self.read(page, CHIP_ID_SIZE)

    def read(self, spa: Spa, length: int, *, c: bool = False) -> bytes:
        """Read memory as host software does: through a mapping with C=0, or with C=1 and the host's key."""
        return self._map.read(spa, length, c=c)

    def write(self, spa: Spa, data: bytes, *, c: bool = False) -> None:
        """Write memory as host software does."""
        self._map.write(spa, data, c=c)

    def window(self, spa: Spa, *, c: bool = False) -> Window:
        """Hold a page of memory that host software works on all the time."""
        return self._map.window(spa, c=c)

    def map_page(self, spa: Spa, *, c: bool) -> Hva:
        """Map a page at a linear address of its own: a live page, whose C-bit may change."""
        return self._map.map_page(spa, c=c)

    def change_encryption(self, page: Hva, *, private: bool) -> None:
        """Encrypt or decrypt a live page where it lies (errors as ``cbit.cpu.in_place``)."""
        self._map.change_encryption(page, private=private)

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

    def _all_asids(self) -> AsidPool:
        features = self.machine.profile.features
        return AsidPool(
            "guests without ES", first=features.min_sev_no_es_asid, last=features.guests, flush=self.flush
        )

    def _all_es_asids(self) -> AsidPool:
        last = self.machine.profile.features.min_sev_no_es_asid - 1
        return AsidPool("guests with ES", first=1, last=last, flush=self.flush)
