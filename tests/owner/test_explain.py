"""A cause is planted, the search names it; no cause, and it says what it excluded."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import hmac
import itertools
import lzma
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cbit.crypto.key import Key
from cbit.crypto.session import TransportKeys
from cbit.owner.explain import Digest, Explanation, File, Measurement, explain, files
from cbit.owner.explain.alternatives import alternatives, command_lines
from cbit.owner.explain.trial import Digester, Trial
from cbit.owner.measure import Image, Kernel, Launch, Mode, Sections
from cbit.owner.vmsa import Hypervisor, Variant, Vcpus
from cbit.spec.policy import ApiVersion
from cbit.spec.session import MeasureBlob
from cbit.spec.vmsa import SevFeatures
from owner.images import KERNEL, LONG, NO_AREA, SECTIONS, an_image
from owner.worlds import API, a_launch

MILAN = Vcpus(count=2, signature=0x00A00F11)
KEYS = TransportKeys.parse(bytes(range(32, 64)))


def given_(mode: Mode, **changes: Any) -> Launch:
    return replace(Launch(mode=mode, image=Image(an_image()), kernel=KERNEL, vcpus=MILAN), **changes)


def digest_of(launch: Launch) -> Digest:
    return Digest(launch.digest())


def found(launch: Launch, value: Digest | Measurement, *others: File) -> Explanation:
    # A clock that stands still: the search ends because it has tried all, however busy the computer is.
    return explain(launch, value, others=others, clock=lambda: 0.0)


def with_kernel(**changes: Any) -> dict[str, Any]:
    return {"kernel": replace(KERNEL, **changes)}


def with_vcpus(**changes: Any) -> dict[str, Any]:
    return {"vcpus": replace(MILAN, **changes)}


LINE = KERNEL.cmdline

# What the platform did otherwise; the modes in which it shows; what the answer must say.
PLANTED: list[tuple[str, dict[str, Any], set[Mode], str]] = [
    ("newline", with_kernel(cmdline=f"{LINE}\n"), set(Mode), "command line: with a trailing newline"),
    ("space", with_kernel(cmdline=f"{LINE} "), set(Mode), "command line: with a trailing space"),
    ("quotes", with_kernel(cmdline=f'"{LINE}"'), set(Mode), "command line: in double quotes"),
    ("one word less", with_kernel(cmdline="console=ttyS0"), set(Mode), "without 'root=/dev/vda'"),
    ("no command line", with_kernel(cmdline=""), set(Mode), "command line: empty"),
    ("no initrd", with_kernel(initrd=b""), set(Mode), "initrd: none was loaded"),
    (
        "packed initrd",
        with_kernel(initrd=gzip.compress(KERNEL.initrd, 9, mtime=0)),
        set(Mode),
        "initrd: compressed",
    ),
    (
        "exchanged",
        {"kernel": replace(KERNEL, kernel=KERNEL.initrd, initrd=KERNEL.kernel)},
        set(Mode),
        "initrd: it and the kernel are exchanged",
    ),
    ("no kernel hashes", {"kernel": None}, set(Mode), "kernel hashes: not measured"),
    ("more vCPUs", with_vcpus(count=5), {Mode.SEV_ES, Mode.SNP}, "number of vCPUs: 5, not 2"),
    ("many vCPUs", with_vcpus(count=300), {Mode.SEV_ES, Mode.SNP}, "number of vCPUs: 300, not 2"),
    (
        "another type",
        with_vcpus(signature=0x00830F10),
        {Mode.SEV_ES, Mode.SNP},
        "vCPU type: 0x00830f10 (EPYC-Rome)",
    ),
    (
        "a rare CPU",
        with_vcpus(signature=0x00A20F12),
        {Mode.SEV_ES, Mode.SNP},
        "family 25 model 33 stepping 2",
    ),
    (
        "KVM_SEV_ES_INIT",
        with_vcpus(variant=Variant.INIT),
        {Mode.SEV_ES},
        "VMSA variant: init (KVM_SEV_ES_INIT)",
    ),
    (
        "debug-swap",
        with_vcpus(features=SevFeatures.DEBUG_VIRT),
        {Mode.SEV_ES},
        "SEV features: DEBUG_VIRT (debug-swap) is set",
    ),
    (
        "SNP features",
        with_vcpus(features=SevFeatures(0x29)),
        {Mode.SNP},
        "SEV features: 0x28 (RESTRICTED_INJECTION|DEBUG_VIRT)",
    ),
    ("EC2", with_vcpus(hypervisor=Hypervisor.EC2), {Mode.SNP}, "hypervisor: conventions of ec2, not of qemu"),
    ("GCE", with_vcpus(hypervisor=Hypervisor.GCE), {Mode.SNP}, "hypervisor: conventions of gce, not of qemu"),
    ("plain SEV", {"mode": Mode.SEV}, {Mode.SEV_ES}, "mode: launched as plain sev"),
    ("SEV-ES", {"mode": Mode.SEV_ES, "vcpus": MILAN}, {Mode.SEV}, "mode: launched as sev-es (init2)"),
    (
        "padded",
        {"image": Image(bytes(0xC000) + an_image())},
        set(Mode),
        "firmware: padded with zeros in front",
    ),
]


@pytest.mark.parametrize(
    ("mode", "changes", "words"),
    [
        pytest.param(mode, changes, words, id=f"{name}-{mode}")
        for name, changes, modes, words in PLANTED
        for mode in sorted(modes)
    ],
)
def test_the_planted_cause_is_found(mode: Mode, changes: dict[str, Any], words: str) -> None:
    launch = given_(mode)
    reported = digest_of(replace(launch, **changes))
    answer = found(launch, reported)
    assert words in "; ".join(answer.causes)
    assert not answer.matches
    assert not answer.unfinished


@pytest.mark.parametrize(("mode", "size"), [(Mode.SEV, 32), (Mode.SEV_ES, 32), (Mode.SNP, 48)])
def test_what_matches_needs_no_cause(mode: Mode, size: int) -> None:
    launch = given_(mode)
    assert size == len(launch.digest())
    answer = found(launch, digest_of(launch))
    assert (True, (), 1) == (answer.matches, answer.causes, answer.tried)


@pytest.mark.parametrize(("own", "theirs"), [*itertools.permutations(Sections, 2)])
def test_the_pages_of_long_sections_are_a_cause(own: Sections, theirs: Sections) -> None:
    launch = given_(Mode.SNP, image=Image(an_image(sections=LONG)), sections=own)
    why = found(launch, digest_of(replace(launch, sections=theirs, vcpus=replace(MILAN, count=3)))).causes
    assert (True, "number of vCPUs: 3, not 2") == (
        why[0].startswith(f"SECRETS and CPUID sections: {theirs} ("),
        why[1],
    )
    # Of an ordinary image it makes no difference, and is not tried.
    ordinary = given_(Mode.SNP, sections=own)
    assert ordinary.digest() == replace(ordinary, sections=theirs).digest()
    assert not [alt for alt in alternatives(ordinary, ()) if "SECRETS" in alt.axis]


def test_two_causes_together_are_found() -> None:
    launch = given_(Mode.SEV_ES)
    other = given_(
        Mode.SEV_ES,
        kernel=replace(KERNEL, cmdline=f"{LINE}\n"),
        vcpus=replace(MILAN, variant=Variant.INIT, count=4),
    )
    answer = found(launch, digest_of(other))
    assert {
        "command line: with a trailing newline",
        "VMSA variant: init (KVM_SEV_ES_INIT), not init2",
        "number of vCPUs: 4, not 2",
    } == set(answer.causes)


def test_three_inputs_and_their_number_are_not_confused() -> None:
    other = given_(
        Mode.SNP,
        kernel=replace(KERNEL, cmdline=f"{LINE} ", initrd=b""),
        vcpus=replace(MILAN, signature=0x00A10F10),
    )
    assert 3 == len(found(given_(Mode.SNP), digest_of(other)).causes)


# -- files that were used in place of others


def test_code_and_variables_confused() -> None:
    code = an_image(size=0x6000)
    variables = volume(0x2000)
    both = variables + code
    launch = given_(Mode.SEV_ES, image=Image(code, "CODE.fd"))
    answer = found(launch, digest_of(replace(launch, image=Image(both))), File("VARS.fd", variables))
    assert ("firmware: VARS.fd and CODE.fd were launched as one image",) == answer.causes
    combined = given_(Mode.SNP, image=Image(both, "OVMF.fd"))
    answer = found(combined, digest_of(replace(combined, image=Image(code))))
    assert ("firmware: only the code half of OVMF.fd was launched (it holds CODE and VARS)",) == answer.causes
    mistaken = given_(Mode.SEV, image=Image(variables, "VARS.fd"), kernel=None)
    answer = found(mistaken, Digest(hashlib.sha256(code).digest()), File("CODE.fd", code))
    assert ("firmware: CODE.fd was launched, not VARS.fd",) == answer.causes


def volume(size: int) -> bytes:
    """A variable store: a firmware volume that begins with its header and holds nothing."""
    head = bytes(16) + bytes(16) + size.to_bytes(8, "little") + b"_FVH"
    return head.ljust(size, b"\xff")


def test_an_image_without_metadata_is_explained_by_its_neighbour() -> None:
    launch = given_(Mode.SNP, image=Image(an_image(sections=None), "CODE_4M.fd"), kernel=None)
    assert launch.unusable()
    good = replace(launch, image=Image(an_image()))
    answer = found(launch, digest_of(good), File("OVMF.fd", an_image()))
    assert ("firmware: OVMF.fd was launched, not CODE_4M.fd",) == answer.causes


def test_a_digest_that_a_tool_computed_without_metadata_is_found() -> None:
    image = Image(an_image(sections=None))
    launch = given_(Mode.SNP, image=image, kernel=None)
    value = Digester().digest(Trial.of(launch))
    assert found(launch, Digest(value)).matches


def test_kernel_hashes_of_a_kernel_that_was_not_named() -> None:
    launch = given_(Mode.SEV, kernel=None)
    other = given_(Mode.SEV, kernel=Kernel(kernel=b"vmlinuz", initrd=b"the initrd"))
    answer = found(launch, digest_of(other), File("vmlinuz", b"vmlinuz"), File("initrd.img", b"the initrd"))
    assert (
        "kernel hashes: measured (kernel-hashes=on), with vmlinuz as the kernel",
        "initrd: initrd.img was loaded",
    ) == answer.causes


@pytest.mark.parametrize(
    ("name", "pack"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)],
)
def test_a_packed_initrd_that_was_loaded_unpacked(name: str, pack: Callable[[bytes], bytes]) -> None:
    launch = given_(Mode.SEV, **with_kernel(initrd=pack(KERNEL.initrd)))
    assert (f"initrd: decompressed ({name})",) == found(launch, digest_of(given_(Mode.SEV))).causes


def test_another_initrd_that_lies_there_packed() -> None:
    launch = given_(Mode.SEV, **with_kernel(initrd=b"an older one"))
    answer = found(launch, digest_of(given_(Mode.SEV)), File("initrd.gz", gzip.compress(KERNEL.initrd)))
    assert ("initrd: initrd.gz was loaded, decompressed (gzip)",) == answer.causes


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("without its trailing NUL", LINE.encode()),
        ("with a second NUL", LINE.encode() + b"\0\0"),
        ("a trailing newline, without NUL", LINE.encode() + b"\n"),
    ],
)
def test_a_command_line_that_was_hashed_otherwise(kind: str, raw: bytes) -> None:
    launch = given_(Mode.SEV)
    table = KERNEL.hashes.replace(cmdline_hash=hashlib.sha256(raw).digest())
    value = hashlib.sha256(an_image() + bytes(table)).digest()
    (cause,) = found(launch, Digest(value)).causes
    assert kind in cause


@pytest.mark.parametrize(
    ("own", "theirs", "words"),
    [
        ("quiet\n", "quiet", "without its trailing newline"),
        ("  quiet", "quiet", "spaces trimmed"),
        ("'quiet'", "quiet", "without the quotes around it"),
        ('root="/dev/vda"', "root=/dev/vda", "without double quotes"),
        ("a  b", "a b", "runs of spaces made one"),
        ("quiet initrd=initrd", "quiet", "without 'initrd=initrd'"),
        ("quiet", "quiet initrd=initrd", "with 'initrd=initrd' at its end"),
        ("a\\ b", "a b", "without backslashes"),
    ],
)
def test_a_command_line_that_went_through_other_hands(own: str, theirs: str, words: str) -> None:
    launch = given_(Mode.SNP, **with_kernel(cmdline=own))
    (cause,) = found(launch, digest_of(given_(Mode.SNP, **with_kernel(cmdline=theirs)))).causes
    assert words in cause


def test_a_digest_written_backwards() -> None:
    launch = given_(Mode.SNP)
    (cause,) = found(launch, Digest(launch.digest()[::-1])).causes
    assert "reverse order" in cause


# -- measurements


@dataclass(frozen=True)
class Platform:
    """What the firmware really put under its key, and what the owner holds against it."""

    api: ApiVersion = API
    build: int = 3
    policy: int = 1

    def reports(self, digest: bytes, **believed: Any) -> Measurement:
        receipt = a_launch(KEYS, digest=digest, policy=self.policy, api=self.api, build=self.build)
        owner: dict[str, Any] = {"api": API, "build": 3, "policy": 1, "blob": receipt.blob}
        return Measurement(**{"keys": KEYS, **owner, **believed})


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        (Platform(build=4), "build: the firmware's build is 4, not 3"),
        (Platform(api=ApiVersion(1, 55)), "API version: the firmware's API version is 1.55, not 1.51"),
        (Platform(api=ApiVersion(51, 1)), "the firmware's API version is 51.1, not 1.51"),
        (Platform(api=ApiVersion(77, 200)), "the firmware's API version is 77.200, not 1.51"),
        (Platform(api=ApiVersion(3, 1), build=51), "API version is 3.1, not 1.51, build 51"),
        (Platform(policy=0), "policy: the guest was launched with 0x0, not with 0x1"),
        (Platform(policy=5), "the guest was launched with 0x5, not with 0x1 (the ES bit differs)"),
        (Platform(policy=0x01000000), "policy: its bytes are in reverse order"),
        (Platform(policy=3 | 1 << 16 | 51 << 24), "launched with 0x33010003"),
        (Platform(api=ApiVersion(1, 49), build=9), "API version is 1.49, not 1.51; build: 9, not 3"),
        (Platform(policy=0, build=9), "launched with 0x0, not with 0x1; build: 9, not 3"),
    ],
    ids=str,
)
def test_the_planted_cause_of_a_measurement_is_found(platform: Platform, words: str) -> None:
    launch = given_(Mode.SEV)
    answer = found(launch, platform.reports(launch.digest()))
    assert words in "; ".join(answer.causes)


def test_the_policy_that_the_platform_reports_comes_first() -> None:
    launch = given_(Mode.SEV)
    report = Platform(policy=0x18000003).reports(launch.digest(), reported_policy=0x18000003)
    (cause,) = found(launch, report).causes
    assert "0x18000003 that the platform reports" in cause


def a_measurement(message: bytes, *, key: Key = KEYS.tik, nonce: bytes = bytes(range(16))) -> MeasureBlob:
    return MeasureBlob(measure=hmac.digest(key.material(), message, "sha256"), mnonce=nonce)


NONCE = bytes(range(16))
HEAD = b"\x04\x01\x33\x03" + b"\x01\0\0\0"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: a_measurement(HEAD + d + bytes(16)), "nonce: it is zero"),
        (lambda d: a_measurement(HEAD + d + NONCE[::-1]), "nonce: its bytes are reversed"),
        (lambda d: a_measurement(HEAD + d + NONCE, key=KEYS.tek), "keys: TIK and TEK are exchanged"),
        (lambda d: a_measurement(HEAD[4:] + d + NONCE), "older than 0.17 and measures no version"),
        (
            lambda d: MeasureBlob.parse(NONCE + a_measurement(HEAD + d + NONCE).measure),
            "nonce: it stands before the measurement",
        ),
    ],
    ids=["zero nonce", "reversed nonce", "keys", "legacy", "nonce first"],
)
def test_a_measurement_that_was_put_together_otherwise(
    make: Callable[[bytes], MeasureBlob], words: str
) -> None:
    launch = given_(Mode.SEV)
    report = Platform().reports(launch.digest(), blob=make(launch.digest()))
    assert words in "; ".join(found(launch, report).causes)


def test_an_input_and_a_word_of_the_report_together() -> None:
    launch = given_(Mode.SEV_ES, vcpus=replace(MILAN, count=1))
    other = given_(Mode.SEV_ES, vcpus=replace(MILAN, count=1, variant=Variant.INIT))
    answer = found(launch, Platform(policy=5, build=4).reports(other.digest(), policy=5))
    assert {
        "VMSA variant: init (KVM_SEV_ES_INIT), not init2",
        "build: the firmware's build is 4, not 3",
    } == set(answer.causes)


def test_no_key_is_shown() -> None:
    report = Platform().reports(bytes(32))
    for key in (KEYS.tek, KEYS.tik):
        assert key.material().hex() not in repr(report) + repr(report.exact()) + repr(
            list(report.usual())[:9]
        )


# -- no cause


def test_what_is_not_found_says_what_was_excluded() -> None:
    answer = found(given_(Mode.SEV), Digest(bytes(32)))
    assert ((), False, ()) == (answer.causes, answer.matches, answer.unfinished)
    excluded = "; ".join(answer.excluded)
    for axis in (
        "kernel hashes",
        "command line",
        "initrd",
        "kernel",
        "firmware",
        "mode",
        "two inputs together",
    ):
        assert axis in excluded
    assert answer.tried > 1000


def test_a_search_ends_in_time_and_says_what_it_left() -> None:
    seconds = itertools.count(0.0, 0.02)
    answer = explain(given_(Mode.SNP), Digest(bytes(48)), limit_s=5.0, clock=lambda: next(seconds))
    assert () == answer.causes
    assert "two inputs together" in answer.unfinished
    assert "as given" not in answer.unfinished
    assert 256 <= answer.tried <= 256 * 250


def test_a_search_is_the_same_every_time() -> None:
    value = digest_of(given_(Mode.SEV, **with_kernel(cmdline="")))
    assert found(given_(Mode.SEV), value) == found(given_(Mode.SEV), value)


def test_what_cannot_be_unpacked_is_said() -> None:
    launch = given_(Mode.SEV, **with_kernel(initrd=b"\x04\x22\x4d\x18" + bytes(9)))
    assert (
        "initrd decompressed: this Python cannot unpack lz4" in found(launch, Digest(bytes(32))).not_tried[0]
    )


# -- parts


def test_no_alternative_is_what_was_given() -> None:
    for mode in Mode:
        launch = given_(mode)
        start = Trial.of(launch)
        assert all(a.applied(start) != start for a in alternatives(launch, ()))


def test_command_lines_are_different_bytes() -> None:
    raws = [raw for _, raw in command_lines("a 'b'  c")]
    assert b"a 'b'  c\x00" not in raws


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    "image", [an_image(), an_image(hashes=NO_AREA, sections=SECTIONS[:2])], ids=["all", "less"]
)
def test_a_trial_has_the_digest_of_its_launch(mode: Mode, image: bytes) -> None:
    for kernel, count, hypervisor in itertools.product((None, KERNEL), (1, 3), Hypervisor):
        vcpus = replace(MILAN, count=count, hypervisor=hypervisor)
        launch = given_(mode, image=Image(image), kernel=kernel, vcpus=vcpus)
        if not launch.unusable():
            assert launch.digest() == Digester().digest(Trial.of(launch))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f\x8b",
        gzip.compress(b"x", mtime=0)[:-5],
        b"\xfd7zXZ\x00rubbish",
        b"BZh9",
        b"\x5d\x00\x00",
        b"\x28\xb5\x2f\xfd",
    ],
    ids=bytes.hex,
)
def test_what_is_not_really_packed_is_left_alone(data: bytes) -> None:
    assert [] == list(files.decompressed(data))


def test_members_of_gzip_one_after_the_other() -> None:
    packed = gzip.compress(b"first") + bytes(8) + gzip.compress(b"second")
    assert [("decompressed (gzip)", b"firstsecond")] == list(files.decompressed(packed))
