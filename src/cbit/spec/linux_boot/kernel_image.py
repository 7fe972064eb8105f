"""A kernel image as distributions ship it: what its setup header promises, checked before it is loaded.

Source: Linux, Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cbit.spec.address import MIB, PAGE
from cbit.spec.errors import CbitError
from cbit.spec.linux_boot.boot_params import (
    BOOT_FLAG,
    HEADER_LENGTH_AT,
    HEADER_LENGTH_FROM,
    HEADER_START,
    MAGIC,
    BootParams,
    LoadFlags,
    XLoadFlags,
)

OLDEST: Final = (2, 12)  #: boot protocol of Linux 3.8: the first that says whether a kernel has 64 bits
_SECTOR: Final = 512
_OTHER_KINDS: Final = (
    (b"\x7fELF", 0, "an ELF file (a vmlinux?): give the bzImage that distributions call vmlinuz"),
    (b"\x1f\x8b", 0, "a gzip file: unpack it first"),
    (b"ARM\x64", 0x38, "an arm64 kernel: this machine is an x86"),
    (b"zimg", 4, "an EFI zboot image: give the bzImage"),
    (b"070701", 0, "a cpio archive: is it the initrd?"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd file: is it the initrd?"),
)


class Unbootable(CbitError, ValueError):
    """Kernel, initrd, command line and memory cannot be put together into something that boots."""


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A bzImage with a 64-bit kernel.

    Attributes:
        data: the file.
        params: its first page, read as a zero page; only the setup header is meaningful.
    """

    data: bytes
    params: BootParams

    @classmethod
    def parse(cls, data: bytes) -> KernelImage:
        """Read an image.

        Raises:
            Unbootable: it is no bzImage, not a 64-bit one, too old, or truncated; the message says which.
        """
        if len(data) < BootParams.SIZE:
            raise Unbootable(f"not a Linux kernel: a file of {len(data)} bytes{_kind(data)}")
        params = BootParams.parse(data[: BootParams.SIZE], canonical=False)
        if params.boot_flag != BOOT_FLAG or params.header != MAGIC:
            raise Unbootable(f"not a Linux kernel: no setup header (HdrS at 0x202){_kind(data)}")
        image = cls(data, params)
        if reason := next(image._reasons(), None):
            raise Unbootable(reason)
        return image

    @property
    def protocol(self) -> tuple[int, int]:
        """Version of the boot protocol."""
        return divmod(self.params.version, 0x100)

    @property
    def setup_size(self) -> int:
        """Bytes of the real-mode part, which a 32-bit entry leaves aside."""
        return ((self.params.setup_sects or 4) + 1) * _SECTOR

    @property
    def code(self) -> bytes:
        """The protected-mode part, to be loaded; its first byte is the 32-bit entry."""
        return self.data[self.setup_size :]

    @property
    def load_address(self) -> int:
        """Where the kernel wants to be."""
        alignment = self.params.kernel_alignment
        return -(-self.params.pref_address // alignment) * alignment

    @property
    def end_address(self) -> int:
        """The first byte that is not the kernel's while it unpacks itself and starts."""
        return self.load_address + max(self.params.init_size, len(self.code))

    @property
    def setup_header(self) -> tuple[int, bytes]:
        """The header's offset in the zero page, and its bytes: all that this version has."""
        end = min(HEADER_LENGTH_FROM + self.data[HEADER_LENGTH_AT], BootParams.FIELDS["e820_table"].offset)
        return HEADER_START, self.data[HEADER_START:end]

    def _reasons(self) -> Iterator[str]:
        params = self.params
        if self.protocol < OLDEST:
            major, minor = self.protocol
            yield (
                f"the kernel speaks boot protocol {major}.{minor:02}; "
                f"{OLDEST[0]}.{OLDEST[1]} (Linux 3.8) is the oldest that is understood"
            )
        if LoadFlags.LOADED_HIGH not in params.loadflags:
            yield "the kernel is a zImage, which is loaded below 1 MiB: a bzImage is wanted"
        if XLoadFlags.KERNEL_64 not in params.xloadflags:
            yield "a 32-bit kernel: it cannot set the C-bit; a 64-bit one is wanted"
        if not params.relocatable_kernel:
            yield "the kernel is not relocatable (CONFIG_RELOCATABLE): its place in memory cannot be promised"
        alignment = params.kernel_alignment
        if alignment == 0 or alignment & (alignment - 1):
            yield f"the kernel's alignment {alignment:#x} is not a power of two"
        elif self.load_address < MIB or self.load_address % PAGE:
            yield f"the kernel wants to be at {self.load_address:#x}: a page from 1 MiB on is wanted"
        size = self.setup_size + 16 * params.syssize
        payload = self.setup_size + params.payload_offset + params.payload_length
        if not params.syssize or max(size, payload) > len(self.data):
            yield f"the kernel is truncated: {len(self.data)} bytes of {max(size, payload)}"
        if not params.init_size:
            yield "the kernel does not say how much memory it needs (init_size is 0)"


def _kind(data: bytes) -> str:
    """Say what a file is instead, if that is easy to see."""
    return next((f"; it is {what}" for magic, at, what in _OTHER_KINDS if data[at:].startswith(magic)), "")
