"""The digest of a Linux that is booted without firmware: the owner's own computation of the whole layout."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from cbit.owner.errors import Unmeasurable
from cbit.owner.measure import DirectLaunch, Kernel, Mode
from cbit.spec import acpi
from cbit.spec.address import MIB
from cbit.spec.linux_boot import ACPI_BASE, SECRET_SIZE, boot_image, command_line
from cbit.testing.kernels import a_kernel

INITRD = b"initrd" * 1000


def a_launch(*, memory_size: int = 256 * MIB, **changes: Any) -> DirectLaunch:
    words = {"kernel": a_kernel(), "initrd": INITRD, "cmdline": "quiet", "kernel_name": "vmlinuz"}
    return DirectLaunch(kernel=Kernel(**(words | changes)), memory_size=memory_size)


def test_the_digest_is_that_of_the_layout_that_a_hypervisor_loads() -> None:
    image = boot_image(
        a_kernel(), INITRD, cmdline=command_line("quiet"), memory_size=256 * MIB, acpi=acpi.tables(ACPI_BASE)
    )
    loaded = b"".join(region.data for region in image.regions)
    expectation = a_launch().expectation()
    assert hashlib.sha256(loaded).digest() == expectation.digest
    assert (image.secret_gpa, SECRET_SIZE) == (expectation.secret_area.base, expectation.secret_area.size)


def test_every_part_is_named_with_its_place() -> None:
    steps = a_launch().steps()
    assert [
        *("zeros", "descriptor table", "zero page", "command line"),
        *("ACPI tables", "kernel", "initrd", "secret page"),
    ] == [step.input.what for step in steps]
    assert "SHA-256 over bytes 0x0..0xfff, at 0x0 in the guest" == steps[0].place
    assert "at 0x1000000 in the guest" in steps[5].place
    assert "vmlinuz" == steps[5].input.name
    assert [step.input for step in steps] == list(a_launch().expectation().inputs)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": a_kernel(code=b"another")},
        {"initrd": INITRD[:-1]},
        {"initrd": INITRD[:-1] + b"D"},
        {"cmdline": "quiet "},
        {"cmdline": ""},
        {"memory_size": 128 * MIB},
    ],
    ids=["kernel", "initrd shorter", "one bit of initrd", "a blank", "no command line", "memory"],
)
def test_another_input_is_another_digest(change: dict[str, Any]) -> None:
    assert a_launch().expectation().digest != a_launch(**change).expectation().digest


def test_it_is_plain_sev_and_says_what_that_does_not_prove() -> None:
    launch = a_launch()
    assert Mode.SEV is launch.mode
    assert launch.vcpus is None
    assert not launch.kernel_hashes
    assert "neither addresses nor registers" in launch.lacks()[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": b"text"}, "not a Linux kernel"),
        ({"memory_size": 16 * MIB}, "too little memory"),
        ({"cmdline": "x" * 2048}, "this kernel takes 2047"),
        ({"cmdline": "a\nb"}, "one line"),
    ],
)
def test_what_cannot_boot_cannot_be_measured(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Unmeasurable, match=words):
        a_launch(**change).expectation()
