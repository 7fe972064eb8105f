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
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, overload

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from cbit.crypto.key import Key
from cbit.crypto.passes import Passes
from cbit.crypto.passes import passes as fastest
from cbit.crypto.tweak import END_BIT, PIECE, Tweak, XexTweaks, working_memory
from cbit.crypto.xts import XtsTweaks
from cbit.spec.address import BLOCK, PAGE

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["KEY_BYTES", "Inside", "MemoryCipher", "Mode", "Tweak", "memory_cipher"]

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

    def over(self, spa: int, length: int) -> tuple[int, bytes]:
        """Return the tweaks of ``length`` bytes from ``spa``: multiples of 16, inside one `PIECE`.

        Returns:
            The address of as many bytes, good until the next call, and a block to XOR to all of them.
        """
        ...


class Inside:
    """The engine itself, which all keys of one memory controller share: scratch, and xe's and xex's tweaks.

    The scratch (128 KiB) may hold plaintext.  It is on the SoC side: out of reach of all that reads DRAM.
    What is encrypted into DRAM arrives there as AES output only.

    Args:
        tweak: the machine's constants, for xe and xex.
        passes: what it does beside AES; by default the fastest way that this computer has.
    """

    __slots__ = ("passes", "scratch", "tweak", "tweaks")

    def __init__(self, tweak: Tweak | None = None, *, passes: Passes | None = None) -> None:
        self.passes: Final = passes or fastest()
        self.scratch: Final = working_memory(PIECE + _SLACK, place=2)
        self.tweak: Final = tweak
        self.tweaks: Final = None if tweak is None else XexTweaks(tweak)

    def __reduce__(self) -> NoReturn:
        raise TypeError("the inside of an engine holds plaintext: it is neither copied nor pickled")


def memory_cipher(
    mode: Mode, key: Key, tweak: Tweak | None = None, *, inside: Inside | None = None
) -> MemoryCipher:
    """Build the engine for one key slot.

    Args:
        mode: xe, xex or xts.
        key: `KEY_BYTES` of the mode; for xts the data key, then the tweak key.
        tweak: the machine's constants, for xe and xex; xts makes its own tweaks.
        inside: made for the same ``tweak``, if several keys share one engine.

    Raises:
        ValueError: the key's size, equal halves of an xts key, or a tweak that is missing or not wanted.

    Paper: memory-encryption.md §9.
    """
    if len(key) != KEY_BYTES[mode]:
        raise ValueError(f"{mode} takes a key of {8 * KEY_BYTES[mode]} bits, not {8 * len(key)}")
    data_key, tweak_key = key.material()[:16], key.material()[16:]
    if inside is None or inside.tweak is not tweak:
        inside = Inside(tweak)
    if mode is not Mode.XTS:
        if inside.tweaks is None:
            raise ValueError(f"{mode} needs the machine's tweak constants")
        return MemoryCipher(mode, data_key, inside.tweaks, inside)
    if tweak is not None:
        raise ValueError("xts takes no tweak constants: its tweaks come from its second key")
    if data_key == tweak_key:
        raise ValueError("xts needs two different keys, for the data and for the tweaks")
    encryptor = Cipher(algorithms.AES(tweak_key), modes.ECB()).encryptor()
    tweaks = XtsTweaks(encryptor.update, inside.passes.xts_tweaks)
    return MemoryCipher(mode, data_key, tweaks, inside)


class Engine(Protocol):
    """One direction of a `MemoryCipher`."""

    @overload
    def __call__(self, spa: int, data: Buffer) -> bytes: ...
    @overload
    def __call__(self, spa: int, data: Buffer, out: Buffer) -> None: ...
    @overload
    def __call__(self, spa: int, data: Buffer, out: Buffer | None) -> bytes | None: ...
    def __call__(self, spa: int, data: Buffer, out: Buffer | None = None) -> bytes | None:
        """Run ``data``, which is or will be at physical address ``spa``, through AES.

        Args:
            spa: system physical address without the C-bit, a multiple of 16.
            data: a multiple of 16 bytes, in any buffer; contiguous, if it does not lie inside one page.
            out: a writable buffer of the same length, which may be ``data`` or overlap it.

        Returns:
            The result, or nothing if it went into ``out``.

        Raises:
            ValueError: an address or a length that is not made of blocks, a buffer with gaps, or an ``out``
                that does not fit; nothing has been written.
        """
        ...


