"""Power-on: ROM → the processor's own firmware → the x86 boot image → the cores are released.

The processor's own instruction set is not modelled: its firmware is the command table of this room, cut down
to what the verified image lists.  What is real is the check that stands before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.memory.fabric import FabricPort
from cbit.secure_processor.fuses import Fuses
from cbit.secure_processor.image import (
    BiosSettings,
    ImageHeader,
    ImageKind,
    ImageRefused,
    check_image,
    commands_in,
)
from cbit.spec.errors import CbitError, WireError
from cbit.spec.key_id import HOST
from cbit.spec.policy import ApiVersion
from cbit.trace import Trace


class MachineOff(CbitError):
    """The boot chain refused an image: the cores are not released.  The message names image and reason."""


@dataclass(frozen=True, slots=True)
class Booted:
    """What the boot chain established."""

    api: ApiVersion
    build: int
    svn: int
    implements: frozenset[int]
    settings: BiosSettings


def boot(*, fuses: Fuses, firmware: bytes, x86_image: bytes, trace: Trace) -> Booted:
    """Check both images and return what they say.

    Raises:
        MachineOff: one of them is altered, unsigned, truncated, of another kind or older than the floor.
    """
    header, body = _accept("the secure processor's firmware", firmware, ImageKind.SEV_FIRMWARE, fuses, trace)
    _, settings = _accept("the x86 boot image", x86_image, ImageKind.X86_BOOT, fuses, trace)
    try:
        bios = BiosSettings.parse(settings)
    except WireError as error:
        raise MachineOff(f"the x86 boot image: {error}") from None
    trace.emit(
        "secure_processor.boot",
        "cores released",
        api=f"{header.api_major}.{header.api_minor}",
        build=header.build,
    )
    return Booted(
        ApiVersion(header.api_major, header.api_minor), header.build, header.svn, commands_in(body), bios
    )


def _accept(
    name: str, image: bytes, kind: ImageKind, fuses: Fuses, trace: Trace
) -> tuple[ImageHeader, bytes]:
    try:
        header, body = check_image(image, kind=kind, fuses=fuses)
    except ImageRefused as error:
        trace.emit("secure_processor.boot", f"{name} refused", str(error))
        raise MachineOff(f"{name}: {error}") from None
    trace.emit("secure_processor.boot", f"{name} accepted", svn=header.svn, bytes=len(image))
    return header, body


def draw_host_key(fabric: FabricPort, *, size: int, entropy: Entropy) -> str:
    """Draw the SME key, new at every reset, put it into its slot, forget it; return its fingerprint.

    Paper: memory-encryption.md §1 rule 4.
    """
    key = Key(entropy.draw(size))
    fabric.load_key(HOST, key)
    return key.fingerprint()
