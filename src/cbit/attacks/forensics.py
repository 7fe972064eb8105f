"""The administrator's tools, let loose on dumps of DRAM: cbit's own scan, and other people's programs.

Each looks for one thing in a dump and answers found or not found; a program that is not here is named.
"""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cbit.attacks.key_schedule import expand

SECONDS: Final = 600  #: for one program on one dump
_AES: Final = 32  # bytes of each half of the disk's key


@dataclass(frozen=True, slots=True)
class Wanted:
    """What there is to find.

    Attributes:
        password: what the guest read from its encrypted disk.
        banner: the first words of the kernel's version.
        disk_key: the key of the disk: two keys of AES-256.
    """

    password: bytes
    banner: bytes
    disk_key: bytes

    @property
    def halves(self) -> tuple[bytes, bytes]:
        """The two keys of XTS."""
        return self.disk_key[:_AES], self.disk_key[_AES:]


@dataclass(frozen=True, slots=True)
class Find:
    """What one tool said about one dump.

    Attributes:
        tool: which.
        what: what it looked for.
        dump: where.
        found: whether it was there; None if the tool is not here or failed.
        words: how it said so.
    """

    tool: str
    what: str
    dump: str
    found: bool | None
    words: str


class Dump:
    """A dump in a file.

    Attributes:
        name: what people call it.
        path: where it is.
        packed: the same without pages of zeros, for programs that read every byte slowly.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.packed = path.with_suffix(".packed")
        with path.open("rb") as whole, self.packed.open("wb") as packed:
            while page := whole.read(4096):
                if page.count(0) != len(page):
                    packed.write(page)

    def count(self, pattern: bytes) -> int:
        """Count a pattern."""
        found = 0
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as cells:
            at = cells.find(pattern)
            while at >= 0:
                found += 1
                at = cells.find(pattern, at + 1)
        return found


def search(dumps: Sequence[Dump], wanted: Wanted) -> Iterator[Find]:
    """Let every tool search every dump, as many at once as this computer has processors.

    Answers come in the order of the dumps, whoever is quicker.
    """
    jobs = [(tool, dump) for dump in dumps for tool in (own_scan, strings, aeskeyfind, volatility)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for answer in pool.map(lambda job: job[0](job[1], wanted), jobs):
            yield from (answer if isinstance(answer, list) else [answer])


def own_scan(dump: Dump, wanted: Wanted) -> list[Find]:
    """Search for all three things, byte by byte."""
    found = []
    for what, patterns in (
        ("password", [wanted.password]),
        ("kernel banner", [wanted.banner]),
        ("disk key's schedule", [expand(half) for half in wanted.halves]),
    ):
        count = sum(dump.count(pattern) for pattern in patterns)
        found.append(Find("cbit's own scan", what, dump.name, count > 0, f"{count} times"))
    return found


def strings(dump: Dump, wanted: Wanted) -> Find:
    """GNU binutils' strings, for the password."""
    what, texts = "password", texts_in(dump)
    if isinstance(texts, str):
        return Find("strings", what, dump.name, None, texts)
    lines = [line for line in texts if wanted.password in line]
    return Find("strings", what, dump.name, bool(lines), f"{len(lines)} of {len(texts)} strings")


def aeskeyfind(dump: Dump, wanted: Wanted) -> Find:
    """aeskeyfind, which knows no key and finds what is expanded like one."""
    what, keys = "disk key's schedule", keys_in(dump)
    if isinstance(keys, str):
        return Find("aeskeyfind", what, dump.name, None, keys)
    ours = [half for half in wanted.halves if half in keys]
    return Find(
        "aeskeyfind", what, dump.name, bool(ours), f"{len(ours)} of 2 halves, {len(keys)} keys in all"
    )


def volatility(dump: Dump, wanted: Wanted) -> Find:
    """volatility3's scan for kernel banners."""
    what, banners = "kernel banner", banners_in(dump)
    if isinstance(banners, str):
        return Find("volatility3", what, dump.name, None, banners)
    lines = [line for line in banners if wanted.banner in line]
    return Find("volatility3", what, dump.name, bool(lines), f"{len(lines)} banners")


def texts_in(dump: Dump) -> list[bytes] | str:
    """What `strings` prints of a dump, or why there is nothing."""
    ended = _run(["strings", "-n", "8", str(dump.packed)], "binutils")
    return ended if isinstance(ended, str) else ended.splitlines()


def keys_in(dump: Dump) -> set[bytes] | str:
    """The keys that `aeskeyfind` finds in a dump, or why there is nothing."""
    ended = _run(["aeskeyfind", "-q", str(dump.packed)], "aeskeyfind")
    return ended if isinstance(ended, str) else {bytes.fromhex(line.decode()) for line in ended.split()}


def banners_in(dump: Dump) -> list[bytes] | str:
    """The kernel banners that volatility3 finds in a dump, or why there is nothing."""
    ended = _run(["vol", "-q", "-f", str(dump.packed), "banners.Banners"], "volatility3")
    if isinstance(ended, str):
        return ended
    return [line for line in ended.splitlines() if b"Linux version" in line]


def _run(command: Sequence[str], package: str) -> bytes | str:
    """Run a program and return what it printed, or why there is nothing."""
    # CBIT_VOL=/path/to/vol names a program that is elsewhere.
    named = os.environ.get(f"CBIT_{command[0].upper()}", command[0])
    program = shutil.which(named)
    if program is None:
        return f"not here: install {package}"
    try:
        ended = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed: {error}"
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        return f"failed with exit code {ended.returncode}: {last[0]}"
    return ended.stdout
