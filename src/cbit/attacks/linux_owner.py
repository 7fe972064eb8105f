"""What the owner of a Linux guest has: kernel, initramfs, a disk that it encrypted, and the disk's key.

The first three go to whoever runs the guest; the key goes to the guest alone.

Source: launch-inputs.md §1 (what is loaded), §4 (the secret table).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cbit.crypto.entropy import Entropy
from cbit.guest.linux import encrypted_disk
from cbit.guest.linux.files import LinuxFiles
from cbit.guest.linux.user_space import user_space
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec import acpi, secret_table
from cbit.spec.linux_boot import ACPI_BASE, BootImage, boot_image, command_line

NOTE: Final = b"The disk is open: this line was encrypted with the key that the owner sent.\n"
_PASSWORD_FILE: Final = "." + "password"  # `cat /mnt/*` leaves it alone
#: The guest takes its password from the disk, and prints nothing of it.
COMMANDS: Final = f"read -r PASSWORD < /mnt/{_PASSWORD_FILE} && export PASSWORD"


def initramfs(linux: LinuxFiles, unlock: bytes) -> bytes:
    """Build the user space that opens the disk with ``unlock`` (errors as `user_space`)."""
    busybox = linux.busybox.read_bytes()
    return user_space(busybox, modules=linux.modules, unlock=unlock, commands=COMMANDS)


@dataclass(frozen=True, slots=True)
class OwnersFiles:
    """What the owner has on its own computer, and hands to a host except for the last two.

    Attributes:
        kernel: the kernel.
        initrd: the initramfs.
        append: what is appended to the command line.
        origin: where they are from.
        password: what is on the disk.
        disk_key: what opens it.
    """

    kernel: bytes
    initrd: bytes
    append: str
    origin: str
    password: bytes
    disk_key: bytes

    @classmethod
    def made_of(cls, linux: LinuxFiles, initrd: bytes, *, append: str, entropy: Entropy) -> OwnersFiles:
        """Take a distribution's files, and draw a password and a key.

        Raises:
            OSError: the kernel cannot be read.
        """
        return cls(
            kernel=linux.kernel.read_bytes(),
            initrd=initrd,
            append=append,
            origin=linux.origin,
            password=b"password-" + entropy.draw(12).hex().encode(),
            disk_key=entropy.draw(64),
        )

    @property
    def disk(self) -> bytes:
        """The encrypted disk image."""
        files = {"note": NOTE, _PASSWORD_FILE: self.password + b"\n"}
        return encrypted_disk.encrypt(encrypted_disk.archive(files), self.disk_key)

    @property
    def secret(self) -> bytes:
        """The table that is sealed and injected."""
        return secret_table.build([(secret_table.DISK_PASSPHRASE, self.disk_key)])

    def launch(self, memory_size: int) -> DirectLaunch:
        """Describe the launch, to measure it."""
        return DirectLaunch(
            kernel=Kernel(
                kernel=self.kernel,
                initrd=self.initrd,
                cmdline=self.append,
                kernel_name="kernel",
                initrd_name="initramfs",
            ),
            memory_size=memory_size,
        )

    def image(self, memory_size: int, *, secret: bytes = b"") -> BootImage:
        """Lay it out, as the hypervisor does."""
        return boot_image(
            self.kernel,
            self.initrd,
            cmdline=command_line(self.append),
            memory_size=memory_size,
            acpi=acpi.tables(ACPI_BASE),
            secret=secret,
        )
