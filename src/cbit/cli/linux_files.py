"""Where a Linux to boot comes from: the files named, or a distribution's packages."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cbit.cli.packages import NoPackage, depends_on, fetch
from cbit.guest.linux.files import LinuxFiles

#: Kernels for virtual machines, Debian's and Ubuntu's: meta-packages that follow the newest version.
KERNELS: Final = ("linux-image-cloud-amd64", "linux-image-virtual")
_IMAGE, _MODULES = "linux-image-", "linux-modules-"  # Ubuntu's modules are in a package of their own
BUSYBOX: Final = "busybox-static"
_INSTEAD: Final = (
    "name the files yourself: --kernel VMLINUZ --modules /lib/modules/RELEASE --busybox FILE (a static one)"
)


def linux_files(*, kernel: Path | None, modules: Path | None, busybox: Path | None) -> LinuxFiles:
    """Take the files that are named, or fetch all three.

    Raises:
        ValueError: some are named, and not all.
        NoPackage: as ``fetch_linux``.
    """
    if kernel is None and modules is None and busybox is None:
        return fetch_linux()
    if kernel is None or modules is None or busybox is None:
        raise ValueError("--kernel, --modules and --busybox belong together: all three, or none")
    return LinuxFiles(kernel, modules, busybox, "named on the command line")


def fetch_linux(*, cache: Path | None = None) -> LinuxFiles:
    """Fetch the distribution's kernel for virtual machines and busybox, as an ordinary user, and keep them.

    Raises:
        NoPackage: they cannot be had here; the message says why and what to do instead.
    """
    try:
        name = _kernel_package()
        package = fetch(name, cache=cache)
        modules = package
        if not any(package.glob("**/modules.builtin")):
            modules = fetch(name.replace(_IMAGE, _MODULES, 1), cache=cache)
        busybox = fetch(BUSYBOX, cache=cache)
        return LinuxFiles(
            kernel=_only(package, "boot/vmlinuz-*"),
            modules=_only(modules, "lib/modules/*", "usr/lib/modules/*"),
            busybox=_only(busybox, "bin/busybox", "usr/bin/busybox"),
            origin=f"{package.name} and {busybox.name}, fetched with apt-get download, not installed",
        )
    except NoPackage as error:
        raise NoPackage(f"{error}; {_INSTEAD}") from error


def _kernel_package() -> str:
    """Name the package behind the first meta-package that there is."""
    first: NoPackage | None = None
    for meta in KERNELS:
        try:
            return depends_on(meta, _IMAGE)
        except NoPackage as error:
            first = first or error
    raise first or NoPackage("there is no meta-package of a kernel to look for")


def _only(folder: Path, *patterns: str) -> Path:
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise NoPackage(f"{folder.name} has no {patterns[0]}")
