"""Booting Linux directly: kernel, initrd and command line in, measured guest memory and registers out.

    KernelImage (the file, checked) -> boot_image() -> BootImage: regions, registers, place of the secret

Hypervisor and owner compute the same image, each from its own copies of the files.

Source: Linux, Documentation/arch/x86/boot.rst.
"""

from cbit.spec.linux_boot.command_line import command_line
from cbit.spec.linux_boot.entry import EntryState
from cbit.spec.linux_boot.image import ACPI_BASE, DEFAULT_MEMORY, BootImage, BootRegion, boot_image
from cbit.spec.linux_boot.kernel_image import KernelImage, Unbootable
from cbit.spec.linux_boot.secret_page import SECRET_AT, SECRET_FILE, SECRET_SIZE, secret_page

__all__ = (
    "ACPI_BASE",
    "DEFAULT_MEMORY",
    "SECRET_AT",
    "SECRET_FILE",
    "SECRET_SIZE",
    "BootImage",
    "BootRegion",
    "EntryState",
    "KernelImage",
    "Unbootable",
    "boot_image",
    "command_line",
    "secret_page",
)
