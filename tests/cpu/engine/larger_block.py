"""Shapes a heap so that an engine's CPU object gets a larger block than another's, and looks at both.

Malloc gives a free block away whole where the rest would be too small for a block: here, 16 bytes of it.
"""

from __future__ import annotations

import ctypes

from cbit.cpu.engine.layout import Scratch, layout
from cbit.cpu.engine.library import library


def free_blocks(size: int) -> None:
    """Let the heap have free blocks of one size, kept apart by others so that they do not join."""
    heap = ctypes.CDLL(None)
    heap.malloc.restype, heap.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    heap.free.restype, heap.free.argtypes = None, [ctypes.c_void_p]
    for _ in range(3000):  # what was free of this size is not any more
        heap.malloc(1200)
    blocks = []
    for _ in range(64):
        blocks.append(heap.malloc(size))
        heap.malloc(1200)
    for block in blocks:
        heap.free(block)


def main() -> None:
    """Say how much larger the block is that the same layout was found in."""
    first, expected = Scratch(library()), layout()
    free_blocks(expected.env + first.env_size + 16)
    second = Scratch(library())
    layout.cache_clear()
    assert expected == layout()
    print(second.env_size - first.env_size, "bytes more")


if __name__ == "__main__":
    main()
