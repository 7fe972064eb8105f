"""Guests that execute: encrypted against plain, a page fill against its cipher, an idle guest's memory.

All on one machine in one run: the same image, engine and code path; only the protection differs.
Times are the process's own: everything here happens in one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cbit.cli.bench.figure import Figure, medians, pairs
from cbit.cpu.paging import Pte
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import (
    IMAGE,
    IMAGE_SIZE,
    LARGEST_NUMBER,
    MEMORY,
    MEMORY_SIZE,
    Request,
    reset_state,
)
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.small_guest import SmallGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import KIB, MIB, PAGE, Gpa
from cbit.testing.worlds import a_host, a_machine, a_root, a_state

DRAM: Final = 32 * MIB
LARGE: Final = 16 * MIB  #: a cache that holds everything that the guests touch
#: Half of what one of them works on; the least that brings in as many neighbours as a large one.
SMALL: Final = 256 * KIB
TINY: Final = 128 * KIB  #: the least that brings in neighbours at all, half as many
NUMBER: Final = 256 * KIB  #: what a guest works on, in bytes too
WORKS: Final = 3  # in a cache that holds them, one alone is shorter than a busy computer's pauses
EXITS: Final = 2000
AES_PAGES: Final = 2000
IDLE_CACHE: Final = 2 * MIB  #: what the first guests fill; it does not grow with the further ones
FIRST_GUESTS: Final = 3
IDLE_GUESTS: Final = 8

_PROGRAM: Final = """
import json
from cbit.cli.bench.guest import idle_guests
print(json.dumps(idle_guests()))
"""


def figures(rounds: int) -> list[Figure]:
    """Measure all of it.

    Raises:
        NoEngine: this computer cannot execute guests.
    """
    with _host(LARGE) as roomy:
        found = [_compute(roomy, rounds)]
        exit_us = _empty_exit(roomy, rounds)
        for size in (SMALL, TINY):
            with _host(size) as tight:
                found += _thrash(roomy, tight, size, exit_us, rounds)
    return [*found, *_idle()]


def _compute(host: Host, rounds: int) -> Figure:
    encrypted, plain = _guests(host)
    ours, limit, ratio = medians(
        pairs(partial(_work, encrypted, WORKS), partial(_work, plain, WORKS), rounds, clock=time.process_time)
    )
    against = "the same guest without encryption"
    return Figure(
        "guest-compute", "compute, in cache", ours * 1e3, limit * 1e3, "ms", ratio, against, "<= 1.05"
    )


def _empty_exit(host: Host, rounds: int) -> float:
    """An idle guest leaves twice a turn: it asks what to do, and halts."""
    guest, _ = _guests(host)
    guest.turn()

    def idle() -> None:
        for _ in range(EXITS // 2):
            guest.turn()

    seconds, _, _ = medians(pairs(idle, lambda: None, rounds, clock=time.process_time))
    return seconds / EXITS * 1e6


def _thrash(roomy: Host, tight: Host, size: int, exit_us: float, rounds: int) -> Iterator[Figure]:
    """The same work in a cache of half its size: what each fill and each eviction takes."""
    (inside, plain), (outside, _) = _guests(roomy), _guests(tight)
    work = partial(_work, number=2 * size)
    work(outside)
    memory = tight.machine.memory
    before = memory.fills, memory.evictions
    work(outside)
    fills, moved = memory.fills - before[0], memory.fills - before[0] + memory.evictions - before[1]
    ours, limit, ratio = medians(
        pairs(partial(work, outside), partial(work, plain), rounds, clock=time.process_time)
    )
    name, against = f"compute, {fills} fills", "the same guest without encryption, everything in the cache"
    yield Figure("guest-thrash", name, ours * 1e3, limit * 1e3, "ms", ratio, against)
    ours, limit, _ = medians(
        pairs(partial(work, outside), partial(work, inside), rounds, clock=time.process_time)
    )
    each, least = (ours - limit) / moved * 1e6, _aes_page_us(rounds) + exit_us
    against = "AES of 4 KiB by OpenSSL, and one empty exit"
    name = f"page fill or evict, {size // KIB}K"
    yield Figure("guest-fill", name, each, least, "us", each / least, against, "<= 2")


def _aes_page_us(rounds: int) -> float:
    encrypt = Cipher(algorithms.AES(os.urandom(16)), modes.ECB()).encryptor().update_into
    page, room = os.urandom(PAGE), bytearray(PAGE + 15)

    def work() -> None:
        for _ in range(AES_PAGES):
            encrypt(page, room)

    seconds, _, _ = medians(pairs(work, lambda: None, rounds, clock=time.process_time))
    return seconds / AES_PAGES * 1e6


def _idle() -> Iterator[Figure]:
    """Measure memory in a process of its own: what this one has touched before would be counted too."""
    with tempfile.TemporaryDirectory(prefix="cbit-bench-") as folder:  # killed where it stands if we end
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=os.environ | {"TMPDIR": folder},
            check=True,
            capture_output=True,
            text=True,
        )
    grown, touched = json.loads(done.stdout)
    ratio, against = (
        grown / touched,
        "the pages of its image and those that it touched, its tables and control blocks",
    )
    yield Figure(
        "guest-idle", "a further idle guest", grown / MIB, touched / MIB, "MiB", ratio, against, "<= 1.3"
    )


def idle_guests() -> tuple[float, float]:
    """Start guests, let them work once and idle; return bytes of this process and bytes touched, a guest."""
    with _host(IDLE_CACHE) as host:
        for _ in range(FIRST_GUESTS):
            _work(_guest(host, Protection.SEV), number=LARGEST_NUMBER)
        resident, touched = _resident(), 0
        for _ in range(IDLE_GUESTS):
            free = host.frames.free_bytes
            guest = _guest(host, Protection.SEV)
            of_hypervisor = free - host.frames.free_bytes - sum(region.size for region in guest.vm.regions)
            _work(guest, number=LARGEST_NUMBER)
            touched += of_hypervisor + _touched(guest)
        host.flush_caches()
        return (_resident() - resident) / IDLE_GUESTS, touched / IDLE_GUESTS


def _touched(guest: SmallGuest) -> int:
    """Add up the launched image, and the pages whose nested entries say that they were accessed."""
    vm, pages = guest.vm, IMAGE_SIZE // PAGE
    for gpa in range(MEMORY, MEMORY + MEMORY_SIZE, PAGE):
        entry = vm.tables.entry_at(Gpa(gpa))
        assert entry is not None
        pages += bool(int.from_bytes(vm.host.read(entry, 8), "little") & Pte.A)
    return PAGE * pages


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as status:
        return int(status.read().split()[1]) * PAGE


def _work(guest: SmallGuest, times: int = 1, *, number: int = NUMBER) -> None:
    for _ in range(times):
        guest.ask(Request.COMPUTE, number)


def _guests(host: Host) -> tuple[SmallGuest, SmallGuest]:

    return _guest(host, Protection.SEV), _guest(host, Protection.NONE)


def _guest(host: Host, protection: Protection) -> SmallGuest:
    """Start the built-in guest, without an owner."""
    vm = Vm(host, protection)
    vm.load_firmware(image())
    vm.add_memory(MEMORY, MEMORY_SIZE)
    if protection is Protection.SEV:
        guest = SevGuest.start(vm, policy=0)
        guest.update(IMAGE, IMAGE_SIZE)
        guest.measure()
        guest.finish()
    return SmallGuest(vm, reset_state())


@contextmanager
def _host(cache_size: int) -> Iterator[Host]:

    with (
        tempfile.TemporaryDirectory(prefix="cbit-bench-") as folder,
        a_state(Path(folder) / "machine", root=a_root("naples")) as state,
    ):
        yield a_host(a_machine(state, memory_size=DRAM, cache_size=cache_size))
