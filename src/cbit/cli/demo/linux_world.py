"""What the Linux story shares: one machine after the other, the owner's files, the guest at its console."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cbit.attacks.linux_owner import OwnersFiles
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.host import Host
from cbit.machine.board import Machine, Options
from cbit.machine.state_folder import StateFolder
from cbit.spec.address import MIB

if TYPE_CHECKING:
    from cbit.attacks.forensics import Dump, Find

EPOCH: Final = 1_700_000_000  #: when the guest believes to be: the same story again
PROMPT: Final = b"/ # "
HOST_MEMORY: Final = 64 * MIB  #: what the host keeps of the machine


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
        dumps: what was dumped, by name.
        finds: what the tools said.
    """

    state: StateFolder
    files: OwnersFiles
    memory_size: int
    folder: Path
    entropy: Entropy
    show: Callable[[str], None]
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
        if damage := host.initialise():
            self.show(f"{damage}; the platform has made itself a new identity")
        return host
