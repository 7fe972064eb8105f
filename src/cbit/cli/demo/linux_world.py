"""What the Linux story shares: one machine after the other, the owner's files, the guest at its console."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cbit.attacks.tenant import Tenant
from cbit.crypto.entropy import Entropy
from cbit.guest.linux import encrypted_disk
from cbit.guest.linux.romfs import romfs
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine, Options
from cbit.machine.state_folder import StateFolder
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec import acpi, secret_table
from cbit.spec.address import MIB
from cbit.spec.linux_boot import ACPI_BASE, BootImage, boot_image, command_line

if TYPE_CHECKING:
    from cbit.cli.demo.forensics import Dump, Find

EPOCH: Final = 1_700_000_000  #: when the guest believes to be: the same story again
PROMPT: Final = b"/ # "
HOST_MEMORY: Final = 64 * MIB  #: what the host keeps of the machine
NOTE: Final = b"The disk is open: this line was encrypted with the key that the owner sent.\n"
_PASSWORD_FILE: Final = "." + "password"  # `cat /mnt/*` leaves it alone
#: The guest takes its password from the disk, and prints nothing of it.
COMMANDS: Final = f"read -r PASSWORD < /mnt/{_PASSWORD_FILE} && export PASSWORD"


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

    @property
    def disk(self) -> bytes:
        """The encrypted disk image."""
        files = {"note": NOTE, _PASSWORD_FILE: self.password + b"\n"}
        return encrypted_disk.encrypt(romfs(files), self.disk_key)

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


class LiveConsole:
    """The other end of the guest's serial line: lines are shown as they come.

    Mutable.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._line = bytearray()
        self.text = bytearray()

    def write(self, byte: int) -> None:
        """Take a byte."""
        self.text.append(byte)
        if byte == 0x0A:
            self._show(self._line.decode("utf-8", "replace").rstrip("\r"))
            self._line.clear()
        else:
            self._line.append(byte)

    def read(self) -> bytes:
        """Nobody types."""
        return b""

    @property
    def at_prompt(self) -> bool:
        """Whether the shell waits."""
        return PROMPT in self._line

    def lines_with(self, *words: str) -> list[str]:
        """Give the lines that hold one of the words."""
        lines = self.text.decode("utf-8", "replace").splitlines()
        return [line for line in lines if any(word in line for word in words)]


@dataclass(slots=True)
class LinuxWorld:
    """Each act works on what the acts before it left behind.

    Attributes:
        state: the manufactured machine.
        files: the owner's.
        memory_size: bytes of guest memory.
        folder: where dumps go.
        entropy: everybody's randomness.
        show: shows a line of the console.
        tenant: the owner.
        dumps: what was dumped, by name.
        finds: what the tools said.
    """

    state: StateFolder
    files: OwnersFiles
    memory_size: int
    folder: Path
    entropy: Entropy
    show: Callable[[str], None]
    tenant: Tenant = field(init=False)
    dumps: list[Dump] = field(default_factory=list)
    finds: list[Find] = field(default_factory=list)

    def new_host(self, *, cache_size: int = 32 * MIB) -> Host:
        """Boot a machine with room for one guest."""
        options = Options(
            memory_size=self.memory_size + HOST_MEMORY, cache_size=cache_size, entropy=self.entropy
        )
        machine = Machine(self.state, options)
        machine.power_on()
        host = Host(machine)
        host.initialise()
        return host
