"""Files out of a distribution's packages, as an ordinary user: downloaded, unpacked, kept, not installed.

Debian's and Ubuntu's tools do it: ``apt-get download`` checks the package's hash against the signed lists
that this computer has, and ``dpkg-deb -x`` unpacks without root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from cbit.spec.errors import CbitError

TOOLS: Final = ("apt-get", "apt-cache", "dpkg-deb")
SECONDS: Final = 120  #: for one package


class NoPackage(CbitError):
    """A package cannot be had here; the message says why."""


def cache_folder() -> Path:
    """Where unpacked packages are kept, one folder for each version."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cbit" / "packages"


def fetch(package: str, *, cache: Path | None = None, timeout: int = SECONDS) -> Path:
    """Return the folder of an unpacked package: the version that this computer's lists name.

    Where there is no network, a version that was fetched before does.

    Raises:
        NoPackage: there are no such tools, no such package, or no network.
    """
    cache = cache or cache_folder()
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise NoPackage(f"{package} is fetched with Debian's or Ubuntu's tools, and {missing[0]} is not here")
    listed = _run(["apt-get", "download", "-q", "--print-uris", package], timeout=timeout)
    words = listed.stdout.split()
    if listed.returncode or len(words) < 2 or not words[1].endswith(".deb"):
        if (kept := _newest(package, cache)) is not None:
            return kept
        raise NoPackage(
            f"apt knows no package {package}{_last_line(listed)}; "
            "`apt-get update` (as root) fetches the lists of packages"
        )
    folder = cache / words[1].removesuffix(".deb")
    if not folder.is_dir():
        _download(package, folder, timeout=timeout)
    return folder


def depends_on(package: str, prefix: str, *, timeout: int = SECONDS) -> str:
    """Name the package with a prefix that a package depends on: what stands behind a meta-package.

    Raises:
        NoPackage: there is none, or no such tool.
    """
    if not shutil.which("apt-cache"):
        raise NoPackage(f"{package} is looked up with apt-cache, which is not here")
    listed = _run(["apt-cache", "depends", "--important", package], timeout=timeout)
    for line in listed.stdout.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith(prefix):
            return name
    raise NoPackage(f"apt knows no package {prefix}… behind {package}{_last_line(listed)}")


def _newest(package: str, cache: Path) -> Path | None:
    """Find what was fetched last of a package."""
    kept = [folder for folder in cache.glob(f"{package}_*") if folder.is_dir()]
    return max(kept, key=lambda folder: folder.stat().st_mtime, default=None)


def _download(package: str, folder: Path, *, timeout: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        got = _run(["apt-get", "download", "-q", package], cwd=scratch, timeout=timeout)
        file = next(Path(scratch).glob("*.deb"), None)
        if got.returncode or file is None:
            raise NoPackage(f"{package} cannot be downloaded{_last_line(got)}")
        made = Path(scratch, "unpacked")
        unpacked = _run(["dpkg-deb", "-x", str(file), str(made)], timeout=timeout)
        if unpacked.returncode:
            raise NoPackage(f"{package} cannot be unpacked{_last_line(unpacked)}")
        try:
            made.replace(folder)  # whole or not at all
        except OSError as error:
            if not folder.is_dir():  # and nobody else was quicker
                raise NoPackage(f"{package} cannot be kept in {folder.parent}: {error}") from error


def _last_line(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in ended.stderr.splitlines() if line.startswith("E:")]
    return f" ({lines[-1].removeprefix('E:').strip()})" if lines else ""


def _run(command: list[str], *, timeout: int, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool; one that hangs or is not there failed like any other."""
    try:
        return subprocess.run(  # fixed arguments, no shell
            command,
            cwd=cwd,
            env=os.environ | {"LC_ALL": "C"},
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 1, "", f"E: {error}")
