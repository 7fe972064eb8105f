"""What each attack's figures are, against the mode that it is about, and with each defence.

The cells are those of `cells.QUICK`.  A figure that changes is a change in the machine or in the attack: it
is explained before it is written down here.
"""

from __future__ import annotations

Figures = dict[str, float]

#: By the attack's name, and the variant's.
FIGURES: dict[tuple[str, str], Figures] = {
    ("cold-boot", ""): {"keys found": 3},
    ("warm-reset", ""): {"keys found": 3},
    ("bit-flip", ""): {"faulty signatures needed": 1, "bits of ciphertext flipped": 1},
    ("severed", ""): {
        "requests until the keys are served": 2,
        "pages of the public image that come out right": 16,
        "exits for each page": 5.0,
        "pages that come out right, of all that the victim has for itself": 526,
        "right bytes for each request": 4096,
    },
    ("severed", "other-guest"): {
        "requests until the keys are served": 2,
        "pages of the public image that come out right": 0,
        "exits for each page": 5.0,
        "pages that come out right, of all that the victim has for itself": 0,
        "right bytes for each request": 0,
    },
    ("register-oracle", ""): {"exits for each 8 bytes": 0.5},
    ("dropped-store", ""): {"lines of the victim's that INVD lost": 1},
    ("dropped-store", "converted"): {"lines of the victim's that INVD lost": 0},
    ("launch-permutation", ""): {
        "16-byte blocks that can be placed at will": 528384,
        "bytes written by each chain of three pieces": 8,
    },
    ("tweak-constants-xe", ""): {"blocks moved": 50, "constants recovered": 28},
    ("tweak-constants-xe", "xex"): {"blocks moved": 50},
    ("tweak-constants-xex", ""): {
        "own encryptions for all constants": 589824,
        "collisions": 33,
        "constants recovered": 28,
    },
    ("tweak-constants-xex", "fresh"): {"own encryptions for all constants": 655360, "collisions": 0},
    ("block-move-xe", ""): {"two-byte values at one address from 1 MiB": 63.272},
    ("block-move-xex", ""): {"two-byte values at one address from 1 MiB": 63.272},
    ("block-move-xe", "xex"): {"two-byte values at one address from 1 MiB": 63.272},
    ("block-move-xex", "fresh"): {"two-byte values at one address from 1 MiB": 63.272},
    ("code-injection", ""): {
        "exits for each 16-byte block": 1.0,
        "bytes that can be chosen in a block that is only moved": 2,
    },
    ("code-chain", ""): {
        "rounds for a number of 32 bits, at most": 31,
        "useful bytes in each 32 bytes of code": 2.0,
        "blocks moved for each chosen block of 16 bytes": 778,
        "blocks moved in all": 2640,
    },
    ("unprotected-io", ""): {"bytes decrypted with each packet": 64},
    ("crossline-v1", ""): {
        "exits for each 8 bytes": 1.0,
        "entry-shaped words leaked": 100.0,
        "random words leaked": 0,
        "random words of the published pattern, leaked": 0,
    },
    ("crossline-v1", "deactivated"): {
        "random words leaked": 0,
        "random words of the published pattern, leaked": 0,
    },
    ("crossline-v2", ""): {"exits for each 8 bytes": 1.0},
    ("crossline-tlb", ""): {"pages that the adversary's nested tables have": 0},
    ("ciphertext-dictionary", ""): {"nested page faults for 64 bits": 320},
    ("ciphertext-dictionary", "masked"): {"nested page faults for 64 bits": 320},
    ("ciphertext-collision", ""): {"nested page faults for 64 bits": 320},
    ("ciphertext-collision", "masked"): {"nested page faults for 64 bits": 320},
    ("withheld-flush", ""): {"attempts that succeed": 20},
    ("withheld-flush", "flushed"): {"attempts that succeed": 0},
}

_KEYS = "keys of AES-256 found, of a disk that has two"
#: By the attack's name, and whether it succeeds.
LINUX_FIGURES: dict[tuple[str, bool], Figures] = {
    ("linux-cold-boot", True): {_KEYS: 2},
    ("linux-cold-boot", False): {_KEYS: 0},
    ("linux-tools", True): {_KEYS: 2},
    ("linux-tools", False): {_KEYS: 0},
    ("linux-registers", True): {"exits for each MiB": 1.0, _KEYS: 2},
}
