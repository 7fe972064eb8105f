"""What may have been launched instead of what the owner says: one list of alternatives for each input.

Paper: launch-inputs.md §1 (what is not measured), §3 (command line), §6 (VMSA variants).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations, product, starmap
from operator import or_
from typing import Any, Final

from cbit.owner.explain import files
from cbit.owner.explain.files import Watch, unwatched
from cbit.owner.explain.trial import EMPTY_HASH, Trial
from cbit.owner.measure import Image, Launch, Mode, Sections, snp
from cbit.owner.vmsa import CONVENTIONS, Variant
from cbit.spec.address import BLOCK, PAGE
from cbit.spec.cpu_signature import CPUS, Cpu, name_of
from cbit.spec.errors import WireError
from cbit.spec.vmsa import SevFeatures


@dataclass(frozen=True, slots=True, eq=False)  # each is itself: they are told apart in sets
class Alternative:
    """One change to what the owner says.

    Attributes:
        axis: the input that it changes.
        words: what is otherwise.
        changes: fields of a ``Trial``.
    """

    axis: str
    words: str
    changes: Mapping[str, Any]

    def applied(self, trial: Trial) -> Trial:
        """Change a trial."""
        return replace(trial, **self.changes)

    def __str__(self) -> str:
        return f"{self.axis}: {self.words}"


@dataclass(frozen=True, slots=True)
class File:
    """Another file of the owner's, which may have been used in place of one that was named."""

    name: str
    data: bytes


def alternatives(
    launch: Launch, others: Sequence[File], *, watch: Watch = unwatched
) -> Iterator[Alternative]:
    """Give every alternative to a launch that is worth a try, the likeliest kinds first.

    Args:
        launch: what the owner says.
        others: files that may have been used in place of those that were named.
        watch: called now and then while something large is packed or unpacked; what it raises ends that.
    """
    start = Trial.of(launch)
    for source in (_vmsa, _kernel_hashes, _command_line, _initrd, _kernel, _mode, _metadata, _firmware):
        for found in source(launch, start, others, watch):
            if found.applied(start) != start:
                yield found


def all_of_one_field(start: Trial) -> Iterator[Alternative]:
    """Give alternatives by the thousand: every CPU of families 17h, 19h and 1Ah, up to four SEV features."""
    for cpu in starmap(Cpu, product((0x17, 0x19, 0x1A), range(256), range(16))):
        yield _signature(start, cpu.signature)
    known = [bit for bit in SevFeatures if bit is not SevFeatures.SNP_ACTIVE]
    for size in (2, 3, 4):
        for bits in combinations(known, size):
            features = reduce(or_, bits)
            words = f"{features:#x} ({'|'.join(str(bit.name) for bit in bits)}), not {start.features:#x}"
            yield Alternative("SEV features", words, {"features": features})


def _signature(start: Trial, signature: int) -> Alternative:
    words = f"{name_of(signature)}, not {name_of(start.signature)}"
    return Alternative("vCPU type", words, {"signature": signature})


def _vmsa(launch: Launch, start: Trial, others: Sequence[File], watch: Watch) -> Iterator[Alternative]:
    for variant in Variant:
        words = f"{variant} ({_MADE_WITH[variant]}), not {start.variant}"
        yield Alternative("VMSA variant", words, {"variant": variant})
    for signature in dict.fromkeys((*CPUS.values(), 0x600, 0)):
        yield _signature(start, signature)
    for bit in sorted(SevFeatures, key=lambda bit: bit is not SevFeatures.DEBUG_VIRT):
        if bit is not SevFeatures.SNP_ACTIVE:
            state = "clear" if start.features & bit else "set"
            name = "DEBUG_VIRT (debug-swap)" if bit is SevFeatures.DEBUG_VIRT else str(bit.name)
            yield Alternative("SEV features", f"{name} is {state}", {"features": start.features ^ bit})
    for hypervisor in CONVENTIONS:
        words = f"conventions of {hypervisor}, not of {start.hypervisor}"
        yield Alternative("hypervisor", words, {"hypervisor": hypervisor})


_MADE_WITH: Final = {Variant.INIT: "KVM_SEV_ES_INIT", Variant.INIT2: "KVM_SEV_INIT2"}


def _mode(launch: Launch, start: Trial, others: Sequence[File], watch: Watch) -> Iterator[Alternative]:
    if start.mode is Mode.SEV:
        for variant in Variant:
            words = f"launched as sev-es ({variant}): the registers of its vCPUs are measured"
            yield Alternative("mode", words, {"mode": Mode.SEV_ES, "variant": variant})
    elif start.mode is Mode.SEV_ES:
        yield Alternative("mode", "launched as plain sev: no VMSA is measured", {"mode": Mode.SEV})


def _metadata(launch: Launch, start: Trial, others: Sequence[File], watch: Watch) -> Iterator[Alternative]:
    if start.mode is Mode.SNP and snp.section_pages_differ(launch.image):
        for sections in Sections:
            words = f"{sections} ({_COUNTED[sections]}), not {start.sections}"
            yield Alternative("SECRETS and CPUID sections", words, {"sections": sections})


_COUNTED: Final = {
    Sections.WHOLE: "every page, as QEMU adds them",
    Sections.FIRST_PAGE: "the first page alone, as sev-snp-measure computes",
}


def _kernel_hashes(
    launch: Launch, start: Trial, others: Sequence[File], watch: Watch
) -> Iterator[Alternative]:
    if start.kernel_measured:
        yield Alternative("kernel hashes", "not measured (kernel-hashes=off)", {"kernel_measured": False})
        return
    for other in others:
        words = f"measured (kernel-hashes=on), with {other.name} as the kernel"
        yield Alternative("kernel hashes", words, {"kernel_measured": True, "kernel": _sha256(other.data)})


