"""What a redirected program finds: paths, and what is behind each, as data.

A device file is played by another character device that every Linux has and nothing sends these requests to:
stat and fstat then say "character device" under every mechanism and without privileges, and a descriptor is
known by its inode, through dup, fork, exec and whatever else hands it on.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cbit.redirect.kvm_requests import (
    ENCRYPTION_REQUESTS,
    KVM,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_VCPU,
    KVM_VM,
    REQUESTS,
    TYPE,
    requests_on,
)

SEV_ISSUE_CMD: Final = 0xC0105300
SNP_GET_REPORT: Final = 0xC0205300
SNP_GET_DERIVED_KEY: Final = 0xC0205301
SNP_GET_EXT_REPORT: Final = 0xC0205302

SEV: Final = "/dev/sev"
SEV_GUEST: Final = "/dev/sev-guest"
PARAMETERS: Final = "/sys/module/kvm_amd/parameters"

#: Every request that a reason may have to name.
REQUEST_NAMES: Final = {SEV_ISSUE_CMD: "SEV_ISSUE_CMD"} | {n: row.name for n, row in REQUESTS.items()}


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A character device that answers some ioctl requests; all others end as on its stand-in, with ENOTTY.

    Attributes:
        path: where the program finds it.
        requests: the request numbers, low 32 bits.
        stand_in: the device that plays it.  /dev/null would do as well but for programs whose standard input
            it is: those would get an answer where ENOTTY is due.
    """

    path: str
    requests: tuple[int, ...]
    stand_in: str = "/dev/full"


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that can be read."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class DescriptorKind:
    """A kind of descriptor that has no path, and some requests on it.

    Attributes:
        link: what /proc/PID/fd shows for it, or would.
        requests: the request numbers, low 32 bits.
    """

    link: str
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Files:
    """Everything that a program finds beside what is really there.

    Attributes:
        devices: device files.
        texts: files that can be read.
        foreign: descriptors of the kernel's own on which some requests are answered.
        given: descriptors that devices give out (``device.Give``).
        observed: descriptors of the kernel's own, and requests that it answers after we have seen them pass.
        types: bits 8 … 15 of requests that are all seen: what nothing here answers is refused with a reason.
    """

    devices: tuple[DeviceFile, ...]
    texts: tuple[TextFile, ...] = ()
    foreign: tuple[DescriptorKind, ...] = ()
    given: tuple[DescriptorKind, ...] = ()
    observed: tuple[DescriptorKind, ...] = ()
    types: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        paths = self.paths
        if len(set(paths)) != len(paths):
            raise ValueError(f"a path is given twice: {', '.join(sorted(paths))}")
        if odd := [path for path in paths if not path.startswith("/") or posixpath.normpath(path) != path]:
            raise ValueError(f"not an absolute, normal path: {', '.join(odd)}")
        if len({device.stand_in for device in self.devices}) != len(self.devices):
            raise ValueError("two devices have the same stand-in: nothing tells them apart")

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path."""
        return (*(device.path for device in self.devices), *(text.path for text in self.texts))

    @property
    def requests(self) -> tuple[int, ...]:
        """Every request number that is answered or observed."""
        kinds = (*self.foreign, *self.given, *self.observed)
        lists = [*(one.requests for one in self.devices), *(kind.requests for kind in kinds)]
        return tuple(sorted({request for requests in lists for request in requests}))

    @property
    def served(self) -> tuple[str, ...]:
        """The paths and links that need a ``Device`` behind them."""
        links = (kind.link for kind in (*self.foreign, *self.given))
        return (*(device.path for device in self.devices), *links)

    def missing_directories(self) -> dict[str, str]:
        """Map each directory that is not there, but must seem to be, to the nearest one that is."""
        return {gap: there for path in self.paths for there in (nearest(path),) for gap in gaps(path, there)}


def nearest(path: str) -> str:
    """Return the nearest directory above a path that exists here."""
    directory = posixpath.dirname(path)
    while not os.path.isdir(directory):
        directory = posixpath.dirname(directory)
    return directory


def gaps(path: str, there: str) -> Iterator[str]:
    """Yield the directories between ``there`` and the path."""
    directory = posixpath.dirname(path)
    while directory != there:
        yield directory
        directory = posixpath.dirname(directory)


class Mechanism(StrEnum):
    """How the files come to exist for a program, and how its requests reach us."""

    NAMESPACE = "namespace"  #: a private mount namespace; a listener on its system calls
    OPENS = "opens"  #: a listener, for its opens too
    FUSE = "fuse"  #: a private mount namespace; the files are ours, and no system call is watched


class Kvm(StrEnum):
    """Whose virtual machines a program gets."""

    HOST = (
        "host"  #: the kernel's own: their memory-encryption requests are answered, all else is the kernel's
    )
    SUPPLIED = "supplied"  #: ours, where there is no /dev/kvm: they can be launched, and do not run
    NONE = "none"  #: nobody's


def sev_files(*, es: bool = False, snp: bool = False, kvm: Kvm = Kvm.NONE, guest: bool = False) -> Files:
    """Return what a host with the driver shows.

    Args:
        es: the parameter sev_es says Y.
        snp: the parameter sev_snp says Y.
        kvm: whose virtual machines.
        guest: show /dev/sev-guest too, as inside an SNP guest.
    """
    devices = [DeviceFile(SEV, (SEV_ISSUE_CMD,))]
    if guest:
        requests = (SNP_GET_REPORT, SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT)
        devices.append(DeviceFile(SEV_GUEST, requests, stand_in="/dev/zero"))
    says = {"sev": True, "sev_es": es, "sev_snp": snp}
    texts = tuple(TextFile(f"{PARAMETERS}/{name}", b"Y\n" if on else b"N\n") for name, on in says.items())
    if kvm is Kvm.HOST:
        return Files(
            tuple(devices),
            texts,
            foreign=(DescriptorKind(KVM_VM, ENCRYPTION_REQUESTS),),
            observed=(DescriptorKind(KVM, (KVM_CREATE_VM,)), DescriptorKind(KVM_VM, (KVM_CREATE_VCPU,))),
        )
    if kvm is Kvm.SUPPLIED:
        devices.append(DeviceFile(KVM, tuple(requests_on(KVM)), stand_in="/dev/urandom"))
        given = tuple(DescriptorKind(link, tuple(requests_on(link))) for link in (KVM_VM, KVM_VCPU))
        return Files(tuple(devices), texts, given=given, types=(TYPE,))
    return Files(tuple(devices), texts)
