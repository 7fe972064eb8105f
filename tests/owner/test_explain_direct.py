"""Why a direct boot measured something else: the planted cause is found, alone or with another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cbit.crypto.key import Key
from cbit.crypto.measurement import measurement
from cbit.crypto.session import TransportKeys
from cbit.owner.explain import Digest, File, Measurement, explain_direct
from cbit.owner.measure import DirectLaunch, Kernel
from cbit.spec import acpi
from cbit.spec.address import MIB
from cbit.spec.linux_boot import ACPI_BASE, boot_image, command_line
from cbit.spec.policy import ApiVersion
from cbit.spec.session import MeasureBlob
from cbit.testing.kernels import a_kernel

MINE = DirectLaunch(kernel=Kernel(kernel=a_kernel(), initrd=b"initrd", cmdline="quiet  splash"))
OLD = File("vmlinuz.old", a_kernel(code=b"older"))


def launched(
    *, memory: int = 256 * MIB, line: str = command_line("quiet  splash"), **changes: bytes
) -> bytes:
    words = {"kernel": a_kernel(), "initrd": b"initrd", "acpi": acpi.tables(ACPI_BASE)} | changes
    return boot_image(
        words["kernel"], words["initrd"], cmdline=line, memory_size=memory, acpi=words["acpi"]
    ).digest()


@pytest.mark.parametrize(
    ("digest", "causes"),
    [
        (launched(memory=512 * MIB), ("memory: the guest has 512M, not 256M",)),
        (launched(memory=384 * MIB), ("memory: the guest has 384M, not 256M",)),
        (launched(line=command_line()), ("command line: nothing was appended",)),
        (launched(line=command_line("quiet splash")), ("command line: its blanks were squeezed",)),
        (launched(line=command_line('"quiet  splash"')), ("command line: it was appended in quotes",)),
        (launched(line="quiet  splash"), ("command line: the machine's own options are not on it",)),
        (launched(initrd=b""), ("initrd: there is none",)),
        (launched(initrd=OLD.data), ("initrd: it is vmlinuz.old",)),
        (launched(kernel=OLD.data), ("kernel: it is vmlinuz.old",)),
        (launched(acpi=b""), ("ACPI tables: there are none",)),
        (launched()[::-1], ("digest: it was written with its bytes in reverse order",)),
        (
            launched(memory=128 * MIB, kernel=OLD.data),
            ("memory: the guest has 128M, not 256M", "kernel: it is vmlinuz.old"),
        ),
    ],
)
def test_the_planted_cause_is_found(digest: bytes, causes: tuple[str, ...]) -> None:
    found = explain_direct(MINE, Digest(digest), others=[OLD])
    assert (False, causes) == (found.matches, found.causes)


def test_a_digest_that_matches_needs_no_cause() -> None:
    found = explain_direct(MINE, Digest(launched()))
    assert (True, (), 1) == (found.matches, found.causes, found.tried)


def test_a_cause_that_is_none_of_the_usual_is_not_invented() -> None:
    found = explain_direct(MINE, Digest(bytes(32)), others=[OLD])
    assert (False, ()) == (found.matches, found.causes)
    assert 3 == len(found.excluded)
    assert "two of command line, memory, initrd, kernel, ACPI tables" == found.excluded[-1]


def test_time_that_is_over_is_said() -> None:
    moments = iter([0.0, *[1.0] * 5, *[99.0] * 1000])
    found = explain_direct(MINE, Digest(bytes(32)), limit_s=30, clock=lambda: next(moments))
    assert ("one cause alone",) == found.unfinished


def test_a_measurement_is_explained_too() -> None:
    keys = TransportKeys(Key(bytes(range(16))), Key(bytes(range(16, 32))))
    digest, nonce = launched(memory=512 * MIB), bytes(16)
    measure = measurement(api=ApiVersion(1, 51), build=3, policy=1, digest=digest, mnonce=nonce, tik=keys.tik)
    report = Measurement(
        keys=keys,
        blob=MeasureBlob(measure=measure, mnonce=nonce),
        api=ApiVersion(1, 51),
        build=3,
        policy=1,
    )
    assert ("memory: the guest has 512M, not 256M",) == explain_direct(MINE, report).causes
    assert ("build: the firmware's build is 3, not 4",) == explain_direct(
        replace(MINE, memory_size=512 * MIB), replace(report, build=4)
    ).causes
