"""The host: two views of memory, live pages, and what the driver does at start-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbit.cpu.faults import PageFault, WrongCoreMode
from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host
from cbit.hypervisor.vcpu import Vcpu
from cbit.secure_processor.image import BiosSettings
from cbit.spec import buffers
from cbit.spec.address import PAGE, Hva
from cbit.spec.certificate import Algo, SevCert, Usage
from cbit.spec.command import Command
from cbit.spec.policy import ApiVersion
from cbit.spec.status import Status
from hypervisor.worlds import account, launched
from machine.worlds import ALL_PROFILES, host, machine

TEXT = (b"Text of the host's own, in a page that is in use. " * 84)[:PAGE]


@pytest.mark.parametrize("profile", ALL_PROFILES)
def test_two_views_of_one_page_and_one_key(tmp_path: Path, profile: str) -> None:
    found = host(tmp_path, profile)
    page = found.frames.take_page()
    found.write(page, TEXT, c=True)
    found.flush_caches()
    raw = found.machine.probe.read(page, PAGE)
    assert raw != TEXT
    assert raw == found.read(page, PAGE)
    assert found.read(page, PAGE, c=True) == TEXT


@pytest.mark.parametrize("profile", ALL_PROFILES)
def test_a_live_page_changes_its_encryption_and_its_user_sees_nothing(tmp_path: Path, profile: str) -> None:
    found = host(tmp_path, profile)
    core, spa = found.machine.cores[0], found.frames.take_page()
    page = found.map_page(spa, c=False)
    core.write(page, TEXT)
    for private in (True, True, False, True):
        found.change_encryption(page, private=private)
        assert core.read(page, PAGE) == TEXT
        found.flush_caches()
        assert (found.machine.probe.read(spa, PAGE) == TEXT) is not private
        assert found.read(spa, PAGE, c=private) == TEXT


def test_a_live_page_mapped_anew_is_read_anew(tmp_path: Path) -> None:
    found = host(tmp_path)
    core, spa = found.machine.cores[0], found.frames.take_page()
    found.write(spa, TEXT, c=True)
    found.flush_caches()
    assert core.read(found.map_page(spa, c=False), PAGE) != TEXT
    assert core.read(found.map_page(spa, c=True), PAGE) == TEXT


def test_a_page_that_nobody_mapped_cannot_change(tmp_path: Path) -> None:
    found = host(tmp_path)
    with pytest.raises(PageFault):
        found.change_encryption(Hva(5 << 39), private=True)
    with pytest.raises(ValueError, match="4 KiB leaf"):
        found.change_encryption(Hva(PAGE), private=True)  # the direct map's own large pages stay as they are


def test_the_host_has_no_business_while_a_guest_runs(tmp_path: Path) -> None:
    found = host(tmp_path)
    guest = launched(found)
    with Vcpu(guest.vm).run(), pytest.raises(WrongCoreMode):
        found.read(found.frames.take_page(), 16)


def test_memory_lent_comes_back_even_after_a_refusal(tmp_path: Path) -> None:
    found = host(tmp_path)
    before = account(found)
    with found.lent(b"some bytes") as at, pytest.raises(FirmwareError):
        found.ccp.call(Command.GET_ID, buffers.GetId(paddr=at, length=1))
    with pytest.raises(KeyError), found.lent(b"some bytes"):
        raise KeyError
    assert before == account(found)


def test_the_chip_has_an_id_and_the_chain_a_length(tmp_path: Path) -> None:
    found = host(tmp_path)
    assert len(found.chip_id()) == 64
    assert len(found.export_chain()) == 4 * 0x824
    assert found.chip_id() == found.chip_id()


def _organisation(pek: bytes) -> tuple[bytes, bytes]:
    key, csr = ec.random_key(SeededEntropy("organisation")), SevCert.parse(pek)
    api = ApiVersion(csr.api_major, csr.api_minor)
    unsigned = sev_cert.build(usage=Usage.OCA, algo=Algo.ECDSA_SHA256, key=key.public_key(), api=api)
    oca = sev_cert.sign(unsigned, slot=1, signer=key, usage=Usage.OCA)
    return bytes(sev_cert.sign(csr, slot=1, signer=key, usage=Usage.OCA)), bytes(oca)


def test_an_organisation_takes_ownership(tmp_path: Path) -> None:
    found = host(tmp_path)
    before = account(found)
    assert found.status().owner == 0
    found.take_ownership(_organisation)
    assert found.status().owner == 1
    assert before == account(found)
    with pytest.raises(FirmwareError, match="ALREADY_OWNED"):
        found.take_ownership(_organisation)


def test_a_bad_organisation_does_not(tmp_path: Path) -> None:
    found = host(tmp_path)
    before, chain = account(found), found.export_chain()

    def forged(pek: bytes) -> tuple[bytes, bytes]:
        signed, oca = _organisation(pek)
        return signed[:0x41C] + bytes([signed[0x41C] ^ 1]) + signed[0x41D:], oca

    for wrong in (forged, lambda pek: (pek, pek), lambda pek: (b"short", _organisation(pek)[1])):
        with pytest.raises(FirmwareError):
            found.take_ownership(wrong)
    assert before == account(found)
    assert chain[:0x824] == found.export_chain()[:0x824]
    assert found.status().owner == 0


def test_init_is_refused_without_memory_encryption(tmp_path: Path) -> None:
    off = Host(machine(tmp_path, settings=BiosSettings(memory_encryption=0)))
    with pytest.raises(FirmwareError) as caught:
        off.initialise()
    assert caught.value.status == Status.HWERROR_PLATFORM