def _command_line(
    launch: Launch, start: Trial, others: Sequence[File], watch: Watch
) -> Iterator[Alternative]:
    if launch.kernel is not None:
        for words, raw in command_lines(launch.kernel.cmdline):
            yield Alternative("command line", words, {"cmdline": _sha256(raw)})


def command_lines(text: str) -> Iterator[tuple[str, bytes]]:
    """Give usual variants of a command line, as the bytes that are hashed."""
    raw = text.encode(errors="surrogateescape")
    yield "measured without its trailing NUL", raw
    yield "measured with a second NUL", raw + b"\x00\x00"
    yield "measured with a trailing newline, without NUL", raw + b"\n"
    for words, change in _TEXTS.items():
        changed = change(text)
        if changed != text:
            yield words, changed.encode(errors="surrogateescape") + b"\x00"
    words_of = text.split()
    for index, word in enumerate(words_of[:64]):
        rest = " ".join((*words_of[:index], *words_of[index + 1 :]))
        yield f"without {word!r}", rest.encode(errors="surrogateescape") + b"\x00"


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in {"'", '"'}
    return text[1:-1] if quoted else text


#: What happens to a text between a configuration file, a shell, a hypervisor and /proc/cmdline.
_TEXTS: Final[Mapping[str, Callable[[str], str]]] = {
    "with a trailing newline": lambda text: f"{text}\n",
    "without its trailing newline": lambda text: text.removesuffix("\n"),
    "with a trailing carriage return and newline": lambda text: f"{text}\r\n",
    "with spaces trimmed at both ends": lambda text: text.strip(" "),
    "with spaces trimmed at its end": lambda text: text.rstrip(" "),
    "with spaces trimmed at its beginning": lambda text: text.lstrip(" "),
    "with white space trimmed at both ends": str.strip,
    "with a trailing space": lambda text: f"{text} ",
    "with a leading space": lambda text: f" {text}",
    "with runs of spaces made one": lambda text: " ".join(text.split()),
    "in double quotes": lambda text: f'"{text}"',
    "in single quotes": lambda text: f"'{text}'",
    "without the quotes around it": _unquoted,
    "without double quotes": lambda text: text.replace('"', ""),
    "without single quotes": lambda text: text.replace("'", ""),
    "without any quotes": lambda text: text.replace('"', "").replace("'", ""),
    "without backslashes": lambda text: text.replace("\\", ""),
    "with 'initrd=initrd' at its end, as firmware shows it to the kernel": lambda text: (
        f"{text} initrd=initrd"
    ),
    "without 'initrd=initrd' at its end, which firmware adds after measuring": lambda text: text.removesuffix(
        " initrd=initrd"
    ),
    "empty": lambda text: "",
}


def _initrd(launch: Launch, start: Trial, others: Sequence[File], watch: Watch) -> Iterator[Alternative]:
    kernel = launch.kernel
    if kernel is not None and kernel.initrd:
        yield Alternative("initrd", "none was loaded", {"initrd": EMPTY_HASH})
        swap = {"initrd": start.kernel, "kernel": start.initrd}
        yield Alternative("initrd", "it and the kernel are exchanged", swap)
        for words, data in files.other_forms(kernel.initrd, watch):
            yield Alternative("initrd", words, {"initrd": _sha256(data)})
    for other in others:
        yield from _other_form("initrd", "initrd", other, watch)


def _kernel(launch: Launch, start: Trial, others: Sequence[File], watch: Watch) -> Iterator[Alternative]:
    if launch.kernel is None:
        return
    for words, data in files.other_forms(launch.kernel.kernel, watch):
        yield Alternative("kernel", words, {"kernel": _sha256(data)})
    for other in others:
        yield from _other_form("kernel", "kernel", other, watch)


def _other_form(axis: str, field: str, other: File, watch: Watch) -> Iterator[Alternative]:
    yield Alternative(axis, f"{other.name} was loaded", {field: _sha256(other.data)})
    for words, data in files.decompressed(other.data, watch):
        yield Alternative(axis, f"{other.name} was loaded, {words}", {field: _sha256(data)})


def _firmware(launch: Launch, start: Trial, others: Sequence[File], watch: Watch) -> Iterator[Alternative]:
    unit = PAGE if launch.mode is Mode.SNP else BLOCK
    for words, data in _images(launch.image, others):
        image = Image(data, launch.image.name)
        if data and len(data) % unit == 0 and _readable(image, launch.mode):
            yield Alternative("firmware", words, {"image": image})


def _images(image: Image, others: Sequence[File]) -> Iterator[tuple[str, bytes]]:
    for other in others:
        yield f"{other.name} was launched, not {image.name}", other.data
    if head := files.first_volume(image.data):
        rest = image.data[head:]
        yield f"only the code half of {image.name} was launched (it holds CODE and VARS)", rest
        yield f"only the variable store of {image.name} was launched", image.data[:head]
    for other in others:
        yield f"{other.name} and {image.name} were launched as one image", other.data + image.data
        yield f"{image.name} and {other.name} were launched as one image", image.data + other.data
    yield from files.padded(image.data)


def _readable(image: Image, mode: Mode) -> bool:
    """Say whether a digest can be computed; plain SEV never looks into the image."""
    try:
        _ = image.table.ap_reset, image.table.hash_area
        _ = image.sections if mode is Mode.SNP else None
    except WireError:
        return mode is Mode.SEV
    return True


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
