"""A10 step 1: the constants of the address tweak, measured in a guest of one's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from cbit.attacks.experiments.known_constants import CONSTANTS
from cbit.attacks.lab.attack import Range, attack
from cbit.attacks.lab.corpus import xor
from cbit.attacks.lab.gf2 import solve
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import AGREES, Log, curve
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.own_guest import OwnGuest
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.lab.tools import Thwarted
from cbit.attacks.power import Power
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.memory_modes import Mode as Engine
from cbit.spec.address import BLOCK, GIB, PAGE, Spa

BITS = range(4, 32)  #: what was published; above, the constants are not known to anybody here
_SOURCE = "SEVurity §III, §IV-C (attacks.md A10)"


def engine_constants(stand: Stand) -> Scene:
    """There is no victim: what is sought are the constants of the machine's engine."""
    tweak = stand.machine.controller._tweak  # the lab alone may look
    assert tweak is not None
    constants = tuple(tweak.constants[bit] for bit in BITS)
    blocks = stand.number("blocks") if "blocks" in stand.parameters else 0
    own = OwnGuest(stand.host, sev=stand.mode is Mode.SEV)
    at, stored = stand.host.frames.take(PAGE).start, b"sixteen bytes ok"
    own.store(at, stored)
    stand.host.flush_caches()
    cells = stand.host.read(Spa(at), BLOCK)
    serves = cells != stored == own.load(at, BLOCK)  # the engine encrypts, and it decrypts
    own.end()
    return Scene(
        constants, Facts({"blocks": blocks}), planted=len(set(constants)) == len(BITS), serves=serves
    )


