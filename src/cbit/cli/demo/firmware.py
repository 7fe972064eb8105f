"""Where the demo's image comes from: a file, a distribution's OVMF, our own image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cbit.attacks.victim import RAM_BASE, RAM_SIZE
from cbit.cli import packages
from cbit.cli.packages import NoPackage
from cbit.guest import generated_firmware
from cbit.owner.measure import expect_sev
from cbit.spec.address import BLOCK, MIB, Gpa

#: The usual places, builds that announce a secret area first.
PLACES: Final = (
    "/usr/share/edk2/ovmf/OVMF.amdsev.fd",
    "/usr/share/OVMF/OVMF.amdsev.fd",
    "/usr/share/ovmf/OVMF.amdsev.fd",
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/qemu/OVMF.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
    "/usr/share/qemu/ovmf-x86_64.bin",
)
FETCH_SECONDS: Final = 30
LARGEST: Final = 16 * MIB  #: bytes; fits the memory of the survey's machines, and OVMF has 2 to 16 MiB


@dataclass(frozen=True, slots=True)
class Image:
    """A firmware image and where it came from."""

    data: bytes
    name: str
    origin: str


def find(named: Path | None) -> Image:
    """Return the image to launch.

    Args:
        named: the file that somebody wants.

    Raises:
        OSError: ``named`` cannot be read.
        ValueError: it is no file, or too large for the demo's machine.
    """
    if named is not None:
        return _read(named)
    for place in map(Path, PLACES):
        if place.is_file():
            return Image(place.read_bytes(), str(place), "installed on this computer")
    fetched = _fetch()
    if fetched is not None:
        return fetched
    return Image(
        generated_firmware.generate(), "cbit's own test firmware", "generated: no OVMF is to be had here"
    )


def secret_place(image: bytes, *, named: int, length: int) -> Gpa:
    """Decide where the secret goes: where the image announces it, else where its owner says.

    Args:
        image: the guest firmware.
        named: the owner's choice.
        length: bytes of the packet.

    Raises:
        Unmeasurable, WireError: the image cannot be launched.
        ValueError: the demo's guest has no memory there, or it is not aligned.
    """
    area = expect_sev(image).secret_area
    at, whose = (area.base, "the image announces its secret area at") if area else (named, "--secret-gpa")
    if at % BLOCK or not RAM_BASE <= at <= RAM_BASE + RAM_SIZE - length:
        memory = f"{RAM_BASE:#x}..{RAM_BASE + RAM_SIZE - 1:#x}"
        raise ValueError(f"{whose} {at:#x}: not a multiple of {BLOCK} inside the guest's memory, {memory}")
    return Gpa(at)


def _read(named: Path) -> Image:
    if named.exists() and not named.is_dir():
        if not named.is_file():
            raise ValueError(f"{named}: not a regular file")
        if (size := named.stat().st_size) > LARGEST:
            raise ValueError(f"{named}: {size} bytes; the demo launches images of at most {LARGEST} bytes")
    return Image(named.read_bytes(), str(named), "named on the command line")


def _fetch() -> Image | None:
    """Ask Debian's or Ubuntu's package tools for OVMF, as an ordinary user."""
    try:
        package = packages.fetch("ovmf", timeout=FETCH_SECONDS)
        image = (package / "usr/share/ovmf/OVMF.fd").read_bytes()
    except (OSError, NoPackage):
        return None
    return Image(image, f"OVMF.fd of {package.name}", "fetched with apt-get download, not installed")
