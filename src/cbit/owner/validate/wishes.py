"""The owner's wishes: a TOML file of what evidence must say, and all violations of it at once.

    measurement = ["8922ebbd…"]      any of these
    [policy]
    debug = false                    the bit must be exactly so
    [minimum.reported_tcb]
    snp = 24                         at least

A wish that the evidence says nothing about is not fulfilled.  A few things that nobody wants by accident are
refused without being asked for (``UNASKED``).

Paper: launch-inputs.md §8 (what an SNP report says), sev-crypto.md §1 (SEV policy, version test).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cbit.owner.validate.facts import Evidence, Kind
from cbit.spec.errors import CbitError
from cbit.spec.policy import ApiVersion
from cbit.spec.snp_report import Product


class BadWishes(CbitError, ValueError):
    """The file of wishes cannot be used: not TOML, unknown keys, values of the wrong kind.

    Evidence that does not fulfil a usable file is no error: ``violations`` lists it.
    """

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(self.reasons))


@dataclass(frozen=True, slots=True)
class Shape:
    """One form of wish.

    Attributes:
        read: takes the TOML value to what is wanted, or raises ValueError saying what it must be.
        holds: compares what is wanted with what is.
        word: what stands before the wanted value in a message.
    """

    read: Callable[[object], Any]
    holds: Callable[[Any, Any], bool]
    word: str


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(limit: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise ValueError(f"must be a number in 0..{limit:#x}")
        return value

    return read


def _version(value: object) -> ApiVersion:
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) < 4 for p in parts):
        raise ValueError('must be a version in quotes, such as "1.51"')
    major, minor = map(int, parts)
    if max(major, minor) > 0xFF:
        raise ValueError("must be a version of two numbers below 256")
    return ApiVersion(major, minor)


def _hex(*sizes: int) -> Callable[[object], bytes]:
    def read(value: object) -> bytes:
        try:
            raw = bytes.fromhex(value) if isinstance(value, str) else b""
        except ValueError:
            raw = b""
        if len(raw) not in sizes:
            raise ValueError(f"must be {' or '.join(str(2 * n) for n in sizes)} hex digits in quotes")
        return raw

    return read


def _chip_id(value: object) -> bytes:
    """Read a CHIP_ID; Turin's eight bytes may stand without the zeros behind them, as in AMD's addresses."""
    return _hex(8, 64)(value).ljust(64, b"\x00")


def _word(*known: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return value

    return read


def _vmpl(value: object) -> int | str:
    if value != "host" and (type(value) is not int or not 0 <= value <= 3):
        raise ValueError('must be 0 to 3, or "host" for a report that the host asked for')
    return value


def one_of(item: Callable[[object], Any]) -> Shape:
    """Make the wish for one of several values; a single value stands for a list of one."""

    def read(value: object) -> tuple[Any, ...]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError("must not be an empty list")
        return tuple(item(one) for one in values)

    return Shape(read, lambda wanted, actual: actual in wanted, "")


def at_least(item: Callable[[object], Any]) -> Shape:
    """Make the wish for a smallest value."""
    return Shape(item, lambda wanted, actual: bool(actual >= wanted), "at least ")


EXACTLY_SO: Final = Shape(_flag, lambda wanted, actual: wanted is actual, "")
ALL_BITS: Final = Shape(_number((1 << 63) - 1), lambda wanted, actual: actual & wanted == wanted, "all of ")

_BYTE: Final = at_least(_number(0xFF))
_HEX48: Final = one_of(_hex(48))
_HEX16: Final = one_of(_hex(16))
_HEX32: Final = one_of(_hex(32))

#: Every key of the file, dotted, and its form.
WISHES: Final[Mapping[str, Shape]] = MappingProxyType(
    {
        "evidence": one_of(_word(*(kind.value for kind in Kind))),
        "measurement": one_of(_hex(48, 32)),  # SNP; SEV and SEV-ES
        "nonce": _HEX16,
        "report_data": one_of(_hex(64)),
        "host_data": _HEX32,
        "family_id": _HEX16,
        "image_id": _HEX16,
        "report_id": _HEX32,
        "report_id_ma": _HEX32,
        "chip_id": one_of(_chip_id),
        "id_key_digest": _HEX48,
        "author_key_digest": _HEX48,
        "author_key": EXACTLY_SO,
        "vmpl": one_of(_vmpl),
        "version": one_of(_number(0xFFFFFFFF)),
        "signing_key": one_of(_word("vcek", "vlek")),
        "product": one_of(_word(*(product.value for product in Product))),
        "verified": EXACTLY_SO,
        "simulated": EXACTLY_SO,
        "policy.word": one_of(_number((1 << 63) - 1)),
        "policy.abi": at_least(_version),
        **{
            f"policy.{name}": EXACTLY_SO
            for name in (
                *("debug", "migration", "smt", "single_socket", "cxl", "aes_256_xts", "rapl_disabled"),
                *("ciphertext_hiding", "page_swap_disabled", "key_sharing", "es", "domain", "sev"),
            )
        },
        **{
            f"platform.{name}": EXACTLY_SO
            for name in ("smt", "tsme", "ecc", "rapl_disabled", "ciphertext_hiding", "alias_check", "tio")
        },
        "platform.launch_mitigations": ALL_BITS,
        "platform.current_mitigations": ALL_BITS,
        "minimum.version": at_least(_number(0xFFFFFFFF)),
        "minimum.guest_svn": at_least(_number(0xFFFFFFFF)),
        "minimum.api": at_least(_version),
        "minimum.build": _BYTE,
        **{
            f"minimum.{which}_tcb.{part}": _BYTE
            for which in ("reported", "current", "committed", "launch")
            for part in ("fmc", "boot_loader", "tee", "snp", "microcode")
        },
    }
)

#: What is refused unless the file says otherwise: a guest that the host may read, a report whose
#: REPORT_DATA the host chose, a launch whose platform nobody verified.
UNASKED: Final[Mapping[str, Any]] = MappingProxyType(
    {"policy.debug": False, "vmpl": (0, 1, 2, 3), "verified": True}
)


_BY_DEFAULT: Final = " (by default; the file may say otherwise)"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an owner wants, by dotted key."""

    wanted: Mapping[str, Any]

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The measurements that are wished for; empty if none is."""
        found: tuple[bytes, ...] = self.wanted.get("measurement", ())
        return found

    def violations(self, evidence: Evidence) -> list[str]:
        """Hold evidence against every wish.

        Returns:
            Every violation, as a sentence; empty when all is as wanted.
        """
        unasked = {name: value for name, value in UNASKED.items() if name in evidence.facts}
        found = []
        silent = evidence.kind is Kind.LAUNCH and "verified" not in evidence.facts
        for name, wanted in ({**unasked, **self.wanted}).items():
            if name in {"minimum.build", "minimum.api"}:
                continue
            if name == "verified" and silent:
                continue  # told below; false asks for nothing that could be told
            if name not in evidence.facts:
                found.append(f"{name}: {_show(wanted)} is wanted, and this {evidence.kind} does not say it")
            elif not WISHES[name].holds(wanted, evidence.facts[name]):
                aside = "" if name in self.wanted else _BY_DEFAULT
                word = WISHES[name].word
                found.append(f"{name}: {_show(evidence.facts[name])}, wanted {word}{_show(wanted)}{aside}")
        if silent and self.wanted.get("verified", UNASKED["verified"]):
            aside = "" if "verified" in self.wanted else _BY_DEFAULT
            found.append(f"verified: this {evidence.kind} does not say for whom its keys were made{aside}")
        return [*found, *self._firmware_violations(evidence)]

    def _firmware_violations(self, evidence: Evidence) -> Iterator[str]:
        """Versions compare first, builds only within one version; a build alone asks for its number."""
        api, build = self.wanted.get("minimum.api"), self.wanted.get("minimum.build")
        if api is None and build is None:
            return
        wanted = " ".join(
            (*(() if api is None else (f"API {api}",)), *(() if build is None else (f"build {build}",)))
        )
        if "minimum.api" not in evidence.facts:
            yield f"minimum: {wanted} is wanted, and this {evidence.kind} does not say it"
            return
        own_api, own_build = evidence.facts["minimum.api"], evidence.facts["minimum.build"]
        if (own_api, own_build) < (own_api if api is None else api, build or 0):
            yield f"minimum: firmware API {own_api} build {own_build}, wanted at least {wanted}"


def read_wishes(data: bytes, *, source: str) -> Wishes:
    """Read a file of wishes.

    Raises:
        BadWishes: with everything that is wrong with it: an unknown key is named with the nearest known one.
    """
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadWishes([f"{source}: not TOML ({error})"]) from None
    wanted: dict[str, Any] = {}
    reasons: list[str] = []
    for name, value in _flat(document, ""):
        shape = WISHES.get(name)
        if shape is None:
            reasons.append(f"{source}: unknown key {name}; the nearest known one is {nearest(name)}")
            continue
        try:
            wanted[name] = shape.read(value)
        except ValueError as error:
            reasons.append(f"{source}: {name} {error}")
    if not wanted and not reasons:
        reasons.append(f"{source}: wishes for nothing; everything would do")
    if reasons:
        raise BadWishes(reasons)
    return Wishes(MappingProxyType(wanted))


def nearest(name: str) -> str:
    """Return the known key that looks most like a name; a right last part counts more than the table."""
    last = name.rpartition(".")[2]

    def likeness(known: str) -> tuple[float, float]:
        own = known.rpartition(".")[2]
        ratios = [difflib.SequenceMatcher(None, *pair).ratio() for pair in ((last, own), (name, known))]
        return sum(ratios), ratios[1]

    return max(WISHES, key=likeness)


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        # A quoted key with a dot in it must not pass for a key inside a table: one wish, one place.
        name = f'{prefix}"{key}"' if "." in key else f"{prefix}{key}"
        is_table = any(known.startswith(f"{name}.") for known in WISHES)
        if isinstance(value, dict) and (value or is_table):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex() or "nothing of what is wanted"
    if isinstance(value, ApiVersion):
        return str(value)
    if isinstance(value, tuple):
        return " or ".join(map(_show, value))
    if isinstance(value, int) and value > 0xFFFF:
        return f"{value:#x}"
    return str(value)
