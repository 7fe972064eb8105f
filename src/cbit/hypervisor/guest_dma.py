"""How a guest's devices reach its memory: guest addresses in, the board's DMA port out.

    device ── guest-physical ── the hypervisor's bookkeeping ── system-physical ── DMA port ── cache, DRAM

No request carries an ASID, so a device finds ciphertext in a private page of a guest with SEV, whatever the
hypervisor does; the guest shares the pages that its devices are to use.

Paper: memory-encryption.md §5.
"""

from __future__ import annotations

from collections.abc import Iterator

from cbit.hypervisor.vm import NoSuchMemory, Vm
from cbit.memory.dma import DmaPort
from cbit.spec.address import Gpa


class GuestDma:
    """One guest's devices at one DMA port.

    Args:
        vm: whose memory.
        port: where the devices are attached.
        c: whether every address is driven with the C-bit; None: if the host uses it for this guest.

    Raises:
        ValueError: the C-bit is to be driven, and the machine's encryption is off.
    """

    def __init__(self, vm: Vm, port: DmaPort, *, c: bool | None = None) -> None:
        self._vm = vm
        self._port = port
        self._mark = 0
        if vm.c if c is None else c:
            if port.c_bit is None:
                raise ValueError("a device cannot drive the C-bit while memory encryption is off")
            self._mark = 1 << port.c_bit

    def read(self, gpa: int, length: int) -> bytes:
        """Read memory as the device sees it.

        Raises:
            NoSuchMemory: the guest does not have all of it.
        """
        return b"".join(self._port.read(at, count) for at, count in list(self._pieces(gpa, length)))

    def write(self, gpa: int, data: bytes) -> None:
        """Write memory; a request of which any byte has no place writes nothing (errors as ``read``)."""
        done = 0
        for at, count in list(self._pieces(gpa, len(data))):
            self._port.write(at, data[done : done + count])
            done += count

    def _pieces(self, gpa: int, length: int) -> Iterator[tuple[int, int]]:
        """Cut a request where guest memory changes its region: (address as driven, count)."""
        while length > 0:
            region = next((region for region in self._vm.regions if gpa in region), None)
            if region is None:
                raise NoSuchMemory(f"guest memory has nothing at {gpa:#x}..{gpa + length - 1:#x}")
            count = min(length, region.gpa + region.size - gpa)
            yield self._vm.spa(Gpa(gpa), count) | self._mark, count
            gpa, length = gpa + count, length - count
