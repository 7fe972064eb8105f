"""A Linux that is booted directly, without guest firmware: the owner's side of `cbit.spec.linux_boot`.

    LD = SHA-256( zeros ‖ GDT ‖ zero page ‖ command line ‖ ACPI tables ‖ kernel ‖ initrd ‖ secret page )

Each part is padded to whole pages.  Everything is measured itself; there are no hashes that firmware would
have to compare.

Paper: launch-inputs.md §1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cbit.owner.errors import Unmeasurable
from cbit.owner.measure.inputs import Expectation, Input, Kernel, Mode
from cbit.owner.measure.launch import Step
from cbit.owner.vmsa import Vcpus
from cbit.spec import acpi
from cbit.spec.firmware_table import Area
from cbit.spec.linux_boot import (
    ACPI_BASE,
    DEFAULT_MEMORY,
    SECRET_SIZE,
    BootImage,
    Unbootable,
    boot_image,
    command_line,
)

_NOTE: Final = (
    "a digest of plain SEV covers contents, and neither addresses nor registers: "
    "the host says where the guest starts"
)


@dataclass(frozen=True, kw_only=True)  # no slots: the image is laid out once and kept
class DirectLaunch:
    """Everything that decides the digest of a direct boot.

    Attributes:
        kernel: kernel, initrd, and what is appended to the machine's own command line.
        memory_size: bytes of guest memory.
    """

    kernel: Kernel
    memory_size: int = DEFAULT_MEMORY

    @property
    def mode(self) -> Mode:
        """Plain SEV: the registers at entry are the host's to set, and nobody measures them."""
        return Mode.SEV

    @property
    def vcpus(self) -> Vcpus | None:
        """None: plain SEV measures no virtual CPU."""
        return None

    @property
    def kernel_hashes(self) -> bool:
        """Whether a table of hashes stands for the kernel: no, it is measured itself."""
        return False

    @property
    def secret_area(self) -> Area:
        """Where LAUNCH_SECRET puts the secret: a hole in a page of initramfs."""
        return Area(self.image.secret_gpa, SECRET_SIZE)

    @cached_property
    def image(self) -> BootImage:
        """What is loaded and measured.

        Raises:
            Unmeasurable: the parts do not boot together; the message says why.
        """
        try:
            return boot_image(
                self.kernel.kernel,
                self.kernel.initrd,
                cmdline=command_line(self.kernel.cmdline),
                memory_size=self.memory_size,
                acpi=acpi.tables(ACPI_BASE),
            )
        except Unbootable as error:
            raise Unmeasurable(str(error)) from error

    def unusable(self) -> list[str]:
        """Say why no host can launch this; empty if one can."""
        try:
            self.image  # noqa: B018  # laying it out is the check
        except Unmeasurable as error:
            return [str(error)]
        return []

    def lacks(self) -> list[str]:
        """Say what the launch does not prove."""
        return [_NOTE]

    def expectation(self) -> Expectation:
        """Compute the digest and describe what went into it.

        Raises:
            Unmeasurable: as ``image``.
        """
        return self._expectation

    @cached_property
    def _expectation(self) -> Expectation:
        inputs = tuple(step.input for step in self.steps())
        return Expectation(self.mode, self.image.digest(), inputs, self.secret_area)

    def steps(self) -> tuple[Step, ...]:
        """Describe every part with its place, in the order of the computation.

        Raises:
            Unmeasurable: as ``image``.
        """
        names = {"kernel": self.kernel.kernel_name, "initrd": self.kernel.initrd_name}
        steps, at = [], 0
        for region in self.image.regions:
            end = at + len(region.data)
            place = f"SHA-256 over bytes {at:#x}..{end - 1:#x}, at {region.gpa:#x} in the guest"
            steps.append(Step(Input.of(region.what, names.get(region.what, ""), region.data), place))
            at = end
        return tuple(steps)
