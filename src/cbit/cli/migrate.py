"""``cbit migrate``: a launched guest moves from one machine to another, sealed by their secure processors."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cbit.cli.addresses import address, family
from cbit.cli.capabilities import require_machine
from cbit.cli.durations import seconds
from cbit.cli.envelope import Outcome
from cbit.cli.messages import Messages

if TYPE_CHECKING:
    from cbit.hypervisor.channel import Channel
    from cbit.hypervisor.host import Host
    from cbit.hypervisor.launch import SevGuest
    from cbit.hypervisor.migration import Moved
    from cbit.hypervisor.small_guest import SmallGuest

HELP = "move a guest to another machine"
EXAMPLE = """examples:
  cbit migrate receive --state ./there --at ./moving.sock --token ./token &
  cbit migrate send    --state ./here  --at ./moving.sock --token ./token --firmware OVMF.fd
  cbit migrate send    --state ./here  --at ./moving.sock --token ./token --builtin"""
TOKEN_SIZE: Final = 32
NUMBER: Final = 1_000_000  #: below which the built-in guest counts primes while it is moved
_AT_HOME: Final = 200_000  #: blocks of code before it leaves
_PAUSE_S: Final = 0.05
_PEER_S: Final = 2.0  #: for whoever connects to prove that it knows the token
_BACKLOG: Final = 16
_MEMORY: Final = 64 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    ways = parser.add_subparsers(dest="way", required=True, metavar="send|receive")
    for name, what in (("send", "launch a guest here and move it"), ("receive", "take one guest in")):
        way = ways.add_parser(name, help=what, description=what, epilog=EXAMPLE)
        way.add_argument(
            "--state", type=Path, required=True, metavar="DIR", help="the machine's state folder"
        )
        way.add_argument(
            "--at",
            type=_place,
            required=True,
            metavar="WHERE",
            help="HOST:PORT, or the path of a Unix socket (has a /)",
        )
        way.add_argument(
            "--token",
            type=Path,
            required=True,
            metavar="FILE",
            help="what both hosts know, 16 bytes or more; 'receive' makes it if it is not there",
        )
        way.add_argument("--wait", type=seconds, default=10.0, metavar="S", help="for the other side (10)")
        if name == "send":
            image = way.add_mutually_exclusive_group()
            image.add_argument(
                "--firmware", type=Path, metavar="F", help="image to launch (default: cbit's own)"
            )
            image.add_argument(
                "--builtin",
                action="store_true",
                help="launch the built-in guest, let it run, and move it in the middle of its work",
            )
            way.add_argument("--policy", type=lambda text: int(text, 0), default=0, metavar="P", help="0")


def run(args: argparse.Namespace) -> Outcome:
    """Move; what the other side or a secure processor refuses is not true (exit 1)."""
    require_machine()
    from cbit.driver.errors import FirmwareError
    from cbit.hypervisor.channel import ChannelError

    try:
        return _send(args) if args.way == "send" else _receive(args)
    except (FirmwareError, ChannelError) as error:
        return Outcome(ok=False, reasons=(str(error),))


def _send(args: argparse.Namespace) -> Outcome:
    from cbit.crypto.entropy import SystemEntropy
    from cbit.hypervisor import migration
    from cbit.hypervisor.channel import Channel
    from cbit.hypervisor.running_state import pack

    image = _image(args)
    token = _known(args.token)
    with _host(args.state) as host:
        guest = _launched(host, image, args.policy, builtin=args.builtin)
        small = _at_work(guest) if args.builtin else None
        shared = _shared() if small else ()
        before = _digest(guest, leave_out=shared)
        with _connected(args.at, args.wait) as link:
            channel = Channel.connected(link, token, SystemEntropy())
            moved = migration.send(guest, channel, state=pack(small) if small else b"", shared=shared)
        told = _told(small)
        if small is not None:
            small.leave()
        state = guest.status().state
        guest.end()
    return _outcome("sent", moved, before, state, told)


def _image(args: argparse.Namespace) -> bytes:
    from cbit.guest.builtin import image as builtin
    from cbit.guest.generated_firmware import generate
    from cbit.secure_processor.nv_store import read_file

    if args.builtin:
        return builtin.image()
    return generate() if args.firmware is None else read_file(args.firmware)


def _launched(host: Host, image: bytes, policy: int, *, builtin: bool) -> SevGuest:
    from cbit.guest.builtin.interface import MEMORY, MEMORY_SIZE
    from cbit.hypervisor.host import Protection
    from cbit.hypervisor.launch import SevGuest
    from cbit.hypervisor.vm import Vm, firmware_start

    vm = Vm(host, Protection.SEV)
    vm.load_firmware(image)
    if builtin:
        vm.add_memory(MEMORY, MEMORY_SIZE)
    guest = SevGuest.start(vm, policy=policy)
    guest.update(firmware_start(image), len(image))
    guest.measure_alone()
    guest.finish()
    return guest


def _at_work(guest: SevGuest) -> SmallGuest:
    """Let the built-in guest say who it is, and begin to count."""
    from cbit.guest.builtin.interface import Request, reset_state
    from cbit.hypervisor.small_guest import SmallGuest

    small = SmallGuest(guest.vm, reset_state())
    small.turn()
    small.ask(Request.WHO)
    small.requests.ask(Request.COMPUTE, NUMBER)
    small.turn(_AT_HOME)
    return small


def _shared() -> tuple[range, ...]:
    from cbit.guest.builtin.interface import SHARED

    return (SHARED,)


def _told(small: SmallGuest | None) -> list[str]:
    return [] if small is None else small.console.lines


def _receive(args: argparse.Namespace) -> Outcome:
    from cbit.hypervisor import migration
    from cbit.hypervisor.devices.requests import Asked
    from cbit.hypervisor.migration import Papers
    from cbit.hypervisor.running_state import unpack
    from cbit.secure_processor.nv_store import read_file

    arrived: list[tuple[SmallGuest, list[Asked]]] = []
    token = _token(args.token)
    with _host(args.state) as host:
        certs = args.state / "certs"
        papers = Papers.of(host, cek=read_file(certs / "cek.cert"), ask_ark=read_file(certs / "ask_ark.cert"))
        with _accepted(args.at, args.wait, token) as channel:
            guest, moved = migration.receive(
                host, channel, papers, settle=lambda guest, state: arrived.append(unpack(guest.vm, state))
            )
        state, after = guest.status().state, _digest(guest, leave_out=_shared() if moved.ran else ())
        told: list[str] = []
        for small, unfinished in arrived:
            small.finish(unfinished)
            told = _told(small)
        guest.end()
    return _outcome("received", moved, after, state, told)


def _outcome(what: str, moved: Moved, digest: str | None, state: Any, told: list[str]) -> Outcome:
    from cbit.spec.policy import GuestPolicy

    result = {
        "way": what,
        "packets": moved.packets,
        "bytes": moved.size,
        "policy": f"{moved.policy:#x}",
        "state": state.name,
        "memory_sha256": digest,
        "shared_pages": moved.shared,
        "ran": moved.ran,
        "guest_printed": told,
    }

    def lines() -> Iterator[str]:
        yield f"{what}: {moved.packets} packets, {moved.size} bytes, policy {GuestPolicy.parse(moved.policy)}"
        yield f"the guest is {state.name} here"
        if digest is None:
            yield "its policy forbids debugging: nobody but the guest can say what is in its memory"
        else:
            yield f"memory, as its policy lets a debugger read it: sha256 {digest}"
        yield from (f"the guest prints: {line}" for line in told)

    return Outcome(ok=True, result=result, lines=lines)


def _digest(guest: SevGuest, *, leave_out: Sequence[range] = ()) -> str | None:
    """Hash the guest's memory through DBG_DECRYPT, if its policy allows that; all but what is not private."""
    from cbit.spec import buffers
    from cbit.spec.address import PAGE, Spa
    from cbit.spec.command import Command
    from cbit.spec.policy import Policy

    if guest.policy & Policy.NODBG:
        return None
    host, digest, step = guest.vm.host, hashlib.sha256(), 1 << 16
    with host.room(step) as room:
        for region in sorted(guest.vm.regions, key=lambda region: region.gpa):
            for start in range(0, region.size, step):
                length = min(step, region.size - start)
                source = guest.vm.spa(type(region.gpa)(region.gpa + start), length)
                request = buffers.Debug(handle=guest.handle, src=source, dst=room, length=length)
                host.ccp.call(Command.DBG_DECRYPT, request)
                data = bytearray(host.read(Spa(room), length))
                for pages in leave_out:
                    for page in pages[::PAGE]:
                        if page in range(region.gpa + start, region.gpa + start + length):
                            at = page - region.gpa - start
                            data[at : at + PAGE] = bytes(PAGE)
                digest.update(data)
    return digest.hexdigest()


