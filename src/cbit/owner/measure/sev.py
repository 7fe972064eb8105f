"""The launch digest of SEV and SEV-ES.

    LD = SHA-256( firmware image ‖ [kernel-hash table] ‖ [VMSA of vCPU 0 ‖ VMSA of vCPU 1 ‖ …] )

Nothing else is hashed: no address, no length, no separator.

Paper: launch-inputs.md §1, sev-crypto.md §8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from cbit.owner.errors import Unmeasurable
from cbit.owner.measure.image import Image
from cbit.owner.measure.inputs import Mode
from cbit.spec import kernel_hashes
from cbit.spec.vmsa import Vmsa


def digest(image: bytes, *, table: Callable[[], bytes] | None = None, vmsas: Iterable[bytes] = ()) -> bytes:
    """Hash what LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA are given.

    Args:
        image: the firmware.
        table: gives the kernel-hash table; asked only when the image is hashed.
        vmsas: the registers of each vCPU.
    """
    whole = hashlib.sha256(image)
    if table is not None:
        whole.update(table())
    for page in vmsas:
        whole.update(page)
    return whole.digest()


def launch_digest(
    firmware: bytes, kernel_hash_table: bytes | None = None, vmsas: Iterable[bytes] = ()
) -> bytes:
    """Hash the image, then the kernel-hash table if there is one, then the VMSAs if there are any.

    Raises:
        Unmeasurable: the image cannot be launched like this, so that no launch could ever give this digest.
        WireError: the image's table is malformed.
    """
    pages = tuple(vmsas)
    kernel = kernel_hash_table is not None
    reasons = list(Image(firmware).unusable(Mode.SEV_ES if pages else Mode.SEV, kernel=kernel))
    if kernel_hash_table is not None and len(kernel_hash_table) != kernel_hashes.TABLE_SIZE:
        reasons.append(
            f"a kernel-hash table of {len(kernel_hash_table)} bytes, must be {kernel_hashes.TABLE_SIZE}"
        )
    reasons += [f"a VMSA of {len(p)} bytes, must be {Vmsa.SIZE}" for p in pages if len(p) != Vmsa.SIZE]
    if reasons:
        raise Unmeasurable("; ".join(reasons))
    table = None if kernel_hash_table is None else lambda: kernel_hash_table
    return digest(firmware, table=table, vmsas=pages)
