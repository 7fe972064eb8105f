from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.address import strip_c_bit
from cbit.spec.key_id import HOST, UNENCRYPTED, guest


@given(st.integers(0, (1 << 64) - 1), st.integers(32, 63))
def test_the_c_bit_is_taken_off_and_told(address: int, position: int) -> None:
    stripped, private = strip_c_bit(address, position)
    assert stripped >> position & 1 == 0
    assert stripped | private << position == address


def test_a_neighbouring_bit_is_no_c_bit() -> None:
    assert strip_c_bit(1 << 47 | 0x1000, 47) == (0x1000, True)
    assert strip_c_bit(1 << 46 | 0x1000, 47) == (1 << 46 | 0x1000, False)


@pytest.mark.parametrize("asid", [1, 15, 509, 1006, 1022])
def test_a_guests_key_id_is_its_asid(asid: int) -> None:
    assert guest(asid) == asid
    assert guest(asid) not in {UNENCRYPTED, HOST}


@pytest.mark.parametrize("asid", [-1, 0, 1023, 1024])
def test_no_guest_gets_the_hosts_key_or_none(asid: int) -> None:
    with pytest.raises(ValueError, match="selects no guest key"):
        guest(asid)
