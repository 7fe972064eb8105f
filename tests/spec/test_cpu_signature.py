from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.cpu_signature import CPUS, Cpu, name_of, signature_of


@pytest.mark.parametrize(
    ("name", "family", "model", "stepping", "signature"),
    [
        # origin = launch-inputs.md §6.1; families and models as the vendor's names go
        ("EPYC", 23, 1, 2, 0x00800F12),
        ("EPYC-Rome", 23, 49, 0, 0x00830F10),
        ("EPYC-Milan", 25, 1, 1, 0x00A00F11),
        ("EPYC-Genoa", 25, 17, 0, 0x00A10F10),
        ("EPYC-Turin", 26, 0, 0, 0x00B00F00),
    ],
)
def test_a_name_a_triple_and_a_number_are_one_signature(
    name: str, family: int, model: int, stepping: int, signature: int
) -> None:
    assert signature == Cpu(family, model, stepping).signature == CPUS[name]
    for text in (
        name,
        name.lower(),
        f"{name}-v4",
        hex(signature),
        str(signature),
        f"{family}:{model}:{stepping}",
    ):
        assert signature == signature_of(text)
    assert name in name_of(signature)


def test_a_family_below_fifteen_has_no_extension() -> None:
    assert 0x00000623 == Cpu(6, 2, 3).signature
    assert 0x00020FB1 == Cpu(15, 0x2B, 1).signature


@given(st.integers(0, 270), st.integers(0, 255), st.integers(0, 15))
def test_a_signature_is_taken_apart_again(family: int, model: int, stepping: int) -> None:
    cpu = Cpu(family, model, stepping)
    assert cpu == Cpu.of(cpu.signature)
    assert cpu.signature == signature_of(name_of(cpu.signature).split()[0])


@pytest.mark.parametrize("cpu", [Cpu(271, 0, 0), Cpu(0, 256, 0), Cpu(0, 0, 16), Cpu(-1, 0, 0)])
def test_what_no_field_holds_is_refused(cpu: Cpu) -> None:
    with pytest.raises(ValueError, match="can be written"):
        _ = cpu.signature


@pytest.mark.parametrize(
    "text", ["", "EPYC-Siena", "EPYC-v0", "host", "-1", "0x100000000", "25:1", "25:1:99"]
)
def test_what_is_no_cpu_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no CPU type|can be written"):
        signature_of(text)
