"""What the guest's board tells its operating system about itself: ACPI tables.

They are part of what a guest starts from: the hypervisor puts them into memory and the owner measures
them, so one function builds them for both.
"""

from cbit.spec.acpi.tables import tables

__all__ = ["tables"]
