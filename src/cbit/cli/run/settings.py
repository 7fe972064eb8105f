"""One guest to be: arguments read, files read, everything refused that no machine need be made for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cbit.hypervisor.host import Protection
from cbit.owner import secret as secrets
from cbit.owner.files import read_limited
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec import acpi, secret_table
from cbit.spec.address import MIB
from cbit.spec.errors import CbitError, NotModelled
from cbit.spec.linux_boot import ACPI_BASE, SECRET_SIZE, BootImage, boot_image, command_line
from cbit.spec.policy import Policy
from cbit.spec.secret_table import DISK_PASSPHRASE

LARGEST: Final = 1 << 32  # bytes of a kernel or initrd
HOST_MEMORY: Final = 64 * MIB  #: beside each guest's: page tables, and room for commands
SME_OPTION: Final = (
    "mem_encrypt=on"  #: a kernel as host asks for its encryption; what is appended may overrule
)
DEFAULT_POLICY: Final = int(Policy.NODBG)


@dataclass(frozen=True, slots=True)
class Settings:
    """One guest of a run, as far as it is known before there is a machine.

    Attributes:
        name: what people call it; empty for one that is alone.
        shares: name of the guest whose memory key it shares; empty: its key is its own.
        protection: how its memory is protected.
        kernel: kernel, initrd and what is appended to the command line.
        image: what the hypervisor loads.
        policy: for SEV.
        secret: the table of secrets; empty: none.
        disks: files with its disks.
    """

    name: str
    shares: str
    protection: Protection
    kernel: Kernel
    image: BootImage
    policy: int
    secret: bytes
    disks: tuple[Path, ...]

    @property
    def launch(self) -> DirectLaunch:
        """What the owner knows: the same files, laid out by the owner itself."""
        return DirectLaunch(kernel=self.kernel, memory_size=self.image.memory_size)

    @property
    def dram_size(self) -> int:
        """Bytes of DRAM that the machine needs for it: under SME all of it is the kernel's."""
        own = 0 if self.protection is Protection.SME else HOST_MEMORY
        return self.image.memory_size + own

    @property
    def command_line(self) -> str:
        """All of it."""
        return command_line(self.kernel.cmdline)


def read_all(guests: Sequence[Namespace]) -> list[Settings]:
    """Read every guest's arguments; if one is refused, its name is said (errors as `read_settings`)."""
    read = []
    for args in guests:
        try:
            read.append(read_settings(args))
        except (CbitError, ValueError, OSError) as error:
            if not args.name:
                raise
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            raise ValueError(f"--guest {args.name}: {why}") from error
    return read


def read_settings(args: Namespace) -> Settings:
    """Read a guest's arguments and the files that they name.

    Raises:
        Unbootable: the files do not boot together; the message says why.
        NotModelled: what cbit has not got.
        ValueError, WireError, OSError: a file or an argument is unusable.
    """
    protection = Protection(args.mode)
    _refuse(args, protection)
    kernel = Kernel(
        kernel=read_limited(args.kernel, limit=LARGEST),
        initrd=read_limited(args.initrd, limit=LARGEST) if args.initrd else b"",
        cmdline=_appended(args, protection),
        kernel_name=args.kernel.name,
        initrd_name=args.initrd.name if args.initrd else "",
    )
    secret = table_of(read_limited(args.secret)) if args.secret else b""
    if len(secret) > SECRET_SIZE:
        raise ValueError(f"{args.secret}: {len(secret)} bytes as a table, {SECRET_SIZE} fit into the image")
    image = boot_image(
        kernel.kernel,
        kernel.initrd,
        cmdline=command_line(kernel.cmdline),
        memory_size=args.memory,
        acpi=acpi.tables(ACPI_BASE),
        secret=b"" if protection is Protection.SEV else secret,
    )
    policy = DEFAULT_POLICY if args.policy is None else args.policy
    return Settings(args.name, args.key, protection, kernel, image, policy, secret, tuple(args.disk))


def table_of(data: bytes) -> bytes:
    """Make the table of secrets that user space finds: a file that is one already, or a disk's passphrase.

    Raises:
        ValueError: empty, or larger than the firmware takes.
    """
    if data.startswith(secret_table.TABLE.bytes_le):
        secret_table.parse(data)
        return secrets.raw(data)
    return secrets.table_of([(DISK_PASSPHRASE, data)])


def _appended(args: Namespace, protection: Protection) -> str:
    words = [args.append] if args.append else []
    if protection is Protection.SME:
        words.insert(0, SME_OPTION)
    return " ".join(words)


def _refuse(args: Namespace, protection: Protection) -> None:
    if args.kernel is None:
        raise ValueError(
            "--kernel is wanted: a bzImage, as distributions ship it in /boot/vmlinuz-*; "
            "`cbit demo --linux --write DIR` fetches and builds all that a Linux guest needs"
        )
    if args.policy is not None:
        if protection is not Protection.SEV:
            raise ValueError(f"--policy belongs to --mode sev, not to {protection}")
        if args.policy & Policy.ES:
            raise NotModelled(f"policy {args.policy:#x} demands SEV-ES, whose guests are not executed")
