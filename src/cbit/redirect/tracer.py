"""Answers CPUID for a program, where the processor can make it fault.

    execve ──> the tracer lets the new program call arch_prctl(ARCH_SET_CPUID, 0)
    CPUID  ──> general protection fault ──> the tracer puts four registers, steps over it, goes on

The launcher is the tracer, so the program cannot be debugged meanwhile.  Threads and children are traced from
their first instruction; what executes a new program is told anew, for the kernel forgets it then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from typing import Final

from cbit.cpu.cpuid import Registers
from cbit.redirect.errors import RedirectError
from cbit.redirect.linux import Call, libc, syscall

_CONT: Final = 7
_SINGLE_STEP: Final = 9
_GET_REGISTERS: Final = 12
_SET_REGISTERS: Final = 13
_SYSCALL: Final = 24
_GET_SIGNAL_INFO: Final = 0x4202
_SEIZE: Final = 0x4206
_LISTEN: Final = 0x4208
#: TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, EXITKILL
_OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100000
_EVENT_EXEC: Final = 4
_EVENT_STOP: Final = 128
_SYSTEM_CALL: Final = signal.SIGTRAP | 0x80
_FROM_KERNEL: Final = 0x80
_GROUP_STOPS: Final = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}

WAIT_ALL: Final = 0x40000000  #: __WALL: of threads too
CPUID: Final = b"\x0f\xa2"
_SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
ARCH_SET_CPUID: Final = 0x1012
_NO_CALL: Final = (1 << 64) - 1


class UserRegisters(ctypes.Structure):
    """``struct user_regs_struct`` of x86-64."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
            *("rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base"),
            *("ds", "es", "fs", "gs"),
        )
    )


class _Ended(Exception):
    """The tracee ended while it was waited for."""


def why_not() -> str:
    """Try, in a process that is thrown away, whether CPUID can be made to fault; empty if it can."""
    child = os.fork()
    if child == 0:
        try:
            syscall(Call.ARCH_PRCTL, ARCH_SET_CPUID, 0)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        finally:
            os._exit(errno.EIO)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if code == 0 else errno.errorcode.get(code, str(code))


class Tracer:
    """Traces one program and all that it starts; called by whoever waits for children.

    Args:
        answer: leaf and sub-leaf in, registers out.
        instruction: two bytes that fault and are answered.
        prepare: the system call that each new program makes first: number and two arguments.

    Attributes:
        answered: how many instructions were.
        prepared: what the system call returned, for each program executed.
    """

    def __init__(
        self,
        answer: Callable[[int, int], Registers],
        *,
        instruction: bytes = CPUID,
        prepare: tuple[int, int, int] = (Call.ARCH_PRCTL, ARCH_SET_CPUID, 0),
    ) -> None:
        self._answer, self._instruction, self._prepare_call = answer, instruction, prepare
        self.answered = 0
        self.prepared: list[int] = []

    def seize(self, pid: int) -> None:
        """Begin; raises ``OSError`` if the kernel forbids it."""
        _ptrace(_SEIZE, pid, _OPTIONS)

    def stopped(self, tid: int, status: int) -> int | None:
        """Handle a stop that waiting has reported; return another status if the thread ended meanwhile.

        Raises:
            RedirectError: a new program could not be prepared.
        """
        number, event = os.WSTOPSIG(status), status >> 16
        try:
            if event == _EVENT_EXEC:
                deliver = self._new_program(tid)
            elif event == _EVENT_STOP and number in _GROUP_STOPS:
                _ptrace(_LISTEN, tid, 0)
                return None
            elif event or number == _SYSTEM_CALL:
                deliver = 0
            else:
                deliver = 0 if number == signal.SIGSEGV and self._answered(tid) else number
            _ptrace(_CONT, tid, deliver)
        except ProcessLookupError:
            pass  # it was killed: waiting will say so
        except _Ended as ended:
            return int(ended.args[0])
        return None

    def _answered(self, tid: int) -> bool:
        info = (ctypes.c_int32 * 32)()
        _ptrace(_GET_SIGNAL_INFO, tid, ctypes.addressof(info))
        if info[2] != _FROM_KERNEL:
            return False
        registers = _registers(tid)
        if _peek(tid, registers.rip) != self._instruction:
            return False
        found = self._answer(registers.rax & 0xFFFFFFFF, registers.rcx & 0xFFFFFFFF)
        registers.rax, registers.rbx, registers.rcx, registers.rdx = found
        registers.rip += len(self._instruction)
        _set(tid, registers)
        self.answered += 1
        return True

    def _new_program(self, tid: int) -> int:
        """Let the new program make a system call before all else; return a signal that is due to it."""
        due = self._go_to(tid, _SYSCALL, _SYSTEM_CALL)  # the end of its execve, from where registers count
        before = _registers(tid)
        code = _peek(tid, before.rip)
        _poke(tid, before.rip, _SYSCALL_INSTRUCTION)
        inside = UserRegisters.from_buffer_copy(before)
        inside.rax, inside.rdi, inside.rsi = self._prepare_call
        inside.orig_rax = _NO_CALL
        _set(tid, inside)
        due = self._go_to(tid, _SINGLE_STEP, signal.SIGTRAP) or due
        result = ctypes.c_int64(_registers(tid).rax).value
        _poke(tid, before.rip, code)
        before.orig_rax = _NO_CALL
        _set(tid, before)
        self.prepared.append(result)
        if result < 0 and self._prepare_call[0] == Call.ARCH_PRCTL:
            name = errno.errorcode.get(-result, str(-result))
            raise RedirectError(f"a program cannot be made to fault on CPUID: {name}")
        return due

    @staticmethod
    def _go_to(tid: int, how: int, wanted: int) -> int:
        """Let a thread run to a stop; return a signal that arrived on the way, still to be delivered."""
        due = 0
        while True:
            _ptrace(how, tid, 0)
            _, status = os.waitpid(tid, WAIT_ALL)
            if not os.WIFSTOPPED(status):
                raise _Ended(status)
            if os.WSTOPSIG(status) == wanted and not status >> 16:
                return due
            due = due or (0 if status >> 16 else os.WSTOPSIG(status))


def _ptrace(request: int, tid: int, data: int) -> None:
    function = libc().ptrace
    function.restype = ctypes.c_long
    if function(ctypes.c_long(request), ctypes.c_long(tid), None, ctypes.c_void_p(data)) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace: {os.strerror(code)}")


def _registers(tid: int) -> UserRegisters:
    registers = UserRegisters()
    _ptrace(_GET_REGISTERS, tid, ctypes.addressof(registers))
    return registers


def _set(tid: int, registers: UserRegisters) -> None:
    _ptrace(_SET_REGISTERS, tid, ctypes.addressof(registers))


def _peek(tid: int, address: int) -> bytes:
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), 2, address)


def _poke(tid: int, address: int, data: bytes) -> None:
    with open(f"/proc/{tid}/mem", "r+b", buffering=0) as memory:  # through protections, as a debugger may
        os.pwrite(memory.fileno(), data, address)
