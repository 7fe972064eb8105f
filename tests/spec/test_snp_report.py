"""The words of an SNP report: processors, TCB versions, policies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.errors import NotModelled, WireError
from cbit.spec.policy import ApiVersion
from cbit.spec.snp_report import Product, SnpPolicy, SnpPolicyFlag, TcbVersion, product_of


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x10, Product.GENOA),
        (0x19, 0x1F, Product.GENOA),
        (0x19, 0xA0, Product.GENOA),
        (0x19, 0xAF, Product.GENOA),
        (0x1A, 0x00, Product.TURIN),
        (0x1A, 0x11, Product.TURIN),
    ],
)
def test_a_processor_belongs_to_a_product(family: int, model: int, product: Product) -> None:
    assert product is product_of(family, model)


@pytest.mark.parametrize(
    ("family", "model"), [(0x19, 0x20), (0x19, 0xB0), (0x1A, 0x12), (0x1A, 0x90), (0x17, 0x31)]
)
def test_other_processors_are_not_modelled(family: int, model: int) -> None:
    with pytest.raises(NotModelled, match="no product"):
        product_of(family, model)


def test_a_tcb_version_is_laid_out_by_product() -> None:
    raw = bytes((1, 2, 0, 0, 0, 0, 7, 8))
    for product in (Product.MILAN, Product.GENOA):
        assert TcbVersion(boot_loader=1, tee=2, snp=7, microcode=8) == TcbVersion.parse(raw, product)
    turin = TcbVersion.parse(bytes((1, 2, 3, 4, 0, 0, 0, 8)), Product.TURIN)
    assert {"fmc": 1, "boot_loader": 2, "tee": 3, "snp": 4, "microcode": 8} == turin.components()
    assert "fmc 1, boot_loader 2, tee 3, snp 4, microcode 8" == str(turin)
    for bad in (raw[:7], raw + b"\0", bytes((1, 2, 3, 0, 0, 0, 7, 8))):
        with pytest.raises(WireError):
            TcbVersion.parse(bad, Product.MILAN)
    with pytest.raises(WireError, match="byte 6 is reserved on Turin"):
        TcbVersion.parse(raw, Product.TURIN)


@given(st.integers(0, (1 << 64) - 1))
def test_a_policy_keeps_every_bit(word: int) -> None:
    assert word == int(SnpPolicy.of(word))


def test_the_bits_of_a_policy() -> None:
    policy = SnpPolicy.of(0x3FF_0137)
    assert ApiVersion(1, 0x37) == policy.min_abi
    assert set(SnpPolicyFlag) == {flag for flag in SnpPolicyFlag if flag in policy.flags}
    assert [] == list(policy.problems())
    assert SnpPolicyFlag.DEBUG in SnpPolicy.of(1 << 19).flags
    assert "0xb0000 (SMT|MUST_BE_ONE|DEBUG, ABI >= 0.0)" == str(SnpPolicy.of(0xB0000))