def _pages(count: int, seed: str) -> list[int]:
    """Choose pages all over the upper half of 4 GiB, where the host has nothing."""
    drawn = np.frombuffer(SeededEntropy(seed).draw(4 * count), np.uint32)
    return [2 * GIB + int(page) % (2 * GIB // PAGE) * PAGE for page in drawn] + [GIB, GIB + PAGE]


EXPECT = {
    Mode.NONE: does_not_apply("nothing is encrypted"),
    Mode.SME: succeeds("the host's own key serves as well: the constants are the engine's"),
    Mode.SEV: succeeds("all keys of a machine share its constants"),
    Mode.SEV_ES: SUCCEEDS,
    Mode.SEV_SNP: stopped_by("parts with SNP draw fresh constants at each boot, or use XTS"),
}


def _known(log: Log, constants: dict[int, bytes]) -> bytes:
    """Write down what was found, and give it back as loot."""
    found = [constants[bit] for bit in BITS if bit in constants]
    if found:
        log.step(f"{len(found)} constants: t_4 = {found[0].hex()} …", b"".join(found))
    log.figure("constants recovered", len(found), published="28", source=_SOURCE, difference=AGREES)
    return b"".join(found)


@attack(
    title="Tweak constants of XE by linear algebra",
    experiment="E6",
    paper="Du et al. 2017 (A5); SEVurity, S&P 2020 (A10); memory-encryption.md §9.2",
    holds={Power.RUN_GUEST, Power.MAP_MEMORY, Power.FLUSH_CACHES},
    expect=EXPECT,
    defences={
        "xex": stopped_by(
            "XEX adds the tweak before the cipher as well: no move is a linear equation",
            shown="equations contradict the others",
        )
    },
    victim=engine_constants,
    setup=Setup(engine=Engine.XE, memory=4 * GIB),
    setups={"xex": Setup(engine=Engine.XEX, memory=4 * GIB)},
    executes=False,
)
def tweak_constants_xe(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Move ciphertext between two addresses of one's own guest: the difference of the plaintexts is T(p ^ q).

    Under XE, Dec(Enc(m, p), q) = m ^ T(p) ^ T(q).  T is linear in the address bits, so each move is one
    linear equation for the constants, and a few more equations than unknowns solve it.
    """
    own, pages = hands.own_guest(), _pages(48, "xe")
    equations: list[tuple[int, bytes]] = []
    for p, q in zip(pages, pages[1:] + pages[:1], strict=True):
        here, there = p, q + 37 * len(equations) % 256 * BLOCK
        own.store(here, bytes(BLOCK))
        hands.caches.write_back()
        hands.memory.write(there, hands.memory.read(here, BLOCK))
        hands.caches.write_back()
        equations.append(((here ^ there) >> 4, own.load(there, BLOCK)))
        hands.caches.write_back()
    log.step(f"{len(equations)} blocks moved; the last one decrypts to", equations[-1][1])
    log.figure("blocks moved", len(equations))
    constants = solve(equations)
    if wrong := sum(not _holds(equation, constants) for equation in equations):
        raise Thwarted(f"{wrong} of {len(equations)} equations contradict the others: moved blocks are noise")
    return _known(log, {bit + 4: value for bit, value in constants.items()})


def _holds(equation: tuple[int, bytes], constants: Mapping[int, bytes]) -> bool:
    """Whether the constants give what a move gave, as far as they are known."""
    mask, total = equation
    bits = [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
    if any(bit not in constants for bit in bits):
        return True
    return functools.reduce(xor, (constants[bit] for bit in bits), total) == bytes(BLOCK)


_LOOK = 1 << 16  # blocks between two looks for collisions


@attack(
    title="Tweak constants of XEX by collisions",
    experiment="E6",
    paper="SEVurity, S&P 2020 (A10); memory-encryption.md §9.2",
    holds={Power.RUN_GUEST, Power.MAP_MEMORY, Power.FLUSH_CACHES},
    expect=EXPECT,
    defences={
        "fresh": stopped_by(
            "Zen 2 and later: 128-bit constants without a period, drawn at each boot",
            shown="no collision among",
        )
    },
    victim=engine_constants,
    setup=Setup(engine=Engine.XEX, memory=4 * GIB, cache=1 << 22),
    setups={"fresh": Setup(profile="rome", engine=Engine.XEX, memory=4 * GIB, cache=1 << 22)},
    parameters={"blocks": Range(1 << 20, 256, 1 << 24, 256), **CONSTANTS},
    executes=False,
)
def tweak_constants_xex(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Encrypt random four-byte patterns all over memory in a guest of one's own, and look for collisions.

    Under XEX a moved block decrypts to noise, so the published attack guesses a constant's 32-bit pattern and
    tests the guess by moving a block: 2^31 tests for each of 28 constants.  There is a shorter way.

    With g(x) = AES(x) ^ x, the ciphertext at p XOR the plaintext m is g(m ^ T(p)).  Two blocks for which
    these agree have m ^ T(p) = m' ^ T(q): one linear equation, T(p ^ q) = m ^ m'.  As tweaks have a period of
    four bytes, blocks of four-byte patterns collide after about 2^16 of them, and a million gives more than a
    hundred equations.

    Constants of 128 bits would want 2^64 blocks.
    """
    own, budget = hands.own_guest(), facts.number("blocks")
    randomness = np.random.Generator(np.random.SFC64(1))
    sums, plain = np.empty((budget, 2), np.uint64), np.empty((budget, 2), np.uint64)
    where = np.empty(budget, np.uint64)
    pages, done, points = _pages(62, "xex"), 0, []
    equations: list[tuple[int, bytes]] = []
    constants: dict[int, bytes] = {}
    while done + 256 <= budget and len(constants) < len(BITS):
        batch = pages[: (budget - done) // 256]
        rows = slice(done, done + 256 * len(batch))
        pattern = randomness.integers(0, 1 << 32, 256 * len(batch), dtype=np.uint64)
        plain[rows] = np.repeat(pattern | pattern << np.uint64(32), 2).reshape(-1, 2)
        where[rows] = np.add.outer(np.array(batch), BLOCK * np.arange(256)).ravel()
        stored = plain[rows].tobytes()
        own.store_all([(page, stored[PAGE * i : PAGE * (i + 1)]) for i, page in enumerate(batch)])
        hands.caches.write_back()
        cells = b"".join(hands.memory.read(page, PAGE) for page in batch)
        sums[rows] = np.frombuffer(cells, np.uint64).reshape(-1, 2) ^ plain[rows]
        done = rows.stop
        if done // _LOOK > (done - 256 * len(batch)) // _LOOK or done + 256 > budget:
            equations = _collisions(sums[:done], plain[:done], where[:done])
            points.append((done / 1000, float(len(equations))))
            constants = solve(equations)
    log.step(
        f"{done} blocks encrypted, {len(equations)} collisions",
        picture=curve("thousand blocks", "collisions", points),
    )
    log.figure(
        "own encryptions for all constants",
        done,
        "blocks",
        published="derived: 2^31 tests expected for each constant (about 30 minutes for each)",
        source=_SOURCE,
        difference="collisions among all blocks stand in for guesses of one constant at a time",
    )
    log.figure("collisions", len(equations))
    if not equations:
        raise Thwarted(f"no collision among {done} blocks")
    return _known(log, {bit + 4: value for bit, value in constants.items()})


def _collisions(
    sums: np.ndarray[tuple[int, int], np.dtype[np.uint64]],
    plain: np.ndarray[tuple[int, int], np.dtype[np.uint64]],
    where: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> list[tuple[int, bytes]]:
    """Pairs of blocks whose sums agree, as equations."""
    order = np.argsort(sums[:, 0])
    ordered = sums[order]
    same = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    equations = []
    for index in same:
        a, b = int(order[index]), int(order[index + 1])
        if where[a] != where[b]:
            difference = int(where[a] ^ where[b]) >> 4
            equations.append((difference, (plain[a] ^ plain[b]).tobytes()))
    return equations
