"""The compiled stubs as Python sees them: one structure shared with them, and the functions they call.

`Engine` mirrors ``struct engine`` of native/stubs.h field by field.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

from cbit.cpu.engine.build import compiled_stubs
from cbit.cpu.engine.layout import layout
from cbit.cpu.engine.library import library

_P, _I, _U32, _U64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64
MAX_SHOTS: Final = 16
RANDOM_WORDS: Final = 64
AREAS: Final = 3
CHANGED: Final = -1  #: VMRUN has to look at the VMCB first
_LOOPS: Final = 64
ALL_ACCESSES: Final = 7
MAY_READ_AND_WRITE: Final = 3
MAY_EXECUTE: Final = 4


class Answer(IntEnum):
    """What Python answers to an exit."""

    RESUME = 0  # the guest goes on at its instruction pointer
    RESTART = 1  # the access that faulted begins again
    DELIVER = 2  # the exception that was put into CPUState
    LEAVE = 3  # the exit is the hypervisor's


ON_EXIT: Final = ctypes.CFUNCTYPE(_I, _U32)
ON_CALL: Final = ctypes.CFUNCTYPE(_I)


class LineFlush(ctypes.Structure):
    """A line flush that may be repeated without asking: see native/stubs.c."""

    _fields_ = [("rip", _U64), ("length", _U64), ("page", _U64), ("base", _U64), ("distance", _U64)]


class _Shot(ctypes.Structure):
    _fields_ = [("leaf", _P), ("before", _U64)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("under_way", _U32),
        ("vector", _U32),
        ("error_code", _U32),
        ("is_int", _U32),
        ("next_rip", _U64),
    ]


class Area(ctypes.Structure):
    """A region of the engine's physical memory."""

    _fields_ = [("start", _U64), ("length", _U64), ("memory", _P)]


class _Loop(ctypes.Structure):
    _fields_ = [("block", _U64), ("string", _U64)]


class _Again(ctypes.Structure):
    _fields_ = [("last", _U64), ("paused", _U64), ("pause", _U64), ("turns", _U64), ("loop", _Loop * _LOOPS)]


class EngineState(ctypes.Structure):
    """``struct engine``; the comments there say what each field is."""

    _fields_ = [
        ("uc", _P),
        ("cs", _P),
        ("env", _P),
        ("vmcb", _P),
        ("iopm", _P),
        ("on_exit", ON_EXIT),
        ("on_invalid", ON_CALL),
        ("on_entropy", ON_CALL),
        ("ours", _U64),
        ("ud_is_ours", _U64),
        ("intercepts", _U64),
        ("vmcb_at", _U64),
        ("iopm_at", _U64),
        ("msrpm_at", _U64),
        ("block", _P),
        ("left_space", _U64),
        ("left", _U64 * 4),
        ("exit_code", _U64),
        ("exit_info_1", _U64),
        ("exit_info_2", _U64),
        ("has_c_bit", _U64),
        ("access", _U64),
        ("root", _U64),
        ("root_without_c_bit", _U64),
        ("c_bit", _U64),
        ("cr3", _U64),
        ("cr3_reserved", _U64),
        ("cr4_reserved", _U64),
        ("virtual_interrupt", _U64),
        ("withheld", _U64),
        ("keep_tlb", _U64),
        ("blocks", _U64),
        ("deadline", _U64),
        ("exit_word", _P),
        ("hflags", _P),
        ("tsc_per_block", _U64),
        ("restarts", _U64),
        ("farthest", _U64),
        ("stalls", _U64),
        ("aborted", _U64),
        ("host_fault", _U64),
        ("saved_old_exception", _U64),
        ("flushed", LineFlush),
        ("random_left", _U64),
        ("random", _U64 * RANDOM_WORDS),
        ("event", _Event),
        ("shots", _U64),
        ("shot_allows", _U64),
        ("shot", _Shot * MAX_SHOTS),
        ("used", _P),
        ("area", Area * AREAS),
        ("again", _Again),
    ]


