"""A launch as the owner describes it: its digest, and the place of every input in the computation.

Paper: launch-inputs.md §1, §6, §7.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cbit.owner.errors import Missing, Unmeasurable
from cbit.owner.measure import sev, snp
from cbit.owner.measure.image import Image
from cbit.owner.measure.inputs import Expectation, Input, Kernel, Mode, Sections
from cbit.owner.vmsa import BOOT_EIP, CONVENTIONS, Variant, Vcpus
from cbit.spec.address import PAGE
from cbit.spec.firmware_table import Area
from cbit.spec.frozen import Frozen
from cbit.spec.snp_launch import VMSA_GPA, PageType
from cbit.spec.vmsa import NO_FEATURES, SevFeatures

SECTION: Final = "metadata section"  #: what the input of a section is called


class Step(Frozen):
    """An input, and where it stands in the computation."""

    input: Input
    place: str


class Launch(Frozen, kw_only=True):
    """Everything that decides a launch digest.

    Attributes:
        mode: how the guest is protected.
        image: the firmware.
        kernel: a kernel that is loaded directly and measured by its hashes.
        vcpus: the virtual CPUs; plain SEV does not measure them.
        sections: which pages of SECRETS and CPUID sections count (SNP).
    """

    mode: Mode
    image: Image
    kernel: Kernel | None = None
    vcpus: Vcpus | None = None
    sections: Sections = Sections.WHOLE

    @property
    def kernel_hashes(self) -> bool:
        """Whether a table of hashes stands for a kernel."""
        return self.kernel is not None

    @property
    def secret_area(self) -> Area:
        """Where the image wants its secrets.

        Raises:
            WireError: the image's table is malformed.
        """
        return self.image.table.secret_area

    def unusable(self) -> list[str]:
        """Say why no host can launch this; empty if one can.

        Raises:
            WireError: the image's table or metadata is malformed.
        """
        reasons = list(self.image.unusable(self.mode, kernel=self.kernel is not None))
        if self.mode is Mode.SEV or self.vcpus is None:
            return reasons
        vcpus = self.vcpus
        if vcpus.count > 1 and self.image.table.ap_reset == 0:
            reasons.append(
                f"the image's SEV-ES reset vector is 0: it does not start the other {vcpus.count - 1} vCPUs"
            )
        snp_active = bool((vcpus.features or NO_FEATURES) & SevFeatures.SNP_ACTIVE)
        if vcpus.features is not None and snp_active is not (self.mode is Mode.SNP):
            reasons.append(
                f"SEV features {int(vcpus.features):#x}: SNP_ACTIVE (bit 0) is set in every SNP guest and "
                "in no other"
            )
        if (
            self.mode is Mode.SNP
            and vcpus.variant is Variant.INIT
            and CONVENTIONS[vcpus.hypervisor].fills_fpu
        ):
            reasons.append(
                "an SNP guest always starts with its FPU words filled (init2): init is of KVM_SEV_ES_INIT"
            )
        return reasons

    def lacks(self) -> list[str]:
        """Say what the launch will not do, and what that means.

        Raises:
            WireError: the image's table or metadata is malformed.
        """
        return list(self.image.lacks(self.mode, kernel=self.kernel is not None))

    def vmsas(self) -> Iterator[bytes]:
        """Give the page of each vCPU.

        Raises:
            Missing: the vCPUs were not described.
        """
        if self.mode is Mode.SEV:
            return iter(())
        return self._vcpus().pages(self.image.table.ap_reset)

    def digest(self) -> bytes:
        """Compute the launch digest.

        Raises:
            Unmeasurable: no host can launch this, so that no launch could ever give this digest.
            Missing: the mode measures the vCPUs, and they were not described.
            WireError: the image's table or metadata is malformed.
        """
        if reasons := self.unusable():
            raise Unmeasurable("; ".join(reasons))
        table = None
        if self.kernel is not None:
            self.kernel.begin()
            table = self.kernel.table
        if self.mode is Mode.SNP:
            return snp.digest(
                self.image,
                table=table,
                vmsas=self.vmsas(),
                hypervisor=self._vcpus().hypervisor,
                sections=self.sections,
            )
        return sev.digest(self.image.data, table=table, vmsas=self.vmsas())

    def expectation(self) -> Expectation:
        """Compute the digest and describe what went into it.

        Raises:
            Unmeasurable, Missing, WireError: as ``digest``.
        """
        digest = self.digest()
        inputs = tuple(step.input for step in self.steps())
        return Expectation(self.mode, digest, inputs, self.secret_area)

    def steps(self) -> tuple[Step, ...]:
        """Describe every input with its place, in the order of the computation.

        Raises:
            Missing, WireError: as ``digest``.
        """
        place = self._snp_places if self.mode is Mode.SNP else self._sev_places
        return tuple(place())

    def _vcpus(self) -> Vcpus:
        if self.vcpus is None:
            raise Missing(
                f"{self.mode} measures the registers of every vCPU: their number and type are wanted"
            )
        if self.vcpus.features is not None:
            return self.vcpus
        features = SevFeatures.SNP_ACTIVE if self.mode is Mode.SNP else NO_FEATURES
        return self.vcpus.replace(features=features)

    def _sev_places(self) -> Iterator[Step]:
        image, at = self.image, len(self.image.data)
        yield Step(Input.of("firmware", image.name, image.data), f"SHA-256 over bytes 0..{at - 1:#x}")
        if self.kernel:
            yield from self._kernel_places()
            table = self.kernel.table()
            yield Step(
                Input.of("kernel-hash table", "", table), f"then bytes {at:#x}..{at + len(table) - 1:#x}"
            )
            at += len(table)
        for page, which, count in self._distinct_vmsas():
            end = at + count * PAGE
            yield Step(Input.of("VMSA", which, page), f"then bytes {at:#x}..{end - 1:#x}")
            at = end

    def _snp_places(self) -> Iterator[Step]:
        table = self.kernel.table() if self.kernel else None
        number = 0
        if self.kernel:
            yield from self._kernel_places()
        hypervisor = self._vcpus().hypervisor
        for region in snp.regions(self.image, table, hypervisor=hypervisor, sections=self.sections):
            what, name = "firmware", self.image.name
            if region.section is not None:
                what, name = SECTION, region.section.name
            data = region.data
            if data is None:  # kind and address are measured, and no byte of it
                data, name = b"", f"{name}, {region.size:#x} bytes"
            count = region.size // PAGE
            yield Step(Input.of(what, name, data), _pages(number, count, region.kind, region.gpa))
            number += count
        for page, which, count in self._distinct_vmsas():
            yield Step(Input.of("VMSA", which, page), _pages(number, count, PageType.VMSA, VMSA_GPA))
            number += count

    def _kernel_places(self) -> Iterator[Step]:
        if self.kernel is None:
            return
        offsets = [
            self.kernel.hashes.FIELDS[f"{name}_hash"].offset for name in ("cmdline", "initrd", "kernel")
        ]
        for item, offset in zip(self.kernel.inputs(), offsets, strict=True):
            yield Step(item, f"its hash at {offset:#x} of the kernel-hash table")

    def _distinct_vmsas(self) -> Iterator[tuple[bytes, str, int]]:
        """Give the boot vCPU's page and that of all others, with how many there are."""
        if self.mode is Mode.SEV:
            return
        vcpus, reset = self._vcpus(), self.image.table.ap_reset
        yield bytes(vcpus.page(BOOT_EIP)), "vCPU 0", 1
        if vcpus.count > 1 and reset:
            which = "vCPU 1" if vcpus.count == 2 else f"each of vCPU 1..{vcpus.count - 1}"
            yield bytes(vcpus.page(reset)), which, vcpus.count - 1


