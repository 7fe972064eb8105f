"""CPUID and model-specific registers: the paper's numbers, and who may touch what."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from cbit.cpu.control import Efer
from cbit.cpu.cpuid import MODELLED, Encryption, EncryptionFeatures, cpuid
from cbit.cpu.faults import GeneralProtection
from cbit.cpu.mitigations import Mitigations
from cbit.cpu.msr import REGISTERS, Hwcr, Msr, MsrFile, SevStatus, Syscfg
from cbit.spec.address import Hva
from cbit.spec.errors import NotModelled
from cpu.fake_memory import FakeMemory
from cpu.real_memory import real_cache
from cpu.worlds import GENOA, MILAN, NAPLES, PARTS, SIZE, World

ENCRYPTION, SIZES, SVM = 0x8000_001F, 0x8000_0008, 0x8000_000A

#: Fn8000_001F EAX as the paper lists it, bit 0 first.
BITS = (
    "SME SEV PAGE_FLUSH_MSR SEV_ES SEV_SNP VMPL RMPQUERY VMPL_SSS SECURE_TSC TSC_AUX_VIRTUALIZATION "
    "HW_ENF_CACHE_COH HOST_64_BIT RESTRICTED_INJECTION ALTERNATE_INJECTION DEBUG_VIRT PREVENT_HOST_IBS VTE "
    "VMGEXIT_PARAMETER VIRTUAL_TOM_MSR IBS_VIRT_GUEST_CTL PMC_VIRT_GUEST_CTL RMPREAD GUEST_INTERCEPT_CONTROL "
    "SEGMENTED_RMP VMSA_REG_PROT SMT_PROTECTION SECURE_AVIC ALLOWED_SEV_FEATURES SVSM_COMM_PAGE_MSR "
    "NESTED_VIRT_SNP_MSR HV_IN_USE_WR_ALLOWED IBPB_ON_ENTRY"
)


def test_every_bit_of_eax_has_its_name() -> None:
    assert {name: 1 << bit for bit, name in enumerate(BITS.split())} == {
        flag.name: flag.value for flag in Encryption
    }


@pytest.mark.parametrize(("name", "c_bit"), [("naples", 47), ("milan", 51), ("genoa", 51)])
def test_a_part_reports_its_numbers(name: str, c_bit: int) -> None:
    part = PARTS[name]
    found = cpuid(part, ENCRYPTION)
    assert c_bit == found.ebx & 0x3F
    assert part.address_reduction == found.ebx >> 6 & 0x3F
    assert 0 == found.ebx >> 12
    assert (part.guests, part.min_sev_no_es_asid) == (found.ecx, found.edx)
    assert part.coherent is bool(found.eax & Encryption.HW_ENF_CACHE_COH)
    assert 0 == found.eax & ~int(MODELLED | Encryption.HW_ENF_CACHE_COH)  # it claims nothing it has not


def test_the_address_width_is_not_reduced_by_hardware() -> None:
    """Software subtracts (§3 rule 4)."""
    assert (48, 48) == (cpuid(NAPLES, SIZES).eax & 0xFF, cpuid(MILAN, SIZES).eax & 0xFF)
    assert (52, 46) == (cpuid(GENOA, SIZES).eax & 0xFF, GENOA.reduced_bits)
    world = World()
    world.encrypt()
    assert 48 == world.core.cpuid(SIZES).eax & 0xFF


def test_asids_of_all_guests_are_in_the_svm_leaf() -> None:
    assert NAPLES.asids == cpuid(NAPLES, SVM).ebx


def test_other_leaves_are_not_guessed_at() -> None:
    with pytest.raises(NotModelled, match="0x1"):
        cpuid(NAPLES, 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"c_bit": 42}, "not above the address"),
        ({"c_bit": 52}, "not above the address"),
        ({"address_reduction": 17}, "address bits are left"),
        ({"address_reduction": -1}, "negative"),
        ({"physical_bits": 53}, "physical address bits"),
        ({"guests": 0}, "key ids"),
        ({"guests": 1023}, "key ids"),
        ({"min_sev_no_es_asid": 17}, "outside the guests' range"),
        ({"min_sev_no_es_asid": 0}, "outside the guests' range"),
        ({"asids": 15}, "more encrypted guests"),
        ({"supports": Encryption.HW_ENF_CACHE_COH}, "coherent=True"),
    ],
)
def test_impossible_parts_are_refused(change: dict[str, object], why: str) -> None:
    numbers: dict[str, object] = {"c_bit": 47, "address_reduction": 5, "guests": 15, "min_sev_no_es_asid": 5}
    with pytest.raises(ValueError, match=why):
        EncryptionFeatures(**(numbers | change))  # type: ignore[arg-type]  # names are checked by the class


# --- MSRs


@pytest.fixture
def msrs() -> MsrFile:
    return MsrFile(NAPLES)


def test_numbers_are_the_papers() -> None:
    expected = {
        "SYSCFG": 0xC001_0010, "HWCR": 0xC001_0015, "VM_HSAVE_PA": 0xC001_0117, "VMPAGE_FLUSH": 0xC001_011E,
        "GHCB": 0xC001_0130, "SEV_STATUS": 0xC001_0131, "EFER": 0xC000_0080, "PAT": 0x277,
    }  # fmt: skip
    assert expected == {msr.name: msr.value for msr in Msr}
    assert set(Msr) == set(REGISTERS)
    assert [1 << n for n in (*range(19), 23)] == [flag.value for flag in SevStatus]


@pytest.mark.parametrize("number", [0, 0xC001_0132, 0xFFFF_FFFF])
def test_unknown_registers_fault(msrs: MsrFile, number: int) -> None:
    with pytest.raises(GeneralProtection, match="no MSR"):
        msrs.rdmsr(number)
    with pytest.raises(GeneralProtection, match="no MSR"):
        msrs.wrmsr(number, 0)


@pytest.mark.parametrize(
    ("msr", "reads", "writes"),
    [
        (Msr.VMPAGE_FLUSH, False, True),
        (Msr.SEV_STATUS, True, False),
        (Msr.SYSCFG, True, True),
        (Msr.PAT, True, True),
    ],
)
def test_wrong_access_faults(msrs: MsrFile, msr: Msr, *, reads: bool, writes: bool) -> None:
    before = msrs.snapshot()
    with nullcontext() if reads else pytest.raises(GeneralProtection, match=msr.name):
        msrs.rdmsr(msr)
    with nullcontext() if writes else pytest.raises(GeneralProtection, match=msr.name):
        msrs.wrmsr(msr, 0x1000)
    assert writes or before == msrs.snapshot()


def test_the_ghcb_register_is_the_guests_and_exists_with_sev_es_only() -> None:
    part = EncryptionFeatures(
        c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5, supports=MODELLED | Encryption.SEV_ES
    )
    for features, why in ((part, "guest only"), (NAPLES, "SEV_ES")):
        with pytest.raises(GeneralProtection, match=why):
            MsrFile(features).rdmsr(Msr.GHCB)
        with pytest.raises(GeneralProtection, match=why):
            MsrFile(features).wrmsr(Msr.GHCB, 0)


def test_registers_of_missing_features_do_not_exist() -> None:
    part = EncryptionFeatures(
        c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5, supports=Encryption.SME
    )
    for msr in (Msr.VMPAGE_FLUSH, Msr.SEV_STATUS):
        with pytest.raises(GeneralProtection, match="CPUID does not report"):
            MsrFile(part).wrmsr(msr, 0)


@pytest.mark.parametrize("bit", [Syscfg.SECURE_NESTED_PAGING_EN, Syscfg.VMPL_EN])
def test_the_snp_switches_are_not_modelled(bit: Syscfg) -> None:
    world = World()
    with pytest.raises(NotModelled, match=bit.name):
        world.core.wrmsr(Msr.SYSCFG, bit | Syscfg.MEM_ENCRYPTION_MOD_EN)
    assert not world.core.encryption_on


@pytest.mark.parametrize("bit", [Efer.LMSLE, Efer.TCE, 1 << 17, 1 << 21])
def test_efer_bits_that_the_model_lacks_say_so(msrs: MsrFile, bit: int) -> None:
    with pytest.raises(NotModelled):
        msrs.wrmsr(Msr.EFER, bit)


@pytest.mark.parametrize("bit", [1 << 1, 1 << 9, 1 << 16, 1 << 63])
def test_reserved_bits_fault(msrs: MsrFile, bit: int) -> None:
    with pytest.raises(GeneralProtection, match="reserved"):
        msrs.wrmsr(Msr.EFER, bit)
    assert 0 == msrs.rdmsr(Msr.EFER)


def test_bits_without_effect_are_kept_and_traced() -> None:
    world = World()
    with world.trace.recorded() as events:
        world.core.wrmsr(Msr.SYSCFG, Syscfg.MEM_ENCRYPTION_MOD_EN | 1 << 20)
    assert Syscfg.MEM_ENCRYPTION_MOD_EN | 1 << 20 == world.core.rdmsr(Msr.SYSCFG)
    assert [1 << 20] == [event.facts["changed"] for event in events if event.part == "cpu.msr"]


def test_smm_lock_opens_at_reset_only() -> None:
    world = World()
    assert Hwcr.INVD_TO_WBINVD == world.core.rdmsr(Msr.HWCR)
    world.core.wrmsr(Msr.HWCR, Hwcr.SMM_LOCK)
    world.core.wrmsr(Msr.HWCR, 0)
    assert Hwcr.SMM_LOCK == world.core.rdmsr(Msr.HWCR)
    world.core.reset()
    assert 0 == world.core.rdmsr(Msr.HWCR) & Hwcr.SMM_LOCK


def test_the_conversion_of_invd_stays_on_whoever_writes_where_a_machine_has_it_so() -> None:
    world = World(mitigations=Mitigations(invd_stays_converted=True))
    core = world.core
    for value in (0, Hwcr.SMM_LOCK, 0):
        core.wrmsr(Msr.HWCR, value)
        assert Hwcr.INVD_TO_WBINVD & core.rdmsr(Msr.HWCR)
    assert Hwcr.SMM_LOCK & core.rdmsr(Msr.HWCR)
    core.wrmsr(Msr.HWCR, 1 << 8)  # no other bit stays
    core.wrmsr(Msr.HWCR, 0)
    assert Hwcr.SMM_LOCK | Hwcr.INVD_TO_WBINVD == core.rdmsr(Msr.HWCR)
    core.reset()
    core.wrmsr(Msr.HWCR, 0)
    assert Hwcr.INVD_TO_WBINVD == core.rdmsr(Msr.HWCR)


@pytest.mark.parametrize("stays", [False, True])
def test_invd_loses_stores_only_where_the_bit_can_be_cleared(*, stays: bool) -> None:
    world = World(memory=real_cache(), mitigations=Mitigations(invd_stays_converted=stays))
    core = world.core
    core.write(Hva(0x2000), b"old")
    core.wbinvd()
    core.write(Hva(0x2000), b"new")
    core.wrmsr(Msr.HWCR, 0)
    core.invd()
    assert (b"new" if stays else b"old") == core.read(Hva(0x2000), 3)


def test_the_host_save_area_may_carry_the_c_bit() -> None:
    world = World()
    world.encrypt()
    world.core.wrmsr(Msr.VM_HSAVE_PA, 0x5000 | 1 << 47)
    assert 0x5000 | 1 << 47 == world.core.rdmsr(Msr.VM_HSAVE_PA)
    for bad in (0x5008, 1 << 43, 1 << 52):
        with pytest.raises(GeneralProtection):
            world.core.wrmsr(Msr.VM_HSAVE_PA, bad)
    assert 0x5000 | 1 << 47 == world.core.rdmsr(Msr.VM_HSAVE_PA)


def test_a_value_has_64_bits(msrs: MsrFile) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        msrs.wrmsr(Msr.PAT, 1 << 64)


def test_encryption_cannot_be_switched_on_where_there_is_none() -> None:
    part = EncryptionFeatures(
        c_bit=47, address_reduction=5, guests=15, min_sev_no_es_asid=5, supports=Encryption(0)
    )
    with pytest.raises(NotModelled, match="without SME"):
        World(features=part, memory=FakeMemory(SIZE)).encrypt()
