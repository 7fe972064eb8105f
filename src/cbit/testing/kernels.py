"""Kernels for tests: images with a good setup header and nothing that runs."""

from __future__ import annotations

from typing import Any, Final

from cbit.spec.address import MIB
from cbit.spec.linux_boot.boot_params import (
    BOOT_FLAG,
    MAGIC,
    BootParams,
    LoadFlags,
    XLoadFlags,
)

SETUP_SECTORS: Final = 7  #: the real-mode part is this many sectors, and one
_CODE: Final = bytes(range(256)) * 40  # 10 KiB that can be told from anything else


def a_kernel(*, code: bytes = _CODE, **changes: Any) -> bytes:
    """Make a bzImage.

    Args:
        code: its protected-mode part, padded to 16 bytes.
        changes: fields of its header that are to be otherwise.
    """
    code += bytes(-len(code) % 16)
    fields: dict[str, Any] = {
        "setup_sects": SETUP_SECTORS,
        "syssize": -(-len(code) // 16),
        "boot_flag": BOOT_FLAG,
        "jump": 0x6AEB,  # the header reaches to 0x202 + 0x6A
        "header": MAGIC,
        "version": 0x20F,
        "loadflags": LoadFlags.LOADED_HIGH,
        "initrd_addr_max": 0x7FFF_FFFF,
        "kernel_alignment": 2 * MIB,
        "relocatable_kernel": 1,
        "xloadflags": XLoadFlags.KERNEL_64,
        "cmdline_size": 2047,
        "payload_length": len(code),
        "pref_address": 16 * MIB,
        "init_size": 20 * MIB,
    }
    setup = bytes(BootParams(**(fields | changes)))
    return setup.ljust((SETUP_SECTORS + 1) * 512, b"\x00") + code
