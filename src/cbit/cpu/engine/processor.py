"""One instance of unicorn: its physical address space, its registers, and one VMRUN.

      POOL      the cache's slots, where the machine's plaintext is
      TABLES    the engine's own nested tables
      HOST      the page with VMRUN, the VMCB as QEMU reads it, host save area, permission maps

None of this is the machine's physical memory.  A guest reaches POOL through the nested tables, and nothing
else; below 4 GiB there is nothing at all.

Between runs the instance is in host mode: 64-bit, paging off, EFER.NXE clear, so that nested tables have no
NX.  (QEMU dereferences a NULL pointer where a page table lies in a nested page that is not executable.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from cbit.cpu.engine import vectors
from cbit.cpu.engine.errors import EngineFault, LayoutError
from cbit.cpu.engine.interpose import interpose
from cbit.cpu.engine.layout import env_size, layout, locate
from cbit.cpu.engine.library import library
from cbit.cpu.engine.native import CHANGED, ON_CALL, ON_EXIT, Area, EngineState, native
from cbit.memory.dram import anonymous
from cbit.spec.address import PAGE
from cbit.spec.vmsa import Vmsa

POOL: Final = 1 << 38
TABLES: Final = 2 << 38
HOST: Final = 1 << 47  # no guest has a linear address like this, so none meets its translations in the TLB
CODE, VMCB, HSAVE, IOPM, MSRPM, HOST_SIZE = (HOST + PAGE * page for page in (0, 1, 2, 3, 6, 8))
IOPM_SIZE: Final = 3 * PAGE
MSRPM_SIZE: Final = 2 * PAGE

REGISTERS: Final = 16
RAX, RCX, RDX, RBX, RSP = range(5)
CODE_ROOM: Final = 256 << 20  #: bytes of translated code; where they are used up, all of it is made anew
TSC_PER_BLOCK: Final = 32  # MODEL CHOICE: how far the time-stamp counter goes in one block of guest code

INTR: Final = 0x60  #: exit code of a physical interrupt
_EFER, _VM_HSAVE_PA = 0xC000_0080, 0xC001_0117
_EFER_OF_HOST: Final = 1 << 8 | 1 << 10 | 1 << 12  # LME, LMA, SVME
_CODE, _DATA = 0x00AF_9B00, 0x00CF_9300  # flat segments, as QEMU keeps them
_CR4_PAE: Final = 1 << 5
_HF_GUEST: Final = 1 << 21
_CLFLUSH: Final = 1 << 19  # CPUID 1 EDX
_CLFLUSHOPT_CLWB: Final = 1 << 23 | 1 << 24  # CPUID 7 EBX
_VMRUN: Final = b"\x0f\x01\xd8\xf4"  # vmrun rax; hlt
_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64


def address_of(memory: memoryview) -> int:
    """Address of a writable buffer in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Context:
    """What VMRUN and VMLOAD do not load: general registers, FPU and vector state, debug registers, some MSRs.

    A hypervisor keeps one for each virtual CPU.  Mutable.

    Attributes:
        registers: RAX … R15 in the order of their encoding; rAX and rSP are in the VMCB, not here.
    """

    def __init__(self, environment: bytes) -> None:
        self.registers: Final = (_U64 * REGISTERS)()
        self.registers_at: Final = ctypes.addressof(self.registers)
        self.environment = environment


