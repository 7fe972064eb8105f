"""What VMRUN insists on, and what it does not care about (memory-encryption.md §8 rules 1-5)."""

from __future__ import annotations

from typing import Any

import pytest

from cbit.cpu.control import Cr0, Cr4, Efer, PagingMode
from cbit.cpu.cpuid import MODELLED, Encryption, EncryptionFeatures
from cbit.cpu.faults import ExitCode, GeneralProtection, InvalidOpcode, VmexitInvalid
from cbit.cpu.msr import Hwcr, Msr, SevStatus, Syscfg
from cbit.cpu.tlb import VmMode
from cbit.cpu.vmcb import CLEAN_ASID, Enable, Vmcb
from cbit.spec.address import Gva, Spa
from cbit.spec.errors import NotModelled
from cbit.spec.key_id import HOST, UNENCRYPTED, guest
from cpu.worlds import ALICE, BOB, MILAN, NAPLES, World, guest_vmcb

SEV = Enable.NP_ENABLE | Enable.SEV
PLAIN = Enable.NP_ENABLE


@pytest.fixture
def world() -> World:
    world = World()
    world.boot()
    return world


def refused(world: World, why: str, **changes: Any) -> None:
    """VMRUN answers VMEXIT_INVALID, tells the VMCB, and nothing else happens."""
    nested = world.nested()
    page = world.vmcb(guest_vmcb(nested, **changes))
    before = world.core.tlb.snapshot().keys()
    with pytest.raises(VmexitInvalid, match=why):
        world.core.vmrun(page)
    assert ExitCode.INVALID == world.stored(page).exit_code == (1 << 64) - 1
    assert 0 == world.core.asid
    assert before <= world.core.tlb.snapshot().keys()


def accepted(world: World, **changes: Any) -> None:
    with world.run(world.nested(), **changes) as view:
        assert view.running


@pytest.mark.parametrize("features", [NAPLES, MILAN])
def test_checklist_12_vmrun_rejects_bad_asids(features: EncryptionFeatures) -> None:
    world = World(features=features)
    world.boot()
    refused(world, "ASID 0", asid=0)
    refused(world, "encrypted guests have", asid=features.guests + 1)
    refused(world, "without SEV-ES", asid=features.min_sev_no_es_asid - 1)
    accepted(world, asid=features.min_sev_no_es_asid)
    accepted(world, asid=features.guests)


def test_ordinary_guests_use_any_asid_but_the_hosts(world: World) -> None:
    accepted(world, asid=NAPLES.guests + 1, enable=PLAIN)
    accepted(world, asid=1, enable=PLAIN)
    accepted(world, asid=NAPLES.asids - 1, enable=PLAIN)
    refused(world, "this part has", asid=NAPLES.asids, enable=PLAIN)
    refused(world, "ASID 0", asid=0, enable=PLAIN)


def test_sev_es_guests_may_have_the_low_asids_and_are_not_modelled(world: World) -> None:
    nested = world.nested()
    with pytest.raises(NotModelled, match="SEV-ES guests"):  # not VMEXIT_INVALID: the ASID is good
        world.run(nested, asid=1, enable=SEV | Enable.SEV_ES)
    refused(world, "encrypted guests have", asid=16, enable=SEV | Enable.SEV_ES)
    with pytest.raises(NotModelled, match="without SEV"):
        world.run(nested, asid=1, enable=PLAIN | Enable.SEV_ES)


def test_sev_needs_nested_paging(world: World) -> None:
    refused(world, "nested paging", enable=Enable.SEV)
    with pytest.raises(NotModelled, match="without nested paging"):
        world.run(world.nested(), enable=Enable(0))


def test_sev_needs_smm_lock() -> None:
    world = World()
    world.boot()
    unlocked = World()
    unlocked.encrypt()
    host = unlocked.host_builder()
    host.map(0, 0, shift=21)
    host.map(1 << 21, 1 << 21, shift=21)
    unlocked.enter(host)
    unlocked.core.wrmsr(Msr.EFER, unlocked.core.rdmsr(Msr.EFER) | Efer.SVME)
    refused(unlocked, "SmmLock")
    accepted(unlocked, enable=PLAIN)
    unlocked.core.wrmsr(Msr.HWCR, Hwcr.SMM_LOCK)
    accepted(unlocked)
    accepted(world)


