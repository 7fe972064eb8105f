"""A launch digest that covers addresses, of a machine whose firmware has none.

MODEL CHOICE: plain SEV's secure processor measures contents alone.  What SNP's would put into its report is
computed here over what lies in the guest's memory after the launch, with the guest's key: it stands for
firmware that looks at addresses, and the owner compares it as one compares a report.

Paper: launch-inputs.md §7.1 (the chain); attacks.md A11 (counter-measures).
"""

from __future__ import annotations

from collections.abc import Iterable

from cbit.hypervisor.launch import SevGuest
from cbit.owner.measure.snp import Chain
from cbit.spec.address import PAGE, Gpa
from cbit.spec.key_id import guest


def digest_of(sev: SevGuest, pieces: Iterable[tuple[int, bytes]]) -> bytes:
    """Digest of every page that a launch has touched, in the order of addresses.

    Args:
        sev: the guest, launched and not finished.
        pieces: what the host had measured: guest address, contents.
    """
    pages = {page for at, data in pieces for page in range(at & -PAGE, at + len(data), PAGE)}
    memory, chain = sev.vm.host.machine.memory, Chain()
    for page in sorted(pages):
        chain.add_data(page, memory.read(sev.vm.spa(Gpa(page), PAGE), PAGE, guest(sev.asid)))
    sev.vm.host.flush_caches()  # whatever the secure processor writes next finds no copy in its way
    return chain.digest