class MemoryCipher:
    """AES under one key, as the memory controller applies it: made by `memory_cipher`.

    Serves one request at a time, like the engine of one memory channel; it has no lock.
    Keeps no key bytes, only OpenSSL's contexts, and cannot be copied or pickled.

    Attributes:
        encrypt: from the cache to DRAM, called as `Engine` says.
        decrypt: from DRAM to the cache.

    Paper: memory-encryption.md §9.
    """

    __slots__ = ("_mode", "decrypt", "encrypt")

    def __init__(self, mode: Mode, data_key: bytes, tweaks: Tweaks, inside: Inside) -> None:
        aes = Cipher(algorithms.AES(data_key), modes.ECB())
        both = mode is not Mode.XE
        encrypt = _Way(aes.encryptor().update_into, tweaks, inside, before=True, after=both)
        decrypt = _Way(aes.decryptor().update_into, tweaks, inside, before=both, after=True)
        self._mode = mode
        self.encrypt: Engine = encrypt.run
        self.decrypt: Engine = decrypt.run

    def __repr__(self) -> str:
        return f"MemoryCipher({self._mode})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a memory cipher is neither copied nor pickled: it holds a key")


class _Way:
    """AES-ECB in one direction, with the XOR of the tweaks before it, after it, or both."""

    __slots__ = ("_address", "_after", "_before", "_ecb", "_page", "_scratch", "_tweaks", "_xor")

    def __init__(
        self,
        ecb: Callable[[Any, Any], int],
        tweaks: Tweaks,
        inside: Inside,
        *,
        before: bool,
        after: bool,
    ) -> None:
        self._ecb = ecb
        self._tweaks = tweaks
        self._xor = inside.passes.xor
        self._before = before
        self._after = after
        self._scratch = inside.scratch.data
        self._address = inside.scratch.ctypes.data
        self._page = self._scratch[:PAGE]

    def run(self, spa: int, data: Any, out: Any = None) -> Any:
        """Serve one request (`Engine`): what lies inside one page (a fill, a line) in the fewest calls.

        All of that is done in the scratch, so it does not matter where the target lies.
        """
        try:
            length = len(data)
            if length == PAGE and not spa % PAGE:
                scratch = self._page
            elif 0 < length <= PAGE - spa % PAGE and not (spa | length) % BLOCK:
                scratch = self._scratch[:length]
            else:
                return self._run_any(spa, data, out)
            scratch[:] = data  # before the tweaks are made: the processor fetches it meanwhile
            target = out if out is None or type(out) is memoryview else memoryview(out)
        except (TypeError, ValueError):  # not plain bytes: look closer
            return self._run_any(spa, data, out)
        if not 0 <= spa < _END:
            return self._run_any(spa, data, out)
        tweaks, constant = self._tweaks.over(spa, length)
        if self._before:
            self._xor(self._address, self._address, tweaks, constant, length)
        self._ecb(scratch, self._scratch)
        if self._after:
            self._xor(self._address, self._address, tweaks, constant, length)
        if target is None:
            return bytes(scratch)
        try:
            target[:] = scratch
        except (TypeError, ValueError):  # it does not fit, and is untouched
            return self._run_any(spa, data, out)
        return None

    def _run_any(self, spa: int, data: Buffer, out: Buffer | None) -> bytes | None:
        """Check a request of any form, and serve it."""
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
        result = np.empty(length, np.uint8) if target is None else np.frombuffer(target, np.uint8)
        self._run_pieces(spa, np.frombuffer(source, np.uint8), result)
        return result.tobytes() if target is None else None

    def _run_pieces(self, spa: int, data: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Go piece by piece; what goes to the target has been through AES, never an XOR of plaintext."""
        data_at, out_at = data.ctypes.data, out.ctypes.data
        if np.may_share_memory(data, out) and data_at != out_at:
            data = data.copy()  # shifted against each other: writing one piece would spoil the next
            data_at = data.ctypes.data
        source, target, scratch = data.data, out.data, self._scratch
        start, end = 0, data.size
        while start < end:
            stop = min(end, start + PIECE - (spa + start) % PIECE)
            tweaks, constant = self._tweaks.over(spa + start, stop - start)
            given = source[start:stop]
            if self._before:
                self._xor(self._address, data_at + start, tweaks, constant, stop - start)
                given = scratch[: stop - start]
            if self._after:
                self._ecb(given, scratch)
                self._xor(out_at + start, self._address, tweaks, constant, stop - start)
            elif stop + _SLACK <= end:
                self._ecb(given, target[start : stop + _SLACK])
            else:
                self._ecb(given, scratch)
                target[start:stop] = scratch[: stop - start]
            start = stop