def test_sev_guests_run_from_a_64_bit_host_only() -> None:
    for supports, expected in ((MODELLED, VmexitInvalid), (MODELLED & ~Encryption.HOST_64_BIT, NotModelled)):
        features = EncryptionFeatures(
            c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5, supports=supports
        )
        world = World(features=features)
        world.encrypt()
        host = world.host_builder(PagingMode.PAE)
        host.map(0, 0, shift=21)
        host.map(1 << 21, 1 << 21, shift=21)
        world.enter(host)
        world.core.wrmsr(Msr.EFER, Efer.SVME | Efer.NXE)
        world.core.wrmsr(Msr.HWCR, Hwcr.SMM_LOCK)
        page = world.vmcb(guest_vmcb(host))
        with pytest.raises(expected, match=r"64-bit host|outside long mode"):
            world.core.vmrun(page)


def test_without_encryption_the_sev_bits_are_ignored() -> None:
    world = World()
    world.boot(encrypted=False)
    nested = world.nested()
    nested.map(0x5000, 0x2000)
    with world.run(nested, asid=1000, enable=SEV | Enable.VTE | Enable.SEV_ES) as view:
        assert VmMode.PLAIN is view.mode
        assert 0 == view.rdmsr(Msr.SEV_STATUS)
        view.write(Gva(0x5000), b"plain")
    assert b"plain" == world.memory.read(Spa(0x2000), 5, UNENCRYPTED)


def test_an_asid_without_a_key_in_place_is_refused() -> None:
    """The secure processor's INVALID_ASID bitmap (§8 rule 7)."""
    good = {ALICE}
    world = World(usable=good.__contains__)
    world.boot()
    accepted(world, asid=ALICE)
    refused(world, "no usable key", asid=BOB)
    good.add(BOB)
    accepted(world, asid=BOB)
    good.clear()
    refused(world, "no usable key", asid=BOB)
    accepted(world, asid=BOB, enable=PLAIN)  # an ordinary guest uses no key


def test_a_part_without_sev_runs_no_sev_guest() -> None:
    features = EncryptionFeatures(
        c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5, supports=Encryption.SME
    )
    world = World(features=features)
    world.boot()
    refused(world, "no SEV")
    accepted(world, enable=PLAIN)
    with world.run(world.nested(), enable=PLAIN) as view, pytest.raises(GeneralProtection):
        view.rdmsr(Msr.SEV_STATUS)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("VMRUN intercept", {"intercept_svm": 0}),
        ("EFER.SVME", {"efer": 0}),
        ("without protected mode", {"cr0": int(Cr0.PG)}),
        ("CR0 has bits", {"cr0": 1 << 32}),
        ("without PAE", {"cr0": int(Cr0.PG | Cr0.PE), "efer": int(Efer.SVME | Efer.LME)}),
        (
            "CR3",
            {
                "cr0": int(Cr0.PG | Cr0.PE),
                "efer": int(Efer.SVME | Efer.LME),
                "cr4": int(Cr4.PAE),
                "cr3": 1 << 48,
            },
        ),
        ("nCR3", {"ncr3": 1 << 43}),
        ("nCR3", {"ncr3": 1 << 52}),
    ],
)
def test_an_illegal_guest_state_is_refused(world: World, why: str, changes: dict[str, Any]) -> None:
    refused(world, why, **changes)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("0x90 bits 0x8", {"enable": SEV | 1 << 3}),
        ("0x90 bits 0x8000000000000000", {"enable": SEV | 1 << 63}),
        ("event injection", {"event_injection": 1 << 31}),
        ("LA57", {"cr0": int(Cr0.PG | Cr0.PE), "cr4": int(Cr4.LA57)}),
    ],
)
def test_what_the_model_cannot_run_says_so(world: World, why: str, changes: dict[str, Any]) -> None:
    page = world.vmcb(guest_vmcb(world.nested(), **changes))
    with pytest.raises(NotModelled, match=why):
        world.core.vmrun(page)
    assert 0 == world.core.asid