def _pages(first: int, count: int, kind: PageType, gpa: int) -> str:
    which = f"page {first}" if count == 1 else f"pages {first}..{first + count - 1}"
    return f"{which} of the chain, {kind.name} at {gpa:#x}"


def expect(
    mode: Mode,
    firmware: bytes,
    *,
    name: str = "firmware",
    kernel: Kernel | None = None,
    vcpus: Vcpus | None = None,
) -> Expectation:
    """Compute what a launch measures in a mode.

    Args:
        mode: how the guest is protected.
        firmware: the image.
        name: what to call it.
        kernel: a kernel that is loaded directly.
        vcpus: the virtual CPUs; SEV-ES and SNP want them, plain SEV does not measure them.

    Raises:
        Unmeasurable: no launch can give a digest of these files.
        Missing: the mode measures the vCPUs, and they were not described.
        WireError: the image's table or metadata is malformed.
    """
    return Launch(mode=mode, image=Image(firmware, name), kernel=kernel, vcpus=vcpus).expectation()


def expect_sev(firmware: bytes, *, name: str = "firmware", kernel: Kernel | None = None) -> Expectation:
    """Compute what a plain SEV launch of these files measures.

    Raises:
        Unmeasurable, WireError: as ``expect``.
    """
    return expect(Mode.SEV, firmware, name=name, kernel=kernel)
