"""What attacks have in common that move ciphertext with the published tweak constants, and a known kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cbit.attacks.lab.attack import Range
from cbit.attacks.lab.outcome import SUCCEEDS, Expectation, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.stand import Setup, Stand
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.memory_modes import Mode as Engine
from cbit.spec.address import MIB

EXPECT: Final[Mapping[Mode, Expectation]] = {
    Mode.NONE: does_not_apply("nothing is encrypted: the host writes what it likes"),
    Mode.SME: succeeds("the tweak constants are known"),
    Mode.SEV: succeeds("the tweak constants are known, and there is no integrity"),
    Mode.SEV_ES: SUCCEEDS,
    Mode.SEV_SNP: stopped_by("the RMP refuses the host's write"),
}
SETUP: Final = Setup(engine=Engine.XEX, memory=32 * MIB)
SETUPS: Final = {"fresh": Setup(profile="rome", engine=Engine.XEX, memory=32 * MIB)}
#: Of all that move ciphertext with the published constants: what the constants are.
CONSTANTS: Final[Mapping[str, Range | str]] = {"constants": "zen1"}
CORPUS: Final[Mapping[str, Range | str]] = {"corpus_mib": Range(8, 1, 256)}
PARAMETERS: Final[Mapping[str, Range | str]] = {**CORPUS, **CONSTANTS}


def fresh(shown: str) -> Mapping[str, Expectation]:
    """Declare the defence that all of them share, and how a run shows it."""
    why = "Zen 2 and later: the constants are others at each boot, and not the published ones"
    return {"fresh": stopped_by(why, shown=shown)}


def kernel(stand: Stand) -> bytes:
    """Make a large image whose contents everybody knows: as random as a compressed kernel."""
    return SeededEntropy("a kernel that everybody has").draw(stand.number("corpus_mib") * MIB)