def test_vte_on_a_part_without_it_says_so() -> None:
    features = EncryptionFeatures(
        c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5, supports=MODELLED & ~Encryption.VTE
    )
    world = World(features=features)
    world.boot()
    with pytest.raises(NotModelled, match="VTE"):
        world.run(world.nested(), enable=SEV | Enable.VTE)


def test_vmrun_needs_svm_and_a_page(world: World) -> None:
    nested = world.nested()
    page = world.vmcb(guest_vmcb(nested))
    for bad in (page + 8, page | 1 << 44, page | 1 << 52):
        with pytest.raises(GeneralProtection, match="VMCB address"):
            world.core.vmrun(bad)
    world.core.wrmsr(Msr.EFER, world.core.rdmsr(Msr.EFER) & ~Efer.SVME)
    with pytest.raises(InvalidOpcode):
        world.core.vmrun(page)


def test_the_c_bit_of_the_vmcbs_address_chooses_the_key(world: World) -> None:
    """§3 rule 8: hardware's own accesses obey the C-bit of the address that software gave."""
    nested = world.nested()
    page = world.new_page()
    world.memory.write(Spa(page), bytes(guest_vmcb(nested, rip=0x77)), HOST)
    world.memory.wbinvd()
    with pytest.raises(VmexitInvalid):  # read without the key it is garbage
        world.core.vmrun(page)
    world.memory.write(Spa(page), bytes(guest_vmcb(nested, rip=0x77)), HOST)
    with world.core.vmrun(page | 1 << 47):
        pass
    raw = world.memory.read(Spa(page), 4096, HOST)
    assert (0x77, ExitCode.INTR) == (Vmcb.parse(raw).rip, Vmcb.parse(raw).exit_code)


def test_vmexit_writes_its_own_fields_and_no_other_byte(world: World) -> None:
    nested = world.nested()
    page = world.vmcb(guest_vmcb(nested))
    raw = bytearray(world.memory.read(Spa(page), 4096, UNENCRYPTED))
    known = {b for field in Vmcb.FIELDS.values() for b in range(field.offset, field.end)}
    for offset in set(range(4096)) - known:
        raw[offset] = 0xA5
    world.memory.write(Spa(page), bytes(raw), UNENCRYPTED)
    with world.core.vmrun(page) as view:
        view.vmexit(ExitCode.VMMCALL, exit_info_1=1, exit_info_2=2)
    after = world.memory.read(Spa(page), 4096, UNENCRYPTED)
    changed = {offset for offset in range(4096) if raw[offset] != after[offset]}
    exit_fields = {*range(0x70, 0x88)}
    assert changed <= exit_fields
    assert (0x81, 1, 2) == (
        world.stored(page).exit_code,
        world.stored(page).exit_info_1,
        world.stored(page).exit_info_2,
    )


def test_the_layout_is_the_papers() -> None:
    expected = {
        "asid": 0x58, "tlb_control": 0x5C, "exit_code": 0x70, "exit_info_1": 0x78, "exit_info_2": 0x80,
        "enable": 0x90, "event_injection": 0xA8, "ncr3": 0xB0, "clean": 0xC0, "cpl": 0x4CB, "efer": 0x4D0,
        "cr4": 0x548, "cr3": 0x550, "cr0": 0x558, "rflags": 0x570, "rip": 0x578, "rsp": 0x5D8, "rax": 0x5F8,
        "cr2": 0x640, "g_pat": 0x668, "intercept_svm": 0x10,
    }  # fmt: skip
    assert expected == {name: field.offset for name, field in Vmcb.FIELDS.items()}


# --- whose ASID


