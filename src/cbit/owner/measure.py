"""The launch digest, from the owner's own copies of the files.

    LD = SHA-256( firmware image ‖ [kernel-hash table] )         SEV; the table only with kernel hashes

Paper: launch-inputs.md §1 (what is measured), §2 (what an image announces), §3 (the table), §5.
Not modelled yet: SEV-ES (the initial VMSA of each vCPU) and SNP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from cbit.owner.errors import Unmeasurable
from cbit.spec import firmware_table, kernel_hashes
from cbit.spec.address import BLOCK
from cbit.spec.errors import NotModelled
from cbit.spec.firmware_table import Area


class Mode(StrEnum):
    """How the guest is protected; each mode measures other things."""

    SEV = "sev"
    SEV_ES = "sev-es"
    SNP = "snp"


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that went into a digest: what it is, its name, size in bytes and SHA-256."""

    what: str
    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, what: str, name: str, data: bytes) -> Input:
        """Describe some bytes."""
        return cls(what, name, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a launch must measure.

    Attributes:
        mode: how the guest is protected.
        digest: the launch digest LD, 32 bytes.
        inputs: what went into it, in order.
        secret_area: where the image wants its secrets; size 0 if it announces no place.
    """

    mode: Mode
    digest: bytes
    inputs: tuple[Input, ...]
    secret_area: Area


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel that the hypervisor loads directly, bound to the launch by its hashes."""

    kernel: bytes
    initrd: bytes = b""
    cmdline: str = ""
    kernel_name: str = "kernel"
    initrd_name: str = ""

    def table(self) -> bytes:
        """The 176 bytes that stand for it in the digest."""
        return kernel_hashes.kernel_hash_table(kernel=self.kernel, initrd=self.initrd, cmdline=self.cmdline)

    def inputs(self) -> tuple[Input, ...]:
        """Its parts, in the order of the table; the command line with the NUL that is hashed too."""
        return (
            Input.of("command line", "", self.cmdline.encode() + b"\x00"),
            Input.of("initrd", self.initrd_name, self.initrd),
            Input.of("kernel", self.kernel_name, self.kernel),
        )


def launch_digest(firmware: bytes, kernel_hash_table: bytes | None = None) -> bytes:
    """SHA-256 over what LAUNCH_UPDATE_DATA is given: the image, then the kernel-hash table if there is one.

    Raises:
        Unmeasurable: the image cannot be launched like this, so that no launch could ever give this digest.
    """
    if not firmware or len(firmware) % BLOCK:
        raise Unmeasurable(
            f"a firmware image of {len(firmware)} bytes: it must be a multiple of {BLOCK}, and not empty"
        )
    if kernel_hash_table is None:
        return hashlib.sha256(firmware).digest()
    if len(kernel_hash_table) != kernel_hashes.TABLE_SIZE:
        raise Unmeasurable(
            f"a kernel-hash table of {len(kernel_hash_table)} bytes, must be {kernel_hashes.TABLE_SIZE}"
        )
    area = firmware_table.parse(firmware).hash_area
    if not area:
        raise Unmeasurable(
            "the firmware image announces no area for kernel hashes (GUID "
            f"{firmware_table.HASH_TABLE}): it checks no kernel, so measuring one would prove nothing; "
            "take a build that does (OvmfPkg/AmdSev), or leave the kernel out"
        )
    if area.size < kernel_hashes.TABLE_SIZE:
        raise Unmeasurable(
            f"the image's area for kernel hashes has {area.size} bytes, {kernel_hashes.TABLE_SIZE} are needed"
        )
    whole = hashlib.sha256(firmware)
    whole.update(kernel_hash_table)
    return whole.digest()


def expect_sev(firmware: bytes, *, name: str = "firmware", kernel: Kernel | None = None) -> Expectation:
    """Compute what a plain SEV launch of these files measures.

    Raises:
        Unmeasurable: as ``launch_digest``.
        WireError: the image's GUID table is malformed.
    """
    inputs: tuple[Input, ...] = (Input.of("firmware", name, firmware),)
    table = None
    if kernel is not None:
        table = kernel.table()
        inputs += (*kernel.inputs(), Input.of("kernel-hash table", "", table))
    digest = launch_digest(firmware, table)
    return Expectation(Mode.SEV, digest, inputs, firmware_table.parse(firmware).secret_area)


#: Mode to what computes its expectation.
EXPECT: Final[Mapping[Mode, Callable[..., Expectation]]] = MappingProxyType({Mode.SEV: expect_sev})


def expect(
    mode: Mode, firmware: bytes, *, name: str = "firmware", kernel: Kernel | None = None
) -> Expectation:
    """Compute what a launch measures in a mode.

    Raises:
        NotModelled: the mode is not there yet.
        Unmeasurable: no launch can give a digest of these files.
    """
    if mode not in EXPECT:
        raise NotModelled(f"measuring for mode {mode} is not modelled yet (part 4)")
    return EXPECT[mode](firmware, name=name, kernel=kernel)
