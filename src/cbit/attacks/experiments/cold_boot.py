"""E1, A1: what is in the modules when the power is cut, or when the machine is reset."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cbit.attacks.key_schedule import expand
from cbit.attacks.lab.attack import Range, attack
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.key_search import AES_128, AES_256, aes_keys
from cbit.attacks.lab.log import Field, Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.rsa_search import find_modulus, read_numbers, rebuild
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.power import Power
from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.guest.builtin.interface import LONGEST, MESSAGE_KEY, ROUND_KEYS, SEALED, Request
from cbit.guest.builtin.sealed import KEY_BYTES, LONG_KEY_BYTES, seal
from cbit.owner.secret import table_of
from cbit.spec.address import BLOCK, MIB, PAGE

E, BITS = 65537, 1024
RSA_KEY: Final = UUID("6d2b64d2-7e5d-4c07-9a3e-0d1f52c8b7a4")  #: in the owner's table
_CELLS: Final = 2048  # of the picture of an image
_A_MOMENT: Final = 200  # blocks of code


def _prime(entropy: Entropy, bits: int) -> int:
    while True:
        drawn = int.from_bytes(entropy.draw(bits // 8), "big") | 3 << bits - 2 | 1
        small = drawn % E == 1 or not all(drawn % prime for prime in (3, 5, 7, 11, 13, 17, 19, 23, 29))
        if not small and all(pow(base, drawn - 1, drawn) == 1 for base in (2, 3, 5)):
            return drawn


def at_work(stand: Stand) -> Scene:
    """Start two built-in guests with keys of two sizes and an RSA key; stop both while they open a letter."""
    p, q = _prime(stand.entropy, BITS // 2), _prime(stand.entropy, BITS // 2)
    keys: list[bytes] = []
    works = True
    for size, more in ((KEY_BYTES, []), (LONG_KEY_BYTES, [(RSA_KEY, _file(p, q))])):
        key = Key(stand.entropy.draw(size))
        guest = stand.built_in(table_of([(MESSAGE_KEY, key.material()), *more]))
        guest.vm.load(SEALED, seal(key, bytes(LONGEST), entropy=stand.entropy))
        asked, schedule = guest.put(Request.OPEN), expand(key.material())
        while asked.status is None and guest.peek(ROUND_KEYS, len(schedule)) != schedule:
            guest.small.turn(_A_MOMENT)
        keys.append(key.material())
        works = works and asked.status is None
    facts = Facts(
        {"modulus": (p * q).to_bytes(BITS // 8, "big"), "decay": float(stand.parameters.get("decay", 0))}
    )
    return Scene((*keys, min(p, q).to_bytes(BITS // 16, "big")), facts, guest, planted=works, serves=works)


def _file(p: int, q: int) -> bytes:
    """A private key as a web server keeps it."""
    d = pow(E, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(E, p * q)
    )
    return numbers.private_key().private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


_LOST = stopped_by("the key was in the chip and is gone with the power: what is left is noise")


@attack(
    title="Cold boot",
    experiment="E1",
    paper="Halderman et al., USENIX Security 2008 (attacks.md A1)",
    holds={Power.CUT_POWER, Power.FLUSH_CACHES},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: _LOST,
        Mode.SEV: _LOST,
        Mode.SEV_ES: _LOST,
        Mode.SEV_SNP: _LOST,
    },
    victim=at_work,
    setup=Setup(memory=8 * MIB),
    parameters={"decay": Range(0.02, 0.0, 1.0)},
)
def cold_boot(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Cut the power, carry the modules away, and look for keys in what has not faded.

    An expanded AES key is many times as long as the key and obeys relations everywhere, so it can be found at
    any offset and mended when some of its bits have fallen.  A private RSA key holds five numbers that follow
    from one another.  Under memory encryption the image is noise, and a single fallen bit of ciphertext makes
    sixteen bytes of other noise: there is nothing to mend.
    """
    hands.caches.write_back()
    decay = facts.real("decay")
    image = hands.carry_away(decay=decay)
    log.step(f"{len(image) >> 20} MiB read after {decay:.1%} of the charged cells had faded", _begin(image))
    loot = _search(image, facts, log)
    log.figure("keys found", len(loot))
    return b"".join(loot)


_NEW: Final = stopped_by("the key is drawn anew at every reset: what the old one encrypted is noise")


@attack(
    title="Warm reset",
    experiment="E1",
    paper="attacks.md A1, the reset caveat; Halderman et al., USENIX Security 2008",
    holds={Power.RESET, Power.FLUSH_CACHES},
    expect={
        Mode.NONE: succeeds("nothing fades, for the modules keep their power"),
        Mode.SME: _NEW,
        Mode.SEV: _NEW,
        Mode.SEV_ES: _NEW,
        Mode.SEV_SNP: _NEW,
    },
    victim=at_work,
    setup=Setup(memory=8 * MIB),
)
def warm_reset(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Reset the machine without cutting the power, start software of one's own, and look for keys in memory.

    Nothing fades.  The software can map memory with C=1 as well: it gets what the new key makes of the old
    ciphertext.
    """
    hands.caches.write_back()
    loot: list[bytes] = []
    for c, image in enumerate(hands.reset()):
        log.step(f"{len(image) >> 20} MiB read with C={c} after the reset", _begin(image))
        loot += _search(image, facts, log)
    log.figure("keys found", len(loot))
    return b"".join(loot)


def _begin(image: bytes) -> bytes:
    """What an image begins with, behind zeros."""
    at = len(image) - len(image.lstrip(b"\0"))
    return image[at & -BLOCK :][:PAGE]


def _search(image: bytes, facts: Facts, log: Log) -> list[bytes]:
    """Find AES keys, and a prime factor of the public modulus; draw where they were."""
    loot, places = [], []
    for name, kind in (("AES-128", AES_128), ("AES-256", AES_256)):
        for offset, key in aes_keys(image, kind):
            log.step(
                f"{name} key schedule at {offset:#x}, as it was read",
                image[offset : offset + 4 * kind.rounds],
            )
            loot.append(key)
            places.append(offset)
    modulus = facts.data("modulus")
    for offset in find_modulus(image, modulus):
        log.step(
            f"the public modulus at {offset:#x}, and the private numbers behind it",
            image[offset : offset + PAGE],
        )
        primes = rebuild(read_numbers(image, offset, len(modulus)), int.from_bytes(modulus, "big"), E)
        if primes is not None:
            factor = min(primes).to_bytes(len(modulus) // 2, "big")
            log.step("a prime factor", factor)
            loot.append(factor)
            places.append(offset)
    log.step(
        f"{len(places)} keys, in the strongest shade, among what is not zero", picture=_map(image, places)
    )
    return loot


def _map(image: bytes, places: list[int]) -> Field:
    """All of an image, in cells of the same size: zeros, other contents, keys."""
    size = len(image) // _CELLS
    cells = bytearray(90 if any(image[at : at + size]) else 15 for at in range(0, size * _CELLS, size))
    for place in places:
        cells[place // size] = 255
    return Field(64, bytes(cells))
