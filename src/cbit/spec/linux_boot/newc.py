"""Entries of a newc archive, the format of an initramfs.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from typing import Final

TRAILER: Final = "TRAILER!!!"  #: the name that ends an archive
_HEADER: Final = 110  # bytes before the name


def newc_entry(
    name: str, *, mode: int, inode: int, size: int = 0, device: tuple[int, int] = (0, 0), room: int = 0
) -> bytes:
    """Write the header and name of one entry of a newc archive, padded to 4 bytes; its body follows.

    Owner and group are root, the time is 0: the same contents give the same bytes.

    Args:
        name: the path, without a leading slash.
        mode: kind and permissions, as in ``st_mode``.
        inode: a number of its own.
        size: bytes of the body.
        device: major and minor number of a device file.
        room: bytes that the entry is to have, if more than it needs.
    """
    raw = name.encode() + b"\x00"
    raw = raw.ljust(room - _HEADER, b"\x00")
    fields = (inode, mode, 0, 0, 1, 0, size, 0, 0, *device, len(raw), 0)
    entry = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return entry + bytes(-len(entry) % 4)
