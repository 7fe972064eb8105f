"""One guess of what was launched, and its digest as cheaply as it can be had.

A guess need not be launchable: what a mistaken tool computed is a cause too.

Paper: launch-inputs.md §1, §7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cbit.owner.measure import Image, Launch, Mode, Sections, snp
from cbit.owner.vmsa import BOOT_EIP, CONVENTIONS, Hypervisor, Variant, Vcpus
from cbit.spec.kernel_hash_table import KernelHashTable
from cbit.spec.vmsa import NO_FEATURES, SevFeatures, Vmsa
from cbit.spec.wire import Field

EMPTY_HASH: Final = hashlib.sha256(b"").digest()
NO_CMDLINE: Final = hashlib.sha256(b"\x00").digest()
_RDX: Final = Vmsa.FIELDS["rdx"]
_FEATURES: Final = Vmsa.FIELDS["sev_features"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Everything that decides a digest, with files replaced by their hashes where only these count.

    Attributes:
        features: SEV_FEATURES without SNP_ACTIVE, which follows the mode.
    """

    mode: Mode
    image: Image
    kernel_measured: bool
    cmdline: bytes
    initrd: bytes
    kernel: bytes
    count: int
    signature: int
    variant: Variant
    features: SevFeatures
    hypervisor: Hypervisor
    sections: Sections

    @classmethod
    def of(cls, launch: Launch) -> Trial:
        """Start from what the owner says."""
        hashes = launch.kernel.hashes if launch.kernel else None
        vcpus = launch.vcpus
        return cls(
            mode=launch.mode,
            image=launch.image,
            kernel_measured=hashes is not None,
            cmdline=hashes.cmdline_hash if hashes else NO_CMDLINE,
            initrd=hashes.initrd_hash if hashes else EMPTY_HASH,
            kernel=hashes.kernel_hash if hashes else EMPTY_HASH,
            count=vcpus.count if vcpus else 1,
            signature=(vcpus.signature or 0) if vcpus else 0,
            variant=vcpus.variant if vcpus else Variant.INIT2,
            features=((vcpus.features or NO_FEATURES) if vcpus else NO_FEATURES) & ~SevFeatures.SNP_ACTIVE,
            hypervisor=vcpus.hypervisor if vcpus else Hypervisor.QEMU,
            sections=launch.sections,
        )

    @property
    def table(self) -> bytes | None:
        """The kernel-hash table, if one is measured."""
        if not self.kernel_measured:
            return None
        return bytes(
            KernelHashTable(cmdline_hash=self.cmdline, initrd_hash=self.initrd, kernel_hash=self.kernel)
        )


class Digester:
    """Computes the digests of trials; what several of them share is hashed once.

    It keeps the images it was given for as long as it lives: a search, not a service.
    """

    __slots__ = ("_images", "_last", "_pages")

    def __init__(self) -> None:
        self._images: dict[tuple[int, bool], Any] = {}
        self._last: tuple[tuple[Any, ...], bytes] = ((), b"")
        self._pages: dict[tuple[Any, ...], bytes] = {}

    def digest(self, trial: Trial) -> bytes:
        """Give the digest of a trial."""
        *_, (_, digest) = self.digests(trial, most=trial.count)
        return digest

    def digests(self, trial: Trial, *, most: int) -> Iterator[tuple[int, bytes]]:
        """Give (number of vCPUs, digest) for 1, 2, … ``most`` vCPUs; for plain SEV there is one digest."""
        if trial.mode is Mode.SEV:
            yield trial.count, self._sha256(trial).digest()
        elif trial.mode is Mode.SEV_ES:
            whole = self._sha256(trial)
            for number, page in self._vmsas(trial, most):
                whole.update(page)
                yield number, whole.digest()
        else:
            chain = snp.Chain(self._chain(trial))
            for number, page in self._vmsas(trial, most):
                chain.add_vmsas((page,))
                yield number, chain.digest

    def key(self, trial: Trial) -> int:
        """Give a number that two trials share if they have the same digests, whatever their vCPUs' number.

        What a mode does not measure is not in it: the registers of plain SEV, the files of a kernel that no
        table of hashes stands for, the CPU where the hypervisor writes another one.
        """
        kernel = (trial.cmdline, trial.initrd, trial.kernel) if trial.kernel_measured else None
        if trial.mode is Mode.SEV:
            return hash((self._image(trial), kernel))
        convention = CONVENTIONS[trial.hypervisor]
        variant = trial.variant if convention.fills_fpu else None
        signature = trial.signature if convention.rdx is None else None
        registers = (variant, signature, trial.features, trial.hypervisor)
        pages = trial.sections if trial.mode is Mode.SNP and snp.section_pages_differ(trial.image) else None
        return hash((trial.mode, self._image(trial), kernel, registers, pages))

    def _image(self, trial: Trial) -> bytes:
        """Give what stands for the image alone, which is hashed anyway."""
        snp_mode = trial.mode is Mode.SNP
        key = (id(trial.image), snp_mode)
        if key not in self._images:
            _ = self._chain(trial) if snp_mode else self._sha256(trial)
        found: bytes = self._images[key] if snp_mode else self._images[key].digest()
        return found

    def _sha256(self, trial: Trial) -> Any:
        """Give the running hash of everything before the VMSAs, the caller's own."""
        key = (id(trial.image), False)
        if key not in self._images:
            self._images[key] = hashlib.sha256(trial.image.data)
        whole = self._images[key].copy()
        whole.update(trial.table or b"")
        return whole

    def _chain(self, trial: Trial) -> bytes:
        """Give the running digest after everything before the VMSAs."""
        table = trial.table
        key = (id(trial.image), table, trial.hypervisor, trial.sections)
        if key != self._last[0]:
            flash, *sections = snp.regions(
                trial.image, table, hypervisor=trial.hypervisor, sections=trial.sections
            )
            if (key[0], True) not in self._images:
                chain = snp.Chain()
                snp.add_regions(chain, (flash,))
                self._images[key[0], True] = chain.digest
            chain = snp.Chain(self._images[key[0], True])
            snp.add_regions(chain, sections)
            self._last = (key, chain.digest)
        return self._last[1]

    def _vmsas(self, trial: Trial, most: int) -> Iterator[tuple[int, bytes]]:
        yield 1, self._page(trial, BOOT_EIP)
        if most > 1:
            page = self._page(trial, trial.image.table.ap_reset or 0)
            yield from ((number, page) for number in range(2, most + 1))

    def _page(self, trial: Trial, eip: int) -> bytes:
        key = (eip, trial.variant, trial.hypervisor)
        if key not in self._pages:
            vcpus = Vcpus(signature=0, variant=trial.variant, hypervisor=trial.hypervisor)
            self._pages[key] = bytes(vcpus.page(eip))
        page = self._pages[key]
        # Thousands of signatures and feature words are tried: only these bytes change.
        if CONVENTIONS[trial.hypervisor].rdx is None:
            page = _put(page, _RDX, trial.signature)
        features = trial.features | (SevFeatures.SNP_ACTIVE if trial.mode is Mode.SNP else NO_FEATURES)
        return _put(page, _FEATURES, int(features)) if features else page


def _put(page: bytes, field: Field, value: int) -> bytes:
    return page[: field.offset] + value.to_bytes(field.size, "little") + page[field.end :]
