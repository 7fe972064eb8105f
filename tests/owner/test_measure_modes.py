"""What SEV-ES and SNP measure, what cannot be launched, and what an image lacks."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.owner.errors import Missing, Unmeasurable
from cbit.owner.measure import Image, Launch, Mode, expect
from cbit.owner.measure.snp import Chain, kernel_page
from cbit.owner.vmsa import Hypervisor, Variant, Vcpus
from cbit.spec.errors import WireError
from cbit.spec.firmware_table import Area
from cbit.spec.sev_metadata import MetadataSection, SectionType
from cbit.spec.snp_launch import VMSA_GPA, PageInfo, PageType
from cbit.spec.vmsa import SevFeatures
from owner.images import KERNEL, LONG, NO_AREA, RESET, SECTIONS, an_image
from owner.worlds import flipped

MILAN = Vcpus(count=3, signature=0x00A00F11)


def a_launch_of(mode: Mode, **changes: Any) -> Launch:
    launch = Launch(mode=mode, image=Image(an_image()), kernel=KERNEL, vcpus=MILAN)
    return replace(launch, **changes)


def test_sev_es_hashes_the_image_then_the_table_then_every_vmsa() -> None:
    boot, other = (bytes(MILAN.page(eip)) for eip in (0xFFFFFFF0, RESET))
    whole = an_image() + KERNEL.table() + boot + other + other
    assert hashlib.sha256(whole).digest() == a_launch_of(Mode.SEV_ES).digest()


def snp_by_the_book(pages: list[tuple[PageType, int, bytes | None]]) -> bytes:
    """The chain as §7.1 prints it, through the wire structure, page by page."""
    digest = bytes(48)
    for kind, gpa, page in pages:
        contents = bytes(48) if page is None else hashlib.sha384(page).digest()
        info = PageInfo(digest_cur=digest, contents=contents, page_type=kind, gpa=gpa)
        digest = hashlib.sha384(bytes(info)).digest()
    return digest


def pages_of(data: bytes, gpa: int) -> list[tuple[PageType, int, bytes | None]]:
    return [(PageType.NORMAL, gpa + at, data[at : at + 4096]) for at in range(0, len(data), 4096)]


#: launch-inputs.md §7.3
BECOMES = {1: PageType.ZERO, 2: PageType.SECRETS, 3: PageType.CPUID, 4: PageType.ZERO, 0x10: PageType.ZERO}


@pytest.mark.parametrize("hypervisor", Hypervisor)
@pytest.mark.parametrize("kernel", [None, KERNEL], ids=["no kernel", "kernel"])
def test_snp_chains_image_sections_and_vmsas(hypervisor: Hypervisor, kernel: Any) -> None:
    image = an_image()
    sections = list(SECTIONS)
    if hypervisor.startswith("ec2"):  # §7.2: the CPUID page after every other section
        sections.sort(key=lambda s: s.kind is SectionType.CPUID)
    pages = pages_of(image, (1 << 32) - len(image))
    for section in sections:
        if section.kind is SectionType.KERNEL_HASHES and kernel:
            pages += pages_of((bytes(0xC00) + KERNEL.table()).ljust(4096, b"\x00"), section.base)
            continue
        kind = BECOMES[section.kind]
        if hypervisor is Hypervisor.GCE and section.kind is SectionType.SNP_SEC_MEM:
            kind = PageType.UNMEASURED
        pages += [(kind, section.base + at, None) for at in range(0, section.size, 4096)]
    vcpus = replace(MILAN, hypervisor=hypervisor, features=SevFeatures.SNP_ACTIVE)
    pages += [(PageType.VMSA, VMSA_GPA, page) for page in vcpus.pages(RESET)]
    launch = a_launch_of(Mode.SNP, kernel=kernel, vcpus=replace(MILAN, hypervisor=hypervisor))
    assert snp_by_the_book(pages) == launch.digest()


def test_snp_active_is_set_by_the_mode_alone() -> None:
    explicit = replace(MILAN, features=SevFeatures.SNP_ACTIVE)
    assert a_launch_of(Mode.SNP).digest() == a_launch_of(Mode.SNP, vcpus=explicit).digest()
    debug_swap = replace(MILAN, features=SevFeatures.SNP_ACTIVE | SevFeatures.DEBUG_VIRT)
    assert a_launch_of(Mode.SNP).digest() != a_launch_of(Mode.SNP, vcpus=debug_swap).digest()


def test_a_guest_has_two_valid_digests_and_the_variant_names_them() -> None:
    init = replace(MILAN, variant=Variant.INIT)
    assert a_launch_of(Mode.SEV_ES).digest() != a_launch_of(Mode.SEV_ES, vcpus=init).digest()


def test_plain_sev_measures_no_vcpu() -> None:
    assert a_launch_of(Mode.SEV).digest() == a_launch_of(Mode.SEV, vcpus=None).digest()


@pytest.mark.parametrize("mode", [Mode.SEV_ES, Mode.SNP])
def test_vcpus_that_nobody_described_are_asked_for(mode: Mode) -> None:
    with pytest.raises(Missing, match="number and type are wanted"):
        a_launch_of(mode, vcpus=None).digest()


def shifted(section: MetadataSection, **changes: Any) -> tuple[MetadataSection, ...]:
    return tuple(s.replace(**changes) if s is section else s for s in SECTIONS)


HASH_SECTION = SECTIONS[5]
SECRETS_, CPUID_ = SECTIONS[2:4]
TWO_OF_EACH = (*SECTIONS, SECRETS_.replace(base=0x900000), CPUID_.replace(base=0x901000))


@pytest.mark.parametrize(
    ("mode", "image", "reason"),
    [
        (Mode.SNP, an_image(sections=None), "no SEV metadata section"),
        (Mode.SNP, an_image(hashes=NO_AREA), "announces no area for kernel hashes"),
        (Mode.SNP, an_image(hashes=Area(0x810F80, 0x400)), "crosses a page"),
        (Mode.SNP, an_image(sections=SECTIONS[:5]), "0 sections for kernel hashes"),
        (Mode.SNP, an_image(sections=(*SECTIONS, HASH_SECTION)), "2 sections for kernel hashes"),
        (Mode.SNP, an_image(sections=shifted(HASH_SECTION, size=0x2000)), "1 sections for kernel hashes"),
        (Mode.SNP, an_image(sections=shifted(SECTIONS[0], base=0x800800)), "not made of whole pages"),
        (Mode.SNP, an_image(sections=shifted(SECTIONS[0], size=0x10)), "not made of whole pages"),
        (Mode.SNP, an_image(sections=shifted(SECTIONS[2], size=0)), "0x80d000 with 0x0 bytes is not made of"),
        (
            Mode.SNP,
            an_image(sections=shifted(SECTIONS[2], base=0x802000)),
            "its SNP_SEC_MEM section at 0x800000 reaches to 0x809000, over its SECRETS section at 0x802000",
        ),
        (
            Mode.SNP,
            an_image(sections=shifted(SECTIONS[2], base=0x800000)),
            "SECRETS section at 0x800000 reaches to 0x801000, over its SNP_SEC_MEM section at 0x800000",
        ),
        (Mode.SNP, an_image(sections=(*SECTIONS, SECTIONS[6])), "SNP_SEC_MEM section at 0x811000 reaches to"),
        (
            Mode.SNP,
            an_image(sections=shifted(SECTIONS[6], base=0xFFFFF000, size=0x1000)),
            "itself at 0xffffc000 reaches to 0x100000000, over its SNP_SEC_MEM section at 0xfffff000",
        ),
        (
            Mode.SNP,
            an_image(sections=shifted(SECTIONS[6], base=0xFFFFB000, size=0x2000)),
            "SNP_SEC_MEM section at 0xffffb000 reaches to 0xffffd000, over the image itself at 0xffffc000",
        ),
        (
            Mode.SNP,
            an_image(sections=shifted(SECTIONS[6], base=0xFFFF0000, size=0x20000)),
            "SNP_SEC_MEM section at 0xffff0000 reaches to 0x100010000, over the image",
        ),
        (
            Mode.SNP,
            an_image(sections=shifted(HASH_SECTION, base=0x830000)),
            "section for kernel hashes is at 0x830000, and it looks for them at 0x810c00, in another page",
        ),
        (Mode.SNP, an_image(hashes=Area(0x811000, 0x400)), "looks for them at 0x811000"),
        (Mode.SNP, an_image(size=0x4010), "multiple of 4096"),
        (Mode.SNP, b"", "not empty"),
        (Mode.SEV_ES, an_image(reset=None), "no SEV-ES reset vector .* take an OVMF build"),
        (Mode.SNP, an_image(reset=None), "no SEV-ES reset vector"),
        (Mode.SEV_ES, bytes(4096), "no SEV-ES reset vector .* nothing is at its reset vector"),
        (Mode.SEV, bytes(4096), "no firmware image of a guest: nothing is at its reset vector .*OVMF_VARS"),
        (Mode.SEV, b"\xff" * 4096, "no firmware image of a guest: nothing is at its reset vector"),
        (Mode.SNP, bytes(4096), "nothing is at its reset vector"),
        (Mode.SEV_ES, an_image(reset=0), "reset vector is 0: it does not start the other 2 vCPUs"),
        (Mode.SEV_ES, an_image(hashes=NO_AREA), "announces no area for kernel hashes"),
    ],
)
def test_what_no_host_can_launch_is_refused(mode: Mode, image: bytes, reason: str) -> None:
    with pytest.raises(Unmeasurable, match=reason):
        a_launch_of(mode, image=Image(image), kernel=None if mode is Mode.SEV else KERNEL).digest()


def test_sections_that_touch_are_no_overlap() -> None:
    last = shifted(SECTIONS[6], base=0xFFFF_B000, size=0x1000)  # up to the image
    assert [] == a_launch_of(Mode.SNP, image=Image(an_image(sections=last))).unusable()
    elsewhere = an_image(sections=shifted(HASH_SECTION, base=0x830000))
    assert [] == a_launch_of(Mode.SNP, image=Image(elsewhere), kernel=None).unusable()


def test_every_reason_comes_at_once() -> None:
    image = an_image(reset=None, sections=None, hashes=NO_AREA)
    assert 3 == len(a_launch_of(Mode.SNP, image=Image(image)).unusable())


@pytest.mark.parametrize(
    ("mode", "change", "reason"),
    [
        (Mode.SNP, {"variant": Variant.INIT}, "FPU words filled"),
        (Mode.SNP, {"features": SevFeatures(0)}, "SNP_ACTIVE"),
        (Mode.SNP, {"features": SevFeatures.DEBUG_VIRT}, "SNP_ACTIVE"),
        (Mode.SEV_ES, {"features": SevFeatures.SNP_ACTIVE}, "SNP_ACTIVE"),
    ],
)
def test_vcpus_that_no_such_guest_has_are_refused(mode: Mode, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unmeasurable, match=reason):
        a_launch_of(mode, vcpus=replace(MILAN, **change)).digest()


def test_one_vcpu_needs_no_value_in_the_reset_vector() -> None:
    launch = a_launch_of(Mode.SEV_ES, image=Image(an_image(reset=0)), vcpus=replace(MILAN, count=1))
    assert 32 == len(launch.digest())


@pytest.mark.parametrize(
    ("image", "mode", "kernel", "lack"),
    [
        (an_image(hashes=NO_AREA), Mode.SEV, None, "a kernel that the host loads directly is not measured"),
        (an_image(reset_code=bytes(16)), Mode.SEV, None, "and does not start"),
        (an_image(reset_code=b"\xff" * 16), Mode.SNP, KERNEL, "and does not start"),
        (bytes(4080) + b"\xe9" * 16, Mode.SEV, None, "no firmware table"),
        (an_image(sections=SECTIONS[:3]), Mode.SNP, None, "no CPUID section"),
        (an_image(sections=SECTIONS[3:]), Mode.SNP, KERNEL, "no SECRETS section"),
        (an_image(sections=TWO_OF_EACH), Mode.SNP, None, "2 SECRETS sections in its metadata"),
        (an_image(sections=TWO_OF_EACH), Mode.SNP, None, "2 CPUID sections in its metadata"),
        (an_image(sections=LONG), Mode.SNP, None, "its SECRETS section has 2 pages"),
        (an_image(sections=LONG), Mode.SNP, None, "its CPUID section has 3 pages"),
    ],
)
def test_an_image_says_what_it_lacks(image: bytes, mode: Mode, kernel: Any, lack: str) -> None:
    assert lack in "; ".join(a_launch_of(mode, image=Image(image), kernel=kernel).lacks())


@pytest.mark.parametrize("kernel", [None, KERNEL], ids=["no kernel", "kernel"])
def test_an_image_that_has_everything_lacks_nothing(kernel: Any) -> None:
    for mode in Mode:
        launch = a_launch_of(mode, kernel=kernel)
        assert [] == launch.lacks() == launch.unusable()


@pytest.mark.parametrize("mode", Mode)
def test_every_bit_of_the_inputs_counts(mode: Mode) -> None:
    launch = a_launch_of(mode)
    digests = {launch.digest()}
    for bit in (0, 8 * 4096 + 3):
        digests.add(replace(launch, image=Image(flipped(launch.image.data, bit))).digest())
    for kernel in (
        replace(KERNEL, kernel=flipped(KERNEL.kernel, 9)),
        replace(KERNEL, initrd=flipped(KERNEL.initrd, 9)),
        replace(KERNEL, cmdline=KERNEL.cmdline + " "),
        None,
    ):
        digests.add(replace(launch, kernel=kernel).digest())
    assert 7 == len(digests)


@pytest.mark.parametrize("mode", Mode)
def test_the_steps_are_the_inputs_with_their_places(mode: Mode) -> None:
    launch = a_launch_of(mode)
    steps = launch.steps()
    assert tuple(step.input for step in steps) == launch.expectation().inputs
    assert all(step.place for step in steps)
    places = " / ".join(step.place for step in steps)
    if mode is Mode.SNP:
        assert "pages 4..12 of the chain, ZERO at 0x800000" in places
        assert "pages 36..37 of the chain, VMSA at 0xfffffffff000" in places
    else:
        assert "SHA-256 over bytes 0..0x3fff" in places
        assert "its hash at 0x24 of the kernel-hash table" in places


def test_the_last_page_of_the_steps_is_the_last_of_the_chain() -> None:
    count = 4 + sum(section.size // 4096 for section in SECTIONS) + 3
    assert f"pages {count - 2}..{count - 1} " in a_launch_of(Mode.SNP).steps()[-1].place


def test_a_chain_goes_on_from_where_it_was() -> None:
    whole, first = Chain(), Chain()
    whole.add_data(0x1000, bytes(0x3000))
    first.add_data(0x1000, bytes(0x1000))
    rest = Chain(first.digest)
    rest.add_data(0x2000, bytes(0x2000))
    assert whole.digest == rest.digest


def test_the_kernel_page_has_the_table_where_the_image_looks() -> None:
    page = kernel_page(KERNEL.table(), 0x810C00)
    assert (4096, KERNEL.table()) == (len(page), page[0xC00 : 0xC00 + 176])
    assert not any(page[:0xC00] + page[0xC00 + 176 :])


@given(st.integers(0, 0x3FFF), st.integers(0, 255))
def test_an_altered_image_is_measured_or_refused(offset: int, value: int) -> None:
    data = bytearray(an_image())
    data[offset] = value
    for mode in Mode:
        try:
            expect(mode, bytes(data), kernel=KERNEL, vcpus=MILAN)
        except (Unmeasurable, WireError):
            continue
