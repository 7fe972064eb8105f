"""What a program finds is data, and data that contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cbit.redirect.files import (
    SEV,
    SEV_GUEST,
    SEV_ISSUE_CMD,
    DeviceFile,
    Files,
    Kvm,
    TextFile,
    gaps,
    nearest,
    sev_files,
)
from cbit.redirect.kvm_requests import KVM, KVM_VCPU, KVM_VM, REQUESTS, TYPE, requests_on


def test_a_host_shows_the_device_and_the_parameters() -> None:
    files = sev_files()
    assert (SEV,) == files.served
    assert (SEV_ISSUE_CMD,) == files.requests
    assert {"sev": b"Y\n", "sev_es": b"N\n", "sev_snp": b"N\n"} == {
        text.path.rpartition("/")[2]: text.content for text in files.texts
    }


def test_what_is_switched_on_says_so() -> None:
    files = sev_files(es=True, snp=True, kvm=Kvm.HOST, guest=True)
    assert (SEV, SEV_GUEST, KVM_VM) == files.served
    assert {b"Y\n"} == {text.content for text in files.texts}
    assert 9 == len(files.requests)


def test_a_supplied_kvm_has_a_device_and_gives_the_rest_out() -> None:
    files = sev_files(kvm=Kvm.SUPPLIED)
    assert (SEV, KVM, KVM_VM, KVM_VCPU) == files.served
    assert {SEV_ISSUE_CMD, *REQUESTS} == set(files.requests)
    assert (TYPE,) == files.types
    assert {TYPE} == {request >> 8 & 0xFF for request in REQUESTS}
    assert set(REQUESTS) == {request for link in (KVM, KVM_VM, KVM_VCPU) for request in requests_on(link)}
    assert not files.foreign


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (lambda: Files((DeviceFile("/dev/a", ()),), (TextFile("/dev/a", b""),)), "twice"),
        (lambda: Files((DeviceFile("/dev/a", ()), DeviceFile("/dev/b", ()))), "stand-in"),
        (lambda: Files((), (TextFile("a", b""),)), "absolute"),
        (lambda: Files((), (TextFile("/a/../b", b""),)), "normal"),
        (lambda: Files((), (TextFile("/a/", b""),)), "normal"),
    ],
)
def test_what_contradicts_itself_is_refused(files: Callable[[], Files], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        files()


def test_missing_directories_lead_to_the_nearest_that_is_there() -> None:
    path = "/proc/self/no/such/file"
    assert "/proc/self" == nearest(path)
    assert ["/proc/self/no/such", "/proc/self/no"] == list(gaps(path, "/proc/self"))
    files = Files((), (TextFile(path, b""),))
    assert {"/proc/self/no/such": "/proc/self", "/proc/self/no": "/proc/self"} == files.missing_directories()
