"""Put stubs in the place of functions of the library, through the library's own relocation words.

The library calls its own functions through words in memory (the GOT) that the loader filled in.  Storing
another address there replaces the function for the library itself, for every engine in this process and for
as long as it lives.  Other users of unicorn in the process are not disturbed: without a running engine of
ours a stub does what the original does, with one exception that is a cure (stale code, see native/stubs.c).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cbit.cpu.engine.errors import LayoutError
from cbit.cpu.engine.library import SUFFIX, library
from cbit.cpu.engine.native import native
from cbit.spec.address import PAGE

_READ_WRITE: Final = 3  # PROT_READ | PROT_WRITE

#: Symbol of the library -> stub.  Why each: native/*.c.
REPLACED: Final[Mapping[str, str]] = MappingProxyType(
    {
        name + SUFFIX: "stub_" + name
        for name in (
            "cpu_vmexit",
            "do_interrupt_x86_hardirq",
            "x86_cpu_tlb_fill",
            "tlb_set_page_with_attrs",
            "tb_invalidate_phys_page_fast",
            "tlb_protect_code",
            "tlb_reset_dirty_by_vaddr",
            "cpu_x86_update_cr0",
            "cpu_x86_update_cr3",
            "cpu_x86_update_cr4",
            "helper_read_crN",
            "helper_write_crN",
            "tlb_flush",
            "tlb_flush_page",
            "x86_ldub_phys",
            "x86_lduw_phys",
            "x86_ldl_phys",
            "x86_ldq_phys",
            "x86_stl_phys_notdirty",
            "x86_stw_phys",
            "x86_stl_phys",
            "x86_stq_phys",
            "cpu_get_tsc",
            "helper_check_exit_request",
            "helper_rdrand",
            "helper_syscall",
            *(f"helper_{way}{size}" for way in ("out", "in") for size in "bwl"),
        )
    }
    | {name: "stub_" + name for name in ("abort", "gettimeofday")}
)
#: Not every supported library has them.
MAY_BE_ABSENT: Final = frozenset({"helper_check_exit_request" + SUFFIX})


@functools.cache
def interpose() -> None:
    """Install all stubs, once per process.

    Before the first engine is made: the library hashes its helpers' addresses then.

    Raises:
        NoEngine: no library, no compiler, or a layout that cannot be proven.
        LayoutError: the library does not call a function through its relocations.
    """
    stubs, slots = native(), library().slots
    for name in REPLACED:
        if not slots.get(name) and name not in MAY_BE_ABSENT:
            raise LayoutError(name, "the library does not use it through a relocation")
    for name, stub in REPLACED.items():
        for slot in slots.get(name, ()):
            _store(slot, stubs.address(stub))


def _store(slot: int, value: int) -> None:
    """Write one word; the loader has made most of them read-only."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if protect(slot & -PAGE, PAGE, _READ_WRITE):
        raise LayoutError("relocations", f"mprotect fails with errno {ctypes.get_errno()}")
    ctypes.c_uint64.from_address(slot).value = value