class Processor:
    """One instance of unicorn.

    Mutable.  One thread at a time.

    Attributes:
        state: what is shared with the native stubs.
        clock: its count of blocks, as one word.
        pool_at: address of the cache's slots in this process.
        tables: the memory at TABLES, as 64-bit words.
        vmcb: the page at VMCB.
        permission_maps: the pages at IOPM and MSRPM.
    """

    def __init__(self, pool: memoryview, *, table_pages: int) -> None:
        """Make an instance over the cache's slots.

        Args:
            pool: all slots.
            table_pages: how many pages of nested tables there may be.

        Raises:
            NoEngine: this computer cannot execute guests.
        """
        interpose()
        lib, self._at, self._native = library(), layout(), native()
        package = lib.package
        self._uc: Any = package.Uc(package.UC_ARCH_X86, package.UC_MODE_64)
        # First of all: code that is dropped leaves its room unused, and what comes next is put behind it.
        room = package.UC_CTL_TCG_BUFFER_SIZE, package.UC_CTL_IO_WRITE, _U32(CODE_ROOM)
        self._uc.ctl(*room)  # by number: 2.1.1 has no method for it
        self._uc.ctl_set_cpu_model(package.x86_const.UC_CPU_X86_EPYC_ROME)
        # Without this, address 0 would be where emulation ends.
        self._uc.ctl_exits_enabled(True)
        self._uc.ctl_set_exits([])
        self._locate(package.x86_const)
        self._map(pool, table_pages)
        self._become_host(package.x86_const)
        self._hook(lib.internal("tlb_flush"))
        words = 4 * [ctypes.POINTER(_U32)]
        self._ask = lib.function("cpu_x86_cpuid", None, ctypes.c_void_p, _U32, _U32, *words)
        ram_address = lib.function("qemu_ram_addr_from_host", _U64, ctypes.c_void_p, ctypes.c_void_p)
        self._pool_ram: int = ram_address(self._uc_at, self.pool_at)
        self._pristine = ctypes.string_at(self._env_at, self._env_size)
        self._loaded: Context | None = None

    # --- making

    def _locate(self, x86: Any) -> None:
        place, at = locate(self._uc, x86), self._at
        if (place.uc_cpu, place.cs_env, place.env - place.cs) != (at.uc_cpu, at.cs_env, at.env):
            raise LayoutError("env", "a second engine is laid out differently")
        self._uc_at, self._cs_at, self._env_at = place.uc, place.cs, place.env
        self._env_size = env_size(place)
        # Otherwise every load and store ends in a check for a request to stop.
        ctypes.c_uint8.from_address(place.uc + at.uc_no_exit_request).value = 1

    def _map(self, pool: memoryview, table_pages: int) -> None:
        self._areas = (
            pool,
            memoryview(anonymous(table_pages * PAGE)),
            memoryview(anonymous(HOST_SIZE - HOST, dumpable=False)),
        )
        everything = 7
        for base, area in zip((POOL, TABLES, HOST), self._areas, strict=True):
            self._uc.mem_map_ptr(base, len(area), everything, address_of(area))
        _, tables, host = self._areas
        self.pool_at = address_of(pool)
        self.tables = tables.cast("Q")
        self.tables_at = address_of(tables)
        self.vmcb = host[VMCB - HOST :][:PAGE]
        self.permission_maps: Mapping[int, memoryview] = MappingProxyType(
            {IOPM: host[IOPM - HOST :][:IOPM_SIZE], MSRPM: host[MSRPM - HOST :][:MSRPM_SIZE]}
        )
        host[: len(_VMRUN)] = _VMRUN

    def _become_host(self, x86: Any) -> None:
        self._uc.reg_write(x86.UC_X86_REG_CR4, _CR4_PAE)
        self._uc.msr_write(_EFER, _EFER_OF_HOST)
        self._uc.msr_write(_VM_HSAVE_PA, HSAVE)
        # Unicorn begins in 64-bit mode without saying so in CS; #VMEXIT restores the mode from there.
        for segment, flags in enumerate((_DATA, _CODE, _DATA, _DATA)):
            at = self._at.segments + 24 * segment
            self._word(at + 16).value, self._word(at + 20).value = 0xFFFF_FFFF, flags
        # Instructions that QEMU ignores: made invalid, they come to the engine, which does them.
        done_here = ((self._at.cpuid_1_edx, _CLFLUSH), (self._at.cpuid_7_ebx, _CLFLUSHOPT_CLWB))
        self._done_here = tuple(self._word(at).value & bits for at, bits in done_here)
        for at, bits in done_here:
            self._word(at).value &= ~bits

    def _hook(self, tlb_flush: int) -> None:
        self._tlb_flush = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(tlb_flush)
        self.state = EngineState(
            uc=self._uc_at,
            cs=self._cs_at,
            env=self._env_at,
            vmcb=address_of(self.vmcb),
            iopm=address_of(self.permission_maps[IOPM]),
            tsc_per_block=TSC_PER_BLOCK,
            vmcb_at=VMCB,
            iopm_at=IOPM,
            msrpm_at=MSRPM,
        )
        at = EngineState.blocks.offset
        self.clock = memoryview((_U64 * 1).from_buffer(self.state, at)).cast("B").cast("Q")
        places = zip((POOL, TABLES, HOST), self._areas, strict=True)
        self.state.area[:] = [Area(start, len(area), address_of(area)) for start, area in places]
        if error := self._native.hook(self.state):
            raise EngineFault(f"uc_hook_add: error {error}")

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Execute CPUID: EAX, EBX, ECX, EDX as this processor has them, with what the engine does itself."""
        eax, ebx, ecx, edx = (_U32() for _ in range(4))
        self._ask(self._env_at, leaf, subleaf, *map(ctypes.byref, (eax, ebx, ecx, edx)))
        flush_line, flush_line_more = self._done_here
        return (
            eax.value,
            ebx.value | (flush_line_more if leaf == 7 and not subleaf else 0),
            ecx.value,
            edx.value | (flush_line if leaf == 1 else 0),
        )

    def answer(self, on_exit: Any, on_invalid: Any, on_entropy: Any) -> None:
        """Say who answers exits, invalid instructions and requests for randomness; they must not raise."""
        self.state.on_exit = ON_EXIT(on_exit)
        self.state.on_invalid = ON_CALL(on_invalid)
        self.state.on_entropy = ON_CALL(on_entropy)

    # --- running

    def new_context(self) -> Context:
        """Make the context of a processor out of reset."""
        return Context(self._pristine)

    def run(self, context: Context, space: int, good: bytes | None = None) -> bool:
        """VMRUN the VMCB at ``state.block``, until #VMEXIT or the deadline.

        Args:
            context: the virtual CPU's other registers.
            space: number of the address space: whose translations stay if it was the last to run.
            good: checked fields that the VMCB should still have; None: it has been looked at.

        Returns:
            Whether it ran; if not, the VMCB must be looked at first.

        Raises:
            EngineFault: the engine failed; the instance is in host mode all the same.
        """
        if self._loaded is not context:
            self._load(context)
        error = self._native.vmrun(self.state, context.registers_at, CODE, space, good)
        if error == CHANGED:
            return False
        if self.state.host_fault:
            raise EngineFault(f"exception {self.state.host_fault - 1:#x} outside guest mode")
        if error:
            raise EngineFault(f"uc_emu_start: error {error} (uc_err)")
        return True

    def vectors(self, context: Context) -> dict[str, int | bytes]:
        """Return the x87, SSE and AVX registers of a virtual CPU, as fields of a save area."""
        if self._loaded is not context:
            self._load(context)
        return vectors.read(self._uc, library().package.x86_const)

    def set_vectors(self, context: Context, state: Vmsa) -> None:
        """Put what a save area has of them into a virtual CPU's registers."""
        if self._loaded is not context:
            self._load(context)
        vectors.write(self._uc, library().package.x86_const, state)

    def _load(self, context: Context) -> None:
        if self._loaded is not None:
            self._loaded.environment = ctypes.string_at(self._env_at, self._env_size)
        ctypes.memmove(self._env_at, context.environment, self._env_size)
        self._loaded = context

    @property
    def in_guest(self) -> bool:
        """Whether the instance is between VMRUN and #VMEXIT."""
        return bool(self._word(self._at.hflags).value & _HF_GUEST)

    # --- registers of the running guest

    def register(self, number: int) -> ctypes.c_uint64:
        """A general register, to read and to write."""
        return _U64.from_address(self._env_at + 8 * number)

    @property
    def rip(self) -> ctypes.c_uint64:
        """The instruction pointer, to read and to write."""
        return _U64.from_address(self._env_at + self._at.rip)

    @property
    def flags(self) -> int:
        """QEMU's hidden flags: CPL in bits 0 and 1, 64-bit code in bit 15."""
        return self._word(self._at.hflags).value

    def control(self, number: int) -> int:
        """CR0 … CR4."""
        return self._quad(self._at.cr0 + 8 * number)

    @property
    def efer(self) -> int:
        """EFER."""
        return self._quad(self._at.efer)

    def segment_base(self, number: int) -> int:
        """Base of ES, CS, SS, DS, FS, GS."""
        return self._quad(self._at.segments + 24 * number + 8)

    def raise_in_guest(self, vector: int, error_code: int = 0) -> None:
        """Prepare an exception; the answer that delivers it is `Answer.DELIVER`."""
        _U32.from_address(self._cs_at + self._at.cs_exception_index).value = vector
        self._word(self._at.error_code).value = error_code
        self._word(self._at.is_int).value = 0

    def set_cr2(self, address: int) -> None:
        """Write CR2."""
        _U64.from_address(self._env_at + self._at.cr0 + 16).value = address

    # --- translations and translated code

    def flush_tlb(self) -> None:
        """Drop every finished translation, and with it the leaves that were made for one fill."""
        self._native.undo_shots(self.state)
        self._tlb_flush(self._cs_at)

    def drop_code(self, slots: Sequence[int]) -> None:
        """Drop code translated from slots whose contents change behind the guest's back."""
        array = (_U64 * len(slots))(*slots)
        self._native.drop_code(self.state, array, len(slots), self._pool_ram)

    def let_go(
        self, slots: Sequence[int], *, watched: Container[int], digests: int, seed: object
    ) -> list[int]:
        """Drop every finished translation, and whatever was made of some slots.

        Args:
            slots: in any order.
            watched: those whose lines were remembered.
            digests: address of what was remembered.
            seed: what it was made with.

        Returns:
            For each slot one bit a line: changed since; 0 for those not watched.
        """
        array = (_U64 * len(slots))(*(slot | (slot in watched) for slot in slots))
        self._native.let_go(self.state, array, len(slots), self._pool_ram, digests, seed)
        return list(array)

    def slot_at(self, slot: int) -> int:
        """Address of a slot in this process."""
        return self.pool_at + slot

    def _word(self, at: int) -> ctypes.c_uint32:
        return _U32.from_address(self._env_at + at)

    def _quad(self, at: int) -> int:
        return _U64.from_address(self._env_at + at).value
