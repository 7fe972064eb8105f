"""Kernels of a few instructions: 32-bit protected mode, no paging, a serial port, and an end.

The bytes are written out, so that no assembler is needed.
"""

from __future__ import annotations

import struct
from typing import Final

from cbit.spec.address import MIB
from cbit.spec.linux_boot import SECRET_AT
from cbit.testing.kernels import a_kernel

LOADED_AT: Final = 16 * MIB
SERIAL: Final = 0x3F8
HALT: Final = b"\xfa\xf4"  # cli; hlt
FOREVER: Final = b"\xeb\xfe"  # jmp $
TRIPLE_FAULT: Final = b"\x0f\x0b"  # ud2, and no interrupt table
POWER_OFF: Final = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef"  # mov dx, 0x604; mov ax, 0x3400; out dx, ax
RESET: Final = b"\x66\xba\xf9\x0c\xb0\x06\xee"  # mov dx, 0xCF9; mov al, 6; out dx, al


def says(text: str) -> bytes:
    """Print a text, character by character."""
    code = b"\x66\xba" + struct.pack("<H", SERIAL)  # mov dx, 0x3F8
    return code + b"".join(
        b"\xb0" + bytes([byte]) + b"\xee" for byte in text.encode()
    )  # mov al, c; out dx, al


def reads(address: int) -> bytes:
    """Read four bytes of guest memory."""
    return b"\xa1" + struct.pack("<I", address)  # mov eax, [address]


def prints_memory(address: int, length: int) -> bytes:
    """Print guest memory as it is."""
    code = b"\xbe" + struct.pack("<I", address)  # mov esi, address
    code += b"\xb9" + struct.pack("<I", length)  # mov ecx, length
    code += b"\x66\xba" + struct.pack("<H", SERIAL)
    return code + b"\xac\xee\xe2\xfc"  # again: lodsb; out dx, al; loop again


def sends_memory(address: int, length: int) -> bytes:
    """Print guest memory with one string instruction."""
    code = b"\x66\xba" + struct.pack("<H", SERIAL)
    code += b"\xbe" + struct.pack("<I", address) + b"\xb9" + struct.pack("<I", length)
    return code + b"\xfc\xf3\x6e"  # cld; rep outsb


def writes(address: int, text: bytes) -> bytes:
    """Store a text, byte for byte."""
    return b"".join(
        b"\xc6\x05" + struct.pack("<I", address + i) + bytes([byte]) for i, byte in enumerate(text)
    )


def spins(blocks: int) -> bytes:
    """Let so many blocks go by."""
    return b"\xb9" + struct.pack("<I", blocks) + b"\xe2\xfe"  # mov ecx, blocks; loop $


#: Interrupts of the serial port's receiver are enabled there, though masked at the controller.
LISTENS: Final = b"\x66\xba\xf9\x03\xb0\x01\xee"  # mov dx, 0x3F9; mov al, 1; out dx, al
FIFO_ON: Final = b"\x66\xba\xfa\x03\xb0\x01\xee"  # mov dx, 0x3FA; mov al, 1; out dx, al
#: Listens, echoes until a full stop.
ECHO: Final = (
    LISTENS + b"\x66\xba\xfd\x03"  # poll: mov dx, 0x3FD
    b"\xec\xa8\x01\x74\xfb"  # wait: in al, dx; test al, 1; jz wait
    b"\x66\xba\xf8\x03\xec\xee"  # mov dx, 0x3F8; in al, dx; out dx, al
    b"\x3c\x2e\x75\xeb"  # cmp al, '.'; jne poll
)


def small(code: bytes) -> bytes:
    """Make a bzImage of it that starts with little memory."""
    return a_kernel(code=code, init_size=MIB)


def secret_address(memory: int) -> int:
    """Where a guest without initrd finds its secret."""
    return memory - 0x1000 + SECRET_AT
