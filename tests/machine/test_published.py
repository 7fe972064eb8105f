"""The certificates in the state folder are those of the identity that the store holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cbit.hypervisor.host import Host
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.command import Command
from cbit.trace import Event
from machine.worlds import machine

NAMES = ("pdh.cert", "pek.cert", "oca.cert")


@pytest.fixture
def found(tmp_path: Path) -> Host:
    host = Host(machine(tmp_path))
    host.initialise()
    return host


def published(folder: Path) -> list[bytes]:
    return [(folder / "certs" / name).read_bytes() for name in NAMES]


def exported(host: Host) -> list[bytes]:
    chain = host.export_chain()
    return [chain[at : at + CERT_SIZE] for at in range(0, 3 * CERT_SIZE, CERT_SIZE)]


def folder_of(host: Host) -> Path:
    return host.machine._state.path


@pytest.mark.parametrize(("command", "changed"), [(Command.PEK_GEN, {0, 1, 2}), (Command.PDH_GEN, {0})])
def test_what_a_command_changes_is_published(found: Host, command: Command, changed: set[int]) -> None:
    before = published(folder_of(found))
    assert exported(found) == before
    found.ccp.issue(command)
    after = published(folder_of(found))
    assert exported(found) == after
    assert changed >= {index for index in range(3) if before[index] != after[index]} >= {0}


def test_after_a_factory_reset_there_is_none_until_the_next_init(found: Host) -> None:
    before = published(folder_of(found))
    found.ccp.issue(Command.SHUTDOWN)
    found.ccp.issue(Command.PLATFORM_RESET)
    assert not [name for name in NAMES if (folder_of(found) / "certs" / name).exists()]
    found.initialise()
    assert before != published(folder_of(found)) == exported(found)


def test_what_a_kill_left_behind_is_put_right_by_init(found: Host) -> None:
    """The store is there and the certificates are not, or are an older identity's."""
    right, certs = published(folder_of(found)), folder_of(found) / "certs"
    found.ccp.issue(Command.SHUTDOWN)
    (certs / "pdh.cert").write_bytes(bytes(CERT_SIZE))
    (certs / "pek.cert").unlink()
    found.initialise()
    assert right == published(folder_of(found)) == exported(found)
    left = os.stat(certs / "oca.cert")
    found.ccp.issue(Command.SHUTDOWN)
    found.initialise()
    assert left.st_ino == os.stat(certs / "oca.cert").st_ino, "what is right is left alone"


def test_the_manufacturers_certificates_stay(found: Host) -> None:
    names = ("ark.cert", "ask.cert", "ask_ark.cert", "cek.cert")
    before = [(folder_of(found) / "certs" / name).read_bytes() for name in names]
    found.ccp.issue(Command.PEK_GEN)
    assert before == [(folder_of(found) / "certs" / name).read_bytes() for name in names]


def test_that_they_cannot_be_written_refuses_no_command_and_is_told(found: Host) -> None:
    pdh = folder_of(found) / "certs" / "pdh.cert"
    pdh.unlink()
    pdh.mkdir()
    heard: list[Event] = []
    with found.machine.trace.watched_by(heard.append, only="machine"):
        found.ccp.issue(Command.PDH_GEN)
    assert [f"{pdh}: Is a directory: not published"] == [event.why for event in heard]
