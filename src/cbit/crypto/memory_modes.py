"""The memory controller's AES engine: tweaked AES over ranges of physical memory.

    xe     C = AES(m ^ T(p))              T(p) a linear function of the address: `cbit.crypto.tweak`
    xex    C = AES(m ^ T(p)) ^ T(p)
    xts    as xex, T(p) = AES'(page number)·α^j, from a second key: `cbit.crypto.xts`

Each 16-byte block stands alone: any block can be encrypted or decrypted by itself, and a changed block of
ciphertext garbles exactly that block of plaintext (§1 rule 3).

One pass of OpenSSL's AES-ECB between two XORs, in pieces that stay in the CPU's second-level cache.
An OpenSSL context lives as long as its key: making one costs more than encrypting a page.

Paper: memory-encryption.md §9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, overload

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from cbit.crypto.key import Key
from cbit.crypto.tweak import END_BIT, PIECE, Tweak, XexTweaks
from cbit.crypto.xts import XtsTweaks
from cbit.spec.address import BLOCK, PAGE

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["KEY_BYTES", "MemoryCipher", "Mode", "Tweak", "memory_cipher"]

_END: Final = 1 << END_BIT
_SLACK: Final = BLOCK - 1  # update_into wants this much room behind its output, and leaves it as it is


class Mode(StrEnum):
    """How the engine tweaks AES; a property of the machine's firmware, not of its generation (§9)."""

    XE = "xe"
    XEX = "xex"
    XTS = "xts"


#: Key length by mode; XTS takes two AES-128 keys, the data's and the tweak's.
KEY_BYTES: Final[Mapping[Mode, int]] = MappingProxyType({Mode.XE: 16, Mode.XEX: 16, Mode.XTS: 32})


class Tweaks(Protocol):
    """Where the engine gets its tweaks from."""

    def page(self, spa: int) -> NDArray[np.uint8]:
        """Return the tweaks of the page at ``spa``."""
        ...

    def over(self, spa: int, length: int) -> NDArray[np.uint8]:
        """Return the tweaks of ``length`` bytes from ``spa``: multiples of 16, inside one `PIECE`."""
        ...


class _Way(NamedTuple):
    """One direction of a mode."""

    ecb: Callable[[Any, Any], int]
    before: bool  # tweak before AES
    after: bool  # tweak after AES


def memory_cipher(mode: Mode, key: Key, tweak: Tweak | None = None) -> MemoryCipher:
    """Build the engine for one key slot.

    Args:
        mode: xe, xex or xts.
        key: `KEY_BYTES` of the mode; for xts the data key, then the tweak key.
        tweak: the machine's constants, for xe and xex; xts makes its own tweaks.

    Raises:
        ValueError: the key's size, equal halves of an xts key, or a tweak that is missing or not wanted.

    Paper: memory-encryption.md §9.
    """
    if len(key) != KEY_BYTES[mode]:
        raise ValueError(f"{mode} takes a key of {8 * KEY_BYTES[mode]} bits, not {8 * len(key)}")
    data_key, tweak_key = key.material()[:16], key.material()[16:]
    if mode is not Mode.XTS:
        if tweak is None:
            raise ValueError(f"{mode} needs the machine's tweak constants")
        return MemoryCipher(mode, data_key, XexTweaks(tweak))
    if tweak is not None:
        raise ValueError("xts takes no tweak constants: its tweaks come from its second key")
    if data_key == tweak_key:
        raise ValueError("xts needs two different keys, for the data and for the tweaks")
    encryptor = Cipher(algorithms.AES(tweak_key), modes.ECB()).encryptor()
    return MemoryCipher(mode, data_key, XtsTweaks(encryptor.update))


