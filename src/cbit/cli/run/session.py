"""One run, from a machine that is on to an account of what happened.

load ── launch, compare, seal ── power on ── turns until the end ── survey, WBINVD, dump ── report
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbit.attacks.linux_launch import check
from cbit.attacks.linux_launch import launch as launch_for
from cbit.attacks.tenant import Tenant
from cbit.cli.run.console import GuestConsole
from cbit.cli.run.ending import Ending
from cbit.cli.run.keys import Keys
from cbit.cli.run.loop import CountingClock, Loop, Seat
from cbit.cli.run.place import Place
from cbit.cli.run.settings import Settings
from cbit.cli.run.terminal import Keyboard, ending_signals
from cbit.cli.run.watch import watching
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.devices.chipset import Chipset
from cbit.hypervisor.devices.disk import Disk
from cbit.hypervisor.execution.bare_metal import LinuxHost
from cbit.hypervisor.execution.monitor import Monitor
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.linux_guest import LinuxGuest
from cbit.hypervisor.page_survey import PageSurvey
from cbit.hypervisor.survey import survey, survey_machine
from cbit.machine.board import Machine
from cbit.memory.latency import LatencyReport


@dataclass(frozen=True, slots=True)
class Account:
    """What a run came to.

    Attributes:
        endings: how each guest ended, by its name; that of one that is alone is empty.
        result: what programs read.
    """

    endings: dict[str, Ending]
    result: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a run needs of the world.

    Attributes:
        consoles: where each guest prints.
        keyboard: who types.
        keys: hands on what is typed.
        say: takes what a person should know before the guest starts.
        seconds: since some moment; for the time-out and for what took how long.
        cpu_seconds: since some moment, of this process's own time.
        timeout: None: for ever.
        epoch: seconds since 1970, for the guest's clock.
    """

    consoles: Sequence[GuestConsole]
    keyboard: Keyboard
    keys: Keys
    say: Callable[[str], None]
    seconds: Callable[[], float] = time.monotonic
    cpu_seconds: Callable[[], float] = time.process_time
    timeout: float | None = None
    epoch: int