@contextmanager
def _host(state: Path) -> Iterator[Host]:
    from cbit.hypervisor.host import Host
    from cbit.machine.board import Machine, Options
    from cbit.machine.state_folder import StateFolder

    with StateFolder(state) as folder:
        machine = Machine(folder, Options(memory_size=_MEMORY))
        machine.power_on()
        host = Host(machine)
        host.initialise()
        yield host


def _token(path: Path) -> bytes:
    """Make what both hosts know, for its owner's eyes, if it is not there; read it."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(TOKEN_SIZE))
    except FileExistsError:
        pass
    return _known(path)


def _known(path: Path) -> bytes:
    """Read what both hosts know, before anything is begun with it."""
    from cbit.hypervisor.channel import TOKEN_MIN

    token = path.read_bytes()
    if len(token) < TOKEN_MIN:
        raise ValueError(f"{path}: a token of {len(token)} bytes can be guessed: {TOKEN_MIN} at least")
    return token


@dataclass(frozen=True, slots=True)
class _Place:
    """Where two hosts meet: ``text`` as it was given, and as sockets have it."""

    text: str
    family: socket.AddressFamily
    address: str | tuple[str, int]


def _place(text: str) -> _Place:
    """Read the path of a socket or HOST:PORT, for an argument's ``type``."""
    if "/" in text:
        return _Place(text, socket.AF_UNIX, text)
    where = address(text)
    return _Place(text, family(where[0]), where)