class MemoryCipher:
    """AES under one key, as the memory controller applies it: made by `memory_cipher`.

    Serves one request at a time, like the engine of one memory channel; it has no lock.
    Keeps no key bytes, only OpenSSL's contexts, and cannot be copied or pickled.
    """

    __slots__ = (
        "_backward",
        "_forward",
        "_mode",
        "_page",
        "_page_view",
        "_scratch",
        "_scratch_view",
        "_tweaks",
    )

    def __init__(self, mode: Mode, data_key: bytes, tweaks: Tweaks) -> None:
        cipher = Cipher(algorithms.AES(data_key), modes.ECB())
        both = mode is not Mode.XE
        self._forward = _Way(cipher.encryptor().update_into, before=True, after=both)
        self._backward = _Way(cipher.decryptor().update_into, before=both, after=True)
        self._mode = mode
        self._tweaks = tweaks
        # The scratch (64 KiB) may hold plaintext. It belongs to the SoC side: it is the inside of the engine,
        # out of reach of all that reads DRAM. What is encrypted into DRAM arrives there as AES output only.
        self._scratch = np.empty(PIECE + _SLACK, np.uint8)
        self._scratch_view = self._scratch.data
        self._page = self._scratch[:PAGE]
        self._page_view = self._scratch_view[:PAGE]

    def __repr__(self) -> str:
        return f"MemoryCipher({self._mode})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a memory cipher is neither copied nor pickled: it holds a key")

    @overload
    def encrypt(self, spa: int, data: Buffer) -> bytes: ...
    @overload
    def encrypt(self, spa: int, data: Buffer, out: Buffer) -> None: ...
    @overload
    def encrypt(self, spa: int, data: Buffer, out: Buffer | None) -> bytes | None: ...
    def encrypt(self, spa: int, data: Buffer, out: Buffer | None = None) -> bytes | None:
        """Encrypt ``data`` as it is written to physical address ``spa``.

        Args:
            spa: system physical address without the C-bit, a multiple of 16.
            data: a multiple of 16 bytes, in any contiguous buffer.
            out: a writable buffer of the same length, which may be ``data`` or overlap it.

        Returns:
            The ciphertext, or nothing if it went into ``out``.

        Raises:
            ValueError: an address or a length that is not made of blocks, or an ``out`` that does not fit;
                nothing has been written.
        """
        return self._run(self._forward, spa, data, out)

    @overload
    def decrypt(self, spa: int, data: Buffer) -> bytes: ...
    @overload
    def decrypt(self, spa: int, data: Buffer, out: Buffer) -> None: ...
    @overload
    def decrypt(self, spa: int, data: Buffer, out: Buffer | None) -> bytes | None: ...
    def decrypt(self, spa: int, data: Buffer, out: Buffer | None = None) -> bytes | None:
        """Decrypt ``data`` as it is read from physical address ``spa``; else like `encrypt`."""
        return self._run(self._backward, spa, data, out)

    def _run(self, way: _Way, spa: int, data: Buffer, out: Buffer | None) -> bytes | None:
        try:
            source = memoryview(data).cast("B")
            target = source if out is data else None if out is None else memoryview(out).cast("B")
        except TypeError as error:
            raise ValueError(f"data and out must be contiguous buffers: {error}") from None
        length = source.nbytes
        if (spa | length) % BLOCK:
            raise ValueError(f"{length} bytes at {spa:#x}: the engine works on whole blocks of {BLOCK} bytes")
        if not 0 <= spa <= _END - length:
            raise ValueError(f"{length} bytes at {spa:#x}: physical addresses are below {_END:#x}")
        if target is not None and (target.readonly or target.nbytes != length):
            what = "read-only" if target.readonly else f"{target.nbytes} bytes"
            raise ValueError(f"out is {what}: it must be writable and hold {length} bytes")
        if spa % PAGE + length > PAGE:
            return self._run_pieces(way, spa, source, target)
        # Inside one page all is done in the scratch, in the fewest calls, wherever the target lies.
        if length == PAGE:
            tweaks, scratch, view = self._tweaks.page(spa), self._page, self._page_view
        else:
            tweaks = self._tweaks.over(spa, length)
            scratch, view = self._scratch[:length], self._scratch_view[:length]
        ecb, before, after = way
        view[:] = source
        if before:
            np.bitwise_xor(scratch, tweaks, scratch)
        ecb(view, self._scratch_view)
        if after:
            np.bitwise_xor(scratch, tweaks, scratch)
        if target is None:
            return scratch.tobytes()
        target[:] = view
        return None

    def _run_pieces(self, way: _Way, spa: int, source: memoryview, target: memoryview | None) -> bytes | None:
        """Go through a long range by pieces; AES itself writes into the target, so no XOR of plaintext does."""
        data = np.frombuffer(source, np.uint8)
        out = np.empty(data.size, np.uint8) if target is None else np.frombuffer(target, np.uint8)
        if np.may_share_memory(data, out) and data.ctypes.data != out.ctypes.data:
            data = data.copy()  # shifted against each other: writing one piece would spoil the next
        start = 0
        while start < data.size:
            stop = min(data.size, start + PIECE - (spa + start) % PIECE)
            tweaks = self._tweaks.over(spa + start, stop - start)
            piece, result = data[start:stop], out[start:stop]
            if way.before:
                piece = np.bitwise_xor(piece, tweaks, self._scratch[: stop - start])
            if stop + _SLACK <= out.size:
                way.ecb(piece, out[start : stop + _SLACK])
            else:
                way.ecb(piece, self._scratch)
                result[:] = self._scratch[: stop - start]
            if way.after:
                np.bitwise_xor(result, tweaks, result)
            start = stop
        return out.tobytes() if target is None else None