def launch(
    host: Host, place: Place, settings: Settings, *, entropy: Entropy, share_with: LinuxGuest | None = None
) -> tuple[LinuxGuest, dict[str, Any] | None]:
    """Load a guest; with SEV, let its owner open a session, compare the measurement and seal the secret.

    Returns:
        The guest, not yet powered on, and what the launch came to.

    Raises:
        Untrusted, BadMeasurement, FirmwareError, OutOfMemory: it is not launched, or not as the owner wants.
    """
    if settings.protection is not Protection.SEV:
        return LinuxGuest(host, settings.image, protection=settings.protection), None
    owner, own = Tenant.beside(place.state, policy=settings.policy), settings.launch
    sharing = share_with.sev if share_with else None
    measuring, guest = launch_for(host, settings.image, owner, entropy=entropy, share_with=sharing)
    try:
        trusted = check(owner, measuring, guest, own)
        if settings.secret:
            guest.inject(*trusted.seal(settings.secret, entropy=entropy))
    except BaseException:
        guest.end()
        raise
    receipt = guest.receipt
    assert receipt is not None
    return guest, {
        "digest": own.expectation().digest.hex(),
        "measure": receipt.measure.hex(),
        "nonce": receipt.mnonce.hex(),
        "policy": receipt.policy,
        "api": str(receipt.api),
        "build": receipt.build,
        "verdict": "trusted",
        "secret_injected": bool(settings.secret),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Software at its first instruction, whether a guest's or the machine's own.

    Attributes:
        settings: what it was to be.
        monitor: what runs it.
        exits: gives how often it needed somebody, by what for.
        survey: looks at its pages.
        asid: what tags its accesses; 0 without a hypervisor.
        launched: what a launch came to.
        new_identity: why the platform's identity is another one than before; empty: it is not.
    """

    settings: Settings
    monitor: Monitor
    exits: Callable[[], dict[str, int]]
    survey: Callable[[], PageSurvey]
    asid: int = 0
    launched: dict[str, Any] | None = None
    new_identity: str = ""

    @property
    def chipset(self) -> Chipset:
        """What surrounds it."""
        devices = self.monitor.devices
        assert isinstance(devices, Chipset)
        return devices


Disks = Sequence[Sequence[Disk]]


@contextmanager
def started(
    place: Place, guests: Sequence[Settings], *, entropy: Entropy, outside: Outside, disks: Disks
) -> Iterator[list[Started]]:
    """Start what is to run, for the time of the block (errors as `run_software`)."""
    machine, epoch = place.machine, outside.epoch
    if guests[0].protection is Protection.SME:
        linux = LinuxHost(machine, guests[0].image, outside.consoles[0], epoch=epoch, disks=disks[0])
        yield [
            Started(
                settings=guests[0],
                monitor=linux.monitor,
                exits=lambda: linux.exits,
                survey=lambda: survey_machine(machine),
            )
        ]
        return
    host = Host(machine)
    if damage := host.initialise() or place.lost:
        outside.say(
            f"{damage}; the platform has made itself a new identity: what was sealed for the old is void"
        )
    launched: dict[str, LinuxGuest] = {}
    with ExitStack() as stack:
        running = []
        for settings, console, its_disks in zip(guests, outside.consoles, disks, strict=True):
            guest, what = launch(
                host, place, settings, entropy=entropy, share_with=launched.get(settings.shares)
            )
            stack.callback(guest.end)
            launched[settings.name] = guest
            monitor = guest.power_on(console, epoch=epoch, disks=its_disks)
            running.append(_as_guest(settings, guest, monitor, what, damage))
        yield running


def _as_guest(
    settings: Settings, guest: LinuxGuest, monitor: Monitor, launched: dict[str, Any] | None, damage: str
) -> Started:
    return Started(
        settings=settings,
        monitor=monitor,
        exits=lambda: guest.exits,
        survey=lambda: survey(guest.vm),
        asid=guest.vm.asid,
        launched=launched,
        new_identity=damage,
    )


def run_software(
    place: Place,
    guests: Sequence[Settings],
    *,
    entropy: Entropy,
    outside: Outside,
    disks: Disks,
    dump: Path | None = None,
) -> Account:
    """Run one kernel on a machine, or several guests in turn, until each has ended, and give an account.

    Raises:
        NoEngine, EngineFault: guests do not execute here, or the engine failed.
        Untrusted, BadMeasurement, FirmwareError, NoAsid, OutOfMemory: as `launch`.
    """
    machine, begun, cpu_begun = place.machine, outside.seconds(), outside.cpu_seconds()
    with started(place, guests, entropy=entropy, outside=outside, disks=disks) as running:
        result: dict[str, Any] = {
            "profile": machine.profile.name,
            "cache_size": machine.memory.capacity,
            "c_bit": {
                "guest": machine.cores[0].guest_features.c_bit,
                "profile": machine.profile.features.c_bit,
            },
            "new_identity": running[0].new_identity or None,
            "launch_seconds": round(outside.seconds() - begun, 3),
        }
        for each in running:
            for line in beginning(result, each):
                outside.say(line)
        seats, used = _execute(machine, running, outside)
        result |= used | {"cpu_seconds": round(outside.cpu_seconds() - cpu_begun, 3)}
        described = [_describe(each, seat) for each, seat in zip(running, seats, strict=True)]
        result |= _pages(machine, running, described, dump)
    # One guest's account is the run's; of several, each has its own beside it.
    result |= described[0] if len(described) == 1 else {"guests": described}
    endings = {each.name: seat.ending for each, seat in zip(guests, seats, strict=True) if seat.ending}
    return Account(endings, result)


def beginning(result: dict[str, Any], guest: Started) -> Iterator[str]:
    """Say what begins to run, and what its owner found."""
    c_bit, launched, settings = result["c_bit"], guest.launched, guest.settings
    mine = f"{settings.name}: " if settings.name else ""
    memory, mode = settings.image.memory_size >> 20, settings.protection
    who = f"guest with ASID {guest.asid}" if guest.asid else "host"
    line = f"{mine}{result['profile']}, {memory} MiB, mode {mode}: a Linux as {who}"
    if mode != Protection.NONE:
        line += f"; its C-bit is {c_bit['guest']}, the profile's {c_bit['profile']}"
    yield line + (f"; it shares {settings.shares}'s memory key" if settings.shares else "")
    if launched is not None:
        yield f"{mine}owner: launch digest of its own copies {launched['digest']}"
        yield f"{mine}owner: measurement {launched['measure']}: it matches"
        if launched["secret_injected"]:
            yield f"{mine}owner: secret sealed for this launch, injected by LAUNCH_SECRET"


def _execute(
    machine: Machine, running: Sequence[Started], outside: Outside
) -> tuple[list[Seat], dict[str, Any]]:
    """Give turns until the end; return what the machine did meanwhile beside what each guest came to."""
    clock, seats, engine = CountingClock(machine.cores[0]), [], machine.cores[0].engine
    for each, console in zip(running, outside.consoles, strict=True):
        each.monitor.clock = clock
        seats.append(seat := Seat(each.monitor, console, serial=each.chipset.serial))
        # What comes through a pipe would be lost on a kernel that starts.
        if not outside.keyboard.is_terminal:
            console.hold = seat.deaf
    memory, before = machine.memory, machine.controller.counts.report()

    def meter() -> Counter[str]:
        return Counter(executed_blocks=clock.executed, fills=memory.fills, evictions=memory.evictions)

    loop = Loop(
        seats,
        clock,
        keys=outside.keys,
        meter=meter,
        seconds=outside.seconds,
        engine=engine,
        timeout=outside.timeout,
    )
    counted, begun, from_ns = meter(), outside.seconds(), clock.ns
    keyboard = outside.keyboard
    with (
        ending_signals(loop.interrupt, restore=lambda: keyboard.restore(at_once=True)),
        keyboard.raw(),
        watching(engine.interrupt, keyboard=keyboard, timeout=outside.timeout),
        _settled_objects(),
    ):
        loop.run()
        for console in outside.consoles:
            console.flush()
    return seats, {
        "seconds": round(outside.seconds() - begun, 3),
        "guest_seconds": round((clock.ns - from_ns) / 1e9, 6),
        **{name: count - counted[name] for name, count in meter().items()},
        "latency": _latency(before, machine.controller.counts.report()),
    }


def _describe(guest: Started, seat: Seat) -> dict[str, Any]:
    settings, ending, exits, ports = guest.settings, seat.ending, guest.monitor.exits, guest.chipset.ports
    assert ending is not None, "a run ends when each guest has"
    return {
        **({"name": settings.name, "shares": settings.shares} if settings.name else {}),
        "mode": str(settings.protection),
        "memory_size": settings.image.memory_size,
        "command_line": settings.command_line,
        "asid": guest.asid,
        "launch": guest.launched,
        "end": str(ending.end),
        "why": ending.why,
        **{name: seat.used[name] for name in ("executed_blocks", "fills", "evictions")},
        "halts": guest.monitor.halts,
        "exits": guest.exits(),
        "unknown_msrs": {hex(number): count for number, count in sorted(exits.unknown_msrs.items())},
        "refused_string_io": {hex(port): count for port, count in sorted(exits.refused_strings.items())},
        "unassigned_ports": {hex(port): count for port, count in sorted(ports.unassigned.items())},
        "console": seat.console.lines,
    }


@contextmanager
def _settled_objects() -> Iterator[None]:
    """Leave what is there alone: each search for garbage would go through all of it, and find none."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _latency(before: LatencyReport, after: LatencyReport) -> dict[str, Any]:
    names = ("reads_encrypted_lines", "reads_plain_lines", "writes_encrypted_lines", "writes_plain_lines")
    moved = {name: getattr(after, name) - getattr(before, name) for name in names}
    return moved | {"extra_ns": after.extra_ns - before.extra_ns, "source": after.source}


def _pages(
    machine: Machine, running: Sequence[Started], described: list[dict[str, Any]], dump: Path | None
) -> dict[str, Any]:
    """Survey the pages as they are, and only then write the caches back for a dump."""
    seen, flushed, error = [each.survey() for each in running], 0, ""
    if dump is not None:
        flushed = machine.wbinvd_on_all_cores()
        try:
            machine.probe.dump(dump)
        except OSError as failed:  # the account of the run is worth no less for it
            error = f"{dump}: {failed.strerror}"
    for guest, pages in zip(described, seen, strict=True):
        guest["pages"] = dataclasses.replace(pages, flushed=flushed).as_json()
    if dump is None:
        return {"dump": None}
    return {"dump": {"file": str(dump), "flushed": flushed, "error": error or None}}
