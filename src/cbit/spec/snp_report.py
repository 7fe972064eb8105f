"""The SNP attestation report (0x4A0 bytes), its words taken apart, and the table of certificates beside it.

    0x000 who the guest is, what was measured, on which firmware │ 0x2A0 signature of the VCEK or VLEK

Paper: launch-inputs.md §8 (report), §9 (products, certificate table).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import KEEP, IntEnum, IntFlag, StrEnum
from types import MappingProxyType
from typing import Final, Self
from uuid import UUID

from cbit.spec.certificate import EcdsaSignature
from cbit.spec.errors import NotModelled, WireError
from cbit.spec.policy import ApiVersion
from cbit.spec.wire import Wire, at

REPORT_SIZE: Final = 0x4A0
SIGNED_SIZE: Final = 0x2A0  #: what the signature covers
VERSIONS: Final = (2, 3, 4, 5)
ECDSA_P384_SHA384: Final = 1  #: the only SIGNATURE_ALGO
LARGEST_VMPL: Final = 3
HOST_VMPL: Final = 0xFFFFFFFF  #: the host asked for the report, not the guest
NO_MIGRATION_AGENT: Final = b"\xff" * 32


class Product(StrEnum):
    """A generation of processors with SNP, as AMD's key server names it; one root stands over each."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


# fmt: off
#: Family, first and last model, and whose chain signs their reports (§9).
PROCESSORS: Final = (
    (0x19, 0x00, 0x0F, Product.MILAN),
    (0x19, 0x10, 0x1F, Product.GENOA),
    (0x19, 0xA0, 0xAF, Product.GENOA),
    (0x1A, 0x00, 0x11, Product.TURIN),
)
# fmt: on


def product_of(family: int, model: int) -> Product:
    """Return the product of a processor, from the family and model that its report names.

    Raises:
        NotModelled: no product here has them (Venice among them, whose TCB layout the dossier lacks).
    """
    for own, first, last, product in PROCESSORS:
        if family == own and first <= model <= last:
            return product
    raise NotModelled(f"processor family {family:#x} model {model:#x} is no product with SNP that is known")