def test_checklist_13_changing_the_asid_at_run_time_is_accepted_and_uses_the_other_key(world: World) -> None:
    """The hardware does not remember which VMCB owns an ASID (§8 rule 5); the guest reads garbage (§4.5)."""
    nested = world.nested()
    nested.map(0x5000, 0x2000)
    page = world.vmcb(guest_vmcb(nested, asid=ALICE))
    with world.core.vmrun(page) as view:
        view.write(Gva(0x5000), b"Alice's secret")
    world.core.wbinvd()
    world.core.write(page + 0x58, BOB.to_bytes(4, "little"))  # type: ignore[arg-type]  # identity mapping
    with world.core.vmrun(page) as view:
        assert BOB == view.asid == world.core.asid
        assert b"Alice's secret" != view.read(Gva(0x5000), 14)
    world.core.write(page + 0x58, ALICE.to_bytes(4, "little"))  # type: ignore[arg-type]  # identity mapping
    with world.core.vmrun(page) as view:
        assert b"Alice's secret" == view.read(Gva(0x5000), 14)


def test_the_sev_bit_can_be_flipped_at_run_time_too(world: World) -> None:
    nested = world.nested()
    nested.map(0x5000, 0x2000)
    page = world.vmcb(guest_vmcb(nested, enable=PLAIN))
    with world.core.vmrun(page) as view:
        assert (VmMode.PLAIN, 0) == (view.mode, view.rdmsr(Msr.SEV_STATUS))
        view.write(Gva(0x5000), b"plain")
    world.core.write(page + 0x90, bytes([SEV]))  # type: ignore[arg-type]  # identity mapping
    with world.core.vmrun(page) as view:
        assert (VmMode.SEV, SevStatus.SEV) == (view.mode, view.rdmsr(Msr.SEV_STATUS))
        assert b"plain" != view.read(Gva(0x5000), 5)


@pytest.mark.parametrize("clean", [0, CLEAN_ASID])
def test_a_clean_asid_is_not_reloaded(world: World, clean: int) -> None:
    """Clearing clean bit 2 is what makes a core look at VMCB.ASID again (§8 rule 5)."""
    nested = world.nested()
    page = world.vmcb(guest_vmcb(nested, asid=ALICE))
    with world.core.vmrun(page):
        pass
    world.vmcb(guest_vmcb(nested, asid=BOB, clean=clean), at=page)
    with world.core.vmrun(page) as view:
        assert (ALICE if clean else BOB) == view.asid
    other = world.vmcb(guest_vmcb(nested, asid=BOB, clean=clean))
    with world.core.vmrun(other) as view:
        assert BOB == view.asid  # a VMCB that this core has not just run is always read


# --- SEV_STATUS


def test_sev_status_is_the_guests_to_read_and_nobodys_to_write(world: World) -> None:
    assert 0 == world.core.rdmsr(Msr.SEV_STATUS)
    with pytest.raises(GeneralProtection):
        world.core.wrmsr(Msr.SEV_STATUS, 1)
    with world.run(world.nested()) as view:
        assert SevStatus.SEV == view.rdmsr(Msr.SEV_STATUS)
        with pytest.raises(GeneralProtection, match="read-only"):
            view.wrmsr(Msr.SEV_STATUS, 0)
        with pytest.raises(NotModelled):
            view.rdmsr(Msr.EFER)
        with pytest.raises(NotModelled):
            view.wrmsr(Msr.EFER, 0)
    assert 0 == world.core.rdmsr(Msr.SEV_STATUS)


def test_the_guests_control_registers_are_saved(world: World) -> None:
    nested = world.nested()
    tables = world.guest_tables(PagingMode.LONG, nested=nested, asid=ALICE)
    page = world.vmcb(guest_vmcb(nested, tables))
    with world.core.vmrun(page) as view:
        view.mov_cr3(0x9000)
        with pytest.raises(GeneralProtection):
            view.mov_cr3(1 << 50)
    assert 0x9000 == world.stored(page).cr3
    assert guest(ALICE) == ALICE
    assert Syscfg.MEM_ENCRYPTION_MOD_EN == 1 << 23
