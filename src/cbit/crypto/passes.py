"""The passes over memory that the AES engine makes beside AES.

Compiled C (native/tweaks.c) where a compiler is at hand; elsewhere the same, plainly and slowly.  Both take
addresses: what they work on stays where it is, and the caller vouches for it.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np

from cbit.compiler import NoCompiler, compiled
from cbit.spec.address import BLOCK, PAGE

SOURCE: Final = Path(__file__).parent / "native" / "tweaks.c"
FLAGS: Final = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")
_P, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_POLYNOMIAL: Final = 1 << 128 | 0x87  # x^128 + x^7 + x^2 + x + 1


class TweakedXor(Protocol):
    """Out = data ^ tweaks ^ constant."""

    def __call__(self, out: int, data: int, tweaks: int, constant: bytes, length: int, /) -> object:
        """XOR whole blocks.

        Args:
            out: address of the result; may be that of ``data``.
            data: address of what is XORed.
            tweaks: address of as many tweaks.
            constant: 16 bytes that are XORed to every block.
            length: in bytes, a multiple of 16.
        """
        ...


class XtsPages(Protocol):
    """T, T·α, T·α² … over whole pages."""

    def __call__(self, out: int, first: bytes, pages: int, /) -> object:
        """Write the 256 tweaks of each page.

        Args:
            out: address of room for all of them: 4096 bytes a page.
            first: the first tweak of each page, 16 bytes each.
            pages: how many.

        Paper: memory-encryption.md §9, row XTS (IEEE Std 1619, 5.2).
        """
        ...


class Passes(NamedTuple):
    """Both, made in one way."""

    xor: TweakedXor
    xts_tweaks: XtsPages


@functools.cache
def passes() -> Passes:
    """Return the faster ones that this computer has."""
    try:
        return compiled_passes()
    except NoCompiler:
        return PLAIN


def compiled_passes(*, folder: Path | None = None, compiler: str | None = None) -> Passes:
    """Compile them if need be, and load them (arguments as of `cbit.compiler.compiled`).

    Raises:
        NoCompiler: they cannot be compiled here, or what was compiled cannot be loaded.
    """
    library = compiled([SOURCE], FLAGS, name="tweaks", suffix=".so", folder=folder, compiler=compiler)
    try:
        # They keep Python's lock: letting it go and taking it back costs more than a page's XOR.
        native = ctypes.PyDLL(str(library))
    except OSError as error:
        raise NoCompiler(f"{library} cannot be loaded: {error}") from error
    xor, xts_tweaks = native.tweaked_xor, native.xts_tweaks
    xor.restype = xts_tweaks.restype = None
    xor.argtypes = [_P, _P, _P, _P, _SIZE]
    xts_tweaks.argtypes = [_P, _P, _SIZE]
    return Passes(xor, xts_tweaks)


def _plain_xor(out: int, data: int, tweaks: int, constant: bytes, length: int, /) -> None:
    total = np.frombuffer(constant * (length // BLOCK), np.uint8) ^ _at(tweaks, length)
    ctypes.memmove(out, (total ^ _at(data, length)).tobytes(), length)


def _at(address: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(ctypes.string_at(address, length), np.uint8)


def _plain_xts_tweaks(out: int, first: bytes, pages: int, /) -> None:
    for page in range(pages):
        t = int.from_bytes(first[BLOCK * page : BLOCK * (page + 1)], "little")
        tweaks = []
        for _ in range(PAGE // BLOCK):
            tweaks.append(t.to_bytes(BLOCK, "little"))
            t = t << 1 ^ (t >> 127) * _POLYNOMIAL
        ctypes.memmove(out + PAGE * page, b"".join(tweaks), PAGE)


#: Without a compiler.
PLAIN: Final = Passes(_plain_xor, _plain_xts_tweaks)
