from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from cbit.spec.kernel_hash_table import KernelHashTable
from cbit.spec.kernel_hashes import kernel_hash_table


@given(st.binary(max_size=40), st.binary(max_size=40), st.text(st.characters(codec="utf-8"), max_size=40))
def test_hashes_and_files_give_the_same_table(kernel: bytes, initrd: bytes, cmdline: str) -> None:
    table = KernelHashTable(
        cmdline_hash=hashlib.sha256(cmdline.encode() + b"\x00").digest(),
        initrd_hash=hashlib.sha256(initrd).digest(),
        kernel_hash=hashlib.sha256(kernel).digest(),
    )
    assert kernel_hash_table(kernel=kernel, initrd=initrd, cmdline=cmdline) == bytes(table)
