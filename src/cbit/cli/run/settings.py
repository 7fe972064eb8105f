"""What is to be run: arguments read, files read, everything refused that no machine need be made for."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cbit.cli.run.tenant import table_of
from cbit.cli.sizes import in_words
from cbit.hypervisor.devices.disk import BadDisk, FileDisk
from cbit.hypervisor.host import Protection
from cbit.owner.files import read_limited
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec import acpi
from cbit.spec.address import MIB, PAGE
from cbit.spec.errors import NotModelled
from cbit.spec.linux_boot import ACPI_BASE, SECRET_SIZE, BootImage, boot_image, command_line
from cbit.spec.policy import Policy

LARGEST: Final = 1 << 32  # bytes of a kernel or initrd
HOST_MEMORY: Final = 64 * MIB  #: beside the guest's: page tables, and room for commands
SME_OPTION: Final = (
    "mem_encrypt=on"  #: a kernel as host asks for its encryption; what is appended may overrule
)
DEFAULT_POLICY: Final = int(Policy.NODBG)


@dataclass(frozen=True, slots=True)
class Settings:
    """A run, as far as it is known before there is a machine.

    Attributes:
        protection: how the guest's memory is protected.
        kernel: kernel, initrd and what is appended to the command line.
        image: what the hypervisor loads.
        policy: for SEV.
        secret: the table of secrets; empty: none.
        cache: bytes of plaintext that the machine may hold.
    """

    protection: Protection
    kernel: Kernel
    image: BootImage
    policy: int
    secret: bytes
    cache: int

    @property
    def launch(self) -> DirectLaunch:
        """What the owner knows: the same files, laid out by the owner itself."""
        return DirectLaunch(kernel=self.kernel, memory_size=self.image.memory_size)

    @property
    def dram_size(self) -> int:
        """Bytes of DRAM that the machine needs: under SME all of it is the kernel's."""
        own = 0 if self.protection is Protection.SME else HOST_MEMORY
        return self.image.memory_size + own

    @property
    def command_line(self) -> str:
        """All of it."""
        return command_line(self.kernel.cmdline)


def read_settings(args: Namespace) -> Settings:
    """Read the arguments and the files that they name.

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
    return Settings(protection, kernel, image, policy, secret, args.cache)


def _appended(args: Namespace, protection: Protection) -> str:
    words = [args.append] if args.append else []
    if protection is Protection.SME:
        words.insert(0, SME_OPTION)
    return " ".join(words)


def open_disks(paths: list[Path]) -> list[FileDisk]:
    """Open the disks, all or none.

    Raises:
        BadDisk: one of them is none.
    """
    opened: list[FileDisk] = []
    try:
        for path in paths:
            opened.append(FileDisk(path))
    except BadDisk:
        for disk in opened:
            disk.close()
        raise
    return opened


def _refuse(args: Namespace, protection: Protection) -> None:
    if args.firmware is not None:
        raise NotModelled(
            "--firmware: guest firmware is not executed yet; give --kernel, which is booted directly"
        )
    if args.kernel is None:
        raise ValueError("--kernel is wanted: a bzImage, as distributions ship it in /boot/vmlinuz-*")
    if args.policy is not None:
        if protection is not Protection.SEV:
            raise ValueError(f"--policy belongs to --mode sev, not to {protection}")
        if args.policy & Policy.ES:
            raise NotModelled(f"policy {args.policy:#x} demands SEV-ES, whose guests are not executed")
    if args.cache < PAGE or args.cache % PAGE:
        raise ValueError(f"--cache {in_words(args.cache)}: whole pages of {PAGE} bytes, one at least")
    for name in ("report", "dump_dram"):
        path: Path | None = getattr(args, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"--{name.replace('_', '-')} {path}: there is no such folder")
