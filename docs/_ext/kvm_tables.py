"""What the supplied KVM does with each request, and which capabilities it has."""

from __future__ import annotations

import errno

from prose import table

from cbit.redirect.kvm import EXTENSIONS
from cbit.redirect.kvm_requests import KVM, KVM_VCPU, KVM_VM, REQUESTS, Cap, Does, Row

_ON = {KVM: "`/dev/kvm`", KVM_VM: "machine", KVM_VCPU: "processor"}


def requests() -> str:
    """Every request that the table has a row for."""
    rows = [
        [f"{number:#x}", row.name, ", ".join(_ON[link] for link in row.on), _does(row), _first(row)]
        for number, row in REQUESTS.items()
    ]
    return table(["number", "request", "made on", "what is done", "before it"], rows)


def capabilities() -> str:
    """Every capability that is not 0."""
    rows = [[str(int(cap)), f"KVM_CAP_{cap.name}", str(EXTENSIONS[cap])] for cap in Cap]
    return table(["number", "capability", "answer"], rows)


def _does(row: Row) -> str:
    return {
        Does.ANSWERS: "answered",
        Does.KEEPS: f"kept: {row.about}",
        Does.REFUSES: f"refused with ENOTTY: {row.about}",
    }[row.does]


def _first(row: Row) -> str:
    needs = [f"{row.need.state}, else {errno.errorcode[row.need.error]}"] if row.need else []
    return "; ".join([*needs, *(["once, then EEXIST"] if row.once else [])])
