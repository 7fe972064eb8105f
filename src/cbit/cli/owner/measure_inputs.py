"""What the owner says was launched, read from the files into a ``Launch``."""

from __future__ import annotations

from argparse import Namespace
from os.path import basename
from typing import TYPE_CHECKING

from cbit.cli.owner.measure_arguments import LARGEST_FIRMWARE
from cbit.owner.blob import LARGEST, Blob
from cbit.owner.files import read_limited
from cbit.owner.measure import BegunKernel, Image, Kernel, Launch, Mode, Sections
from cbit.owner.vmsa import Hypervisor, Variant, Vcpus
from cbit.spec.cpu_signature import CPUS

if TYPE_CHECKING:
    from cbit.owner.measure import DirectLaunch


def vcpus_of(args: Namespace, *, count: int = 1) -> Vcpus:
    """Read the virtual CPUs.

    Raises:
        ValueError: no vCPU, or QEMU's without their type.
    """
    if args.vcpu_type is None and args.hypervisor == Hypervisor.QEMU:
        raise ValueError(
            f"--vcpu-type is wanted, the guest sees it and it is measured: one of {', '.join(CPUS)}, "
            "or what CPUID function 1 shows in EAX"
        )
    return Vcpus(
        count=count,
        signature=args.vcpu_type,
        variant=Variant(args.vmsa),
        features=args.guest_features,
        hypervisor=Hypervisor(args.hypervisor),
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
    kernel = None if args.kernel is None else _kernel(args)
    if args.firmware is None and kernel is not None:
        from cbit.owner.measure import DirectLaunch
        from cbit.spec.linux_boot import DEFAULT_MEMORY

        return DirectLaunch(kernel=kernel, memory_size=args.memory or DEFAULT_MEMORY)
    return Launch(
        mode=args.mode,
        image=Image(read_limited(args.firmware, limit=LARGEST_FIRMWARE), basename(args.firmware)),
        kernel=kernel,
        vcpus=None if args.mode is Mode.SEV else vcpus_of(args, count=args.vcpus),
        sections=Sections(args.sections),
    )


def _kernel(args: Namespace) -> Kernel:
    try:
        (args.append or "").encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"--append: {args.append[error.start]!r} is no letter that has bytes") from None
    words = {
        "cmdline": args.append or "",
        "kernel_name": basename(args.kernel),
        "initrd_name": basename(args.initrd) if args.initrd else "",
    }
    if args.begun:
        return BegunKernel(kernel=args.begun["kernel"], initrd=args.begun.get("initrd") or Blob(b""), **words)
    return Kernel(
        kernel=read_limited(args.kernel, limit=LARGEST),
        initrd=read_limited(args.initrd, limit=LARGEST) if args.initrd else b"",
        **words,
    )
