"""The tweak of the XE and XEX engines: a linear function of the block's physical address.

    T(p) = XOR over the bits i >= 4 that are set in p of t_i          t_i: 16 bytes each

Linear means T(p) xor T(q) = T(p xor q): that is what the block-move attacks use, and what makes bulk work
cheap here, because the tweaks of a whole piece of memory are one fixed table xor one constant.

Paper: memory-encryption.md §9 (formula), §9.1 (the published constants).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cbit.crypto.entropy import Entropy
from cbit.spec.address import BLOCK

FIRST_BIT: Final = 4  #: the lowest address bit that tells 16-byte blocks apart
END_BIT: Final = 52  #: system physical addresses are below 2**52

#: Bytes whose tweaks differ only by what `Tweak.block_table` holds; aligned, and small enough that a
#: piece of memory, its tweaks and their scratch stay in the CPU's second-level cache together.
PIECE: Final = 1 << 16

_GROUP: Final = 12  # address bits per lookup table: 16-byte blocks in a PIECE, and three groups above it

_ZEN1: Final = (  # bits 4 … 31, each a four-byte pattern in the order in which it lies in memory (§9.1)
    "82253838 ec09079c 40000018 8102a23a 77d91077 b010b2c0 536d544d 1568ee53 b09230c2 9670ff8e "
    "361b90d5 0400c236 e8182985 bd31f92a a50d3744 f431d84c 02043181 b37132a1 508ac06c 168a8020 "
    "7f9bc007 00db0407 7f000404 70fa01be bb3d2890 bd2dd526 1c5d6ce2 4f5ce727"
)


@dataclass(frozen=True, slots=True)
class Tweak:
    """The constants t_i of one machine; the same for all its keys (§9.3).

    Attributes:
        constants: address bit (4 … 51) to its 16 bytes; a bit that is not there counts as zero.
        block_table: T of the 4096 block addresses below `PIECE`, one after the other: 64 KiB.

    Raises:
        ValueError: an address bit that selects no block, or a constant that is not 16 bytes.
    """

    constants: Mapping[int, bytes]
    block_table: bytes = field(init=False, repr=False, compare=False)
    _spans: tuple[list[int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for bit, constant in self.constants.items():
            if not FIRST_BIT <= bit < END_BIT:
                raise ValueError(f"address bit {bit} has no tweak constant: {FIRST_BIT} … {END_BIT - 1}")
            if len(constant) != BLOCK:
                raise ValueError(f"tweak constant of address bit {bit} has {len(constant)} bytes, not {BLOCK}")
        constants = {bit: bytes(self.constants[bit]) for bit in sorted(self.constants)}
        numbers = [int.from_bytes(constants.get(bit, b""), "little") for bit in range(FIRST_BIT, END_BIT)]
        spans = tuple(_span(numbers[low : low + _GROUP]) for low in range(0, len(numbers), _GROUP))
        object.__setattr__(self, "constants", MappingProxyType(constants))
        object.__setattr__(self, "_spans", spans)
        object.__setattr__(self, "block_table", b"".join(t.to_bytes(BLOCK, "little") for t in spans[0]))

    def __repr__(self) -> str:
        return f"Tweak({len(self.constants)} constants)"

    def __hash__(self) -> int:
        return hash(tuple(self.constants.items()))

    @classmethod
    def zen1(cls) -> Tweak:
        """The constants that were measured on the Zen 1 family: four-byte patterns, address bits 4 … 31.

        MODEL CHOICE: t_i = 0 for bits 32 and above, which nobody published; so two blocks whose
        addresses differ only there share a tweak.

        Paper: memory-encryption.md §9.1.
        """
        patterns = (bytes.fromhex(word) for word in _ZEN1.split())
        return cls({bit: 4 * pattern for bit, pattern in enumerate(patterns, FIRST_BIT)})

    @classmethod
    def random(cls, entropy: Entropy) -> Tweak:
        """Draw fresh constants for all address bits 4 … 51, as Zen 2 does at each boot.

        MODEL CHOICE: that T(p) is still linear there is not published (§13).

        Paper: memory-encryption.md §9, row "XEX, stronger tweaks".
        """
        return cls({bit: entropy.draw(BLOCK) for bit in range(FIRST_BIT, END_BIT)})

    def at(self, spa: int) -> bytes:
        """T(p) of the block that holds ``spa``: 16 bytes.

        Raises:
            ValueError: ``spa`` is not below 2**52.
        """
        if not 0 <= spa < 1 << END_BIT:
            raise ValueError(f"physical address {spa:#x} is not below 2**{END_BIT}")
        blocks, *_ = self._spans
        return (blocks[spa >> 4 & 0xFFF] ^ self._number_above(spa)).to_bytes(BLOCK, "little")

    def of_piece(self, spa: int) -> bytes:
        """T of the `PIECE` that holds ``spa`` (below 2**52): what its address bits 16 … 51 contribute."""
        return self._number_above(spa).to_bytes(BLOCK, "little")

    def _number_above(self, spa: int) -> int:
        _, low, middle, high = self._spans
        return low[spa >> 16 & 0xFFF] ^ middle[spa >> 28 & 0xFFF] ^ high[spa >> 40]


def _span(constants: list[int]) -> list[int]:
    """XOR of every subset: entry n is the XOR of those constants whose bit is set in n."""
    sums = [0]
    for constant in constants:
        sums += [constant ^ known for known in sums]
    return sums