@contextmanager
def _connected(at: _Place, wait: float) -> Iterator[socket.socket]:
    until = time.monotonic() + wait
    while True:
        link = socket.socket(at.family, socket.SOCK_STREAM)
        try:
            link.connect(at.address)
            break
        except OSError as error:
            link.close()
            not_yet = isinstance(error, (ConnectionRefusedError, FileNotFoundError))
            if not not_yet or time.monotonic() >= until:
                raise OSError(error.errno, error.strerror or str(error), at.text) from None
            time.sleep(_PAUSE_S)
        except BaseException:
            link.close()
            raise
    with link:
        link.settimeout(wait)
        yield link


@contextmanager
def _accepted(at: _Place, wait: float, token: bytes) -> Iterator[Channel]:
    """Wait for whoever knows the token; others are turned away, and nobody is kept from coming by them."""
    with _listening(at) as door:
        say = Messages("cbit")
        say(f"waits for a guest at {at.text}")
        link, channel = _first_who_knows(token, door, wait, at.text, say)
        with link:
            link.settimeout(wait)
            yield channel


def _first_who_knows(
    token: bytes, door: socket.socket, wait: float, at: str, say: Messages
) -> tuple[socket.socket, Channel]:
    from cbit.crypto.entropy import SystemEntropy
    from cbit.hypervisor.channel import Channel, ChannelError

    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0:
        door.settimeout(left)
        try:
            link, _ = door.accept()
        except TimeoutError:
            break
        patience = partial(_left, min(time.monotonic() + _PEER_S, until))
        try:
            return link, Channel.accepted(link, token, SystemEntropy(), left=patience)
        except (ChannelError, OSError) as error:
            link.close()
            say(f"somebody is turned away: {error}")
        except BaseException:
            link.close()
            raise
    raise TimeoutError(errno.ETIMEDOUT, f"nobody who knows the token came in {wait:g} s", at)


def _left(until: float) -> float:
    return until - time.monotonic()


@contextmanager
def _listening(at: _Place) -> Iterator[socket.socket]:
    """Listen; a Unix socket is its owner's alone, and what a dead receiver left there is replaced."""
    from cbit.redirect.daemon import listening

    if at.family == socket.AF_UNIX:
        with listening(Path(at.text)) as door:
            yield door
        return
    with socket.socket(at.family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(at.address)
        except OSError as error:
            raise OSError(error.errno, error.strerror, at.text) from None
        door.listen(_BACKLOG)
        yield door
