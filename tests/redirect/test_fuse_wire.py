"""Whatever the kernel, or nonsense in its place, says: one good answer or none, and the server lives."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.driver.caller_memory import CallerMemory
from cbit.redirect import fuse_wire as wire
from cbit.redirect.device import Client
from cbit.redirect.files import SEV, SEV_ISSUE_CMD, DeviceFile
from cbit.redirect.fuse import FuseFile
from cbit.redirect.fuse_wire import Malformed, Opcode
from cbit.trace import Event, Trace

ARGUMENT = 0x7F00_0000_0000
DATA = bytes(range(16))


@dataclass
class Desk:
    """A device that writes down what it is asked, and answers as it is told."""

    lines: list[str] = field(default_factory=list)
    result: int | type[Exception] = 0

    def open(self, client: Client, *, writable: bool) -> int:
        self.lines.append(f"open {client.pid} {writable}")
        return len(self.lines)

    def ioctl(self, handle: int, request: int, argument: int, memory: CallerMemory) -> int:
        self.lines.append(f"{handle}: {request:#x} {memory.read(argument, 16).hex()}")
        memory.write(argument + 12, b"told")
        if isinstance(self.result, int):
            return self.result
        raise self.result(errno.EBUSY, "busy")

    def close(self, handle: int) -> None:
        self.lines.append(f"close {handle}")


@dataclass
class World:
    """A file with nobody behind its channel: requests are given to it by hand."""

    desk: Desk
    file: FuseFile
    faults: list[BaseException]
    events: list[Event]

    def ask(
        self, opcode: int, body: bytes = b"", *, unique: int = 77, pid: int | None = None
    ) -> tuple[int, bytes]:
        """Return error and body of the answer, which is looked at."""
        answer = self.file.answer(memoryview(asked(opcode, body, unique=unique, pid=pid)))
        assert answer is not None
        length, error, of = wire.OUT_HEADER.unpack_from(answer)
        assert (len(answer), unique) == (length, of)
        return error, answer[wire.OUT_HEADER.size :]

    def open(self, flags: int = os.O_RDWR) -> int:
        error, body = self.ask(Opcode.OPEN, wire.OPEN_IN.pack(flags, 0))
        assert 0 == error
        handle, shown, _ = wire.OPEN_OUT.unpack(body)
        assert wire.FOPEN_DIRECT_IO | wire.FOPEN_NONSEEKABLE == shown
        return int(handle)

    def ioctl(self, handle: int, **changes: int) -> tuple[int, bytes]:
        """Return the result and the bytes that go back."""
        error, body = self.ask(Opcode.IOCTL, ioctl_body(handle, **changes), pid=changes.get("pid"))
        assert 0 == error
        result, *zeros = wire.IOCTL_OUT.unpack_from(body)
        assert [0, 0, 0] == zeros
        return result, body[wire.IOCTL_OUT.size :]

    def why(self) -> str:
        return self.events[-1].why


def asked(opcode: int, body: bytes = b"", *, unique: int = 77, pid: int | None = None) -> bytes:
    pid = os.getpid() if pid is None else pid
    return wire.IN_HEADER.pack(wire.IN_HEADER.size + len(body), opcode, unique, 1, 0, 0, pid, 0) + body


def ioctl_body(handle: int, *, flags: int = 0, request: int = SEV_ISSUE_CMD, pid: int = 0) -> bytes:
    return wire.IOCTL_IN.pack(handle, flags, request, ARGUMENT, len(DATA), len(DATA)) + DATA


@contextmanager
def a_world() -> Iterator[World]:
    desk, faults, events, trace = Desk(), list[BaseException](), list[Event](), Trace()
    one = DeviceFile(SEV, (SEV_ISSUE_CMD,))
    with trace.watched_by(events.append, only="driver"):
        file = FuseFile(-1, one, desk, mode=0o600, failed=faults.append, trace=trace)
        yield World(desk, file, faults, events)
        file.close()
    opened = sum(line.startswith("open") for line in desk.lines)
    assert opened == sum(line.startswith("close") for line in desk.lines)


@pytest.fixture
def world() -> Iterator[World]:
    with a_world() as made:
        yield made


# ---- the command


def test_a_command_reads_what_the_kernel_copied_and_answers_with_what_it_wrote(world: World) -> None:
    handle = world.open()
    assert (0, DATA[:12] + b"told") == world.ioctl(handle)
    assert [f"open {os.getpid()} True", f"1: {SEV_ISSUE_CMD:#x} {DATA.hex()}"] == world.desk.lines
    assert 1 == world.file.commands


@pytest.mark.parametrize("result", [-errno.EIO, 7])
def test_bytes_go_back_whatever_the_result_is(world: World, result: int) -> None:
    world.desk.result = result
    assert (result, DATA[:12] + b"told") == world.ioctl(world.open())


def test_what_a_device_raises_is_the_result(world: World) -> None:
    world.desk.result = OSError
    assert (-errno.EBUSY, DATA[:12] + b"told") == world.ioctl(world.open())
    assert [] == world.faults
    world.desk.result = ValueError  # a fault of ours
    assert -errno.EIO == world.ioctl(world.open())[0]
    assert 1 == len(world.faults)


def test_another_request_does_not_reach_the_device(world: World) -> None:
    handle = world.open()
    assert (-errno.ENOTTY, b"") == world.ioctl(handle, request=SEV_ISSUE_CMD + 1)
    assert 0 == world.file.commands


@pytest.mark.parametrize("flags", [1, 1 << 3, 1 << 5, 0xFF])
def test_a_32_bit_program_is_told_that_there_is_no_entry(world: World, flags: int) -> None:
    assert (-errno.ENOTTY, b"") == world.ioctl(world.open(), flags=flags)
    assert "32-bit" in world.why()
    assert 1 == len(world.desk.lines), "the open alone"


def test_who_cannot_be_seen_cannot_be_served(world: World) -> None:
    handle = world.open()
    error, body = world.ask(Opcode.IOCTL, ioctl_body(handle), pid=0)
    assert (0, -errno.EPERM) == (error, wire.IOCTL_OUT.unpack_from(body)[0])
    assert "PID namespace" in world.why()
    assert 0 == world.ask(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDONLY, 0), pid=0)[0]
    assert "open 0 False" == world.desk.lines[-1]


def test_an_answer_that_is_not_taken_is_a_fault_of_ours_and_no_end() -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    faults: list[BaseException] = []
    one = DeviceFile(SEV, (SEV_ISSUE_CMD,))
    with kernel:
        file = FuseFile(ours.detach(), one, Desk(), mode=0, failed=faults.append)
        kernel.send(asked(Opcode.STATFS))
        assert file.serve()
        assert wire.OUT_HEADER.size + wire.STATFS_OUT.size == len(kernel.recv(4096))
        assert [] == faults
        kernel.send(asked(Opcode.STATFS))
        kernel.shutdown(socket.SHUT_RD)
        assert file.serve()
        assert ["BrokenPipeError"] == [type(fault).__name__ for fault in faults]
        file.close()


def test_requests_that_follow_closely_are_answered_in_a_row_and_not_for_ever() -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    kernel.setblocking(False)
    with kernel:
        file = FuseFile(ours.detach(), DeviceFile(SEV, ()), Desk(), mode=0, failed=lambda error: None)
        for _ in range(20):
            kernel.send(asked(Opcode.STATFS))
        assert file.serve()
        assert 16 == sum(1 for _ in iter(lambda: taken(kernel), b""))
        assert file.serve()
        assert 4 == sum(1 for _ in iter(lambda: taken(kernel), b""))
        assert file.serve(), "nothing was asked"
        file.close()


def taken(kernel: socket.socket) -> bytes:
    try:
        return kernel.recv(4096)
    except BlockingIOError:
        return b""


# ---- the file


@pytest.mark.parametrize(
    ("flags", "writable"),
    [
        (os.O_RDONLY, False),
        (os.O_WRONLY | os.O_TRUNC, True),
        (os.O_RDWR | os.O_CREAT, True),
        (os.O_ACCMODE, False),  # neither: for requests alone
    ],
)
def test_the_mode_of_an_open_is_its_flags(world: World, flags: int, writable: bool) -> None:
    world.open(flags)
    assert [f"open {os.getpid()} {writable}"] == world.desk.lines


def test_a_handle_is_closed_once(world: World) -> None:
    first, second = world.open(), world.open()
    release = wire.RELEASE_IN.pack(first, 0, 0, 0)
    assert (0, b"") == world.ask(Opcode.RELEASE, release)
    assert 1 == world.file.open_handles
    assert (-errno.EINVAL, b"") == world.ask(Opcode.RELEASE, release)
    assert (-errno.EINVAL, b"") == world.ask(Opcode.IOCTL, ioctl_body(first))
    assert 0 == world.ioctl(second)[0]
    world.file.close()
    assert ["close 1", f"2: {SEV_ISSUE_CMD:#x} {DATA.hex()}", "close 2"] == world.desk.lines[2:]


def test_attributes_are_the_permission_bits_and_owner_that_were_set(world: World) -> None:
    def seen(body: bytes) -> tuple[int, ...]:
        fields = wire.ATTR.unpack_from(body, wire.ATTR_OUT.size)
        return fields[1], *fields[9:13]

    _, body = world.ask(Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0, 0))
    assert (0, stat.S_IFREG | 0o600, 1, os.geteuid(), os.getegid()) == seen(body)
    values = (0, 1 << 40, 0, 0, 0, 0, 0, 0, 0, 0o104640, 0, 5, 6, 0)  # size 2^40, mode, owner, group
    for valid, after in [
        (8, (0, stat.S_IFREG | 0o600, 1, os.geteuid(), os.getegid())),
        (1, (0, stat.S_IFREG | 0o640, 1, os.geteuid(), os.getegid())),
        (6, (0, stat.S_IFREG | 0o640, 1, 5, 6)),
    ]:
        error, body = world.ask(Opcode.SETATTR, wire.SETATTR_IN.pack(valid, *values))
        assert (0, after) == (error, seen(body))


@pytest.mark.parametrize(
    ("opcode", "error"),
    [
        (Opcode.READ, errno.EINVAL),
        (Opcode.WRITE, errno.EINVAL),
        (Opcode.FLUSH, errno.ENOSYS),
        (Opcode.POLL, errno.ENOSYS),
        (1, errno.ENOSYS),
        (4096, errno.ENOSYS),
        (Opcode.ACCESS, 0),
        (Opcode.DESTROY, 0),
    ],
)
def test_what_a_device_has_not_is_refused(world: World, opcode: int, error: int) -> None:
    assert (-error, b"") == world.ask(opcode, bytes(64))


def test_the_file_system_is_empty(world: World) -> None:
    error, body = world.ask(Opcode.STATFS)
    assert (0, (0, 0, 0)) == (error, wire.STATFS_OUT.unpack(body)[:3])


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT])
def test_some_things_want_no_answer(world: World, opcode: Opcode) -> None:
    assert world.file.answer(memoryview(asked(opcode, bytes(8)))) is None
    assert world.file.answer(memoryview(asked(opcode))) is None


# ---- the agreement


@pytest.mark.parametrize(
    ("version", "error", "answered"),
    [
        ((7, 45), 0, (7, 31)),
        ((7, 31), 0, (7, 31)),
        ((7, 23), 0, (7, 23)),
        ((8, 0), 0, (7, 0)),  # it asks again, in words that both know
        ((7, 22), errno.EPROTO, ()),
        ((6, 99), errno.EPROTO, ()),
    ],
)
def test_the_older_protocol_is_spoken(
    world: World, version: tuple[int, int], error: int, answered: tuple[int, ...]
) -> None:
    found, body = world.ask(Opcode.INIT, wire.INIT_IN.pack(*version, 131072, 0xFFFFFFFF) + bytes(48))
    assert -error == found
    assert answered == (wire.INIT_OUT.unpack(body)[:2] if body else ())
    if body:
        assert (131072, 0) == wire.INIT_OUT.unpack(body)[2:4], "nothing optional is asked for"
    else:
        assert "oldest understood" in world.why()


# ---- nonsense


GOOD = {
    Opcode.INIT: wire.INIT_IN.pack(7, 31, 0, 0),
    Opcode.GETATTR: wire.GETATTR_IN.pack(0, 0, 0),
    Opcode.SETATTR: wire.SETATTR_IN.pack(*[0] * 15),
    Opcode.OPEN: wire.OPEN_IN.pack(2, 0),
    Opcode.RELEASE: wire.RELEASE_IN.pack(1, 0, 0, 0),
    Opcode.IOCTL: ioctl_body(1),
}


@pytest.mark.parametrize("opcode", GOOD)
def test_a_byte_too_few_is_refused_and_moves_nothing(world: World, opcode: Opcode) -> None:
    world.open()
    before = (list(world.desk.lines), world.file.open_handles)
    assert (-errno.EINVAL, b"") == world.ask(opcode, GOOD[opcode][:-1])
    assert before == (world.desk.lines, world.file.open_handles)
    assert world.why()
    assert 0 == world.ask(opcode, GOOD[opcode])[0], "and with it, it is answered"


def test_an_ioctl_with_more_data_than_it_says_is_refused(world: World) -> None:
    assert (-errno.EINVAL, b"") == world.ask(Opcode.IOCTL, ioctl_body(world.open()) + b"\0")


@pytest.mark.parametrize("cut", [0, 1, wire.IN_HEADER.size - 1])
def test_without_a_header_there_is_nobody_to_answer(world: World, cut: int) -> None:
    assert world.file.answer(memoryview(asked(Opcode.STATFS))[:cut]) is None
    assert f"a request of {cut} bytes" in world.why()


@pytest.mark.parametrize("change", [-1, 1, 1 << 20])
def test_a_length_that_is_not_its_own_is_refused(change: int) -> None:
    data = bytearray(asked(Opcode.STATFS, bytes(8)))
    struct.pack_into("<I", data, 0, len(data) + change)
    with pytest.raises(Malformed, match="that says it has"):
        wire.parse(memoryview(data))


def test_extensions_at_the_end_are_no_arguments() -> None:
    body = wire.OPEN_IN.pack(2, 0) + bytes(16)
    header = wire.IN_HEADER.pack(wire.IN_HEADER.size + len(body), 14, 1, 1, 0, 0, 9, 2)
    assert wire.OPEN_IN.pack(2, 0) == bytes(wire.parse(memoryview(header + body)).body)
    beyond = wire.IN_HEADER.pack(wire.IN_HEADER.size + len(body), 14, 1, 1, 0, 0, 9, 4)
    with pytest.raises(Malformed):
        wire.parse(memoryview(beyond + body))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    try:
        request = wire.parse(memoryview(data))
    except Malformed:
        return
    assert len(data) >= wire.IN_HEADER.size + len(request.body)


OPCODES = st.one_of(st.sampled_from([int(one) for one in Opcode]), st.integers(0, 2**32 - 1))


@given(st.lists(st.tuples(OPCODES, st.one_of(st.binary(max_size=120), st.sampled_from(list(GOOD.values()))))))
def test_whatever_comes_there_is_one_answer_and_the_server_lives(requests: list[tuple[int, bytes]]) -> None:
    with a_world() as world:
        for unique, (opcode, body) in enumerate(requests):
            answer = world.file.answer(memoryview(asked(opcode, body, unique=unique)))
            if answer is None:
                assert opcode in {*wire.SILENT, Opcode.INTERRUPT}
                continue
            length, error, of = wire.OUT_HEADER.unpack_from(answer)
            assert (len(answer), unique) == (length, of)
            assert -4096 < error <= 0
            assert error == 0 or length == wire.OUT_HEADER.size, "the kernel takes no body with an error"
        assert (0, DATA[:12] + b"told") == world.ioctl(world.open())
    assert [] == world.faults


STRUCTURES = {
    "fuse_in_header": wire.IN_HEADER.size,
    "fuse_out_header": wire.OUT_HEADER.size,
    "fuse_init_out": wire.INIT_OUT.size,
    "fuse_getattr_in": wire.GETATTR_IN.size,
    "fuse_attr": wire.ATTR.size,
    "fuse_attr_out": wire.ATTR_OUT.size + wire.ATTR.size,
    "fuse_setattr_in": wire.SETATTR_IN.size,
    "fuse_open_in": wire.OPEN_IN.size,
    "fuse_open_out": wire.OPEN_OUT.size,
    "fuse_release_in": wire.RELEASE_IN.size,
    "fuse_ioctl_in": wire.IOCTL_IN.size,
    "fuse_ioctl_out": wire.IOCTL_OUT.size,
    "fuse_statfs_out": wire.STATFS_OUT.size,
}
NUMBERS = {
    **{f"FUSE_{one.name}": int(one) for one in Opcode},
    **{f"FATTR_{one.name}": int(one) for one in wire.SetAttr},
    "FUSE_IOCTL_COMPAT": int(wire.IoctlFlags.COMPAT),
    "FUSE_IOCTL_UNRESTRICTED": int(wire.IoctlFlags.UNRESTRICTED),
    "FUSE_IOCTL_32BIT": int(wire.IoctlFlags.ABI_32BIT),
    "FUSE_IOCTL_COMPAT_X32": int(wire.IoctlFlags.COMPAT_X32),
    "FOPEN_DIRECT_IO": wire.FOPEN_DIRECT_IO,
    "FOPEN_NONSEEKABLE": wire.FOPEN_NONSEEKABLE,
    "FUSE_KERNEL_VERSION": wire.FUSE_KERNEL_VERSION,
    "FUSE_ROOT_ID": wire.FUSE_ROOT_ID,
}


def test_structures_and_numbers_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not here: apt install gcc libc6-dev")
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    asked_for = (*(f"sizeof(struct {name})" for name in STRUCTURES), *NUMBERS)
    said = "".join(f'printf("%ld\\n", (long)({one}));' for one in asked_for)
    source.write_text(f"#include <stdio.h>\n#include <linux/fuse.h>\nint main(void) {{ {said} return 0; }}\n")
    built = subprocess.run([compiler, "-o", program, source], capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"no linux/fuse.h that has all of it: {built.stderr.strip()[-200:]}")
    ended = subprocess.run([program], capture_output=True, text=True, check=True)
    assert [*STRUCTURES.values(), *NUMBERS.values()] == [int(word) for word in ended.stdout.split()]
