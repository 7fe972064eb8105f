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
from cbit.crypto.tweak import END_BIT, PIECE, Tweak, XexTweaks, working_memory
from cbit.crypto.xts import XtsTweaks
from cbit.spec.address import BLOCK, PAGE

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["KEY_BYTES", "Inside", "MemoryCipher", "Mode", "Tweak", "memory_cipher"]

_xor = np.bitwise_xor
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


class Inside:
    """The engine itself, which all keys of one memory controller share: scratch, and xe's and xex's tweaks.

    The scratch (128 KiB) may hold plaintext.  It is on the SoC side: out of reach of all that reads DRAM.
    What is encrypted into DRAM arrives there as AES output only.

    Args:
        tweak: the machine's constants, for xe and xex.
    """

    __slots__ = ("scratch", "tweak", "tweaks")

    def __init__(self, tweak: Tweak | None = None) -> None:
        self.scratch: Final = working_memory(PIECE + _SLACK, place=3)
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
        return MemoryCipher(mode, data_key, inside.tweaks, inside.scratch)
    if tweak is not None:
        raise ValueError("xts takes no tweak constants: its tweaks come from its second key")
    if data_key == tweak_key:
        raise ValueError("xts needs two different keys, for the data and for the tweaks")
    encryptor = Cipher(algorithms.AES(tweak_key), modes.ECB()).encryptor()
    return MemoryCipher(mode, data_key, XtsTweaks(encryptor.update), inside.scratch)


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

    def __init__(self, mode: Mode, data_key: bytes, tweaks: Tweaks, scratch: NDArray[np.uint8]) -> None:
        aes = Cipher(algorithms.AES(data_key), modes.ECB())
        both = mode is not Mode.XE
        encrypt = _Way(aes.encryptor().update_into, tweaks, scratch, before=True, after=both)
        decrypt = _Way(aes.decryptor().update_into, tweaks, scratch, before=both, after=True)
        self._mode = mode
        self.encrypt: Engine = encrypt.run
        self.decrypt: Engine = decrypt.run

    def __repr__(self) -> str:
        return f"MemoryCipher({self._mode})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a memory cipher is neither copied nor pickled: it holds a key")


class _Way:
    """AES-ECB in one direction, with the XOR of the tweaks before it, after it, or both."""

    __slots__ = (
        "_after",
        "_before",
        "_ecb",
        "_page",
        "_page_tweaks",
        "_page_view",
        "_piece",
        "_piece_view",
        "_scratch",
        "_scratch_view",
        "_tweaks",
    )

    def __init__(
        self,
        ecb: Callable[[Any, Any], int],
        tweaks: Tweaks,
        scratch: NDArray[np.uint8],
        *,
        before: bool,
        after: bool,
    ) -> None:
        self._ecb = ecb
        self._tweaks = tweaks
        self._page_tweaks = tweaks.page
        self._before = before
        self._after = after
        self._scratch = scratch
        self._scratch_view = scratch.data
        self._page = scratch[:PAGE]
        self._page_view = scratch.data[:PAGE]
        self._piece = scratch[:PIECE]
        self._piece_view = scratch.data[:PIECE]

    def run(self, spa: int, data: Any, out: Any = None) -> Any:
        """Serve one request (`Engine`): what lies inside one page (a fill, a line) in the fewest calls.

        All of that is done in the scratch, so it does not matter where the target lies.
        """
        try:
            length = len(data)
            if length == PAGE and not spa % PAGE:
                scratch, view = self._page, self._page_view
            elif 0 < length <= PAGE - spa % PAGE and not (spa | length) % BLOCK:
                scratch, view = self._scratch[:length], self._scratch_view[:length]
            else:
                return self._run_any(spa, data, out)
            view[:] = data  # before the tweaks are made: the processor fetches it meanwhile
            target = out if out is None or type(out) is memoryview else memoryview(out)
        except (TypeError, ValueError):  # not plain bytes: look closer
            return self._run_any(spa, data, out)
        if not 0 <= spa < _END:
            return self._run_any(spa, data, out)
        tweaks = self._page_tweaks(spa) if length == PAGE else self._tweaks.over(spa, length)
        if self._before:
            _xor(scratch, tweaks, scratch)
        self._ecb(view, self._scratch_view)
        if self._after:
            _xor(scratch, tweaks, scratch)
        if target is None:
            return scratch.tobytes()
        try:
            target[:] = view
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
        if np.may_share_memory(data, out) and data.ctypes.data != out.ctypes.data:
            data = data.copy()  # shifted against each other: writing one piece would spoil the next
        start, end = 0, data.size
        while start < end:
            stop = min(end, start + PIECE - (spa + start) % PIECE)
            if stop - start == PIECE:
                scratch, view = self._piece, self._piece_view
            else:
                scratch, view = self._scratch[: stop - start], self._scratch_view[: stop - start]
            tweaks = self._tweaks.over(spa + start, stop - start)
            if self._before:
                _xor(data[start:stop], tweaks, scratch)
            else:
                scratch[:] = data[start:stop]
            self._ecb(view, self._scratch_view)
            if self._after:
                _xor(scratch, tweaks, out[start:stop])
            else:
                out[start:stop] = scratch
            start = stop
