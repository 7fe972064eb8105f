"""What goes into a launch digest, and what comes out.

Paper: launch-inputs.md §1 (what is measured), §3 (kernel hashes).
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import cached_property

from cbit.owner.blob import Blob
from cbit.spec.firmware_table import Area
from cbit.spec.frozen import Frozen
from cbit.spec.kernel_hash_table import KernelHashTable


class Mode(StrEnum):
    """How the guest is protected; each mode measures other things."""

    SEV = "sev"
    SEV_ES = "sev-es"
    SNP = "snp"


class Sections(StrEnum):
    """Which pages of a SECRETS or CPUID section an SNP launch counts; they differ if it has several."""

    WHOLE = "whole"  #: all of them, as QEMU adds them
    FIRST_PAGE = "first-page"  #: the first, as sev-snp-measure computes


class Input(Frozen):
    """One thing that went into a digest: what it is, its name, size in bytes and SHA-256."""

    what: str
    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, what: str, name: str, data: bytes) -> Input:
        """Describe some bytes."""
        return cls(what, name, len(data), hashlib.sha256(data).hexdigest())


class Expectation(Frozen):
    """What a launch must measure.

    Attributes:
        mode: how the guest is protected.
        digest: the launch digest: 32 bytes for SEV and SEV-ES, 48 for SNP.
        inputs: what went into it, in order.
        secret_area: where the image wants its secrets; size 0 if it announces no place.
    """

    mode: Mode
    digest: bytes
    inputs: tuple[Input, ...]
    secret_area: Area


class Kernel(Frozen, kw_only=True):
    """A kernel that the hypervisor loads directly, bound to the launch by its hashes."""

    kernel: bytes
    initrd: bytes = b""
    cmdline: str = ""
    kernel_name: str = "kernel"
    initrd_name: str = ""

    @property
    def cmdline_bytes(self) -> bytes:
        """The command line as the hypervisor gets it: bytes, which need not be UTF-8 (PEP 383)."""
        return self.cmdline.encode(errors="surrogateescape")

    @cached_property
    def _blobs(self) -> tuple[Blob, Blob]:
        return Blob(self.initrd), Blob(self.kernel)

    def begin(self) -> None:
        """Begin to hash, if that has not begun: ``hashes`` then waits for what is left of it."""
        self._blobs  # noqa: B018  # made and kept when first asked for

    @cached_property
    def hashes(self) -> KernelHashTable:
        """The table that stands for it.

        The command line is hashed *with* its trailing NUL and without trimming (§3).
        """
        initrd, kernel = self._blobs
        return KernelHashTable(
            cmdline_hash=hashlib.sha256(self.cmdline_bytes + b"\x00").digest(),
            initrd_hash=initrd.sha256(),
            kernel_hash=kernel.sha256(),
        )

    def table(self) -> bytes:
        """The 176 bytes that stand for it in the digest."""
        return bytes(self.hashes)

    def inputs(self) -> tuple[Input, ...]:
        """Its parts, in the order of the table; the command line with the NUL that is hashed too."""
        hashes, (initrd, kernel) = self.hashes, self._blobs
        return (
            Input("command line", "", len(self.cmdline_bytes) + 1, hashes.cmdline_hash.hex()),
            Input("initrd", self.initrd_name, len(initrd), hashes.initrd_hash.hex()),
            Input("kernel", self.kernel_name, len(kernel), hashes.kernel_hash.hex()),
        )


class BegunKernel(Kernel):
    """A kernel whose files are being hashed already; their bytes are copied when somebody asks for them."""

    def __init__(
        self,
        *,
        kernel: Blob,
        initrd: Blob,
        cmdline: str = "",
        kernel_name: str = "kernel",
        initrd_name: str = "",
    ) -> None:
        names = {"kernel_name": kernel_name, "initrd_name": initrd_name}
        self.__dict__.update(_blobs=(initrd, kernel), cmdline=cmdline, **names)

    @property  # type: ignore[misc]  # computed here, a field in others
    def kernel(self) -> bytes:
        """The kernel's file."""
        return bytes(self._blobs[1])

    @property  # type: ignore[misc]  # likewise
    def initrd(self) -> bytes:
        """The initrd's file."""
        return bytes(self._blobs[0])