_LAYOUT: Final = (
    *("uc_cpu", "cs_env", "cs_exception_index", "cs_interrupt_request"),
    *("rip", "cc_src", "hflags", "segments", "cr0", "cr4", "efer", "nested_cr3"),
    *("star", "lstar", "cstar", "sfmask"),
    *("old_exception", "error_code", "is_int", "next_eip"),
    "cs_exit_word",
)

#: Internal functions that the stubs call, in the order of ``struct functions``.
_INTERNAL: Final = (
    *("cpu_vmexit", "x86_cpu_tlb_fill", "tlb_set_page_with_attrs", "tb_invalidate_phys_page_fast"),
    *("cpu_x86_update_cr0", "cpu_x86_update_cr3", "cpu_x86_update_cr4", "helper_read_crN"),
    "helper_write_crN",
    *("tb_invalidate_phys_range", "tlb_flush", "tlb_flush_page"),
    *("x86_cpu_do_interrupt", "do_interrupt_x86_hardirq", "do_vmexit", "helper_vmload", "helper_vmsave"),
    *("helper_read_eflags", "helper_write_eflags", "raise_exception", "raise_exception_err"),
    *("cpu_restore_state", "cpu_ldub_code", "helper_check_iob", "helper_check_iow", "helper_check_iol"),
    *("x86_ldub_phys", "x86_lduw_phys", "x86_ldl_phys", "x86_ldq_phys"),
    *("x86_stl_phys_notdirty", "x86_stw_phys", "x86_stl_phys", "x86_stq_phys"),
    "tlb_vaddr_to_host",
)
#: Functions that not every supported library has.
_OPTIONAL: Final = ("helper_check_exit_request",)
_PUBLIC: Final = ("uc_emu_start", "uc_emu_stop", "uc_hook_add")


class Native:
    """The loaded stubs.

    Attributes:
        vmrun: load the VMCB, execute until the guest has left or the deadline has come, store the VMCB;
            or `CHANGED`.
        leave: #VMEXIT with a code and EXITINFO1.
        hook: register the hooks of a new engine.
        undo_shots: take back the leaves made for one TLB fill.
        remember: digest the lines of some slots.
        changed: put one bit for each line that differs from its digest in the place of each slot.
        drop_code: drop the code translated from some slots.
        let_go: drop all translations, and all that was made of some slots; then as `changed`.
    """

    def __init__(self) -> None:
        self._dll = ctypes.CDLL(str(compiled_stubs()))
        lib, at = library(), layout()
        offsets = [at.cr0 + 32 if name == "cr4" else getattr(at, name) for name in _LAYOUT]
        optional = [lib.internal(name) if lib.calls(name) else 0 for name in _OPTIONAL]
        functions = [*map(lib.internal, _INTERNAL), *optional, *map(lib.address, _PUBLIC)]
        configure = self._function("cbit_configure", None, _P, _P)
        configure((_U64 * len(offsets))(*offsets), (_U64 * len(functions))(*functions))
        engine = ctypes.POINTER(EngineState)
        self.vmrun: Final = self._function("cbit_vmrun", _I, engine, _P, _U64, _U64, ctypes.c_char_p)
        self.leave: Final = self._function("cbit_leave", None, engine, _U32, _U64)
        self.hook: Final = self._function("cbit_hook", _I, engine)
        self.undo_shots: Final = self._function("cbit_undo_shots", None, engine)
        self.remember: Final = self._function("cbit_remember", None, _P, _P, _U64, _P, _P)
        self.changed: Final = self._function("cbit_changed", None, _P, _P, _U64, _P, _P)
        self.drop_code: Final = self._function("cbit_drop_code", None, engine, _P, _U64, _U64)
        self.let_go: Final = self._function("cbit_let_go", None, engine, _P, _U64, _U64, _P, _P)

    def address(self, name: str) -> int:
        """Address of one of the stubs' functions."""
        return ctypes.cast(getattr(self._dll, name), _P).value or 0

    def _function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        function = getattr(self._dll, name)
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]  # what ctypes hands out has no type


@functools.cache
def native() -> Native:
    """Compile if need be, load, and tell the stubs where things are; once per process.

    Raises:
        NoEngine: no library, no compiler, or a layout that cannot be proven.
    """
    return Native()
