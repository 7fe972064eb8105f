"""What the owner says was launched: arguments of `measure` and `vmsa`, read into a ``Launch``."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from cbit.cli.parser import Parser
from cbit.cli.sizes import size
from cbit.owner.measure import DirectLaunch, Image, Kernel, Launch, Mode
from cbit.owner.verify.files import read_limited
from cbit.owner.vmsa import Hypervisor, Variant, Vcpus, features_of
from cbit.spec.cpu_signature import CPUS, signature_of
from cbit.spec.linux_boot import DEFAULT_MEMORY

LARGEST: Final = 1 << 32  # bytes of a kernel or initrd
LARGEST_FIRMWARE: Final = 1 << 28

_Value = TypeVar("_Value")


def checked(read: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Let a reader's ValueError say its own words on the command line."""

    def wrapped(text: str) -> _Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return wrapped


def add_image(parser: Parser) -> None:
    """Declare the files."""
    image = parser.add_argument_group("the image, from your own copies")
    image.add_argument(
        "--firmware",
        type=Path,
        metavar="F",
        help="the firmware image, pflash unit 0; without it the kernel is booted directly (sev only)",
    )
    image.add_argument(
        "--kernel",
        type=Path,
        metavar="K",
        help="a kernel that is loaded directly, with kernel hashes if there is firmware",
    )
    image.add_argument("--initrd", type=Path, metavar="I", help="its initrd")
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
        type=Variant,
        choices=list(Variant),
        default=Variant.INIT2,
        help="how KVM made the guest: init (KVM_SEV_ES_INIT: machine types before QEMU 9.1), init2 (default)",
    )
    parser.add_argument(
        "--guest-features",
        type=checked(features_of),
        metavar="WORD",
        help="SEV_FEATURES: numbers or names joined by |, such as 'SNP_ACTIVE|DEBUG_SWAP'; "
        "without it, what the mode sets by itself",
    )
    parser.add_argument(
        "--hypervisor",
        type=Hypervisor,
        choices=list(Hypervisor),
        default=Hypervisor.QEMU,
        help="whose conventions (default: qemu)",
    )


def add_vcpus(parser: Parser) -> None:
    """Declare the virtual CPUs of a guest."""
    group = parser.add_argument_group("its virtual CPUs (sev-es and snp measure their registers)")
    group.add_argument("--vcpus", type=int, default=1, metavar="N", help="how many (default: 1)")
    add_vcpu(group)


def vcpus_of(args: Namespace, *, count: int = 1) -> Vcpus:
    """Read the virtual CPUs.

    Raises:
        ValueError: no vCPU, or QEMU's without their type.
    """
    if args.vcpu_type is None and args.hypervisor is Hypervisor.QEMU:
        raise ValueError(
            f"--vcpu-type is wanted, the guest sees it and it is measured: one of {', '.join(CPUS)}, "
            "or what CPUID function 1 shows in EAX"
        )
    return Vcpus(
        count=count,
        signature=args.vcpu_type,
        variant=args.vmsa,
        features=args.guest_features,
        hypervisor=args.hypervisor,
    )


def launch_of(args: Namespace) -> Launch | DirectLaunch:
    """Read the files and describe the launch.

    Raises:
        ValueError: arguments that do not go together.
    """
    if args.firmware is None and (args.kernel is None or args.mode is not Mode.SEV):
        raise ValueError("--firmware is wanted; only --mode sev with a --kernel boots without it")
    if args.firmware is not None and args.memory is not None:
        raise ValueError("--memory belongs to a direct boot: with --firmware no layout is measured")
    if args.kernel is None and (args.initrd is not None or args.append is not None):
        raise ValueError("--initrd and --append belong to a --kernel")
    kernel = None
    if args.kernel is not None:
        kernel = Kernel(
            kernel=read_limited(args.kernel, limit=LARGEST),
            initrd=read_limited(args.initrd, limit=LARGEST) if args.initrd else b"",
            cmdline=args.append or "",
            kernel_name=args.kernel.name,
            initrd_name=args.initrd.name if args.initrd else "",
        )
    if args.firmware is None and kernel is not None:
        return DirectLaunch(kernel=kernel, memory_size=args.memory or DEFAULT_MEMORY)
    return Launch(
        mode=args.mode,
        image=Image(read_limited(args.firmware, limit=LARGEST_FIRMWARE), args.firmware.name),
        kernel=kernel,
        vcpus=None if args.mode is Mode.SEV else vcpus_of(args, count=args.vcpus),
    )
