"""The user space that the demo boots: busybox, the modules of its disk, the program that unlocks it, an init.

What ``/init`` does is in ``init.sh``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cbit.guest.linux.initramfs import Initramfs
from cbit.guest.linux.kernel_modules import ModuleFolder

INIT: Final = Path(__file__).parent / "init.sh"
#: A disk on PCI, and its encryption.
MODULES: Final = ("virtio_pci", "virtio_blk", "dm-crypt", "xts", "ecb")
# Links to busybox; whatever else it can do, `busybox WORD` does.
_APPLETS: Final = """
    cat cp cttyhack cut date dd df dmesg echo env false find free grep halt head hexdump hostname insmod kill
    ln ls lsmod mkdir mknod mount mv od poweroff printf ps pwd reboot rm rmdir sed setsid sh sleep sort
    strings stty sync tail tar test touch true umount uname uptime vi wc xxd
"""


def user_space(
    busybox: bytes, *, modules: Path | None = None, unlock: bytes | None = None, commands: str = ""
) -> bytes:
    """Build the archive.

    Args:
        busybox: a static busybox for x86-64.
        modules: the kernel's folder /lib/modules/RELEASE, for a guest with a disk.
        unlock: the program that opens the disk.
        commands: shell commands to run before the shell.

    Raises:
        NoModule: the kernel's modules are not all there.
        ValueError: not a busybox that can run in the guest.
    """
    if not busybox.startswith(b"\x7fELF\x02\x01"):
        raise ValueError("busybox is no 64-bit ELF program")
    archive = Initramfs()
    for folder in ("/proc", "/sys", "/dev", "/mnt", "/root", "/tmp"):
        archive.folder(folder)
    archive.device("/dev/console", 5, 1)
    archive.file("/init", INIT.read_bytes(), mode=0o755)
    archive.file("/bin/busybox", busybox, mode=0o755)
    for applet in _APPLETS.split():
        archive.link(f"/bin/{applet}", "busybox")
    ordered = ModuleFolder(modules).in_order(*MODULES) if modules else []
    archive.file("/etc/modules", "".join(f"{module.name}\n" for module in ordered).encode())
    for module in ordered:
        archive.file(f"/lib/modules/{module.name}.ko", module.data)
    if unlock is not None:
        archive.file("/bin/unlock", unlock, mode=0o755)
    if commands:
        archive.file("/etc/rc", commands.encode() + b"\n", mode=0o755)
    return bytes(archive)
