"""The cells of the matrix that the tests run, and what makes the quick ones quick."""

from __future__ import annotations

from cbit.attacks.experiments import ALL
from cbit.attacks.lab.attack import Attack, Value
from cbit.attacks.lab.outcome import Mode, Verdict

#: Smaller than the default, where the default takes seconds and shows nothing more.
QUICK: dict[str, dict[str, Value]] = {
    "block-move-xe": {"corpus_mib": 1},
    "block-move-xex": {"corpus_mib": 1},
    "code-injection": {"corpus_mib": 1},
    "tweak-constants-xex": {"blocks": 640 << 10},
    "crossline-v1": {"random_pages": 2},
    "ciphertext-dictionary": {"bits": 64},
    "ciphertext-collision": {"bits": 64},
}


def main_cell(attack: Attack) -> Mode:
    """The mode that an attack is about: the strongest that it beats, or the weakest."""
    beaten = [m for m in Mode if m.modelled and attack.expect[m].verdict is Verdict.SUCCEEDED]
    return beaten[-1] if beaten else Mode.NONE


SMALL = tuple(attack for attack in ALL if not attack.linux)  #: against victims that start in no time
LINUX = tuple(attack for attack in ALL if attack.linux)


def main_cells() -> list[tuple[Attack, Mode]]:
    return [(attack, main_cell(attack)) for attack in SMALL]


def defended_cells() -> list[tuple[Attack, str]]:
    return [(attack, variant) for attack in SMALL for variant in attack.defences]


def modelled_cells() -> list[tuple[Attack, Mode, str]]:
    return [(a, mode, variant) for a in SMALL for mode, variant in a.cells() if mode.modelled]
