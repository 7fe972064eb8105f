"""The registers with which a virtual CPU starts: SEV-ES and SNP encrypt and measure them.

The hypervisor decides them, and hypervisors differ.  Under QEMU and KVM one guest has two valid pages: a
guest that was created with KVM_SEV_ES_INIT has its FPU words zero (``init``), one of KVM_SEV_INIT2 has them
filled (``init2``), and the owner cannot choose.

Paper: launch-inputs.md §6 (layout), §6.1 (QEMU/KVM), §6.2 (EC2, GCE); memory-encryption.md §10.2 (offsets).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import chain, repeat
from types import MappingProxyType
from typing import Final

from cbit.owner.errors import Missing
from cbit.spec.address import BLOCK
from cbit.spec.errors import WireError
from cbit.spec.frozen import Frozen
from cbit.spec.vmsa import NO_FEATURES, Segment, SevFeatures, Vmsa
from cbit.spec.wire import Wire

BOOT_EIP: Final = 0xFFFF_FFF0  #: where vCPU 0 starts; the others start where the firmware image says

_PAT_RESET: Final = 0x0007_0406_0007_0406
_MXCSR, _FCW = 0x1F80, 0x037F


class Variant(StrEnum):
    """With which call KVM made the guest."""

    INIT = "init"  #: KVM_SEV_ES_INIT: FPU words zero, as machine types before QEMU 9.1 have them
    INIT2 = "init2"  #: KVM_SEV_INIT2 and every SNP guest: FPU words filled


class Hypervisor(StrEnum):
    """Whose conventions a launch follows."""

    QEMU = "qemu"
    EC2 = "ec2"  #: with RDX as sev-snp-measure has it
    EC2_RDX0 = "ec2-rdx0"  #: with RDX as virtee/sev has it: the two disagree, and so do their digests
    GCE = "gce"


class Convention(Frozen):
    """Where hypervisors differ.

    Attributes:
        cs_boot: attributes of CS on vCPU 0.
        cs: likewise on every other vCPU.
        ss: attributes of SS.
        tr: attributes of TR.
        g_pat: the page attribute table.
        rdx: what RDX holds; None for the signature of the virtual CPU.
        fills_fpu: whether there is a variant with filled FPU words.
    """

    cs_boot: int
    cs: int
    ss: int
    tr: int
    g_pat: int
    rdx: int | None
    fills_fpu: bool


# fmt: off
CONVENTIONS: Final[Mapping[Hypervisor, Convention]] = MappingProxyType({
    #                               cs_boot cs    ss    tr    g_pat        rdx    fills_fpu
    Hypervisor.QEMU:     Convention(0x9B, 0x9B, 0x93, 0x8B, _PAT_RESET,   None,  True),
    Hypervisor.EC2:      Convention(0x9A, 0x9B, 0x92, 0x83, _PAT_RESET,   0x600, False),
    Hypervisor.EC2_RDX0: Convention(0x9A, 0x9B, 0x92, 0x83, _PAT_RESET,   0,     False),
    Hypervisor.GCE:      Convention(0x9B, 0x9B, 0x93, 0x8B, 0x0007_0106,  0x600, False),
})
# fmt: on


class Vcpus(Frozen, kw_only=True):
    """The virtual CPUs of a guest, as they start.

    Attributes:
        count: how many.
        signature: CPUID Fn1 EAX of the virtual CPU; None where the hypervisor does not show it.
        variant: with which call KVM made the guest.
        features: the whole SEV_FEATURES word; None for what the guest's mode sets by itself.
        hypervisor: whose conventions.

    Raises:
        ValueError: no vCPU, or QEMU's without a signature.
    """

    count: int = 1
    signature: int | None = None
    variant: Variant = Variant.INIT2
    features: SevFeatures | None = None
    hypervisor: Hypervisor = Hypervisor.QEMU

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1 << 16:
            raise ValueError(f"{self.count} vCPUs: a guest has at least one, and at most 65536")
        if self.signature is None and CONVENTIONS[self.hypervisor].rdx is None:
            raise ValueError(
                "the type of the virtual CPU is wanted: its signature stands in RDX and is measured"
            )

    def pages(self, ap_reset: int | None) -> Iterator[bytes]:
        """Give the page of every vCPU, in the order in which they are measured.

        Args:
            ap_reset: where every vCPU but the first starts, as the firmware image says.

        Raises:
            Missing: there are several vCPUs, and the image does not say where they start.
        """
        if self.count == 1:
            return iter((bytes(self.page(BOOT_EIP)),))
        if not ap_reset:
            raise Missing(f"{self.count} vCPUs, and where all but the first of them start is not known")
        return chain((bytes(self.page(BOOT_EIP)),), repeat(bytes(self.page(ap_reset)), self.count - 1))

    def page(self, eip: int) -> Vmsa:
        """Build the page of a vCPU that starts at an address."""
        convention = CONVENTIONS[self.hypervisor]
        data = Segment(attributes=0x93, limit=0xFFFF)
        table = Segment(limit=0xFFFF)
        fpu = convention.fills_fpu and self.variant is Variant.INIT2
        return Vmsa(
            es=data,
            # As after a reset: the base reaches the last 64 KiB below 4 GiB, and RIP counts from there.
            cs=Segment(
                selector=0xF000,
                attributes=convention.cs_boot if eip == BOOT_EIP else convention.cs,
                limit=0xFFFF,
                base=eip & 0xFFFF_0000,
            ),
            ss=data.replace(attributes=convention.ss),
            ds=data,
            fs=data,
            gs=data,
            gdtr=table,
            ldtr=table.replace(attributes=0x82),
            idtr=table,
            tr=table.replace(attributes=convention.tr),
            efer=0x1000,  # SVME: VMRUN refuses a guest without it
            cr4=0x40,  # MCE
            cr0=0x10,
            dr7=0x400,
            dr6=0xFFFF_0FF0,
            rflags=0x2,
            rip=eip & 0xFFFF,
            g_pat=convention.g_pat,
            rdx=(self.signature or 0) if convention.rdx is None else convention.rdx,
            sev_features=NO_FEATURES if self.features is None else self.features,
            xcr0=1,
            mxcsr=_MXCSR if fpu else 0,
            x87_fcw=_FCW if fpu else 0,
        )


class Difference(Frozen):
    """A field in which two pages differ: offset, name ("cs.base"), and both values in hex."""

    offset: int
    name: str
    first: str
    second: str


def read(data: bytes, *, what: str = "VMSA") -> Vmsa:
    """Read a page, whatever stands in its unnamed bytes.

    Raises:
        WireError: not 4096 bytes.
    """
    try:
        return Vmsa.parse(data, canonical=False)
    except WireError as error:
        raise WireError(f"{what}: {error}") from None


def fields(page: bytes) -> Iterator[tuple[int, str, str]]:
    """Give every named field (offset, name, value in hex), and each run of unnamed bytes that is not zero."""
    yield from _fields(Vmsa, page, 0, "")
    for start, end in Vmsa.gaps():
        if any(page[start:end]):
            yield start, f"unnamed bytes {start:#x}..{end - 1:#x}", page[start:end].hex()


def _fields(cls: type[Wire], raw: bytes, base: int, prefix: str) -> Iterator[tuple[int, str, str]]:
    for field in cls.FIELDS.values():
        part = raw[field.offset : field.end]
        if issubclass(field.kind, Wire):
            yield from _fields(field.kind, part, base + field.offset, f"{prefix}{field.name}.")
        elif issubclass(field.kind, bytes):
            for at in range(0, field.size, BLOCK):
                yield base + field.offset + at, f"{prefix}{field.name}[{at:#x}]", part[at : at + BLOCK].hex()
        else:
            yield base + field.offset, prefix + field.name, f"{int.from_bytes(part, 'little'):#x}"


def differences(first: bytes, second: bytes) -> list[Difference]:
    """Name every field in which two pages differ.

    Raises:
        WireError: one of them does not have 4096 bytes.
    """
    read(first, what="first VMSA"), read(second, what="second VMSA")
    ours = {name: (offset, value) for offset, name, value in fields(first)}
    theirs = {name: (offset, value) for offset, name, value in fields(second)}
    nothing = "00"
    found = []
    for name in ours | theirs:
        offset, value = ours.get(name) or (theirs[name][0], nothing)
        other = theirs[name][1] if name in theirs else nothing
        if value != other:
            found.append(Difference(offset, name, value, other))
    return sorted(found, key=lambda difference: difference.offset)


def recognise(data: bytes) -> tuple[Vcpus, int] | None:
    """Find whose initial page this is: the conventions, and where the vCPU starts; None for any other page.

    Raises:
        WireError: not 4096 bytes.
    """
    page = read(data)
    eip = (page.cs.base + page.rip) & 0xFFFF_FFFF
    for hypervisor, convention in CONVENTIONS.items():
        vcpus = Vcpus(signature=page.rdx & 0xFFFF_FFFF, features=page.sev_features, hypervisor=hypervisor)
        for variant in Variant if convention.fills_fpu else (Variant.INIT2,):
            candidate = vcpus.replace(variant=variant)
            if bytes(candidate.page(eip)) == data:
                return candidate, eip
    return None


def features_of(text: str) -> SevFeatures:
    """Read SEV_FEATURES: numbers and names of bits, joined by ``|`` ("0x21", "SNP_ACTIVE|DEBUG_SWAP").

    Raises:
        ValueError: neither.
    """
    word = NO_FEATURES
    for term in text.split("|"):
        name = term.strip().upper().replace("-", "_")
        name = "DEBUG_VIRT" if name == "DEBUG_SWAP" else name  # KVM's word and the manual's
        if name in SevFeatures.__members__:
            word |= SevFeatures[name]
            continue
        try:
            number = int(term, 0)
        except ValueError:
            number = -1
        if not 0 <= number < 1 << 64:
            names = ", ".join(SevFeatures.__members__)
            raise ValueError(f"{term.strip()!r} is neither a number nor one of DEBUG_SWAP, {names}")
        word |= SevFeatures(number)
    return word
