"""The initial registers, built as each hypervisor does and compared field by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.owner.errors import Missing
from cbit.owner.vmsa import (
    BOOT_EIP,
    Hypervisor,
    Variant,
    Vcpus,
    differences,
    features_of,
    fields,
    read,
    recognise,
)
from cbit.spec.errors import WireError
from cbit.spec.vmsa import SevFeatures, Vmsa
from owner.worlds import VECTORS, flipped

RESET = 0x0080B004
MILAN = Vcpus(count=2, signature=0x00A00F11, variant=Variant.INIT)


def test_the_published_pages_byte_for_byte() -> None:
    first, second = ((VECTORS / "vmsa" / name).read_bytes() for name in ("vmsa0.bin", "vmsa1.bin"))
    assert [first, second] == list(MILAN.pages(RESET))
    assert [first, second, second, second] == list(replace(MILAN, count=4).pages(RESET))


def test_the_page_of_the_synthetic_launch_is_read_and_emitted() -> None:
    page = (VECTORS / "synthetic-e2e" / "case2-sev-es" / "vmsa.bin").read_bytes()
    assert page == read(page).patched(page, *Vmsa.FIELDS)


# origin = launch-inputs.md §6.1, §6.2
@pytest.mark.parametrize(
    ("hypervisor", "eip", "expected"),
    [
        ("qemu", BOOT_EIP, (0x9B, 0x93, 0x8B, 0x00A00F11, 0x0007040600070406, 0x1F80, 0x37F)),
        ("qemu", RESET, (0x9B, 0x93, 0x8B, 0x00A00F11, 0x0007040600070406, 0x1F80, 0x37F)),
        ("ec2", BOOT_EIP, (0x9A, 0x92, 0x83, 0x600, 0x0007040600070406, 0, 0)),
        ("ec2", RESET, (0x9B, 0x92, 0x83, 0x600, 0x0007040600070406, 0, 0)),
        ("ec2-rdx0", BOOT_EIP, (0x9A, 0x92, 0x83, 0, 0x0007040600070406, 0, 0)),
        ("gce", BOOT_EIP, (0x9B, 0x93, 0x8B, 0x600, 0x00070106, 0, 0)),
    ],
)
def test_where_hypervisors_differ(hypervisor: str, eip: int, expected: tuple[int, ...]) -> None:
    page = Vcpus(signature=0x00A00F11, hypervisor=Hypervisor(hypervisor)).page(eip)
    found = (page.cs.attributes, page.ss.attributes, page.tr.attributes, page.rdx, page.g_pat)
    assert expected == (*found, page.mxcsr, page.x87_fcw)


def test_the_start_is_split_between_base_and_instruction_pointer() -> None:
    page = MILAN.page(RESET)
    assert (0x00800000, 0xB004) == (page.cs.base, page.rip)
    assert (0xFFFF0000, 0xFFF0) == (MILAN.page(BOOT_EIP).cs.base, MILAN.page(BOOT_EIP).rip)


def test_variants_differ_in_the_two_fpu_words_alone() -> None:
    first, second = (bytes(replace(MILAN, variant=variant).page(RESET)) for variant in Variant)
    assert ["mxcsr", "x87_fcw"] == [difference.name for difference in differences(first, second)]
    assert [("0x0", "0x1f80"), ("0x0", "0x37f")] == [(d.first, d.second) for d in differences(first, second)]


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        (0x18, "cs.base"),
        (0x92, "tr.attributes"),
        (0x3B0, "sev_features"),
        (0x475, "xmm[0x0]"),
        (0x482, "xmm[0x10]"),
        (0xA0, "unnamed bytes 0xa0..0xc9"),
        (0xFFF, "unused[0x980]"),
    ],
)
def test_a_changed_byte_is_named(offset: int, name: str) -> None:
    page = bytes(MILAN.page(RESET))
    (found,) = differences(page, flipped(page, 8 * offset))
    assert name == found.name
    (back,) = differences(flipped(page, 8 * offset), page)
    assert (found.first, found.second) in {(back.second, back.first), ("00", back.first)}


@given(st.binary(max_size=64), st.integers(0, 8 * 4096 - 1))
def test_pages_differ_if_and_only_if_a_field_does(pattern: bytes, bit: int) -> None:
    page = (pattern * 4096).ljust(4096, b"\x00")[:4096]
    assert [] == differences(page, page)
    assert 1 == len(differences(page, flipped(page, bit)))


@pytest.mark.parametrize("size", [0, 4095, 4097])
def test_a_page_of_another_size_is_refused(size: int) -> None:
    page = bytes(MILAN.page(RESET))
    for first, second in ((bytes(size), page), (page, bytes(size))):
        with pytest.raises(WireError, match=f"{size} bytes, must be 4096"):
            differences(first, second)
    with pytest.raises(WireError):
        recognise(bytes(size))


@given(
    st.builds(
        Vcpus,
        signature=st.integers(0, (1 << 32) - 1),
        variant=st.sampled_from(Variant),
        features=st.integers(0, (1 << 64) - 1).map(SevFeatures),
        hypervisor=st.sampled_from(Hypervisor),
    ),
    st.integers(0, (1 << 32) - 1),
)
def test_an_initial_page_is_recognised(vcpus: Vcpus, eip: int) -> None:
    page = bytes(vcpus.page(eip))
    found = recognise(page)
    assert found is not None
    assert page == bytes(found[0].page(eip)), found
    assert eip == found[1]


def test_a_page_that_has_run_is_not_recognised() -> None:
    assert None is recognise(bytes(MILAN.page(RESET).replace(rax=1)))


def test_every_named_field_is_shown_once() -> None:
    names = [name for _, name, _ in fields(bytes(4096))]
    assert len(names) == len(set(names))
    assert {"cs.base", "rip", "sev_features", "x87_fcw"} <= set(names)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("0", 0),
        ("0x21", 0x21),
        ("SNP_ACTIVE", 1),
        ("snp-active|debug-swap", 0x21),
        ("DEBUG_VIRT | 0x1", 0x21),
        ("IBPB_ON_ENTRY", 1 << 21),
        ("0x8000000000000000", 1 << 63),
    ],
)
def test_features_are_numbers_and_names(text: str, word: int) -> None:
    assert word == features_of(text)


@pytest.mark.parametrize("text", ["", "SNP", "1|", "-1", "0x10000000000000000"])
def test_what_is_no_feature_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number nor one of"):
        features_of(text)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"count": 0}, "at least one"),
        ({"count": -1}, "at least one"),
        ({"signature": None}, "type of the virtual"),
    ],
)
def test_vcpus_that_cannot_be_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(MILAN, **change)


def test_a_hypervisor_that_hides_the_type_needs_none() -> None:
    assert 0x600 == Vcpus(hypervisor=Hypervisor.GCE).page(BOOT_EIP).rdx


@pytest.mark.parametrize("reset", [None, 0])
def test_several_vcpus_need_to_know_where_to_start(reset: int | None) -> None:
    with pytest.raises(Missing, match="2 vCPUs"):
        MILAN.pages(reset)
    assert 1 == len(list(replace(MILAN, count=1).pages(reset)))