#: Components of a TCB version by byte; None is reserved and zero.
TCB_LAYOUTS: Final[Mapping[Product, tuple[str | None, ...]]] = MappingProxyType(
    {
        Product.MILAN: ("boot_loader", "tee", None, None, None, None, "snp", "microcode"),
        Product.GENOA: ("boot_loader", "tee", None, None, None, None, "snp", "microcode"),
        Product.TURIN: ("fmc", "boot_loader", "tee", "snp", None, None, None, "microcode"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbVersion:
    """Security versions of the firmware's parts; compared part by part, never as one number.

    Paper: launch-inputs.md §8.
    """

    boot_loader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None  #: Turin only

    @classmethod
    def parse(cls, raw: bytes, product: Product) -> Self:
        """Take the eight bytes apart.

        Raises:
            WireError: not eight bytes, or a reserved one is not zero.
        """
        layout = TCB_LAYOUTS[product]
        if len(raw) != len(layout):
            raise WireError(f"TCB version: {len(raw)} bytes, must be {len(layout)}")
        reserved = [index for index, name in enumerate(layout) if name is None and raw[index]]
        if reserved:
            raise WireError(
                f"TCB version {raw.hex()}: byte {reserved[0]} is reserved on {product} and not zero"
            )
        return cls(**{name: raw[index] for index, name in enumerate(layout) if name is not None})

    def components(self) -> dict[str, int]:
        """Every part that this product has, by name."""
        parts = (
            ("fmc", self.fmc),
            ("boot_loader", self.boot_loader),
            ("tee", self.tee),
            ("snp", self.snp),
            ("microcode", self.microcode),
        )
        return {name: number for name, number in parts if number is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in self.components().items())


class SnpPolicyFlag(IntFlag, boundary=KEEP):
    """Policy bits above the ABI version.  Unlike SEV's, a set DEBUG or MIGRATE_MA *allows*."""

    SMT = 1 << 16  #: the guest may run where hyper-threading is on
    MUST_BE_ONE = 1 << 17
    MIGRATE_MA = 1 << 18  #: a migration agent may move the guest
    DEBUG = 1 << 19  #: the host may debug it, that is read all of it
    SINGLE_SOCKET = 1 << 20  #: it may run on one socket only
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22  #: memory must be encrypted with AES-256-XTS
    RAPL_DIS = 1 << 23  #: power metering must be off
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


_POLICY_BITS: Final = 0x3FFFFFF


@dataclass(frozen=True, slots=True)
class SnpPolicy:
    """The 64-bit policy of an SNP guest: flags and the minimum ABI version.

    Paper: launch-inputs.md §8.
    """

    flags: SnpPolicyFlag
    min_abi: ApiVersion

    @classmethod
    def of(cls, word: int) -> Self:
        """Take a policy word apart, whatever it says."""
        return cls(SnpPolicyFlag(word & ~0xFFFF), ApiVersion(word >> 8 & 0xFF, word & 0xFF))

    def problems(self) -> Iterator[str]:
        """Name what no policy of an existing guest says."""
        word = int(self)
        if word & ~_POLICY_BITS:
            yield f"policy {word:#x} sets reserved bits {word & ~_POLICY_BITS:#x}"
        if SnpPolicyFlag.MUST_BE_ONE not in self.flags:
            yield f"policy {word:#x}: bit 17 must be 1"

    def __int__(self) -> int:
        return int(self.flags) | self.min_abi.major << 8 | self.min_abi.minor

    def __str__(self) -> str:
        named = [flag.name or "" for flag in SnpPolicyFlag if flag in self.flags]
        return f"{int(self):#x} ({'|'.join(named) or 'none'}, ABI >= {self.min_abi})"


class PlatformInfo(IntFlag, boundary=KEEP):
    """What is on in the platform.

    Paper: launch-inputs.md §8.
    """

    SMT = 1 << 0
    TSME = 1 << 1
    ECC = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    TIO = 1 << 7


#: Bits that a platform may set.  Bit 6 has no name in any source, and real Turin firmware sets it.
PLATFORM_BITS: Final = 0xFF


class SigningKey(IntEnum):
    """Which key signed the report."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class SnpReport(Wire, size=REPORT_SIZE):
    """An attestation report as MSG_REPORT_RSP carries it.

    Version 2 has neither the CPUID bytes nor the mitigation vectors (zero there), 3 has the former, 5 both.
    MODEL CHOICE: version 4, which no source describes, is read as 3.

    Paper: launch-inputs.md §8.
    """

    version: int = at(0x000, 4)
    guest_svn: int = at(0x004, 4)
    policy: int = at(0x008, 8)
    family_id: bytes = at(0x010, 16)
    image_id: bytes = at(0x020, 16)
    vmpl: int = at(0x030, 4)
    signature_algo: int = at(0x034, 4, default=ECDSA_P384_SHA384)
    current_tcb: bytes = at(0x038, 8)
    platform_info: PlatformInfo = at(0x040, 8)
    key_info: int = at(0x048, 4)  # bit 0 AUTHOR_KEY_EN, 1 MASK_CHIP_KEY, 4:2 SIGNING_KEY
    report_data: bytes = at(0x050, 64)
    measurement: bytes = at(0x090, 48)
    host_data: bytes = at(0x0C0, 32)
    id_key_digest: bytes = at(0x0E0, 48)
    author_key_digest: bytes = at(0x110, 48)
    report_id: bytes = at(0x140, 32)
    report_id_ma: bytes = at(0x160, 32)
    reported_tcb: bytes = at(0x180, 8)
    cpuid_family: int = at(0x188, 1)  # version 3 on, as are the next two
    cpuid_model: int = at(0x189, 1)
    cpuid_stepping: int = at(0x18A, 1)
    chip_id: bytes = at(0x1A0, 64)
    committed_tcb: bytes = at(0x1E0, 8)
    current_build: int = at(0x1E8, 1)
    current_minor: int = at(0x1E9, 1)
    current_major: int = at(0x1EA, 1)
    committed_build: int = at(0x1EC, 1)
    committed_minor: int = at(0x1ED, 1)
    committed_major: int = at(0x1EE, 1)
    launch_tcb: bytes = at(0x1F0, 8)
    launch_mit_vector: int = at(0x1F8, 8)  # version 5
    current_mit_vector: int = at(0x200, 8)  # version 5
    r: int = at(0x2A0, 72)  # little-endian, as in certificates; what follows S is padding
    s: int = at(0x2E8, 72)

    @property
    def signature(self) -> EcdsaSignature:
        """The signature over the first 0x2A0 bytes."""
        return EcdsaSignature(r=self.r, s=self.s)

    @property
    def author_key_en(self) -> bool:
        """Whether the guest's ID key was certified by an author key."""
        return bool(self.key_info & 1)

    @property
    def mask_chip_key(self) -> bool:
        """Whether the platform withholds its *key*: then zeros stand for a signature (decision 12)."""
        return bool(self.key_info & 2)

    @property
    def signing_key(self) -> SigningKey | None:
        """The key that signed, or None for a number that is reserved."""
        number = self.key_info >> 2 & 7
        return SigningKey(number) if number in set(SigningKey) else None

    @property
    def product(self) -> Product | None:
        """The product that the report itself names; version 2 names none.

        Raises:
            NotModelled: the processor is none of those known here.
        """
        return product_of(self.cpuid_family, self.cpuid_model) if self.version >= 3 else None

    @property
    def likely_product(self) -> Product | None:
        """The product, also of a version 2 report where its chip id tells: Turin's have 8 bytes.

        Raises:
            NotModelled: as ``product``.
        """
        short = any(self.chip_id[:8]) and not any(self.chip_id[8:])
        return Product.TURIN if self.version < 3 and short else self.product

    @property
    def current_api(self) -> ApiVersion:
        """Version of the running firmware."""
        return ApiVersion(self.current_major, self.current_minor)

    @property
    def committed_api(self) -> ApiVersion:
        """Version below which the platform cannot go back."""
        return ApiVersion(self.committed_major, self.committed_minor)


class CertTableEntry(Wire, size=0x18):
    """One entry of the certificate table that an extended report brings along.

    Paper: launch-inputs.md §9.
    """

    guid: bytes = at(0x00, 16)  # big-endian (RFC 4122), unlike the GUIDs of firmware
    offset: int = at(0x10, 4)  # from the table's start
    length: int = at(0x14, 4)


VCEK_GUID: Final = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK_GUID: Final = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK_GUID: Final = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK_GUID: Final = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
CRL_GUID: Final = UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")  #: a revocation list (decision 12)

CERT_GUIDS: Final = (VCEK_GUID, VLEK_GUID, ASK_GUID, ARK_GUID)
_KNOWN: Final = (*CERT_GUIDS, CRL_GUID)
_MOST_ENTRIES: Final = 64  # far above what a host hands over; bounds the work on a hostile table


def looks_like_cert_table(data: bytes) -> bool:
    """Say whether bytes are a certificate table, whatever stands in it, or begin as one and are broken."""
    if data[:16] in {raw for guid in _KNOWN for raw in (guid.bytes, guid.bytes_le)}:
        return True
    try:
        return bool(parse_cert_table(data))
    except WireError:
        return False


def _guid(raw: bytes) -> UUID:
    """Read a GUID as RFC 4122 writes it; hosts that write it as UEFI does are understood too."""
    return next((guid for guid in _KNOWN if guid.bytes_le == raw), UUID(bytes=raw))


def parse_cert_table(data: bytes) -> dict[UUID, bytes]:
    """Take a certificate table apart: what stands under each GUID.

    Raises:
        WireError: no all-zero entry ends it, an entry is empty, points outside or into the entries, or a GUID
            stands twice.
    """
    entries: list[CertTableEntry] = []
    end = 0
    for start in range(0, len(data) - CertTableEntry.SIZE + 1, CertTableEntry.SIZE):
        raw = data[start : start + CertTableEntry.SIZE]
        if not any(raw):
            end = start + CertTableEntry.SIZE
            break
        if len(entries) == _MOST_ENTRIES:
            raise WireError(f"certificate table: more than {_MOST_ENTRIES} entries")
        entries.append(CertTableEntry.parse(raw))
    if not end:
        raise WireError("certificate table: cut short, no all-zero entry ends it")
    found: dict[UUID, bytes] = {}
    for entry in entries:
        guid = _guid(entry.guid)
        if guid in found:
            raise WireError(f"certificate table: {guid} stands twice")
        if entry.offset < end or entry.offset + entry.length > len(data) or not entry.length:
            raise WireError(
                f"certificate table: {guid} at {entry.offset:#x}, {entry.length} bytes, is not inside"
            )
        found[guid] = data[entry.offset : entry.offset + entry.length]
    return found


def build_cert_table(certificates: Mapping[UUID, bytes]) -> bytes:
    """Lay out a certificate table, as a host hands it to its guests."""
    head, body = b"", b""
    start = CertTableEntry.SIZE * (len(certificates) + 1)
    for guid, raw in certificates.items():
        entry = CertTableEntry(guid=guid.bytes, offset=start + len(body), length=len(raw))
        head, body = head + bytes(entry), body + raw
    return head + bytes(CertTableEntry.SIZE) + body
