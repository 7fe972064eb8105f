"""The small image for machines without OVMF is an honest image: it announces, halts and measures."""

from __future__ import annotations

import hashlib

from cbit.cli.page_map import entropies
from cbit.guest import generated_firmware
from cbit.guest.generated_firmware import AP_RESET_EIP, HASH_AREA, SECRET_AREA, SIZE, generate
from cbit.owner.measure import Kernel, expect_sev
from cbit.spec import firmware_table, kernel_hashes
from cbit.spec.address import PAGE
from cbit.spec.firmware_table import Area


def test_it_is_the_same_every_time_and_says_what_it_is() -> None:
    image = generate()
    assert image == generate()
    assert len(image) == SIZE
    assert b"cbit's own test firmware: not OVMF" in image


def test_it_announces_where_things_go() -> None:
    table = firmware_table.parse(generate())
    assert Area(*SECRET_AREA) == table.secret_area
    assert Area(*HASH_AREA) == table.hash_area
    assert table.ap_reset == AP_RESET_EIP
    assert table.hash_area.size >= kernel_hashes.TABLE_SIZE
    assert SECRET_AREA[0] + SECRET_AREA[1] <= HASH_AREA[0]  # side by side, in one page
    assert SECRET_AREA[0] // PAGE == HASH_AREA[0] // PAGE


def test_its_reset_vector_halts_for_ever() -> None:
    assert generate()[-16:][:3] == bytes.fromhex("f4ebfd")  # hlt; jmp to it


def test_its_owner_can_measure_it_with_and_without_a_kernel() -> None:
    image = generate()
    assert hashlib.sha256(image).digest() == expect_sev(image).digest
    assert expect_sev(image).digest != expect_sev(image, kernel=Kernel(kernel=b"kernel")).digest


def test_its_picture_has_both_kinds_of_page() -> None:
    bits = entropies(generate())
    assert 0 in bits
    assert any(3 < value < 6 for value in bits)
    assert generated_firmware.SIZE == len(bits) * PAGE
