"""What a launch must measure, from the owner's own copies of the files.

    Image, Kernel, Vcpus -> Launch -> Expectation: the digest, and what went into it

    SEV     SHA-256( image ‖ [kernel-hash table] )
    SEV-ES  SHA-256( image ‖ [kernel-hash table] ‖ VMSA of each vCPU )
    direct  SHA-256( all that a Linux starts from ), plain SEV without firmware: DirectLaunch
    SNP     SHA-384 over a chain of pages: image, metadata sections, VMSA of each vCPU

A launch that no host can make is refused instead of measured: its number would match nothing, for ever.

Paper: launch-inputs.md §1–§3, §5–§7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbit.owner.measure.image import Image
from cbit.owner.measure.inputs import BegunKernel, Expectation, Input, Kernel, Mode, Sections
from cbit.owner.measure.launch import SECTION, Launch, Step, expect, expect_sev
from cbit.owner.measure.sev import launch_digest

if TYPE_CHECKING:
    from cbit.owner.measure.direct import DirectLaunch

__all__ = (
    "SECTION",
    "BegunKernel",
    "DirectLaunch",
    "Expectation",
    "Image",
    "Input",
    "Kernel",
    "Launch",
    "Mode",
    "Sections",
    "Step",
    "expect",
    "expect_sev",
    "launch_digest",
)


def __getattr__(name: str) -> type[DirectLaunch]:
    """Load what a direct boot needs only for who asks for one: the other launches are in a hurry."""
    if name == "DirectLaunch":
        from cbit.owner.measure.direct import DirectLaunch  # noqa: PLC0415  # see above

        return DirectLaunch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
