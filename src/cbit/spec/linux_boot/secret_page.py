"""A page of initramfs with a hole: where LAUNCH_SECRET puts the owner's secret so that user space finds it.

    0x000  newc entry of the folder /secret
    0x078  newc entry of the file /secret/table, mode 0400; NULs after its name fill up to the hole
    0x100  its body: zeros, measured; LAUNCH_SECRET replaces them
    0xD00  newc trailer, then zeros

The kernel unpacks the page after the initrd, from private memory to private memory.  What surrounds the hole
is measured with everything else, so a packet can only ever become the contents of that one file.

Paper: sev-api.md §7 (LAUNCH_SECRET: 16-byte units), launch-inputs.md §4 (what is usually in a secret).
"""

from __future__ import annotations

from typing import Final

from cbit.spec.address import PAGE
from cbit.spec.linux_boot.newc import TRAILER, newc_entry

SECRET_AT: Final = 0x100  #: offset of the hole in the page; a multiple of 16, as LAUNCH_SECRET wants
SECRET_SIZE: Final = 0xC00  #: bytes of the hole, as in the firmware builds that announce a secret area
SECRET_FILE: Final = "/secret/table"  #: what the guest opens

_FOLDER, _FILE = "secret", SECRET_FILE.lstrip("/")


def secret_page(secret: bytes = b"") -> bytes:
    """Build the page.

    Args:
        secret: what is in the hole: nothing, for a launch; the plaintext itself only where there is nobody
            who could inject it (a guest without SEV).

    Raises:
        ValueError: more than fits.
    """
    if len(secret) > SECRET_SIZE:
        raise ValueError(f"a secret of {len(secret)} bytes: {SECRET_SIZE} fit into {SECRET_FILE}")
    folder = newc_entry(_FOLDER, mode=0o040500, inode=1)
    head = newc_entry(_FILE, mode=0o100400, inode=2, size=SECRET_SIZE, room=SECRET_AT - len(folder))
    body = secret.ljust(SECRET_SIZE, b"\x00")
    return (folder + head + body + newc_entry(TRAILER, mode=0, inode=0)).ljust(PAGE, b"\x00")
