"""Arguments of `measure` and `vmsa`: declared without loading what they are about.

`measure` begins to hash large files as soon as it knows their names, and loads the rest meanwhile.
"""

from __future__ import annotations

import argparse
import base64
import binascii
from collections.abc import Callable
from typing import Any, Final, TypeVar

from cbit.cli.durations import seconds
from cbit.cli.owner.arguments import file_path
from cbit.cli.parser import Parser
from cbit.cli.sizes import size
from cbit.spec.cpu_signature import CPUS, signature_of

#: Values of ``measure.Mode``, ``vmsa.Variant``, ``vmsa.Hypervisor`` and ``measure.Sections``, held together
#: by a test.
MODES: Final = ("sev", "sev-es", "snp")
VARIANTS: Final = ("init", "init2")
HYPERVISORS: Final = ("qemu", "ec2", "ec2-rdx0", "gce")
SECTIONS: Final = ("whole", "first-page")

#: Bytes of a launch digest, by mode.
DIGEST_SIZES: Final = {"sev": 32, "sev-es": 32, "snp": 48}

LARGEST_FIRMWARE: Final = 1 << 28  # bytes

_Value = TypeVar("_Value")


def checked(read: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Let a reader's ValueError say its own words on the command line."""

    def wrapped(text: str) -> _Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return wrapped


def _features(text: str) -> object:
    from cbit.owner.vmsa import features_of

    return features_of(text)


def add_image(parser: Parser) -> None:
    """Declare the files.  Firmware, kernel and initrd stay names: that is all that opening one takes."""
    image = parser.add_argument_group("the image, from your own copies")
    image.add_argument(
        "--firmware",
        metavar="F",
        help="the firmware image, pflash unit 0; without it the kernel is booted directly (sev only)",
    )
    image.add_argument(
        "--kernel",
        metavar="K",
        help="a kernel that is loaded directly, with kernel hashes if there is firmware",
    )
    image.add_argument("--initrd", metavar="I", help="its initrd")
    image.add_argument(
        "--append",
        metavar="S",
        help="its command line, exactly; of a direct boot, what `cbit run` is told to append",
    )
    image.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="guest memory of a direct boot, which decides its layout (default: 256M)",
    )
    image.add_argument(
        "--sections",
        choices=SECTIONS,
        default="whole",
        help="of a SECRETS or CPUID section of several pages (snp), all of them count, as QEMU adds them, or "
        "the first alone, as sev-snp-measure computes (default: whole)",
    )


def add_vcpu(parser: Any) -> None:
    """Declare what stands in a VMSA."""
    parser.add_argument(
        "--vcpu-type",
        type=checked(signature_of),
        metavar="T",
        help=f"{' '.join(CPUS)}, a signature (0x00A00F11), or family:model:stepping",
    )
    parser.add_argument(
        "--vmsa",
        choices=VARIANTS,
        default="init2",
        help="how KVM made the guest: init (KVM_SEV_ES_INIT: machine types before QEMU 9.1), init2 (default)",
    )
    parser.add_argument(
        "--guest-features",
        type=checked(_features),
        metavar="WORD",
        help="SEV_FEATURES: numbers or names joined by |, such as 'SNP_ACTIVE|DEBUG_SWAP'; "
        "without it, what the mode sets by itself",
    )
    parser.add_argument(
        "--hypervisor",
        choices=HYPERVISORS,
        default="qemu",
        help="whose conventions (default: qemu)",
    )


def add_vcpus(parser: Parser) -> None:
    """Declare the virtual CPUs of a guest."""
    group = parser.add_argument_group("its virtual CPUs (sev-es and snp measure their registers)")
    group.add_argument("--vcpus", type=int, default=1, metavar="N", help="how many (default: 1)")
    add_vcpu(group)


def add_explain(parser: Parser) -> None:
    """Declare the arguments."""
    group = parser.add_argument_group("when it does not match")
    group.add_argument("--explain", action="store_true", help="show every input with its place, and search")
    group.add_argument(
        "--expect",
        type=digest_value,
        metavar="VALUE",
        help="the digest that somebody else gives for this launch, hex or base64",
    )
    group.add_argument(
        "--also",
        type=file_path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file that may have been used in place of one of yours",
    )
    group.add_argument(
        "--time-limit", type=seconds, default=30.0, metavar="S", help="seconds of searching (default: 30)"
    )


def digest_value(text: str) -> bytes:
    """Read a digest, hex or base64."""
    plain = "".join(text.split()).removeprefix("0x")
    for read in (bytes.fromhex, lambda value: base64.b64decode(value, validate=True)):
        try:
            value = read(plain)
        except (ValueError, binascii.Error):
            continue
        if len(value) in DIGEST_SIZES.values():
            return value
    raise argparse.ArgumentTypeError("a digest has 32 bytes (SEV, SEV-ES) or 48 (SNP), in hex or base64")
