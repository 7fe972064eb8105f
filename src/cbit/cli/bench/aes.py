"""The inline AES engine against OpenSSL's plain AES-128-ECB over the same bytes, one core."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cbit.cli.bench.figure import Figure, medians, pairs
from cbit.crypto.entropy import SystemEntropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, MemoryCipher, Mode, memory_cipher
from cbit.crypto.tweak import Tweak
from cbit.spec.address import BLOCK, MIB, PAGE, Spa

SIZE: Final = 64 * MIB
PAGES: Final = 4000  # pages per timing: one page alone is shorter than the clock's noise
_SLACK: Final = 15  # OpenSSL's binding wants a block less one of room behind its output

Work = Callable[[Spa, memoryview, memoryview], object]

_BULK: Final = {Mode.XE: ">= 0.45", Mode.XEX: ">= 0.30", Mode.XTS: ">= 0.15"}
_PAGE: Final = {Mode.XE: "<= 3.5", Mode.XEX: "<= 3.5", Mode.XTS: ""}
_AGAINST: Final = "OpenSSL AES-128-ECB over the same buffer, one core"


def _cipher(mode: Mode) -> MemoryCipher:
    tweak = None if mode is Mode.XTS else Tweak.random(SystemEntropy())
    return memory_cipher(mode, Key(os.urandom(KEY_BYTES[mode])), tweak)


def bulk(rounds: int) -> list[Figure]:
    """64 MiB in place: the share of ECB's speed."""
    buffer = memoryview(bytearray(os.urandom(MIB) * (SIZE // MIB)))
    room = bytearray(SIZE + _SLACK)
    ecb = Cipher(algorithms.AES(os.urandom(16)), modes.ECB()).encryptor().update_into
    found = []
    for mode in Mode:
        cipher = _cipher(mode)
        for name, work in (("encrypt", cipher.encrypt), ("decrypt", cipher.decrypt)):
            times = pairs(partial(work, Spa(0), buffer, buffer), partial(ecb, buffer, room), rounds)
            ours, limit, ratio = medians(times)
            speeds = SIZE / ours / 1e9, SIZE / limit / 1e9
            found.append(
                Figure("aes-bulk", f"{mode} {name} 64 MiB", *speeds, "GB/s", 1 / ratio, _AGAINST, _BULK[mode])
            )
    return found


def page(rounds: int) -> list[Figure]:
    """Single pages at random addresses of 64 MiB, each where it lies, with one call's overhead each."""
    memory = memoryview(bytearray(b"\x5a") * (SIZE + BLOCK))  # OpenSSL's binding wants room behind its output
    ecb = Cipher(algorithms.AES(os.urandom(16)), modes.ECB()).encryptor().update_into
    addresses = [Spa(PAGE * number) for number in random.Random(1).choices(range(SIZE // PAGE), k=PAGES)]

    def plain() -> None:
        for address in addresses:
            ecb(memory[address : address + PAGE], memory[address : address + PAGE + _SLACK])

    found = []
    for mode in Mode:
        cipher = _cipher(mode)
        for name, work in (("encrypt", cipher.encrypt), ("decrypt", cipher.decrypt)):
            ours, limit, ratio = medians(pairs(partial(_pages, work, addresses, memory), plain, rounds))
            each = ours / PAGES * 1e6, limit / PAGES * 1e6
            found.append(
                Figure("aes-page", f"{mode} {name} 4 KiB", *each, "us", ratio, _AGAINST, _PAGE[mode])
            )
    return found


def _pages(work: Work, addresses: list[Spa], memory: memoryview) -> None:
    for address in addresses:
        page = memory[address : address + PAGE]
        work(address, page, page)
