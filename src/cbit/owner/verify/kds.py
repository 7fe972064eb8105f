"""What AMD's key server writes into a VCEK or VLEK certificate: for which chip, under which firmware.

    1.3.6.1.4.1.3704.1.  1 structure version   2 product name      3.1 … 3.9 security versions
                         4 hardware id (VCEK)  5 provider's id (VLEK)

Paper: launch-inputs.md §9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cbit.owner.errors import Untrusted
from cbit.owner.verify import der
from cbit.owner.verify.der import Der
from cbit.owner.verify.x509 import Certificate
from cbit.spec.errors import WireError
from cbit.spec.snp_report import Product, SigningKey, SnpReport, TcbVersion

_ARC: Final = "1.3.6.1.4.1.3704.1."
_STRUCTURE: Final = f"{_ARC}1"
_PRODUCT: Final = f"{_ARC}2"
_HARDWARE_ID: Final = f"{_ARC}4"
_PROVIDER_ID: Final = f"{_ARC}5"

#: The leaf's common name to the key that it is about.
LEAVES: Final[Mapping[str, SigningKey]] = MappingProxyType(
    {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}
)

#: Product names to the product whose chain stands above them: Siena and Bergamo have Genoa's authorities.
PRODUCTS: Final[Mapping[str, Product]] = MappingProxyType(
    {product.value: product for product in Product} | dict.fromkeys(("Siena", "Bergamo"), Product.GENOA)
)

#: Parts of the TCB to their extensions.
_PARTS: Final[Mapping[str, str]] = MappingProxyType(
    {"boot_loader": f"{_ARC}3.1", "tee": f"{_ARC}3.2", "snp": f"{_ARC}3.3", "microcode": f"{_ARC}3.8"}
)
_FMC: Final = f"{_ARC}3.9"
_STRUCTURES: Final = (0, 1)  # the real ones of Milan and Genoa, and of Turin (decision 12)
#: Parts without a meaning yet, which are there and 0: where Turin has its FMC, the others have a fourth.
_RESERVED: Final = tuple(f"{_ARC}3.{n}" for n in (5, 6, 7))
_FOURTH: Final = f"{_ARC}3.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """What a leaf says about its key.

    Attributes:
        signing_key: VCEK (of one chip) or VLEK (of one provider's machines).
        product: the generation of processors.
        product_name: as written, with the stepping if there is one ("Milan-B0").
        tcb: the firmware that the key was derived for: under older firmware a chip has another key.
        hardware_id: the chip (VCEK; 64 bytes, Turin 8); empty for a VLEK.
        provider_id: the provider (VLEK); empty for a VCEK.
    """

    signing_key: SigningKey
    product: Product
    product_name: str
    tcb: TcbVersion
    hardware_id: bytes
    provider_id: str

    @property
    def chip_id(self) -> bytes | None:
        """CHIP_ID as a report of this chip carries it (Turin's 8 bytes and zeros); None for a VLEK."""
        return self.hardware_id.ljust(64, b"\x00") if self.hardware_id else None


def read_endorsement(leaf: Certificate) -> Endorsement:
    """Read the extensions of a leaf.

    Raises:
        Untrusted: one is missing, malformed, or does not belong to this kind of leaf.
    """
    try:
        return _read(leaf)
    except WireError as error:
        raise Untrusted([str(error)]) from None


def vcek_address(report: SnpReport) -> str:
    """Return where AMD's key server hands out the VCEK for the chip and firmware of a report.

    Version 2 of the report does not name its product: unless its chip id is Turin's, the address then says
    PRODUCT, and reads the TCB as Milan's and Genoa's.

    Raises:
        NotModelled: the report's processor is not known.
        WireError: its TCB is malformed.
    """
    product = report.likely_product
    tcb = TcbVersion.parse(report.reported_tcb, product or Product.MILAN)
    chip_id = report.chip_id[:8] if product is Product.TURIN else report.chip_id
    spls = "&".join(f"{_SPL_NAMES[part]}SPL={number:02d}" for part, number in tcb.components().items())
    return f"https://kdsintf.amd.com/vcek/v1/{product or 'PRODUCT'}/{chip_id.hex()}?{spls}"


_SPL_NAMES: Final = {"fmc": "fmc", "boot_loader": "bl", "tee": "tee", "snp": "snp", "microcode": "ucode"}


def _read(leaf: Certificate) -> Endorsement:
    kind = LEAVES.get(leaf.common_name)
    if kind is None:
        raise WireError(
            f"{leaf.source}: the common name {leaf.common_name!r} is neither SEV-VCEK nor SEV-VLEK"
        )
    structure = _number(leaf, _STRUCTURE, "structure version")
    if structure not in _STRUCTURES:
        raise WireError(f"{leaf.source}: structure version {structure}: only 0 and 1 are known")
    name = _text(leaf, _PRODUCT, "product name")
    product = PRODUCTS.get(name.partition("-")[0])
    if product is None:
        raise WireError(f"{leaf.source}: product {name!r} is none of {', '.join(PRODUCTS)}")
    parts = {part: _number(leaf, oid, part) for part, oid in _PARTS.items()}
    turin = product is Product.TURIN
    fmc = _number(leaf, _FMC, "fmc") if turin else None
    _absent(leaf, _FOURTH if turin else _FMC, on=f" of {product}")
    for oid in _RESERVED if turin else (_FOURTH, *_RESERVED):
        if _number(leaf, oid, "reserved part") != 0:
            raise WireError(f"{leaf.source}: extension {oid} is reserved on {product} and not 0")
    return Endorsement(
        signing_key=kind,
        product=product,
        product_name=name,
        tcb=TcbVersion(**parts, fmc=fmc),
        hardware_id=_hardware_id(leaf, product) if kind is SigningKey.VCEK else _absent(leaf, _HARDWARE_ID),
        provider_id=_provider_id(leaf, kind),
    )


def _provider_id(leaf: Certificate, kind: SigningKey) -> str:
    if kind is SigningKey.VLEK:
        return _text(leaf, _PROVIDER_ID, "provider's id")
    return _absent(leaf, _PROVIDER_ID).decode()


def _value(leaf: Certificate, oid: str, what: str) -> bytes:
    found = leaf.extensions.get(oid)
    if found is None:
        raise WireError(
            f"{leaf.source}: a {leaf.common_name} certificate without its {what} (extension {oid})"
        )
    return found.value


def _absent(leaf: Certificate, oid: str, *, on: str = "") -> bytes:
    if oid in leaf.extensions:
        raise WireError(f"{leaf.source}: a {leaf.common_name} certificate{on} has no extension {oid}")
    return b""


def _number(leaf: Certificate, oid: str, what: str) -> int:
    reader = Der(_value(leaf, oid, what), what=f"{leaf.source}: extension {oid}")
    number = reader.integer()
    reader.done()
    if not 0 <= number <= 0xFF:
        raise WireError(f"{leaf.source}: {what} {number} (extension {oid}) is not one byte")
    return number


def _text(leaf: Certificate, oid: str, what: str) -> str:
    reader = Der(_value(leaf, oid, what), what=f"{leaf.source}: extension {oid}")
    raw = reader.take(der.IA5_STRING)
    reader.done()
    text = raw.decode("ascii", "replace")
    if not raw or not text.isprintable() or not text.isascii():
        raise WireError(f"{leaf.source}: the {what} (extension {oid}) is no printable text")
    return text


def _hardware_id(leaf: Certificate, product: Product) -> bytes:
    """Older certificates hold the bare bytes, newer ones an OCTET STRING of them; the length tells."""
    size = 8 if product is Product.TURIN else 64
    value = _value(leaf, _HARDWARE_ID, "hardware id")
    if len(value) == size:
        return value
    reader = Der(value, what=f"{leaf.source}: hardware id")
    raw = reader.take(der.OCTET_STRING)
    reader.done()
    if len(raw) != size:
        raise WireError(f"{leaf.source}: a hardware id of {len(raw)} bytes, {product} has {size}")
    return raw
