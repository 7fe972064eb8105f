"""Where a Linux to boot comes from: the files named, or a distribution's packages."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cbit.cli.packages import NoPackage, depends_on, fetch
from cbit.guest.linux.files import LinuxFiles

#: Kernels for virtual machines, Debian's and Ubuntu's: meta-packages that follow the newest version.
KERNELS: Final = ("linux-image-cloud-amd64", "linux-image-virtual")
_IMAGE: Final = "linux-image-"
#: Packages of the same version that may hold the rest: Ubuntu's modules; since 14 all of Debian's.
_OTHERS: Final = ("linux-modules-", "linux-binary-", "linux-base-")
_KERNEL: Final = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
_MODULES: Final = ("lib/modules/*", "usr/lib/modules/*")
_BUILTIN: Final = "modules.builtin"
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
        parts = [fetch(name, cache=cache)]
        wanted = (_KERNEL, tuple(f"{folder}/{_BUILTIN}" for folder in _MODULES))
        for other in _OTHERS:
            if all(_found(parts, *patterns) for patterns in wanted):
                break
            with suppress(NoPackage):  # the last word is what is missing in the end
                parts.append(fetch(name.replace(_IMAGE, other, 1), cache=cache))
        busybox = fetch(BUSYBOX, cache=cache)
        return LinuxFiles(
            kernel=_only(parts, *_KERNEL),
            modules=_modules(parts),
            busybox=_only([busybox], "bin/busybox", "usr/bin/busybox"),
            origin=f"{parts[0].name} and {busybox.name}, fetched with apt-get download, not installed",
        )
    except NoPackage as error:
        raise NoPackage(f"{error}; {_INSTEAD}") from error


def _modules(parts: Sequence[Path]) -> Path:
    """Return the folder of modules, with the list of those that are built in, wherever that was."""
    builtin = _only(parts, *(f"{folder}/{_BUILTIN}" for folder in _MODULES))
    with_modules = _found(parts, *(f"{folder}/kernel" for folder in _MODULES))
    folder = with_modules[0].parent if with_modules else builtin.parent
    if not (folder / _BUILTIN).is_file():
        shutil.copyfile(builtin, folder / _BUILTIN)
    return folder


def _kernel_package() -> str:
    """Name the package behind the first meta-package that there is."""
    first: NoPackage | None = None
    for meta in KERNELS:
        try:
            return depends_on(meta, _IMAGE)
        except NoPackage as error:
            first = first or error
    raise first or NoPackage("there is no meta-package of a kernel to look for")


def _found(parts: Sequence[Path], *patterns: str) -> list[Path]:
    return [path for part in parts for pattern in patterns for path in sorted(part.glob(pattern))]


def _only(parts: Sequence[Path], *patterns: str) -> Path:
    if found := _found(parts, *patterns):
        return found[0]
    raise NoPackage(f"{parts[0].name} has no {patterns[0]}")
